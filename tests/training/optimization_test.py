"""The optimiser against plain numpy; its schedule and multipliers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import ConvBertEncoder, TextClassifier
from convbert_tf.config import TrainingConfig
from convbert_tf.training import optimization
from convbert_tf.training.optimization import AdamW, FusedAdamW, LinearWarmupDecay
from tests.modeling.encoder_test import tiny
from tests.modeling.heads_test import inputs


def numpy_steps(weights, gradients, rates, decay, clip, beta_1=0.9, beta_2=0.999):
    """The update as the docstring states it, in float64; `gradients` is one list a step."""
    weights = [w.astype("float64") for w in weights]
    m, v = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step, rate in zip(gradients, rates, strict=True):
        norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in step))
        for i, g in enumerate(step):
            g = g * min(1, clip / norm) if clip else g
            m[i] = beta_1 * m[i] + (1 - beta_1) * g
            v[i] = beta_2 * v[i] + (1 - beta_2) * g**2
            update = m[i] / (np.sqrt(v[i]) + 1e-6)
            if weights[i].ndim > 1:
                update = update + decay * weights[i]
            weights[i] = weights[i] - rate * update
    return weights


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("clip", [None, 1.0, 3.0])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer_class", [AdamW, FusedAdamW])
def test_three_steps_are_those_of_numpy(decay, clip, compiled, optimizer_class):
    weights = [normal(4, 3, seed=0), normal(3, seed=1)]
    variables = [keras.Variable(w, name=f"w{i}") for i, w in enumerate(weights)]
    # Norms around 3.6, 0.36 and 7: clipped and not.
    gradients = [
        [scale * normal(*w.shape, seed=seed + i) for i, w in enumerate(weights)]
        for seed, scale in ((10, 1), (20, 0.1), (30, 2))
    ]
    schedule = LinearWarmupDecay(0.1, 10, 2)
    optimizer = optimizer_class(schedule, weight_decay_rate=decay, clip_norm=clip)
    optimizer.build(variables)
    apply = tf.function(optimizer.apply) if compiled else optimizer.apply
    for step in gradients:
        apply([tf.constant(g) for g in step])
    rates = [0.1 * (1 - t / 10) * min(1, t / 2) for t in range(3)]
    expected = numpy_steps(weights, gradients, rates, decay, clip)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=1e-6)
    if not compiled:
        norm = np.sqrt(sum((g**2).sum() for g in gradients[-1]))
        np.testing.assert_allclose(optimizer.gradient_norm, norm, rtol=1e-5)
    assert np.abs(variables[0] - weights[0]).max() > 0.01


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("optimizer_class", [AdamW, FusedAdamW])
def test_a_gradient_that_is_not_finite_changes_nothing(clip, bad, optimizer_class):
    weights = [normal(4, 3, seed=0), normal(3, seed=1)]
    variables = [keras.Variable(w, name=f"w{i}") for i, w in enumerate(weights)]
    optimizer = optimizer_class(0.1, clip_norm=clip, skip_nonfinite=True)
    good = [tf.constant(normal(*w.shape, seed=2)) for w in weights]
    poisoned = [good[0] + tf.one_hot([1], 4, bad, 0.0)[0][:, None], good[1]]
    optimizer.apply(good, variables)
    before = [np.asarray(v) for v in [*variables, *optimizer.variables[2:]]]
    optimizer.apply(poisoned)
    assert not np.isfinite(optimizer.gradient_norm) and int(optimizer.iterations) == 2
    for variable, value in zip([*variables, *optimizer.variables[2:]], before, strict=True):
        np.testing.assert_array_equal(variable, value)
    optimizer.apply(good)
    gradients = [[np.asarray(g) for g in good]] * 2
    expected = numpy_steps(weights, gradients, [0.1] * 2, 0.01, clip)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=1e-6)


def test_schedule():
    schedule = LinearWarmupDecay(0.5, 100, 10)
    expected = {0: 0, 1: 0.5 * 0.99 * 0.1, 5: 0.5 * 0.95 * 0.5, 10: 0.45, 50: 0.25, 100: 0, 130: 0}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-7)
    assert float(LinearWarmupDecay(0.5, 100)(0)) == 0.5


@pytest.mark.parametrize("decay", [0.8, None, 0.0])
def test_layerwise_rates_of_a_classifier(decay):
    model = TextClassifier(ConvBertEncoder(tiny()), 3)
    encoder = model.encoder
    depths = [([encoder.embeddings, encoder.embeddings_project], 0), ([model.logits], 4)]
    depths += [([block], i + 1) for i, block in enumerate(encoder.blocks)]
    depth_of = {
        id(v): depth for layers, depth in depths for x in layers for v in x.trainable_variables
    }
    variables = model.trainable_variables
    assert set(depth_of) == {id(v) for v in variables}
    before = [v.numpy() for v in variables]
    optimizer = AdamW(
        0.01,
        weight_decay_rate=0,
        clip_norm=None,
        layerwise_lr_decay=decay,
        num_hidden_layers=2,
    )
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    # What one step with gradient 1 does, before the multiplier.
    step = 0.01 * 0.1 / (np.sqrt(0.001) + 1e-6)
    for variable, old in zip(variables, before, strict=True):
        multiplier = decay ** (4 - depth_of[id(variable)]) if decay else 1
        np.testing.assert_allclose(
            old - variable.numpy(), multiplier * step, rtol=1e-3, err_msg=variable.path
        )


def test_rows_of_a_sparse_gradient_are_merged():
    table, bias = normal(6, 2, seed=0), normal(2, seed=1)
    rows, index = normal(4, 2, seed=2), [1, 4, 1, 1]
    dense = np.zeros_like(table)
    np.add.at(dense, index, rows)
    norms, results = [], []
    for gradient in (
        tf.IndexedSlices(tf.constant(rows), tf.constant(index), (6, 2)),
        tf.constant(dense),
    ):
        variables = [keras.Variable(table), keras.Variable(bias)]
        optimizer = AdamW(0.1, clip_norm=0.5)
        optimizer.apply([gradient, tf.ones(2)], variables)
        norms.append(float(optimizer.gradient_norm))
        results.append(variables[0].numpy())
    expected = numpy_steps([table, bias], [[dense, np.ones(2)]], [0.1], 0.01, 0.5)[0]
    np.testing.assert_allclose(norms, np.sqrt((dense**2).sum() + 2), rtol=1e-6)
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_fit_learns():
    keras.utils.set_random_seed(0)
    model = TextClassifier(ConvBertEncoder(tiny()), 2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = AdamW(0.01, layerwise_lr_decay=0.9, num_hidden_layers=2)
    model.compile(optimizer, loss, jit_compile=False)
    history = model.fit(inputs(), np.array([0, 1]), epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.2 * history[0] and int(optimizer.iterations) == 12


def test_config_round_trip():
    options = {
        "weight_decay_rate": 0.02,
        "beta_1": 0.8,
        "beta_2": 0.99,
        "epsilon": 1e-5,
        "clip_norm": 2.0,
        "layerwise_lr_decay": 0.7,
        "num_hidden_layers": 3,
        "skip_nonfinite": True,
        "name": "mine",
    }
    optimizer = AdamW(LinearWarmupDecay(0.1, 100, 7), **options)
    written = keras.optimizers.serialize(optimizer)
    for copy in (
        AdamW.from_config(optimizer.get_config()),
        keras.optimizers.deserialize(written),
    ):
        assert {name: copy.get_config()[name] for name in options} == options
        assert copy.get_config() == optimizer.get_config()
        assert copy._learning_rate.get_config() == optimizer._learning_rate.get_config()


@pytest.mark.parametrize(
    ("warmup_steps", "proportion", "expected"), [(30, 0.1, 30), (0, 0.1, 20), (10, 0.1, 20)]
)
def test_create_takes_the_larger_warm_up(warmup_steps, proportion, expected):
    training = TrainingConfig(
        learning_rate=0.2,
        warmup_steps=warmup_steps,
        warmup_proportion=proportion,
        layerwise_lr_decay=0.8,
        clip_norm=0.7,
        weight_decay_rate=0.05,
    )
    optimizer = optimization.create(training, 200, num_hidden_layers=4)
    schedule = {"learning_rate": 0.2, "num_train_steps": 200, "warmup_steps": expected}
    assert optimizer._learning_rate.get_config() == schedule
    assert (optimizer.clip_norm, optimizer.weight_decay_rate) == (0.7, 0.05)
    assert (optimizer.layerwise_lr_decay, optimizer.num_hidden_layers) == (0.8, 4)
