"""SQuAD: reading, windows against the original's, records."""

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

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789"]
WORDS += [f"##{char}" for char in "abcdefghijklmnopqrstuvwxyz0123456789"] + list("()-.,?")
WORDS += ["born", "in", "krakow", "painter", "when", "where", "was", "he", "she", "the", "1895"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return WordPieceTokenizer(str(path))


def _question(question_id, answers=(), is_impossible=None, question="Where was he born?"):
    qa = {"id": question_id, "question": question}
    qa["answers"] = [{"text": text, "answer_start": start} for text, start in answers]
    return qa if is_impossible is None else qa | {"is_impossible": is_impossible}


def _write(path, context, *questions):
    data = [{"title": "x", "paragraphs": [{"context": context, "qas": list(questions)}]}]
    path.write_text(json.dumps({"version": "x", "data": data}), encoding="utf-8")
    return path


CONTEXT = "He was born in Krak\u00f3w (1895-1943).\u202fThe  painter"


# Reading


def test_read_examples(tmp_path):
    path = _write(
        tmp_path / "a.json",
        CONTEXT,
        _question("1", [("Krak\u00f3w", 15)]),
        _question("2", [], True),
    )
    examples = squad.read_examples(path, training=True)
    assert examples[0] == squad.SquadExample(
        "1", "Where was he born?", CONTEXT, (("Krak\u00f3w", 15),), False
    )
    assert examples[1].is_impossible and not examples[1].answers
    with pytest.raises(UserError, match="question 2 has no answer: SQuAD 2.0 wants"):
        squad.read_examples(path, training=True, version2=False)
    assert not squad.read_examples(path, training=False, version2=False)[1].is_impossible


def test_answers_that_are_not_in_the_text_are_dropped_and_counted(tmp_path, capsys):
    path = _write(
        tmp_path / "a.json",
        CONTEXT,
        _question("found but for case and spacing", [("THE painter", 35)]),
        _question("part of a word", [("1895", 23)]),
        _question("elsewhere", [("Krak\u00f3w", 3)]),
        _question("beyond the end", [("painter in Krak\u00f3w", 40)]),
        _question("empty", [(" ", 2)]),
    )
    kept = squad.read_examples(path, training=True)
    assert [e.question_id for e in kept] == ["found but for case and spacing", "part of a word"]
    assert "3 of 5 questions dropped" in capsys.readouterr().out
    assert len(squad.read_examples(path, training=False)) == 5
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "a.json is not JSON"),
        ("[]", "a.json: 'data' is missing"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "'context' is missing, or not a JSON string"),
        ('{"data": []}', "holds no questions"),
        (_question("7", [("He", 99)]), "a.json, question 7: answer_start 99 is outside"),
        (_question("7", [("He", -1)]), "question 7: answer_start -1 is outside"),
        (
            _question("7", [("He", True)]),
            "question 7: 'answer_start' is missing, or not a JSON int",
        ),
        (_question("7", [("He", 0)], "false"), "question 7: 'is_impossible' is missing, or not a "),
        (_question("7", [("He", 0)], 0), "'is_impossible' is missing, or not a JSON boolean"),
        (_question("7", [("He", "0")]), "question 7: 'answer_start' is missing, or not a JSON int"),
        (_question("7", [(None, 0)]), "question 7: 'text' is missing"),
        (_question(7, [("He", 0)]), "a.json: 'id' is missing"),
        ({"id": "7", "question": "Who?"}, "question 7: 'answers' is missing"),
        ({"id": "7", "answers": [{"text": "He", "answer_start": 0}]}, "question 7: 'question' is"),
        (_question("7", [("He", 0)], question="\ud800"), "half a surrogate pair"),
    ],
)
def test_broken_json_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "a.json"
    if isinstance(content, str):
        path.write_text(content)
    else:
        _write(path, CONTEXT, content)
    with pytest.raises(UserError, match=message):
        squad.read_examples(path, training=True)


def test_missing_file_and_questions_twice(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        squad.read_examples(tmp_path / "no.json", training=False)
    path = _write(tmp_path / "a.json", CONTEXT, _question("1"), _question("1"))
    with pytest.raises(UserError, match="question 1 stands there twice"):
        squad.read_examples(path, training=False)


def test_read_tfds(tmp_path):
    pytest.importorskip("importlib_resources")  # TFDS needs it without saying so
    import tensorflow_datasets as tfds

    builder = tfds.builder("squad/v2.0", data_dir=tmp_path)
    rows = [
        {
            "id": "1",
            "question": "Where?",
            "answers": {"text": ["Krak\u00f3w"], "answer_start": [15]},
        },
        {"id": "2", "question": "Why?", "answers": {"text": [], "answer_start": []}},
    ]
    for row in rows:
        row |= {"title": "x", "context": CONTEXT, "is_impossible": row["id"] == "2"}
        row["plausible_answers"] = {"text": [], "answer_start": []}
    tfds.dataset_builders.store_as_tfds_dataset(
        "squad",
        builder.version,
        builder.info.features,
        {"validation": [(row["id"], row) for row in rows]},
        config=tfds.core.BuilderConfig(name="v2.0", version=builder.version),
        data_dir=tmp_path,
    )
    examples = squad.read_tfds("squad/v2.0", "dev", training=True, data_dir=tmp_path)
    assert sorted(examples, key=lambda example: example.question_id) == [
        squad.SquadExample("1", "Where?", CONTEXT, (("Krak\u00f3w", 15),), False),
        squad.SquadExample("2", "Why?", CONTEXT, (), True),
    ]
    with pytest.raises(UserError, match="cannot give squad/v2.0, split 'train'"):
        squad.read_tfds("squad/v2.0", "train", training=True, data_dir=tmp_path)


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


@pytest.mark.parametrize(
    "answer, expected",
    [
        (("1895", 23), "1895"),  # not the whole of the word (1895-1943).
        (("Krak\u00f3w (1895-1943).", 15), "Krak\u00f3w (1895-1943)."),
        (("pain", 40), "painter"),  # inside a piece
        (("The painter", 35), "The  painter"),
        (("born ", 7), "born"),
    ],
)
def test_answer_positions(tokenizer, answer, expected):
    (window,) = squad.make_windows([_example(answer)], tokenizer, 64, 128, 8, training=True)
    start, end = (
        position - window.context_position
        for position in (window.start_position, window.end_position)
    )
    assert CONTEXT.encode()[window.starts[start] : window.ends[end]].decode() == expected


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
