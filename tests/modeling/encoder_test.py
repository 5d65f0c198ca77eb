"""The encoder: sizes, inputs, padding, precision, compilation, configuration."""

import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import ConvBertEncoder, ConvBertPretrainer, ModelConfig
from convbert_tf.modeling.encoder import Embeddings
from convbert_tf.modeling.layers import MixedAttention
from convbert_tf.modeling.pretraining import DiscriminatorHead, MaskedLmHead


def tiny(**options):
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "embedding_size": 8,
        "max_position_embeddings": 64,
        "conv_kernel_size": 5,
        "linear_groups": 2,
        "initializer_range": 0.3,
    }
    return ModelConfig(**(sizes | options))


def encode(encoder, ids, **inputs):
    return encoder({"input_ids": ids} | inputs)


def token_ids(num_tokens=12):
    return np.random.default_rng(0).integers(5, 50, (2, num_tokens)).astype("int32")


def count(*groups):
    """Trainable numbers in layers, each weight once."""
    weights = {id(w): w for layers in groups for w in layers.trainable_weights}
    return sum(int(np.prod(w.shape)) for w in weights.values())


@pytest.mark.parametrize(
    ("size", "encoder", "generator", "generator_head", "discriminator_head", "total"),
    [
        ("small", 13_143_768, 770_988, 39_098, 66_049, 14_019_903),
        ("medium_small", 17_475_888, 871_884, 43_194, 148_225, 18_539_191),
        ("base", 105_680_520, 9_334_744, 229_434, 591_361, 115_836_059),
    ],
)
def test_parameters_as_counted_from_the_original(
    monkeypatch, size, encoder, generator, generator_head, discriminator_head, total
):
    # Zeros, as drawing a hundred million random numbers takes a while.
    zeros = keras.initializers.Zeros.__call__
    for initializer in (keras.initializers.TruncatedNormal, keras.initializers.GlorotUniform):
        monkeypatch.setattr(initializer, "__call__", zeros)
    model = ConvBertPretrainer(getattr(ModelConfig, size)())
    assert count(model.discriminator) == encoder
    assert count(model.generator, model.discriminator) - encoder == generator
    assert count(model.generator_head) == generator_head
    assert count(model.discriminator_head) == discriminator_head
    assert count(model) == total


def test_outputs():
    encoder, ids = ConvBertEncoder(tiny()), token_ids()
    outputs = encoder({"input_ids": ids}, return_attention_scores=True)
    assert outputs["embedding_output"].shape == (2, 12, 16)
    assert [hidden.shape for hidden in outputs["hidden_states"]] == [(2, 12, 16)] * 2
    assert [scores.shape for scores in outputs["attention_scores"]] == [(2, 2, 12, 12)] * 2
    np.testing.assert_array_equal(outputs["sequence_output"], outputs["hidden_states"][-1])
    np.testing.assert_array_equal(outputs["pooled_output"], outputs["sequence_output"][:, 0])
    assert "attention_scores" not in encode(encoder, ids)
    dropped = encoder({"input_ids": ids}, training=True)["sequence_output"]
    assert np.abs(dropped - outputs["sequence_output"]).max() > 0.01


def test_embeddings_are_the_normalised_sum_of_three_tables():
    encoder, ids = ConvBertEncoder(tiny(embedding_size=16)), token_ids()
    assert encoder.embeddings_project is None
    segments = np.arange(12)[None] % 2 * np.ones((2, 1), "int32")
    words, types, positions = (table.numpy() for table in encoder.embeddings.weights[:3])
    total = words[ids] + types[segments] + positions[:12]
    centred = total - total.mean(-1, keepdims=True)
    expected = centred / total.std(-1, keepdims=True)
    outputs = encode(encoder, ids, segment_ids=segments)["embedding_output"]
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_mask_and_segments_are_optional():
    encoder, ids = ConvBertEncoder(tiny()), token_ids()
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    bare = encode(encoder, ids)["sequence_output"]
    whole = encode(encoder, ids, input_mask=ones, segment_ids=zeros)["sequence_output"]
    np.testing.assert_allclose(bare, whole, atol=1e-6)
    second = encode(encoder, ids, segment_ids=ones)["sequence_output"]
    assert np.abs(bare - second).max() > 0.01
    half = encode(encoder, ids, input_mask=np.arange(12)[None] < [[6], [12]])["sequence_output"]
    assert np.abs(bare - half)[0].max() > 0.01
    np.testing.assert_allclose(bare[1], half[1], atol=1e-6)


def test_an_input_that_is_too_long_is_refused():
    encoder = ConvBertEncoder(tiny())
    assert encode(encoder, token_ids(64))["sequence_output"].shape == (2, 64, 16)
    with pytest.raises(ValueError, match="65 tokens.* 64 positions"):
        encode(encoder, token_ids(65))


@pytest.mark.parametrize("mask_convolution", [True, False])
def test_padding(mask_convolution):
    encoder = ConvBertEncoder(tiny(mask_convolution=mask_convolution))
    ids = token_ids()
    bare = encode(encoder, ids)["sequence_output"]
    for length in (13, 33, 64):
        padded = np.pad(ids, [[0, 0], [0, length - 12]])
        mask = np.arange(length)[None].repeat(2, 0) < 12
        outputs = encode(encoder, padded, input_mask=mask)["sequence_output"][:, :12]
        difference = np.abs(outputs - bare).max(axis=(0, 2))
        if mask_convolution:
            assert difference.max() < 2e-6
        else:
            assert (difference[-2:] > 1e-3).all()  # half a kernel


@pytest.mark.parametrize(
    "options", [{}, {"conv_type": "dconv"}, {"conv_type": "noconv", "linear_groups": 1}]
)
def test_compiled_is_eager_and_lengths_may_be_unknown(options):
    encoder, ids = ConvBertEncoder(tiny(**options)), token_ids()
    expected = encode(encoder, ids)["sequence_output"]
    compiled = tf.function(lambda ids: encode(encoder, ids), jit_compile=True)
    np.testing.assert_allclose(compiled(tf.constant(ids))["sequence_output"], expected, atol=2e-5)
    spec = [tf.TensorSpec((None, None), "int32")]
    traced = tf.function(lambda ids: encode(encoder, ids), input_signature=spec)
    np.testing.assert_allclose(traced(ids)["sequence_output"], expected, atol=2e-5)
    assert traced(token_ids(50))["sequence_output"].shape == (2, 50, 16)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    encoder, ids = ConvBertEncoder(tiny()), token_ids()
    mixed = ConvBertEncoder(tiny(), dtype=policy)
    mixed.set_weights(encoder.get_weights())
    outputs = encode(mixed, ids, input_mask=np.arange(12)[None] < [[6], [12]])
    assert outputs["sequence_output"].dtype == policy.removeprefix("mixed_")
    assert all(weight.dtype == "float32" for weight in mixed.trainable_weights)
    expected = encode(encoder, ids, input_mask=np.arange(12)[None] < [[6], [12]])
    values = tf.cast(outputs["sequence_output"], "float32")
    np.testing.assert_allclose(values, expected["sequence_output"], atol=0.15)


def test_config_round_trip():
    encoder, ids = ConvBertEncoder(tiny(mask_convolution=True), name="reader"), token_ids()
    written = keras.saving.serialize_keras_object(encoder)
    for copy in (
        ConvBertEncoder.from_config(encoder.get_config()),
        keras.saving.deserialize_keras_object(written),
    ):
        assert copy.config == encoder.config and copy.name == "reader"
        copy.set_weights(encoder.get_weights())
        expected = encode(encoder, ids)["sequence_output"]
        np.testing.assert_array_equal(encode(copy, ids)["sequence_output"], expected)


@pytest.mark.parametrize("cls", [Embeddings, MaskedLmHead, DiscriminatorHead])
def test_layers_round_trip(cls):
    layer = cls(tiny(), name="it", dtype="mixed_bfloat16")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.config == layer.config and copy.get_config() == layer.get_config()


def test_heads_against_numpy():
    config, hidden = tiny(hidden_act="relu"), np.random.default_rng(0).normal(size=(2, 3, 16))
    lm, table = MaskedLmHead(config), np.random.default_rng(1).normal(size=(50, 8))
    lm.build()
    lm.output_bias.assign(np.arange(50.0))
    middle = np.maximum(hidden @ lm.dense.kernel.numpy(), 0)
    centred = middle - middle.mean(-1, keepdims=True)
    normed = centred / np.sqrt(middle.var(-1, keepdims=True) + 1e-12)
    expected = normed @ table.T + np.arange(50)
    np.testing.assert_allclose(lm(hidden, table), expected, rtol=1e-4, atol=1e-4)
    head = DiscriminatorHead(config)
    head.build()
    middle = np.maximum(hidden @ head.dense.kernel.numpy(), 0)
    expected = (middle @ head.logit.kernel.numpy())[..., 0]
    np.testing.assert_allclose(head(hidden), expected, atol=1e-5)


def test_attention_scores_are_kept_only_where_they_are_asked_for(monkeypatch):
    made, attend = [], MixedAttention._attend

    def watched(*args):
        outputs, probabilities = attend(*args)
        made.append(weakref.ref(probabilities))
        return outputs, probabilities

    monkeypatch.setattr(MixedAttention, "_attend", watched)
    encoder = ConvBertEncoder(tiny())
    outputs = encode(encoder, token_ids())
    assert len(made) == 2 and not any(scores() is not None for scores in made)
    outputs = encoder({"input_ids": token_ids()}, return_attention_scores=True)
    assert [scores() is not None for scores in made[2:]] == [True, True]
    assert [scores.shape for scores in outputs["attention_scores"]] == [(2, 2, 12, 12)] * 2
