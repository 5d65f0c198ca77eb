"""A task of one's own: labels and scores from the data, splits, and mistakes told by their line."""

import collections
import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.config import TaskConfig
from convbert_tf.console import UserError
from convbert_tf.data import records
from convbert_tf.tasks import own, sentences
from convbert_tf.tasks.sentences import Example
from convbert_tf.text.tokenization import WordPieceTokenizer

WORDS = [f"word{i}" for i in range(12)]


@pytest.fixture
def make(tmp_path):
    """A function: the Tables of a file with this content and of these settings."""

    def make(content, name="rows.csv", **settings):
        return own.Tables(make_config(tmp_path, content, name, **settings))

    return make


def make_config(folder, content, name="rows.csv", **settings):
    path = folder / name
    path.write_text(content)
    settings = {"train_file": str(path), "held_out": 0.4} | settings
    return TaskConfig(name="own", **settings)


def rows(labels, header="text,label"):
    """A CSV of a word and one of the `labels`, in turn, a line."""
    lines = [f"{word},{labels[i % len(labels)]}" for i, word in enumerate(WORDS)]
    return "\n".join([header, *lines, ""])


def test_classes_are_taken_from_the_data_and_said(make, capsys):
    tables = make(rows(["no", " yes ", "maybe"]))
    assert tables.task.labels == ("maybe", "no", "yes") and tables.config.labels == "maybe,no,yes"
    assert tables.task.metrics == ("accuracy", "macro_f1")
    train, dev = tables.examples("train"), tables.examples("dev")
    assert len(train) == 10 and len(dev) == 2
    assert [example.example_id for example in dev] == [0, 1]
    for example in train + dev:  # the key is the line
        number = WORDS.index(example.text_a)
        assert example.key == number + 2 and example.label == [1, 2, 0][number % 3]
    counts = collections.Counter(example.label for example in train)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("10 rows to train on, 2 to score (held out: 0.4 of the rows, by a h")
    shown = f"maybe {counts[0]}, no {counts[1]}, yes {counts[2]}"
    assert lines[1] == f"3 classes, in rows to train on: {shown}"


def test_what_is_held_out_depends_on_no_order(make):
    first, second = make(rows(["a", "b"])), None
    lines = rows(["a", "b"]).splitlines()
    second = make("\n".join([lines[0], *reversed(lines[1:]), "new,a"]))
    held = [{example.text_a for example in t.examples("dev")} for t in (first, second)]
    assert held[0] == held[1] - {"new"}
    other = make(rows(["a", "b"]), held_out_seed=1)
    assert {example.text_a for example in other.examples("dev")} != held[0]


def test_given_labels_stand_in_their_order(make):
    tables = make(rows(["no", "yes"]), labels='yes, no, "who, me"', metrics="mcc, accuracy")
    assert tables.task.labels == ("yes", "no", "who, me")
    assert tables.task.metrics == ("mcc", "accuracy")
    assert make(rows(["no", "yes"]), metrics="f1").task.metrics == ("f1",)


def test_numbers_as_classes_are_in_the_order_of_numbers(make):
    assert make(rows(["10", "9", "-1"])).task.labels == ("-1", "9", "10")
    assert make(rows(["--1", "2", "-"])).task.labels == ("-", "--1", "2")
    lines = [json.dumps({"text": w, "label": i % 2 == 0}) for i, w in enumerate(WORDS)]
    assert make("\n".join(lines), "rows.jsonl").task.labels == ("False", "True")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rows.csv", ['"b, a"', "a", "", "\"['a', 'b']\""]),
        ("rows.jsonl", [["b", "a", "b"], ["a"], [], "a,b"]),
        ("other.jsonl", ["b|a", "a", None, ["a", "b"]]),
    ],
)
def test_several_labels(make, name, values):
    content, separator = rows(values), "," if name != "other.jsonl" else "|"
    if name.endswith(".jsonl"):
        lines = [json.dumps({"text": w, "label": values[i % 4]}) for i, w in enumerate(WORDS)]
        content = "\n".join(lines)
    tables = make(content, name, kind="labels", label_separator=separator)
    assert tables.task.labels == ("a", "b") and tables.task.multi_label
    assert tables.task.metrics == ("micro_f1", "macro_f1", "subset_accuracy")
    found = {e.text_a: e.label for split in ("train", "dev") for e in tables.examples(split)}
    assert [found[word] for word in WORDS[:4]] == [(0, 1), (0,), (), (0, 1)]


def test_scores_have_the_range_of_the_data_or_the_given_one(make, capsys):
    tables = make(rows(["1", "-2.5", "3e0"]), kind="score")
    task = tables.task
    assert task.is_regression and (task.min_score, task.max_score) == (-2.5, 3)
    assert task.metrics == ("pearson", "spearman", "mean_squared_error")
    assert "scores from -2.5 to 3" in capsys.readouterr().out
    assert {example.label for example in tables.examples("train")} == {1, -2.5, 3}
    given = make(rows(["1", "2"]), kind="score", min_score=-1.0, max_score=3.0)
    assert (given.task.min_score, given.config.max_score) == (-1, 3)
    # In records from 0 to 1, in files as they were.
    assert sentences._label_features(task, Example(0, "x", None, 3))["label_ids"] == 1
    assert task.answers([0, 1, 0.5, 7]) == ["-2.500", "3.000", "0.250", "3.000"]


def test_splits_by_a_column_and_by_files(make, tmp_path):
    splits = ["train", "Validation", "train", "test"]
    lines = [f"{w},{'ab'[i % 2]},{splits[i % 4]}" for i, w in enumerate(WORDS)]
    lines[3] = f"{WORDS[3]},,test"  # a row to predict needs no label
    content = "\n".join(["text,label,part", *lines])
    tables = make(content, split_column="part")
    assert [len(tables.examples(split)) for split in ("train", "dev", "test")] == [6, 3, 3]
    assert [e.label for e in tables.examples("test")] == [None, 1, 1]
    # Without rows to score there, they are held out.
    tables = make(content.replace("Validation", "train"), split_column="part")
    assert len(tables.examples("train")) + len(tables.examples("dev")) == 9
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rows.csv").write_text(rows(["b", "a"]))
    (tmp_path / "new.jsonl").write_text('{"text": "new"}\n')
    files = {"dev_file": str(tmp_path / "more" / "rows.csv")}
    files["test_file"] = str(tmp_path / "new.jsonl")
    tables = make(rows(["a", "b"]), **files)
    assert [len(tables.examples(split)) for split in ("train", "dev", "test")] == [12, 12, 1]
    assert tables.examples("test") == [Example(0, "new", None, None, 1)]
    assert tables.files("test") == [files["test_file"]] and tables.has("test")


def test_texts_that_are_trained_on_and_scored_are_said(make, tmp_path, capsys):
    (tmp_path / "dev.csv").write_text(rows(["a", "b"]) + "new,a\n")
    make(rows(["a", "b"]), dev_file=str(tmp_path / "dev.csv"))
    assert "12 of the rows to score have texts that are trained on" in capsys.readouterr().out


def test_pairs_and_ids(make):
    lines = [f"{w}\tother {w}\t{'ab'[i % 2]}\tid{i}" for i, w in enumerate(WORDS)]
    content = "\n".join(["q\ta\tlabel\tname", *lines])
    tables = make(content, "r.tsv", text_column="q", text_b_column="a", id_column="name")
    example = tables.examples("train")[0]
    assert (example.text_a, example.text_b, example.key) == ("word1", "other word1", "id1")
    with pytest.raises(UserError, match=r"r\.tsv:3: the id 'id0' is that of .*r\.tsv:2 too"):
        make(content.replace("id1\n", "id0\n"), "r.tsv", text_column="q", id_column="name")


def test_a_model_that_is_there_needs_no_rows_to_train_on(tmp_path):
    (tmp_path / "dev.csv").write_text(rows(["a", "b"]))
    files = {"train_file": "", "dev_file": str(tmp_path / "dev.csv")}
    tables = own.Tables(make_config(tmp_path, "", labels="b,a,c", **files))
    assert [example.label for example in tables.examples("dev")] == [1, 0] * 6
    with pytest.raises(UserError, match="there are no rows of 'train': set config.task.train_file"):
        tables.examples("train")


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (rows("ab") + " ,a\n,b\n", {}, r":14: the column 'text' is empty \(1 more such row: 15\);"),
        (rows("ab") + "x,\n", {}, r"rows\.csv:14: the column 'label' is empty; mend or drop it"),
        (rows("a"), {}, r"rows\.csv: there must be at least two different labels; there is 'a'\."),
        (rows("ab"), {"labels": "a,c"}, r":3: the label 'b' is none of a, c \(5 more such rows: 5"),
        (rows("ab"), {"labels": "a,a"}, "at least two different labels; there is 'a', 'a'"),
        (
            rows("ab"),
            {"metrics": "pearson"},
            "no metric 'pearson' of kind classes; it has accuracy",
        ),
        (rows("abc"), {"metrics": "f1"}, "f1 is for two classes"),
        (rows("ab"), {"text_column": "words"}, "no column 'words'; it has 'text', 'label'"),
        (rows("ab"), {"text_b_column": "b"}, "no column 'b'"),
        (rows("ab"), {"held_out": 0.001}, "held_out 0.001 of 12 rows leaves none to train on or"),
        (rows("ab"), {"kind": "score"}, r"rows\.csv:2: the score 'a' is not a number \(11 more"),
        (rows(["1", "nan"]), {"kind": "score"}, r":3: the score 'nan' is not a finite number"),
        (rows(["1", "1_0"]), {"kind": "score"}, r":3: the score '1_0' is not a number"),
        (rows("1"), {"kind": "score"}, "all scores are 1, so there is nothing to learn"),
        (rows("12"), {"kind": "score", "labels": "1,2"}, "kind score has no labels"),
        (
            rows("12"),
            {"kind": "score", "max_score": 1.5},
            r"rows\.csv:3: the score 2 is not between 0 and 1\.5",
        ),
        (rows(['"a\nb"', "b"]), {}, r":2: the label 'a\\nb' has a tab, a line end or the like in"),
        (rows(["[None]", "b"]), {"kind": "labels"}, r"rows\.csv:2: the label is empty"),
        (
            rows("ab"),
            {"labels": "a,,b"},
            r"labels: one is empty or has a line end in it: \['a', ''",
        ),
        (rows("ab"), {"labels": '"a\tb",b'}, r"one is empty or has a line end in it: \['a\\tb'"),
        (rows("ab"), {"labels": "a\nb"}, r"'a\\nb' is no list with commas"),
        (
            rows(["a,x", 'b,"y\tz"'], "text,label,id"),
            {"id_column": "id"},
            r":3: the id 'y\\tz' has a tab, a line end or the like in it \(5 more",
        ),
        (rows(["[a", "b"]), {"kind": "labels"}, r":2: the labels '\[a' begin like a list but are"),
        (
            rows(["x", "y"]),
            {"kind": "labels", "labels": '"a,b",c'},
            "'a,b' has the label_separator",
        ),
        (rows("ab"), {"split_column": "label"}, r":2: the split 'a' is none of train, dev"),
        (
            rows(["a,dev", "b,dev"], "text,label,part"),
            {"split_column": "part"},
            "no row has train in its column 'part'",
        ),
        (
            rows("ab"),
            {"split_column": "label", "dev_file": "x.csv"},
            "split_column or dev_file, no",
        ),
        (
            "text,label\n" + "".join(f"x{i},{i / 3}\n" for i in range(30)),
            {},
            r"has 30 labels in 30 rows .* For numbers set config\.task\.kind=score",
        ),
    ],
)
def test_mistakes_are_told_by_file_and_line(make, content, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        make(content, **settings)
    assert "\n" not in str(caught.value)


def test_a_text_that_is_a_list_is_told(make):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the column 'text' holds no text but a li"):
        make('{"text": ["x"], "label": "a"}\n', "rows.jsonl")
    line = '{"text": "x", "label": ["a", %s]}\n'
    for label, message in (("null", "the label is empty"), ("{}", "the label is a list or an obj")):
        with pytest.raises(UserError, match=rf"rows\.jsonl:1: {message}"):
            make(line % label, "rows.jsonl", kind="labels")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the label is a list or an object"):
        make('{"text": "x", "label": {"a": 1}}\n', "rows.jsonl", kind="labels")


def test_metrics_by_hand():
    several = sentences.Task("own", labels=("a", "b", "c"), multi_label=True)
    several = dataclasses.replace(several, metrics=("micro_f1", "macro_f1", "subset_accuracy"))
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
    answers = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], bool)
    # a: 2 of 2 right; b: 1 found of 2; c: 1 right of 2 found.
    found = sentences.metrics(several, answers, labels)
    expected = {"micro_f1": 8 / 10, "macro_f1": (1 + 2 / 3 + 2 / 3) / 3, "subset_accuracy": 0.5}
    assert found == pytest.approx(expected)
    assert several.answers(answers) == ["a", "a", "c", "b,c"]
    score = sentences.Task("own", labels=(), min_score=1.0, max_score=5.0)
    score = dataclasses.replace(score, metrics=("mean_squared_error",))
    found = sentences.metrics(score, [1.5, 7.0, 0.0], [1, 5, 3])  # cut to 5 and 1
    assert found == pytest.approx({"mean_squared_error": (0.25 + 0 + 4) / 3})
    three = sentences.Task("own", labels=("a", "b", "c"), metrics=("macro_f1",))
    found = sentences.metrics(three, [0, 0, 1, 1], [0, 1, 1, 2])
    assert found == pytest.approx({"macro_f1": (2 / 3 + 1 / 2 + 0) / 3})


def test_the_baseline_answers_the_most_frequent_set_of_labels():
    task = sentences.Task("own", labels=("a", "b"), multi_label=True, metrics=("subset_accuracy",))

    def examples(labels):
        return [Example(i, "x", None, label) for i, label in enumerate(labels)]

    train, dev = examples([(0, 1), (0, 1), (), (0,)]), examples([(0, 1), (1,)])
    assert sentences.majority_baseline(task, train, dev) == {"subset_accuracy": 0.5}


def test_records_of_several_labels(tmp_path, make):
    tables = make(rows(['"b,a"', "a", ""]), kind="labels")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    path = str(tmp_path / "x.tfrecord")
    examples = sorted(tables.examples("train"), key=lambda example: example.key)[:3]
    tokenizer = WordPieceTokenizer(str(tmp_path / "vocab.txt"))
    sentences.write_records(path, tables.task, examples, tokenizer, 8)
    batch = records.parse(tf.constant(records.read(path)), tables.task.schema, 8)
    expected = [[int(i in example.label) for i in range(2)] for example in examples]
    assert batch["label_ids"].numpy().tolist() == expected
