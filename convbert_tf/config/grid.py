"""A grid: every combination of some values of a config, each an experiment of its own."""

import dataclasses
import itertools
import re

from convbert_tf.config.checks import require, section_from_dict
from convbert_tf.config.overrides import with_values
from convbert_tf.console import UserError

# What a grid sets itself, or other settings do.
_NOT_IN_GRIDS = {
    "training.model_dir": "each combination has a folder of its own in it",
    "task.num_trials": "it is the same for all combinations",
}


@dataclasses.dataclass(frozen=True)
class Combination:
    """One combination of a grid's values.

    Attributes:
        name: of its folder, such as "learning_rate=0.0001,num_train_epochs=3".
        values: "section.key" -> value.
        experiment: with these values; its model_dir is that of the grid still.
    """

    name: str
    values: dict
    experiment: object


def parse(arguments, experiment):
    """The grid that the command line gives.

    Args:
        arguments: strings "section.key=value,value".
        experiment: whose sections and keys they are.

    Returns:
        "section.key" -> list of values, of the key's type.

    Raises:
        UserError: a key is unknown or given twice, or a value is of another type.
    """
    grid = {}
    for argument in arguments:
        key, _, values = argument.partition("=")
        require(key not in grid, f"grid: {key} is given twice; put all its values behind one =.")
        kind = _field(key, experiment).type
        grid[key] = [_parsed(kind, value.strip(), key) for value in values.split(",")]
    return grid


def _field(key, experiment):
    """The dataclass field of "section.key" in `experiment`."""
    section, _, name = key.partition(".")
    sections = vars(experiment)
    example = "training.learning_rate=1e-4,3e-4"
    require(
        section in sections and name,
        f"grid: {key!r} is no value of the config, which has {' and '.join(sections)}; a grid "
        f"is given as --grid.{example}.",
    )
    require(key not in _NOT_IN_GRIDS, f"grid: {key} cannot be in it: {_NOT_IN_GRIDS.get(key)}.")
    fields = {field.name: field for field in dataclasses.fields(sections[section])}
    if name not in fields:
        section_from_dict(sections[section], {name: None}, section)  # raises
    return fields[name]


def _parsed(kind, text, key):
    """The value of type `kind` that `text` spells."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        require(text, f"grid: {key} has a value too few: give them as --grid.{key}=1,2.")
        return kind(text)
    except (KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        what = {int: "no whole number", float: "no number", bool: "neither true nor false"}[kind]
        raise UserError(f"grid: {key}: {text!r} is {what}.") from None


def combinations(grid, experiment):
    """All Combinations of a grid ("section.key" -> values), the first key varying slowest.

    Raises:
        UserError: a key is unknown, or a combination is impossible.
    """
    for key, values in grid.items():
        _field(key, experiment)
        require(values, f"grid: {key} has no values.")
    keys = list(grid)
    made = [
        _combination(dict(zip(keys, values, strict=True)), experiment)
        for values in itertools.product(*grid.values())
    ]
    names = [each.name for each in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"grid: {twice} is in it twice.")
    return made


def _combination(values, experiment):
    shown = ",".join(f"{key.partition('.')[2]}={_text(values[key])}" for key in values)
    try:
        changed = with_values(experiment, values)
    except UserError as error:
        raise UserError(f"grid: {shown}: {error}") from None
    # Without what a path or a file system would read otherwise.
    return Combination(re.sub(r"[^\w.,=+-]+", "_", shown), values, changed)


def _text(value):
    """`value` as it is written in names: a float as short as it can be."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short
