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
import dataclasses
import functools
import math
import re

from convbert_tf.config import join_list, split_list
from convbert_tf.console import UserError, counted, say
from convbert_tf.data import tables
from convbert_tf.tasks.sentences import Example, Task

# Kind -> its metrics; by default those before the bar, in this order.
_METRICS = {
    "classes": "accuracy macro_f1 | mcc f1",
    "labels": "micro_f1 macro_f1 subset_accuracy |",
    "score": "pearson spearman mean_squared_error |",
}
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "development", "validation", "valid", "val", "eval"), "dev"),
    "test": "test",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Beyond so many rows, labels that are nearly all different are taken for a mistake.
_FEW_ROWS = 20


def as_json_lines(config, data, what):
    """The columns of `data` (see `tables.records`) that the TaskConfig names, as JSON lines.

    Raises:
        UserError: `data` has no rows, or lacks a column; `what` names it.
    """
    names = [*_text_columns(config), config.label_column]
    rows = tables.records(data, names, what)
    return tables.json_lines(rows, names, [config.id_column, config.split_column], what)


class Tables:
    """The tables of one's own task, as a source of `sentences.Sentences`.

    Args:
        config: TaskConfig. Without a `train_file`, as for a model that is there already, its
            labels or the range of its scores must be given.

    Attributes:
        config: with labels, or the range of the scores, and metrics.
        task: Task.

    Raises:
        UserError: a file, a column or a value that cannot be meant; names the file and the line.
    """

    def __init__(self, config):
        scored = [_Rows.read(config, path) for path in _scored_files(config)]
        by_column = bool(config.train_file and config.split_column)
        test = [scored[0].part("test")] if by_column else []
        scored = [scored[0].without("test"), *scored[1:]] if by_column else scored
        found = _with_range(config, scored) if config.kind == "score" else None
        found = found or _with_labels(config, scored)
        self.config = dataclasses.replace(found, metrics=join_list(_metrics(found)))
        self.task = _task(self.config)
        parse = functools.partial(_parse, self.task)
        self._rows = self._parts([rows.with_labels(parse) for rows in scored])
        if test and test[0] and not config.test_file:
            self._rows["test"] = test[0].with_labels(parse, optional=True)
        if config.train_file:
            self._say()

    def _parts(self, scored):
        """Split -> _Rows of those of the files to train on and to score."""
        config = self.config
        if not config.train_file:
            return dict(zip(("dev",), scored, strict=False))
        if config.dev_file:
            return dict(zip(("train", "dev"), scored, strict=True))
        if not config.split_column:
            return scored[0].held_out()
        parts = {name: scored[0].part(name) for name in ("train", "dev")}
        if not parts["train"]:
            raise UserError(
                f"{config.train_file}: no row has train in its column {config.split_column!r}."
            )
        return parts if parts["dev"] else parts["train"].held_out()

    def _say(self):
        config, train, dev = self.config, self._rows["train"], self._rows["dev"]
        files = " and ".join(_scored_files(config))
        rule = ""
        if train.is_held_out:
            rule = f" (held out: {config.held_out:g} of the rows, by a hash of their texts)"
        say(f"{counted(len(train), 'row')} to train on, {len(dev):,} to score{rule}, of {files}")
        if self.task.is_regression:
            say(f"scores from {config.min_score:g} to {config.max_score:g}")
        else:
            _say_labels(self.task, [row.label for row in train])
        texts = {row.texts for row in train}
        if both := sum(row.texts in texts for row in dev):
            say(f"{both:,} of the rows to score have texts that are trained on: scores flatter")

    # --- as a source ---

    def has(self, split):
        """Whether there are rows of `split`."""
        return split in self._rows or bool(split == "test" and self.config.test_file)

    def files(self, split):
        """Paths of the files that hold `split`."""
        path = getattr(self.config, f"{split}_file", "") or self.config.train_file
        if not self.has(split):
            raise UserError(f"there are no rows of {split!r}: set config.task.{split}_file.")
        return [path]

    def examples(self, split):
        if split not in self._rows:
            rows = _Rows.read(self.config, self.files(split)[0], labels_optional=True)
            self._rows[split] = rows.with_labels(functools.partial(_parse, self.task), True)
        return [
            Example(i, row.texts[0], row.texts[1] if self.task.text_b else None, row.label, row.key)
            for i, row in enumerate(self._rows[split])
        ]


def _scored_files(config):
    """Paths of the tables to train on and to score."""
    if config.split_column and config.dev_file:
        raise UserError("set split_column or dev_file, not both.")
    return [path for path in (config.train_file, config.dev_file) if path]


# --- rows ---

# Of a table: its number, texts (one or two), label, key (its id, or the number) and split.
_Row = collections.namedtuple("_Row", "number texts label key split")


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of a table.

    Attributes:
        config: TaskConfig.
        table: they are of.
        rows: list of _Row.
        is_held_out: whether they are what holding out has left.
    """

    config: object
    table: tables.Table
    rows: list
    is_held_out: bool = False

    @classmethod
    def read(cls, config, path, labels_optional=False):
        """The rows of the table at `path`; refuses it if one lacks texts, an id or a split."""
        has_splits = path == config.train_file and config.split_column
        wanted = [*_text_columns(config), config.id_column, config.split_column * bool(has_splits)]
        labels = [config.label_column]
        optional = labels if labels_optional or has_splits else []
        wanted = dict.fromkeys(name for name in [*wanted, *labels] if name)
        wanted = [name for name in wanted if name not in optional]
        table = tables.read(path, wanted, optional, config.delimiter)
        rows = cls(config, table, [_row(config, *row) for row in table.rows])
        rows._check_texts()
        if config.id_column:
            rows._check_ids()
        if has_splits:
            rows._check_splits()
        return rows

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def _refuse(self, wrong, message):
        """Refuses the rows for which `wrong(row)` is true; `message` is a function of the first."""
        found = [row for row in self.rows if wrong(row)]
        if found:
            raise self.table.mistake([row.number for row in found], message(found[0]))

    def _check_texts(self):
        for i, column in enumerate(_text_columns(self.config)):
            self._refuse(
                lambda row, i=i: not isinstance(row.texts[i], str),
                lambda row, c=column: f"the column {c!r} holds no text but a list or an object",
            )
            self._refuse(
                lambda row, i=i: not row.texts[i].strip(),
                lambda row, c=column: f"the column {c!r} is empty",
            )

    def _check_ids(self):
        column, first = self.config.id_column, {}
        for row in self.rows:
            first.setdefault(row.key, row.number)
        self._refuse(lambda row: not row.key, lambda row: f"the column {column!r} is empty")
        self._refuse(
            lambda row: _CONTROL.search(row.key),
            lambda row: f"the id {row.key!r:.60} has a tab, a line end or the like in it",
        )
        self._refuse(
            lambda row: first[row.key] != row.number,
            lambda row: f"the id {row.key!r} is that of {self.table.place(first[row.key])} too",
        )

    def _check_splits(self):
        self._refuse(
            lambda row: row.split not in _SPLITS.values(),
            lambda row: f"the split {row.split!r} is none of train, dev (or validation), test",
        )

    def _only(self, rows, **changes):
        return dataclasses.replace(self, rows=rows, **changes)

    def part(self, split):
        """The rows that the split column gives to `split`."""
        return self._only([row for row in self.rows if row.split == split])

    def without(self, split):
        """The rows that the split column does not give to `split`."""
        return self._only([row for row in self.rows if row.split != split])

    def held_out(self):
        """These rows without those that are held out, as "train", and those as "dev"."""
        share, seed = self.config.held_out, self.config.held_out_seed
        parts = {"train": [], "dev": []}
        for row in self.rows:
            parts["dev" if tables.held_out(row.texts, share, seed) else "train"].append(row)
        if not all(parts.values()):
            raise UserError(
                f"{self.table.path}: held_out {share:g} of {counted(len(self.rows), 'row')} leaves "
                "none to train on or none to score: set config.task.dev_file, or another held_out "
                "or held_out_seed."
            )
        return {name: self._only(rows, is_held_out=True) for name, rows in parts.items()}

    def with_labels(self, parse, optional=False):
        """These rows with parse(label) for the label.

        Refuses those for which it raises a ValueError, or that have none. Where it is `optional`, a
        label that is not there is None.
        """
        config, found, mistakes = self.config, [], {}
        for row in self.rows:
            missing = tables.plain(row.label) in (None, "")
            try:
                if missing and config.kind != "labels" and not optional:
                    raise ValueError(f"the column {config.label_column!r} is empty")
                label = parse([] if missing else row.label) if not missing or not optional else None
                found.append(row._replace(label=label))
            except ValueError as error:
                mistakes[row.number] = str(error)
        self._refuse(lambda row: row.number in mistakes, lambda row: mistakes[row.number])
        return self._only(found)


def _text_columns(config):
    return [config.text_column, *filter(None, [config.text_b_column])]


def _row(config, number, values):
    texts = [values[column] for column in _text_columns(config)]
    texts = [text if isinstance(text, list | dict) else tables.plain(text) or "" for text in texts]
    key = tables.plain(values[config.id_column]) if config.id_column else number
    split = (tables.plain(values.get(config.split_column)) or "").strip()
    split = _SPLITS.get(split.lower(), split)
    return _Row(number, tuple(texts), values.get(config.label_column), key, split)


# --- labels and scores ---


def _class_name(value):
    if isinstance(value, list | dict | tuple):
        raise ValueError(f"the label is a list or an object ({value!r:.60}): one class is expected")
    name = (tables.plain(value) or "").strip()
    if not name:
        raise ValueError("the label is empty")
    if _CONTROL.search(name):
        raise ValueError(f"the label {name!r:.60} has a tab, a line end or the like in it")
    return name


def _label_names(value, separator):
    """The labels in a value: a list, the text of one, or labels with `separator` between them."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())  # JSON's lists of texts, and Python's
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"the labels {value!r:.60} begin like a list but are none") from error
    if not isinstance(value, list | tuple):
        value = [value] if isinstance(value, dict) else tables.plain(value).split(separator)
    names = [_class_name(each) for each in value]
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
    numbers = [row.label for rows in scored for row in rows.with_labels(_number)]
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

    names, num_rows = split_list(config.labels), 0
    if not names:
        found = [row.label for rows in scored for row in rows.with_labels(names_of)]
        if not found:
            raise UserError("set config.task.train_file, or config.task.labels.")
        names, num_rows = _sorted({name for names_in in found for name in names_in}), len(found)
    _check_labels(config, names, num_rows)
    return dataclasses.replace(config, labels=join_list(names))


def _check_labels(config, names, num_rows):
    """Refuses labels that cannot be meant; `num_rows` is 0 for those that are given."""
    source = config.train_file or "config.task.labels"
    if num_rows >= _FEW_ROWS and len(names) > num_rows / 2:
        raise UserError(
            f"{source}: the column {config.label_column!r} has {len(names):,} labels in "
            f"{num_rows:,} rows ({', '.join(names[:3])}, ...): is it the right one? For numbers "
            "set config.task.kind=score; to have so many, give config.task.labels."
        )
    if any(not name or _CONTROL.search(name) for name in names):
        raise UserError(f"config.task.labels: one is empty or has a line end in it: {names!r:.80}.")
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
    if all(re.fullmatch("-?[0-9]{1,1000}", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _metrics(config):
    """Names of the task's metrics."""
    default, others = (part.split() for part in _METRICS[config.kind].split("|"))
    names = split_list(config.metrics) or default
    known = [*default, *others]
    for name in names:
        if name not in known:
            raise UserError(f"no metric {name!r} of kind {config.kind}; it has {', '.join(known)}.")
        if name == "f1" and len(split_list(config.labels)) != 2:
            raise UserError("f1 is for two classes, that of the second; for more take macro_f1.")
    return list(dict.fromkeys(names))


def _task(config):
    return Task(
        name=config.name,
        text_a=config.text_column,
        text_b=config.text_b_column or None,
        label=config.label_column,
        labels=tuple(split_list(config.labels)),
        metrics=tuple(split_list(config.metrics)),
        splits=dict.fromkeys(("train", "dev", "test")),
        stems={name: name for name in ("train", "dev", "test")},
        min_score=config.min_score,
        max_score=config.max_score,
        multi_label=config.kind == "labels",
        separator=config.label_separator,
    )


def _say_labels(task, found):
    """A line on the labels and how many of those `found` (of rows to train on) each is among."""
    ids = [i for label in found for i in (label if task.multi_label else [label])]
    counts = collections.Counter(ids)
    shown = [f"{label} {counts[i]:,}" for i, label in enumerate(task.labels[:20])]
    more = f", ... {len(task.labels) - 20:,} more" if len(task.labels) > 20 else ""
    what = "labels" if task.multi_label else "classes"
    say(f"{len(task.labels)} {what}, in rows to train on: {', '.join(shown)}{more}")
    unseen = [label for i, label in enumerate(task.labels) if not counts[i]]
    if unseen:
        say(f"no row to train on has {', '.join(unseen[:5])}")
