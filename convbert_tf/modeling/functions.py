"""Functions of tensors that the models and their losses are made of, with gradients written out.

No TensorFlow: they run on every backend of Keras. Axes as in layers.py; C is a chunk of tokens.
"""

import collections.abc
import math

import keras
import numpy as np
from keras import ops

from convbert_tf.console import UserError

EPSILON = 1e-12  # of the original's LayerNorm
# Tokens a band covers. The arithmetic grows with C and the copying shrinks; on CPUs 16 to 64
# measure alike.
CHUNK = 32
INPUTS = ("input_ids", "input_mask", "segment_ids")
# Hugging Face's names of inputs, and ours; None where there is no such input here.
_THEIRS = {"attention_mask": "input_mask", "token_type_ids": "segment_ids"}
_THEIRS |= dict.fromkeys(("position_ids", "inputs_embeds", "head_mask"))


# --- inputs ---


def check_inputs(inputs, config):
    """Refuses inputs that an encoder of ModelConfig `config` cannot take.

    Values are checked where they are known, that is in eager calls and of arrays; in graphs there
    is nothing to check, and nothing is computed.

    Raises:
        UserError: names the input and what it must be.
    """
    expected = "expected is a dict of input_ids, input_mask, segment_ids, as TextPreprocessor(...)"
    if holds_text(inputs):
        raise UserError(f"the model got texts; {expected} makes it of them.")
    if not isinstance(inputs, collections.abc.Mapping) or "input_ids" not in inputs:
        what = "dict without input_ids" if isinstance(inputs, dict) else type(inputs).__name__
        raise UserError(f"the model got a {what}; {expected} makes it of texts.")
    _check_names(inputs)
    limits = (config.vocab_size, 2, config.type_vocab_size)
    for name, limit in zip(INPUTS, limits, strict=True):
        if holds_text(inputs.get(name)):
            raise UserError(f"{name} holds texts; {expected} makes it of them.")
        values = _known(inputs.get(name))
        if values is None or not values.size:
            continue
        for value in (values.min(), values.max()):
            if not 0 <= value < limit:
                raise UserError(f"{name} must be from 0 to {limit - 1}; there is a {value}.")
    _check_shapes(inputs)


def _check_names(inputs):
    """Refuses an input by a name that the model would not look at.

    A batch may have other features, say labels; but where a mask or segments are missing, another
    name is taken for what is meant by them.
    """
    for theirs, ours in _THEIRS.items():
        if theirs in inputs:
            hint = f"call it {ours}" if ours else "there is no such input here"
            raise UserError(f"the model got {theirs}, a name of Hugging Face's: {hint}.")
    missing = [name for name in INPUTS if name not in inputs]
    other = next((name for name in inputs if name not in INPUTS), None)
    if missing and other is not None:
        raise UserError(
            f"the model got {other!r}, which it does not know, and no {' or '.join(missing)}: "
            "correct the name, or leave it out."
        )


def _check_shapes(inputs):
    """Refuses inputs that are not all of one shape [B, T], as far as shapes are known."""
    first = None
    for name in INPUTS:
        shape = getattr(inputs.get(name), "shape", None)
        if shape is None or getattr(shape, "rank", 0) is None:
            continue
        shape = tuple(shape)
        if len(shape) != 2:
            hint = "; one row is a batch of one: x[None]" if len(shape) == 1 else ""
            raise UserError(f"{name} must be [batch, tokens], got shape {shape}{hint}.")
        first = first or shape
        if any(
            None not in sizes and sizes[0] != sizes[1] for sizes in zip(first, shape, strict=True)
        ):
            raise UserError(f"{name} has shape {shape}, but input_ids {first}: they must agree.")


def holds_text(values):
    """Whether `values` are strings: one, a list, an array or a tensor of them."""
    if isinstance(values, list | tuple) and values:
        return holds_text(values[0])
    dtype = getattr(values, "dtype", None)
    if getattr(dtype, "kind", None) == "O" and getattr(values, "size", 0):
        return isinstance(np.ravel(values)[0], str | bytes)
    is_string = getattr(dtype, "kind", "") in ("U", "S") or getattr(dtype, "name", "") == "string"
    return isinstance(values, str | bytes) or is_string


def _known(values):
    """`values` as an array of numbers; None where they are not known, as in a graph."""
    if values is None:
        return None
    try:
        array = np.asarray(values)
    except Exception:  # each backend has its own for a tensor that stands for later values
        return None
    return array if array.dtype.kind in "biuf" else None


def custom_gradient(function):
    """`keras.ops.custom_gradient` for functions of one output, alike on all backends.

    Args:
        function: takes tensors; returns its output, and a function of the output's gradient that
            gives that of each input.
    """

    @ops.custom_gradient
    def with_gradient(*inputs):
        output, backward = function(*inputs)

        def gradient(*args, upstream=None):  # by position or by name: backends differ
            return backward(*args) if upstream is None else backward(upstream)

        return output, gradient

    return with_gradient


# --- activations ---


def gelu(x):
    """Gaussian error linear unit in its exact form, x * Phi(x), as the original computes it.

    Written by the error function, which fuses with the matrix product before it on CPUs. For the
    gradient it keeps its slope alone, not x and Phi(x).
    """

    @custom_gradient
    def function(x):
        twice_cdf = 1 + ops.erf(x * math.sqrt(0.5))
        density = ops.exp(-0.5 * ops.square(x) - 0.5 * math.log(2 * math.pi))
        slope = 0.5 * twice_cdf + x * density

        def gradient(dy):
            return dy * slope

        return 0.5 * x * twice_cdf, gradient

    return function(x)


def activation(hidden_act):
    """The function of the name; "gelu" is the exact form, all others are Keras's."""
    try:
        return gelu if hidden_act == "gelu" else keras.activations.get(hidden_act)
    except ValueError as error:
        raise UserError(f"hidden_act {hidden_act!r:.60} is none of Keras's activations.") from error


# --- normalisation ---


def layer_norm(x, gamma, beta, epsilon=EPSILON):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, over the last axis.

    Args:
        x: [..., H].
        gamma, beta: [H].
        epsilon: added to the variance.

    Returns:
        [..., H].
    """

    size, axis = x.shape[-1], len(x.shape) - 1  # known, where a gradient's may not be

    @custom_gradient
    def normalize(x, gamma, beta):
        mean = ops.mean(x, axis=axis, keepdims=True)
        variance = ops.mean(ops.square(x - mean), axis=axis, keepdims=True)
        scale = ops.rsqrt(variance + epsilon)

        def gradient(dy):
            normed = (x - mean) * scale
            dy_normed = dy * normed
            d_normed = dy * gamma
            d_mean = ops.mean(d_normed, axis=axis, keepdims=True)
            slope = ops.mean(dy_normed * gamma, axis=axis, keepdims=True)
            dx = (d_normed - d_mean - normed * slope) * scale
            return dx, _sum_rows(dy_normed, size), _sum_rows(dy, size)

        # In the original's order, which is the one that TensorFlow knows how to fuse.
        factor = scale * gamma
        return x * factor + (beta - factor * mean), gradient

    return normalize(x, gamma, beta)


def _sum_rows(x, size):
    """[..., H] -> [H]."""
    return ops.sum(ops.reshape(x, (-1, size)), axis=0)


# --- dynamic convolution as matrix products ---


def dynamic_convolution(kernels, values, chunk=CHUNK):
    """Convolves each head's values with a kernel of its own at every position.

        out[b, t, n, :] = sum over j of kernels[b, t, n, j] * values[b, t + j - (K-1)/2, n, :]

    with zeros outside the sequence. The K weights of a position become a row of a banded matrix
    that multiplies the values of its chunk, so forward and backward are matrix products and no
    K-fold copy of the values is ever made.

    Args:
        kernels: [B, T, N, K], K odd; already normalised.
        values: [B, T, N, D].
        chunk: C, tokens a band covers (at least K-1 are taken, so that a window ends in the chunk
            after its own); has no influence on the result.

    Returns:
        [B, T, N, D].
    """
    kernels, values = (ops.transpose(x, (0, 2, 1, 3)) for x in (kernels, values))
    return ops.transpose(convolve_heads(kernels, values, chunk), (0, 2, 1, 3))


def convolve_heads(kernels, values, chunk=CHUNK):
    """`dynamic_convolution` of kernels [B, N, T, K] and values [B, N, T, D] -> [B, N, T, D]."""
    batch, num_heads, num_tokens, size = ops.shape(values)
    kernel_size = kernels.shape[3]
    chunk = max(chunk, kernel_size - 1)
    num_chunks = (num_tokens + chunk - 1) // chunk
    kernels = _pad_tokens(kernels, 0, num_chunks * chunk, chunk)
    values = _pad_tokens(values, (kernel_size - 1) // 2, (num_chunks + 1) * chunk, chunk)

    kernels = ops.reshape(kernels, (-1, num_chunks, chunk, kernel_size))  # [B*N, T/C, C, K]
    values = ops.reshape(values, (-1, num_chunks + 1, chunk, size))
    # [B*N, T/C + 1, C, D], shifted by half a kernel
    own = cut(values, (1, 0, num_chunks))
    following = cut(values, (1, 1, num_chunks), (2, 0, kernel_size - 1))
    windows = ops.concatenate([own, following], axis=2)  # [B*N, T/C, C+K-1, D]
    outputs = ops.matmul(_band(kernels, num_chunks), windows)
    outputs = ops.reshape(outputs, (batch, num_heads, num_chunks * chunk, size))
    return _first_tokens(outputs, num_tokens)


def cut(x, *parts):
    """Slices `x`: for each (axis, start, size) of `parts` start : start + size on that axis.

    The gradient of such a slice is quicker than that of indexing.
    """
    starts = [0] * len(x.shape)
    sizes = [-1 if size is None else size for size in x.shape]  # -1: all, on TensorFlow alone
    for axis, start, size in parts:
        starts[axis], sizes[axis] = start, size
    return ops.slice(x, starts, sizes)


def _first_tokens(x, number):
    """x[:, :, :number], of `x` [B, N, T, D]."""
    return x if isinstance(number, int) and x.shape[2] == number else cut(x, (2, 0, number))


def _pad_tokens(x, before, total, chunk):
    """Zero-pads axis 2 of `x` [B, N, T, D] to `total`, `before` tokens of it in front."""
    after = 2 * chunk  # the most that may be needed, where T is not known while tracing
    if isinstance(total, int):
        after = total - before - x.shape[2]
    if before or after:
        x = ops.pad(x, [[0, 0], [0, 0], [before, after], [0, 0]])
    return _first_tokens(x, total)


def _band(kernels, num_chunks):
    """Lays [.., T/C, C, K] out as matrices [.., T/C, C, C+K-1] with row t starting at column t.

    Rows padded to C+K and read again as rows of C+K-1 move one column to the right a row.
    """
    chunk, kernel_size = kernels.shape[2:]
    padded = ops.pad(kernels, [[0, 0], [0, 0], [0, 0], [0, chunk]])
    flat = ops.reshape(padded, (-1, num_chunks, chunk * (chunk + kernel_size)))
    width = chunk + kernel_size - 1
    return ops.reshape(cut(flat, (2, 0, chunk * width)), (-1, num_chunks, chunk, width))


# --- losses ---


def cross_entropy(logits, labels):
    """-log softmax(logits)[labels]: logits [..., C], labels int [...] -> [...].

    With its own gradient, which keeps the exponentials: over a vocabulary that is twice as quick
    on CPUs as what backends offer.
    """
    num_classes = ops.shape(logits)[-1]  # of tokens: not known while tracing
    labels = ops.cast(ops.reshape(labels, (-1, 1)), "int32")  # [n, 1]

    @custom_gradient
    def losses(logits):
        shifted = logits - ops.max(logits, axis=-1, keepdims=True)  # [n, C]
        weights = ops.exp(shifted)
        total = ops.sum(weights, axis=-1, keepdims=True)

        def gradient(dy):
            softmax = weights * (dy / total)
            at_labels = ops.take_along_axis(softmax, labels, axis=-1) - dy
            rows = ops.arange(ops.shape(softmax)[0], dtype="int32")[:, None]
            indices = ops.concatenate([rows, labels], axis=-1)
            return ops.scatter_update(softmax, indices, at_labels[:, 0])

        return ops.log(total) - ops.take_along_axis(shifted, labels, axis=-1), gradient

    flat = losses(ops.reshape(logits, (-1, num_classes)))
    return ops.reshape(flat, ops.shape(logits)[:-1])


def sigmoid_cross_entropy(logits, labels):
    """Elementwise, in the form that neither overflows nor loses digits."""
    return ops.relu(logits) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))


def total_loss(terms, weights):
    """The loss that a step minimises.

    Args:
        terms: name -> (coefficient, sum over the batch).
        weights: name -> sum of the term's weights, over all replicas; None where the term stays a
            sum.

    Returns:
        The sum over terms of coefficient * sum / weight.
    """
    loss = 0.0
    for name, (coefficient, total) in terms.items():
        scale = 1.0 if weights[name] is None else weights[name] + 1e-6
        loss += coefficient * total / scale
    return loss


def top_k(log_probs, k):
    """The k best of the last axis; where it is shorter than k, positions behind it at -1e9."""
    num_tokens = log_probs.shape[-1]
    missing = k if num_tokens is None else max(0, k - num_tokens)
    if missing:
        widths = [[0, 0]] * (len(log_probs.shape) - 1) + [[0, missing]]
        log_probs = ops.pad(log_probs, widths, constant_values=-1e9)
    values, index = ops.top_k(log_probs, k)
    return values, ops.cast(index, "int32")


def gather_rows(x, index):
    """x [B, T, H], index int [B, J] -> [B, J, H]."""
    return ops.take_along_axis(x, index[:, :, None], axis=1)
