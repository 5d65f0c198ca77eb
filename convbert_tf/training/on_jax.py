"""Training under JAX, for machines that have it and no TensorFlow; one device."""

import contextlib
import math
import os
import signal
import zipfile
import zlib

import keras
import numpy as np

from convbert_tf import config as configs
from convbert_tf.console import Progress, UserError, counted, say
from convbert_tf.files import atomic_path, read_json, sha256, write_json
from convbert_tf.modeling import functions, masking
from convbert_tf.modeling.pretraining import ConvBertPretrainer, PretrainingTask
from convbert_tf.training import optimization

STATE_FILE, RECORDS_FILE = "state.npz", "packed.json"


class Stateless:
    """A model and its optimizer as arrays, and steps that are functions of them.

    Args:
        model: built Keras model.
        optimizer: optimization.AdamW.
        loss: a function of a step's arguments that gives the loss and what else is wanted of the
            step, both made of arrays; it calls `model` in training.

    Attributes:
        held: the arrays: weights, other states of the model (seeds of dropout), moments.
    """

    def __init__(self, model, optimizer, loss):
        weights = model.trainable_variables
        known = set(map(id, weights))
        states = [variable for variable in model.variables if id(variable) not in known]
        optimizer.build(weights)
        self._loss, self._optimizer = loss, optimizer
        self._variables = (weights, states, optimizer.variables)
        self.held = [[variable.value for variable in group] for group in self._variables]

    def step(self, held, *args):
        """What `held` is after a step with these arguments of the loss, and the rest of the loss.

        To be compiled by jax.jit, with `held` donated.
        """
        import jax

        values, states, moments = held
        gradient = jax.grad(self._loss_and_states, has_aux=True)
        gradients, (wanted, states) = gradient(values, states, args)
        values, moments = self._optimizer.stateless_apply(moments, gradients, values)
        return [list(values), list(states), list(moments)], wanted  # lists, as they came in

    def _loss_and_states(self, values, state_values, args):
        with self.scope(values, state_values) as scope:
            total, wanted = self._loss(*args)
        return total, (wanted, [scope.get_current_value(state) for state in self._variables[1]])

    def scope(self, values, state_values):
        """A scope in which the model has these weights and states."""
        weights, states, _ = self._variables
        mapping = zip([*weights, *states], [*values, *state_values], strict=True)
        return keras.StatelessScope(list(mapping))

    def assign(self):
        """Gives model and optimizer the values that are held."""
        for variables, values in zip(self._variables, self.held, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def save(self, path, step):
        """Writes what is held after `step` steps to `path`, whole or not at all.

        Raises:
            UserError: a weight is not finite; what was there stays.
        """
        arrays = {
            f"{i}_{j}": np.asarray(x)
            for i, group in enumerate(self.held)
            for j, x in enumerate(group)
        }
        if not all(np.isfinite(x).all() for name, x in arrays.items() if name.startswith("0_")):
            raise _diverged(step)
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, step=step, **arrays)

    def load(self, path):
        """Holds what `save` wrote; returns the step."""
        import jax

        arrays = _read(path, "delete it to begin anew", "step")
        for i, group in enumerate(self.held):
            for j, value in enumerate(group):
                found = arrays.get(f"{i}_{j}")
                if found is None or found.shape != value.shape:
                    raise UserError(f"{path} is of another model: choose another model_dir.")
                group[j] = jax.numpy.asarray(found, value.dtype)
        return int(arrays["step"])


def _diverged(step):
    return UserError(
        f"a loss or a weight is not finite at step {step:,}: take a lower learning_rate, or more "
        f"warmup_steps, or on_nonfinite=skip. What {STATE_FILE} holds is from before."
    )


def _read(path, advice, *names):
    """The arrays of a file of np.savez, of which there must be `names`."""
    try:
        with np.load(path) as arrays:
            found = dict(arrays)
    except (TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):  # TypeError: a .npy
        raise UserError(f"{path} is damaged or no .npz file: {advice}.") from None
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} has no array {missing[0]!r}: {advice}.")
    return found


class Records:
    """What tools/pack_records.py has written: all inputs of a set, in memory.

    Attributes:
        ids: [N, T]; behind an input's end anything.
        lengths: [N], tokens of each.
        first: [N], how many of them are of the first segment.
        vocab: list of pieces; `lower_case`, `strip_accents`: of the texts.
    """

    def __init__(self, path):
        if not os.path.isfile(path):
            raise UserError(f"there is no file {path}: tools/pack_records.py writes it.")
        names = ("ids", "lengths", "first", "vocab", "normalization")
        arrays = _read(path, "pack the records again", *names)
        self.path = path
        self.ids, self.lengths, self.first = (arrays[name] for name in names[:3])
        self.vocab, normalization = (arrays[name].tolist() for name in names[3:])
        if not self._are_whole() or list(map(type, normalization)) != [bool, bool]:
            raise UserError(
                f"{path} is not as tools/pack_records.py writes it: pack the records again."
            )
        self.lower_case, self.strip_accents = normalization
        self._shuffled = None, None  # (seed, epoch), and its order

    def _are_whole(self):
        """Whether the arrays are what tools/pack_records.py writes."""
        numbers = (self.ids, self.lengths, self.first)
        if [x.ndim for x in numbers] != [2, 1, 1] or any(x.dtype.kind not in "iu" for x in numbers):
            return False
        if len(set(map(len, numbers))) != 1 or not self.ids.size:
            return False
        if not {"[CLS]", "[SEP]", "[MASK]"} <= set(self.vocab):
            return False
        right = (self.first >= 0) & (self.first <= self.lengths) & (self.lengths > 0)
        right &= self.lengths <= self.ids.shape[1]
        return right.all() and self.ids.min() >= 0 and self.ids.max() < len(self.vocab)

    def order(self, step, batch_size, seed):
        """Which N examples are in the batch of a step: int [batch_size], all once an epoch."""
        batches = len(self.ids) // batch_size
        epoch, batch = divmod(step, batches)
        if self._shuffled[0] != (seed, epoch):
            order = np.random.default_rng([seed, epoch]).permutation(len(self.ids))
            self._shuffled = (seed, epoch), order
        return self._shuffled[1][batch * batch_size : (batch + 1) * batch_size]

    @property
    def arrays(self):
        """All of it on JAX's device."""
        import jax

        return [jax.device_put(values) for values in (self.ids, self.lengths, self.first)]


def _batch(arrays, rows, key):
    """Features of the `rows` [B] of Records' `arrays`, and random numbers that mask and sample."""
    import jax

    ids, lengths, first = (values[rows] for values in arrays)
    place = jax.numpy.arange(ids.shape[1])[None]
    features = {
        "input_ids": ids,
        "input_mask": place < lengths[:, None],
        "segment_ids": (place >= first[:, None]) & (place < lengths[:, None]),
    }
    uniforms = jax.random.uniform(key, (len(ids), 3, ids.shape[1]))
    return {n: x.astype("int32") for n, x in features.items()} | {"uniforms": uniforms}


class Loop:
    """Steps of a task on Records, watched every `training.steps_per_loop`.

    Args:
        task: PretrainingTask.
        stateless: of its model; its loss gives the counts of the task's metrics as well.
        records: Records to train on.
        training: TrainingConfig.
    """

    def __init__(self, task, stateless, records, training):
        import jax

        self.task, self.stateless, self.records, self.training = task, stateless, records, training
        self._arrays = records.arrays
        self._one = jax.jit(self._compute, donate_argnums=(0, 1))
        self._counts = jax.jit(self._score)
        self.step = 0

    def _compute(self, held, totals, arrays, rows, step):
        import jax

        key = jax.random.fold_in(jax.random.key(self.training.seed), step)
        held, counts = self.stateless.step(held, _batch(arrays, rows, key))
        return held, {name: totals[name] + value for name, value in counts.items()}

    def _score(self, held, arrays, rows):
        import jax

        batch = _batch(arrays, rows, jax.random.fold_in(jax.random.key(0), rows[0]))
        with self.stateless.scope(*held[:2]):
            return self.task.losses(self.task.prepare(batch)[0], training=False)[1]

    def run(self, end, stop=()):
        """Trains `steps_per_loop` steps, up to `end` at most; returns their metrics.

        Ends after the step in which `stop`, a list, gets an element.
        """
        import jax

        shapes = self.task.count_shapes
        totals = {name: jax.numpy.zeros(shape) for name, shape in shapes.items()}
        for step in range(self.step, min(self.step + self.training.steps_per_loop, end)):
            # Not waited for: the device has the next steps to do while this one is computed. One
            # call of several in a loop of XLA's would take one thread alone on processors.
            rows = self.records.order(step, self.training.batch_size, self.training.seed)
            self.stateless.held, totals = self._one(
                self.stateless.held, totals, self._arrays, rows.astype("int32"), step
            )
            self.step = step + 1
            if stop:
                break
        return self.task.metrics({name: np.asarray(value) for name, value in totals.items()})

    def evaluate(self, records):
        """The metrics of all full batches of other Records, masked alike each time."""
        size, arrays, totals = self.training.batch_size, records.arrays, {}
        for start in range(0, len(records.ids) - size + 1, size):
            rows = np.arange(start, start + size, dtype="int32")
            counts = self._counts(self.stateless.held, arrays, rows)
            totals = {name: totals.get(name, 0) + np.asarray(x) for name, x in counts.items()}
        return self.task.metrics(totals)


def check(experiment, records, heldout=None):
    """Refuses a PretrainingExperiment and Records, of which some are held out, that do not fit.

    Raises:
        UserError: says what does not; or the experiment has what there is not under JAX.
    """
    model, training = experiment.model, experiment.training
    for name in ("init_from", "patience"):
        if getattr(training, name):
            raise UserError(f"config.training.{name} is for tools/pretrain.py: leave it.")
    if len(records.vocab) > model.vocab_size:
        raise UserError(
            f"the records' vocabulary has {len(records.vocab):,} pieces, the model's vocab_size is "
            f"{model.vocab_size:,}."
        )
    for each in filter(None, (records, heldout)):
        number, length = each.ids.shape
        if length > model.max_position_embeddings:
            raise UserError(
                f"the records of {each.path} have {length} tokens, the model "
                f"max_position_embeddings={model.max_position_embeddings}."
            )
        if number < training.batch_size:
            raise UserError(
                f"{each.path} holds {counted(number, 'record')}, fewer than one batch of "
                f"{training.batch_size}: use a smaller batch."
            )
        for name in ("vocab", "lower_case", "strip_accents"):
            if getattr(each, name) != getattr(records, name):
                name = "vocabulary" if name == "vocab" else name
                raise UserError(
                    f"{each.path} is of another {name} than {records.path}: build records alike."
                )


def check_run(experiment, records, allow_change=False):
    """Refuses a model_dir with another run than this of a PretrainingExperiment on Records.

    Raises:
        UserError: says what differs, if `allow_change` is not set; or the run is one of
            tools/pretrain.py.
    """
    directory, changes = experiment.training.model_dir, []
    if os.path.exists(os.path.join(directory, "checkpoints")):
        raise UserError(
            f"{directory} holds a run of tools/pretrain.py, which cannot go on under JAX: choose "
            "another model_dir."
        )
    state, config_file, records_file = (
        os.path.join(directory, name) for name in (STATE_FILE, configs.CONFIG_FILE, RECORDS_FILE)
    )
    if os.path.exists(state) and os.path.exists(config_file):
        saved = read_json(config_file, "a run's config")
        saved = configs.from_config_dict(type(experiment), saved)
        places = configs.paths(experiment)
        changes = configs.differences(saved, experiment)
        changes = [line for line in changes if line.partition(":")[0] not in places]
    if os.path.exists(state) and os.path.exists(records_file):
        earlier = read_json(records_file, "a run's records", dict)
        changes += ["other records"] if earlier != _identity(records) else []
    if changes and not allow_change:
        raise UserError(
            f"{directory} holds a run with another config ({'; '.join(changes)}); choose another "
            "model_dir, or resume with the change by --allow_config_change."
        )


def _identity(records):
    return {"sha256": sha256(records.path)}


def save_config(experiment, records):
    """Saves in the run's model_dir what `check_run` looks at."""
    directory = experiment.training.model_dir
    configs.save(experiment, os.path.join(directory, configs.CONFIG_FILE))
    write_json(os.path.join(directory, RECORDS_FILE), _identity(records))


def make_loop(experiment, records):
    """The Loop of a PretrainingExperiment on Records; sets seed and precision of the process."""
    check(experiment, records)
    model, training = experiment.model, experiment.training
    keras.utils.set_random_seed(training.seed)
    keras.config.set_dtype_policy(training.precision)
    pretrainer = ConvBertPretrainer(model, experiment.pretraining)
    task = PretrainingTask(pretrainer, masking.special_tokens(records.vocab), None)

    def loss(batch):
        inputs, weights = task.prepare(batch)
        terms, counts = task.losses(inputs, training=True)
        return functions.total_loss(terms, weights), counts

    optimizer = optimization.create(training, training.num_train_steps)
    return Loop(task, Stateless(pretrainer, optimizer, loss), records, training)


def fit(loop, model_dir, watch=lambda: True, ready=lambda: None):
    """Trains to `num_train_steps`, or until `watch()` is false; goes on from model_dir's state.

    `ready()` is called when that state, if there is one, has been found to be this run's.

    SIGTERM or Ctrl-C ends it after the steps that are being computed: it saves the state, says so
    and raises SystemExit with status 143 or 130.

    Returns:
        The metrics of the last steps; {} if there was none to take.

    Raises:
        UserError: a loss is not finite, or the state is beyond `num_train_steps`.
    """
    path, training = os.path.join(model_dir, STATE_FILE), loop.training
    end, results = training.num_train_steps, {}
    if os.path.exists(path):
        loop.step = loop.stateless.load(path)
        if loop.step > end:
            raise UserError(
                f"the run in {model_dir} is at step {loop.step:,}, beyond num_train_steps {end:,}: "
                "set more."
            )
        say(f"resumed from step {loop.step:,}")
    ready()
    progress = Progress("training", total=end, unit="steps", start=loop.step)
    saved = loop.step
    with _signals() as come:
        while loop.step < end and not come and watch():
            results = loop.run(end, come)
            _check_finite(results, loop)
            shown = ("masked_lm_loss", "disc_loss")
            shown = {name: results[name] for name in shown if name in results}
            progress.update(loop.step, "  ".join(f"{n} {x:.4g}" for n, x in shown.items()))
            if loop.step - saved >= training.checkpoint_interval:
                loop.stateless.save(path, loop.step)
                saved = loop.step
        if loop.step > saved:
            loop.stateless.save(path, loop.step)
    progress.close()
    if come:
        name = signal.Signals(come[0]).name
        say(f"{name}: saved at step {loop.step:,}; the same command goes on from there")
        raise SystemExit(128 + come[0])
    loop.stateless.assign()
    return results


def _check_finite(results, loop):
    """Ends the run where a loss is not finite, unless such steps are to be left out."""
    losses = [value for name, value in results.items() if name.endswith("_loss")]
    if loop.training.on_nonfinite == "stop" and not all(map(math.isfinite, losses)):
        raise _diverged(loop.step)


@contextlib.contextmanager
def _signals():
    """A list of the SIGTERM and SIGINT that come within; a second one ends the process."""
    come, before = [], {}

    def note(signum, _):
        come.append(signum)
        signal.signal(signum, before[signum])

    for signum in (signal.SIGTERM, signal.SIGINT):
        before[signum] = signal.signal(signum, note)
    try:
        yield come
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
