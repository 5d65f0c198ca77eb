"""Strings as users give them, as tensors, and pieces of them.

What cannot be meant is refused with what to give.
"""

import collections.abc

import tensorflow as tf

from convbert_tf.console import UserError


def as_strings(values, name="texts"):
    """`values`, strings [B] in a list, tuple, array or tensor, as a tensor.

    Args:
        values: see above; str or bytes.
        name: of the argument, for messages.

    Raises:
        UserError: one string alone, pairs, a table or a set, or something that is no string; names
            the place.
    """
    if isinstance(values, str | bytes):
        raise UserError(f"{name} is one string; give a list: [{name[:-1]}].")
    if tf.is_tensor(values):
        return _check_tensor(values, name)
    # To go through a table gives the names of its columns, and a set has no order.
    if isinstance(values, collections.abc.Mapping) or hasattr(values, "columns"):
        kind = type(values).__name__
        raise UserError(f"{name} is a {kind}; give its column of texts alone, say table['text'].")
    if isinstance(values, set | frozenset):
        raise UserError(f"{name} is a {type(values).__name__}, which has no order; give a list.")
    try:
        values = list(values)
    except TypeError as error:
        raise UserError(f"{name} must be a list of strings, got {values!r}.") from error
    for i, value in enumerate(values):
        if isinstance(value, list | tuple):
            raise UserError(
                f"{name}[{i}] is a {type(value).__name__}; give the first texts of pairs in one "
                "list and the second ones in another: preprocessor(first, second)."
            )
        if not isinstance(value, str | bytes):
            raise UserError(f"{name}[{i}] must be a string, got {value!r}.")
    try:
        return tf.constant(values, tf.string, shape=[len(values)])
    except ValueError as error:
        bad = next(i for i, value in enumerate(values) if not _is_unicode(value))
        raise UserError(f"{name}[{bad}] has half a surrogate pair, which is no text.") from error


def _check_tensor(values, name):
    if isinstance(values, tf.RaggedTensor | tf.SparseTensor) or values.dtype != tf.string:
        kind, dtype = type(values).__name__, values.dtype.name
        raise UserError(f"{name} must be a tensor of strings [B], got a {kind} of {dtype}.")
    rank = values.shape.rank
    if rank not in (None, 1):
        hint = "add a batch axis: text[None]" if rank == 0 else "give one list for each text"
        raise UserError(f"{name} must be strings [B], got shape {values.shape}: {hint}.")
    return values


def _is_unicode(value):
    try:
        return isinstance(value, bytes) or bool(value.encode("utf-8") or True)
    except UnicodeEncodeError:
        return False


def readable(strings):
    """`strings` with U+FFFD for what is no UTF-8, as `bytes.decode(errors="replace")` gives it."""
    return tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")


def num_characters(strings):
    """Characters (code points) of `readable(strings)`, int64."""
    return tf.cast(tf.strings.length(readable(strings), unit="UTF8_CHAR"), tf.int64)


def cut(texts, rows, starts, ends, joined=64):
    """The bytes `starts` to `ends` [n] of the texts `rows` [n], out of `texts` [B].

    Short ones are put together from single bytes, long ones cut out one after the other. To cut
    all out at once, TensorFlow would copy the whole text for each, and to put all together, it
    takes room for n times the longest: of the 200,000 words of a megabyte too much either way.
    Those of up to `joined` bytes are short.
    """
    text_bytes = tf.strings.bytes_split(texts)
    first, size = tf.gather(text_bytes.row_starts(), rows) + starts, ends - starts
    is_long = size > joined
    index = tf.ragged.range(first, first + tf.where(is_long, tf.zeros_like(size), size))
    short = tf.strings.reduce_join(tf.gather(text_bytes.values, index), axis=1)
    where = tf.where(is_long)  # [long ones, 1]

    def one(i):
        return tf.strings.substr(texts[rows[i]], starts[i], size[i])

    spec = tf.TensorSpec([], tf.string)
    long = tf.map_fn(one, where[:, 0], fn_output_signature=spec, parallel_iterations=1)
    return tf.tensor_scatter_nd_update(short, where, long)
