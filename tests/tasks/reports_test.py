"""Reports: what is counted, which mistakes come first, and what people are shown of it."""

import json

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.tasks import reports
from convbert_tf.tasks.sentences import Example, Task
from tests import runs

NAMES = ("bad", "good", "so-so")
#                true class, probabilities
PREDICTED = [
    (0, [0.9, 0.05, 0.05]),
    (0, [0.3, 0.6, 0.1]),  # wrong
    (1, [0.05, 0.05, 0.9]),  # wrong, and surest
    (1, [0.1, 0.8, 0.1]),
    (1, [0.2, 0.7, 0.1]),
]


@pytest.fixture
def found():
    labels, probabilities = zip(*PREDICTED, strict=True)
    texts = [{"text": f"text {i}"} for i in range(len(labels))]
    return reports.of_classes(labels, np.array(probabilities), NAMES, texts)


class Evaluation:
    num_examples, labelled = 5, True

    def __init__(self, found):
        self.found = found

    def score(self, outputs):
        return {"accuracy": 0.6}

    def report(self, outputs):
        return self.found


@pytest.fixture
def report(found):
    return reports.make("films", "dev", Evaluation(found), None, {"accuracy": 0.5})


def test_classes_and_confusion(found):
    assert found["confusion"] == {
        "labels": ["bad", "good", "so-so"],
        "matrix": [[1, 1, 0], [0, 2, 1], [0, 0, 0]],
    }
    bad, good, never = found["classes"]
    assert (bad["precision"], bad["recall"], bad["support"]) == (1, 0.5, 2)
    assert good["precision"] == good["recall"] == good["f1"] == pytest.approx(2 / 3)
    assert (never["f1"], never["support"], never["predicted"]) == (0, 0, 1)


def test_an_example_goes_by_its_key():
    keys, logits = ["x7", 3, None], np.array([[1.0, 0.0]] * 3)
    examples = [Example(i, "a text", None, 1, key) for i, key in enumerate(keys)]
    mistakes = reports.of_sentences(Task("films"), examples, [1, 1, 1], logits)["mistakes"]
    assert [each["example"] for each in mistakes] == ["x7", 3, 2]
    assert list(mistakes[0]) == ["example", "text", "label", "prediction", "probability"]


def test_the_surest_mistakes_come_first(found):
    first, second = found["mistakes"]
    assert first == {
        "example": 2,
        "text": "text 2",
        "label": "good",
        "prediction": "so-so",
        "probability": 0.9,
    }
    assert second["example"] == 1


def test_a_regression_shows_what_is_furthest_off():
    texts = [{"text_a": str(i), "text_b": ""} for i in range(30)]
    labels, predictions = np.linspace(0, 5, 30), np.full(30, 1.0)
    mistakes = reports.of_scores(labels, predictions, texts)["mistakes"]
    assert len(mistakes) == reports.NUM_MISTAKES
    assert mistakes[0]["error"] == 4 and mistakes[0]["example"] == 29
    errors = [each["error"] for each in mistakes]
    assert errors == sorted(errors, reverse=True)


def test_several_labels_a_text():
    task = Task("topics", labels=("a", "b"), multi_label=True)
    examples = [Example(i, f"t{i}", None, label) for i, label in enumerate([(0,), (0, 1), ()])]
    labels = np.array([[1, 0], [1, 1], [0, 0]], bool)
    logits = np.array([[3.0, -3.0], [3.0, -2.0], [5.0, -9.0]], np.float32)
    found = reports.of_sentences(task, examples, labels, logits)
    assert [(each["support"], each["predicted"]) for each in found["classes"]] == [(2, 3), (1, 0)]
    assert [(m["example"], m["label"], m["prediction"]) for m in found["mistakes"]] == [
        (2, "", "a"),
        (1, "a, b", "a"),
    ]
    assert "confusion" not in found


def test_a_split_without_labels_is_told_so():
    class Unlabelled(Evaluation):
        labelled = False

    report = reports.make("films", "test", Unlabelled(None), None)
    assert report["metrics"] == {}
    assert reports.brief(report) == [
        "films test, 5 examples: predicted; the split has no labels, so there are no scores."
    ]
    assert "has no labels" in reports.markdown(report)


def test_what_is_written_and_shown(report, tmp_path):
    report["mistakes"][0]["text"] = "two\nlines | and a bar"
    report["right"] = [{"question": "?", "context": "it is **here**"}]  # of questions
    with tf.summary.create_file_writer(str(tmp_path)).as_default(step=3):
        reports.write(report, tmp_path)
    assert json.loads((tmp_path / "dev.json").read_text()) == report
    page = (tmp_path / "dev.md").read_text()
    assert "| accuracy | 0.6 | 0.5 |" in page and "| bad | 1 | 1 | 0 |" in page
    assert "| 2 | two lines \\| and a bar | good | so-so | 0.9 |" in page
    assert "## Right, the least sure\n\n| question | context |" in page
    scalars, others = runs.read_events(tmp_path)
    assert not scalars and others == {"classes/dev", "mistakes/dev", "confusion/dev", "right/dev"}
    lines = reports.brief(report)
    assert lines[0] == "films dev, 5 examples: accuracy 0.6 (baseline 0.5)"
    assert lines[-1].startswith("wrong: example: 1  text: text 1")


def test_of_many_classes_the_frequent_confusions_are_shown(report):
    names = [f"c{i}" for i in range(40)]
    matrix = np.eye(40, dtype=int)
    matrix[3, 5], matrix[7, 2] = 4, 9
    report["confusion"] = {"labels": names, "matrix": matrix.tolist()}
    page = reports.markdown(report)
    assert "| c7 | c2 | 9 |\n| c3 | c5 | 4 |" in page and "| c39 |" not in page
    assert not any("c39" in line for line in reports.brief(report))
