"""The pre-training step: losses, gradients, sampling, metrics."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import tensorflow as tf

from convbert_tf import ConvBertPretrainer, PretrainingConfig
from convbert_tf.modeling import flops, masking, pretraining
from tests.modeling import masking_test
from tests.modeling.encoder_test import tiny

TOKENS = masking_test.TOKENS


def pretrainer(model=None, **options):
    keras.utils.set_random_seed(2)
    return ConvBertPretrainer(tiny(**(model or {})), PretrainingConfig(**options))


def batch(size=4, length=30):
    features = masking_test.features(size, length)
    features["input_ids"] %= 50  # the vocabulary
    features["segment_ids"] = np.zeros_like(features["input_ids"])
    return features, masking_test.mask_inputs(features)


def part(values, rows):
    return {name: value[rows] for name, value in values.items()}


def uniforms(size=4, slots=4, seed=4):
    return np.random.default_rng(seed).random((size, slots), "float32")


@pytest.mark.parametrize("objective", ["electra", "mlm"])
def test_halves_of_a_batch_add_up_to_the_whole(objective):
    model, (features, masked) = pretrainer(objective=objective, gen_weight=2.0), batch()
    whole = model.losses(features, masked, uniforms())
    weights = {"mlm_weight": whole["mlm_weight"], "disc_weight": whole.get("disc_weight")}
    total, sums = 0, []
    for rows in (slice(0, 1), slice(1, 4)):
        half_features = part(features, rows)
        half_masked = masking.MaskedInputs(**part(masked._asdict(), rows))
        outputs = model.losses(half_features, half_masked, uniforms()[rows])
        total += model.total_loss(outputs, **weights)
        sums.append(pretraining.counts(outputs, half_features, half_masked))
    np.testing.assert_allclose(total, model.total_loss(whole), rtol=1e-5)
    for name, expected in pretraining.counts(whole, features, masked).items():
        np.testing.assert_allclose(sums[0][name] + sums[1][name], expected, rtol=1e-5)


def test_losses_and_labels_against_numpy():
    model, (features, masked) = pretrainer(gen_weight=2.0, disc_weight=30.0), batch()
    outputs = {k: v.numpy() for k, v in model.losses(features, masked, uniforms()).items()}
    ids, real = features["input_ids"], features["input_mask"]
    used = masked.masked_lm_weights > 0
    log_probs = scipy.special.log_softmax(outputs["mlm_logits"].astype("float64"), axis=-1)
    chosen = np.take_along_axis(log_probs, masked.masked_lm_ids[..., None], -1)[..., 0]
    mlm = -chosen[used].mean()

    fake = ids.copy()
    for b, slot in zip(*np.nonzero(used), strict=True):
        fake[b, masked.masked_lm_positions[b, slot]] = outputs["sampled_ids"][b, slot]
    np.testing.assert_array_equal(outputs["fake_input_ids"], fake)
    np.testing.assert_array_equal(outputs["disc_labels"], fake != ids)
    assert 0 < outputs["disc_labels"].sum() <= used.sum()
    right = np.where(fake != ids, 1, -1) * outputs["disc_logits"].astype("float64")
    disc = np.log1p(np.exp(-right))[real > 0].mean()
    np.testing.assert_allclose(model.total_loss(outputs), 2 * mlm + 30 * disc, rtol=1e-5)

    hidden = model.discriminator(features | {"input_ids": fake})["sequence_output"]
    expected = model.discriminator_head(hidden)
    np.testing.assert_allclose(outputs["disc_logits"], expected, rtol=1e-5, atol=1e-5)


def gradients(model, name):
    features, masked = batch()
    with tf.GradientTape() as tape:
        loss = model.losses(features, masked, uniforms())[name]
    values = tape.gradient(loss, [v.value for v in model.trainable_variables])
    return {
        variable.path: 0.0 if value is None else float(tf.norm(tf.convert_to_tensor(value)))
        for variable, value in zip(model.trainable_variables, values, strict=True)
    }


@pytest.mark.parametrize("untied", [False, True])
def test_no_gradient_goes_through_sampling(untied):
    model = pretrainer({"untied_generator_embeddings": untied})
    shared = {v.path for v in model.generator.embeddings.trainable_variables} if not untied else ()
    generator = {
        v.path
        for layer in (model.generator, model.generator_head)
        for v in layer.trainable_variables
        if v.path not in shared
    }
    discriminator = {v.path for v in model.trainable_variables} - generator - set(shared)
    disc, mlm = gradients(model, "disc_loss_sum"), gradients(model, "mlm_loss_sum")
    assert generator and discriminator
    assert {name for name in generator if disc[name]} == set()
    assert {name for name in discriminator if mlm[name]} == set()
    assert all(mlm[name] and disc[name] for name in shared)
    assert all(mlm[name] for name in generator) and all(disc[name] for name in discriminator)


def test_tied_and_untied_embeddings():
    tied, untied = pretrainer(), pretrainer({"untied_generator_embeddings": True})
    assert tied.generator.embeddings is tied.discriminator.embeddings
    assert untied.generator.embeddings is not untied.discriminator.embeddings
    # Its own are as wide as the generator itself, as in the original: nothing to project.
    hidden_size = untied.generator.config.hidden_size
    assert hidden_size < tied.config.embedding_size
    assert untied.generator.embeddings.count_params() == (50 + 2 + 64 + 2) * hidden_size
    assert untied.generator.embeddings_project is None
    assert tied.generator.embeddings_project.kernel.shape == (8, 4)


def test_one_encoder_for_generator_and_discriminator():
    model, (features, masked) = pretrainer(untied_generator=False), batch()
    assert model.generator is model.discriminator
    assert model.generator_head.dense.kernel.shape == (16, 8)
    separate = pretrainer()
    extra = model.generator_head.count_params() - separate.generator_head.count_params()
    shared = separate.generator.count_params() - separate.discriminator.embeddings.count_params()
    assert model.count_params() == separate.count_params() - shared + extra
    outputs = model.losses(features, masked, uniforms())
    hidden = model.encoder(features | {"input_ids": masked.masked_input_ids})["sequence_output"]
    rows = tf.gather(hidden, masked.masked_lm_positions, batch_dims=1)
    expected = model.generator_head(rows, model.encoder.embeddings.word_embeddings)
    np.testing.assert_allclose(outputs["mlm_logits"], expected, rtol=1e-5, atol=1e-5)
    disc, mlm = gradients(model, "disc_loss_sum"), gradients(model, "mlm_loss_sum")
    encoder = {variable.path for variable in model.encoder.trainable_variables}
    assert all(disc[name] and mlm[name] for name in encoder)


@pytest.mark.parametrize("disallow", [False, True])
def test_a_uniform_generator_samples_the_whole_vocabulary_alike(disallow):
    model = pretrainer(uniform_generator=True, disallow_correct=disallow)
    assert model.generator is None and model.generator_head is None
    features, masked = batch(64)
    used = masked.masked_lm_weights > 0
    counts = np.zeros(50)
    for seed in range(60):
        outputs = model.losses(features, masked, uniforms(64, seed=seed))
        sampled = outputs["sampled_ids"].numpy()
        counts += np.bincount(sampled[used], minlength=50)
        if disallow:
            assert (sampled != masked.masked_lm_ids)[used].all()
    assert len(counts) == 50
    if not disallow:
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    largest = np.full((64, 4), np.nextafter(np.float32(1), 0))
    top = model.losses(features, masked, largest)["sampled_ids"].numpy()
    correct = masked.masked_lm_ids
    np.testing.assert_array_equal(top, np.where(disallow & (correct == 49), 48, 49))
    assert not {"mlm_logits", "mlm_loss_sum"} & set(outputs)
    mean = outputs["disc_loss_sum"] / outputs["disc_weight"]
    np.testing.assert_allclose(model.total_loss(outputs), 50 * mean, rtol=1e-5)
    with pytest.raises(ValueError, match="give sample_uniforms"):
        model.losses(features, masked)


@pytest.mark.parametrize("disallow", [False, True])
def test_the_correct_token_can_be_disallowed(disallow):
    model, (features, masked) = pretrainer(disallow_correct=disallow), batch(16)
    used = masked.masked_lm_weights > 0
    hits = 0
    extremes = [np.zeros((16, 4), "float32"), np.full((16, 4), np.nextafter(np.float32(1), 0))]
    for u in [uniforms(16, seed=seed) for seed in range(5)] + extremes:
        sampled = model.losses(features, masked, u)["sampled_ids"].numpy()
        hits += (sampled == masked.masked_lm_ids)[used].sum()
    assert hits == 0 if disallow else hits > 0


def test_temperature():
    cold, (features, masked) = pretrainer(temperature=1e-4), batch()
    best = cold.losses(features, masked)["sampled_ids"]
    np.testing.assert_array_equal(cold.losses(features, masked, uniforms())["sampled_ids"], best)
    warm = pretrainer(temperature=1.0).losses(features, masked, uniforms())["sampled_ids"]
    assert (warm.numpy() != best.numpy()).any()


def test_objective_mlm():
    model, (features, masked) = pretrainer(objective="mlm", gen_weight=3.0), batch()
    assert model.discriminator_head is None and model.generator is model.discriminator
    outputs = model.losses(features, masked)
    assert not any(name.startswith("disc") for name in outputs)
    mean = outputs["mlm_loss_sum"] / outputs["mlm_weight"]
    np.testing.assert_allclose(model.total_loss(outputs), 3 * mean, rtol=1e-5)
    hidden = model.encoder(features | {"input_ids": masked.masked_input_ids})["sequence_output"]
    rows = tf.gather(hidden, masked.masked_lm_positions, batch_dims=1)
    expected = model.generator_head(rows, model.encoder.embeddings.word_embeddings)
    np.testing.assert_allclose(outputs["mlm_logits"], expected, rtol=1e-5, atol=1e-5)


def test_metrics_are_those_of_sklearn():
    rng = np.random.default_rng(8)
    labels = (rng.random((20, 60)) < 0.2).astype("int32")
    logits = (rng.normal(size=labels.shape) + 1.5 * labels).astype("float32")
    real = np.arange(60)[None] < rng.integers(10, 61, (20, 1))
    logits[~real] = 9  # padding does not count
    masked = masking.MaskedInputs(None, None, rng.integers(0, 5, (20, 9)), np.ones((20, 9), "f"))
    masked.masked_lm_weights[:, 6:] = 0
    mlm_logits = rng.normal(size=(20, 9, 5)).astype("float32")
    outputs = {
        "mlm_logits": mlm_logits,
        "mlm_loss_sum": np.float32(240),
        "mlm_weight": np.float32(120),
        "sampled_ids": rng.integers(0, 5, (20, 9)).astype("int32"),
        "disc_logits": logits,
        "disc_labels": labels,
        "disc_loss_sum": np.float32(30),
        "disc_weight": np.float32(real.sum()),
    }
    masked = masked._replace(masked_lm_ids=masked.masked_lm_ids.astype("int32"))
    found = pretraining.metrics(
        pretraining.counts(outputs, {"input_mask": real.astype("int32")}, masked)
    )
    truth, guess = labels[real], logits[real] > 0
    correct = masked.masked_lm_ids[:, :6]
    expected = {
        "masked_lm_loss": 2.0,
        "masked_lm_accuracy": np.mean(mlm_logits.argmax(-1)[:, :6] == correct),
        "sampled_masked_lm_accuracy": np.mean(outputs["sampled_ids"][:, :6] == correct),
        "disc_loss": 30 / real.sum(),
        "disc_accuracy": np.mean(guess == truth),
        "disc_precision": sklearn.metrics.precision_score(truth, guess),
        "disc_recall": sklearn.metrics.recall_score(truth, guess),
    }
    auc = sklearn.metrics.roc_auc_score(truth, logits[real])
    assert abs(found.pop("disc_auc") - auc) < 0.002 and auc > 0.7
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"objective": "mlm"}, {"uniform_generator": True}, {"untied_generator": False}]
)
def test_the_task_does_the_same_step(options):
    model, (features, _) = pretrainer(**options), batch()
    task = pretraining.PretrainingTask(model, TOKENS, None)
    draws = np.random.default_rng(9).random((4, 3, 30), "float32")
    prepared, weights = task.prepare(features | {"uniforms": draws})
    masked = masking.mask_inputs(features, draws[:, :2], TOKENS, model.pretraining)
    outputs = model.losses(features, masked, draws[:, 2, :4])
    terms, counts = task.losses(prepared, training=False)
    total = sum(scale * loss / weights[name] for name, (scale, loss) in terms.items())
    np.testing.assert_allclose(total, model.total_loss(outputs), rtol=1e-5)
    shapes = {name: tuple(value.shape) for name, value in counts.items()}
    assert shapes == task.count_shapes
    names = {"disc_auc"} if model.generator is None else {"masked_lm_loss", "masked_lm_accuracy"}
    assert names <= set(task.metrics(counts)) and "damaged_records" not in task.metrics(counts)
    task.damaged = {("a", 1): None, ("a", 2): None}
    assert task.metrics(counts)["damaged_records"] == 2
    assert task.flops(30) == flops.pretraining_flops(model.config, model.pretraining, 30)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_step_compiled_and_in_mixed_precision(policy):
    keras.utils.set_random_seed(2)
    model, (features, masked) = ConvBertPretrainer(tiny(), dtype=policy), batch()

    def step(features, masked, uniforms):
        return model.total_loss(model.losses(features, masked, uniforms))

    if policy == "float32":
        step = tf.function(step, jit_compile=True)
    exact = pretrainer()
    expected = exact.total_loss(exact.losses(features, masked))
    loss = step(features, masked, uniforms())
    assert loss.dtype == "float32" and abs(loss - expected) < 0.2 * expected


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "electra", "temperature": 0.7, "disallow_correct": True},
        {"uniform_generator": True},
        {"untied_generator": False},
    ],
)
def test_config_round_trip(options):
    model = pretrainer(**options)
    written = keras.saving.serialize_keras_object(model)
    copy = keras.saving.deserialize_keras_object(written)
    assert copy.config == model.config and copy.pretraining == model.pretraining
    assert [w.shape for w in copy.weights] == [w.shape for w in model.weights]
