"""Every golden checkpoint of the original: its tensors are met; there and back keeps every bit."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import (
    ConvBertEncoder,
    ConvBertPretrainer,
    PretrainingConfig,
    QuestionAnswerer,
    TextClassifier,
    TokenClassifier,
    conversion,
)
from convbert_tf.console import UserError
from convbert_tf.modeling import masking, storing
from convbert_tf.training import optimization
from convbert_tf.training.optimization import FusedAdamW
from convbert_tf.weights import original
from tests import goldens
from tests.goldens import FINETUNING, PRETRAINING, error
from tests.modeling.encoder_test import tiny
from tests.weights.presets_test import randomize, same

OUTPUT, GRADIENT = 1e-5, 1e-4


def load(name):
    return conversion.load_original(goldens.checkpoint(name), goldens.config(name))


def by_name(outputs, golden):
    """A fine-tuned model's outputs as a dict, under the golden's names."""
    if isinstance(outputs, dict):
        return outputs
    key = "logits" if "eval/logits" in golden else "predictions"
    return {key: outputs if key == "logits" else outputs[:, 0]}


def inputs(golden):
    return {name[3:]: tf.constant(value) for name, value in golden.items() if name[:3] == "in/"}


def only_shifts_a_softmax(name):
    """Weights whose gradient is zero in exact arithmetic; what they have is rounding noise."""
    squad_bias = "task_specific/squad" in name and name.endswith(("dense/bias", "dense_1/bias"))
    return name.endswith("self/key/bias") or squad_bias


def expected_arrays(golden, folder, model, task=None):
    """(name, our weight, expected array) of all that the golden holds below a folder."""
    names = conversion.original_names(model, task)
    for key, expected in golden.items():
        if key.startswith(folder):
            name = key.removeprefix(folder)
            yield name, names[name], expected


def gradient_errors(model, gradients, golden, task=None):
    """(relative error, name) of each gradient; of noise relative to all gradients."""
    paths = [variable.path for variable in model.trainable_variables]
    found = dict(zip(paths, map(tf.convert_to_tensor, gradients), strict=True))
    largest = max(np.abs(value).max() for name, value in golden.items() if name[:5] == "grad/")
    variables = storing.variables(model)
    for name, part, expected in expected_arrays(golden, "grad/", model, task):
        difference = np.abs(part.slice(found[variables[part.name].path]) - expected).max()
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
    for key, value in by_name(model(inputs(golden)), golden).items():
        if "index" in key:
            np.testing.assert_array_equal(value, golden[f"eval/{key}"])
        else:
            assert error(value, golden[f"eval/{key}"]) < OUTPUT, key


@pytest.mark.parametrize("name", FINETUNING)
@pytest.mark.parametrize("optimizer_class", [optimization.AdamW, FusedAdamW])
def test_five_optimiser_steps(name, optimizer_class):
    golden, config, model = goldens.tensors(name), goldens.config(name), load(name)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    batch = inputs(golden)
    batch["label_ids"] = batch.get("targets", batch.get("label_ids"))
    schedule = optimization.LinearWarmupDecay(config["learning_rate"], 10, warmup_steps=1)
    optimizer = optimizer_class(
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
        weights = storing.variables(model)
        after = f"opt/after_{step + 1}/"
        for key, part, expected in expected_arrays(golden, after, model, config["task"]):
            difference = np.abs(part.slice(weights[part.name]) - expected).max()
            assert difference < 5e-3 * config["learning_rate"], key


@pytest.mark.parametrize("name", PRETRAINING + FINETUNING)
def test_there_and_back_keeps_every_bit(name, tmp_path):
    prefix, task = str(tmp_path / "model.ckpt"), goldens.config(name).get("task")
    conversion.save_original(load(name), prefix, task)
    saved, given = map(tf.train.load_checkpoint, (prefix, goldens.checkpoint(name)))
    shapes = saved.get_variable_to_shape_map()
    expected = {key for key in given.get_variable_to_shape_map() if "adam" not in key}
    assert set(shapes) == expected - {"global_step"}
    for key in shapes:
        np.testing.assert_array_equal(saved.get_tensor(key), given.get_tensor(key))


def test_a_checkpoint_that_does_not_fit_is_refused():
    checkpoint = goldens.checkpoint("medium_small_like")
    config = goldens.config("medium_small_like")
    config["discriminator"]["num_hidden_layers"] = 4
    with pytest.raises(UserError, match="layer_3"):
        conversion.load_original(checkpoint, config)
    config = goldens.config("medium_small_like")
    config["discriminator"]["intermediate_size"] = 256
    with pytest.raises(UserError, match="shape"):
        conversion.load_original(checkpoint, config)
    with pytest.raises(UserError, match="not there"):
        conversion.load_original("nowhere/model.ckpt", config)
    with pytest.raises(UserError, match="global_step"):
        conversion.load_original_optimizer(
            checkpoint, load("medium_small_like"), optimization.AdamW(1e-3)
        )


def test_a_preset_of_a_converted_checkpoint_is_the_same_model(tmp_path):
    model = load("medium_small_like")
    model.save_to_preset(tmp_path)
    loaded = ConvBertPretrainer.from_preset(tmp_path)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def pretrainer(**options):
    return lambda: ConvBertPretrainer(tiny(), PretrainingConfig(**options))


OTHERS = {
    "untied": (lambda: ConvBertPretrainer(tiny(untied_generator_embeddings=True)), None),
    "one encoder": (pretrainer(untied_generator=False), None),
    "no generator": (pretrainer(uniform_generator=True, temperature=0.5), None),
    "bert": (
        lambda: ConvBertPretrainer(
            tiny(generator_hidden_size=0.3), PretrainingConfig(objective="mlm")
        ),
        None,
    ),
    "electra": (lambda: ConvBertPretrainer(tiny(conv_type="noconv", head_ratio=1)), None),
    "encoder": (lambda: ConvBertEncoder(tiny()), None),
    "dconv": (lambda: ConvBertEncoder(tiny(conv_type="dconv")), None),
    "labels": (lambda: TextClassifier(ConvBertEncoder(tiny()), 2, labels=["a", "b"]), "mine"),
    "tags": (lambda: TokenClassifier(ConvBertEncoder(tiny()), 5), "chunk"),
    "independent": (lambda: QuestionAnswerer(ConvBertEncoder(tiny()), True, 7, False), "squad"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_there_and_back_with_the_config_that_goes_along(kind, tmp_path):
    make, task = OTHERS[kind]
    model, prefix = randomize(make()), str(tmp_path / "model.ckpt")
    conversion.save_original(model, prefix, task)
    config = json.loads(json.dumps(conversion.original_config(model, task)))
    loaded = conversion.load_original(prefix, config)
    assert type(loaded) is type(model)
    same(loaded, model)
    assert loaded.get_config() | {"name": ""} == model.get_config() | {"name": ""} or task
    if task:
        assert loaded._options() | {"name": ""} == model._options() | {"name": ""}


def test_an_untied_generator_has_embeddings_of_its_hidden_size(tmp_path):
    config = tiny(untied_generator_embeddings=True, hidden_size=32, generator_hidden_size=0.5)
    model, prefix = ConvBertPretrainer(config), str(tmp_path / "model.ckpt")
    conversion.save_original(model, prefix)
    shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    assert shapes["generator/embeddings/word_embeddings"] == [50, 16]
    assert shapes["generator_predictions/dense/kernel"] == [16, 16]
    assert shapes["electra/embeddings/word_embeddings"] == [50, 8]
    assert not any(name.startswith("generator/embeddings_project") for name in shapes)


def train(model, optimizer, steps):
    rng = np.random.default_rng(7)
    for _ in range(steps):
        gradients = [tf.constant(rng.normal(size=w.shape), "float32") for w in model.weights]
        optimizer.apply(gradients, model.trainable_variables)


def test_training_goes_on_from_the_moments_and_the_step(tmp_path):
    def adam():
        return optimization.AdamW(optimization.LinearWarmupDecay(1e-2, 10, 4))

    model, prefix = ConvBertEncoder(tiny()), str(tmp_path / "model.ckpt")
    optimizer = adam()
    train(model, optimizer, 3)
    conversion.save_original(model, prefix, optimizer=optimizer)
    reader = tf.train.load_checkpoint(prefix)
    assert reader.get_tensor("global_step") == 3
    query = "electra/encoder/layer_0/attention/self/query/kernel"
    index = [w.path for w in model.weights].index(model.blocks[0].attention.projection.kernel.path)
    fused = optimizer._velocities[index].numpy()
    np.testing.assert_array_equal(reader.get_tensor(f"{query}/adam_v"), fused[:, :8])

    config = conversion.original_config(model)
    continued, fresh = (conversion.load_original(prefix, config) for _ in range(2))
    new = adam()
    assert conversion.load_original_optimizer(prefix, continued, new) == 3
    for each, its in ((model, optimizer), (continued, new), (fresh, adam())):
        train(each, its, 1)
    same(continued, model)
    assert np.abs(fresh.get_weights()[0] - model.get_weights()[0]).max() > 1e-4


def test_variables_without_a_place_are_told(tmp_path, capsys):
    model, prefix = ConvBertPretrainer(tiny()), str(tmp_path / "model.ckpt")
    conversion.save_original(model, prefix, optimizer=optimization.AdamW(1e-3))
    conversion.load_original(prefix, conversion.original_config(model))
    assert capsys.readouterr().out == ""
    conversion.load_original(prefix, conversion.original_config(model.discriminator))
    assert "variables are left out (discriminator_predictions/dense" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config needs 'discriminator'"),
        ({"encoder": {"hidden_sise": 3}}, "unknown key 'hidden_sise'"),
        ({"encoder": tiny().to_dict(), "task": "mine"}, "task 'mine' is not known"),
        (
            {"encoder": tiny().to_dict(), "task": "squad", "answerable_uses_start_logits": False},
            "answerable_uses_start_logits=False",
        ),
    ],
)
def test_a_config_that_describes_nothing_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        original.describe(config)


def test_what_the_original_has_not_is_refused(tmp_path):
    encoder = ConvBertEncoder(tiny())
    with pytest.raises(UserError, match="no hidden layer"):
        conversion.save_original(
            TextClassifier(encoder, 2, hidden_layer=True), str(tmp_path / "x"), "mnli"
        )
    with pytest.raises(UserError, match="name of its task"):
        conversion.save_original(TextClassifier(encoder, 2), str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path):
    model, prefix = ConvBertEncoder(tiny()), str(tmp_path / "model.ckpt")
    conversion.save_original(model, prefix)
    config = conversion.original_config(model)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read|damaged"):
        conversion.load_original(prefix, config)
    (tmp_path / "model.ckpt.index").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        conversion.load_original(prefix, config)


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with model.ckpt-100, and its config."""
    model = ConvBertEncoder(tiny())
    conversion.save_original(model, str(tmp_path / "in" / "model.ckpt-100"))
    config = tmp_path / "in" / "config.json"
    config.write_text(json.dumps(conversion.original_config(model)))
    return tmp_path / "in"


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
def test_a_file_of_a_checkpoint_is_no_prefix(checkpoint, suffix):
    path = f"{checkpoint}/model.ckpt-100.{suffix}"
    with pytest.raises(UserError, match=r"file of a checkpoint: give its prefix, .*ckpt-100\.$"):
        conversion.convert(path, checkpoint.parent / "out")
    with pytest.raises(UserError, match="give its prefix"):
        conversion.load_original(path, {"encoder": tiny().to_dict()})
    (checkpoint / "model.ckpt-100.index").unlink()
    for path in (f"{checkpoint}/model.ckpt-100.data-00000-of-00001", checkpoint):
        with pytest.raises(UserError, match="whose model.ckpt-100.index is missing"):
            conversion.convert(path, checkpoint.parent / "out")
    assert not (checkpoint.parent / "out").exists()


def test_a_checkpoint_of_the_first_format(tmp_path):
    (tmp_path / "model.ckpt-7").write_bytes(b"x")
    (tmp_path / "model.ckpt-7.meta").write_bytes(b"x")
    for path in (tmp_path / "model.ckpt-7", tmp_path):
        with pytest.raises(UserError, match="first format"):
            conversion.convert(path, tmp_path / "out")


def test_a_stale_checkpoint_file(checkpoint):
    (checkpoint / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-300"\n')
    conversion.convert(checkpoint, checkpoint.parent / "out")  # there is one only
    for suffix in ("index", "data-00000-of-00001"):
        file = checkpoint / f"model.ckpt-100.{suffix}"
        (checkpoint / f"model.ckpt-200.{suffix}").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="names model.ckpt-300, which is not there: name one of"):
        conversion.convert(checkpoint, checkpoint.parent / "new")
    (checkpoint / "checkpoint").write_bytes(b"\xff")
    with pytest.raises(UserError, match="names none: name one of"):
        conversion.convert(checkpoint, checkpoint.parent / "new")
    for path in checkpoint.glob("model.ckpt*"):
        path.unlink()
    with pytest.raises(UserError, match="a file `checkpoint`, but not the checkpoint"):
        conversion.convert(checkpoint, checkpoint.parent / "new")
    assert not (checkpoint.parent / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10**12}, "word_embeddings' has shape"),
        ({"num_hidden_layers": 2**31}, "too few for num_hidden_layers 2,147,483,648"),
        (
            {"hidden_size": "16"},
            'config.json: encoder.hidden_size must be a whole number, not "16"',
        ),
        ({"hidden_act": []}, "config.json: encoder.hidden_act must be text, not a list"),
    ],
)
def test_sizes_are_held_against_the_checkpoint(checkpoint, changes, message):
    config = json.loads((checkpoint / "config.json").read_text())
    config["encoder"] |= changes
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        conversion.convert(checkpoint, checkpoint.parent / "out")
    assert not (checkpoint.parent / "out").exists()
