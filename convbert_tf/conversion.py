"""Weights in and out: the original's TensorFlow 1 checkpoints, Hugging Face's directories.

Each weight of ours is tied to its name there by one table a format (`original_names`,
`huggingface_names`), which serves both directions. Our fused projection holds four of their
matrices side by side.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf
from keras import ops

from convbert_tf.config import ModelConfig, PretrainingConfig, read_json
from convbert_tf.console import UserError
from convbert_tf.heads import QuestionAnswerer, TextClassifier
from convbert_tf.model import ConvBertEncoder
from convbert_tf.pretraining import ConvBertPretrainer

# Keys of the original's configs that say nothing about the architecture.
_NOT_OURS = {"max_predictions_per_seq"}
_HEAD_CLASSES = {"cola": 2, "sst": 2, "mrpc": 2, "qqp": 2, "mnli": 3, "qnli": 2, "rte": 2, "sts": 1}


class Part:
    """A weight, or a slice of its last axis, under the shape that it has elsewhere."""

    def __init__(self, variable, shape=None, part=0, parts=1, transpose=False):
        self.variable = variable
        width = variable.shape[-1] // parts
        self._columns = slice(part * width, (part + 1) * width)
        self._transpose = transpose
        own = (*variable.shape[:-1], width)
        self.shape = tuple(shape or (own[::-1] if transpose else own))

    def get(self):
        """The values, as a numpy array of `shape`."""
        return self.slice(ops.convert_to_numpy(self.variable))

    def slice(self, whole):
        """What of `whole`, an array like the weight (its gradient, say), this part is."""
        own = np.asarray(whole)[..., self._columns]
        return (own.T if self._transpose else own).reshape(self.shape)

    def set(self, values):
        """Sets the values from an array of `shape`."""
        whole = ops.convert_to_numpy(self.variable).copy()
        own = whole[..., self._columns].shape
        values = np.reshape(values, own[::-1]).T if self._transpose else np.reshape(values, own)
        whole[..., self._columns] = values
        self.variable.assign(whole)


def original_names(model, task=None):
    """Name in the original's checkpoints -> Part, for every weight of `model`.

    Args:
        model: ConvBertEncoder, ConvBertPretrainer, TextClassifier or QuestionAnswerer.
        task: the original's name of the task, for a model with a task head.
    """
    if isinstance(model, ConvBertPretrainer):
        return _pretrainer_names(model)
    names = _encoder_names(getattr(model, "encoder", model), "electra", "electra")
    if isinstance(model, TextClassifier):
        names |= _dense_names(model.logits, f"task_specific/{task}/dense")
    elif isinstance(model, QuestionAnswerer):
        names |= _question_answerer_names(model, f"task_specific/{task}/")
    return names


def _pretrainer_names(model):
    names = _encoder_names(model.discriminator, "electra", "electra")
    if model.generator is not model.discriminator:
        tied = model.generator.embeddings is model.discriminator.embeddings
        names |= _encoder_names(model.generator, "generator", "electra" if tied else "generator")
    head = model.generator_head
    names |= _dense_names(head.dense, "generator_predictions/dense")
    names |= _norm_names(head.norm, "generator_predictions/LayerNorm")
    names["generator_predictions/output_bias"] = Part(head.output_bias)
    if model.discriminator_head is not None:
        head = model.discriminator_head
        names |= _dense_names(head.dense, "discriminator_predictions/dense")
        names |= _dense_names(head.logit, "discriminator_predictions/dense_1")
    return names


def _question_answerer_names(model, prefix):
    names = _dense_names(model.start, f"{prefix}dense")
    names |= _dense_names(model.end_hidden, f"{prefix}qa_hidden")
    names |= _dense_names(model.end, f"{prefix}dense_1")
    if model.answerable:
        names |= _dense_names(model.answerable_hidden, f"{prefix}dense_2")
        names |= _dense_names(model.answerable_logit, f"{prefix}dense_3")
    return names


def _encoder_names(encoder, scope, embeddings_scope):
    prefix, embeddings = f"{embeddings_scope}/embeddings/", encoder.embeddings
    names = {
        f"{prefix}word_embeddings": Part(embeddings.word_embeddings),
        f"{prefix}token_type_embeddings": Part(embeddings.token_type_embeddings),
        f"{prefix}position_embeddings": Part(embeddings.position_embeddings),
    }
    names |= _norm_names(embeddings.norm, f"{prefix}LayerNorm")
    if encoder.embeddings_project is not None:
        names |= _dense_names(encoder.embeddings_project, f"{scope}/embeddings_project")
    for i, block in enumerate(encoder.blocks):
        names |= _block_names(block, f"{scope}/encoder/layer_{i}/")
    return names


def _block_names(block, prefix):
    names = _attention_names(block.attention, f"{prefix}attention/self/")
    dense = "dense" if block.feed_forward.linear_groups == 1 else "g_dense"
    names |= _dense_names(block.attention_output, f"{prefix}attention/output/dense")
    names |= _norm_names(block.attention_norm, f"{prefix}attention/output/LayerNorm")
    names |= _dense_names(block.feed_forward.up, f"{prefix}intermediate/{dense}")
    names |= _dense_names(block.feed_forward.down, f"{prefix}output/{dense}")
    return names | _norm_names(block.output_norm, f"{prefix}output/LayerNorm")


def _attention_names(attention, prefix):
    parts = ["query", "key", "value"] + ["conv_attn_point"] * (attention.convolution is not None)
    names = {}
    for i, part in enumerate(parts):
        for kind in ("kernel", "bias"):
            variable = getattr(attention.projection, kind)
            names[f"{prefix}{part}/{kind}"] = Part(variable, part=i, parts=len(parts))
    if (convolution := attention.convolution) is not None:
        depthwise, pointwise = convolution.depthwise_kernel, convolution.pointwise_kernel
        key = f"{prefix}conv_attn_key/"
        names[f"{key}depthwise_kernel"] = Part(depthwise, (*depthwise.shape, 1))
        names[f"{key}pointwise_kernel"] = Part(pointwise, (1, *pointwise.shape))
        names[f"{key}bias"] = Part(convolution.pointwise_bias)
        names |= _dense_names(convolution.kernel_projection, f"{prefix}conv_attn_kernel")
    return names


def _dense_names(layer, name):
    return {f"{name}/kernel": Part(layer.kernel), f"{name}/bias": Part(layer.bias)}


def _norm_names(layer, name):
    return {f"{name}/gamma": Part(layer.gamma), f"{name}/beta": Part(layer.beta)}


def assign(names, read, source):
    """Sets every Part of `names` from `read(name)`.

    Raises:
        UserError: a weight is missing from `source`, or has another shape; names it.
    """
    values = {}
    for name, part in names.items():
        value = read(name)
        if value is None:
            raise UserError(f"{source} has no {name!r}; it was made with another configuration.")
        if tuple(value.shape) != part.shape:
            raise UserError(
                f"{source}: {name!r} has shape {tuple(value.shape)}, the configuration asks for "
                f"{part.shape}."
            )
        values[name] = value
    for name, part in names.items():
        part.set(values[name])


def load_original(checkpoint_prefix, config):
    """The model of a checkpoint of the original code.

    Args:
        checkpoint_prefix: path of the checkpoint without its suffixes, as TensorFlow takes it.
        config: dict with "discriminator" and "generator" (pre-training), or "encoder" and "task"
            (fine-tuned), each the original's hyper-parameters.

    Returns:
        ConvBertPretrainer, TextClassifier or QuestionAnswerer. Optimizer slots are left out.

    Raises:
        UserError: no checkpoint there, or it does not fit `config`.
    """
    if not os.path.exists(f"{checkpoint_prefix}.index"):
        raise UserError(
            f"{checkpoint_prefix}.index is not there: a TensorFlow checkpoint's prefix."
        )
    reader = tf.train.load_checkpoint(checkpoint_prefix)
    model, task = build(config)

    def read(name):
        return reader.get_tensor(name) if reader.has_tensor(name) else None

    assign(original_names(model, task), read, checkpoint_prefix)
    return model


def build(config):
    """A model with fresh weights from an original's config, and its task's name (or None)."""
    if "discriminator" in config:
        return ConvBertPretrainer(*_pretraining_configs(config)), None
    if "encoder" not in config:
        raise UserError("config needs 'discriminator' and 'generator', or 'encoder' and 'task'.")
    encoder = ConvBertEncoder(_model_config(config["encoder"]))
    task = config["task"]
    if task.startswith("squad"):
        model = QuestionAnswerer(
            encoder, config["answerable_classifier"], beam_size=config["beam_size"]
        )
    else:
        num_classes = config.get("num_classes") or _HEAD_CLASSES.get(task)
        if num_classes is None:
            raise UserError(f"task {task!r} is not known; give its 'num_classes' in config.")
        model = TextClassifier(encoder, num_classes)
    return model, task


def _model_config(values, **extra):
    values = {name: value for name, value in values.items() if name not in _NOT_OURS}
    return ModelConfig.from_dict(values | extra)


def _pretraining_configs(config):
    discriminator, generator = config["discriminator"], config["generator"]
    model_config = _model_config(
        discriminator,
        generator_hidden_size=config["generator_hidden_size"],
        generator_layers=generator["num_hidden_layers"] / discriminator["num_hidden_layers"],
        untied_generator_embeddings=config["untied_generator_embeddings"],
    )
    names = ("mask_prob", "gen_weight", "disc_weight", "disallow_correct")
    return model_config, PretrainingConfig(**{name: config[name] for name in names})


def save_original(model, checkpoint_prefix, task=None):
    """Writes `model` as a checkpoint with the original's names and shapes.

    Args:
        model: as for `original_names`.
        checkpoint_prefix: path without suffixes.
        task: the original's name of the task, for a model with a task head.
    """
    os.makedirs(os.path.dirname(os.path.abspath(checkpoint_prefix)), exist_ok=True)
    names = original_names(model, task)
    tf.raw_ops.SaveV2(
        prefix=checkpoint_prefix,
        tensor_names=list(names),
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(part.get()) for part in names.values()],
    )


def load_huggingface(directory):
    """The encoder of a Hugging Face ConvBERT directory: config.json and model.safetensors.

    Raises:
        UserError: a file is missing, or the weights do not fit the config.
    """
    values = read_json(os.path.join(directory, "config.json"), "a Hugging Face config")
    if values.get("model_type") != "convbert":
        raise UserError(f"{directory} holds a {values.get('model_type')}, not a convbert.")
    path = os.path.join(directory, "model.safetensors")
    if not os.path.exists(path):
        raise UserError(f"{path} is not there.")
    from safetensors.numpy import load_file

    tensors = load_file(path)
    prefix = "convbert." if any(name.startswith("convbert.") for name in tensors) else ""
    encoder = ConvBertEncoder(huggingface_config(values))
    assign(huggingface_names(encoder, prefix), tensors.get, path)
    return encoder


def huggingface_config(values):
    """ModelConfig of the content of a Hugging Face config.json.

    Raises:
        UserError: the configuration computes something else there than in the original.
    """
    heads, ratio = values["num_attention_heads"], values["head_ratio"]
    if ratio != 2 or heads < 4:
        raise UserError(
            f"num_attention_heads {heads} with head_ratio {ratio}: Hugging Face sizes a head as "
            "hidden / kept heads / 2, which is ConvBERT only when head_ratio is 2 and at least "
            "two heads are kept."
        )
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    known = {name: value for name, value in values.items() if name in fields}
    return ModelConfig.from_dict(known | {"linear_groups": values["num_groups"]})


def huggingface_names(encoder, prefix=""):
    """Name in Hugging Face's state dict -> Part, for every weight of `encoder`."""
    embeddings = encoder.embeddings
    names = {
        f"{prefix}embeddings.{table}.weight": Part(getattr(embeddings, table))
        for table in ("word_embeddings", "token_type_embeddings", "position_embeddings")
    }
    names |= _torch_norm(embeddings.norm, f"{prefix}embeddings.LayerNorm")
    if encoder.embeddings_project is not None:
        names |= _torch_dense(encoder.embeddings_project, f"{prefix}embeddings_project")
    for i, block in enumerate(encoder.blocks):
        names |= _torch_block(block, f"{prefix}encoder.layer.{i}.")
    return names


def _torch_block(block, prefix):
    names = _torch_attention(block.attention, f"{prefix}attention.self.")
    names |= _torch_dense(block.attention_output, f"{prefix}attention.output.dense")
    names |= _torch_norm(block.attention_norm, f"{prefix}attention.output.LayerNorm")
    grouped = block.feed_forward.linear_groups > 1
    names |= _torch_dense(block.feed_forward.up, f"{prefix}intermediate.dense", grouped)
    names |= _torch_dense(block.feed_forward.down, f"{prefix}output.dense", grouped)
    return names | _torch_norm(block.output_norm, f"{prefix}output.LayerNorm")


def _torch_attention(attention, prefix):
    names, projection = {}, attention.projection
    for i, part in enumerate(("query", "key", "value", "conv_out_layer")):
        names[f"{prefix}{part}.weight"] = Part(projection.kernel, None, i, 4, transpose=True)
        names[f"{prefix}{part}.bias"] = Part(projection.bias, None, i, 4)
    convolution, key = attention.convolution, f"{prefix}key_conv_attn_layer."
    kernel_size, hidden_size = convolution.depthwise_kernel.shape
    names[f"{key}depthwise.weight"] = Part(
        convolution.depthwise_kernel, (hidden_size, 1, kernel_size), transpose=True
    )
    names[f"{key}pointwise.weight"] = Part(
        convolution.pointwise_kernel, (convolution.width, hidden_size, 1), transpose=True
    )
    names[f"{key}bias"] = Part(convolution.pointwise_bias, (convolution.width, 1))
    return names | _torch_dense(convolution.kernel_projection, f"{prefix}conv_kernel_layer")


def _torch_dense(layer, name, grouped=False):
    kernel = Part(layer.kernel, transpose=not grouped)
    return {f"{name}.weight": kernel, f"{name}.bias": Part(layer.bias)}


def _torch_norm(layer, name):
    return {f"{name}.weight": Part(layer.gamma), f"{name}.bias": Part(layer.beta)}
