"""Checks that a JSON value from elsewhere has the types that are expected; no TensorFlow.

A type is a Python annotation:

    int, float          a whole number; any finite number
    str, bool           text that UTF-8 can hold; true or false
    list[X], dict[str, X]
    X | None            X or null
    a TypedDict         an object; each key that is there is checked, and `Required` ones must be.
                        Other keys are ignored, or refused with `closed`
    a dataclass         as a TypedDict, with the types of its fields

Whoever reads JSON of another program, or of an earlier version of this one, names its type once, in
`files.read_json`, and can then take the values for what they say they are.
"""

import dataclasses
import json
import math
import types
import typing

from convbert_tf.console import UserError

# The largest whole number up to which a double is exact; no size of a model comes near it.
_LARGEST = 2**53
_EXPECTED = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def check(value, kind, where, key="", closed=False):
    """Refuses a `value` that is not of the type `kind`.

    Args:
        value: what `json.load` returned.
        kind: see above.
        where: names the file in the message.
        key: path of `value` in the file.
        closed: whether keys of an object that its type does not have are refused as well.

    Raises:
        UserError: names the file, the key, what was expected and what is there.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is not None:
            check(value, inner[0], where, key, closed)
        return
    is_object = dataclasses.is_dataclass(kind) or typing.is_typeddict(kind)
    plain = dict if is_object else origin or kind
    if not _is(value, plain):
        _refuse(where, key, _EXPECTED[plain], value)
    if is_object:
        _check_object(value, kind, where, key, closed)
    elif origin is list:
        for i, item in enumerate(value):
            check(item, inner[0], where, f"{key}[{i}]", closed)
    elif origin is dict:
        for name, item in value.items():
            check(name, inner[0], where, f"a key of {key}")
            check(item, inner[1], where, _join(key, name), closed)


def _check_object(values, kind, where, key, closed):
    if dataclasses.is_dataclass(kind):
        fields = {field.name: field.type for field in dataclasses.fields(kind)}
        required = ()
    else:
        fields, required = typing.get_type_hints(kind), kind.__required_keys__
    missing = sorted(set(required) - set(values))
    if missing:
        raise UserError(f"{where}: {_join(key, missing[0])} is missing.")
    for name, value in values.items():
        if name in fields:
            check(value, fields[name], where, _join(key, name), closed)
        elif closed:
            raise UserError(
                f"{where}: {_join(key, name)} is unknown; there are {', '.join(sorted(fields))}."
            )


def _is(value, plain):
    """Whether `value` is of the plain type; a bool is no number."""
    if plain in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, int):
            return abs(value) <= _LARGEST
        return math.isfinite(value) and (plain is float or value.is_integer())
    if plain is str and isinstance(value, str):
        return is_unicode(value)
    return isinstance(value, plain)


def is_unicode(text):
    """Whether `text` has no half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _refuse(where, key, expected, value):
    subject = f"{where}: {key} must be" if key else f"{where} must hold"
    raise UserError(f"{subject} {expected}, not {shown(value)}.")


def shown(value):
    """A JSON value on a few characters, whatever its size and depth."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}..."


def _join(key, name):
    name = str(name)
    name = name if len(name) <= 60 else f"{name[:60]}..."
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"{key}.{name}" if key else name


def shortened(text):
    """A name that stands in a foreign file, as a message can hold it: on one line, not too long."""
    return " ".join(str(text).split())[:60]
