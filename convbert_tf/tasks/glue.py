"""GLUE: the table of its tasks, and their examples from TSV files or TensorFlow Datasets.

What is made of the examples stands in sentences.py, whose names are here too.
"""

import os

from convbert_tf.console import UserError, say
from convbert_tf.tasks.sentences import (
    Example,
    Task,
    main_metric,
    majority_baseline,
    metrics,
    truncate_pair,
    write_records,
    write_submission,
)

__all__ = [
    "TASKS",
    "Example",
    "Files",
    "Task",
    "find_file",
    "find_task",
    "main_metric",
    "majority_baseline",
    "metrics",
    "read_examples",
    "read_tfds",
    "truncate_pair",
    "write_records",
    "write_submission",
]

_ENTAILMENT = ("entailment", "not_entailment")


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


def find_task(name):
    """The task called `name`, in any case and under its usual aliases ('SST-2', 'sts')."""
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key not in TASKS:
        names = ", ".join([*TASKS, "squad_v1", "squad_v2", "tokens"])
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


class Files:
    """GLUE's TSV files of a task, as a source of `sentences.Sentences`.

    Args:
        task: a task of `TASKS`, or one of your own.
        data_dir: the folder of the files, or the one above.
    """

    def __init__(self, task, data_dir):
        self.task, self.data_dir = task, data_dir

    def files(self, split):
        """Paths of the files that hold `split`."""
        return [find_file(self.task, self.data_dir, split)]

    def examples(self, split):
        return read_examples(self.task, self.data_dir, split)
