"""The original's TensorFlow 1 checkpoints, read and written.

The names and shapes of the weights stand in names.py. A checkpoint does not tell its architecture:
a config goes with it, a dict of the original's hyper-parameters. TensorFlow is loaded only when a
checkpoint is read or written.
"""

import glob
import os
import re
from typing import Required, TypedDict

from convbert_tf import schema
from convbert_tf.config import ModelConfig, PretrainingConfig
from convbert_tf.console import UserError, reason, say
from convbert_tf.weights import names
from convbert_tf.weights.stored import (
    Array,
    Stored,
    encoder_config,
    head_config,
    pretrainer_config,
)

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
_GENERATOR = ("generator_hidden_size", "generator_layers", "untied_generator_embeddings")
_HEADS = ("TextClassifier", "TokenClassifier", "QuestionAnswerer")


class _Generator(TypedDict, total=False):
    num_hidden_layers: Required[int]


class Config(TypedDict, total=False):
    """The type of an original's config (see schema.py); `describe` tells which keys go together."""

    discriminator: dict
    generator: _Generator | None
    encoder: dict
    task: str | None
    num_classes: int | None
    labels: list[str] | None
    tagging: bool
    multi_label: bool
    answerable_classifier: bool
    answerable_uses_start_logits: bool
    joint_prediction: bool
    beam_size: int
    electra_objective: bool
    generator_hidden_size: float
    generator_layers: float
    untied_generator_embeddings: bool
    mask_prob: float
    gen_weight: float
    disc_weight: float
    disallow_correct: bool
    temperature: float
    untied_generator: bool
    uniform_generator: bool


# --- reading ---


def find(source):
    """The prefix of the checkpoint that `source` is or holds; None where it is of another format.

    Args:
        source: a path.

    Raises:
        UserError: it is a file of a checkpoint, one of TensorFlow's first format, or a directory
            that does not tell which of its checkpoints is meant.
    """
    source = str(source)
    if os.path.exists(f"{source}.index"):
        return source
    _check_prefix(source)
    found = glob.glob(os.path.join(glob.escape(source), "*.ckpt*.index"))
    prefixes = sorted(path.removesuffix(".index") for path in found)
    if len(prefixes) > 1:
        return _latest(source, prefixes)
    if prefixes:
        return prefixes[0]
    for name in sorted(os.listdir(source)) if os.path.isdir(source) else ():
        if ".ckpt" in name:
            _check_prefix(os.path.join(source, name))
    if os.path.exists(os.path.join(source, "checkpoint")):
        raise UserError(
            f"{source} has a file `checkpoint`, but not the checkpoint that it names: copy its "
            ".index and .data files too."
        )
    return None


def _latest(directory, prefixes):
    """That of the checkpoints with these prefixes which the file `checkpoint` names."""
    path, choices = os.path.join(directory, "checkpoint"), ", ".join(prefixes)
    if not os.path.exists(path):
        raise UserError(f"{directory} holds several checkpoints: name one of {choices}.")
    with open(path, encoding="utf-8", errors="replace") as file:
        named = re.search(r'^model_checkpoint_path: *"(.*)"', file.read(), re.MULTILINE)
    name = os.path.basename(named.group(1)) if named else None
    if os.path.join(directory, str(name)) not in prefixes:
        what = f"{name}, which is not there" if name else "none"
        raise UserError(f"{path} names {what}: name one of {choices}.")
    return os.path.join(directory, name)


def _check_prefix(path):
    """Refuses the path of a file where the prefix of a checkpoint is expected."""
    suffix = re.search(r"\.(index|meta|data-\d+-of-\d+)$", path)
    if suffix and os.path.isfile(path):
        prefix = path[: suffix.start()]
        if os.path.exists(f"{prefix}.index"):
            raise UserError(f"{path} is one file of a checkpoint: give its prefix, {prefix}.")
        raise UserError(
            f"{path} is one file of a checkpoint whose {os.path.basename(prefix)}.index is missing."
        )
    if ".ckpt" in os.path.basename(path) and os.path.isfile(path):
        raise UserError(
            f"{path} is a checkpoint of TensorFlow's first format (V1), or no checkpoint: save it "
            "again as V2, by tf.compat.v1.train.Saver(write_version=2)."
        )


def read(checkpoint_prefix, config, where="the config"):
    """The Stored of a checkpoint of the original code; its arrays are read when they are needed.

    Args:
        checkpoint_prefix: path of the checkpoint without its suffixes, as TensorFlow takes it.
        config: as for conversion.load_original.
        where: names the config in messages.

    Returns:
        A Stored without Adam's moments (see `read_moments`), and the task's name or None. Of other
        variables without a place in the model a line says so.

    Raises:
        UserError: no checkpoint there, or it does not fit `config`.
    """
    tensors = _tensors(checkpoint_prefix)
    stored, task = describe(config, where)
    names.check_layers(stored, len(tensors), checkpoint_prefix)
    table = names.original_names(stored, task)
    stored.arrays.update(names.to_ours(table, tensors, checkpoint_prefix))
    left = sorted(name for name in tensors.keys() - table.keys() if not name.endswith(_STATE))
    if left:
        say(f"{checkpoint_prefix}: {len(left)} variables are left out ({left[0]}, ...)")
    return stored, task


def read_moments(checkpoint_prefix, stored, task=None):
    """Adam's moments in a checkpoint, and the step it was saved at.

    Returns:
        dict of "adam_m" and "adam_v", each name of ours -> Array; and an int.

    Raises:
        UserError: the checkpoint holds no moments, as published ones do not, or others.
    """
    tensors = _tensors(checkpoint_prefix)
    if "global_step" not in tensors:
        raise UserError(
            f"{checkpoint_prefix} has no global_step: it holds weights alone, no training state."
        )
    table, moments = names.original_names(stored, task), {}
    for slot in ("adam_m", "adam_v"):
        of_slot = {f"{name}/{slot}": part for name, part in table.items()}
        moments[slot] = names.to_ours(of_slot, tensors, checkpoint_prefix)
    return moments, int(tensors["global_step"].read())


def _tensors(checkpoint_prefix):
    """Name -> Array of all variables of a checkpoint."""
    import tensorflow as tf

    # What TensorFlow raises for a file that is not whole.
    errors = (tf.errors.OpError, IndexError, ValueError, RuntimeError, TypeError, OSError)
    if not os.path.exists(f"{checkpoint_prefix}.index"):
        _check_prefix(str(checkpoint_prefix))
        raise UserError(
            f"{checkpoint_prefix}.index is not there: a TensorFlow checkpoint's prefix."
        )
    try:
        reader = tf.train.load_checkpoint(checkpoint_prefix)
        shapes = reader.get_variable_to_shape_map()
    except errors as error:
        raise UserError(f"{checkpoint_prefix} is damaged: {reason(error)}") from error

    def read_tensor(name):
        try:
            return reader.get_tensor(name)
        except errors as error:
            raise UserError(
                f"{checkpoint_prefix}: {name!r} cannot be read: {reason(error)}"
            ) from error

    return {
        name: Array(tuple(shape), lambda name=name: read_tensor(name))
        for name, shape in shapes.items()
    }


# --- writing ---


def write(stored, checkpoint_prefix, task=None, moments=None, step=0):
    """Writes `stored` as a checkpoint with the original's names and shapes.

    Args:
        stored: Stored.
        checkpoint_prefix: path without suffixes.
        task: the original's name of the task, for a model with a task head.
        moments: Adam's, as `read_moments` gives them, with the `step`; None for none.

    Raises:
        UserError: the original has no such head, or `task` is missing.
    """
    import tensorflow as tf

    if task is None and stored.kind in _HEADS:
        raise UserError("a model with a head needs the original's name of its task, say 'mnli'.")
    if not stored.config.get("mask_logits", True):
        say("the original masks the logits of positions outside the context, as this head does not")
    if stored.model_config.mask_convolution:
        say(
            "the original's convolution sees padding, as this model's does not: outputs will differ"
        )
    table = names.original_names(stored, task)
    values = {} if moments is None else {"global_step": tf.constant(int(step), tf.int64)}
    for suffix, arrays in {"": stored.arrays, **(moments or {})}.items():
        for name, value in names.to_theirs(table, arrays):
            values[f"{name}/{suffix}".rstrip("/")] = tf.constant(value)
    os.makedirs(os.path.dirname(os.path.abspath(checkpoint_prefix)), exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=checkpoint_prefix,
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=list(values.values()),
    )


# --- configs ---


def describe(config, where="the config"):
    """A Stored without arrays from an original's config, and its task's name (or None).

    Raises:
        UserError: it is none, or a value in it is impossible; `where` names it there.
    """
    schema.check(config, Config, where)
    for part in ("discriminator", "encoder"):
        # A size that is null is as one that is not there.
        given = {key: value for key, value in config.get(part, {}).items() if value is not None}
        schema.check(given, ModelConfig, where, part)
    try:
        stored, task = _describe(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    stored.check_config(where)
    return stored, task


def _describe(config):
    if "discriminator" in config:
        values = pretrainer_config(*_pretraining_configs(config))
        return Stored("ConvBertPretrainer", values), None
    if "encoder" not in config:
        raise UserError("config needs 'discriminator', or 'encoder' and 'task'.")
    encoder, task = _model_config(config["encoder"]), config.get("task")
    if task is None:
        return Stored("ConvBertEncoder", encoder_config(encoder)), None
    if task in _QUESTIONS:
        return Stored("QuestionAnswerer", _answerer_config(encoder, config)), task
    num_classes = config.get("num_classes") or _NUM_CLASSES.get(task)
    if num_classes is None:
        raise UserError(f"task {task!r} is not known; give its 'num_classes' in config.")
    kind = "TokenClassifier" if config.get("tagging", task == "chunk") else "TextClassifier"
    options = {"num_classes": num_classes, "labels": config.get("labels")}
    if config.get("multi_label"):
        options["multi_label"] = True
    return Stored(kind, head_config(encoder, **options)), task


def _answerer_config(encoder, config):
    answerable = config.get("answerable_classifier", config["task"] != "squadv1")
    if answerable and not config.get("answerable_uses_start_logits", True):
        raise UserError("answerable_uses_start_logits=False: that head is not known here.")
    return head_config(
        encoder,
        answerable=answerable,
        beam_size=config.get("beam_size", 20),
        joint=config.get("joint_prediction", True),
    )


def _model_config(values, **extra):
    values = {
        name: value for name, value in values.items() if name not in _NOT_OURS and value is not None
    }
    if "embedding_size" not in values:
        values["embedding_size"] = values.get("hidden_size", ModelConfig().hidden_size)
    return ModelConfig.from_dict(values | extra)


def _pretraining_configs(config):
    discriminator = config["discriminator"]
    extra = {name: config[name] for name in _GENERATOR if name in config}
    if generator := config.get("generator"):
        layers = _model_config(discriminator).num_hidden_layers
        extra["generator_layers"] = generator["num_hidden_layers"] / layers
    pretraining = {name: config[name] for name in _PRETRAINING if name in config}
    objective = "electra" if config.get("electra_objective", True) else "mlm"
    return _model_config(discriminator, **extra), PretrainingConfig(objective, **pretraining)


def config_of(stored, task=None):
    """The config that `read` takes for a checkpoint of `stored`, as JSON can hold it."""
    if stored.kind == "ConvBertPretrainer":
        return pretraining_config(stored.model_config, stored.pretraining)
    encoder, config = stored.model_config.to_dict(), stored.config
    values = {"encoder": {key: encoder[key] for key in encoder if key not in _GENERATOR}}
    if stored.kind in ("TextClassifier", "TokenClassifier"):
        values |= {"task": task, "num_classes": config["num_classes"]}
        values |= {"labels": config.get("labels"), "tagging": stored.kind == "TokenClassifier"}
        values |= {"multi_label": True} if config.get("multi_label") else {}
    if stored.kind == "QuestionAnswerer":
        values |= {"task": task, "answerable_classifier": config.get("answerable", False)}
        values |= {"joint_prediction": config.get("joint", True)}
        values |= {"beam_size": config.get("beam_size", 20)}
    return values


def pretraining_config(model_config, pretraining=None):
    """As `config_of`, of a ModelConfig and a PretrainingConfig."""
    pretraining, values = pretraining or PretrainingConfig(), model_config.to_dict()
    return {
        "discriminator": {name: values[name] for name in values if name not in _GENERATOR},
        "electra_objective": pretraining.objective == "electra",
        **{name: getattr(pretraining, name) for name in _PRETRAINING},
        **{name: values[name] for name in _GENERATOR},
    }
