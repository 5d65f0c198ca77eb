"""Each layer against plain numpy; what an output depends on; precision, compilation, saving."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.modeling.functions import dynamic_convolution
from convbert_tf.modeling.layers import (
    ConvBertBlock,
    Dense,
    FeedForward,
    GroupedDense,
    MixedAttention,
    SpanDynamicConvolution,
)

HIDDEN = 12
# No option of these is at its default, so that a config that forgets one is seen.
ATTENTION = {
    "num_attention_heads": 6,
    "head_ratio": 3,
    "conv_kernel_size": 5,
    "attention_probs_dropout_prob": 0.25,
    "mask_convolution": True,
    "initializer_range": 0.3,
}
LAYERS = {
    "dense": (Dense, {"units": 8, "activation": "relu"}),
    "grouped": (GroupedDense, {"units": 9, "groups": 3, "activation": "tanh"}),
    "convolution": (
        SpanDynamicConvolution,
        {"num_heads": 2, "size_per_head": 3, "conv_kernel_size": 5, "initializer_range": 0.3},
    ),
    "attention": (MixedAttention, ATTENTION),
    "noconv": (MixedAttention, ATTENTION | {"conv_type": "noconv"}),
    "dconv": (MixedAttention, ATTENTION | {"conv_type": "dconv"}),
    "feed_forward": (
        FeedForward,
        {
            "intermediate_size": 8,
            "linear_groups": 2,
            "hidden_act": "relu",
            "initializer_range": 0.3,
        },
    ),
    "block": (
        ConvBertBlock,
        ATTENTION
        | {
            "intermediate_size": 8,
            "linear_groups": 2,
            "hidden_act": "relu",
            "hidden_dropout_prob": 0.25,
        },
    ),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def make(kind, **options):
    cls, settings = LAYERS[kind]
    keras.utils.set_random_seed(1)
    return cls(**settings, **options)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def naive_convolution(kernels, values):
    outputs, half = np.zeros_like(values), (kernels.shape[3] - 1) // 2
    for t in range(values.shape[1]):
        for j in range(kernels.shape[3]):
            if 0 <= t + j - half < values.shape[1]:
                outputs[:, t] += kernels[:, t, :, j, None] * values[:, t + j - half]
    return outputs


@pytest.mark.parametrize("kernel_size", [3, 5, 9, 35])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 32, 33, 70])
def test_dynamic_convolution_is_the_sum_over_the_kernel(num_tokens, kernel_size):
    kernels, values = normal(2, num_tokens, 3, kernel_size), normal(2, num_tokens, 3, 4, seed=1)
    expected = naive_convolution(kernels, values)
    np.testing.assert_allclose(dynamic_convolution(kernels, values), expected, atol=1e-5)
    for chunk in (1, 5, 128):
        outputs = dynamic_convolution(kernels, values, chunk)
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 9])
def test_dynamic_convolution_when_the_number_of_tokens_is_unknown(kernel_size):
    specs = [tf.TensorSpec((None, None, 3, size)) for size in (kernel_size, 4)]
    convolve = tf.function(lambda k, v: dynamic_convolution(k, v), input_signature=specs)
    for num_tokens in (1, 6, 32, 45, 64):
        kernels, values = normal(2, num_tokens, 3, kernel_size), normal(2, num_tokens, 3, 4)
        expected = naive_convolution(kernels, values)
        np.testing.assert_allclose(convolve(kernels, values), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_dense_is_a_block_diagonal_dense_layer(groups):
    layer, x = GroupedDense(6, groups), normal(2, 5, HIDDEN)
    layer.build(x.shape)
    kernel, bias = normal(*layer.kernel.shape), normal(6, seed=2)
    layer.set_weights([kernel, bias])
    whole = np.zeros((HIDDEN, 6), "float32")
    rows, columns = HIDDEN // groups, 6 // groups
    for g in range(groups):
        whole[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = kernel[g]
    np.testing.assert_allclose(layer(x), x @ whole + bias, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 9])
def test_an_output_of_the_convolution_depends_on_its_span_alone(kernel_size):
    layer = SpanDynamicConvolution(2, 4, kernel_size, initializer_range=0.5)
    x, half = tf.constant(normal(1, 40, HIDDEN)), (kernel_size - 1) // 2
    for t in (0, 1, 20, 31, 32, 39):
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = tf.reduce_sum(layer(x)[0, t] * normal(8))
        reached = np.flatnonzero(np.abs(tape.gradient(output, x)[0]).max(axis=-1))
        np.testing.assert_array_equal(reached, range(max(0, t - half), min(40, t + half + 1)))


@pytest.mark.parametrize("mask_convolution", [True, False])
def test_padding_reaches_the_last_half_kernel_of_tokens_unless_masked(mask_convolution):
    layer = make("attention")
    layer.mask_convolution = mask_convolution
    tokens, half = normal(2, 11, HIDDEN), 2
    bare = layer(tokens, np.ones((2, 11), "int32")).numpy()
    for padding in (1, 4, 30):
        x = np.concatenate([tokens, normal(2, padding, HIDDEN, seed=padding)], axis=1)
        mask = np.broadcast_to(np.arange(11 + padding) < 11, x.shape[:2]).astype("int32")
        differences = np.abs(layer(x, mask)[:, :11] - bare).max(axis=(0, 2))
        leaks = 0 if mask_convolution else min(half, padding + 1)
        assert (differences[: 11 - leaks] < 1e-6).all()
        assert (differences[11 - leaks :] > 1e-4).all()


def test_attention_probabilities_and_noconv():
    layer, x = make("noconv"), normal(2, 7, HIDDEN)
    mask = np.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0]])
    outputs, probabilities = layer(x, mask, return_attention_scores=True)
    assert outputs.shape == (2, 7, 4) and layer.convolution is None  # two heads of two
    np.testing.assert_allclose(np.sum(probabilities, -1), 1, atol=1e-6)
    assert np.max(probabilities[1, :, :, 3:]) == 0 < np.min(probabilities[1, :, :, :3])
    kernel, bias = layer.get_weights()
    query, key, value = np.split(x @ kernel + bias, 3, axis=-1)
    for head in (slice(0, 2), slice(2, 4)):
        scores = query[0, :, head] @ key[0, :, head].T / np.sqrt(2)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(outputs[0, :, head], weights @ value[0, :, head], atol=1e-5)
    assert make("attention")(x).shape == (2, 7, 8)
    assert MixedAttention(2, head_ratio=8)(x).shape == (2, 7, 12)  # one head at least


@each_layer
def test_config_and_serialisation_round_trip(name):
    layer, x = make(name), normal(2, 7, HIDDEN)
    expected = layer(x)
    assert expected.shape == layer.compute_output_shape(x.shape)
    settings = LAYERS[name][1]
    assert {key: layer.get_config()[key] for key in settings} == settings
    written = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    for copy in (
        type(layer).from_config(layer.get_config()),
        keras.saving.deserialize_keras_object(written),
    ):
        copy(x)
        assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
        copy.set_weights(layer.get_weights())
        np.testing.assert_array_equal(copy(x), expected)


@each_layer
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(name, policy):
    layer, x = make(name), normal(2, 7, HIDDEN)
    expected, mixed = layer(x).numpy(), make(name, dtype=policy)
    outputs = mixed(x)
    mixed.set_weights(layer.get_weights())
    outputs = mixed(x)
    assert outputs.dtype == policy.removeprefix("mixed_")
    assert all(weight.dtype == "float32" for weight in mixed.trainable_weights)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, atol=0.05 * scale)


@each_layer
def test_compiled_is_eager(name):
    layer, x = make(name), tf.constant(normal(2, 35, HIDDEN))
    layer(x)

    def outputs_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x)
            loss = tf.reduce_sum(outputs * tf.cast(tf.range(outputs.shape[-1]), "float32"))
        return outputs, tape.gradient(loss, x)

    compiled = tf.function(outputs_and_gradient, jit_compile=True)(x)
    for value, expected in zip(compiled, outputs_and_gradient(x), strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("return_scores", [False, True])
def test_a_functional_model_is_saved_and_loaded(tmp_path, return_scores):
    inputs = [keras.Input((None, HIDDEN)), keras.Input((None,), dtype="int32")]
    hidden = make("block", name="first")(*inputs)
    outputs = make("block", name="second")(hidden, inputs[1], return_attention_scores=return_scores)
    model = keras.Model(inputs, outputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for num_tokens in (3, 40):
        batch = [normal(2, num_tokens, HIDDEN), np.ones((2, num_tokens), "int32")]
        expected, values = tf.nest.flatten(model(batch)), tf.nest.flatten(loaded(batch))
        assert [value.shape for value in values][1:] == [(2, 2, num_tokens, num_tokens)][
            : int(return_scores)
        ]
        for value, other in zip(values, expected, strict=True):
            np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: SpanDynamicConvolution(2, 4, 4), "must be odd, got 4"),
        (lambda: MixedAttention(5).build((None, None, 12)), "12 is not divisible .* 5"),
        (lambda: MixedAttention(2, conv_type="other"), "'dconv' or 'noconv', got 'other'"),
        (lambda: GroupedDense(9, 2), "units=9 cannot be divided into groups=2"),
        (lambda: GroupedDense(8, 0), "groups=0"),
        (lambda: GroupedDense(8, 2).build((None, 9)), "input of 9 cannot .* groups=2"),
        (lambda: ConvBertBlock(4, 9, linear_groups=2).build((None, None, 12)), "units=9"),
    ],
)
def test_impossible_sizes_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_a_mask_is_taken_without_a_warning_and_not_handed_on():
    x, mask = np.ones((1, 6, 16), "float32"), np.ones((1, 6), "int32")
    block = ConvBertBlock(4, 32, conv_kernel_size=3, mask_convolution=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = block(x, mask=mask)
    assert getattr(outputs, "_keras_mask", None) is None


def test_without_spans_a_kernel_comes_from_its_token_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 9, 8)).astype("float32")
    other = x.copy()
    other[0, 4] += 1
    changed = {}
    for conv_type in ("sdconv", "dconv"):
        layer = MixedAttention(4, head_ratio=2, conv_kernel_size=3, conv_type=conv_type)
        layer(x)
        for weight in layer.weights:  # so that kernels differ
            weight.assign(rng.normal(0, 0.3, weight.shape))
        before, after = (layer.kernels(values).numpy()[0] for values in (x, other))  # [N, T, K]
        np.testing.assert_allclose(before.sum(axis=-1), 1, atol=1e-5)
        changed[conv_type] = np.flatnonzero(np.abs(after - before).max(axis=(0, 2)) > 1e-6).tolist()
    assert changed == {"sdconv": [3, 4, 5], "dconv": [4]}


def test_dynamic_convolution_is_its_formula():
    rng = np.random.default_rng(1)
    layer = SpanDynamicConvolution(num_heads=2, size_per_head=3, conv_kernel_size=3, span=False)
    x, query, values = (rng.normal(size=(1, 5, n)).astype("float32") for n in (8, 6, 6))
    layer(x, query, values)
    assert [weight.path.split("/")[-1] for weight in layer.weights] == ["kernel", "bias"]
    kernel, bias = (rng.normal(size=weight.shape) for weight in layer.weights)
    layer.set_weights([kernel, bias])
    logits = (query[0] @ kernel + bias).reshape(5, 2, 3)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)  # [T, N, K]
    padded = np.pad(values[0].reshape(5, 2, 3), [(1, 1), (0, 0), (0, 0)])
    expected = [
        sum(weights[t, :, j, None] * padded[t + j] for j in range(3)).reshape(6) for t in range(5)
    ]
    np.testing.assert_allclose(layer(x, query, values)[0], expected, atol=1e-5)
