"""Raw strings to inputs; what cannot be meant is said in one line."""

import random
import types

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


def test_lengths_and_pairs_come_from_the_preset(preset, tmp_path):
    pairs = convbert_tf.TextPreprocessor.from_preset(preset, max_seq_length=24)
    assert pairs.pair is None
    pairs(["good"], ["bad"])
    encoder = convbert_tf.ConvBertEncoder.from_preset(preset)
    encoder.save_to_preset(tmp_path / "pairs", pairs)
    new = convbert_tf.TextPreprocessor.from_preset(tmp_path / "pairs")
    assert (new.max_seq_length, new.pair) == (24, True)
    assert new(["good"], ["bad"])["input_ids"].shape == (1, 24)
    with pytest.raises(UserError, match=r"in pairs: call preprocessor\(first, second\)"):
        new(["good"])
    single = convbert_tf.TextPreprocessor.from_preset(tmp_path / "pairs", 16, pair=False)
    assert single(["good"])["input_ids"].shape == (1, 16)
    assert convbert_tf.TextPreprocessor.from_preset(preset).max_seq_length == 128


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["good film"], None),
        (("good film",), None),
        (np.array(["good film"]), None),
        (np.array(["good film"], object), None),
        ([b"good film"], None),
        ("good film", r"texts is one string; give a list: \[text\]"),
        (tf.constant("good film"), r"shape \(\): add a batch axis"),
        (tf.constant([["good film"]]), r"shape \(1, 1\)"),
        (tf.constant([1]), "EagerTensor of int32"),
        (tf.ragged.constant([["good"]]), "RaggedTensor of string"),
        ([("good", "bad")], r"texts\[0\] is a tuple; .*preprocessor\(first, second\)"),
        (["good", None], r"texts\[1\] must be a string, got None"),
        (["good", float("nan")], r"texts\[1\] must be a string, got nan"),
        (["good", "\ud800"], r"texts\[1\] has half a surrogate pair"),
        (3, "must be a list of strings, got 3"),
        ({"text": ["good film"]}, r"texts is a dict; give its column of texts alone"),
        (types.SimpleNamespace(columns=["text"]), "give its column of texts alone"),
        ({"good film"}, "texts is a set, which has no order; give a list"),
    ],
)
def test_what_are_no_texts_is_said(preset, texts, message):
    preprocessor = convbert_tf.TextPreprocessor.from_preset(preset, 8)
    if message is None:
        assert preprocessor(texts)["input_ids"].numpy().tolist() == [[2, 5, 14, 3, 0, 0, 0, 0]]
        return
    with pytest.raises(UserError, match=message):
        preprocessor(texts)
    with pytest.raises(UserError):
        preprocessor(["good film"], texts)


@pytest.mark.parametrize("length", ["16", 16.5, True])
def test_a_length_is_a_whole_number(preset, length):
    with pytest.raises(UserError, match=f"max_seq_length must be a whole number, got {length!r}"):
        convbert_tf.TextPreprocessor.from_preset(preset, length)


def test_no_texts_are_no_rows(preset):
    preprocessor = convbert_tf.TextPreprocessor.from_preset(preset, 8)
    assert preprocessor([])["input_ids"].shape == (0, 8)
    assert preprocessor([], [])["segment_ids"].shape == (0, 8)


def test_as_many_second_texts_as_first_ones(preset):
    preprocessor = convbert_tf.TextPreprocessor.from_preset(preset, 8)
    with pytest.raises(UserError, match="2 first texts and 1 second ones"):
        preprocessor(["good", "bad"], ["film"])
    with pytest.raises(UserError, match="tokenizer must be a WordPieceTokenizer, got 'good'"):
        convbert_tf.TextPreprocessor("good")


def test_ids_that_are_none_and_lists_of_them(preset):
    tokenizer = WordPieceTokenizer(f"{preset}/vocab.txt")
    with pytest.raises(UserError, match="strings is one string"):
        tokenizer.tokenize("good film")
    with pytest.raises(UserError, match="strings is one string"):
        tokenizer.tokenize_with_offsets("good film")
    assert tokenizer.detokenize([[]]).numpy().tolist() == [b""]
    assert tokenizer.detokenize([[5, 14], []]).numpy().tolist() == [b"good film", b""]
    for ids in (5, [5], [["good"]]):
        with pytest.raises((UserError, ValueError)):
            tokenizer.detokenize(ids)


def test_tokenizer_of_the_preset_is_used(preset):
    ours = convbert_tf.TextPreprocessor.from_preset(preset).tokenizer
    theirs = WordPieceTokenizer(f"{preset}/vocab.txt")
    assert ours.tokenize(["Good film."]).to_list() == theirs.tokenize(["Good film."]).to_list()
