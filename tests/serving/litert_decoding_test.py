"""Windows in NumPy against those of the graph, and words and answers from given outputs."""

import random

import numpy as np
import tensorflow as tf

from convbert_tf.serving import litert_decoding as decoding
from convbert_tf.tasks.squad import window_spans
from convbert_tf.tasks.tokens import _owned
from convbert_tf.text import windows as windowing
from convbert_tf.text.plain_tokenization import Pieces


def sizes(count, seed):
    """(number of pieces, room, stride), the stride shorter and longer than the room."""
    rng = random.Random(seed)
    yield from ((0, 5, 2), (5, 5, 2), (6, 5, 9), (1, 1, 1))
    for _ in range(count):
        yield rng.randint(0, 90), rng.randint(1, 30), rng.randint(1, 40)


def test_windows_are_the_graphs():
    cases = list(sizes(200, seed=0))
    graphs = [
        {name: values.numpy() for name, values in windowing.cut(*map(tf.constant, each)).items()}
        for each in ([np.array([v], np.int64) for v in case] for case in cases)
    ]
    for case, graph in zip(cases, graphs, strict=True):
        found = list(decoding.windows(*case))
        assert [w.number for w in found] == graph["number"].tolist()
        assert [w.start for w in found] == graph["start"].tolist()
        assert [w.end - w.start for w in found] == graph["length"].tolist()
    assert max(len(graph["number"]) for graph in graphs) > 30


def test_each_piece_is_answered_for_once_by_the_window_that_is_trained_on_it():
    for num_pieces, room, stride in sizes(300, seed=1):
        found = list(decoding.owned_windows(num_pieces, room, stride))
        own = [(first, last) for _, _, first, last in found]
        assert own == _owned(window_spans(num_pieces, room, stride))
        assert [i for first, last in own for i in range(first, last)] == list(range(num_pieces))
        assert all(start <= first <= last <= end for start, end, first, last in found)


def test_the_window_with_most_context_is_the_graphs():
    for num_pieces, room, stride in sizes(60, seed=2):
        positions = np.arange(max(num_pieces, 1), dtype=np.int64)
        several = [tf.fill(positions.shape, tf.constant(v, tf.int64)) for v in (num_pieces, room)]
        position = tf.constant(positions)
        expected = windowing.most_context(position, *several, tf.constant(stride, tf.int64))
        window = next(decoding.windows(num_pieces, room, stride))
        found = decoding._most_context(positions, window)
        assert found.tolist() == expected.numpy().tolist(), (num_pieces, room, stride)


def test_the_best_answer_is_the_first_of_the_best():
    """Of two windows with equal scores; a span that is too long, or ends first, is none."""
    pieces = Pieces([7, 8, 9, 7], [0, 3, 6, 9], [2, 5, 8, 11])
    decode = decoding.Answers({"max_answer_length": 2, "answerable": True, "null_threshold": 0.0})

    def outputs(null_odds, starts, ends, log_probs):
        return {
            "offset": 3,
            "start_top_index": np.array([starts]) + 3,
            "end_top_index": np.array([[ends] * len(starts)]) + 3,
            "start_top_log_probs": np.array([log_probs], np.float32),
            "end_top_log_probs": np.zeros([1, len(starts), len(ends)], np.float32),
            "answerable_logit": np.array([null_odds], np.float32),
        }

    (window,) = decoding.windows(4, 10, 5)
    given = [(window, outputs(-1.0, [3, 0, 1], [0, 2], [-0.1, -0.2, -0.3]))]
    answer = decode(b"aa bb cc \xffd", pieces, given)
    # From piece 0 to 2 is too long, so the best is piece 0 alone.
    assert (answer["answer_bytes"], answer["score"]) == (b"aa", np.float32(-0.2))
    assert (answer["start"], answer["end"], answer["null_odds"]) == (0, 2, -1.0)
    last = decode(b"aa bb cc \xffd", pieces, [(window, outputs(-1.0, [3], [3], [-1.0]))])
    assert last["answer"] == b"\xef\xbf\xbdd" and last["answer_bytes"] == b"\xffd"
    assert (last["start_char"], last["end_char"]) == (9, 11)
    withheld = decode(b"aa bb cc \xffd", pieces, [(window, outputs(0.5, [3], [3], [-1.0]))])
    assert withheld["answer"] == b"" and withheld["start"] == withheld["end"] == 9
    none = decode(b"aa bb cc \xffd", pieces, [(window, outputs(-1.0, [3], [2], [-1.0]))])
    assert (none["score"], none["start"], none["end"]) == (np.float32(-1e9), 0, 0)


def test_entities_begin_and_end_as_their_tags_say():
    entity = {"kind": "x", "begins": False, "closes": False}
    labels = ["O", "I-x", "B-x", "E-x", "I-y"]
    entities = [None, entity, entity | {"begins": True}, entity | {"closes": True}]
    decode = decoding.Tags(labels, [*entities, entity | {"kind": "y"}])
    tags = [1, 1, 2, 3, 1, 0, 1, 4]
    pieces = Pieces([5] * 9, list(range(0, 18, 2)), list(range(1, 19, 2)))
    probabilities = np.eye(5)[[*tags[:1], 0, *tags[1:]]] * 0.9
    begins = [True, False, *[True] * 7]  # the second piece goes on with the first word
    text = b"abcdefghijklmnopqr"
    outputs = decode.joined([decode(text, pieces, begins, probabilities), {}])
    assert outputs["num_words"].tolist() == [8, 0] and outputs["num_entities"].tolist() == [5, 0]
    assert outputs["word"][0].tolist()[:2] == [b"abc", b"e"]
    assert outputs["entity"][0].tolist() == [b"abcde", b"ghi", b"k", b"o", b"q"]
    assert outputs["entity_label"][0].tolist() == [b"x", b"x", b"x", b"x", b"y"]
    np.testing.assert_allclose(outputs["entity_score"][0], 0.9, rtol=1e-6)
    assert not outputs["entity"][1].any() and not outputs["word_end"][1].any()
