"""Texts longer than a model as overlapping windows of their pieces, in the graph."""

import tensorflow as tf

_AT_ONCE = 16  # windows that are computed at once


def cut(num_pieces, room, doc_stride):
    """Cuts texts of `num_pieces` [B] into windows of at most `room` [B], as squad.window_spans.

    Returns:
        dict of int64 [W], the windows of a text one after the other: `example`, the text;
        `number`, the window's place in it; `start`, its first piece; `length`. A text without
        pieces has one window without any.
    """
    stride = tf.minimum(room, doc_stride)
    more = tf.maximum(num_pieces - room, 0)
    counts = 1 + (more + stride - 1) // stride  # windows of each text
    example = tf.repeat(tf.range(tf.size(counts, tf.int64)), counts)
    number = tf.ragged.range(counts).values
    start = number * tf.gather(stride, example)
    length = tf.minimum(tf.gather(num_pieces, example) - start, tf.gather(room, example))
    return {"example": example, "number": number, "start": start, "length": length}


def gather(pieces, windows):
    """The pieces of each of `windows`, ragged [W, None], of the texts' ragged `pieces`."""
    first = tf.gather(pieces.row_starts(), windows["example"]) + windows["start"]
    index = tf.ragged.range(first, first + windows["length"])
    return tf.gather(pieces.values, index)


def in_parts(compute, inputs, dtypes):
    """compute(inputs) for some windows at a time, to bound the memory.

    Args:
        compute: a function of a dict of tensors [W, ...] that returns one, with any first axis.
        inputs: dict of tensors [W, ...].
        dtypes: name -> dtype of the results that are wanted.

    Returns:
        name -> the results of the parts behind one another.
    """
    number = tf.shape(inputs["input_ids"])[0]
    parts = (number + _AT_ONCE - 1) // _AT_ONCE
    arrays = {
        name: tf.TensorArray(dtype, parts, infer_shape=False) for name, dtype in dtypes.items()
    }

    def step(i, arrays):
        first = i * _AT_ONCE
        outputs = compute({k: x[first : first + _AT_ONCE] for k, x in inputs.items()})
        return i + 1, {name: array.write(i, outputs[name]) for name, array in arrays.items()}

    goes_on = lambda i, _: i < parts  # noqa: E731
    _, arrays = tf.while_loop(goes_on, step, (0, arrays), parallel_iterations=1)
    return {name: array.concat() for name, array in arrays.items()}
