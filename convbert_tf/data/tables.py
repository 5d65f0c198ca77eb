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
import json
import math
import os

from convbert_tf.console import UserError, reason
from convbert_tf.data import unpacking

# Longest value of a CSV file; the module's own limit is 131,072 characters.
_LARGEST_VALUE = 1 << 30
FORMATS = ".csv, .tsv, .jsonl, .ndjson, .json or .parquet"


@dataclasses.dataclass(frozen=True)
class Table:
    """The wanted columns of a file.

    Attributes:
        path: of the file.
        columns: names of all its columns.
        rows: (number, name -> value); a value is None where there is none. The number is that of
            the row's first line in the file, or of the row where a file has no lines (`by_line`).
        by_line: whether numbers are those of lines.
    """

    path: str
    columns: list
    rows: list
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
    """The Table of the file at `path`.

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
        raise UserError(f"{path} {what}: a file of rows is expected ({FORMATS}).")
    name = unpacking.split_packing(path)[0].lower()
    kind = os.path.splitext(name)[1]
    if delimiter and kind != ".csv":
        raise UserError(f"{path}: a delimiter is for .csv files.")
    if len(delimiter) > 1:
        raise UserError(f"delimiter {delimiter!r} must be one character.")
    if kind == ".parquet":
        return _read_parquet(path, wanted, optional)
    readers = {".csv": _csv_rows, ".tsv": _tsv_rows, ".json": _json_rows}
    readers |= dict.fromkeys((".jsonl", ".ndjson"), _json_line_rows)
    if kind not in readers:
        raise UserError(f"{path}: the name must end in {FORMATS}, also with .gz or .xz.")
    text = _text(path)
    if kind == ".csv":
        columns, rows = _csv_rows(path, text, delimiter or ",")
    else:
        columns, rows = readers[kind](path, text)
    by_line = kind != ".json" or not text.lstrip().startswith("[")
    return _table(path, columns, rows, wanted, optional, by_line)


def _table(path, columns, rows, wanted, optional, by_line):
    """The Table of `rows` (number, name -> value) without the columns that nobody wants."""
    missing = [name for name in wanted if name not in columns]
    if missing:
        shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
        one = columns[0] if len(columns) == 1 else ""
        other = next((mark for mark in (";", "\t", "|", ",") if mark in one), "")
        hint = (
            f" Is {other!r} its delimiter? Set --config.task.delimiter='{other}' for a .csv file."
            if other
            else ""
        )
        raise UserError(f"{path} has no column {missing[0]!r}; it has {shown}.{hint}")
    kept = [name for name in (*wanted, *optional) if name in columns]
    rows = [(number, {name: values.get(name) for name in kept}) for number, values in rows]
    if not rows:
        raise UserError(f"{path} holds no rows.")
    return Table(path, columns, rows, by_line)


def _text(path):
    """The unpacked text of the file at `path`, without a byte order mark."""
    with unpacking.opened(path) as file:
        content = file.read()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16: save it as UTF-8 (in Excel: CSV UTF-8).")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise UserError(
            f"{path}:{line}: not UTF-8 ({error.reason}): convert the file, say with iconv."
        ) from error


def _csv_rows(path, text, delimiter):
    csv.field_size_limit(_LARGEST_VALUE)
    # StringIO would otherwise change the line ends inside values.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found, line = [], 1
    try:
        for values in reader:
            if values:
                found.append((line, values))
            line = reader.line_num + 1
    except csv.Error as error:
        hint = ": a quote without its end, or inside a value" if '"' in text else ""
        raise UserError(f"{path}:{line}: no CSV row ({reason(error)}){hint}.") from error
    return _with_header(path, found)


def _tsv_rows(path, text):
    lines = enumerate(text.split("\n"), 1)  # other line ends may stand in texts
    found = [(number, line.rstrip("\r").split("\t")) for number, line in lines if line.strip("\r")]
    return _with_header(path, found)


def _with_header(path, found):
    """Columns and rows of lists of values, the first of which names the columns."""
    if not found:
        raise UserError(f"{path} is empty: the first line must name the columns.")
    columns = [name.strip() for name in found[0][1]]
    twice = [name for name, count in collections.Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path}:1: two columns are called {twice[0]!r}.")
    rows = []
    for number, values in found[1:]:
        if len(values) != len(columns):
            raise UserError(
                f"{path}:{number}: {len(columns)} columns, but {len(values)} in this row: put "
                "quotes around a value that holds the delimiter or a line end (.csv), or mend it."
            )
        rows.append((number, dict(zip(columns, values, strict=True))))
    return columns, rows


def _json_line_rows(path, text):
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line and not line.isspace():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: no JSON ({reason(error)}).") from error
            rows.append((number, _json_object(f"{path}:{number}", values)))
    return _columns_of(rows), rows


def _json_rows(path, text):
    if not text.lstrip().startswith("["):
        return _json_line_rows(path, text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({reason(error)}).") from error
    rows = [(i, _json_object(f"{path}, row {i}", value)) for i, value in enumerate(values, 1)]
    return _columns_of(rows), rows


def _json_object(place, values):
    if not isinstance(values, dict):
        raise UserError(f"{place}: not a JSON object with a value for each column.")
    return values


def _columns_of(rows):
    return list(dict.fromkeys(name for _, values in rows for name in values))


def _read_parquet(path, wanted, optional):
    # Here, since importing it takes time that users of other files need not wait.
    import pyarrow
    from pyarrow import parquet

    try:
        columns = parquet.read_schema(path).names
        kept = [name for name in (*wanted, *optional) if name in columns]
        found = parquet.read_table(path, columns=kept).to_pylist() if kept else []
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file, or damaged ({reason(error)}).") from error
    return _table(path, columns, list(enumerate(found, 1)), wanted, optional, by_line=False)


# --- values ---


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
        UserError: it is something else, or a tuple has another length.
    """
    if hasattr(data, "to_dicts"):
        return data.to_dicts()
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        return data.to_dict("records")
    if isinstance(data, collections.abc.Mapping):
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


def json_lines(rows, columns):
    """These columns of `rows` (dicts) as the content of a .jsonl file."""
    kept = ({name: row[name] for name in columns if name in row} for row in rows)
    lines = (json.dumps(row, ensure_ascii=False, default=_json_value) + "\n" for row in kept)
    return "".join(lines).encode("utf-8", "replace")


def _json_value(value):
    """NumPy's numbers and arrays and pandas' missing values as JSON has them; else the text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if type(value).__name__ in ("NAType", "NaTType") else str(value)
