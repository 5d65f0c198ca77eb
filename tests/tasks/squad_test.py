"""SQuAD: windows against the original's, records."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.data import records
from convbert_tf.tasks import squad, squad_decoding
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests import goldens
from tests.tasks.squad_data_test import CONTEXT

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


def _max_context_flags(spans):
    """For each window (start, end), piece by piece, whether it is BERT's choice for the piece."""
    num_pieces = spans[-1][1]
    at = np.arange(num_pieces)
    scores = np.full([len(spans), num_pieces], -np.inf)
    for score, (start, end) in zip(scores, spans, strict=True):
        context = np.minimum(at[start:end] - start, end - 1 - at[start:end])
        score[start:end] = context + 0.01 * (end - start)
    best = scores.argmax(axis=0)
    return [best[start:end] == i for i, (start, end) in enumerate(spans)]


def _cuts():
    """All small ones, some of usual sizes, and some whose last window ties with one before it.

    A tie takes a window that is shorter by a multiple of 100: a hundredth of it is a whole piece.
    """
    small = itertools.product(range(14), range(1, 7), range(1, 8))
    rng = np.random.default_rng(0)
    usual = rng.integers([1, 1, 1], [3000, 500, 300], [200, 3])
    ties = [(300 + 7 + 50 * i, 300, stride) for i in range(20) for stride in (50, 100, 128, 200)]
    return [*small, *map(tuple, usual.tolist()), *ties]


def test_windows_with_most_context_are_those_of_berts_rule():
    for num_pieces, room, stride in _cuts():
        spans = squad.window_spans(num_pieces, room, stride)
        assert spans[0][0] == 0 and spans[-1][1] == num_pieces
        assert all(end - start == room for start, end in spans[:-1])
        starts = [start for start, _ in spans]
        assert starts == [i * min(stride, room) for i in range(len(spans))]
        cut, flags = squad.Cut(num_pieces, room, stride), _max_context_flags(spans)
        found = cut.most_context(np.arange(num_pieces))
        for number, (start, end) in enumerate(spans):
            np.testing.assert_array_equal(found[start:end] == number, flags[number])


def test_windows_of_a_context_share_its_pieces(tokenizer):
    examples = [
        dataclasses.replace(_example(context="a b c d e " * 40), question_id=str(i))
        for i in range(3)
    ]
    windows = squad.make_windows(examples, tokenizer, 20, 4, 8)
    assert len(windows) > 100
    assert all(window.pieces is windows[0].pieces for window in windows)
    flags = _max_context_flags([window.cut.span(window.number) for window in windows[:40]])
    # Only those of one question, cut short: the last of them are not its last.
    for window, expected in zip(windows[:30], flags, strict=False):
        np.testing.assert_array_equal(window.max_context, expected)


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
