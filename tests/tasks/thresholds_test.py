"""Questions as a family of tasks: thresholds of SQuAD 2.0, and what is written with them."""

import json
import sys

import numpy as np
import pytest
from official.nlp.tools import squad_evaluate_v2_0

from convbert_tf.config import TaskConfig
from convbert_tf.console import UserError
from convbert_tf.tasks.questions import Questions
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests.tasks.squad_data_test import CONTEXT
from tests.tasks.squad_data_test import question as _question
from tests.tasks.squad_data_test import write as _write
from tests.tasks.squad_test import WORDS


@pytest.fixture
def make(tmp_path):
    """A function of settings: the family of a dev set of 30 questions, half without an answer."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    questions = [_question(str(i), [("Krak\u00f3w", 15)], False) for i in range(15)]
    questions += [_question(str(i), [], True) for i in range(15, 30)]
    _write(tmp_path / "dev.json", CONTEXT, *questions)

    def make(**settings):
        config = TaskConfig(
            name="squad_v2",
            data_dir=str(tmp_path),
            max_seq_length=32,
            max_query_length=8,
            **settings,
        )
        return Questions(config, WordPieceTokenizer(str(tmp_path / "vocab.txt")))

    return make


def _outputs(num_windows, beam=9):
    """Of a model that knows a little of both answers and questions without one."""
    rng = np.random.default_rng(0)
    flat, square = (num_windows, beam), (num_windows, beam, beam)
    starts, ends = rng.integers(7, 20, flat), rng.integers(7, 20, square)
    starts[::2, 0] = ends[::2, 0, 0] = 11  # Krakow
    log_probs = [-rng.random(shape).astype(np.float32) for shape in (flat, square)]
    log_probs[0][::2, 0] = log_probs[1][::2, 0, 0] = 0
    return {
        "start_top_log_probs": log_probs[0],
        "start_top_index": starts,
        "end_top_log_probs": log_probs[1],
        "end_top_index": ends,
        "answerable_logit": np.float32(rng.normal(size=num_windows) - 4 + np.arange(30) // 15),
    }


@pytest.mark.parametrize("setting", ["f1", "exact", "none", "-3.9"])
def test_what_is_written_has_the_scores_that_are_reported(make, tmp_path, setting):
    family = make(null_threshold=setting)
    evaluation = family.evaluation("dev", str(tmp_path / "records"))
    outputs = _outputs(len(evaluation.windows))
    scores = evaluation.score(outputs)
    evaluation.write(outputs, str(tmp_path / "out"))
    names = ("predictions", "null_odds", "nbest_predictions")
    predictions, null_odds, nbest = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8")) for name in names
    )
    data = json.loads((tmp_path / "dev.json").read_text())["data"]
    official = squad_evaluate_v2_0.evaluate(data, predictions)
    for name in ("f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"):
        assert scores[name] == official[name]
    assert scores["exact_match"] == official["exact"]
    answers = {key: found[0]["text"] for key, found in nbest.items()}
    official = squad_evaluate_v2_0.evaluate(data, answers, null_odds)
    for name in ("exact", "exact_thresh", "f1", "f1_thresh"):
        assert scores[f"best_{name}"] == official[f"final_{name}"]
    for name in ("pr_exact_ap", "pr_f1_ap", "pr_oracle_ap"):
        assert scores[name] == official[name]
    if setting in ("f1", "exact"):
        assert 0 < sum(text == "" for text in predictions.values()) < 30
        reached = {"f1": "f1", "exact": "exact_match"}[setting]
        assert scores[reached] == pytest.approx(scores[f"best_{setting}"], abs=1e-9)
    threshold = {"none": None, "-3.9": -3.9}.get(setting, scores.get("null_threshold"))
    assert scores.get("null_threshold") == threshold == family.serving(scores).get("null_threshold")
    picture = (tmp_path / "out" / "precision_recall.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    evaluation = make().evaluation("dev", str(tmp_path / "records"))
    evaluation.write(_outputs(len(evaluation.windows)), str(tmp_path / "out"))
    assert "no picture of precision and recall: matplotlib is missing" in capsys.readouterr().out
    assert not (tmp_path / "out" / "precision_recall.png").exists()


def test_the_baseline_of_version_2_answers_nothing_where_that_is_better(make):
    scores = make().baseline("dev")
    assert scores["exact_match"] == scores["f1"] == 50 and scores["NoAns_f1"] == 100


def test_files_without_labels_are_answered_by_the_model_alone(make, tmp_path):
    _write(tmp_path / "dev.json", CONTEXT, *[_question(str(i)) for i in range(30)])
    evaluation = make().evaluation("dev", str(tmp_path / "records"))
    evaluation.write(_outputs(len(evaluation.windows)), str(tmp_path / "out"))
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text("utf-8"))
    assert all(predictions.values())


@pytest.mark.parametrize("setting", ["F1", "", "nan", "inf", "1e999", "-1,5"])
def test_settings_that_are_no_threshold(make, setting):
    with pytest.raises(UserError, match="null_threshold must be f1, exact, none or a number"):
        make(null_threshold=setting)
