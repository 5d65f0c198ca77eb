import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.modeling.functions import gelu, layer_norm
from convbert_tf.modeling.linear import LayerNormalization


def reference(x, gamma, beta):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return gamma * (x - mean) / np.sqrt(variance + 1e-12) + beta


def random_inputs(shape=(2, 5, 12)):
    rng = np.random.default_rng(0)
    return rng.normal(3, 2, shape), rng.normal(1, 1, shape[-1:]), rng.normal(0, 1, shape[-1:])


def test_values_are_those_of_the_definition():
    x, gamma, beta = random_inputs()
    ours = layer_norm(*(tf.constant(v, tf.float64) for v in (x, gamma, beta)))
    np.testing.assert_allclose(ours, reference(x, gamma, beta), rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    inputs = [tf.constant(v, tf.float64) for v in random_inputs((3, 6))]
    weights = np.random.default_rng(1).normal(size=(3, 6))

    def loss(*inputs):
        return tf.reduce_sum(layer_norm(*inputs) * weights)

    theory, numeric = tf.test.compute_gradient(loss, inputs)
    for ours, theirs in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_layer_agrees_with_keras_layer(policy):
    x, gamma, beta = random_inputs()
    ours = LayerNormalization(dtype=policy)
    theirs = keras.layers.LayerNormalization(epsilon=1e-12, dtype=policy)
    outputs = []
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.set_weights([gamma, beta])
        outputs.append(layer(tf.constant(x, tf.float32)))
    assert outputs[0].dtype == outputs[1].dtype
    tolerance = 1e-5 if policy == "float32" else 0.02
    np.testing.assert_allclose(*(np.float32(y) for y in outputs), atol=tolerance)


def test_layer_survives_serialisation():
    layer = LayerNormalization(name="norm")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is LayerNormalization and again.epsilon == 1e-12


def test_gradient_needs_no_static_length():
    layer = LayerNormalization()
    layer.build((None, None, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, None, 4])])
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x)[:, 0] ** 3)
        return tape.gradient(loss, layer.gamma.value)

    x = tf.random.stateless_normal((2, 3, 4), (0, 1))
    expected = tf.reduce_sum(3 * layer(x)[:, 0] ** 3, axis=0)
    np.testing.assert_allclose(gradient(x), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 0.01)])
def test_gelu_and_its_slope_are_those_of_the_definition(dtype, tolerance):
    values = np.linspace(-4, 4, 161)
    x = tf.constant(values, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = gelu(x)
    slopes = tape.gradient(y, x)
    assert y.dtype == slopes.dtype == dtype
    rounded = np.float64(np.float32(x))
    cdf = np.array([0.5 * (1 + math.erf(each / math.sqrt(2))) for each in rounded])
    density = np.exp(-(rounded**2) / 2) / math.sqrt(2 * math.pi)
    size = np.maximum(1, np.abs(rounded))
    assert (np.abs(np.float32(y) - rounded * cdf) / size).max() < tolerance
    assert np.abs(np.float32(slopes) - (cdf + rounded * density)).max() < tolerance
