"""Whether a model_dir holds the run that a config describes, so that it may go on.

    config.json     the resolved config of the run
    inputs.json     where its inputs were, and hashes of the files by which they are known

A run is the same if its values are, wherever it lies and however its paths are spelled. Inputs in
another place are the same if their files are.
"""

import dataclasses
import functools
import hashlib
import json
import os

from convbert_tf import config as configs
from convbert_tf.console import UserError, say
from convbert_tf.files import is_address, read_json, sha256, write_json
from convbert_tf.training import checkpoints

INPUTS_FILE = "inputs.json"
_VOCABULARY = "vocab.txt"
# Of the model's config, what leaves a checkpoint's weights as they are.
_FREE = (
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "mask_convolution",
    "pad_token_id",
)
_ALLOW = ", or resume with the change by --allow_config_change"
_HEADS = {
    "pretraining": ("objective", "untied_generator", "uniform_generator"),
    "task": ("name", "joint_prediction", "kind", "labels", "tag_column"),
}


def save_config(experiment, model_dir, allow_change=False, inputs=None):
    """Saves the experiment in `model_dir`; a run that is there must have had the same.

    A run that ended before its first checkpoint, say for a missing file, holds nothing to go on
    from, so another configuration may take its place. With a checkpoint, the model and the length
    that it has reached stay what they are in any case.

    Args:
        experiment: of the run.
        model_dir: of the run.
        allow_change: whether a run goes on though its configuration differs; None: no, nor is
            there a flag for it.
        inputs: "section.key" of a path in the experiment -> the files by which what lies there is
            known.

    Returns:
        Whether the same configuration was there, so that files made by it are still good.

    Raises:
        UserError: a run with another configuration is there, and `allow_change` is not set or the
            change is an impossible one; or `model_dir` cannot be written.
    """
    changed = compare(experiment, model_dir, allow_change, inputs)
    path, now = os.path.join(model_dir, configs.CONFIG_FILE), _describe(experiment, inputs or {})
    try:
        configs.save(experiment, path)
        write_json(os.path.join(model_dir, INPUTS_FILE), now)
    except OSError as error:
        why = "it is a file" if os.path.isfile(model_dir) else error.strerror
        raise UserError(f"model_dir {model_dir} cannot be written: {why}.") from error
    return not changed


def compare(experiment, model_dir, allow_change=False, inputs=None):
    """As `save_config`, of which it is the first part, but saves nothing.

    Returns:
        Lines "section.key: change" of what has changed; one where there was no config.
    """
    path = os.path.join(model_dir, configs.CONFIG_FILE)
    if not os.path.exists(path):
        return ["no config"]
    values = read_json(path, "a run's config")
    try:
        saved = configs.from_config_dict(type(experiment), values)
    except UserError as error:
        raise UserError(f"{path} is of no such run ({error}): name another model_dir.") from error
    now = _describe(experiment, inputs or {})
    changed = _changes(saved, experiment, _saved_inputs(model_dir), now)
    if os.path.exists(os.path.join(model_dir, "checkpoints", "checkpoint")):
        _check_changes(changed, model_dir, experiment, allow_change)
    return changed


def fingerprint(experiment, inputs):
    """A hash of all that a run's results follow from: its values, and the content of its inputs.

    Args:
        experiment: of the run.
        inputs: as for `save_config`.
    """
    values = dataclasses.asdict(experiment)
    for key in configs.paths(experiment):
        section, _, name = key.partition(".")
        del values[section][name]
    files = {key: hashes(paths) for key, paths in inputs.items()}
    content = json.dumps([values, files], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def changed_files(model_dir, inputs, paths):
    """Names of those of the files `paths` that were others when the run's config was saved.

    Args:
        model_dir: of the run.
        inputs: as for `save_config`; `paths` are among them.
        paths: of the files to look at.
    """
    before, changed = _saved_inputs(model_dir), []
    for key, files in inputs.items():
        old = before.get(key, {"files": {}})["files"]
        now = hashes([path for path in files if path in paths])
        changed += [name for name, value in now.items() if old.get(name, value) != value]
    return changed


def hashes(paths):
    """Name -> SHA-256 of those of the files `paths` that are there.

    Files that share a name are told apart by the folders above them.
    """
    places = {os.path.abspath(path) for path in paths if os.path.isfile(path)}
    return {_short_name(place, places): _sha256(place) for place in sorted(places)}


def _short_name(place, places):
    """The last parts of a path, as many as no other of `places` ends in."""
    parts = place.split(os.sep)
    for number in range(1, len(parts) + 1):
        name = os.sep.join(parts[-number:])
        if not any(other.endswith(os.sep + name) for other in places - {place}):
            return name
    return place


def _sha256(path):
    found = os.stat(path)
    return _sha256_at(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_at(path, size, time):
    """SHA-256 of a file that has not been written since `time`."""
    return sha256(path)


def _describe(experiment, inputs):
    """The content of inputs.json: "section.key" -> place and hashes of the files there."""
    return {
        key: {"place": _place(path), "files": hashes(inputs.get(key, ()))}
        for key, path in configs.paths(experiment).items()
        if key != "training.model_dir"  # the run itself, wherever it lies
    }


def _place(path):
    is_file = path and not is_address(path) and not path.startswith("tfds:")
    return os.path.realpath(path) if is_file else path


def _saved_inputs(model_dir):
    """The entries of the run's inputs.json; none of a file that is not there or damaged."""
    try:
        found = read_json(os.path.join(model_dir, INPUTS_FILE), "the run's inputs")
    except (UserError, OSError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: entry for key, entry in entries if _is_whole(entry)}


def _is_whole(entry):
    return isinstance(entry, dict) and isinstance(entry.get("files"), dict) and "place" in entry


def _changes(saved, experiment, before, now):
    """Lines 'section.key: before -> now' of all in which a run differs from `experiment`."""
    paths, old_paths = configs.paths(experiment), configs.paths(saved)
    lines = configs.differences(saved, experiment)
    changed = [line for line in lines if line.partition(":")[0] not in paths]
    for key, here in now.items():
        there = before.get(key) or {"place": _place(old_paths[key]), "files": {}}
        changed += _input_change(key, there, here, f"{old_paths[key]!r} -> {paths[key]!r}")
    return changed


def _input_change(key, before, now, shown):
    """A line of what differs between the two descriptions of an input, in a list; or none."""
    old, new = before["files"], now["files"]
    if before["place"] == now["place"]:
        # Of what a run started from only the vocabulary counts: it has weights of its own.
        counts = [_VOCABULARY] if key.endswith("init_from") else old
        other = [name for name in old if old[name] != new.get(name)]
        if new and other and not set(other) & set(counts):
            say(f"{key}: {now['place']} is another model now; the run keeps what it began with")
        other = [name for name in other if name in counts]
        return [f"{key}: {', '.join(other)} in {now['place']} has changed"] if other and new else []
    if old and old == new:
        say(f"{key} is {now['place']} now, where the same files are as before")
        return []
    return [f"{key}: {shown}"]


def _check_changes(changed, model_dir, experiment, allow_change):
    if changed and not allow_change:
        raise UserError(
            f"{model_dir} holds a run with another config ({'; '.join(changed)}); choose another "
            f"model_dir{'' if allow_change is None else _ALLOW}."
        )
    for change in changed:
        section, key = change.partition(":")[0].split(".")
        if (section, key) == ("training", "batch_size") and hasattr(experiment, "task"):
            raise UserError(
                f"{model_dir} holds a fine-tuning run in the middle of its epochs, which are cut "
                f"into batches ({change}): choose another model_dir, or the earlier batch_size."
            )
        if (section == "model" and key not in _FREE) or key in _HEADS.get(section, ()):
            raise UserError(
                f"{model_dir} holds a run of another model ({change}), which cannot go on as this "
                "one: choose another model_dir."
            )
    step, end = checkpoints.latest_step(model_dir), experiment.training.num_train_steps
    if step and end and step > end:
        raise UserError(
            f"the run in {model_dir} is at step {step:,}, beyond num_train_steps {end:,}: set more."
        )
