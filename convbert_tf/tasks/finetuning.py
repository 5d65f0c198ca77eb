"""Fine-tuning on GLUE and SQuAD: from a preset and a task's files to its official metric.

`run` does it all; what differs between the kinds of tasks stands in their families (families.py).
"""

import contextlib
import dataclasses
import difflib
import glob
import hashlib
import itertools
import os
import re

import orbit
import tensorflow as tf

from convbert_tf.config import (
    CONFIG_FILE,
    OWN_TASK,
    FinetuningExperiment,
    TaskConfig,
    check_length,
    finetuning_defaults,
    join_list,
)
from convbert_tf.console import UserError, say
from convbert_tf.data import input_pipeline, tables
from convbert_tf.files import undone_on_error, write_bytes, write_json
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.tasks import families, own, questions
from convbert_tf.tasks.prediction import Predictor
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.training import checkpoints, identity, loop, scores, strategies
from convbert_tf.weights import formats
from convbert_tf.weights.presets import check_vocabulary


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
        self.baseline = _by_split({split: family.baseline(split) for split in splits})

    def evaluate(self, num_steps=-1):
        task, options = self.experiment.task, self.experiment.training
        results = {}
        for split, evaluation in self.evaluations.items():
            outputs = self.predict(
                evaluation.serialized, self.family.schema, options.batch_size, task.max_seq_length
            )
            results[split] = evaluation.score(outputs)
            evaluation.write(outputs, os.path.join(options.model_dir, "predictions"))
        report = {"metrics": _by_split(results), "baseline": self.baseline}
        write_json(os.path.join(options.model_dir, scores.RESULTS_FILE), report)
        return report["metrics"]


def _by_split(metrics):
    """One dict of those by split: name for "dev", name_mismatched for "dev_mismatched"."""
    return {
        f"{name}{split.removeprefix('dev')}": value
        for split, values in metrics.items()
        for name, value in values.items()
    }


def run(experiment, allow_config_change=False):
    """Fine-tunes as `experiment` (FinetuningExperiment) says; returns the dev set's metrics.

    Leaves in `model_dir`: checkpoints and TensorBoard logs, predictions/, eval_results.json and
    preset/, the fine-tuned model with its vocabulary.
    """
    _require_paths(experiment.task, experiment.training)
    options = experiment.training
    init_from = presets.fetch(experiment.task.init_from)
    vocab_file, *normalization = presets.vocabulary(init_from)
    stored = formats.read(init_from)
    strategy = strategies.set_up(options)
    work_dir = os.path.join(options.model_dir, "records")
    family = families.make(experiment.task, WordPieceTokenizer(vocab_file, *normalization))
    task = family.config
    experiment = dataclasses.replace(experiment, task=task)
    inputs = _data_files(task, family) | {"task.init_from": _model_files(init_from, vocab_file)}
    _check(experiment, family, vocab_file, stored.model_config)
    same = identity.save_config(experiment, options.model_dir, allow_config_change, inputs)

    train_file = os.path.join(work_dir, "train.tfrecord")
    # Without a checkpoint, the task's files may have been mended since.
    begun = same and checkpoints.latest(options.model_dir)
    if not (begun and os.path.exists(train_file)):
        say(f"{family.write_training_records(train_file):,} training records in {train_file}")
    num_train_steps = _num_train_steps(experiment, train_file)
    with strategy.scope():
        model = presets.build(stored)
        if task.from_scratch:
            model = ConvBertEncoder(getattr(model, "encoder", model).config)
        model = family.make_model(model)
    evaluator = _Evaluator(family, model, experiment, strategy, work_dir)
    if options.best_metric:  # some of SQuAD 2.0's need questions of their kind
        checkpoints.check_metric(options.best_metric.removeprefix("best_"), evaluator.baseline)
    results = loop.fit(
        FinetuningTask(
            model, _training_data(experiment, family, train_file, model), **family.loss_options
        ),
        options,
        num_train_steps,
        strategy,
        num_hidden_layers=model.encoder.config.num_hidden_layers,
        evaluator=evaluator,
        evaluation=_evaluation(task, family),
    )
    preset_dir = os.path.join(options.model_dir, "preset")
    lower_case, strip_accents = normalization
    presets.save(model, preset_dir, vocab_file, lower_case, family.serving(), strip_accents)
    if remark := scores.remark(results, evaluator.baseline):
        say(remark)
    return results


def _require_paths(task, options):
    data = ["train_file"] if task.name == OWN_TASK else ["data_dir"]
    data += ["train_file"] if task.name in questions.TASKS else []
    if not task.init_from or not any(getattr(task, name) for name in data) or not options.model_dir:
        raise UserError(
            f"set config.task.init_from (a preset), config.task.{' or '.join(data)} and "
            "config.training.model_dir."
        )


def _files(family, splits):
    """Paths of the files that hold the `splits`."""
    return [path for split in splits for path in family.files(split)]


def _data_files(task, family):
    """Setting -> paths of the files to train on and to score that it names."""
    names = ("train_file", "dev_file", "test_file")
    named = {f"task.{name}": [getattr(task, name)] for name in names if getattr(task, name)}
    if task.name == OWN_TASK or not task.data_dir:
        return named
    files = _files(family, ["train"]) + _files(family, family.evaluation_splits())
    return named | {"task.data_dir": files}


def _check(experiment, family, vocab_file, model_config):
    """Refuses what is known to be impossible, before anything is made."""
    task, metric = experiment.task, experiment.training.best_metric
    check_vocabulary(vocab_file, model_config)
    check_length(task.max_seq_length, model_config)
    if metric:
        checkpoints.check_metric(metric, family.metric_names)
    if not checkpoints.latest(experiment.training.model_dir):
        family.check(experiment.training.batch_size)


def _model_files(init_from, vocab_file):
    """The files by which a model to start from is known."""
    weights = ("*.safetensors", "*.h5", "*.bin") if presets.is_huggingface(init_from) else ()
    found = (glob.glob(os.path.join(glob.escape(init_from), kind)) for kind in weights)
    # Of a preset, config.json holds the hash of the weights.
    return [vocab_file, os.path.join(init_from, CONFIG_FILE), *itertools.chain(*found)]


def _num_train_steps(experiment, train_file):
    """The length of the run: what `training.num_train_steps` says, or the epochs."""
    task, options = experiment.task, experiment.training
    in_epoch = input_pipeline.steps_per_epoch(train_file, options.batch_size)
    steps = options.num_train_steps or max(1, int(in_epoch * task.num_train_epochs))
    say(f"{steps:,} steps of {options.batch_size} examples, {steps / in_epoch:.3g} epochs")
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


def _evaluation(task, family):
    """What the dev set's metrics depend on besides the weights."""
    names = "name max_seq_length max_query_length doc_stride max_answer_length n_best_size"
    names = (*names.split(), "beam_size")
    if task.name == OWN_TASK:
        names += ("labels", "min_score", "max_score", "held_out", "held_out_seed", "text_column")
        names += ("text_b_column", "label_column", "split_column")
    elif task.name in questions.TASKS and not task.data_dir and not task.dev_file:
        names += ("held_out", "held_out_seed")
    settings = {name: getattr(task, name) for name in names}
    files = _files(family, family.evaluation_splits())
    return settings | {"data_dir": identity.hashes(files)}


def finetune(train, init_from, model_dir, dev=None, **settings):
    """Fine-tunes on rows of one's own, as tools/finetune.py with configs/finetune_own.py does.

    Args:
        train: a pandas or polars DataFrame, a dict of columns, a list of dicts or of tuples (text,
            label) or (text, second text, label); or the path of a table (data/tables.py).
        init_from: a preset or Hugging Face directory, or "hf://owner/name".
        model_dir: folder of the run; that of an earlier run with the same rows and settings goes
            on, or gives what it gave. Rows in memory are kept there, in data/.
        dev: rows to score, as `train`; without, a part of `train` is held out.
        **settings: of config.TaskConfig and config.TrainingConfig, by name. `labels` and `metrics`
            may be lists.

    Returns:
        Metric -> value on the rows to score. The model is in `model_dir`/preset, for
        `TextClassifier.from_preset` and `serving.export`.

    Raises:
        UserError: a row or a setting cannot be meant.

    Example:
        >>> rows = [("a fine film", "good"), ("a dull one", "bad")] * 100
        >>> convbert_tf.finetune(rows, "runs/tiny/preset", "runs/films", num_train_epochs=2)
    """
    settings = {"init_from": init_from, "model_dir": model_dir} | settings
    if not tables.is_path(train) and tables.width(train) == 3:
        settings = {"text_b_column": "text_b"} | settings
    experiment = _own_experiment(settings)
    task, given = experiment.task, {"train": train, "dev": dev}
    in_memory = {
        split: own.as_json_lines(task, data, split)
        for split, data in given.items()
        if data is not None and not tables.is_path(data)
    }
    # Called by their content, so that other rows never take the place of a run's.
    digest = hashlib.sha256(b"".join(in_memory.values())).hexdigest()[:12]
    folder = os.path.join(experiment.training.model_dir, "data", digest)
    paths = {split: os.path.join(folder, f"{split}.jsonl") for split in in_memory}
    files = {f"{split}_file": data for split, data in (given | paths).items() if data is not None}
    experiment = dataclasses.replace(experiment, task=dataclasses.replace(task, **files))
    with undone_on_error(folder) if in_memory else contextlib.nullcontext():
        for split, content in in_memory.items():
            write_bytes(paths[split], content)
        try:
            return run(experiment)
        except UserError as error:
            raise UserError(_with_rows(str(error), paths)) from error


def _own_experiment(settings):
    """The FinetuningExperiment of one's own task with these settings of either section."""
    sections = {
        "task": TaskConfig(name=OWN_TASK),
        "training": finetuning_defaults(model_dir=settings["model_dir"]),
    }
    fields = {name: {f.name for f in dataclasses.fields(sections[name])} for name in sections}
    fields["training"].discard("init_from")  # which is pre-training's
    unknown = sorted(settings.keys() - fields["task"] - fields["training"])
    if unknown:
        names = sorted(fields["task"] | fields["training"])
        near = [name for name in names if unknown[0] in name]
        near = near or difflib.get_close_matches(unknown[0], names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}."
        raise UserError(f"there is no setting {unknown[0]!r}; {hint}")
    values = {name: _joined(value) for name, value in settings.items()}
    return FinetuningExperiment(
        *(
            dataclasses.replace(
                section, **{key: values[key] for key in fields[name] & values.keys()}
            )
            for name, section in sections.items()
        )
    )


def _with_rows(message, paths):
    """`message` with the numbers of rows in memory for the lines of the files `paths` of them."""
    for split, path in paths.items():
        message = re.sub(re.escape(path) + r":(\d+)", rf"row \1 of {split}", message)
        message = message.replace(path, split)
    return message


def _joined(value):
    """A setting that may be a list, as the command line has it."""
    return join_list(value) if isinstance(value, list | tuple) else value
