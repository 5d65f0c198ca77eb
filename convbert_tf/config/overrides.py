"""Experiments as dicts: from config files and JSON, for the command line, and their differences."""

import dataclasses

from convbert_tf.config.checks import require, section_from_dict
from convbert_tf.files import write_json

CONFIG_FILE = "config.json"  # in a run's model_dir
METRICS_FILE = "metrics.jsonl"


def to_config_dict(experiment):
    """`experiment` as an `ml_collections.ConfigDict`, for absl's --config flags to override."""
    from ml_collections import config_dict

    return config_dict.ConfigDict(dataclasses.asdict(experiment))


def from_config_dict(cls, values):
    """The experiment of class `cls` that a ConfigDict (or a plain dict of dicts) describes."""
    values = values.to_dict() if hasattr(values, "to_dict") else values
    require(
        isinstance(values, dict) and all(isinstance(v, dict) for v in values.values()),
        "a config has sections, each with keys and values.",
    )
    sections = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(sections))
    require(
        not unknown, f"unknown config section {', '.join(unknown)}; there are {list(sections)}."
    )
    return cls(
        **{
            name: section_from_dict(sections[name].default, section, name)
            for name, section in values.items()
        }
    )


def save(experiment, path):
    """Writes `experiment` to `path` as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(experiment))


def with_values(experiment, values):
    """`experiment` with the values of a dict, "section.key" -> value, in place of its own."""
    changes = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        changes.setdefault(section, {})[name] = value
    sections = {
        section: dataclasses.replace(getattr(experiment, section), **new)
        for section, new in changes.items()
    }
    return dataclasses.replace(experiment, **sections)


def changed_values(saved, current):
    """ "section.key" -> (its value in `saved`, in `current`) where two experiments differ."""
    old, new = dataclasses.asdict(saved), dataclasses.asdict(current)
    return {
        f"{section}.{key}": (old[section][key], value)
        for section, values in new.items()
        for key, value in values.items()
        if old[section][key] != value
    }


def differences(saved, current):
    """Lines 'section.key: saved -> current' for all values in which two experiments differ."""
    changes = changed_values(saved, current).items()
    return [f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes]


def paths(experiment):
    """'section.key' -> value of every setting of `experiment` that is a path."""
    return {
        f"{name}.{field.name}": getattr(section, field.name)
        for name, section in vars(experiment).items()
        for field in dataclasses.fields(section)
        if field.metadata.get("is_path")
    }
