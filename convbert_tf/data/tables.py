"""Tables of texts and labels: CSV, TSV, JSON lines and Parquet, and rows in memory; no TensorFlow.

    .csv             values between commas; those in quotes may hold commas, quotes and line ends.
                     The first line names the columns
    .tsv             values between tabs, a row a line, a header line; quotes have no meaning, as in
                     GLUE's files
    .jsonl, .ndjson  a JSON object a line; .json also a list of them
    .parquet         by pyarrow

All but Parquet are UTF-8, with or without a byte order mark, and may be packed (.gz, .xz).
"""

import collections
import collections.abc
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os

from convbert_tf.console import UserError, reason
from convbert_tf.data import unpacking

# Longest value of a CSV file; the module's own limit is 131,072 characters.
_LARGEST_VALUE = 1 << 30
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",  # a list, or lines
    ".parquet": "parquet",
}
ENDINGS = ".csv, .tsv, .jsonl, .ndjson, .json or .parquet"
_ROWS_AT_ONCE = 4096  # of a Parquet file


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a file, and how to name their places in it.

    Attributes:
        path: of the file.
        columns: names of all its columns, as far as they are known.
        rows: (number, name -> value); a value is None where there is none. The number is that of
            the row's first line in the file, or of the row where a file has no lines (`by_line`).
        by_line: whether numbers are those of lines.
    """

    path: str
    columns: list
    rows: collections.abc.Iterable
    by_line: bool = True

    def place(self, number):
        """How to name the row of this number in a message."""
        return f"{self.path}:{number}" if self.by_line else f"{self.path}, row {number}"

    def mistake(self, numbers, message):
        """A UserError on the rows of these numbers, the first of which `message` describes."""
        more = [str(number) for number in numbers[1:]]
        shown = f"{', '.join(more[:5])}{', ...' if len(more) > 5 else ''}"
        rows = "row" if len(more) == 1 else "rows"
        rest = f" ({len(more):,} more such {rows}: {shown})" if more else ""
        return UserError(f"{self.place(numbers[0])}: {message}{rest}; mend or drop it.")


def read(path, wanted, optional=(), delimiter=""):
    """The Table of the file at `path`, as a whole.

    Args:
        path: its name tells the format, see above.
        wanted: names of columns that must be there.
        optional: names of columns that are read where they are there.
        delimiter: of a .csv file, where it is no comma.

    Raises:
        UserError: the file is not there, is damaged or of another format, a row is broken, or a
            column is missing; names the file and the line.
    """
    if os.path.isdir(path) or not os.path.exists(path):
        what = "is a folder" if os.path.isdir(path) else "is not there"
        raise UserError(f"{path} {what}: a file of rows is expected ({ENDINGS}).")
    form, names = format_of(path), (*wanted, *optional)
    if form is None:
        raise UserError(f"{path}: the name must end in {ENDINGS}, also with .gz or .xz.")
    table, rows = stream(path, form, delimiter=delimiter, names=names), []
    columns = dict.fromkeys(table.columns)
    for number, values in table.rows:
        columns.update(dict.fromkeys(values))
        place, found = table.place(number), [name for name in names if name in values]
        rows.append((number, {name: _text(place, name, values[name]) for name in found}))
    if not rows:
        raise UserError(f"{path} holds no rows.")
    _check_columns(path, list(columns), wanted)
    kept = [name for name in names if name in columns]
    rows = [(number, {name: values.get(name) for name in kept}) for number, values in rows]
    return Table(path, list(columns), rows, table.by_line)


def _check_columns(path, columns, wanted):
    missing = [name for name in wanted if name not in columns]
    if missing:
        shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
        shown = shown or "no rows"
        one = columns[0] if len(columns) == 1 else ""
        other = next((mark for mark in (";", "\t", "|", ",") if mark in one), "")
        hint = (
            f" Is {other!r} its delimiter? Set --config.task.delimiter='{other}' for a .csv file."
            if other
            else ""
        )
        raise UserError(f"{path} has no column {missing[0]!r}; it has {shown}.{hint}")


def format_of(path):
    """The format of the table at `path` by its name, one of FORMATS; None for another."""
    ending = os.path.splitext(unpacking.split_packing(path)[0])[1].lower()
    return FORMATS.get(ending)


def stream(path, form, header=True, delimiter="", names=None):
    """The Table at `path`, whose `rows` are an iterator that reads them bit by bit.

    A list in a .json file is in memory as a whole.

    Args:
        path: of a file, also packed, or "-" for standard input.
        form: of FORMATS; or "text": a text a line, the column "text".
        header: whether the first line of CSV or TSV names the columns; otherwise they are called
            "1", "2" and so on.
        delimiter: of CSV, where it is no comma.
        names: columns that are wanted of a Parquet file; None for all.

    Raises:
        UserError: when a broken row is come to; names it.
    """
    if delimiter and form != "csv":
        raise UserError(f"{path}: a delimiter is for .csv files.")
    if len(delimiter) > 1:
        raise UserError(f"delimiter {delimiter!r} must be one character.")
    name = "standard input" if path == "-" else path
    if form == "parquet":
        columns, rows = _parquet_rows(path, names)
        return Table(name, columns, rows, by_line=False)
    lines = _lines(path, name, ended_by_line_feeds=form in ("tsv", "text"))
    if form == "json":
        lines = itertools.dropwhile(lambda line: not line[1].strip(), lines)
        first = next(lines, (1, ""))
        lines = itertools.chain([first], lines)
        if first[1].lstrip().startswith("["):
            return Table(name, [], _json_list_rows(lines, name), by_line=False)
    if form == "text":
        rows = ((number, {"text": line.rstrip("\r\n")}) for number, line in lines)
    elif form in ("json", "jsonl"):
        rows = _json_line_rows(lines, name)
    else:
        found = _csv_values(lines, name, delimiter) if form == "csv" else _tsv_values(lines)
        rows = _by_name(found, name, header)
    return Table(name, [], rows)


def _lines(path, name, ended_by_line_feeds):
    """Yields (number, line with its end) of an unpacked file, without a byte order mark."""
    with open(0, "rb", closefd=False) if path == "-" else unpacking.opened(path) as file:
        for number, raw in enumerate(file, 1):
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{name} is UTF-16: save it as UTF-8 (in Excel: CSV UTF-8).")
            if number == 1 and ended_by_line_feeds:
                unpacking.check_line_end(name, raw)
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}:{number}: not UTF-8 ({error.reason}): convert the file, say with "
                    "iconv."
                ) from error


def _csv_values(lines, name, delimiter):
    """Yields (number of its first line, values) of the rows that are not blank."""
    csv.field_size_limit(_LARGEST_VALUE)
    # A carriage return alone ends a line too.
    texts = itertools.chain.from_iterable(io.StringIO(text, newline="") for _, text in lines)
    reader, line = csv.reader(texts, delimiter=delimiter or ",", strict=True), 1
    try:
        for values in reader:
            yield line, values or [""]
            line = reader.line_num + 1
    except csv.Error as error:
        about_quotes = any(word in str(error) for word in ("unexpected end", "expected after"))
        hint = ": a quote without its end, or inside a value" if about_quotes else ""
        raise UserError(f"{name}:{line}: no CSV row ({reason(error)}){hint}.") from error


def _tsv_values(lines):
    for number, line in lines:
        yield number, line.rstrip("\r\n").split("\t")


def _by_name(found, name, header):
    """Rows of (number, values), the first of which names the columns if there is a `header`.

    A blank line is a row of a table of one column, and none of others.
    """
    found = itertools.dropwhile(_is_blank, found)
    first = next(found, None)
    if first is None:
        why = "is empty: the first line must name the columns" if header else "holds no rows"
        raise UserError(f"{name} {why}.")
    columns = [column.strip() for column in first[1]]
    if not header:
        columns = [str(i) for i in range(1, len(columns) + 1)]
        found = itertools.chain([first], found)
    check_names(f"{name}:{first[0]}", columns)
    for number, values in found:
        if len(columns) > 1 and _is_blank((number, values)):
            continue
        if len(values) != len(columns):
            raise UserError(
                f"{name}:{number}: {len(columns)} columns, but {len(values)} in this row: put "
                "quotes around a value that holds the delimiter or a line end (.csv), or mend it."
            )
        yield number, dict(zip(columns, values, strict=True))


def _is_blank(row):
    return row[1] == [""]


def check_names(place, columns):
    """Refuses `columns` of which two have one name."""
    twice = [column for column, count in collections.Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{place}: two columns are called {twice[0]!r}.")


def _json_line_rows(lines, name):
    for number, line in lines:
        if line and not line.isspace():
            yield number, _json_object(f"{name}:{number}", _json(f"{name}:{number}", line))


def _json_list_rows(lines, name):
    values = _json(name, "".join(line for _, line in lines))
    for number, value in enumerate(values, 1):
        yield number, _json_object(f"{name}, row {number}", value)


def _json(place, text):
    try:
        return json.loads(text, object_pairs_hook=_json_values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: no JSON ({reason(error)}).") from error


def _json_values(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        name = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"two values are called {name!r}")
    return values


def _json_object(place, values):
    if not isinstance(values, dict):
        raise UserError(f"{place}: not a JSON object with a value for each column.")
    return values


def _parquet_rows(path, names):
    """The names of the columns and an iterator of the rows."""
    # Here, since importing it takes time that users of other files need not wait.
    import pyarrow
    from pyarrow import parquet

    def damage(error):
        return UserError(f"{path} is no Parquet file, or damaged ({reason(error)}).")

    def rows(file, columns):
        number = 0
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield number, {name: _decoded(value) for name, value in values.items()}
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise damage(error) from error

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise damage(error) from error
    columns = file.schema_arrow.names
    check_names(path, columns)
    kept = columns if names is None else [name for name in dict.fromkeys(names) if name in columns]
    return columns, rows(file, kept)


# --- values ---


def _text(place, column, value):
    """`value` as `_as_text`; refuses what is no text."""
    try:
        return _as_text(value)
    except UnicodeError as error:
        is_bytes = isinstance(error, UnicodeDecodeError)
        what = "bytes that are not UTF-8" if is_bytes else "half a surrogate pair, which is no text"
        raise UserError(f"{place}: the column {column!r} holds {what}; mend or drop it.") from error


def _as_text(value):
    """`value` with strings for bytes and plain values for NumPy's, also inside lists and objects.

    Raises:
        UnicodeError: a text in it cannot be UTF-8.
    """
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8")
    if isinstance(value, str):
        value.encode("utf-8")  # not of half a surrogate pair
        return value
    if hasattr(value, "tolist"):
        return _as_text(value.tolist())
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_as_text(each) for each in value]
    return {k: _as_text(v) for k, v in value.items()} if isinstance(value, dict) else value


def _decoded(value):
    """`value` as `_as_text`, or as it is if that is not possible."""
    try:
        return _as_text(value)
    except UnicodeError:
        return value


def plain(value):
    """A value of a table as text, None where there is none: of a number its shortest form."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns whole numbers to floats where one is missing
    return str(value)


def held_out(values, share, seed=0):
    """Whether the row of these `values` (strings) is among the `share` of rows that is held out.

    It depends on the row and the seed alone, so neither order nor other rows change it, and equal
    rows stay together.
    """
    content = json.dumps([seed, *values], ensure_ascii=True).encode("ascii")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") < share * 2**64


# --- rows in memory ---


def is_path(data):
    """Whether `data` names a file, and is no rows itself."""
    return isinstance(data, str | os.PathLike)


def width(data):
    """The number of values of the first row of `data` if its rows are tuples, else None."""
    first = data[0] if isinstance(data, list | tuple) and data else None
    return len(first) if isinstance(first, list | tuple) else None


def records(data, names, what="data"):
    """The rows of `data` as dicts.

    Args:
        data: a pandas or polars DataFrame, a dict of columns, or a list of dicts or of tuples.
        names: of the values of a tuple.
        what: names `data` in messages.

    Raises:
        UserError: it is something else, a tuple has another length, or two columns have one name.
    """
    if hasattr(data, "to_dicts"):
        return data.to_dicts()
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        check_names(what, data.columns)
        return data.to_dict("records")
    if isinstance(data, collections.abc.Mapping):
        for name, column in data.items():
            if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
                raise UserError(f"{what}: the column {name!r} must be a list, not {column!r:.60}.")
        lengths = {len(column) for column in data.values()}
        if len(lengths) > 1:
            raise UserError(f"{what} has columns of different lengths ({sorted(lengths)}).")
        return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
    if not isinstance(data, collections.abc.Iterable):
        raise UserError(f"{what} must be a file, a DataFrame or a list of rows, not {data!r:.60}.")
    return [_record(row, names, f"{what}[{i}]") for i, row in enumerate(data)]


def _record(row, names, place):
    if isinstance(row, collections.abc.Mapping):
        return dict(row)
    if not isinstance(row, tuple | list) or len(row) != len(names):
        raise UserError(f"{place} must be a dict or a tuple ({', '.join(names)}), not {row!r:.60}.")
    return dict(zip(names, row, strict=True))


def json_lines(rows, wanted, optional=(), what="data"):
    """Columns of `rows` (dicts) as the content of a .jsonl file.

    Args:
        rows: as `records` gives them.
        wanted, optional: names of columns, as for `read`.
        what: names the rows in messages.

    Raises:
        UserError: a column is missing, or a value is no text; names the row.
    """
    _check_columns(what, list(dict.fromkeys(name for row in rows for name in row)), wanted)
    lines, columns = [], (*wanted, *optional)
    for number, row in enumerate(rows, 1):
        place, names = f"row {number} of {what}", [name for name in columns if name in row]
        kept = {name: _text(place, name, row[name]) for name in names}
        lines.append(json.dumps(kept, ensure_ascii=False, default=_json_value) + "\n")
    return "".join(lines).encode("utf-8")


def _json_value(value):
    """pandas' missing values as JSON has them; else the text."""
    return None if type(value).__name__ in ("NAType", "NaTType") else str(value)
