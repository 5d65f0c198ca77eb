"""Dynamic convolution as matrix products: the arithmetic behind SpanDynamicConvolution.

Axes as in layers.py; C is a chunk of tokens.
"""

from keras import ops

# Tokens a band covers. The arithmetic grows with C and the copying shrinks; on CPUs 16 to 64
# measure alike.
CHUNK = 32


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
