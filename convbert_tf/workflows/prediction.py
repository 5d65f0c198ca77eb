"""A fine-tuned model's outputs: for records, a split of its task, the rows of a table."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import sys
import tempfile

import numpy as np
import tensorflow as tf

from convbert_tf.config import OWN_TASK, check_length
from convbert_tf.console import Progress, UserError
from convbert_tf.files import atomic_path
from convbert_tf.modeling import presets
from convbert_tf.tasks import answers, families, reports
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.training import strategies
from convbert_tf.weights import formats
from convbert_tf.workflows.outputs import Predictor

FORMATS = ("text", "csv", "tsv", "jsonl")  # of a table; to write, all but the first
_CHUNK = 4096  # rows that are sorted by length together


# --- a split of a task ---


def evaluate(experiment, splits, output_dir):
    """Predicts splits of a task with a fine-tuned model, and scores those that have labels.

    Leaves in `output_dir`: a report on each split (see reports.py), predictions/SPLIT/ in the form
    that the task's benchmark takes, and event files with the same for TensorBoard.

    Args:
        experiment: FinetuningExperiment; `task.init_from` is the fine-tuned model.
        splits: names of splits, which the task's data must have.
        output_dir: where the reports go.

    Returns:
        split -> report.

    Raises:
        UserError: the model's head is not the task's, or a split cannot be read.
    """
    task, options = experiment.task, experiment.training
    if not task.init_from or (not task.data_dir and task.name != OWN_TASK):
        raise UserError("set config.task.init_from, a fine-tuned model, and config.task.data_dir.")
    source = presets.fetch(presets.preset_of(task.init_from))
    vocab_file, *normalization = presets.vocabulary(source)
    stored = formats.read(source)
    check_length(task.max_seq_length, stored.model_config)
    task = _with_its_threshold(task, presets.serving(source))
    family = families.make(task, WordPieceTokenizer(vocab_file, *normalization))
    for split in splits:
        family.files(split)
    strategy = strategies.set_up(options)
    with strategy.scope():
        model = presets.build(stored)
        if misfit := family.misfit(model):
            raise UserError(
                f"the model in {source} cannot be scored on {task.name}: {misfit}; fine-tune it "
                "on the task first."
            )
        model = family.make_model(model)
    predict, found = Predictor(model, strategy), {}
    with tf.summary.create_file_writer(output_dir).as_default(step=0):
        for split in splits:
            with tempfile.TemporaryDirectory() as work_dir:
                evaluation = family.evaluation(split, work_dir)
            outputs = predict(
                evaluation.serialized, family.schema, options.batch_size, task.max_seq_length
            )
            evaluation.write(outputs, os.path.join(output_dir, "predictions", split))
            baseline = _baseline(family, split) if evaluation.labelled else {}
            made = reports.make(task.name, split, evaluation, outputs, baseline)
            found[split] = made | {"model": task.init_from, "files": family.files(split)}
            reports.write(found[split], output_dir)
    return found


def _with_its_threshold(task, serving):
    """`task` with the threshold of SQuAD 2.0 that the model has, instead of one chosen anew."""
    kept = serving.get("null_threshold")
    if kept is None or task.null_threshold not in ("f1", "exact"):
        return task
    return dataclasses.replace(task, null_threshold=repr(kept))


def _baseline(family, split):
    """Metrics without a model, where the task's training data is there to find them by."""
    try:
        return family.baseline(split)
    except UserError:
        return {}


# --- the rows of a table ---


def rows(path, format, header=True):
    """Yields (number of its line, dict of its columns) for each row of a table.

    Args:
        path: of a file, or "-" for standard input.
        format: "text": a text a line, the column "text"; "tsv", in which quotes have no meaning;
            "csv"; "jsonl": a JSON object a line.
        header: whether the first line of a CSV or TSV file names the columns; otherwise they are
            called "1", "2" and so on.

    Raises:
        UserError: a line is broken; names it.
    """
    name = "standard input" if path == "-" else path
    lines = _lines(path, name)
    if format == "text":
        for number, line in lines:
            yield number, {"text": line.rstrip("\r\n")}
    elif format == "jsonl":
        for number, line in lines:
            if line.strip():
                yield number, _json_object(line, f"{name}:{number}")
    else:
        yield from _fields_by_name(_split_lines(lines, format, name), header, name)


def _lines(path, name):
    """Yields (number, line with its end)."""
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{name}:{number}: not UTF-8 ({error.reason}).") from error


def _json_object(line, place):
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: no JSON ({error}).") from error
    if not isinstance(row, dict):
        raise UserError(f'{place}: not a JSON object, as {{"text": ...}} is one.')
    return row


def _split_lines(lines, format, name):
    """Yields (number of its last line, fields) of the rows that are not blank."""
    if format == "tsv":
        for number, line in lines:
            if line := line.rstrip("\r\n"):
                yield number, line.split("\t")
        return
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line for _, line in lines), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(f"{name}:{reader.line_num}: {error}.") from error


def _fields_by_name(lines, header, name):
    first = next(lines, None)
    if first is None:
        raise UserError(f"{name} holds no rows.")
    number, columns = first
    if not header:
        columns = [str(i) for i in range(1, len(columns) + 1)]
        lines = itertools.chain([first], lines)
    elif len(set(columns)) < len(columns):
        raise UserError(f"{name}:{number}: two columns have the same name.")
    for number, fields in lines:
        if len(fields) != len(columns):
            raise UserError(f"{name}:{number}: {len(fields)} columns, not {len(columns)}.")
        yield number, dict(zip(columns, fields, strict=True))


def texts_of(table, columns, name):
    """Yields (texts of `columns`, row) for the `rows` of a table; refuses one that lacks them."""
    for number, row in table:
        texts = [row.get(column) for column in columns]
        for column, text in zip(columns, texts, strict=True):
            if not isinstance(text, str) or not _is_unicode(text):
                what = f"{text!r} is no text" if column in row else f"there is {', '.join(row)}"
                raise UserError(
                    f"{name}:{number}: no text in the column {column!r} ({what}); say in which it "
                    "is by --columns."
                )
        yield texts, row


def _is_unicode(text):
    """Whether `text` has no half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def in_batches(served, texts, batch_size=32, watch=None):
    """What a model says of `texts`, in their order, computed in batches of like lengths.

    Args:
        served: serving.Served.
        texts: name of an input -> list of n strings.
        batch_size: texts at once.
        watch: is called after each batch with the number of its texts.

    Returns:
        name -> list of n arrays, one a text.
    """
    lengths = np.sum([served.lengths(each) for each in texts.values()], axis=0)
    order, found = np.argsort(-lengths, kind="stable"), {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = {name: tf.constant([each[i] for i in chosen]) for name, each in texts.items()}
        for name, values in served.call(**batch).items():
            rows = found.setdefault(name, [None] * len(order))
            for i, value in zip(chosen, values.numpy(), strict=True):
                rows[i] = value
        if watch:
            watch(len(chosen))
    return found


def label(served, table, batch_size=32, watch=None):
    """Yields (row, prediction) for the rows of a table, in their order.

    A few thousand rows are in memory at a time.

    Args:
        served: serving.Served.
        table: iterable of (texts, row), as `texts_of` gives it.
        batch_size, watch: as for `in_batches`.
    """
    table = iter(table)
    while chunk := list(itertools.islice(table, _CHUNK)):
        texts = zip(*(texts for texts, _ in chunk), strict=True)
        inputs = dict(zip(served.inputs, texts, strict=True))
        outputs = in_batches(served, inputs, batch_size, watch)
        names = sorted(outputs.keys() - {"logits"}, key=answers.place)
        for i, (_, row) in enumerate(chunk):
            values = {name: outputs[name][i] for name in names}
            yield row, _prediction(values, served.labels)


def _prediction(values, labels):
    """The outputs for a text as JSON holds them."""
    if "num_words" in values:
        return answers.tagged(values, lambda value: _plain(value, None))
    return {name: _plain(value, labels) for name, value in values.items()}


def _plain(value, labels):
    """A value as JSON holds it; probabilities by the names of the classes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if value.dtype == object:  # several labels, and what fills them up in a batch
        return [each.decode("utf-8") for each in value if each]
    if np.ndim(value) == 1 and np.issubdtype(value.dtype, np.floating):
        names = labels or [str(i) for i in range(len(value))]
        return {k: round(float(v), 6) for k, v in zip(names, value, strict=True)}
    return round(float(value), 6) if isinstance(value, np.floating) else value.tolist()


def label_table(served, source, target, columns=None, keep=(), header=True, batch_size=32):
    """Labels the rows of a table, and writes the predictions in the same order; returns how many.

    A file is read completely before anything is computed, so a broken line is reported at once. The
    predictions go to a file beside the target, which takes its place at the end.

    Args:
        served: serving.Served.
        source: (path, or "-" for standard input; format).
        target: (path, or "-" for standard output; format).
        columns: names of those that hold the model's inputs, in order; None: as the inputs.
        keep: columns of the input to write before the predictions; ["*"] for all. One that is
            called as a prediction's becomes input_NAME.
        header, batch_size: as for `rows`, `label`.
    """
    path, format = source
    name = "standard input" if path == "-" else path
    columns = list(columns or served.inputs)
    if len(columns) != len(served.inputs):
        raise UserError(
            f"this model takes {len(served.inputs)} columns ({', '.join(served.inputs)}), and "
            f"--columns names {len(columns)}."
        )
    if format == "text" and columns != ["text"]:
        raise UserError(
            f"this model takes {', '.join(columns)}: give CSV, TSV or JSON lines with columns of "
            "these names, or others that --columns names."
        )

    def table():
        return texts_of(rows(path, format, header), columns, name)

    # A pipe, such as standard input, cannot be read twice.
    total = _count(table(), keep, name, target[1]) if os.path.isfile(path) else None
    # The first call traces the model, which would spoil the progress line's rate.
    served.call(**{each: tf.constant([""]) for each in served.inputs})
    progress = Progress("predictions", total, "rows", stream=sys.stderr)
    done = 0

    def watch(number):
        nonlocal done
        done += number
        progress.update(done)

    with _opened(target[0]) as file:
        writer = TableWriter(file, target[1])
        for row, prediction in label(served, table(), batch_size, watch):
            writer.write(_kept(row, keep, prediction, name) | prediction)
    progress.close()
    return done


def _count(table, keep, name, format):
    """The number of rows of a table, which is read to its end; refuses what cannot be kept."""
    number, trial = 0, TableWriter(io.StringIO(), format)
    for number, (_, row) in enumerate(table, 1):  # noqa: B007
        trial.write(_kept(row, keep, {}, name))
        trial.file.seek(0)
        trial.file.truncate()
    if not number:
        raise UserError(f"{name} holds no rows.")
    return number


def _kept(row, keep, prediction, name):
    names = row if "*" in keep else keep
    missing = [each for each in names if each not in row]
    if missing:
        raise UserError(f"{name} has no column {missing[0]!r} to keep; it has {', '.join(row)}.")
    return {f"input_{each}" if each in prediction else each: row[each] for each in names}


@contextlib.contextmanager
def _opened(path):
    """A text file to write to, standard output or one that is there at the end."""
    if path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        yield file


class TableWriter:
    """Writes rows to an open text file as "csv", "tsv" or "jsonl"."""

    def __init__(self, file, format):
        self.file, self.format = file, format
        self._columns = None
        self._csv = csv.writer(file, lineterminator="\n")

    def write(self, row):
        """Writes a dict; in CSV and TSV each class's probability is a column, probability_NAME."""
        if self.format == "jsonl":
            self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
            return
        flat = dict(_flat(row))
        if self._columns is None:
            self._columns = list(flat)
            self._line(self._columns)
        if more := [column for column in flat if column not in self._columns]:
            raise UserError(f"not all rows have {more[0]!r}: write JSON lines, or do not keep it.")
        self._line([flat.get(column, "") for column in self._columns])

    def _line(self, fields):
        fields = [f if isinstance(f, str) else json.dumps(f, ensure_ascii=False) for f in fields]
        if self.format == "csv":
            self._csv.writerow(fields)
            return
        for field in fields:
            if set(field) & set("\t\r\n"):
                raise UserError(f"{field!r} cannot stand in TSV: write CSV or JSON lines.")
        self.file.write("\t".join(fields) + "\n")


def _flat(row):
    for name, value in row.items():
        if isinstance(value, dict) and name == "probabilities":
            yield from ((f"probability_{key}", each) for key, each in value.items())
        elif isinstance(value, list) and name == "labels":
            yield name, ",".join(value)
        else:
            yield name, value
