"""Tables: every format gives the same rows, and a mistake is told with its line."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from convbert_tf.console import UserError
from convbert_tf.data import tables

ROWS = [("one, two", "a"), ('say "hi"', "b"), ("näh", "a")]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def csv_of(rows, delimiter=",", end="\n"):
    lines = ['"{}"{}{}'.format(t.replace('"', '""'), delimiter, label) for t, label in rows]
    return end.join([f"text{delimiter}label", *lines, ""])


JSON_LINES = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
CONTENTS = {
    "a.csv": csv_of(ROWS),
    "bom.csv": "\ufeff" + csv_of(ROWS, end="\r\n"),
    "A.CSV": csv_of(ROWS).replace("text,label", " text , label"),
    "a.tsv": "text\tlabel\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in ROWS),
    "a.jsonl": JSON_LINES,
    "a.json": "[" + ",".join(JSON_LINES.splitlines()) + "]",
    "b.json": "\n" + JSON_LINES,
    "a.csv.gz": gzip.compress(csv_of(ROWS).encode()),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_formats_give_the_same_rows(tmp_path, name):
    table = tables.read(write(tmp_path, name, CONTENTS[name]), ["text", "label"])
    assert [tuple(values.values()) for _, values in table.rows] == ROWS
    first = {"a.jsonl": 1, "a.json": 1}.get(name, 2)  # the number of the first row
    assert [number for number, _ in table.rows] == [first, first + 1, first + 2]
    assert table.by_line == (name != "a.json")


def test_parquet(tmp_path):
    path = str(tmp_path / "a.parquet")
    frame = pd.DataFrame({"text": ["x", None], "n": [1.0, np.nan], "tags": [["a", "b"], []]})
    frame.to_parquet(path)
    table = tables.read(path, ["text", "tags"], ["n", "other"])
    assert table.columns == ["text", "n", "tags"] and table.place(2) == f"{path}, row 2"
    assert [list(values) for _, values in table.rows] == [["text", "tags", "n"]] * 2
    assert table.rows[0] == (1, {"text": "x", "tags": ["a", "b"], "n": 1.0})
    assert table.rows[1][1]["text"] is None and tables.plain(table.rows[1][1]["n"]) is None


def test_line_ends_and_delimiters_inside_quotes(tmp_path):
    content = 'text;label\n"two\n\nlines; here";a\n\nnext;b\n'
    table = tables.read(write(tmp_path, "a.csv", content), ["text"], delimiter=";")
    assert table.rows == [(2, {"text": "two\n\nlines; here"}), (6, {"text": "next"})]
    # In TSV quotes have no meaning, and only line feeds end a line.
    content = 'text\tlabel\n"open \u2028 quote\ta\n'
    table = tables.read(write(tmp_path, "a.tsv", content), ["text"])
    assert table.rows == [(2, {"text": '"open \u2028 quote'})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nfine,a\nhello, you,b\n", r"a\.csv:3: 2 columns, but 3 in this row"),
        (
            "a.csv",
            'text,label\nfine,a\n"open,b\nx,a\n',
            r"a\.csv:3: no CSV row .*: a quote without",
        ),
        ("a.csv", 'text,label\n"a" b,a\n', r"a\.csv:2: no CSV row"),
        ("a.csv", "text;label\nx;a\n", r"no column 'text'; it has 'text;label'. Is ';' its delim"),
        ("a.csv", "text,text\nx,y\n", r"a\.csv:1: two columns are called 'text'"),
        ("a.csv", "words,label\nx,y\n", r"no column 'text'; it has 'words', 'label'\.$"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "", "is empty: the first line must name the columns"),
        ("a.csv", "text,label\nx,y\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("a.csv", b"text,label\nx,y\nna\xefve,a\n", r"a\.csv:3: not UTF-8"),
        ("a.csv", b"PK\x03\x04 an Excel file", "by its content it is a zip file"),
        ("a.jsonl", '{"text": 1}\n{"text":\n', r"a\.jsonl:2: no JSON"),
        ("a.jsonl", '{"text": 1}\n\n[1]\n', r"a\.jsonl:3: not a JSON object"),
        ("a.json", '[{"text": 1}, 3]', r"a\.json, row 2: not a JSON object"),
        ("a.json", '[{"text": 1}', r"a\.json: no JSON"),
        ("a.parquet", "PAR", "is no Parquet file, or damaged"),
        ("a.xlsx", "", r"the name must end in \.csv, \.tsv"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        tables.read(write(tmp_path, name, content), ["text"])
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(UserError, match="is a folder: a file of rows is expected"):
        tables.read(str(tmp_path), ["text"])
    with pytest.raises(UserError, match="is not there"):
        tables.read(str(tmp_path / "a.csv"), ["text"])
    with pytest.raises(UserError, match="a delimiter is for .csv files"):
        tables.read(write(tmp_path, "a.tsv", "text\n"), ["text"], delimiter=";")


def test_a_long_value_is_read(tmp_path):
    text = "long " * 50_000
    path = write(tmp_path, "a.csv", csv_of([(text, "a")]))
    assert tables.read(path, ["text"]).rows == [(2, {"text": text})]


def test_many_mistakes_of_a_kind_are_one_message(tmp_path):
    table = tables.read(write(tmp_path, "a.csv", csv_of(ROWS)), ["text"])
    assert str(table.mistake([2], "it is bad")).endswith("a.csv:2: it is bad; mend or drop it.")
    found = str(table.mistake(range(2, 12), "it is bad"))
    assert "it is bad (9 more such rows: 3, 4, 5, 6, 7, ...); mend" in found


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, None), (float("nan"), None), (2.0, "2"), (2.5, "2.5"), (3, "3"), (True, "True")],
)
def test_values_as_text(value, text):
    assert tables.plain(value) == text


def test_holding_out_depends_on_the_row_and_the_seed_alone():
    texts = [(f"text {i}", "b") for i in range(2000)]
    held = [tables.held_out(row, 0.2) for row in texts]
    assert 0.17 < np.mean(held) < 0.23
    assert held[::-1] == [tables.held_out(row, 0.2) for row in reversed(texts)]
    assert held != [tables.held_out(row, 0.2, seed=1) for row in texts]
    # A larger share holds out the same rows and more.
    assert all(tables.held_out(row, 0.5) for row, out in zip(texts, held, strict=True) if out)
    # Fixed for good, so that a dev set stays what it is.
    chosen = [i for i in range(30) if tables.held_out([f"text {i}"], 0.2)]
    assert chosen == CHOSEN


CHOSEN = [2, 14, 23, 25, 28]


def test_rows_in_memory():
    rows = [{"text": "x", "label": 1}, {"text": "y", "label": 2}]
    frame = pd.DataFrame(rows)
    columns = {"text": ["x", "y"], "label": [1, 2]}
    for data in (rows, frame, columns, [("x", 1), ["y", 2]], iter(rows)):
        assert tables.records(data, ["text", "label"]) == rows
    for data, message in (
        ([("x", 1), ("y",)], r"data\[1\] must be a dict or a tuple \(text, label\), not \('y',\)"),
        ({"text": ["x"], "label": []}, "columns of different lengths"),
        ({"text": (t for t in "x")}, "data: the column 'text' must be a list, not <generator"),
        ({"text": "xy"}, "data: the column 'text' must be a list, not 'xy'"),
        (3, "must be a file, a DataFrame or a list of rows, not 3"),
    ):
        with pytest.raises(UserError, match=message):
            tables.records(data, ["text", "label"])
    values = [{"text": "é", "label": np.float32(0.5), "n": pd.NA, "more": 1}]
    content = tables.json_lines(values, ["text", "label", "n"], ["none"])
    assert content.decode() == '{"text": "é", "label": 0.5, "n": null}\n'


def test_bytes_are_text(tmp_path):
    """Wherever they stand; but not those that are no UTF-8, nor half a surrogate pair."""
    rows = [{"text": "né".encode(), "label": {b"b", "a"}}, {"text": np.array([b"x"])}]
    content = tables.json_lines(rows, ["text"], ["label"]).decode().splitlines()
    assert content == ['{"text": "né", "label": ["a", "b"]}', '{"text": ["x"]}']
    path = str(tmp_path / "a.parquet")
    pd.DataFrame({"text": ["né".encode(), b"x"], "image": [b"a", b"\xff"]}).to_parquet(path)
    assert tables.read(path, ["text"]).rows == [(1, {"text": "né"}), (2, {"text": "x"})]
    assert [row["image"] for _, row in tables.stream(path, "parquet").rows] == ["a", b"\xff"]
    with pytest.raises(UserError, match="row 2: the column 'image' holds bytes that are not UTF-8"):
        tables.read(path, ["image"])
    half = write(tmp_path, "a.jsonl", '{"text": "x"}\n{"text": ["\\ud800"]}\n')
    with pytest.raises(
        UserError, match=r"a\.jsonl:2: the column 'text' holds half a surrogate pai"
    ):
        tables.read(half, ["text"])
    with pytest.raises(UserError, match="row 2 of train: the column 'text' holds half a surrogate"):
        tables.json_lines([{"text": "x"}, {"text": "\ud800"}], ["text"], what="train")


def test_two_columns_of_one_name_are_refused(tmp_path):
    frame = pd.DataFrame([["x", "a", "b"]], columns=["text", "label", "label"])
    with pytest.raises(UserError, match="train: two columns are called 'label'"):
        tables.records(frame, ["text", "label"], "train")
    path = write(tmp_path, "a.jsonl", '{"text": "x", "label": 1, "label": 2}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*two values are called 'label'"):
        tables.read(path, ["text"])
    path = str(tmp_path / "a.parquet")
    columns = pyarrow.table([["x"], ["a"], ["b"]], names=["text", "label", "label"])
    parquet.write_table(columns, path)
    with pytest.raises(UserError, match=r"a\.parquet: two columns are called 'label'"):
        tables.read(path, ["text"])


def test_lines_that_end_by_carriage_returns(tmp_path):
    """A CSV row may; of a text or a TSV file they would make one line."""
    path = write(tmp_path, "a.csv", csv_of(ROWS, end="\r"))
    assert [tuple(row.values()) for _, row in tables.read(path, ["text", "label"]).rows] == ROWS
    for form in ("tsv", "text"):
        path = write(tmp_path, f"a.{form}", "text\tlabel\rx\ta\r")
        with pytest.raises(UserError, match=f"a.{form} has carriage returns for line ends, and no"):
            list(tables.stream(path, form).rows)
    path = write(tmp_path, "one.txt", "a text alone\r")
    assert list(tables.stream(path, "text").rows) == [(1, {"text": "a text alone"})]
