"""Tasks of one text or a pair: examples, records, metrics, predictions.

What a text gets is a class, any number of labels, or a score. Examples come from a source: GLUE's
files (glue.py) or tables of one's own (own.py).
"""

import dataclasses
import os

import numpy as np

from convbert_tf.console import Progress, UserError, say
from convbert_tf.data import input_pipeline, records
from convbert_tf.files import atomic_path
from convbert_tf.modeling import presets
from convbert_tf.modeling.heads import TextClassifier
from convbert_tf.tasks import reports
from convbert_tf.tasks.measures import (
    class_weights,
    label_array,
    label_value,
    main_metric,
    majority_baseline,
    mean_of_classifiers,
    metrics,
)

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
        metrics: names, see `metrics`, the one that counts first.
        folder: GLUE's name for the task: its folder, and the stem of its submission file.
        columns: the column names of files that have no header line.
        splits: split -> (TSV file, or several of which the first that is there counts; name of
            the split in TensorFlow Datasets, "config:split" where it is of another config).
        min_score, max_score: the range of a regression's labels; records hold them from 0 to 1.
        unordered: the pair may be swapped, so training data can be doubled (`double_unordered`).
        skips_broken_lines: drops and counts broken lines where other tasks refuse the file.
        tfds_columns: text_a and text_b in TensorFlow Datasets, where the names differ.
        stems: split -> stem of its submission file, where it is not `folder`.
        multi_label: a text has any number of the labels.
        separator: stands between the labels of a text in files.
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
    stems: dict = dataclasses.field(default_factory=dict)
    min_score: float = 0.0
    multi_label: bool = False
    separator: str = ","

    @property
    def is_regression(self):
        """Whether the label is a number, not a class."""
        return not self.labels

    @property
    def schema(self):
        """The record schema of the task, for `records.parse`."""
        if self.multi_label:
            return records.several_labels(len(self.labels))
        return records.REGRESSION if self.is_regression else records.CLASSIFICATION

    def scores(self, predictions):
        """A regression's `predictions`, which are from 0 to 1, on the labels' scale."""
        return self.min_score + np.asarray(predictions, float) * (self.max_score - self.min_score)

    def answers(self, predictions):
        """The `predictions` (as for `metrics`) as files spell them, a list of strings."""
        if self.is_regression:
            scores = np.clip(np.asarray(predictions, float), 0, 1)
            return [f"{score:.3f}" for score in self.scores(scores)]
        if self.multi_label:
            chosen = map(np.flatnonzero, predictions)
            return [self.separator.join(self.labels[i] for i in row) for row in chosen]
        return [self.labels[prediction] for prediction in predictions]


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One sentence or pair.

    `label`: class id, tuple of class ids, score, or None if unknown. `key`: by which its row is
    found in its file, if not by `example_id`.
    """

    example_id: int
    text_a: str
    text_b: str | None
    label: int | float | tuple | None
    key: str | int | None = None


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
    return {"example_id": int(example.example_id), "label_ids": label_value(task, example.label)}


def write_submission(path, task, predictions, keys=None):
    """Writes GLUE's submission TSV: a header, then index and prediction, in test-set order.

    Args:
        path: the file; GLUE wants it called `task.folder`.tsv (for MNLI MNLI-m.tsv, MNLI-mm.tsv).
        task: gives the class names.
        predictions: [n] class ids, or bool [n, C] for several labels, or for regression scores on
            the records' scale of 0 to 1, which are clipped and brought back to the labels' scale.
        keys: what stands for each row in the column index; by default its number from 0.
    """
    answers = task.answers(predictions)
    keys = range(len(answers)) if keys is None else keys
    lines = [f"{key}\t{answer}" for key, answer in zip(keys, answers, strict=True)]
    lines = ["index\tprediction", *lines]
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")


class Sentences:
    """A family of tasks for `finetuning.run` (see families.py): sentences and pairs of them.

    Args:
        config: TaskConfig.
        source: has a `task` (Task), `has(split)`, `files(split)` (paths) and `examples(split)`
            (Examples).
        tokenizer: WordPieceTokenizer.
    """

    def __init__(self, config, source, tokenizer):
        self.config, self.source, self.tokenizer = config, source, tokenizer
        self.task = source.task
        self.schema, self.metric_names = self.task.schema, self.task.metrics
        self.main_metric = main_metric(self.task)
        self._examples, self._splits = {}, None

    @property
    def loss_options(self):
        given = self.config.class_weights
        if not given:
            return {}
        return {"class_weights": class_weights(given, self.task, self.examples("train"))}

    def examples(self, split):
        """The Examples of `split`, which are read once."""
        if split not in self._examples:
            self._examples[split] = self.source.examples(split)
        return self._examples[split]

    def files(self, split):
        return self.source.files(split)

    def evaluation_splits(self):
        if self._splits is None:
            more = [split for split in self.task.splits if split.startswith("dev_")]
            there = [split for split in more if self.source.has(split)]
            for split in more:
                if split not in there:
                    say(f"{self.task.name} has no {split} there, so it is not scored on it")
            self._splits = ["dev", *there]
        return self._splits

    def check(self, batch_size):
        doubled = self.task.unordered and self.config.double_unordered
        num_records = len(self.examples("train")) * (2 if doubled else 1)
        input_pipeline.full_batches(num_records, batch_size, self.files("train")[0])
        for split in self.evaluation_splits():
            self.examples(split)

    def make_model(self, model):
        """A classifier on the encoder of `model`; with its head if that has this task's labels."""
        options = self._classes() | {"dropout": self.config.classifier_dropout}
        return TextClassifier.start_from(model, self.config.init_from, **options)

    def misfit(self, model):
        return presets.misfit(model, TextClassifier, **self._classes())

    def _classes(self):
        labels, several = self.task.labels, self.task.multi_label
        return {"num_classes": len(labels) or 1, "labels": labels or None, "multi_label": several}

    def serving(self, metrics):
        settings = {"max_seq_length": self.config.max_seq_length, "pair": bool(self.task.text_b)}
        if self.task.is_regression:
            settings |= {"min_score": self.task.min_score, "max_score": self.task.max_score}
        return settings

    def write_training_records(self, path):
        doubled = self.config.double_unordered
        return self._write(path, self.examples("train"), double_unordered=doubled)

    def _write(self, path, examples, **options):
        length = self.config.max_seq_length
        return write_records(path, self.task, examples, self.tokenizer, length, **options)

    def evaluation(self, split, work_dir):
        path = os.path.join(work_dir, f"{split}.tfrecord")
        self._write(path, self.examples(split))
        return SentencesEvaluation(self.task, self.examples(split), records.read(path), split)

    def baseline(self, split):
        return majority_baseline(self.task, self.examples("train"), self.examples(split))


class SentencesEvaluation:
    """A split of a sentence task to predict.

    Attributes:
        serialized: its records.
        labelled: whether its examples have labels.
    """

    def __init__(self, task, examples, serialized, split="dev"):
        self.task, self.examples, self.serialized = task, examples, serialized
        self.split, self.num_examples = split, len(examples)
        self.labelled = any(example.label is not None for example in examples)

    def predictions(self, outputs):
        """Class ids int [n], bool [n, C] or scores float [n] of the `outputs` for the records."""
        logits = outputs["logits"]
        if self.task.is_regression:
            return logits[:, 0]
        return logits > 0 if self.task.multi_label else np.argmax(logits, axis=-1)

    def score(self, outputs):
        bare = [example.example_id for example in self.examples if example.label is None]
        if bare:
            raise UserError(f"{self.task.name}: example {bare[0]} has no label, but others have.")
        predictions = self.predictions(outputs)
        if self.task.is_regression:
            predictions = self.task.scores(predictions)
        return metrics(self.task, predictions, label_array(self.task, self.examples))

    def report(self, outputs):
        labels, logits = label_array(self.task, self.examples), outputs["logits"]
        return reports.of_sentences(self.task, self.examples, labels, logits)

    def ensemble(self, outputs):
        """The mean of the models' scores, or the logarithm of the mean of their probabilities."""
        logits = np.stack([each["logits"] for each in outputs]).astype(np.float64)
        if self.task.is_regression:
            return {"logits": logits.mean(axis=0)}
        if self.task.multi_label:
            mean = (1 / (1 + np.exp(-logits))).mean(axis=0).clip(1e-12, 1 - 1e-12)
            return {"logits": np.log(mean / (1 - mean))}
        return {"logits": mean_of_classifiers(logits)}

    def write(self, outputs, directory):
        task, split = self.task, self.split
        path = os.path.join(directory, f"{task.stems.get(split, task.folder or task.name)}.tsv")
        keys = [example.key for example in self.examples]
        write_submission(path, task, self.predictions(outputs), None if None in keys else keys)
