"""Loads every golden checkpoint and meets its tensors; there and back keeps every bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import ConvBertPretrainer, conversion, masking, optimization
from convbert_tf.console import UserError
from tests import goldens
from tests.goldens import FINETUNING, PRETRAINING, error, needs_golden

pytestmark = needs_golden
OUTPUT, GRADIENT = 1e-5, 1e-4


def load(name):
    return conversion.load_original(goldens.checkpoint(name), goldens.config(name))


def inputs(golden):
    return {name[3:]: tf.constant(value) for name, value in golden.items() if name[:3] == "in/"}


def only_shifts_a_softmax(name):
    """Weights whose gradient is zero in exact arithmetic; what they have is rounding noise."""
    squad_bias = "task_specific/squad" in name and name.endswith(("dense/bias", "dense_1/bias"))
    return name.endswith("self/key/bias") or squad_bias


def gradient_errors(model, gradients, golden, task=None):
    """(relative error, name) of each gradient; of noise relative to all gradients."""
    paths = [variable.path for variable in model.trainable_variables]
    found = dict(zip(paths, map(tf.convert_to_tensor, gradients), strict=True))
    largest = max(np.abs(value).max() for name, value in golden.items() if name[:5] == "grad/")
    for name, part in conversion.original_names(model, task).items():
        expected = golden[f"grad/{name}"]
        difference = np.abs(part.slice(found[part.variable.path]) - expected).max()
        scale = largest if only_shifts_a_softmax(name) else np.abs(expected).max()
        yield difference / scale, name


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_losses_logits_labels_and_gradients(name):
    golden, model = goldens.tensors(name), load(name)
    features = inputs(golden)
    masked = masking.MaskedInputs(*(features[field] for field in masking.MaskedInputs._fields))
    with tf.GradientTape() as tape:
        outputs = model.losses(features, masked)
        loss = model.total_loss(outputs)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])

    assert error(loss, golden["loss/total"]) < OUTPUT
    mlm_loss = outputs["mlm_loss_sum"] / outputs["mlm_weight"]
    assert error(mlm_loss, golden["loss/mlm"]) < OUTPUT
    disc_loss = outputs["disc_loss_sum"] / outputs["disc_weight"]
    assert error(disc_loss, golden["disc/loss"]) < OUTPUT
    assert error(outputs["mlm_logits"], golden["mlm/logits"]) < OUTPUT
    assert error(tf.sigmoid(outputs["disc_logits"]), golden["disc/probs"]) < OUTPUT
    np.testing.assert_array_equal(outputs["disc_labels"], golden["disc/labels"])
    np.testing.assert_array_equal(outputs["fake_input_ids"], golden["fake/input_ids"])
    assert max(gradient_errors(model, gradients, golden)) < (GRADIENT, "")


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_layer_of_generator_and_discriminator(name):
    golden, model = goldens.tensors(name), load(name)
    features = inputs(golden)
    runs = {
        "gen": (model.generator, golden["in/masked_input_ids"]),
        "disc": (model.discriminator, golden["fake/input_ids"]),
    }
    for scope, (encoder, input_ids) in runs.items():
        outputs = encoder(features | {"input_ids": input_ids}, return_attention_scores=True)
        assert error(outputs["embedding_output"], golden[f"{scope}/embedding_output"]) < OUTPUT
        assert error(tf.stack(outputs["hidden_states"]), golden[f"{scope}/all_layers"]) < OUTPUT
        assert error(tf.stack(outputs["attention_scores"]), golden[f"{scope}/attn_maps"]) < OUTPUT


@pytest.mark.parametrize("name", FINETUNING)
def test_fine_tuned_predictions(name):
    golden, model = goldens.tensors(name), load(name)
    outputs = model(inputs(golden))
    if not isinstance(outputs, dict):
        key = "logits" if "eval/logits" in golden else "predictions"
        outputs = {key: outputs if key == "logits" else outputs[:, 0]}
    for key, value in outputs.items():
        if "index" in key:
            np.testing.assert_array_equal(value, golden[f"eval/{key}"])
        else:
            assert error(value, golden[f"eval/{key}"]) < OUTPUT, key


@pytest.mark.parametrize("name", FINETUNING)
def test_five_optimiser_steps(name):
    golden, config, model = goldens.tensors(name), goldens.config(name), load(name)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    batch = inputs(golden)
    batch["label_ids"] = batch.get("targets", batch.get("label_ids"))
    schedule = optimization.LinearWarmupDecay(config["learning_rate"], 10, warmup_steps=1)
    optimizer = optimization.AdamW(
        schedule,
        weight_decay_rate=config["weight_decay_rate"],
        layerwise_lr_decay=config["layerwise_lr_decay"],
        num_hidden_layers=3,
    )
    variables = model.trainable_variables
    for step, expected_loss in enumerate(golden["opt/losses"]):
        with tf.GradientTape() as tape:
            outputs = model(batch, training=True)
            loss = tf.reduce_sum(model.example_losses(outputs, batch))
        gradients = tape.gradient(loss, [v.value for v in variables])
        if step == 0:
            assert error(loss, golden["train/total_loss"]) < OUTPUT
            assert max(gradient_errors(model, gradients, golden, config["task"])) < (GRADIENT, "")
        assert error(loss, expected_loss) < OUTPUT
        optimizer.apply(gradients, variables)
        if step + 1 in (2, 5):
            rate = config["learning_rate"]
            for key, part in conversion.original_names(model, config["task"]).items():
                difference = np.abs(part.get() - golden[f"opt/after_{step + 1}/{key}"]).max()
                assert difference < 5e-3 * rate, key


@pytest.mark.parametrize("name", PRETRAINING + FINETUNING)
def test_there_and_back_keeps_every_bit(name, tmp_path):
    prefix, task = str(tmp_path / "model.ckpt"), goldens.config(name).get("task")
    conversion.save_original(load(name), prefix, task)
    saved, original = map(tf.train.load_checkpoint, (prefix, goldens.checkpoint(name)))
    shapes = saved.get_variable_to_shape_map()
    ours = {key for key in original.get_variable_to_shape_map() if "adam" not in key}
    assert set(shapes) == ours - {"global_step"}
    for key in shapes:
        np.testing.assert_array_equal(saved.get_tensor(key), original.get_tensor(key))


def test_huggingface_encoder():
    golden = goldens.tensors("huggingface/encoder")
    encoder = conversion.load_huggingface(goldens.GOLDEN / "huggingface/encoder")
    outputs = encoder(
        {
            "input_ids": golden["in/input_ids"],
            "input_mask": golden["in/attention_mask"],
            "segment_ids": golden["in/token_type_ids"],
        }
    )
    assert error(outputs["sequence_output"], golden["out/last_hidden_state"]) < OUTPUT
    hidden_states = [outputs["embedding_output"], *outputs["hidden_states"]]
    for i, state in enumerate(hidden_states):
        assert error(state, golden[f"out/hidden_states/{i}"]) < OUTPUT


def test_a_checkpoint_that_does_not_fit_is_refused():
    config = goldens.config("small_like")
    config["discriminator"]["num_hidden_layers"] = 4
    with pytest.raises(UserError, match="layer_3"):
        conversion.load_original(goldens.checkpoint("small_like"), config)
    config = goldens.config("small_like")
    config["discriminator"]["intermediate_size"] = 256
    with pytest.raises(UserError, match="shape"):
        conversion.load_original(goldens.checkpoint("small_like"), config)
    with pytest.raises(UserError, match="not there"):
        conversion.load_original("nowhere/model.ckpt", config)


def test_a_preset_of_a_converted_checkpoint_is_the_same_model(tmp_path):
    model = load("medium_small_like")
    model.save_to_preset(tmp_path)
    loaded = ConvBertPretrainer.from_preset(tmp_path)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
