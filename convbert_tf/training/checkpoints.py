"""What a run leaves in its model_dir to go on from: its last and its best checkpoints.

    checkpoints/ckpt-STEP   all state of the run, the last `keep_checkpoints` of them
    best/ckpt-STEP          the same at the best evaluation, if `best_metric` is set
    best.json               that evaluation's step, metric and settings

Each file is there whole or not at all, whenever the process is killed.
"""

import math
import os
import re

import numpy as np
import tensorflow as tf

from convbert_tf.console import UserError, reason, say
from convbert_tf.files import read_json, write_json
from convbert_tf.modeling import storing
from convbert_tf.training.scores import higher_is_better
from convbert_tf.weights import formats

BEST_FILE, _BEST = "best.json", "best"
_POSITIONS = "position_embeddings"


def latest(model_dir):
    """Prefix of the last checkpoint of the run in `model_dir`, or None."""
    return _latest_in(os.path.join(model_dir, "checkpoints"))


def latest_step(model_dir):
    """The step of the last checkpoint of the run in `model_dir`, or None."""
    return _step_of(latest(model_dir))


def _latest_in(directory):
    try:
        # Not tf.train.latest_checkpoint, which logs an error of its own.
        state = tf.train.get_checkpoint_state(directory)
    except ValueError:
        state = None
    prefix = state.model_checkpoint_path if state else ""
    if prefix and os.path.exists(f"{prefix}.index"):
        return prefix
    if os.path.exists(os.path.join(directory, "checkpoint")):
        raise UserError(
            f"{directory}/checkpoint names no checkpoint that is there: mend or delete it."
        )
    return None


def state(model, optimizer, global_step, records_seen=None):
    """All state of a run, as its checkpoints hold it: weights and optimiser by path, place.

    Without `records_seen`, a run goes on behind as many batches as it has taken steps.
    """
    place = {} if records_seen is None else {"records_seen": records_seen}
    return tf.train.Checkpoint(
        model={variable.path: variable.value for variable in model.weights},
        optimizer={variable.path: variable.value for variable in optimizer.variables},
        global_step=global_step,
        **place,
    )


class Manager(tf.train.CheckpointManager):
    """The last checkpoints of a run; errors of reading and writing them in one clear line.

    Args:
        checkpoint: tf.train.Checkpoint.
        directory: of the checkpoints.
        global_step: tf.Variable, the number of the checkpoint.
        keep: how many.
        interval: least number of steps between two; None where this process saves none.
        init_fn: called where there is no checkpoint to go on from.
    """

    def __init__(self, checkpoint, directory, global_step, keep, interval, init_fn=None):
        found = _latest_in(directory)
        if interval:
            _remove_unfinished(directory, found)
        super().__init__(
            checkpoint,
            directory,
            max_to_keep=keep,
            step_counter=global_step,
            checkpoint_interval=interval,
            init_fn=init_fn,
            last_checkpoint_step=_step_of(found) if found else None,
        )

    def save(self, *args, **kwargs):
        try:
            return super().save(*args, **kwargs)
        except (tf.errors.OpError, OSError) as error:
            kept = f"that of step {_step_of(self.latest_checkpoint)} is whole"
            raise UserError(
                f"no checkpoint could be written to {self.directory} "
                f"({reason(error)}); {kept if self.latest_checkpoint else 'there is no earlier'}: "
                "make room there, then give the same command again."
            ) from error

    def restore_or_initialize(self):
        try:
            self._check_weights()
            return super().restore_or_initialize()
        except (tf.errors.OpError, IndexError) as error:  # IndexError: a file that is too short
            others = [_step_of(path) for path in self.checkpoints if path != self.latest_checkpoint]
            raise UserError(
                f"the checkpoint {self.latest_checkpoint} cannot be read ({reason(error)}); to go "
                f"on from an earlier one ({', '.join(map(str, others)) or 'there is none'}), name "
                f"it in {os.path.join(self.directory, 'checkpoint')}."
            ) from error

    def _check_weights(self):
        """Refuses a checkpoint that holds other weights than the model has."""
        weights = getattr(self._checkpoint, "model", {})
        if not self.latest_checkpoint or not weights:
            return
        shapes = dict(tf.train.list_variables(self.latest_checkpoint))
        wanted = {_key("model", path): list(variable.shape) for path, variable in weights.items()}
        held = {name: shape for name, shape in shapes.items() if name.startswith("model/")}
        if held != wanted:
            raise UserError(
                f"{self.latest_checkpoint} is of another model, with {len(held)} weights of which "
                f"{sum(wanted.get(name) == shape for name, shape in held.items())} fit this one "
                f"with {len(wanted)}: choose another model_dir."
            )


def _key(section, path):
    """The name in a checkpoint of the variable `path` in a section of `state`."""
    escaped = path.replace(".", "..").replace("/", ".S")
    return f"{section}/{escaped}/.ATTRIBUTES/VARIABLE_VALUE"


def _step_of(prefix):
    return int(prefix.rpartition("-")[2]) if prefix else None


def _remove_unfinished(directory, found):
    """Removes what a killed process left of checkpoints later than `found`, its last whole one."""
    last = _step_of(found) if found else -1
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        match = re.match(r"ckpt-(\d+)[._]", name)
        if match and int(match[1]) > last:
            path = os.path.join(directory, name)
            tf.io.gfile.rmtree(path) if os.path.isdir(path) else os.remove(path)


class Best:
    """Keeps the checkpoint of the best evaluation.

    Args:
        checkpoint, global_step: as for Manager.
        model_dir: of the run.
        metric: name of the evaluation's metric; the lower the better if it is a loss.
        settings: JSON-able dict of what else the metric's value depends on, as the data; values of
            other settings are not compared. None: unknown.
        begun: whether the run goes on from a checkpoint. If not, a best one that is there is that
            of an earlier start, perhaps with another config, and is removed.
        saves: whether this process writes; of several workers only one does.

    Attributes:
        value, step: of the best evaluation so far; None where there is none.
    """

    def __init__(
        self, checkpoint, global_step, model_dir, metric, settings=None, begun=True, saves=True
    ):
        self.metric, self.settings, self.saves = metric, settings, saves
        self.path = os.path.join(model_dir, BEST_FILE)
        directory = os.path.join(model_dir, _BEST)
        if saves and not begun:
            _remove_all(directory, self.path)
        self.manager = Manager(checkpoint, directory, global_step, 1, 1 if saves else None)
        self.value = self._saved_value() if begun and os.path.exists(self.path) else None
        # Of the checkpoint, not of best.json: a process may be killed between writing the two.
        self.step = None if self.value is None else _step_of(self.manager.latest_checkpoint)
        self.value = None if self.step is None else self.value

    def _saved_value(self):
        """The best value so far; None if it is of another metric or evaluation, which is said."""
        saved = read_json(self.path, "the best evaluation")
        try:
            metric, value, step = saved["metric"], float(saved["value"]), int(saved["step"])
            before = saved.get("settings") or {}
            other = [] if metric == self.metric else ["metric"]
            other += [
                key for key, now in (self.settings or {}).items() if before.get(key, now) != now
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self.path} is damaged: delete it.") from error
        if not other:
            return value
        say(
            f"the best evaluation so far ({metric} {value:.4g} at step {step:,}) was made with "
            f"another {' and '.join(other)}: from here on the best is sought anew"
        )
        return None

    def update(self, results, step):
        """Saves a checkpoint if `results` of `step` are better than all before."""
        check_metric(self.metric, results)
        value = float(results[self.metric])
        direction = sign(self.metric)
        better = self.value is None or direction * value > direction * self.value
        if not better or not math.isfinite(value):
            return
        self.value, self.step = value, step
        if not self.saves:
            return
        self.manager.save(checkpoint_number=step, check_interval=False)
        found = {"metric": self.metric, "value": value, "step": step}
        write_json(self.path, found | ({"settings": self.settings} if self.settings else {}))


def sign(metric):
    """1 if the highest value of the metric is the best, -1 if the lowest is, as of a loss."""
    return 1 if higher_is_better(metric) else -1


def _remove_all(directory, path):
    """Removes the checkpoints in `directory`, and the file at `path`."""
    for name in (path, os.path.join(directory, "checkpoint")):
        if os.path.exists(name):
            os.remove(name)
    _remove_unfinished(directory, None)


def best_step(model_dir):
    """The step of the best checkpoint of the run in `model_dir`, or None."""
    return _step_of(_latest_in(os.path.join(model_dir, _BEST)))


def restore_best(model, model_dir):
    """Sets the weights of `model` to those of the best checkpoint of the run in `model_dir`."""
    prefix = _latest_in(os.path.join(model_dir, _BEST))
    try:
        values = _CheckpointValues(prefix)
        read = [(variable, values.get(("model", variable.path))) for variable in model.weights]
    except (tf.errors.OpError, RuntimeError, IndexError) as error:
        raise UserError(f"the checkpoint {prefix} cannot be read ({reason(error)}).") from error
    fitted = [(variable, _fitted(value, variable, prefix)) for variable, value in read]
    for variable, value in fitted:
        variable.assign(value)


def check_metric(metric, names):
    """Refuses a `best_metric` that is not among the `names` of an evaluation's metrics."""
    if metric not in names:
        raise UserError(f"best_metric {metric!r} is none of {', '.join(sorted(names))}.")


# --- starting from another run ---


def initialize(model, optimizer, source, with_optimizer=False):
    """Sets the weights of `model` to those of `source`; returns a line that says so.

    Position embeddings of another number are cut, or interpolated linearly (first on first and last
    on last), so that a run may go on at another length.

    Args:
        model: a Keras model.
        optimizer: built on its trainable variables.
        source: a preset directory, or the model_dir of a run, of whose last checkpoint the weights
            are taken.
        with_optimizer: whether to take the optimiser's moments too; only a model_dir has them. The
            schedule begins anew in any case.

    Raises:
        UserError: nothing to start from at `source`; or a weight is missing there or has another
            shape.
    """
    prefix, read = _read(model, source, with_optimizer, optimizer)
    fitted = [(variable, _fitted(value, variable, source)) for variable, value, _ in read]
    for variable, value in fitted:
        variable.assign(value)
    what = "weights and moments" if with_optimizer else "weights"
    said = f"starts from the {what} of {prefix or source}"
    old = next((value.shape[0] for v, value, path in read if path.endswith(_POSITIONS)), None)
    new = next((v.shape[0] for v, _, path in read if path.endswith(_POSITIONS)), None)
    if old != new:
        how = "cut" if new < old else "interpolated"
        said += f"; its {old} position embeddings are {how} to {new}"
    return said


def check_start(model, source, with_optimizer=False):
    """Refuses a `source` that `initialize` could not set the weights of `model` to."""
    for variable, value, _ in _read(model, source, with_optimizer)[1]:
        _fitted(value, variable, source)


def _read(model, source, with_optimizer, optimizer=None):
    """Prefix of the checkpoint in `source`, if any; (variable, value there, path) of each weight.

    With the moments of `optimizer`, if it is given and `with_optimizer` set.
    """
    prefix = latest(source)
    if prefix is None and with_optimizer:
        raise UserError(f"{source} holds no checkpoint with an optimiser's state to start from.")
    if prefix is None and os.path.exists(os.path.join(source, "checkpoints")):
        raise UserError(f"{source} is a run that has no checkpoint yet.")
    wanted = [("model", v) for v in model.weights]
    if with_optimizer and optimizer is not None:
        moments = [v for v in optimizer.variables if v.path.endswith(("_momentum", "_velocity"))]
        wanted += [("optimizer", v) for v in moments]
    try:
        values = _preset_values(source, model) if prefix is None else _CheckpointValues(prefix)
        read = [(v, values.get((section, v.path)), v.path) for section, v in wanted]
    except (tf.errors.OpError, RuntimeError, IndexError) as error:
        raise UserError(
            f"{prefix or source}, to start from, cannot be read ({reason(error)})."
        ) from error
    return prefix, read


def _preset_values(source, model):
    arrays = formats.read(source).arrays
    return {
        ("model", variable.path): arrays[name].read()
        for name, variable in storing.variables(model).items()
        if name in arrays
    }


class _CheckpointValues:
    """`get((section, path))`: a value of a checkpoint of trainer.Trainer, or None."""

    def __init__(self, prefix):
        self._reader = tf.train.load_checkpoint(prefix)

    def get(self, name):
        key = _key(*name)
        return self._reader.get_tensor(key) if self._reader.has_tensor(key) else None


def _fitted(value, variable, source):
    """`value` in the shape of `variable`, if it is the same or a table of positions."""
    if value is None:
        raise UserError(f"{source} has no {variable.path!r}: it holds another kind of model.")
    shape, name = tuple(variable.shape), variable.path
    positions = re.search(_POSITIONS + "(_momentum|_velocity)?$", name)
    if positions and value.shape[1:] == shape[1:]:
        return resize_positions(value, shape[0])
    if value.shape != shape:
        raise UserError(
            f"{source}: {name!r} has shape {value.shape}, this config asks for {shape}."
        )
    return value


def resize_positions(table, number):
    """`table` [P, E] cut to its first `number` rows, or interpolated linearly to that many."""
    old = len(table)
    if number <= old:
        return table[:number]
    places = np.linspace(0, old - 1, number)
    low = np.minimum(places.astype(int), max(old - 2, 0))
    share = (places - low)[:, None].astype(table.dtype)
    return table[low] * (1 - share) + table[np.minimum(low + 1, old - 1)] * share
