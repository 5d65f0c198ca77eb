"""Texts as callers give them, checked and without TensorFlow; with it see strings.py."""

from convbert_tf.console import UserError


def checked(texts, names):
    """The `texts` of a call, in the order of `names`: lists of bytes, of one length.

    Args:
        texts: a dict, name -> list of str or bytes.
        names: of the inputs that the model takes.

    Raises:
        UserError: other inputs are given, or something else than lists of texts.
    """
    if set(texts) != set(names):
        raise UserError(f"this model takes {', '.join(names)}; given: {', '.join(texts)}.")
    texts = [list(map(as_bytes, as_list(name, texts[name]))) for name in names]
    if len({len(values) for values in texts}) > 1:
        counts = " and ".join(str(len(values)) for values in texts)
        raise UserError(f"{' and '.join(names)} go together: {counts} of them.")
    return texts


def as_list(name, values):
    """`values` of the argument `name` as a list; one string is refused."""
    if isinstance(values, str | bytes):
        raise UserError(f"{name} is one string; give a list: [{name}].")
    try:
        return list(values)
    except TypeError:
        raise UserError(f"{name} must be a list of strings, got {values!r}.") from None


def as_bytes(text):
    """A text as UTF-8; bytes stay as they are."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise UserError(f"a text must be a string, got {text!r}.")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError("a text has half a surrogate pair, which is no text.") from error


def as_str(text):
    """A text as a string, with a surrogate for each byte that is no UTF-8."""
    if isinstance(text, str) and text.isascii():
        return text
    data = as_bytes(text)
    return text if isinstance(text, str) else data.decode("utf-8", "surrogateescape")
