"""Every weight of every model under its name in the original's checkpoints; no TensorFlow.

This one table serves all formats, in both directions: huggingface.py derives Hugging Face's names
from it. Our fused projection holds four of their matrices side by side.
"""

import numpy as np
from keras import ops

from convbert_tf.console import UserError
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.modeling.pretraining import ConvBertPretrainer


class Part:
    """A weight, or a slice of its last axis, under the shape that it has elsewhere."""

    def __init__(self, variable, shape=None, part=0, parts=1, transpose=False):
        self._arguments = (variable, shape, part, parts, transpose)
        self.variable, self._transpose = variable, transpose
        width = variable.shape[-1] // parts
        self._columns = slice(part * width, (part + 1) * width)
        own = (*variable.shape[:-1], width)
        self.shape = tuple(shape or (own[::-1] if transpose else own))

    def of(self, variable):
        """The same part of another variable of that shape: of a moment of the optimiser's, say."""
        return Part(variable, *self._arguments[1:])

    def elsewhere(self, shape=None, transpose=False):
        """The same part of the same weight as another format holds it."""
        variable, _, part, parts, _ = self._arguments
        return Part(variable, shape, part, parts, transpose)

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
        model: any model of this package.
        task: the original's name of the task, for a model with a task head.

    Raises:
        UserError: the original has no such head.
    """
    if isinstance(model, ConvBertPretrainer):
        return _pretrainer_names(model)
    names, prefix = encoder_names(getattr(model, "encoder", model)), f"task_specific/{task}/"
    if isinstance(model, QuestionAnswerer):
        return names | _question_answerer_names(model, prefix)
    if isinstance(model, TextClassifier) and model.hidden_layer:
        raise UserError(
            "the original's classifier has no hidden layer: choose another format, or fine-tune "
            "the encoder with a new head."
        )
    if isinstance(model, TextClassifier | TokenClassifier):
        names |= dense_names(model.logits, f"{prefix}dense")
    return names


def _pretrainer_names(model):
    names = encoder_names(model.discriminator)
    if model.generator not in (None, model.discriminator):
        tied = model.generator.embeddings is model.discriminator.embeddings
        names |= encoder_names(model.generator, "generator", "electra" if tied else "generator")
    if model.generator_head is not None:
        names |= masked_lm_head_names(model.generator_head)
    if model.discriminator_head is not None:
        head = model.discriminator_head
        names |= dense_names(head.dense, "discriminator_predictions/dense")
        names |= dense_names(head.logit, "discriminator_predictions/dense_1")
    return names


def masked_lm_head_names(head):
    """As `original_names`, for a MaskedLmHead; its output weights are the word embeddings."""
    names = dense_names(head.dense, "generator_predictions/dense")
    names |= _norm_names(head.norm, "generator_predictions/LayerNorm")
    return names | {"generator_predictions/output_bias": Part(head.output_bias)}


def _question_answerer_names(model, prefix):
    if model.joint:
        names = dense_names(model.start, f"{prefix}dense")
        names |= dense_names(model.end_hidden, f"{prefix}qa_hidden")
        names |= dense_names(model.end, f"{prefix}dense_1")
    else:
        names = {
            f"{prefix}{name}/{kind}": Part(getattr(model.logits, kind), part=i, parts=2)
            for i, name in enumerate(("dense", "dense_1"))
            for kind in ("kernel", "bias")
        }
    if model.answerable:
        names |= dense_names(model.answerable_hidden, f"{prefix}dense_2")
        names |= dense_names(model.answerable_logit, f"{prefix}dense_3")
    return names


def encoder_names(encoder, scope="electra", embeddings_scope="electra"):
    """As `original_names`, for an encoder; tied embeddings are in the discriminator's scope."""
    prefix, embeddings = f"{embeddings_scope}/embeddings/", encoder.embeddings
    names = {
        f"{prefix}word_embeddings": Part(embeddings.word_embeddings),
        f"{prefix}token_type_embeddings": Part(embeddings.token_type_embeddings),
        f"{prefix}position_embeddings": Part(embeddings.position_embeddings),
    }
    names |= _norm_names(embeddings.norm, f"{prefix}LayerNorm")
    if encoder.embeddings_project is not None:
        names |= dense_names(encoder.embeddings_project, f"{scope}/embeddings_project")
    for i, block in enumerate(encoder.blocks):
        names |= _block_names(block, f"{scope}/encoder/layer_{i}/")
    return names


def _block_names(block, prefix):
    names = _attention_names(block.attention, f"{prefix}attention/self/")
    dense = "dense" if block.feed_forward.linear_groups == 1 else "g_dense"
    names |= dense_names(block.attention_output, f"{prefix}attention/output/dense")
    names |= _norm_names(block.attention_norm, f"{prefix}attention/output/LayerNorm")
    names |= dense_names(block.feed_forward.up, f"{prefix}intermediate/{dense}")
    names |= dense_names(block.feed_forward.down, f"{prefix}output/{dense}")
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
        names |= dense_names(convolution.kernel_projection, f"{prefix}conv_attn_kernel")
    return names


def dense_names(layer, name):
    """As `original_names`, for a Dense layer of that name."""
    return {f"{name}/kernel": Part(layer.kernel), f"{name}/bias": Part(layer.bias)}


def _norm_names(layer, name):
    return {f"{name}/gamma": Part(layer.gamma), f"{name}/beta": Part(layer.beta)}


def assign(names, read, source):
    """Sets every Part of `names` from `read(name)`: all of them, or none.

    Raises:
        UserError: a weight is missing from `source`, or has another shape; names it.
    """
    values = {}
    for name, part in names.items():
        value = read(name)
        if value is None:
            raise UserError(f"{source} has no {name!r}; it was made with another configuration.")
        # Axes of size 1 hold nothing: Hugging Face's two formats set them differently.
        if _without_ones(value.shape) != _without_ones(part.shape):
            raise UserError(
                f"{source}: {name!r} has shape {tuple(value.shape)}, the configuration asks for "
                f"{part.shape}."
            )
        values[name] = value
    for name, part in names.items():
        part.set(values[name])


def _without_ones(shape):
    return tuple(size for size in shape if size != 1)
