"""Strings as users give them, as tensors; what cannot be meant is refused with what to give."""

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
