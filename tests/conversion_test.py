"""From any format to any other, and the tool that does it."""

import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import (
    ConvBertEncoder,
    ConvBertPretrainer,
    ModelConfig,
    QuestionAnswerer,
    TextClassifier,
    conversion,
)
from convbert_tf.console import UserError
from convbert_tf.modeling import presets
from convbert_tf.training import checkpoints, optimization
from tests import goldens
from tests.goldens import FINETUNING, PRETRAINING
from tests.modeling.encoder_test import tiny
from tests.tools_test import assert_one_line, run_tool
from tests.weights.presets_test import randomize, same


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    return path


@pytest.fixture
def preset(tmp_path, vocab_file):
    """A classifier and its preset."""
    model = randomize(TextClassifier(ConvBertEncoder(tiny(head_ratio=2)), 2, labels=["a", "b"]))
    model.set_weights([0.3 * weight for weight in model.get_weights()])
    model.save_to_preset(tmp_path / "preset", vocab_file, lower_case=False)
    return model, tmp_path / "preset"


@pytest.mark.parametrize("name", PRETRAINING + FINETUNING)
def test_an_original_goes_round_by_a_preset(name, tmp_path):
    """original -> preset -> original: the same bytes of every tensor, and the same outputs."""
    task = goldens.config(name).get("task")
    rows = conversion.convert(goldens.path(name), tmp_path / "preset")
    assert dict(rows)["written and read again"].startswith("0.0e+00")
    conversion.convert(tmp_path / "preset", tmp_path / "back", "original", task=task)
    given, back = (
        tf.train.load_checkpoint(str(path / "model.ckpt"))
        for path in (goldens.path(name), tmp_path / "back")
    )
    names = back.get_variable_to_shape_map()
    assert names.keys() == given.get_variable_to_shape_map().keys()
    for key in names:
        np.testing.assert_array_equal(back.get_tensor(key), given.get_tensor(key))
    vocab = (goldens.path(name) / "vocab.txt").read_text()
    assert (tmp_path / "back" / "vocab.txt").read_text() == vocab


def test_a_classifier_goes_round_by_every_format(preset, tmp_path):
    model, directory = preset
    for number, (to_format, task) in enumerate(
        [("huggingface", None), ("preset", None), ("original", "mine"), ("preset", None)]
    ):
        target = tmp_path / str(number)
        rows = dict(conversion.convert(directory, target, to_format, task=task, lower_case=False))
        assert float(rows["written and read again"].split()[0]) < 1e-6
        assert rows["to"] == f"{to_format}, TextClassifier: {target}"
        assert rows["parameters"] == f"{model.count_params():,}"
        directory = target
    back = TextClassifier.from_preset(directory)
    same(back, model)
    assert back.labels == ["a", "b"]
    assert presets.vocabulary(directory)[1] is False


def test_a_published_checkpoint_needs_only_its_size(tmp_path, monkeypatch):
    small = ModelConfig.small
    monkeypatch.setattr(ModelConfig, "small", lambda: small(vocab_size=50, num_hidden_layers=1))
    model = randomize(ConvBertPretrainer(ModelConfig.small()))
    conversion.save_original(model, str(tmp_path / "in" / "model.ckpt-7"))
    with pytest.raises(UserError, match="does not tell its architecture: give --config"):
        conversion.convert(tmp_path / "in", tmp_path / "out")
    conversion.convert(tmp_path / "in" / "model.ckpt-7", tmp_path / "out", config="small")
    same(ConvBertPretrainer.from_preset(tmp_path / "out"), model)


def test_the_last_of_several_checkpoints(tmp_path):
    for number in (1, 2):
        model = ConvBertEncoder(tiny())
        conversion.save_original(model, str(tmp_path / "in" / f"model.ckpt-{number}"))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(conversion.original_config(model)))
    with pytest.raises(UserError, match="several checkpoints: name one"):
        conversion.convert(tmp_path / "in", tmp_path / "out", config=config)
    (tmp_path / "in" / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-2"\n')
    conversion.convert(tmp_path / "in", tmp_path / "out", config=config)
    same(ConvBertEncoder.from_preset(tmp_path / "out"), model)


def test_an_encoder_can_be_trained_further(preset, tmp_path, capsys):
    conversion.convert(preset[1], tmp_path / "out", "preset", pretrainer=True)
    assert "generator and the heads of the pretrainer have random" in capsys.readouterr().out
    model = ConvBertPretrainer.from_preset(tmp_path / "out")
    same(model.discriminator, preset[0].encoder)
    assert model.generator.embeddings is model.discriminator.embeddings


def test_a_run_goes_on_from_the_moments_of_an_original(tmp_path):
    model, adam = randomize(ConvBertPretrainer(tiny())), optimization.AdamW(1e-3)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        gradients = [tf.constant(rng.normal(size=w.shape), "float32") for w in model.weights]
        adam.apply(gradients, model.trainable_variables)
    conversion.save_original(model, str(tmp_path / "in" / "model.ckpt"), optimizer=adam)
    config = json.dumps(conversion.original_config(model))
    (tmp_path / "in" / "config.json").write_text(config)
    conversion.convert(tmp_path / "in", tmp_path / "out", optimizer=True)
    same(ConvBertPretrainer.from_preset(tmp_path / "out"), model)

    new, new_adam = ConvBertPretrainer(tiny()), optimization.AdamW(1e-3)
    new_adam.build(new.trainable_variables)
    said = checkpoints.initialize(new, new_adam, tmp_path / "out", with_optimizer=True)
    assert "weights and moments of" in said and "ckpt-2" in said
    same(new, model)
    for slots in ("_momentums", "_velocities"):
        for ours, theirs in zip(getattr(new_adam, slots), getattr(adam, slots), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert np.abs(ours.numpy()).max() > 0


def test_differences_are_seen():
    values = {"logits": np.array([1.0, -4.0]), "more": np.ones(2)}
    other = {"logits": np.array([1.0, -4.2])}
    assert conversion._difference(values, values).startswith("0.0e+00 largest")
    assert conversion._difference(other, values).startswith("5.0e-02 largest")


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, pytest.param(True, marks=pytest.mark.peers)])
def test_transformers_is_compared_where_it_is(preset, tmp_path, monkeypatch, installed):
    if installed:
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    else:
        monkeypatch.setitem(sys.modules, "torch", None)
    rows = dict(conversion.convert(preset[1], tmp_path / "out"))
    shown = rows["transformers on it"]
    if installed:
        assert float(shown.split()[0]) < 1e-5 and "(logits)" in shown
    else:
        assert "not installed" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to_format": "onnx"}, "'onnx' is none of preset"),
        ({"to_format": "original"}, "needs the original's name of its task"),
        ({"config": "small"}, "is no checkpoint of the original"),
        ({"vocab_file": "no/vocab.txt"}, "no/vocab.txt is not there"),
        ({"vocab_file": "tests"}, "tests is not there, or no file"),
        ({"generator": True, "to_format": "preset"}, "Hugging Face's format only"),
        ({"generator": True}, "TextClassifier without a generator"),
        ({"optimizer": True}, "from an original checkpoint to a preset only"),
    ],
)
def test_what_cannot_be_written_is_refused(preset, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        conversion.convert(preset[1], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(preset, tmp_path):
    (tmp_path / "file").touch()
    for source, target, message in (
        (preset[1], tmp_path / "file", "is there already"),
        (preset[1], "", "name the model to read and the directory"),
        ("", tmp_path / "out", "name the model to read and the directory"),
    ):
        with pytest.raises(UserError, match=message):
            conversion.convert(source, target)
    with pytest.raises(UserError, match="is there already and not empty"):
        conversion.convert(preset[1], preset[1])
    same(TextClassifier.from_preset(preset[1]), preset[0])


def test_a_joint_question_answerer_is_refused_by_hugging_face(tmp_path):
    QuestionAnswerer(ConvBertEncoder(tiny(head_ratio=2))).save_to_preset(tmp_path / "in")
    with pytest.raises(UserError, match="scores starts and ends independently"):
        conversion.convert(tmp_path / "in", tmp_path / "out")


def test_a_config_that_is_none(preset, tmp_path):
    conversion.save_original(preset[0], str(tmp_path / "in" / "model.ckpt"), "mine")
    (tmp_path / "in" / "config.json").write_text("[]")
    with pytest.raises(UserError, match="config.json must hold an object, not a list"):
        conversion.convert(tmp_path / "in", tmp_path / "out")


@pytest.mark.slow
def test_the_tool_prints_a_summary(preset, tmp_path):
    process = run_tool(
        "convert_checkpoint", f"--from={preset[1]}", f"--to={tmp_path}/out", "--to_format=original",
        "--task=sst",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0].split() == ["from", "preset,", "TextClassifier:", str(preset[1])]
    assert lines[-1].startswith("written and read again  0.0e+00")
    process = run_tool("convert_checkpoint", f"--from={tmp_path}/out", f"--to={tmp_path}/back")
    assert process.returncode == 0, process.stderr
    same(TextClassifier.from_preset(tmp_path / "back"), preset[0])


@pytest.mark.slow
def test_the_tool_tells_mistakes_in_one_line(preset, tmp_path, monkeypatch):
    # TensorFlow sets it to 1 when it is imported, here, and the tool would inherit it.
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    to = f"--to={tmp_path}/out"
    process = run_tool("convert_checkpoint", "--from=no/model", to)
    assert_one_line(process, 1, "no/model", "is not there")
    assert_one_line(run_tool("convert_checkpoint", "--from=x"), 2, "--to")
    flag = "--to_format=onnx"
    assert_one_line(run_tool("convert_checkpoint", "--from=x", to, flag), 2, "to_format")
    shutil.copytree(preset[1], tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1])
    process = run_tool("convert_checkpoint", f"--from={tmp_path}/damaged", to)
    assert_one_line(process, 1, "hash differs")
