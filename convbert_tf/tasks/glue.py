"""GLUE: the task table, examples from TSV files or TensorFlow Datasets, records, metrics, output.

A task of your own needs no code here: build a `Task` that names the columns and the labels of your
TSV files, for instance

    Task(name="mine", text_a="question", text_b="answer", label="verdict", labels=("bad", "good"))

and pass it wherever a task of `TASKS` could go.
"""

import collections
import dataclasses
import functools
import os

import numpy as np

from convbert_tf.console import Progress, UserError, say
from convbert_tf.data import records
from convbert_tf.files import atomic_path

_SPLITS = {
    "train": ("train.tsv", "train"),
    "dev": ("dev.tsv", "validation"),
    "test": ("test.tsv", "test"),
}
_ENTAILMENT = ("entailment", "not_entailment")
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


_PAIR = {"text_a": "sentence1", "text_b": "sentence2"}
_QUESTIONS = {"text_a": "question1", "text_b": "question2", "label": "is_duplicate"}
_PARAPHRASES = {"text_a": "#1 String", "text_b": "#2 String", "label": "Quality"}
_INFERENCE = {
    **_PAIR,
    "label": "gold_label",
    "labels": ("contradiction", "entailment", "neutral"),
    "tfds_columns": ("premise", "hypothesis"),
}
_MNLI_SPLITS = {
    "train": ("train.tsv", "train"),
    "dev": ("dev_matched.tsv", "validation_matched"),
    "dev_mismatched": ("dev_mismatched.tsv", "validation_mismatched"),
    "test": ("test_matched.tsv", "test_matched"),
    "test_mismatched": ("test_mismatched.tsv", "test_mismatched"),
}
# Of CoLA's files only test.tsv has a header line.
_COLA_COLUMNS = ("source", "label", "mark", "sentence")
_TASK_LIST = (
    # The metric that counts is the one the ConvBERT paper reports: Matthews for CoLA, Spearman
    # for STS-B, accuracy elsewhere.
    Task("cola", folder="CoLA", metrics=("mcc", "accuracy"), columns=_COLA_COLUMNS),
    Task("sst2", folder="SST-2"),
    Task(
        "mrpc",
        **_PARAPHRASES,
        metrics=("accuracy", "f1"),
        folder="MRPC",
        unordered=True,
        tfds_columns=("sentence1", "sentence2"),
    ),
    Task(
        "stsb",
        **_PAIR,
        label="score",
        labels=(),
        metrics=("spearman", "pearson"),
        folder="STS-B",
        unordered=True,
    ),
    Task("rte", **_PAIR, labels=_ENTAILMENT, folder="RTE"),
    Task("wnli", **_PAIR, folder="WNLI"),
    Task("qnli", text_a="question", text_b="sentence", labels=_ENTAILMENT, folder="QNLI"),
    # GLUE's own files of QQP are known for broken lines; TensorFlow Datasets drops them as well.
    Task("qqp", **_QUESTIONS, metrics=("accuracy", "f1"), folder="QQP", skips_broken_lines=True),
    Task("mnli", **_INFERENCE, folder="MNLI", splits=_MNLI_SPLITS),
    # The diagnostic set: no training data; predict it with a model fine-tuned on MNLI.
    Task("ax", **_INFERENCE, metrics=("mcc",), folder="AX", splits={"test": ("AX.tsv", "test")}),
)
TASKS = {task.name: task for task in _TASK_LIST}
_ALIASES = {"sst-2": "sst2", "sst": "sst2", "sts-b": "stsb", "sts": "stsb"}


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One sentence or pair. `label`: class id, score (0 to `max_score`), or None if unknown."""

    example_id: int
    text_a: str
    text_b: str | None
    label: int | float | None


def find_task(name):
    """The task called `name`, in any case and under its usual aliases ('SST-2', 'sts')."""
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key not in TASKS:
        names = ", ".join([*TASKS, "squad_v1", "squad_v2"])
        raise UserError(f"no task is called {name!r}; there are {names}.")
    return TASKS[key]


def read_examples(task, data_dir, split):
    """The examples of `split` from GLUE's TSV form of `task`.

    The file is `data_dir`/train.tsv (and so on), or in a folder of the task's name there. Quotes
    have no meaning in it. Columns are found by the names in the header line, or by `task.columns`
    if there is none; test splits may lack the label.

    Returns:
        A list of `Example`s, numbered in the order of the file.

    Raises:
        UserError: no such split or file, a column is missing, or a line is broken (unless the
            task says to skip those); names the file and the line.
    """
    path = find_file(task, data_dir, split)
    lines = _tsv_lines(path)
    first = next(lines, (1, []))[1]
    if task.text_a in first:
        header = first
    else:
        header, lines = list(task.columns), _tsv_lines(path)
    positions = _column_positions(task, header or first, path, split)
    examples, broken = [], 0
    for number, fields in lines:
        try:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} columns, not {len(header)}")
            texts = [fields[position] for position in positions[:-1]]
            label = None if positions[-1] is None else _parse_label(task, fields[positions[-1]])
        except ValueError as error:
            if not task.skips_broken_lines:
                raise UserError(f"{path}:{number}: {error}; mend the line, or drop it.") from error
            broken += 1
            continue
        examples.append(Example(len(examples), texts[0], texts[1] if task.text_b else None, label))
    if not examples:
        raise UserError(f"{path} holds no examples.")
    if broken:
        say(f"{path}: {broken} broken lines skipped of {broken + len(examples)}.")
    return examples


def _split_names(task, split):
    if split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}; it has {', '.join(task.splits)}.")
    return task.splits[split]


def find_file(task, data_dir, split):
    """The file of `split` in `data_dir`, or in a folder of the task's name there."""
    name = _split_names(task, split)[0]
    folders = ["", *dict.fromkeys(folder for folder in (task.folder, task.name) if folder)]
    for folder in folders:
        path = os.path.join(data_dir, folder, name)
        if os.path.isfile(path):
            return path
    looked = " nor ".join(os.path.join(data_dir, folder, name) for folder in folders)
    raise UserError(f"{task.name} needs a file {name}, but there is neither {looked}.")


def _tsv_lines(path):
    """Yields (line number, fields) for every line that is not blank."""
    with open(path, "rb") as file:
        # Only \n ends a line: some sentences hold other characters that Python splits lines at.
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}).") from error
            if line:
                yield number, line.split("\t")


def _column_positions(task, header, path, split):
    """Where text_a, text_b (if the task has it) and the label stand; the label's may be None."""
    wanted = [column for column in (task.text_a, task.text_b, task.label) if column]
    optional = task.label if split.startswith("test") else None
    for column in wanted:
        if column not in header and column != optional:
            raise UserError(
                f"{path}:1: {task.name} needs a column {column!r}, but the header line has "
                f"{', '.join(map(repr, header))}."
            )
    return [header.index(column) if column in header else None for column in wanted]


def _parse_label(task, text):
    if not task.is_regression:
        if text not in task.labels:
            raise ValueError(f"label {text!r} is none of {', '.join(task.labels)}")
        return task.labels.index(text)
    try:
        score = float(text)
    except ValueError as error:
        raise ValueError(f"score {text!r} is not a number") from error
    if not 0 <= score <= task.max_score:
        raise ValueError(f"score {text} is not between 0 and {task.max_score:g}")
    return score


def read_tfds(task, split, data_dir=None):
    """The examples of `split` from TensorFlow Datasets (`glue/...`), downloaded if need be.

    Args:
        task: a task of `TASKS`.
        split: as for `read_examples`.
        data_dir: TFDS's own folder of prepared data sets; by default ~/tensorflow_datasets.

    Returns:
        A list of `Example`s in the order of GLUE's TSV files, whose line index is the example_id.

    Raises:
        UserError: the data set is neither there nor to be had.
    """
    tfds_split = _split_names(task, split)[1]
    # Here, since importing it takes seconds that users of TSV files need not wait.
    import tensorflow_datasets as tfds

    name = f"glue/{task.name}"
    try:
        dataset, info = tfds.load(name, split=tfds_split, data_dir=data_dir, with_info=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"TensorFlow Datasets cannot give {name}, split {tfds_split!r}: {error}; where there "
            "is no network, read GLUE's TSV files."
        ) from error
    names = None if task.is_regression else info.features["label"].names
    rows = sorted(dataset.as_numpy_iterator(), key=lambda row: row["idx"])
    return [_from_tfds(task, row, names) for row in rows]


def _from_tfds(task, row, names):
    columns = task.tfds_columns or tuple(c for c in (task.text_a, task.text_b) if c)
    texts = [row[column].decode("utf-8") for column in columns]
    label = row["label"]
    if label < 0:  # the test splits have no labels
        label = None
    elif task.is_regression:
        label = float(label)
    else:
        # Classes that the TSV files name stand in another order there; 0 and 1 have other names.
        label = names[label] if set(names) == set(task.labels) else str(label)
        label = task.labels.index(label)
    return Example(int(row["idx"]), texts[0], texts[1] if task.text_b else None, label)


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
