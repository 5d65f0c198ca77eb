"""Graphs with constant weights: what they compute, and that they stay as they were."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import convbert_tf
from convbert_tf import ConvBertEncoder, ModelConfig, TextClassifier
from convbert_tf.modeling.linear import LayerNormalization
from convbert_tf.serving import inference
from convbert_tf.serving.inference import freeze
from tests import goldens
from tests.modeling.encoder_test import tiny
from tests.weights import original_test

INPUTS = ("input_ids", "input_mask", "segment_ids")


def randomized(model, seed=0):
    """No bias is 0 and no scale 1, which a graph of constants would drop."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(weight.numpy() + rng.normal(0, 0.1, weight.shape))
    return model


def batch(shape=(3, 20), seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, shape[1] + 1, shape[0])
    return {
        "input_ids": tf.constant(rng.integers(5, 50, shape), tf.int32),
        "input_mask": tf.sequence_mask(lengths, shape[1], tf.int32),
        "segment_ids": tf.constant(rng.integers(0, 2, shape), tf.int32),
    }


def compiled(model, shape):
    spec = {name: tf.TensorSpec(shape, tf.int32) for name in INPUTS}
    return tf.function(freeze(model), input_signature=[spec], autograph=False)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(3, 20), (None, None)])
def test_a_frozen_encoder_gives_the_encoders_output(groups, shape):
    encoder = ConvBertEncoder(tiny(linear_groups=groups))
    encoder(batch())
    randomized(encoder)
    function = compiled(encoder, shape)
    for seed in range(2):
        expected, outputs = encoder(batch(seed=seed)), function(batch(seed=seed))
        for name in ("sequence_output", "embedding_output"):
            scale = np.abs(expected[name]).max()
            assert np.abs(outputs[name] - expected[name]).max() < 3e-6 * scale, name
    assert not function.get_concrete_function().variables


@pytest.mark.parametrize("most", [0, 10**8])
def test_matrices_in_half_precision_are_constants_where_they_are_few(most, monkeypatch):
    monkeypatch.setattr(inference, "_MOST_CONSTANTS", most)
    keras.config.set_dtype_policy("bfloat16")
    try:
        encoder = ConvBertEncoder(tiny())
    finally:
        keras.config.set_dtype_policy("float32")
    randomized(encoder)
    function = compiled(encoder, (3, 20))
    matrices = sum(len(weight.shape) > 1 for weight in encoder.weights)
    captured = len(function.get_concrete_function().captured_inputs)
    assert captured == (0 if most else matrices)
    expected = np.float32(encoder(batch())["sequence_output"])
    outputs = np.float32(function(batch())["sequence_output"])
    assert np.abs(outputs - expected).max() < 0.05 * np.abs(expected).max()


def test_short_texts_are_worth_one_thread_an_operation():
    small, base = ModelConfig.small(), ModelConfig.base()
    assert 128 < inference.single_thread_tokens(small) < 512
    assert inference.single_thread_tokens(base) < 32
    assert inference.single_thread_tokens(tiny()) == tiny().max_position_embeddings


def test_it_is_where_the_readme_says():
    assert convbert_tf.inference.freeze is freeze


def test_training_further_does_not_change_it():
    model = TextClassifier(ConvBertEncoder(tiny()), num_classes=2)
    model(batch())
    function, before = compiled(model, (3, 20)), model(batch())
    randomized(model)
    np.testing.assert_allclose(function(batch()), before, rtol=1e-4, atol=1e-5)
    assert np.abs(model(batch()) - before).max() > 1e-2


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-2])
def test_layer_norm_keeps_its_epsilon_where_tensorflow_fuses_it(scale, epsilon):
    """TensorFlow's fused operation adds 0.001 to the variance whatever the graph says."""
    layer = LayerNormalization(epsilon=epsilon)
    x = np.random.default_rng(0).normal(1, 2, (4, 6, 32)).astype("float32") * scale
    layer(x)
    randomized(layer)
    deviation = x - x.mean(-1, keepdims=True, dtype="float64")
    variance = (deviation**2).mean(-1, keepdims=True)
    gamma, beta = (weight.numpy() for weight in layer.weights)
    expected = gamma * (deviation / np.sqrt(variance + epsilon)) + beta
    compute = freeze(layer)
    frozen = tf.function(lambda x: compute(x) * 2.0, autograph=False)
    np.testing.assert_allclose(frozen(x), 2 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", goldens.FINETUNING)
def test_frozen_golden_models_give_the_originals_outputs(name):
    golden = goldens.tensors(name)
    outputs = tf.function(freeze(original_test.load(name)))(original_test.inputs(golden))
    for key, value in original_test.by_name(outputs, golden).items():
        assert goldens.error(value, golden[f"eval/{key}"]) < 1e-5, key
