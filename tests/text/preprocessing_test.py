"""Raw strings to inputs, and the README's five lines: fine-tuning with Keras's `fit`."""

import pathlib
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import convbert_tf
from convbert_tf.console import UserError
from convbert_tf.tasks import glue
from convbert_tf.text import preprocessing
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests.modeling.encoder_test import tiny

WORDS = ["good", "fine", "great", "lovely", "bad", "poor", "awful", "dull", "the", "film", "was"]
README = pathlib.Path(__file__).parents[2] / "README.md"


@pytest.fixture
def preset(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]
    vocab_file.write_text("".join(f"{word}\n" for word in vocab))
    keras.utils.set_random_seed(0)
    encoder = convbert_tf.ConvBertEncoder(tiny(vocab_size=len(vocab), max_position_embeddings=128))
    encoder.save_to_preset(tmp_path / "preset", vocab_file)
    return str(tmp_path / "preset")


def test_a_text_stands_between_cls_and_sep(preset):
    inputs = convbert_tf.TextPreprocessor.from_preset(preset, 8)(["Good film", "bad"])
    assert inputs["input_ids"].numpy().tolist() == [
        [2, 5, 14, 3, 0, 0, 0, 0],
        [2, 9, 3, 0, 0, 0, 0, 0],
    ]
    assert inputs["input_mask"].numpy().sum(axis=1).tolist() == [4, 3]
    assert not inputs["segment_ids"].numpy().any()


def test_long_texts_and_pairs_are_cut_to_the_length(preset):
    preprocessor = convbert_tf.TextPreprocessor.from_preset(preset, 8)
    long = "the film was good . the film was bad ."
    assert preprocessor([long])["input_ids"].numpy()[0].tolist() == [2, 13, 14, 15, 5, 16, 13, 3]
    pair = {
        name: value.numpy()[0].tolist() for name, value in preprocessor([long], ["bad"]).items()
    }
    assert pair["input_ids"] == [2, 13, 14, 15, 5, 3, 9, 3]
    assert pair["segment_ids"] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert pair["input_mask"] == [1] * 8


def test_a_length_without_room_for_text_is_refused(preset):
    with pytest.raises(UserError, match="at least 8"):
        convbert_tf.TextPreprocessor.from_preset(preset, 3)


def test_works_inside_a_dataset(preset):
    preprocessor = convbert_tf.TextPreprocessor.from_preset(preset, 16)
    texts = ["good film", "the film was bad .", "awful"]
    rows = tf.data.Dataset.from_tensor_slices(texts).batch(3).map(preprocessor)
    for name, values in next(iter(rows)).items():
        np.testing.assert_array_equal(values, preprocessor(texts)[name])


def test_truncate_pair_is_that_of_training():
    rng = random.Random(0)
    lengths = [(rng.randint(0, 20), rng.randint(0, 20)) for _ in range(200)]
    for limit in (2, 7, 8, 21):
        pairs = [(list(range(a)), list(range(100, 100 + b))) for a, b in lengths]
        ragged = [tf.ragged.constant(x, tf.int32) for x in zip(*pairs, strict=True)]
        first, second = preprocessing.truncate_pair(*ragged, tf.constant(limit, tf.int64))
        for a, b in pairs:
            glue.truncate_pair(a, b, limit)
        assert first.to_list() == [a for a, _ in pairs]
        assert second.to_list() == [b for _, b in pairs]


def test_the_five_lines_of_the_readme_learn(preset, monkeypatch):
    """They run as they stand there, on names that the README says are given."""
    code = README.read_text().split("<!-- five lines -->\n```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 5
    rng = random.Random(0)
    texts, labels = [], []
    for _ in range(256):
        label = rng.randrange(2)
        word = rng.choice(WORDS[:4] if label else WORDS[4:8])
        texts.append(f"the film was {word} .")
        labels.append(label)
    names = {"convbert_tf": convbert_tf, "keras": keras, "preset": preset}
    names |= {"texts": texts, "labels": np.array(labels)}
    keras.utils.set_random_seed(0)
    exec(code, names)  # our own README, not input
    new = names["preprocessor"](["the film was lovely .", "the film was dull ."])
    assert names["classifier"].predict(new, verbose=0).argmax(axis=-1).tolist() == [1, 0]


def test_tokenizer_of_the_preset_is_used(preset):
    ours = convbert_tf.TextPreprocessor.from_preset(preset).tokenizer
    theirs = WordPieceTokenizer(f"{preset}/vocab.txt")
    assert ours.tokenize(["Good film."]).to_list() == theirs.tokenize(["Good film."]).to_list()
