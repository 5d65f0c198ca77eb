"""The original's TensorFlow 1 checkpoints, read and written.

The names and shapes of the weights stand in weight_names.py. A checkpoint does not tell its
architecture: a config goes with it, a dict of the original's hyper-parameters.
"""

import os

import tensorflow as tf

from convbert_tf.config import ModelConfig, PretrainingConfig
from convbert_tf.console import UserError, reason, say
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from convbert_tf.weights.weight_names import assign, original_names

# Keys of the original's configs that say nothing about the architecture.
_NOT_OURS = {"max_predictions_per_seq"}
_NUM_CLASSES = {"mnli": 3, "sts": 1}
_NUM_CLASSES |= dict.fromkeys(("cola", "sst", "mrpc", "qqp", "qnli", "rte", "wnli"), 2)
_QUESTIONS = ("squad", "squadv1", "newsqa", "naturalqs", "searchqa", "triviaqa")
# Fields of PretrainingConfig and ModelConfig under the same names in the original's config.
_PRETRAINING = (
    "mask_prob",
    "gen_weight",
    "disc_weight",
    "disallow_correct",
    "temperature",
    "untied_generator",
    "uniform_generator",
)
_STATE = ("/adam_m", "/adam_v", "global_step")
# What TensorFlow raises for a file that is not whole.
_READ_ERRORS = (tf.errors.OpError, IndexError, ValueError, RuntimeError)
_GENERATOR = ("generator_hidden_size", "generator_layers", "untied_generator_embeddings")


def load_original(checkpoint_prefix, config):
    """The model of a checkpoint of the original code.

    Args:
        checkpoint_prefix: path of the checkpoint without its suffixes, as TensorFlow takes it.
        config: dict with "discriminator" (pre-training), or "encoder" and "task" (fine-tuned), each
            the original's hyper-parameters, as `original_config` makes it. The generator's follow
            from "generator_hidden_size" and "generator_layers", or "generator", which has the
            number of its layers.

    Returns:
        ConvBertPretrainer or a model with a head; ConvBertEncoder for a config without "task".
        Adam's moments are left out: see `load_original_optimizer`. Of other variables without a
        place in the model a line says so.

    Raises:
        UserError: no checkpoint there, or it does not fit `config`.
    """
    read = _reader(checkpoint_prefix)
    model, task = build(config)
    names = original_names(model, task)
    assign(names, read, checkpoint_prefix)
    there = {name for name, _ in tf.train.list_variables(checkpoint_prefix)}
    left = sorted(name for name in there - names.keys() if not name.endswith(_STATE))
    if left:
        say(f"{checkpoint_prefix}: {len(left)} variables are left out ({left[0]}, ...)")
    return model


def _reader(checkpoint_prefix):
    """A function: name -> array, or None where the checkpoint has no such variable."""
    if not os.path.exists(f"{checkpoint_prefix}.index"):
        raise UserError(
            f"{checkpoint_prefix}.index is not there: a TensorFlow checkpoint's prefix."
        )
    try:
        reader = tf.train.load_checkpoint(checkpoint_prefix)
    except _READ_ERRORS as error:
        raise UserError(f"{checkpoint_prefix} is damaged: {reason(error)}") from error

    def read(name):
        try:
            return reader.get_tensor(name) if reader.has_tensor(name) else None
        except _READ_ERRORS as error:
            raise UserError(
                f"{checkpoint_prefix}: {name!r} cannot be read: {reason(error)}"
            ) from error

    return read


def load_original_optimizer(checkpoint_prefix, model, optimizer, task=None):
    """Sets the step and Adam's moments from a checkpoint, so that its training goes on.

    Args:
        checkpoint_prefix: as for `load_original`.
        model: what that returned.
        optimizer: optimization.AdamW; it is built on the model's weights if it is not.
        task: the original's name of the task, for a model with a task head.

    Returns:
        The step the checkpoint was saved at.

    Raises:
        UserError: the checkpoint holds no moments, as published ones do not, or others.
    """
    read = _reader(checkpoint_prefix)
    step = read("global_step")
    if step is None:
        raise UserError(
            f"{checkpoint_prefix} has no global_step: it holds weights alone, no training state."
        )
    assign(_moment_names(model, optimizer, task), read, checkpoint_prefix)
    optimizer.iterations.assign(int(step))
    return int(step)


def _moment_names(model, optimizer, task):
    """Name in the original's checkpoints -> Part of the optimiser's variable."""
    optimizer.build(model.trainable_variables)
    slots = {"adam_m": optimizer._momentums, "adam_v": optimizer._velocities}
    paths = {variable.path: i for i, variable in enumerate(model.trainable_variables)}
    return {
        f"{name}/{slot}": part.of(variables[paths[part.variable.path]])
        for name, part in original_names(model, task).items()
        for slot, variables in slots.items()
    }


def save_original(model, checkpoint_prefix, task=None, optimizer=None):
    """Writes `model` as a checkpoint with the original's names and shapes.

    Args:
        model: as for weight_names.original_names.
        checkpoint_prefix: path without suffixes.
        task: the original's name of the task, for a model with a task head.
        optimizer: the AdamW it is trained with, whose moments and step go along.

    Raises:
        UserError: the original has no such head, or `task` is missing.
    """
    if task is None and isinstance(model, TextClassifier | TokenClassifier | QuestionAnswerer):
        raise UserError("a model with a head needs the original's name of its task, say 'mnli'.")
    names = original_names(model, task)
    values = {}
    if optimizer is not None:
        names |= _moment_names(model, optimizer, task)
        values["global_step"] = tf.constant(int(optimizer.iterations), tf.int64)
    values |= {name: tf.constant(part.get()) for name, part in names.items()}
    os.makedirs(os.path.dirname(os.path.abspath(checkpoint_prefix)), exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=checkpoint_prefix,
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=list(values.values()),
    )


def build(config):
    """A model with fresh weights from an original's config, and its task's name (or None)."""
    try:
        return _build(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"this is no config of an original checkpoint ({error!r}).") from error


def _build(config):
    if "discriminator" in config:
        return ConvBertPretrainer(*_pretraining_configs(config)), None
    if "encoder" not in config:
        raise UserError("config needs 'discriminator', or 'encoder' and 'task'.")
    encoder, task = ConvBertEncoder(_model_config(config["encoder"])), config.get("task")
    if task is None:
        return encoder, None
    if task in _QUESTIONS:
        return _question_answerer(encoder, config), task
    num_classes = config.get("num_classes") or _NUM_CLASSES.get(task)
    if num_classes is None:
        raise UserError(f"task {task!r} is not known; give its 'num_classes' in config.")
    kind = TokenClassifier if config.get("tagging", task == "chunk") else TextClassifier
    return kind(encoder, num_classes, labels=config.get("labels")), task


def _question_answerer(encoder, config):
    answerable = config.get("answerable_classifier", config["task"] != "squadv1")
    if answerable and not config.get("answerable_uses_start_logits", True):
        raise UserError("answerable_uses_start_logits=False: that head is not known here.")
    return QuestionAnswerer(
        encoder,
        answerable,
        beam_size=config.get("beam_size", 20),
        joint=config.get("joint_prediction", True),
    )


def _model_config(values, **extra):
    values = {name: value for name, value in values.items() if name not in _NOT_OURS}
    if values.get("embedding_size") is None:
        values["embedding_size"] = values.get("hidden_size", ModelConfig().hidden_size)
    return ModelConfig.from_dict(values | extra)


def _pretraining_configs(config):
    discriminator = config["discriminator"]
    extra = {name: config[name] for name in _GENERATOR if name in config}
    if generator := config.get("generator"):
        layers = discriminator["num_hidden_layers"]
        extra["generator_layers"] = generator["num_hidden_layers"] / layers
    pretraining = {name: config[name] for name in _PRETRAINING if name in config}
    objective = "electra" if config.get("electra_objective", True) else "mlm"
    return _model_config(discriminator, **extra), PretrainingConfig(objective, **pretraining)


def original_config(model, task=None):
    """The config that `load_original` takes for a checkpoint of `model`, as JSON can hold it."""
    if isinstance(model, ConvBertPretrainer):
        return pretraining_config(model.config, model.pretraining)
    encoder = getattr(model, "encoder", model).config.to_dict()
    values = {"encoder": {key: encoder[key] for key in encoder if key not in _GENERATOR}}
    if isinstance(model, TextClassifier | TokenClassifier):
        values |= {"task": task, "num_classes": model.num_classes, "labels": model.labels}
        values["tagging"] = isinstance(model, TokenClassifier)
    if isinstance(model, QuestionAnswerer):
        values |= {"task": task, "answerable_classifier": model.answerable}
        values |= {"joint_prediction": model.joint, "beam_size": model.beam_size}
    return values


def pretraining_config(model_config, pretraining=None):
    """As `original_config`, of a ModelConfig and a PretrainingConfig."""
    pretraining, values = pretraining or PretrainingConfig(), model_config.to_dict()
    return {
        "discriminator": {name: values[name] for name in values if name not in _GENERATOR},
        "electra_objective": pretraining.objective == "electra",
        **{name: getattr(pretraining, name) for name in _PRETRAINING},
        **{name: values[name] for name in _GENERATOR},
    }
