"""Tasks of one sentence or a pair: examples, records, metrics, predictions.

A task of your own needs no code here: build a `Task` that names the columns and the labels of your
TSV files, for instance

    Task(name="mine", text_a="question", text_b="answer", label="verdict", labels=("bad", "good"))

and pass it wherever a task of `glue.TASKS` could go.
"""

import collections
import dataclasses
import functools
import os

import numpy as np

from convbert_tf.console import Progress, UserError
from convbert_tf.data import input_pipeline, records
from convbert_tf.files import atomic_path
from convbert_tf.modeling.heads import TextClassifier

_SPLITS = {
    "train": ("train.tsv", "train"),
    "dev": ("dev.tsv", "validation"),
    "test": ("test.tsv", "test"),
}
# Sentences tokenised at once: large enough that TF Text's time a call does not matter.
_BATCH = 4096


@dataclasses.dataclass(frozen=True)
class Task:
    """What one sentence or sentence-pair task looks like on disk, and how it is scored.

    Attributes:
        name: lower-case name, as used in configs and in TensorFlow Datasets.
        text_a, text_b, label: column names; no `text_b` means single sentences.
        labels: class names in the order of their ids, as the TSV files and GLUE's submissions
            spell them; empty for regression.
        metrics: names out of accuracy, f1, mcc, pearson, spearman, the one that counts first.
        folder: GLUE's name for the task: its folder, and the stem of its submission file.
        columns: the column names of files that have no header line.
        splits: split -> (TSV file, name of the split in TensorFlow Datasets).
        max_score: a regression label's largest value; records hold label / max_score.
        unordered: the pair may be swapped, so training data can be doubled (`double_unordered`).
        skips_broken_lines: drops and counts broken lines where other tasks refuse the file.
        tfds_columns: text_a and text_b in TensorFlow Datasets, where the names differ.
    """

    name: str
    text_a: str = "sentence"
    text_b: str | None = None
    label: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    metrics: tuple[str, ...] = ("accuracy",)
    folder: str = ""
    columns: tuple[str, ...] = ()
    splits: dict = dataclasses.field(default_factory=lambda: _SPLITS)
    max_score: float = 5.0
    unordered: bool = False
    skips_broken_lines: bool = False
    tfds_columns: tuple[str, ...] = ()

    @property
    def is_regression(self):
        """Whether the label is a number, not a class."""
        return not self.labels

    @property
    def schema(self):
        """The record schema of the task, for `records.parse`."""
        return records.REGRESSION if self.is_regression else records.CLASSIFICATION


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One sentence or pair. `label`: class id, score (0 to `max_score`), or None if unknown."""

    example_id: int
    text_a: str
    text_b: str | None
    label: int | float | None


def write_records(path, task, examples, tokenizer, max_seq_length, double_unordered=False):
    """Tokenises `examples` and writes them to a record file, in order.

    The input is [CLS] text_a [SEP], with segment id 0, and for pairs text_b [SEP], with segment
    id 1. What is too long is cut at the end; a pair loses tokens from its longer text first, from
    text_b if both are as long (as BERT does it). A missing label is written as 0.

    Args:
        path: the TFRecord file to write.
        task: names the schema: `task.schema`.
        examples: `Example`s; `example_id` goes into the record.
        tokenizer: a `WordPieceTokenizer`.
        max_seq_length: most tokens a record may have, special tokens included.
        double_unordered: for tasks whose pairs have no order, appends every example once more
            with its texts swapped (training data only).

    Returns:
        The number of records written.
    """
    if max_seq_length < 5:
        raise UserError(f"max_seq_length={max_seq_length} leaves no room for a sentence pair.")
    if double_unordered and task.unordered:
        swapped = [
            Example(len(examples) + i, example.text_b, example.text_a, example.label)
            for i, example in enumerate(examples)
        ]
        examples = [*examples, *swapped]
    return records.write(path, _serialize(task, examples, tokenizer, max_seq_length))


def _serialize(task, examples, tokenizer, max_seq_length):
    progress = Progress(f"{task.name} records", len(examples))
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        ids_a = tokenizer.tokenize([example.text_a for example in batch]).to_list()
        ids_b = [None] * len(batch)
        if task.text_b:
            ids_b = tokenizer.tokenize([example.text_b for example in batch]).to_list()
        for example, a, b in zip(batch, ids_a, ids_b, strict=True):
            features = _input_features(a, b, tokenizer, max_seq_length)
            yield records.encode(features | _label_features(task, example))
        progress.update(start + len(batch))
    progress.close()


def _input_features(a, b, tokenizer, max_seq_length):
    """The record's token sequences for the ids of one text (`b` None) or of a pair."""
    if b is None:
        a, second = a[: max_seq_length - 2], []
    else:
        truncate_pair(a, b, max_seq_length - 3)
        second = [*b, tokenizer.sep_id]
    first = [tokenizer.cls_id, *a, tokenizer.sep_id]
    return {
        "input_ids": first + second,
        "segment_ids": [0] * len(first) + [1] * len(second),
    }


def truncate_pair(a, b, limit):
    """Shortens the lists `a` and `b` in place to `limit` tokens together, as BERT does it."""
    while len(a) + len(b) > limit:
        (a if len(a) > len(b) else b).pop()


def _label_features(task, example):
    label = example.label or 0
    label = float(label) / task.max_score if task.is_regression else int(label)
    return {"example_id": int(example.example_id), "label_ids": label}


def _correlation(measure):
    def score(labels, predictions):
        # Undefined for a constant; 0 then, which is what a model that predicts one is worth.
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return measure(labels, predictions).statistic

    return score


def _measures():
    """Name of a metric -> function of labels and predictions."""
    # Here, since importing them takes a second that only scoring need wait.
    import scipy.stats
    import sklearn.metrics

    return {
        "accuracy": sklearn.metrics.accuracy_score,
        "f1": functools.partial(sklearn.metrics.f1_score, zero_division=0.0),
        "mcc": sklearn.metrics.matthews_corrcoef,
        "pearson": _correlation(scipy.stats.pearsonr),
        "spearman": _correlation(scipy.stats.spearmanr),
    }


def metrics(task, predictions, labels):
    """Scores `predictions` against `labels`.

    Args:
        task: names the metrics.
        predictions: [n] class ids, or for regression numbers on any linear scale.
        labels: [n] class ids or scores.

    Returns:
        name -> value from 0 to 1 (correlations from -1), in the order of `task.metrics`. F1 is
        that of class 1. A correlation with a constant is 0.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"{predictions.shape} predictions for {labels.shape} labels")
    measures = _measures()
    return {name: float(measures[name](labels, predictions)) for name in task.metrics}


def main_metric(task):
    """The name of the metric that models are compared by."""
    return task.metrics[0]


def majority_baseline(task, train, dev):
    """`metrics` on `dev` of always answering the most frequent class (or mean score) of `train`.

    What a model must beat to have learned anything; on correlations it scores 0.
    """
    labels = [example.label for example in train]
    if task.is_regression:
        answer = float(np.mean(labels))
    else:
        answer = collections.Counter(labels).most_common(1)[0][0]
    return metrics(task, [answer] * len(dev), [example.label for example in dev])


def write_submission(path, task, predictions):
    """Writes GLUE's submission TSV: a header, then index and prediction, in test-set order.

    Args:
        path: the file; GLUE wants it called `task.folder`.tsv (for MNLI MNLI-m.tsv, MNLI-mm.tsv).
        task: gives the class names.
        predictions: [n] class ids, or for regression scores on the records' scale of 0 to 1,
            which are clipped and brought back to 0 to `max_score`.
    """
    if task.is_regression:
        scores = np.clip(np.asarray(predictions, float), 0, 1) * task.max_score
        answers = [f"{score:.3f}" for score in scores]
    else:
        answers = [task.labels[prediction] for prediction in predictions]
    lines = ["index\tprediction", *(f"{i}\t{answer}" for i, answer in enumerate(answers))]
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")


class Sentences:
    """A family of tasks for `finetuning.run` (see families.py): sentences and pairs of them.

    Args:
        config: TaskConfig.
        source: has a `task` (Task), `files(split)` (paths) and `examples(split)` (Examples).
        tokenizer: WordPieceTokenizer.
    """

    loss_options = {}

    def __init__(self, config, source, tokenizer):
        self.config, self.source, self.tokenizer = config, source, tokenizer
        self.task = source.task
        self.schema, self.metric_names = self.task.schema, self.task.metrics
        self._examples = {}

    def examples(self, split):
        """The Examples of `split`, which are read once."""
        if split not in self._examples:
            self._examples[split] = self.source.examples(split)
        return self._examples[split]

    def files(self, split):
        return self.source.files(split)

    def evaluation_splits(self):
        return ["dev"]

    def check(self, batch_size):
        doubled = self.task.unordered and self.config.double_unordered
        num_records = len(self.examples("train")) * (2 if doubled else 1)
        input_pipeline.full_batches(num_records, batch_size, self.files("train")[0])
        for split in self.evaluation_splits():
            self.examples(split)

    def make_model(self, model):
        """A classifier on the encoder of `model`; with its head if that has this task's labels."""
        labels, dropout = self.task.labels, self.config.classifier_dropout
        options = {"num_classes": len(labels) or 1, "labels": labels or None, "dropout": dropout}
        return TextClassifier.start_from(model, self.config.init_from, **options)

    def serving(self, metrics):
        settings = {"max_seq_length": self.config.max_seq_length, "pair": bool(self.task.text_b)}
        return settings | ({"max_score": self.task.max_score} if self.task.is_regression else {})

    def write_training_records(self, path):
        doubled = self.config.double_unordered
        return self._write(path, self.examples("train"), double_unordered=doubled)

    def _write(self, path, examples, **options):
        length = self.config.max_seq_length
        return write_records(path, self.task, examples, self.tokenizer, length, **options)

    def evaluation(self, split, work_dir):
        path = os.path.join(work_dir, f"{split}.tfrecord")
        self._write(path, self.examples(split))
        return SentencesEvaluation(self.task, self.examples(split), records.read(path))

    def baseline(self, split):
        return majority_baseline(self.task, self.examples("train"), self.examples(split))


class SentencesEvaluation:
    """A split of a sentence task to predict.

    Attributes:
        serialized: its records.
    """

    def __init__(self, task, examples, serialized):
        self.task, self.examples, self.serialized = task, examples, serialized

    def predictions(self, outputs):
        """Class ids int [n], or scores float [n], of the model's `outputs` for the records."""
        logits = outputs["logits"]
        return logits[:, 0] if self.task.is_regression else np.argmax(logits, axis=-1)

    def score(self, outputs):
        labels = [example.label for example in self.examples]
        return metrics(self.task, self.predictions(outputs), labels)

    def write(self, outputs, directory):
        path = os.path.join(directory, f"{self.task.folder or self.task.name}.tsv")
        write_submission(path, self.task, self.predictions(outputs))
