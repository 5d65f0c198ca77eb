"""Fine-tuning on GLUE, SQuAD and tagged words: from a preset and files to the official metric.

`run` does it all; what differs between the kinds of tasks stands in their families (families.py).
"""

import contextlib
import dataclasses
import functools
import glob
import itertools
import os
import time

import numpy as np
import orbit
import tensorflow as tf

from convbert_tf.config import (
    CONFIG_FILE,
    OWN_TASK,
    check_length,
)
from convbert_tf.console import UserError, counted, say
from convbert_tf.data import input_pipeline
from convbert_tf.files import atomic_path, only_one, read_json, write_json
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.tasks import families, reports
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.training import checkpoints, identity, loop, monitoring, scores, strategies
from convbert_tf.weights import formats
from convbert_tf.weights.presets import check_vocabulary
from convbert_tf.workflows import answer_pages
from convbert_tf.workflows.outputs import Predictor

PREDICTIONS, PRESET = "predictions", "preset"  # in model_dir
# Of TaskConfig, what leaves the training records as they are: paths, and what only others read.
_NOT_OF_RECORDS = {
    *("data_dir", "train_file", "dev_file", "test_file", "init_from", "from_scratch"),
    *("num_train_epochs", "num_trials", "metrics"),
    *("classifier_dropout", "class_weights", "answerable_weight", "joint_prediction"),
    *("max_answer_length", "n_best_size", "beam_size", "null_threshold"),
}


class FinetuningTask:
    """A model with `example_losses`, as trainer.Trainer takes it.

    The loss is the sum over the global batch, as in the original; with the gradient clipped and
    Adam behind it, that differs from the mean in how often it is clipped.
    """

    count_shapes = {"loss_sum": (), "examples": ()}
    eval_dataset = None

    def __init__(self, model, train_dataset, **loss_options):
        self.model, self.train_dataset = model, train_dataset
        self._loss_options = loss_options

    def prepare(self, batch):
        return batch, {"task": None}

    def losses(self, batch, training):
        outputs = self.model(batch, training=training)
        total = tf.reduce_sum(self.model.example_losses(outputs, batch, **self._loss_options))
        examples = tf.cast(tf.shape(batch["input_ids"])[0], tf.float32)
        return {"task": (1.0, total)}, {"loss_sum": total, "examples": examples}

    def metrics(self, counts):
        return {"loss": float(counts["loss_sum"] / max(counts["examples"], 1))}


class _Evaluator(orbit.AbstractEvaluator):
    """Predicts and scores the splits that a run is scored on, when Orbit asks."""

    def __init__(self, family, model, experiment, strategy, work_dir):
        self.family, self.experiment = family, experiment
        self.predict = Predictor(model, strategy)
        splits = family.evaluation_splits()
        self.evaluations = {split: family.evaluation(split, work_dir) for split in splits}
        self.baselines = {split: family.baseline(split) for split in splits}
        self.baseline = by_split(self.baselines)
        self.outputs = {}

    def evaluate(self, num_steps=-1):
        task, options = self.experiment.task, self.experiment.training
        results = {}
        for split, evaluation in self.evaluations.items():
            self.outputs[split] = self.predict(
                evaluation.serialized, self.family.schema, options.batch_size, task.max_seq_length
            )
            outputs, baseline = self.outputs[split], self.baselines[split]
            report = reports.make(task.name, split, evaluation, outputs, baseline)
            results[split] = report["metrics"]
            # Orbit's summary writer is the default one here.
            directory = os.path.join(options.model_dir, "reports")
            reports.write(report, directory)
            answer_pages.write_page(evaluation, self.outputs[split], task.name, split, directory)
        return by_split(results)

    def write(self, model_dir):
        """Writes the predictions of the last evaluation."""
        for split, evaluation in self.evaluations.items():
            evaluation.write(self.outputs[split], os.path.join(model_dir, PREDICTIONS))
            if hasattr(evaluation, "ensemble"):
                path = outputs_file(model_dir, split)
                with atomic_path(path) as partial, open(partial, "wb") as file:
                    np.savez_compressed(file, **self.outputs[split])


def outputs_file(model_dir, split):
    """Path of the model's outputs for a split, for the ensemble of several runs."""
    return os.path.join(model_dir, PREDICTIONS, f"{split}_outputs.npz")


def by_split(metrics):
    """One dict of the metrics by split: name for "dev", name_mismatched for "dev_mismatched"."""
    return {
        f"{name}{split.removeprefix('dev')}": value
        for split, values in metrics.items()
        for name, value in values.items()
    }


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run or an evaluation starts from, read and made by `read_start`.

    Attributes:
        experiment: FinetuningExperiment, with what the data tell of the task.
        init_from: local directory of the model to start from.
        stored: that model.
        vocab_file: its vocabulary.
        normalization: (lower_case, strip_accents) of its texts.
        strategy: tf.distribute.Strategy.
        family: of the task; see families.py.
    """

    experiment: object
    init_from: str
    stored: object
    vocab_file: str
    normalization: tuple
    strategy: object
    family: object

    @functools.cached_property
    def inputs(self):
        """The files by which a run's inputs are known; see identity.save_config."""
        model = {"task.init_from": _model_files(self.init_from, self.vocab_file)}
        return _data_files(self.family) | model


def read_start(experiment):
    """The Start of `experiment`, to train or to evaluate."""
    task = experiment.task
    init_from = presets.fetch(presets.preset_of(task.init_from))
    vocab_file, *normalization = presets.vocabulary(init_from)
    stored = formats.read(init_from)
    strategy = strategies.set_up(experiment.training)
    family = families.make(task, WordPieceTokenizer(vocab_file, *normalization))
    experiment = dataclasses.replace(experiment, task=family.config)
    models = (init_from, stored, vocab_file, tuple(normalization))
    return Start(experiment, *models, strategy, family)


def prepare(experiment):
    """The Start of a run of `experiment`."""
    _require_paths(experiment.task, experiment.training)
    start = read_start(experiment)
    start.inputs  # noqa: B018  (files that are not there are told at once)
    return start


def run(experiment, allow_config_change=False, work_dir=None):
    """Fine-tunes as `experiment` (FinetuningExperiment) says; returns the dev set's metrics.

    They are those of the best step by `training.best_metric`, if there is one, else of the last.
    Leaves in `model_dir`: checkpoints and TensorBoard logs, and of that step predictions/,
    preset/, the model with its vocabulary, and eval_results.json.

    Args:
        experiment: of one trial; trials.run takes several.
        allow_config_change: whether a run goes on though its config or its data differ.
        work_dir: folder for the records, which several runs may share; by default in model_dir.

    Raises:
        UserError: an input is missing, damaged or does not fit, or what loop.fit raises.
    """
    if experiment.task.num_trials > 1:
        raise UserError("num_trials is above 1: several trials are run by trials.run.")
    began, start = time.monotonic(), prepare(experiment)
    experiment, family = start.experiment, start.family
    options = with_best_metric(experiment.training, family)
    if report := finished(experiment, start):
        say(f"{options.model_dir} is finished: its scores are those of step {report['step']:,}")
        return report["metrics"]
    check(experiment, start)
    with only_one(options.model_dir if strategies.is_chief(start.strategy) else ""):
        return _train(experiment, start, options.best_metric, allow_config_change, work_dir, began)


def _train(experiment, start, best_metric, allow_config_change, work_dir, began):
    """Trains, scores and saves; see `run`. `began` is the time at which it was called."""
    family, options = start.family, experiment.training
    options = dataclasses.replace(options, best_metric=best_metric)
    train_file, num_train_steps = _begin(experiment, start, allow_config_change, work_dir)
    model = _make_model(experiment, start)
    evaluator = _Evaluator(family, model, experiment, start.strategy, os.path.dirname(train_file))
    if best_metric:
        # Some of SQuAD 2.0's need questions of their kind.
        checkpoints.check_metric(best_metric.removeprefix("best_"), evaluator.baseline)
    results = loop.fit(
        FinetuningTask(
            model, _training_data(experiment, family, train_file, model), **family.loss_options
        ),
        options,
        num_train_steps,
        start.strategy,
        num_hidden_layers=model.encoder.config.num_hidden_layers,
        evaluator=evaluator,
        evaluation=_evaluation(experiment.task, start),
    )
    results = _finish(experiment, best_metric, start, model, evaluator, results, began)
    tell_precision(options)
    if remark := scores.remark(results, evaluator.baseline):
        say(remark)
    return results


def tell_precision(options):
    """Says where scores are not quite those of the model as it is exported by default."""
    if options.precision != "float32":
        say(
            f"these scores are computed in {options.precision}; exported in float32 the model "
            "answers some examples otherwise"
        )


def with_best_metric(options, family):
    """TrainingConfig `options` with the metric by which the best step is chosen, or "" for none."""
    metric = options.best_metric or (family.main_metric if options.eval_interval else "none")
    return dataclasses.replace(options, best_metric="" if metric == "none" else metric)


def finished(experiment, start):
    """eval_results.json of the finished run in model_dir, if it is that of `experiment`; or None.

    It is if its config, data and model to start from are the same.
    """
    model_dir = experiment.training.model_dir
    path = os.path.join(model_dir, scores.RESULTS_FILE)
    kept = [os.path.join(model_dir, name) for name in (PREDICTIONS, PRESET)]
    if not all(map(os.path.exists, [path, *kept])):
        return None
    report = read_json(path, "the result of a run")
    same = isinstance(report, dict) and report.get("run") == _fingerprint(experiment, start)
    return report if same else None


def _fingerprint(experiment, start):
    return identity.fingerprint(experiment, start.inputs)


def _begin(experiment, start, allow_config_change, work_dir):
    """Saves the run's config and makes its records; returns their path and the steps to train."""
    model_dir = experiment.training.model_dir
    train_file = os.path.join(work_dir or os.path.join(model_dir, "records"), "train.tfrecord")
    saved = (experiment, model_dir, allow_config_change, start.inputs)
    identity.compare(*saved)
    step = checkpoints.latest_step(model_dir)
    other = identity.changed_files(model_dir, start.inputs, start.family.files("train"))
    if step and other:
        # Before the config is saved: a run that cannot learn of them does not take them for its.
        _write_training_records(experiment, start, train_file)
        _check_reached(experiment, train_file, step, " and ".join(other))
    identity.save_config(*saved)
    _write_training_records(experiment, start, train_file)
    return train_file, _num_train_steps(experiment, train_file, tell=True)


def _check_reached(experiment, train_file, step, changed):
    """Says where a run goes on with changed training data; refuses one that is at its end."""
    end = _num_train_steps(experiment, train_file)
    if step < end:
        say(f"{changed} has changed: the run goes on with it from step {step:,} of {end:,}")
        return
    raise UserError(
        f"{changed} has changed, but the run in {experiment.training.model_dir} is at its end "
        f"(step {step:,} of {end:,}) and would not learn of it: set more num_train_epochs, or "
        "train in another model_dir, from the same model or with task.init_from from this one."
    )


def _make_model(experiment, start):
    """The model at the beginning of training."""
    with start.strategy.scope():
        model = presets.build(start.stored)
        if experiment.task.from_scratch:
            model = ConvBertEncoder(getattr(model, "encoder", model).config)
        return start.family.make_model(model)


def _finish(experiment, metric, start, model, evaluator, results, began):
    """Leaves preset, predictions and scores of the best step by `metric`, or else of the last.

    Returns the metrics of that step; `results` are those of the last. `began` is the time at which
    the run was started, or resumed.
    """
    model_dir = experiment.training.model_dir
    step = checkpoints.latest_step(model_dir)
    best = checkpoints.best_step(model_dir) if metric else None
    if best not in (None, step):
        with start.strategy.scope():
            checkpoints.restore_best(model, model_dir)
        step, results = best, evaluator.evaluate()
    if best is not None:
        say(f"the best {metric}, {results[metric]:.4g}, is that of step {step:,}")
    report = {"step": step} | ({"best_metric": metric} if metric else {})
    preset_dir = os.path.join(model_dir, PRESET)
    lower_case, strip_accents = start.normalization
    serving = start.family.serving(results)
    presets.save(model, preset_dir, start.vocab_file, lower_case, serving, strip_accents)
    evaluator.write(model_dir)
    monitoring.write_scores(model_dir, step, results)
    report |= {"metrics": results, "baseline": evaluator.baseline}
    report["seconds"] = round(time.monotonic() - began, 1)
    # Last, since by it the run is known to be finished.
    report["run"] = _fingerprint(experiment, start)
    write_json(os.path.join(model_dir, scores.RESULTS_FILE), report)
    return results


def _require_paths(task, options):
    own = task.name == OWN_TASK
    wanted = "train_file" if own else "data_dir"
    found = task.train_file or (not own and task.data_dir)
    if not task.init_from or not found or not options.model_dir:
        raise UserError(
            f"set config.task.init_from (a preset), config.task.{wanted} and "
            "config.training.model_dir."
        )


def _files(family, splits):
    """Paths of the files that hold the `splits`."""
    return [path for split in splits for path in family.files(split)]


def _data_files(family):
    """Setting -> paths of the files to train on and to score that it names."""
    names, task = ("train_file", "dev_file", "test_file"), family.config
    named = {f"task.{name}": [getattr(task, name)] for name in names if getattr(task, name)}
    read = _files(family, ["train", *family.evaluation_splits()])
    return {"task.data_dir": [path for path in read if [path] not in named.values()]} | named


def check(experiment, start):
    """Refuses what is known to be impossible, before anything is made."""
    task, options, family = experiment.task, experiment.training, start.family
    model_config = start.stored.model_config
    check_vocabulary(start.vocab_file, model_config)
    check_length(task.max_seq_length, model_config)
    if options.best_metric not in ("", "none"):
        checkpoints.check_metric(options.best_metric, family.metric_names)
    if not checkpoints.latest(options.model_dir):
        family.check(options.batch_size)
    if task.class_weights and "class_weights" not in family.loss_options:
        raise UserError(f"class_weights are for classes of sentences, not for {task.name}.")


def _model_files(init_from, vocab_file):
    """The files by which a model to start from is known."""
    weights = ("*.safetensors", "*.h5", "*.bin") if presets.is_huggingface(init_from) else ()
    found = (glob.glob(os.path.join(glob.escape(init_from), kind)) for kind in weights)
    # Of a preset, config.json holds the hash of the weights.
    return [vocab_file, os.path.join(init_from, CONFIG_FILE), *itertools.chain(*found)]


def _write_training_records(experiment, start, path):
    """Writes the training records to `path`, unless those that are there are the same."""
    task = dataclasses.asdict(experiment.task)
    of = {
        "files": identity.hashes(start.family.files("train")),
        "vocabulary": identity.hashes([start.vocab_file]),
        "normalization": list(start.normalization),
        "task": {name: task[name] for name in task if name not in _NOT_OF_RECORDS},
    }
    account = f"{path}.json"
    with contextlib.suppress(UserError):
        if os.path.exists(path) and read_json(account, "what records are of") == of:
            return
    with contextlib.suppress(FileNotFoundError):
        os.remove(account)
    say(f"{counted(start.family.write_training_records(path), 'training record')} in {path}")
    write_json(account, of)


def _num_train_steps(experiment, train_file, tell=False):
    """The length of the run: what `training.num_train_steps` says, or the epochs."""
    task, options = experiment.task, experiment.training
    in_epoch = input_pipeline.steps_per_epoch(train_file, options.batch_size)
    steps = options.num_train_steps or max(1, int(in_epoch * task.num_train_epochs))
    if tell:
        epochs = f"{steps / in_epoch:.3g} epochs" if steps != in_epoch else "1 epoch"
        say(f"{counted(steps, 'step')} of {options.batch_size} examples, {epochs}")
    return steps


def _training_data(experiment, family, train_file, model):
    """A function (start_step, context) -> dataset of the training records."""
    task, options = experiment.task, experiment.training

    def train_dataset(start_step, context):
        return input_pipeline.finetuning_dataset(
            train_file,
            family.schema,
            batch_size=options.batch_size,
            max_seq_length=task.max_seq_length,
            seed=options.seed,
            start_step=start_step,
            bucket=options.strategy != "tpu" and not options.jit_compile,
            vocab_size=model.encoder.config.vocab_size,
            input_context=context,
        )

    return train_dataset


def _evaluation(task, start):
    """What the dev set's metrics depend on besides the weights, and the data these are trained on.

    With other training data the best step is sought anew: it is to have learned of them.
    """
    names = "name max_seq_length max_query_length doc_stride max_answer_length n_best_size"
    names = names.split() + ["beam_size", "null_threshold", "word_column", "tag_column"]
    if task.name == OWN_TASK:
        names += ["labels", "min_score", "max_score", "text_column"]
        names += ["text_b_column", "label_column", "split_column"]
    if not task.data_dir and not task.dev_file:
        names += ["held_out", "held_out_seed"]
    family = start.family
    return {name: getattr(task, name) for name in names} | {
        "data_dir": identity.hashes(_files(family, family.evaluation_splits())),
        "training data": identity.hashes(family.files("train")),
    }
