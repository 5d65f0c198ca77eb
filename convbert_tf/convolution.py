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
    num_tokens = ops.shape(values)[2]
    num_heads, kernel_size, size = kernels.shape[1], kernels.shape[3], values.shape[3]
    chunk = max(chunk, kernel_size - 1)
    num_chunks = (num_tokens + chunk - 1) // chunk
    kernels = _pad_tokens(kernels, 0, num_chunks, chunk)
    values = _pad_tokens(values, (kernel_size - 1) // 2, num_chunks + 1, chunk)

    kernels = ops.reshape(kernels, (-1, num_chunks, chunk, kernel_size))  # [B*N, T/C, C, K]
    values = ops.reshape(values, (-1, num_chunks + 1, chunk, size))
    # [B*N, T/C + 1, C, D], shifted by half a kernel
    following = cut(cut(values, 1, 1, num_chunks), 2, 0, kernel_size - 1)
    windows = ops.concatenate(
        [cut(values, 1, 0, num_chunks), following], axis=2
    )  # [B*N, T/C, C+K-1, D]
    outputs = ops.matmul(_band(kernels, num_chunks), windows)
    outputs = ops.reshape(outputs, (-1, num_heads, num_chunks * chunk, size))
    whole = isinstance(num_tokens, int) and num_tokens % chunk == 0
    return outputs if whole else cut(outputs, 2, 0, num_tokens)


def cut(x, axis, start, size):
    """x[start : start + size] on `axis`: as a slice, whose gradient is quicker than indexing's."""
    starts, sizes = [0] * len(x.shape), list(ops.shape(x))
    starts[axis], sizes[axis] = start, size
    return ops.slice(x, starts, sizes)


def _pad_tokens(x, before, num_chunks, chunk):
    """Zero-pads axis 2 of `x` [B, N, T, D] to whole chunks, `before` tokens of it in front."""
    total = num_chunks * chunk
    after = total - before - ops.shape(x)[2]
    if isinstance(after, int):
        return ops.pad(x, [[0, 0], [0, 0], [before, after], [0, 0]]) if before or after else x
    # T is not known while tracing: pad by the most that may be needed, then cut.
    return cut(ops.pad(x, [[0, 0], [0, 0], [before, 2 * chunk], [0, 0]]), 2, 0, total)


def _band(kernels, num_chunks):
    """Lays [.., T/C, C, K] out as matrices [.., T/C, C, C+K-1] with row t starting at column t.

    Rows padded to C+K and read again as rows of C+K-1 move one column to the right a row.
    """
    chunk, kernel_size = kernels.shape[2:]
    padded = ops.pad(kernels, [[0, 0], [0, 0], [0, 0], [0, chunk]])
    flat = ops.reshape(padded, (-1, num_chunks, chunk * (chunk + kernel_size)))
    width = chunk + kernel_size - 1
    return ops.reshape(cut(flat, 2, 0, chunk * width), (-1, num_chunks, chunk, width))
