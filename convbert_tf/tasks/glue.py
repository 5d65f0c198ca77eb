"""GLUE: the table of its tasks, and their examples from TSV files or TensorFlow Datasets.

`sentences` makes records, metrics and predictions of them; its names are exported here too.
"""

import os
import re

from convbert_tf.config import task_name
from convbert_tf.console import Progress, UserError, say
from convbert_tf.data import tfds_sets, unpacking
from convbert_tf.data.tables import held_out
from convbert_tf.tasks.measures import main_metric, majority_baseline, metrics
from convbert_tf.tasks.sentences import (
    Example,
    Task,
    truncate_pair,
    write_records,
    write_submission,
)

__all__ = [
    "TASKS",
    "Example",
    "Files",
    "Task",
    "TensorFlowDatasets",
    "find_file",
    "find_task",
    "main_metric",
    "majority_baseline",
    "metrics",
    "read_examples",
    "read_tfds",
    "source",
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
# The diagnostic set as gluebenchmark.com and GLUE's own script call it; a folder of MNLI lies
# beside its own.
_AX_FILES = tuple(
    os.path.join(folder, name)
    for folder, name in (
        ("", "AX.tsv"),
        ("AX", "AX.tsv"),
        ("", "diagnostic.tsv"),
        ("diagnostic", "diagnostic.tsv"),
        (os.path.join("..", "AX"), "AX.tsv"),
        (os.path.join("..", "diagnostic"), "diagnostic.tsv"),
    )
)
_AX = (_AX_FILES, "ax:test")
_MNLI_SPLITS = {
    "train": ("train.tsv", "train"),
    "dev": ("dev_matched.tsv", "validation_matched"),
    "dev_mismatched": ("dev_mismatched.tsv", "validation_mismatched"),
    "test": ("test_matched.tsv", "test_matched"),
    "test_mismatched": ("test_mismatched.tsv", "test_mismatched"),
    "ax": _AX,
}
_MNLI_STEMS = {
    "dev": "MNLI-m",
    "dev_mismatched": "MNLI-mm",
    "test": "MNLI-m",
    "test_mismatched": "MNLI-mm",
    "ax": "AX",
}
# MRPC also as Microsoft ships it, where the test set has labels and the dev set is a part of the
# training file.
_MRPC_TRAIN = "msr_paraphrase_train.txt"
_MRPC_SPLITS = {
    "train": (("train.tsv", _MRPC_TRAIN), "train"),
    "dev": (("dev.tsv", _MRPC_TRAIN), "validation"),
    "test": (("msr_paraphrase_test.txt", "test.tsv"), "test"),
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
        splits=_MRPC_SPLITS,
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
    Task("mnli", **_INFERENCE, folder="MNLI", splits=_MNLI_SPLITS, stems=_MNLI_STEMS),
    # The diagnostic set: no training data; predict it with a model fine-tuned on MNLI.
    Task("ax", **_INFERENCE, metrics=("mcc",), folder="AX", splits={"test": _AX}),
)
TASKS = {task.name: task for task in _TASK_LIST}


def find_task(name):
    """The task called `name`, in any case and under its usual aliases ('SST-2', 'sts')."""
    key = task_name(name)
    if key not in TASKS:
        names = ", ".join([*TASKS, "squad_v1", "squad_v2", "tokens", "own"])
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
    if not header and not first:
        raise UserError(f"{path} is empty.")
    positions = _column_positions(task, header or first, path, split)
    belongs = _mrpc_part(path, split)
    examples, broken = [], 0
    for number, fields in lines:
        try:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} columns, not {len(header)}")
            if not belongs(fields):
                continue
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
    """The names of the files of `split`, and its name in TensorFlow Datasets."""
    if task.name == "ax" and split == "train":
        raise UserError(
            "AX has no training data: fine-tune on mnli, and predict the split ax of that task "
            "with its model."
        )
    if split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}; it has {', '.join(task.splits)}.")
    files, tfds_split = task.splits[split]
    return (files,) if isinstance(files, str) else files, tfds_split


def find_file(task, data_dir, split):
    """The file of `split` in `data_dir`, or in a folder of the task's name there."""
    names = _split_names(task, split)[0]
    folders = ["", *dict.fromkeys(folder for folder in (task.folder, task.name) if folder)]
    for name in names:
        for folder in folders:
            path = os.path.join(data_dir, folder, name)
            if os.path.isfile(path):
                return os.path.normpath(path) if os.pardir in name else path
    looked = " nor ".join(os.path.join(data_dir, folder, names[0]) for folder in folders)
    raise UserError(f"{task.name} needs a file {names[0]}, but there is neither {looked}.")


# --- MRPC's dev set ---

_MRPC_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")


def _mrpc_part(path, split):
    """Whether a line of fields of the file at `path` belongs to `split`: always, but in MRPC's.

    Microsoft's training file holds GLUE's dev set too.
    """
    folder, name = os.path.split(path)
    if name != _MRPC_TRAIN:
        return lambda fields: True
    found = _mrpc_list(path)
    if found is None:
        if split == "dev":
            say(
                f"{folder} has none of {', '.join(_MRPC_IDS)}, GLUE's list of the dev set: a fixed "
                f"tenth of {name} takes its place, so scores are not those of GLUE's dev set"
            )
        return lambda fields: held_out(fields[1:3], 0.1) == (split == "dev")
    at = 0 if found.endswith(_MRPC_IDS) else 1  # the column of the first id
    pairs = {tuple(fields[at : at + 2]) for _, fields in _tsv_lines(found)}
    in_dev = os.path.basename(found) != "train.tsv"
    return lambda fields: ((tuple(fields[1:3]) in pairs) == in_dev) == (split == "dev")


def _tsv_lines(path):
    """Yields (line number, fields) for every line that is not blank."""
    with open(path, "rb") as file:
        # Only \n ends a line: some sentences hold other characters that Python splits lines at.
        for number, raw in enumerate(file, 1):
            if number == 1:
                unpacking.check_line_end(path, raw)
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}).") from error
            if line:
                yield number, line.split("\t")


def _column_positions(task, header, path, split):
    """Indices of the columns text_a, text_b (if the task has it) and label (may be None)."""
    wanted = [column for column in (task.text_a, task.text_b, task.label) if column]
    optional = task.label if split.startswith("test") or split == "ax" else None
    for column in wanted:
        if column not in header and column != optional:
            raise UserError(
                f"{path}:1: {task.name} needs a column {column!r}, but the header line has "
                f"{', '.join(map(repr, header))}. (For columns of your own names there is "
                "configs/finetune_own.py.)"
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


def _mrpc_list(path):
    """The file that lists which pairs of the file at `path` are GLUE's dev set, or None.

    This is a list of their ids, or one of the two files that GLUE makes of it.
    """
    folder, name = os.path.split(path)
    others = (*_MRPC_IDS, "dev.tsv", "train.tsv") if name == _MRPC_TRAIN else ()
    paths = [os.path.join(folder, other) for other in others]
    return next(filter(os.path.isfile, paths), None)


# --- TensorFlow Datasets ---


def read_tfds(task, split, data_dir=None):
    """The examples of `split` from TensorFlow Datasets (`glue/...`), downloaded if need be.

    Args:
        task: a task of `TASKS`.
        split: as for `read_examples`.
        data_dir: TFDS's own folder of prepared data sets; by default what TFDS_DATA_DIR in the
            environment says, or ~/tensorflow_datasets.

    Returns:
        A list of `Example`s in the order of GLUE's TSV files, whose line index is the example_id.

    Raises:
        UserError: the data set is not on disk and cannot be downloaded.
    """
    builder, tfds_split = _prepared(task, split, data_dir)
    names = None if task.is_regression else builder.info.features["label"].names
    size, rows = builder.info.splits[tfds_split].num_examples, []
    progress = Progress(f"{task.name} {split} from TensorFlow Datasets", size)
    for row in builder.as_dataset(split=tfds_split).as_numpy_iterator():
        rows.append(row)
        progress.update(len(rows))
    rows.sort(key=_number)
    return [_from_tfds(task, row, names) for row in rows]


def _number(row):
    return row["idx"]


def _prepared(task, split, data_dir):
    """TFDS's builder of the set that holds `split`, and the split's name there."""
    name, _, tfds_split = _split_names(task, split)[1].rpartition(":")
    name = f"glue/{name or task.name}"
    instead = "glue@FOLDER, or GLUE's TSV files"
    return tfds_sets.prepared(name, tfds_split, data_dir, instead), tfds_split


def _from_tfds(task, row, names):
    columns = task.tfds_columns or tuple(c for c in (task.text_a, task.text_b) if c)
    texts = [row[column].decode("utf-8") for column in columns]
    label = row["label"]
    if label < 0:  # the test splits have no labels
        label = None
    elif task.is_regression:
        label = float(label)
    else:
        # TFDS orders named classes differently from the TSV files, and names the classes 0 and 1.
        label = names[label] if set(names) == set(task.labels) else str(label)
        label = task.labels.index(label)
    return Example(int(row["idx"]), texts[0], texts[1] if task.text_b else None, label)


# --- as sources of sentences.Sentences ---


def source(name, data_dir):
    """Where the examples of the task called `name` come from.

    Args:
        name: see `find_task`.
        data_dir: the folder of GLUE's TSV files, or the one above; "tfds:glue" for TensorFlow
            Datasets, "tfds:glue@FOLDER" for data sets prepared in FOLDER.
    """
    if not data_dir.startswith("tfds:"):
        return Files(find_task(name), data_dir)
    match = re.fullmatch(r"tfds:glue(?:@(.+))?", data_dir)
    if not match:
        raise UserError(f"data_dir {data_dir!r}: write tfds:glue or tfds:glue@FOLDER.")
    return TensorFlowDatasets(find_task(name), match[1] and os.path.expanduser(match[1]))


class Files:
    """GLUE's TSV files of a task.

    Args:
        task: a task of `TASKS`, or one of your own.
        data_dir: the folder of the files, or the one above.
    """

    def __init__(self, task, data_dir):
        self.task, self.data_dir = task, data_dir

    def has(self, split):
        """Whether `split` is there."""
        try:
            return bool(find_file(self.task, self.data_dir, split))
        except UserError:
            return False

    def files(self, split):
        """Paths of the files that hold `split`, and of those that tell what belongs to it."""
        path = find_file(self.task, self.data_dir, split)
        return [path, *filter(None, [_mrpc_list(path)])]

    def examples(self, split):
        return read_examples(self.task, self.data_dir, split)


class TensorFlowDatasets:
    """A task of GLUE as TensorFlow Datasets has it.

    Args:
        task: a task of `TASKS`.
        data_dir: as for `read_tfds`.
    """

    def __init__(self, task, data_dir=None):
        self.task, self.data_dir = task, data_dir

    def has(self, split):
        """Whether `split` is there."""
        try:
            return bool(_prepared(self.task, split, self.data_dir))
        except UserError:
            return False

    def files(self, split):
        """Paths of the files that hold `split`."""
        builder, tfds_split = _prepared(self.task, split, self.data_dir)
        return tfds_sets.files(builder, tfds_split)

    def examples(self, split):
        return read_tfds(self.task, split, self.data_dir)
