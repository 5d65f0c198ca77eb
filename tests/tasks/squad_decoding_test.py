"""SQuAD: answers of a model's outputs, official scores, thresholds, files."""

import json
import pathlib

import numpy as np
import pytest

from convbert_tf.console import UserError
from convbert_tf.tasks import squad, squad_decoding
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests.tasks.squad_data_test import CONTEXT
from tests.tasks.squad_data_test import question as _question
from tests.tasks.squad_data_test import write as _write
from tests.tasks.squad_test import WORDS, _example, _outputs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return WordPieceTokenizer(str(path))


# Decoding


def _decode_as_the_original(windows, outputs, max_answer_length, n_best_size):
    """One question's n-best texts and scores, candidate by candidate."""
    found = []
    for row, window in enumerate(windows):
        pieces = range(window.context_position, window.context_position + len(window.starts))
        for i, start in enumerate(outputs["start_top_index"][row]):
            for j, end in enumerate(outputs["end_top_index"][row, i]):
                if start not in pieces or end not in pieces or end < start:
                    continue
                if not window.max_context[start - window.context_position]:
                    continue
                if end - start + 1 > max_answer_length:
                    continue
                score = (
                    outputs["start_top_log_probs"][row, i] + outputs["end_top_log_probs"][row, i, j]
                )
                first = window.starts[start - window.context_position]
                last = window.ends[end - window.context_position]
                found.append((score, window.context.encode()[first:last].decode()))
    best = {}
    for score, text in sorted(found, key=lambda item: item[0], reverse=True):
        best.setdefault(text, score)
    return list(best.items())[:n_best_size]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("repeats, num_windows", [(1, 1), (3, 5)])
def test_decode_chooses_as_the_original(tokenizer, seed, repeats, num_windows):
    example = _example(context="a b a c d b e " * repeats)
    windows = squad.make_windows([example], tokenizer, 16, 4, 8)
    assert len(windows) == num_windows
    rng = np.random.default_rng(seed)
    outputs = {
        name: rng.integers(5, 17, values.shape)
        if name.endswith("index")
        # Halves, so that scores tie.
        else np.float32(-rng.integers(0, 9, values.shape) / 2)
        for name, values in _outputs(len(windows), 9).items()
    }
    predictions, nbest, _ = squad_decoding.decode(windows, outputs, 3, 5)
    expected = _decode_as_the_original(windows, outputs, 3, 5)
    assert expected and predictions == {"1": expected[0][0]}
    assert [entry["text"] for entry in nbest["1"]] == [text for text, _ in expected]
    scores = np.array([score for _, score in expected])
    found = [entry["start_log_prob"] + entry["end_log_prob"] for entry in nbest["1"]]
    np.testing.assert_allclose(found, scores)
    probabilities = [entry["probability"] for entry in nbest["1"]]
    np.testing.assert_allclose(probabilities, np.exp(scores) / np.exp(scores).sum(), rtol=1e-5)


def test_no_answer(tokenizer):
    examples = [_example(), squad.SquadExample("2", "?", "\n", (), True)]
    windows = squad.make_windows(examples, tokenizer, 16, 4, 8)
    assert windows[-1].question_id == "2" and len(windows[-1].input_ids) == 4
    assert squad.make_windows(examples[1:], tokenizer, 16, 4, 8, training=True) == []
    outputs = _outputs(len(windows), 2)
    outputs["start_top_index"][0, 1] = outputs["end_top_index"][0, 1, 0] = 7
    outputs["answerable_logit"][:] = 3
    outputs["answerable_logit"][1] = 2
    predictions, nbest, null_odds = squad_decoding.decode(windows, outputs, version2=True)
    assert predictions == {"1": "He", "2": ""} and null_odds == {"1": 2.0, "2": 3.0}
    places = dict.fromkeys(["start_char", "end_char", "start_byte", "end_byte"], 0)
    assert nbest["2"] == [
        {"text": "", "probability": 1.0, "start_log_prob": 0.0, "end_log_prob": 0.0} | places
    ]
    for threshold, answer in (1.9, ""), (2.0, "He"):
        found = squad_decoding.decode(windows, outputs, version2=True, null_threshold=threshold)
        assert found[0]["1"] == answer
    with pytest.raises(ValueError, match="rows for"):
        squad_decoding.decode(windows[:1], outputs)


@pytest.mark.parametrize(
    "context", ["a b c d " * 9, "M\u00fcnchen, \U0001f642 \u6771\u4eac e\u0301t\u00e9! " * 5]
)
def test_places_of_answers_in_characters_and_in_bytes(tokenizer, context):
    windows = squad.make_windows([_example(context=context)], tokenizer, 16, 4, 8)
    rng = np.random.default_rng(0)
    outputs = {
        name: rng.integers(5, 16, values.shape) if name.endswith("index") else values
        for name, values in _outputs(len(windows), 9).items()
    }
    _, nbest, _ = squad_decoding.decode(windows, outputs)
    assert len(nbest["1"]) > 9
    for entry in nbest["1"]:
        assert context[entry["start_char"] : entry["end_char"]] == entry["text"] != ""
        assert context.encode()[entry["start_byte"] : entry["end_byte"]].decode() == entry["text"]
    json.dumps(nbest)  # plain numbers


# Scores and files


def test_evaluate_version_1(tmp_path):
    path = _write(
        tmp_path / "a.json",
        CONTEXT,
        _question("1", [("Krak\u00f3w", 15), ("in Krak\u00f3w", 12)]),
        _question("2", [("The painter", 35)]),
        _question("3", [("1895", 23)]),
    )
    predictions = {"1": "In Krak\u00f3w!", "2": "painter born", "3": "1943"}
    scores = squad_decoding.evaluate(path, predictions)
    assert scores == pytest.approx({"exact_match": 100 / 3, "f1": (100 + 200 / 3) / 3, "total": 3})
    assert squad_decoding.evaluate(squad.read_examples(path, training=False), predictions) == scores
    with pytest.raises(UserError, match="2 of 3 questions have no prediction, the first is 2"):
        squad_decoding.evaluate(path, {"1": ""})


def test_evaluate_version_2(tmp_path):
    questions = [_question("1", [("Krak\u00f3w", 15)], False), _question("2", [], True)]
    questions += [_question("3", [("1895", 23)], False), _question("4", [], True)]
    path = _write(tmp_path / "a.json", CONTEXT, *questions)
    predictions = {"1": "Krak\u00f3w", "2": "He", "3": "1895", "4": "painter"}
    null_odds = {"1": -2.0, "2": 0.5, "3": 0.1, "4": 4.0}
    scores = squad_decoding.evaluate(path, predictions, null_odds)
    assert (scores["exact_match"], scores["HasAns_f1"], scores["NoAns_f1"]) == (50, 100, 0)
    assert scores["best_exact"] == scores["best_f1"] == 100
    assert scores["best_f1_thresh"] == 0.1
    # A threshold cannot mend what the odds confuse.
    null_odds["2"] = -3.0
    assert squad_decoding.evaluate(path, predictions, null_odds)["best_f1"] == 75


def _random_answers(seed, num_questions=40, ties=False):
    """Examples, half of them without an answer, predictions and null odds that know little."""
    rng = np.random.default_rng(seed)
    examples, predictions, null_odds = [], {}, {}
    for number in range(num_questions):
        key, answers = str(number), (("the old town", 0), ("town", 8))[: rng.integers(1, 3)]
        impossible = bool(rng.integers(2))
        examples.append(
            squad.SquadExample(key, "?", "the old town", () if impossible else answers, impossible)
        )
        predictions[key] = str(rng.choice(["the old town", "old", "new", "town"]))
        odds = rng.normal() + impossible - 9
        null_odds[key] = float(np.float32(round(odds) if ties else odds))
    return examples, predictions, null_odds


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("metric", ["f1", "exact"])
def test_the_threshold_gives_the_best_score_when_it_is_applied(metric, ties):
    name = {"f1": "f1", "exact": "exact_match"}[metric]
    for seed in range(4):
        given = _random_answers(seed, ties=ties)
        _, predictions, null_odds = given
        threshold = squad_decoding.best_null_threshold(*given, metric)
        scores = squad_decoding.evaluate(*given, threshold)
        # The official script on the answers that are left says the same.
        answers = {k: "" if null_odds[k] > threshold else predictions[k] for k in predictions}
        alone = squad_decoding.evaluate(given[0], answers)
        assert {k: scores[k] for k in alone} == alone
        odds = sorted(null_odds.values())
        others = [odds[0] - 1, *odds]
        reached = [squad_decoding.evaluate(*given, other)[name] for other in others]
        assert scores[name] == pytest.approx(max(reached), abs=1e-9)
        if not ties:  # between equal odds the script supposes thresholds that cannot be
            assert scores[name] == pytest.approx(scores[f"best_{metric}"], abs=1e-9)
            assert threshold not in odds and np.float32(threshold) == threshold


def test_thresholds_that_answer_nothing_or_everything():
    examples, predictions, null_odds = _random_answers(0)
    nothing = squad_decoding.evaluate(examples, dict.fromkeys(predictions, ""))["f1"]
    wrong = dict.fromkeys(predictions, "wrong")
    threshold = squad_decoding.best_null_threshold(examples, wrong, null_odds)
    assert threshold == min(null_odds.values()) - 1
    scores = squad_decoding.evaluate(examples, wrong, null_odds, threshold)
    assert scores["f1"] == scores["best_f1"] == nothing
    # All odds are below 0, yet the official script says 0, which gives the worst score.
    assert scores["best_f1_thresh"] == 0.0 > max(null_odds.values())
    assert squad_decoding.evaluate(examples, wrong, null_odds, 0.0)["f1"] == 0
    answered = [example for example in examples if example.answers]
    threshold = squad_decoding.best_null_threshold(answered, predictions, null_odds)
    odds = [null_odds[example.question_id] for example in answered]
    assert threshold == max(odds) + 1
    # Between two numbers of float32 there may be none.
    near = float(np.nextafter(np.float32(-1.2), np.float32(0)))
    odds = {e.question_id: near if e.is_impossible else float(np.float32(-1.2)) for e in examples}
    right = {e.question_id: "the old town" if e.answers else "wrong" for e in examples}
    assert squad_decoding.best_null_threshold(examples, right, odds) == np.float32(-1.2)


@pytest.mark.parametrize("ties", [False, True])
def test_precision_and_recall_are_those_of_the_official_script(tmp_path, ties):
    given = _random_answers(3, ties=ties)
    curves = squad_decoding.precision_recall(*given)
    scores = squad_decoding.evaluate(*given)
    for name, (recalls, precisions) in curves.items():
        average = 100 * np.sum(np.diff(recalls) * precisions[1:])
        assert average == pytest.approx(scores[f"pr_{name}_ap"], abs=1e-9)
        assert 0 < average < 100
    assert curves["oracle"][0][-1] == 1
    impossible = [example for example in given[0] if example.is_impossible]
    assert squad_decoding.precision_recall(impossible, *given[1:]) == {}


def test_span_baseline():
    examples = [_example()]
    assert squad_decoding.span_baseline(examples) == {"1": "He was"}
    spans = {squad_decoding.span_baseline(examples, seed=seed)["1"] for seed in range(50)}
    words = CONTEXT.split()
    assert spans == {" ".join(words[i : i + 2]) for i in range(len(words) - 1)}


def test_write_predictions(tmp_path):
    folder = tmp_path / "new"
    paths = squad_decoding.write_predictions(folder, {"1": "Krak\u00f3w"}, {"1": []}, {"1": -0.5})
    assert sorted(map(str, folder.iterdir())) == sorted(paths)
    assert json.loads((folder / "predictions.json").read_text("utf-8")) == {"1": "Krak\u00f3w"}
    assert json.loads((folder / "null_odds.json").read_text()) == {"1": -0.5}
    paths = squad_decoding.write_predictions(tmp_path / "v1", {"1": ""}, {"1": []}, {})
    assert [pathlib.Path(p).name for p in paths] == ["predictions.json", "nbest_predictions.json"]
