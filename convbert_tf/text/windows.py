"""Texts longer than a model as overlapping windows of their pieces, in the graph."""

import tensorflow as tf


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


def most_context(position, num_pieces, room, doc_stride):
    """The window that shows most context around a piece, as squad.Cut.most_context finds it.

    Args: `position` of the piece in its text of `num_pieces`, and the `room` of that text's
        windows; int64 of shapes that broadcast.
    """
    stride = tf.minimum(room, doc_stride)
    last = tf.maximum(num_pieces - room + stride - 1, 0) // stride
    before = (2 * position - room + 1) // (2 * stride)
    numbers = [tf.clip_by_value(before + i, 0, tf.maximum(last - 1, 0)) for i in (0, 1)]
    numbers = tf.stack([*numbers, tf.broadcast_to(last, tf.shape(before))], axis=-1)
    # From here on with an axis of the three windows.
    position, room, stride = position[..., None], room[..., None], stride[..., None]
    starts = numbers * stride
    ends = tf.minimum(starts + room, num_pieces[..., None])
    context = tf.minimum(position - starts, ends - 1 - position)
    scores = tf.cast(context, tf.float64) + 0.01 * tf.cast(ends - starts, tf.float64)
    scores = tf.where(context < 0, tf.constant(-1.0, tf.float64), scores)
    return tf.gather(numbers, tf.argmax(scores, axis=-1), batch_dims=position.shape.rank - 1)
