"""SQuAD: windows against the original's, records, decoding, official scores."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.data import records
from convbert_tf.tasks import squad, squad_decoding
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests import goldens
from tests.tasks.squad_data_test import CONTEXT
from tests.tasks.squad_data_test import question as _question
from tests.tasks.squad_data_test import write as _write

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789"]
WORDS += [f"##{char}" for char in "abcdefghijklmnopqrstuvwxyz0123456789"] + list("()-.,?")
WORDS += ["born", "in", "krakow", "painter", "when", "where", "was", "he", "she", "the", "1895"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return WordPieceTokenizer(str(path))


# Windows


@goldens.needs_shared
@pytest.mark.parametrize("version, length, stride", [("v1", 128, 64), ("v2", 384, 128)])
def test_windows_are_those_of_the_original(version, length, stride):
    tokenizer = WordPieceTokenizer(str(goldens.SHARED / "data" / "vocab.txt"))
    examples = squad.read_examples(goldens.path(f"squad_{version}_windows.json"), training=True)
    windows = squad.make_windows(examples, tokenizer, length, stride, 64, training=True)
    lines = goldens.path(f"squad_{version}_windows.features.jsonl").read_text().splitlines()
    for window, golden in zip(windows, map(json.loads, lines), strict=True):
        assert {
            "qid": window.question_id,
            "input_ids": window.input_ids.tolist(),
            "segment_ids": window.segment_ids.tolist(),
            "start_position": window.start_position,
            "end_position": window.end_position,
            "is_impossible": window.is_impossible,
        } == golden
    # The right positions give the official maximum, but for answers that end inside a piece or
    # are longer than 30 tokens: 6 of the 309 questions of version 1.
    answerable = [e for e in examples if not e.is_impossible]
    predictions, _, _ = squad_decoding.decode(windows, _outputs_at_the_answers(windows))
    scores = squad_decoding.evaluate(answerable, predictions)
    assert scores["exact_match"] > 98 and scores["f1"] > 98


def _outputs_at_the_answers(windows, beam=2):
    outputs = _outputs(len(windows), beam)
    for row, window in enumerate(windows):
        outputs["start_top_index"][row, 0] = window.start_position
        outputs["end_top_index"][row, 0, 0] = window.end_position
    return outputs


def _outputs(num_windows, beam):
    """Outputs whose starts and ends are all at [CLS], which is no answer."""
    flat, square = [num_windows, beam], [num_windows, beam, beam]
    return {
        "start_top_log_probs": np.zeros(flat, np.float32),
        "start_top_index": np.zeros(flat, np.int32),
        "end_top_log_probs": np.zeros(square, np.float32),
        "end_top_index": np.zeros(square, np.int32),
        "answerable_logit": np.zeros(num_windows, np.float32),
    }


@pytest.mark.parametrize("num_pieces, room, stride", [(1, 5, 2), (5, 5, 2), (23, 7, 3), (23, 7, 9)])
def test_window_spans_and_max_context(num_pieces, room, stride):
    spans = squad.window_spans(num_pieces, room, stride)
    assert spans[0][0] == 0 and spans[-1][1] == num_pieces
    assert all(end - start <= room for start, end in spans)
    assert all(b - a == min(stride, room) for (a, _), (b, _) in zip(spans, spans[1:], strict=False))
    flags = squad.max_context_flags(spans)
    for piece in range(num_pieces):
        scores = [
            min(piece - start, end - 1 - piece) + 0.01 * (end - start)
            if start <= piece < end
            else -1
            for start, end in spans
        ]
        chosen = [
            i
            for i, (start, end) in enumerate(spans)
            if start <= piece < end and flags[i][piece - start]
        ]
        assert chosen == [scores.index(max(scores))]


def test_of_equal_contexts_the_longer_window_has_the_piece():
    first, second = squad.max_context_flags([(0, 4), (1, 8)])
    assert first.tolist() == [True, True, False, False]
    assert second.tolist() == [False, True, True, True, True, True, True]


def _example(answer=("1895", 23), context=CONTEXT, question="Where was he born?"):
    return squad.SquadExample("1", question, context, (answer,), False)


def test_offsets_point_into_the_context(tokenizer):
    (window,) = squad.make_windows([_example()], tokenizer, 64, max_query_length=8)
    raw = CONTEXT.encode()
    texts = [raw[s:e].decode() for s, e in zip(window.starts, window.ends, strict=True)]
    assert texts == ["He", "was", "born", "in", "Krak\u00f3w", "(", "1895", "-"] + list("1943") + [
        ")",
        ".",
        "The",
        "painter",
    ]
    pieces = window.input_ids[window.context_position : -1]
    assert [WORDS[i] for i in pieces[4:7]] == ["krakow", "(", "1895"]
    assert window.max_context.all() and (window.start_position, window.end_position) == (0, 0)


def _labelled(tokenizer, example, original=False):
    """The text of the labelled tokens, and where it starts in characters."""
    (window,) = squad.make_windows([example], tokenizer, 64, 128, 8, True, original)
    positions = window.start_position, window.end_position
    start, end = (position - window.context_position for position in positions)
    raw = example.context.encode()
    text = raw[window.starts[start] : window.ends[end]].decode()
    return text, len(raw[: window.starts[start]].decode())


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize(
    "answer, expected",
    [
        (("1895", 23), "1895"),  # not the whole of the word (1895-1943).
        (("Krak\u00f3w (1895-1943).", 15), "Krak\u00f3w (1895-1943)."),
        (("pain", 40), "painter"),  # inside a piece
        (("943", 29), "(1895-1943)."),  # the pieces are not those of an answer
        (("The painter", 35), "The  painter"),
        (("born ", 7), "born"),
    ],
)
def test_answer_positions(tokenizer, answer, expected, original):
    assert _labelled(tokenizer, _example(answer), original)[0] == expected


LONG = ("ab" * 10, "ef" * 10)


@pytest.mark.parametrize(
    "context, answer, expected, of_original",
    [
        ("in 20-20 he", ("20", 6), ("20", 6), ("20", 3)),
        ("\u6771cat\u4eac,cat\u6771he", ("cat", 6), ("cat", 6), ("cat", 1)),
        ("\u6771abcd\u4eac", ("bc", 2), ("abcd", 1), ("\u6771abcd\u4eac", 0)),
        ("\u6771\u4eac1895\u4eac", ("1895", 2), ("1895", 2), ("1895", 2)),
        ("cd".join(LONG), ("cd", 20), ("cd", 20), ("cd".join(LONG), 0)),
    ],
)
def test_an_answer_is_labelled_at_its_place(tokenizer, context, answer, expected, of_original):
    """The original takes the first place where the tokens are, or the whole run of characters."""
    example = _example(answer, context)
    assert context.startswith(*answer)
    assert _labelled(tokenizer, example) == expected
    assert _labelled(tokenizer, example, original=True) == of_original


@goldens.needs_shared
def test_a_second_place_in_chinese():
    tokenizer = WordPieceTokenizer(str(goldens.SHARED / "data" / "vocab.txt"))
    path = goldens.SHARED / "faults" / "squad_zh_second.json"
    for example in squad.read_examples(path, training=True):
        assert _labelled(tokenizer, example) == example.answers[0]


def test_answers_without_tokens_are_dropped_and_cut_ones_are_told(tokenizer, capsys):
    examples = [_example(("\u00ad", 2), "a \u00ad b"), _example(("a b c d e", 0), "a b c d e")]
    windows = squad.make_windows(examples, tokenizer, 12, 2, 8, training=True)
    assert {window.context for window in windows} == {"a b c d e"}
    assert not any(window.end_position for window in windows)
    out = capsys.readouterr().out
    assert "1 of 2 questions dropped: the answer has no token (1)" in out
    assert "no window holds whole, trained as if there were none: 1" in out


def test_long_questions_are_cut_and_options_checked(tokenizer):
    example = _example(("c d", 4), question="a b c d e f g h", context="a b c d e f")
    windows = squad.make_windows([example], tokenizer, 10, 2, 4, training=True)
    assert [[WORDS[i] for i in window.input_ids] for window in windows] == [
        ["[CLS]", *"abcd", "[SEP]", *words, "[SEP]"] for words in ("abc", "cde", "ef")
    ]
    # Only the second window holds the whole answer.
    positions = [(window.start_position, window.end_position) for window in windows]
    assert positions == [(0, 0), (6, 7), (0, 0)]
    with pytest.raises(UserError, match="max_seq_length=10"):
        squad.make_windows([example], tokenizer, 10, 2, 64)
    with pytest.raises(UserError, match="doc_stride=0"):
        squad.make_windows([example], tokenizer, 64, 0, 4)


def test_records_hold_the_windows(tmp_path, tokenizer):
    examples = [_example(), squad.SquadExample("2", "Where?", CONTEXT, (), True)]
    windows = squad.make_windows(examples, tokenizer, 16, 4, 8, training=True)
    path = str(tmp_path / "x.tfrecord")
    assert squad.write_records(path, windows) == len(windows) > 4
    batch = records.parse(tf.constant(records.read(path)), records.SQUAD, 16)
    assert batch["example_id"].numpy().tolist() == list(range(len(windows)))
    assert sum(batch["start_positions"].numpy() > 0) in range(1, len(windows))
    for row, window in enumerate(windows):
        length = batch["input_mask"].numpy()[row].sum()
        assert batch["input_ids"].numpy()[row, :length].tolist() == window.input_ids.tolist()
        assert batch["segment_ids"].numpy()[row, :length].tolist() == window.segment_ids.tolist()
        assert batch["start_positions"].numpy()[row] == window.start_position
        assert batch["end_positions"].numpy()[row] == window.end_position
        assert batch["is_impossible"].numpy()[row] == (window.question_id == "2")


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
    assert nbest["2"] == [
        {"text": "", "probability": 1.0, "start_log_prob": 0.0, "end_log_prob": 0.0}
    ]
    for threshold, answer in (1.9, ""), (2.0, "He"):
        found = squad_decoding.decode(windows, outputs, version2=True, null_threshold=threshold)
        assert found[0]["1"] == answer
    with pytest.raises(ValueError, match="rows for"):
        squad_decoding.decode(windows[:1], outputs)


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
