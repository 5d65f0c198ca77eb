"""A task of one's own: texts, pairs or not, and what they get, in columns of tables.

The tables are those of data/tables.py, the columns and the rest settings of TaskConfig. Kinds:

    classes     a class a text
    labels      any number of labels a text, also none
    score       a number a text

What the settings leave to the data, the labels or the range of the scores, is taken from the rows
to train on and to score, and said.
"""

import ast
import collections
import csv
import dataclasses
import functools
import io
import math

from convbert_tf.console import UserError, say
from convbert_tf.data import tables
from convbert_tf.tasks.sentences import Example, Task

# Kind -> its metrics; by default those before the bar, in this order.
_METRICS = {
    "classes": "accuracy macro_f1 | mcc f1",
    "labels": "micro_f1 macro_f1 subset_accuracy |",
    "score": "pearson spearman mean_squared_error |",
}
_SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "development": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "eval": "dev",
    "test": "test",
}
# Beyond so many rows, labels that are nearly all different are taken for a mistake.
_FEW_ROWS = 20


def join(values):
    """`values` as a setting that is a list: commas between them, quotes around one with a comma."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def split(setting):
    """The values of a setting that is a list; see `join`."""
    rows = list(csv.reader([setting], skipinitialspace=True)) if setting else []
    return [value.strip() for row in rows for value in row]


def as_json_lines(config, data, what):
    """The columns of `data` (see `tables.records`) that the TaskConfig names, as JSON lines.

    Raises:
        UserError: `data` has no rows, or lacks a column; `what` names it.
    """
    names = [config.text_column, *filter(None, [config.text_b_column]), config.label_column]
    rows = tables.records(data, names, what)
    found = dict.fromkeys(name for row in rows for name in row)
    missing = [name for name in names if name not in found]
    if missing:
        there = ", ".join(map(repr, found)) or "no rows"
        raise UserError(f"{what} has no column {missing[0]!r}; it has {there}.")
    return tables.json_lines(rows, [*names, config.id_column, config.split_column])


class Tables:
    """The tables of one's own task, as a source of `sentences.Sentences`.

    Args:
        config: TaskConfig. Without a `train_file`, as for a model that is there already, its
            labels or scores must be given.

    Attributes:
        config: with labels, or the range of the scores, and metrics.
        task: Task.

    Raises:
        UserError: a file, a column or a value that cannot be meant; names the file and the line.
    """

    def __init__(self, config):
        self._given = config
        self._rows = self._split_rows() if config.train_file else {}
        if config.dev_file and not config.train_file:
            self._rows["dev"] = self._read(config.dev_file)
        scored = [rows for name, rows in self._rows.items() if name != "test"]
        if config.kind == "score":
            found = _with_range(config, scored)
        else:
            found = _with_labels(config, scored)
        self.config = dataclasses.replace(found, metrics=join(_metrics(found)))
        self.task = _task(self.config)
        self._say()

    # --- which rows ---

    def _read(self, path, labels_optional=False):
        config = self._given
        wanted = [config.text_column, *filter(None, [config.text_b_column])]
        optional = [config.label_column] if labels_optional else []
        wanted += [] if labels_optional else [config.label_column]
        own_split = config.split_column if path == config.train_file else ""
        wanted += filter(None, [config.id_column, own_split])
        table = tables.read(path, list(dict.fromkeys(wanted)), optional, config.delimiter)
        return _Rows(config, table).checked()

    def _split_rows(self):
        """Split -> _Rows of the training file and the dev file."""
        config = self._given
        if config.split_column and config.dev_file:
            raise UserError("set split_column or dev_file, not both.")
        whole = self._read(config.train_file, labels_optional=bool(config.split_column))
        if config.dev_file:
            return {"train": whole, "dev": self._read(config.dev_file)}
        parts = {"train": whole}
        if config.split_column:
            parts = whole.by_column()
            if "train" not in parts:
                raise UserError(
                    f"{config.train_file}: no row has train in its column {config.split_column!r}."
                )
        return parts if "dev" in parts else parts | parts["train"].held_out()

    def _say(self):
        config, rows = self.config, self._rows
        if "train" not in rows:
            return
        files = [config.train_file, *filter(None, [config.dev_file])]
        rule = ""
        if not config.dev_file and not rows["dev"].named:
            rule = f" (held out: {config.held_out:g} of the rows, by a hash of their texts)"
        say(
            f"{len(rows['train']):,} rows to train on, {len(rows['dev']):,} to score{rule}, of "
            f"{' and '.join(files)}"
        )
        if self.task.is_regression:
            say(f"scores from {config.min_score:g} to {config.max_score:g}")
        else:
            _say_labels(self.task, self.examples("train"))
        texts = {row.texts for row in rows["train"]}
        if both := sum(row.texts in texts for row in rows["dev"]):
            say(f"{both:,} of the rows to score have texts that are trained on: scores flatter")

    # --- as a source ---

    def has(self, split):
        """Whether there are rows of `split`."""
        return split in self._rows or bool(split == "test" and self.config.test_file)

    def files(self, split):
        """Paths of the files that hold `split`."""
        given = getattr(self.config, f"{split}_file", "")
        path = given or (self.config.train_file if self.has(split) else "")
        if not path:
            raise UserError(f"there are no rows of {split!r}: set config.task.{split}_file.")
        return [path]

    def examples(self, split):
        self.files(split)
        if split not in self._rows:
            self._rows[split] = self._read(self.config.test_file, labels_optional=True)
        parse = functools.partial(_parse, self.task)
        labels = self._rows[split].parsed(parse, optional=split == "test")
        return [
            Example(i, row.texts[0], row.texts[1] if self.task.text_b else None, label, row.key)
            for i, (row, label) in enumerate(zip(self._rows[split], labels, strict=True))
        ]


# Of a table: its number, texts (one or two), label as it stands there, key and split.
_Row = collections.namedtuple("_Row", "number texts label key split")


class _Rows:
    """Rows of a table, which refuses those that are wrong.

    Attributes:
        named: whether the table says which split they are of.
    """

    def __init__(self, config, table, rows=None, named=False):
        self.config, self.table, self.named = config, table, named
        self.rows = list(map(self._row, table.rows)) if rows is None else rows

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def _row(self, numbered):
        config, (number, values) = self.config, numbered
        columns = [config.text_column, *filter(None, [config.text_b_column])]
        texts = tuple(tables.plain(values[column]) or "" for column in columns)
        key = tables.plain(values[config.id_column]) if config.id_column else number
        split = tables.plain(values[config.split_column]) if config.split_column in values else ""
        return _Row(number, texts, values.get(config.label_column), key, split)

    def refuse(self, message, wrong, advice="mend the line, or drop it"):
        """Refuses the rows for which `wrong(row)` is true; `message` is a function of the first."""
        found = [row for row in self.rows if wrong(row)]
        if found:
            numbers = [row.number for row in found]
            raise self.table.mistake(numbers, message(found[0]), advice)

    def checked(self):
        """These rows, if each has texts and, where there are ids, one of its own."""
        columns = (self.config.text_column, self.config.text_b_column)
        for i in range(2 if self.config.text_b_column else 1):
            self.refuse(
                lambda row, i=i: f"the column {columns[i]!r} is empty",
                lambda row, i=i: not row.texts[i].strip(),
            )
        if self.config.id_column:
            column = self.config.id_column
            self.refuse(lambda row: f"the column {column!r} is empty", lambda row: not row.key)
            first = {}
            for row in self.rows:
                first.setdefault(row.key, row.number)
            self.refuse(
                lambda row: f"the id {row.key!r} stands in {self.table.place(first[row.key])} too",
                lambda row: first[row.key] != row.number,
            )
        return self

    def _part(self, rows, named):
        return _Rows(self.config, self.table, rows, named)

    def by_column(self):
        """Split -> _Rows, as the split column says."""
        self.refuse(
            lambda row: f"the split {row.split!r} is none of train, dev (or validation), test",
            lambda row: (row.split or "").strip().lower() not in _SPLITS,
        )
        parts = collections.defaultdict(list)
        for row in self.rows:
            parts[_SPLITS[row.split.strip().lower()]].append(row)
        return {name: self._part(rows, True) for name, rows in parts.items()}

    def held_out(self):
        """These rows without those that are held out, as "train", and those as "dev"."""
        share, seed = self.config.held_out, self.config.held_out_seed
        parts = {"train": [], "dev": []}
        for row in self.rows:
            parts["dev" if tables.held_out(row.texts, share, seed) else "train"].append(row)
        for rows in parts.values():
            if not rows:
                raise UserError(
                    f"{self.table.path}: held_out={share:g} of its {len(self.rows):,} rows leaves "
                    "none to train on or none to score: set config.task.dev_file, or another "
                    "held_out or held_out_seed."
                )
        return {name: self._part(rows, False) for name, rows in parts.items()}

    def parsed(self, parse, optional=False):
        """parse(label) of each row; None where a label is not there and `optional`.

        Refuses rows for which `parse` raises a ValueError.
        """
        column, found, mistakes = self.config.label_column, [], {}
        for row in self.rows:
            missing = row.label is None or tables.plain(row.label) in (None, "")
            if missing and (optional or self.config.kind == "labels"):
                found.append(None if optional else parse([]))
                continue
            try:
                if missing:
                    raise ValueError(f"the column {column!r} is empty")
                found.append(parse(row.label))
            except ValueError as error:
                mistakes[row.number] = str(error)
        self.refuse(lambda row: mistakes[row.number], lambda row: row.number in mistakes)
        return found


# --- labels and scores ---


def _class_name(value):
    if isinstance(value, list | dict | tuple):
        raise ValueError(f"the label is a list or an object ({value!r:.60}): one class is expected")
    name = tables.plain(value).strip()
    if not name:
        raise ValueError("the label is empty")
    return name


def _label_names(value, separator):
    """The labels in a value: a list, the text of one, or labels with `separator` between them."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())  # JSON's lists of texts, and Python's
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"the labels {value!r:.60} begin like a list but are none") from error
    values = value if isinstance(value, list | tuple) else tables.plain(value).split(separator)
    names = [_class_name(each) for each in values]
    return list(dict.fromkeys(names))


def _number(value):
    try:
        number = float(tables.plain(value).replace("_", "x"))  # Python reads 1_000
    except ValueError as error:
        raise ValueError(f"the score {value!r:.60} is not a number") from error
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"the score {value!r:.60} is not a finite number")
    return number


def _parse(task, value):
    """The label of an Example for what stands in the table."""
    if task.is_regression:
        number = _number(value)
        if not task.min_score <= number <= task.max_score:
            raise ValueError(
                f"the score {number:g} is not between {task.min_score:g} and {task.max_score:g}"
            )
        return number
    names = _label_names(value, task.separator) if task.multi_label else [_class_name(value)]
    for name in names:
        if name not in task.labels:
            shown = ", ".join(task.labels[:20]) + (", ..." if len(task.labels) > 20 else "")
            raise ValueError(f"the label {name!r} is none of {shown}")
    ids = [task.labels.index(name) for name in names]
    return tuple(sorted(ids)) if task.multi_label else ids[0]


def _with_range(config, scored):
    """`config` with the range of the scores in the _Rows of `scored`, where none is given."""
    if config.labels:
        raise UserError("kind score has no labels: leave config.task.labels empty.")
    if config.min_score < config.max_score:
        return config
    numbers = [number for rows in scored for number in rows.parsed(_number)]
    if not numbers:
        raise UserError("set config.task.train_file, or min_score and max_score.")
    low, high = min(numbers), max(numbers)
    if low == high:
        raise UserError(
            f"{config.train_file}: all scores are {low:g}, so there is nothing to learn; is "
            f"{config.label_column!r} the right column?"
        )
    return dataclasses.replace(config, min_score=low, max_score=high)


def _with_labels(config, scored):
    """`config` with the labels in the _Rows of `scored`, sorted, where none are given."""
    several = config.kind == "labels"
    if several and not config.label_separator:
        raise UserError("label_separator must be at least one character.")

    def names_of(value):
        return _label_names(value, config.label_separator) if several else [_class_name(value)]

    names, num_rows = split(config.labels), 0
    if not names:
        found = [names_in for rows in scored for names_in in rows.parsed(names_of)]
        if not found:
            raise UserError("set config.task.train_file, or config.task.labels.")
        names, num_rows = _sorted({name for names_in in found for name in names_in}), len(found)
    _check_labels(config, names, num_rows)
    return dataclasses.replace(config, labels=join(names))


def _check_labels(config, names, num_rows):
    """Refuses labels that cannot be meant; `num_rows` is 0 for those that are given."""
    source = config.train_file or "config.task.labels"
    if num_rows >= _FEW_ROWS and len(names) > num_rows / 2:
        raise UserError(
            f"{source}: the column {config.label_column!r} has {len(names):,} labels in "
            f"{num_rows:,} rows ({', '.join(names[:3])}, ...): is it the right one? For numbers "
            "set config.task.kind=score; to have so many, give config.task.labels."
        )
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"{source}: there must be at least two different labels; there is "
            f"{', '.join(map(repr, names)) or 'none'}."
        )
    separator = config.label_separator
    if config.kind == "labels" and (inside := next((n for n in names if separator in n), None)):
        raise UserError(
            f"the label {inside!r} has the label_separator {separator!r} in it: set another "
            "config.task.label_separator."
        )


def _sorted(names):
    """`names` by number if all are whole numbers, else by their characters."""
    if all(name.isascii() and name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _metrics(config):
    """Names of the task's metrics."""
    default, others = (part.split() for part in _METRICS[config.kind].split("|"))
    names = split(config.metrics) or default
    known = [*default, *others]
    for name in names:
        if name not in known:
            raise UserError(f"no metric {name!r} of kind {config.kind}; it has {', '.join(known)}.")
        if name == "f1" and len(split(config.labels)) != 2:
            raise UserError("f1 is for two classes, that of the second; for more take macro_f1.")
    return list(dict.fromkeys(names))


def _task(config):
    return Task(
        name=config.name,
        text_a=config.text_column,
        text_b=config.text_b_column or None,
        label=config.label_column,
        labels=tuple(split(config.labels)),
        metrics=tuple(split(config.metrics)),
        splits=dict.fromkeys(("train", "dev", "test")),
        stems={name: name for name in ("train", "dev", "test")},
        min_score=config.min_score,
        max_score=config.max_score,
        multi_label=config.kind == "labels",
        separator=config.label_separator,
    )


def _say_labels(task, examples):
    """A line on the labels and how many rows to train on have each."""
    found = [example.label for example in examples]
    ids = [i for label in found for i in (label if task.multi_label else [label])]
    counts = collections.Counter(ids)
    shown = [f"{label} {counts[i]:,}" for i, label in enumerate(task.labels[:20])]
    more = f", ... {len(task.labels) - 20:,} more" if len(task.labels) > 20 else ""
    what = "labels" if task.multi_label else "classes"
    say(f"{len(task.labels)} {what}, in rows to train on: {', '.join(shown)}{more}")
    unseen = [label for i, label in enumerate(task.labels) if not counts[i]]
    if unseen:
        say(f"no row to train on has {', '.join(unseen[:5])}")
