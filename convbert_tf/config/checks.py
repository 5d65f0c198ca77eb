"""What the settings' dataclasses are made of: fields with a meaning, and checks of their values."""

import dataclasses
import difflib
import math
import numbers
import os

from convbert_tf.console import UserError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def setting(default, meaning, **metadata):
    """A dataclass field with a default value and its meaning, which `--help` shows."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, **metadata})


def path_setting(meaning):
    """A `setting` of a path, by default none; a ~ at its beginning is the home folder."""
    return setting("", meaning, is_path=True)


def require(condition, message):
    if not condition:
        raise UserError(message)


def require_one_of(config, name, *choices):
    value, shown = getattr(config, name), f"one of {', '.join(choices)}"
    if len(choices) == 2:
        shown = f"{choices[0]!r} or {choices[1]!r}"
    require(value in choices, f"{name} must be {shown}, got {value!r:.60}.")


def require_not_negative(config, names):
    for name in names.split():
        value = getattr(config, name)
        require(value >= 0, f"{name} must not be negative, got {value}.")
        require(value < math.inf, f"{name} must be finite, got {value}.")


def require_at_least_one(config, names):
    for name in names.split():
        value = getattr(config, name)
        require(value >= 1, f"{name} must be at least 1, got {value}.")


def check_types(config):
    """Refuses a value of another type than its field's; for `__post_init__`, before other checks.

    Whole numbers become int, other numbers float, and paths lose their ~.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("is_path"):
            value = os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value
        fitting = _fitting(field.type, value)
        require(
            fitting is not None, f"{field.name} must be {_KINDS[field.type]}, got {value!r:.60}."
        )
        if field.type is int:
            require(abs(fitting) < 2**63, f"{field.name} must be below 2**63, got {value}.")
        object.__setattr__(config, field.name, fitting)


def _fitting(kind, value):
    """`value` as a `kind`; None if it is of another type."""
    if kind in (bool, str):
        return value if isinstance(value, kind) else None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return kind(value) if kind is float or value == int(value) else None
    except (OverflowError, ValueError):  # infinite, not a number, or beyond a float's range
        return None


def section_from_dict(default, values, section):
    """The config `default` with these values; an unknown key of the section is refused."""
    fields = {field.name for field in dataclasses.fields(default)}
    unknown = sorted(map(str, set(values) - fields))
    if unknown:
        raise unknown_key(unknown[0], fields, section)
    return dataclasses.replace(default, **values)


def unknown_key(key, names, section):
    """The UserError on a `key` that is none of the `names` of a section's."""
    names = sorted(names)
    near = [name for name in names if key in name] or difflib.get_close_matches(
        key, names, cutoff=0.75
    )
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    hint = hint or f"there are {', '.join(names)}."
    return UserError(f"unknown key {key!r} in the {section} config; {hint}")
