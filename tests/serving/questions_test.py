"""Question answerers as they are served: long contexts, places of answers, thresholds."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import serving
from convbert_tf.console import UserError
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer
from convbert_tf.serving import inference
from convbert_tf.tasks import squad
from convbert_tf.text import windows
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests.serving.saved_model_test import MODEL, QUESTIONS, VOCAB, WINDOWS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    vocab_file = folder / "vocab.txt"
    vocab_file.write_text("\n".join(VOCAB) + "\n")
    tf.keras.utils.set_random_seed(3)
    model = QuestionAnswerer(ConvBertEncoder(MODEL), answerable=True)
    options = WINDOWS | {"null_threshold": -0.5}
    model.save_to_preset(str(folder / "preset"), vocab_file=str(vocab_file), **options)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return WordPieceTokenizer(str(folder / "vocab.txt"))


def test_any_number_of_windows_gives_the_same_answers(folder, tokenizer, monkeypatch):
    model = presets.load(str(folder / "preset"))
    questions, contexts = (tf.constant(texts) for texts in zip(*QUESTIONS, strict=True))
    found = []
    for at_once in (1, 100, 100_000):
        monkeypatch.setattr(inference, "_TOKENS_AT_ONCE", at_once)
        server = serving.QuestionAnswererServer(model, tokenizer, **WINDOWS)
        found.append(server.serve(question=questions, context=contexts))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0]["answer"], other["answer"])
        np.testing.assert_allclose(found[0]["score"], other["score"], rtol=1e-5, atol=1e-5)


def test_windows_with_most_context_are_those_of_squad():
    rng = np.random.default_rng(0)
    lengths = rng.integers([1, 1, 1], [3000, 500, 300], [100, 3]).tolist()
    ties = [(307 + 50 * i, 300, stride) for i in range(20) for stride in (50, 100, 128, 200)]
    for num_pieces, room, stride in [(1, 5, 2), (23, 7, 3), (23, 7, 9), *lengths, *ties]:
        pieces = np.arange(num_pieces)
        given = (tf.constant(x, tf.int64) for x in (pieces, [num_pieces], [room], stride))
        expected = squad.Cut(num_pieces, room, stride).most_context(pieces)
        np.testing.assert_array_equal(windows.most_context(*given), expected)


def test_a_long_context_takes_memory_for_its_windows_alone(folder, tokenizer):
    """In 12,000 windows: a number for each pair of them would be 1 GB, and more for each start."""
    model = QuestionAnswerer(presets.load_encoder(str(folder / "preset")), beam_size=2)
    server = serving.QuestionAnswererServer(model, tokenizer, 16, 8, 4)
    context = "Zo\u00eb was in \u6771\u4eac. " * 16_000
    found = server.serve(question=tf.constant(["Who?"]), context=tf.constant([context]))
    found = {name: values.numpy()[0] for name, values in found.items()}
    answer = found["answer"].decode()
    assert answer and context[found["start_char"] : found["end_char"]] == answer
    assert context.encode()[found["start"] : found["end"]].decode() == answer


@pytest.mark.slow
def test_the_threshold_of_a_preset_is_served_and_can_be_overridden(folder, tmp_path):
    for given, expected in ((None, -0.5), (math.inf, None)):
        path = tmp_path / str(expected)
        serving.export(str(folder / "preset"), str(path), null_threshold=given)
        assert json.loads((path / "signature.json").read_text())["null_threshold"] == expected
    with pytest.raises(UserError, match="null_threshold must be a number"):
        serving.export(str(folder / "preset"), str(tmp_path / "new"), null_threshold=math.nan)
