"""The rows of a table labelled by a fine-tuned model, in their order."""

import contextlib
import csv
import io
import itertools
import json
import os
import sys

import numpy as np
import tensorflow as tf

from convbert_tf.console import Progress, UserError, counted
from convbert_tf.data import tables
from convbert_tf.files import atomic_path
from convbert_tf.schema import is_unicode
from convbert_tf.tasks import answers, squad_data

_CHUNK = 4096  # rows that are sorted by length together


def texts_of(table, columns):
    """Yields (texts of `columns`, row) for the rows of a Table; refuses one that lacks them."""
    for number, row in table.rows:
        texts = [row.get(column) for column in columns]
        for column, text in zip(columns, texts, strict=True):
            if not isinstance(text, str) or not is_unicode(text):
                what = f"{text!r} is no text" if column in row else f"there is {', '.join(row)}"
                raise UserError(
                    f"{table.place(number)}: no text in the column {column!r} ({what}); say in "
                    "which it is by --columns."
                )
        yield texts, row


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
    if "embedding" in values:
        return {"embedding": [float(f"{value:.6g}") for value in values["embedding"]]}
    if lists := answers.listed(values, _plain_items):
        filled = {"filled": _plain(values["filled"], None)} if "filled" in values else {}
        return filled | lists
    return {name: _plain(value, labels) for name, value in values.items()}


def _plain_items(value):
    return [_plain(each, None) for each in value] if np.ndim(value) else _plain(value, None)


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


def label_table(
    served, source, target, columns=None, keep=(), header=True, delimiter="", batch_size=32
):
    """Labels the rows of a table, and writes the predictions in the same order; returns how many.

    A file is read completely before anything is computed, so a broken line is reported at once. The
    predictions go to a file beside the target, which takes its place at the end.

    Args:
        served: serving.Served.
        source: (path, or "-" for standard input; format): a table, or, of questions, a file in
            SQuAD's or MRQA's form.
        target: (path, or "-" for standard output; format).
        columns: names of those that hold the model's inputs, in order; None: as the inputs.
        keep: columns of the input to write before the predictions; ["*"] for all. One that is
            called as a prediction's column becomes input_NAME.
        header, delimiter: as for `tables.stream`.
        batch_size: as for `label`.
    """
    path, form = source
    whole = list(served.inputs) == ["question", "context"] and is_set(path, form, columns)
    columns = chosen_columns(served.inputs, columns)
    if form == "text" and columns != ["text"]:
        raise UserError(
            f"this model takes {', '.join(columns)}: give CSV, TSV, JSON lines or Parquet with "
            "columns of these names, or others that --columns names."
        )

    def table():
        if whole:
            return (([each.question, each.context], row) for each, row in rows_of_set(path))
        return texts_of(tables.stream(path, form, header, delimiter), columns)

    def label_all(table, watch):
        # The first call traces the model, which would spoil the progress line's rate.
        served.call(**{each: tf.constant([""]) for each in served.inputs})
        return label(served, table, batch_size, watch)

    return write_table(table, label_all, path, target, keep)


def chosen_columns(inputs, columns):
    """Names of the columns that hold the model's `inputs`, in order: `columns`, or as these."""
    columns = list(columns or inputs)
    if len(columns) != len(inputs):
        raise UserError(
            f"this model takes {counted(len(inputs), 'column')} ({', '.join(inputs)}), and "
            f"--columns names {len(columns)}."
        )
    return columns


def is_set(path, form, columns):
    """Whether a file of questions is in SQuAD's or MRQA's form, which have no `columns`."""
    found = path != "-" and squad_data.is_set(path, form)
    if found and columns is not None:
        raise UserError(f"--columns is for tables, and {path} is in SQuAD's or MRQA's form.")
    return found


def rows_of_set(path):
    """Yields (SquadExample, row) of the questions of a file in SQuAD's or MRQA's form."""
    for example in squad_data.read_examples(path, training=False):
        answers = [{"text": text, "answer_start": start} for text, start in example.answers]
        row = {"id": example.question_id, "question": example.question}
        yield example, row | {"context": example.context, "answers": answers}


def write_table(table, label, path, target, keep):
    """Writes what `label` says of a table's rows, in their order; returns how many.

    Args:
        table: a function that gives an iterator of (what to label, row), and may be called twice.
        label: a function of that iterator and of one that is told the number of rows that are
            done since the last time; gives an iterator of (row, prediction).
        path: where the rows come from.
        target, keep: as for `label_table`.
    """
    name = "standard input" if path == "-" else path
    # A pipe, such as standard input, cannot be read twice.
    total = _count(table(), keep, name, target[1]) if os.path.isfile(path) else None
    progress, done = None, 0

    def watch(number):
        nonlocal done
        done += number
        progress.update(done)

    with _opened(target[0]) as file:
        writer = TableWriter(file, target[1])
        labelled = label(table(), watch)
        progress = Progress("predictions", total, "rows", stream=sys.stderr)
        for row, prediction in labelled:
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
    names = row if "*" in keep else dict.fromkeys(keep)  # a name given twice is one column
    missing = [each for each in names if each not in row]
    if missing:
        raise UserError(f"{name} has no column {missing[0]!r} to keep; it has {', '.join(row)}.")
    taken, kept = {*prediction, *dict(_flat(prediction))}, {}
    for each in names:
        new = each
        while new in taken:
            new = f"input_{new}"
        taken.add(new)
        kept[new] = row[each]
    return kept


@contextlib.contextmanager
def _opened(path):
    """A text file to write to: standard output, a pipe, or one that is there at the end."""
    if path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    if os.path.isfile(path) or not os.path.exists(path):
        path = os.path.realpath(path)  # a link stays a link
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        yield file


class TableWriter:
    """Writes rows to an open text file as "csv", "tsv" or "jsonl"."""

    def __init__(self, file, format):
        self.file, self.format = file, format
        self._columns = None

    def write(self, row):
        """Writes a dict; in CSV and TSV each class's probability is a column, probability_NAME."""
        if self.format == "jsonl":
            self._write(json.dumps(row, ensure_ascii=False) + "\n")
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
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow(fields)
            self._write(line.getvalue())
            return
        for field in fields:
            if set(field) & set("\t\r\n"):
                raise UserError(f"{field!r} cannot stand in TSV: write CSV or JSON lines.")
        self._write("\t".join(fields) + "\n")

    def _write(self, line):
        if not is_unicode(line):
            raise UserError(f"{line!r:.80} has half a surrogate pair, which no file can hold.")
        self.file.write(line)


def _flat(row):
    for name, value in row.items():
        if isinstance(value, dict) and name == "probabilities":
            yield from ((f"probability_{key}", each) for key, each in value.items())
        elif name == "labels" and isinstance(value, list) and _are_texts(value):
            yield name, ",".join(value)
        else:
            yield name, value


def _are_texts(values):
    return all(isinstance(value, str) for value in values)
