"""Tables labelled in their order."""

import concurrent.futures
import gzip
import io
import json
import os

import pandas as pd
import pytest
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.data import tables
from convbert_tf.serving.loading import Served
from convbert_tf.workflows import prediction


class Model:
    """Answers with a text's length; notes the batches that it is given."""

    def __init__(self):
        self.batches = []

    def __call__(self, text):
        lengths = tf.strings.length(text)
        self.batches.append(lengths.numpy().tolist())
        share = tf.cast(lengths, tf.float32) / 100
        return {
            "label": tf.strings.as_string(lengths),
            "logits": tf.stack([share, share], axis=1),
            "probabilities": tf.stack([share, 1 - share], axis=1),
        }


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def label(model, tmp_path):
    """A function: the content of a table's predictions."""
    served = Served(["text"], ["no", "yes"], model, None)

    def run(name, content, to="tsv", **options):
        path, target = tmp_path / name, tmp_path / f"out.{to}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        format = tables.format_of(name) or "text"
        prediction.label_table(served, (str(path), format), (str(target), to), **options)
        return target.read_text(encoding="utf-8")

    return run


def test_texts_are_computed_by_length_and_written_in_their_order(label, model, monkeypatch):
    monkeypatch.setattr(prediction, "_CHUNK", 5)
    lengths = [3, 1, 9, 0, 4, 7, 2]
    lines = label("a.txt", "".join("x" * n + "\n" for n in lengths), batch_size=2).splitlines()
    assert lines[0] == "label\tprobability_no\tprobability_yes"
    assert [line.split("\t")[0] for line in lines[1:]] == [str(n) for n in lengths]
    assert lines[1] == "3\t0.03\t0.97"
    assert model.batches[1:] == [[9, 4], [3, 1], [0], [7, 2]]  # behind the one that traces


def parquet(columns):
    """The content of a Parquet file."""
    file = io.BytesIO()
    pd.DataFrame(columns).to_parquet(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", 'id,text\n7,"a, ""b"""\n\n8,"c\nd"\n', {}),
        ("a.csv", '\ufeffid,told\n7,"a, ""b"""\n8,"c\nd"\n', {"columns": ["told"]}),
        ("a.csv", '7,"a, ""b"""\r\n8,"c\nd"', {"columns": ["2"], "header": False}),
        ("a.jsonl", '{"id": "7", "text": "a, \\"b\\""}\n\n{"text": "c\\nd", "id": "8"}\n', {}),
        ("a.tsv", 'text\tid\na, "b"\t7\nc d\t8\n', {}),
        ("a.csv.gz", gzip.compress(b'id,text\n7,"a, ""b"""\n8,c d\n', mtime=0), {}),
        ("a.json", '[{"id": "7", "text": "a, \\"b\\""}, {"id": "8", "text": "c d"}]', {}),
        ("a.parquet", parquet({"id": ["7", "8"], "text": ['a, "b"', "c d"]}), {}),
    ],
)
def test_formats(label, name, content, options):
    keep = ["1" if options.get("header") is False else "id"]
    rows = label(name, content, "jsonl", keep=keep, **options).splitlines()
    assert [json.loads(row) for row in rows] == [
        {keep[0]: "7", "label": "6", "probabilities": {"no": 0.06, "yes": 0.94}},
        {keep[0]: "8", "label": "3", "probabilities": {"no": 0.03, "yes": 0.97}},
    ]


def test_kept_columns_stand_before_the_predictions_and_lose_none(label):
    content = 'text,label,note\nab,1,"x\ty"\n'
    kept = label("a.csv", content, "csv", keep=["*"])
    assert kept == (
        "text,input_label,note,label,probability_no,probability_yes\nab,1,x\ty,2,0.02,0.98\n"
    )
    assert label("a.csv", content, "csv", keep=["note", "note"]).startswith("note,label,prob")
    # The predictions of another model, labelled again, are all there.
    content = "text,label,input_label,probability_no\nab,1,orig,0.777\n"
    first, second = label("a.csv", content, "csv", keep=["*"]).splitlines()
    named = dict(zip(first.split(","), second.split(","), strict=True))
    assert named == {
        **{"text": "ab", "input_label": "1", "input_input_label": "orig"},
        **{"input_probability_no": "0.777", "label": "2"},
        **{"probability_no": "0.02", "probability_yes": "0.98"},
    }
    rows = '{"text": "x", "labels": ["a", 1]}\n'
    assert '["a", 1]\t' in label("a.jsonl", rows, "tsv", keep=["labels"])
    rows = '{"text": "x", "id": "\\ud800"}\n'
    with pytest.raises(UserError, match="ud800.* has half a surrogate pair"):
        label("a.jsonl", rows, "csv", keep=["id"])
    content = 'text,label,note\nab,1,"x\ty"\n'
    with pytest.raises(UserError, match="cannot stand in TSV: write CSV or JSON lines"):
        label("a.csv", content, "tsv", keep=["note"])
    with pytest.raises(UserError, match="not all rows have 'b': write JSON lines"):
        label("a.jsonl", '{"text": "x"}\n{"text": "y", "b": 1}\n', "csv", keep=["*"])


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "text\n", {}, r"a\.csv holds no rows"),
        ("a.csv", "", {}, r"a\.csv is empty: the first line must name"),
        ("a.csv", "text,b\nx,y\nx\n", {}, r"a\.csv:3: 2 columns, but 1 in this row"),
        ("a.csv", 'text\n"x\n', {}, r"a\.csv:2: no CSV row .unexpected end of data"),
        ("a.csv", "text,text\nx,y\n", {}, r"a\.csv:1: two columns are called 'text'"),
        ("a.csv", "b,c\nx,y\n", {}, r"a\.csv:2: no text in the column 'text' .there is b, c.;"),
        ("a.csv", "text\nx\n", {"keep": ["id"]}, r"no column 'id' to keep; it has text"),
        ("a.csv", "text\nx\n", {"columns": ["a", "b"]}, r"takes 1 column .text., .* names 2"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', {}, r"a\.jsonl:2: .*3 is no text"),
        ("a.jsonl", '{"text": "\\ud800"}\n', {}, r"a\.jsonl:1: .*'.ud800' is no text"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', {}, r"a\.jsonl:2: not a JSON object"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', {}, r"a\.jsonl:2: no JSON"),
        ("a.txt", b"x\n\xff\n", {}, r"a\.txt:2: not UTF-8"),
        (
            "a.txt",
            "x\n",
            {"columns": ["b"]},
            r"this model takes b: give CSV, TSV, JSON lines or Parquet",
        ),
    ],
)
def test_a_broken_row_is_told_before_anything_is_computed(
    label, model, tmp_path, name, content, options, message
):
    with pytest.raises(UserError, match=message):
        label(name, content, **options)
    assert not model.batches and [path.name for path in tmp_path.iterdir()] == [name]


def test_several_labels_and_answers_as_tables_hold_them(tmp_path):
    def call(question, context):
        return {
            "answer": context,
            "start": tf.zeros(tf.shape(context), tf.int64),
            "labels": tf.stack([question, tf.fill(tf.shape(question), "")], axis=1),
        }

    served, out = Served(["question", "context"], None, call, None), tmp_path / "out.csv"
    (tmp_path / "a.jsonl").write_text('{"question": "q", "context": "c"}\n')
    source = (str(tmp_path / "a.jsonl"), "jsonl")
    prediction.label_table(served, source, (str(out), "csv"))
    assert out.read_text() == "labels,answer,start\nq,c,0\n"
    qa = {"id": "7", "question": "q", "answers": []}
    squad = {"data": [{"paragraphs": [{"context": "c", "qas": [qa, qa | {"id": "8"}]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(squad, indent=1))
    source = (str(tmp_path / "a.json"), "json")
    prediction.label_table(served, source, (str(out), "csv"), keep=["id"])
    assert out.read_text() == "id,labels,answer,start\n7,q,c,0\n8,q,c,0\n"
    with pytest.raises(UserError, match="--columns is for tables, and .*a.json is in SQuAD's"):
        prediction.label_table(served, source, (str(out), "csv"), columns=["a", "b"])


def test_a_tagger_s_words_and_entities(tmp_path):
    def call(text):
        return {
            "num_words": tf.constant([2]),
            "word": tf.constant([["Ada", "sat", ""]]),
            "word_start": tf.constant([[0, 4, 0]]),
            "word_end": tf.constant([[3, 7, 0]]),
            "tag": tf.constant([["B-NAME", "O", ""]]),
            "tag_score": tf.constant([[0.5, 0.25, 0.0]]),
            "num_entities": tf.constant([0]),
            "entity": tf.constant([[""]]),
        }

    served, out = Served(["text"], ["B-NAME", "O"], call, None), tmp_path / "out.jsonl"
    (tmp_path / "a.txt").write_text("Ada sat\n")
    prediction.label_table(served, (str(tmp_path / "a.txt"), "text"), (str(out), "jsonl"))
    first, second = json.loads(out.read_text())["words"]
    assert first == {
        "word": "Ada",
        "word_start": 0,
        "word_end": 3,
        "tag": "B-NAME",
        "tag_score": 0.5,
    }
    assert second["word"] == "sat" and json.loads(out.read_text())["entities"] == []


def test_blank_rows_of_one_column_are_rows(label):
    for name in ("a.csv", "a.tsv"):
        lines = label(name, "text\nab\n\nabc\n").splitlines()
        assert [line.split("\t")[0] for line in lines] == ["label", "2", "0", "3"]
        lines = label(name, "\ntext\tid\n\nab\t1\n\n".replace("\t", ",\t"[name == "a.tsv"]))
        assert [line.split("\t")[0] for line in lines.splitlines()] == ["label", "2"]


def test_another_delimiter(label):
    assert label("a.csv", "text;id\na,b;7\n", "csv", keep=["id"], delimiter=";").splitlines() == [
        "id,label,probability_no,probability_yes",
        "7,3,0.03,0.97",
    ]
    with pytest.raises(UserError, match="a delimiter is for .csv files"):
        label("a.tsv", "text\nx\n", delimiter=";")


def test_links_stay_and_pipes_take_the_predictions(label, tmp_path):
    real = tmp_path / "real.tsv"
    real.write_text("old")
    (tmp_path / "out.tsv").symlink_to(real)
    expected = "label\tprobability_no\tprobability_yes\n1\t0.01\t0.99\n"
    assert label("a.txt", "x\n") == expected
    assert (tmp_path / "out.tsv").is_symlink() and real.read_text() == expected
    (tmp_path / "out.tsv").unlink()
    os.mkfifo(tmp_path / "out.tsv")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "out.tsv").read_text)
        with prediction._opened(str(tmp_path / "out.tsv")) as file:
            file.write(expected)
        assert read.result(timeout=30) == expected
    assert (tmp_path / "out.tsv").is_fifo()
