"""Hugging Face's directories against its golden tensors, and against `transformers` itself."""

import itertools
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest

from convbert_tf import (
    ConvBertEncoder,
    ConvBertPretrainer,
    ModelConfig,
    PretrainingConfig,
    QuestionAnswerer,
    TextClassifier,
    TokenClassifier,
    conversion,
)
from convbert_tf.console import UserError
from convbert_tf.modeling import huggingface, storing
from convbert_tf.weights import huggingface as stored_huggingface
from convbert_tf.weights import huggingface_files
from tests import goldens
from tests.goldens import error, needs
from tests.modeling.backends_test import run_python
from tests.modeling.encoder_test import tiny
from tests.weights.presets_test import randomize, same

HEADS = {
    "encoder": ("ConvBertModel", lambda encoder: encoder),
    "sequence_classification": (
        "ConvBertForSequenceClassification",
        lambda encoder: TextClassifier(encoder, 3, 0.2, ["a", "b", "c"], hidden_layer=True),
    ),
    "token_classification": (
        "ConvBertForTokenClassification",
        lambda encoder: TokenClassifier(encoder, 5, 0.3),
    ),
    "question_answering": (
        "ConvBertForQuestionAnswering",
        lambda encoder: QuestionAnswerer(encoder, joint=False, mask_logits=False),
    ),
    "masked_lm": (
        "ConvBertForMaskedLM",
        lambda encoder: ConvBertPretrainer(encoder.config, PretrainingConfig(objective="mlm")),
    ),
}
OTHER_FILES = [
    ("encoder", "pytorch_model.bin"),
    ("sequence_classification", "pytorch_model.bin"),
    ("sequence_classification", "tf_model.h5"),
]


def golden_file(head, name):
    """A case of a parametrised test: PyTorch's files are for runs with --peers."""
    marks = [needs(f"huggingface/{head}/{name}")]
    marks += [pytest.mark.peers] if name.endswith(".bin") else []
    return pytest.param(head, name, marks=marks)


FILES = [golden_file(head, "model.safetensors") for head in HEADS]
FILES += [golden_file(*case) for case in OTHER_FILES]


def make(head, config=None):
    """A model of this kind with weights of a trained one's size."""
    encoder = ConvBertEncoder(config or tiny(head_ratio=2, pad_token_id=3))
    model = randomize(HEADS[head][1](encoder))
    model.set_weights([0.3 * weight for weight in model.get_weights()])
    return model


def golden_directory(head, weights_file, tmp_path):
    for name in ("config.json", weights_file):
        shutil.copy(goldens.path(f"huggingface/{head}/{name}"), tmp_path / name)
    return tmp_path


def golden_inputs(golden):
    names = {"input_ids": "input_ids", "input_mask": "attention_mask"}
    names["segment_ids"] = "token_type_ids"
    return {ours: golden[f"in/{theirs}"] for ours, theirs in names.items()}


@pytest.mark.parametrize(("head", "weights_file"), FILES)
def test_goldens(head, weights_file, tmp_path):
    if weights_file.endswith(".bin"):
        pytest.importorskip("torch")
    golden = goldens.tensors(f"huggingface/{head}")
    model = huggingface.load(golden_directory(head, weights_file, tmp_path))
    inputs = golden_inputs(golden)
    states = getattr(model, "encoder", model)(inputs)
    hidden_states = [states["embedding_output"], *states["hidden_states"]]
    for i, state in enumerate(hidden_states):
        assert error(state, golden[f"out/hidden_states/{i}"]) < 1e-5
    outputs = model(inputs)
    if head == "masked_lm":
        table = model.generator.embeddings.word_embeddings
        outputs = {"logits": model.generator_head(outputs["sequence_output"], table)}
    elif head == "encoder":
        outputs = {"last_hidden_state": outputs["sequence_output"]}
    elif head != "question_answering":
        outputs = {"logits": outputs}
    names = {name[4:] for name in golden if name.startswith("out/") and "hidden_states" not in name}
    assert names <= outputs.keys()
    for name in names:
        assert error(outputs[name], golden[f"out/{name}"]) < 1e-5, name


def grid():
    for groups, kernel_size, embedding_size in itertools.product((1, 2, 3), (5, 7, 9), (24, 8)):
        yield tiny(
            hidden_size=24,
            num_hidden_layers=1,
            intermediate_size=36,
            embedding_size=embedding_size,
            linear_groups=groups,
            conv_kernel_size=kernel_size,
            head_ratio=2,
            pad_token_id=4,
        )


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_transformers_gives_the_same_logits(head, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for i, config in enumerate(grid()):
        model, directory = make(head, config), tmp_path / str(i)
        huggingface.save(model, directory)
        theirs = conversion.transformers_outputs(directory, storing.describe(model))
        ours = conversion.outputs(model)
        names = theirs.keys() & ours.keys()
        assert len(names) == {"masked_lm": 2, "question_answering": 2}.get(head, 1)
        for name in names:
            assert error(ours[name], theirs[name]) < 1e-5, (config, name)


@pytest.mark.parametrize("head", HEADS)
def test_there_and_back_keeps_every_bit(head, tmp_path, capsys):
    model = make(head)
    huggingface.save(model, tmp_path)
    loaded = huggingface.load(tmp_path)
    assert type(loaded) is type(model) and capsys.readouterr().out == ""
    same(loaded, model)
    assert getattr(loaded, "encoder", loaded).config == getattr(model, "encoder", model).config
    if hasattr(model, "_options"):
        assert loaded._options() | {"name": ""} == model._options() | {"name": ""}
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == [HEADS[head][0]] and values["pad_token_id"] == 3


def test_a_masked_question_answerer_is_one_again(tmp_path):
    """Its weights give bare logits in transformers; here they are masked as before."""
    model = randomize(QuestionAnswerer(ConvBertEncoder(tiny(head_ratio=2)), joint=False))
    huggingface.save(model, tmp_path / "ours")
    assert huggingface.load(tmp_path / "ours").mask_logits
    values = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert values.pop("mask_logits") is True
    (tmp_path / "ours" / "config.json").write_text(json.dumps(values))
    theirs = huggingface.load(tmp_path / "ours")
    assert not theirs.joint and not theirs.mask_logits
    same(theirs, model)


@pytest.mark.peers
def test_names_of_labels_and_padding_are_known_to_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    huggingface.save(make("sequence_classification"), tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == {0: "a", 1: "b", 2: "c"} and config.pad_token_id == 3
    assert config.classifier_dropout == 0.2 and config.head_ratio == 2
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert model.num_labels == 3
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))


def test_what_a_config_leaves_out_is_the_base_models():
    config = stored_huggingface.model_config({"model_type": "convbert"})
    base = ModelConfig.base().to_dict()
    assert config.to_dict() == base | {"pad_token_id": 1}
    assert stored_huggingface.model_config({"pad_token_id": None}).pad_token_id == 0


@pytest.mark.parametrize("num_classes", [1, 3, 8])
@pytest.mark.parametrize("hidden_act", ["gelu", "relu", "silu"])
def test_the_originals_classifier_goes_through_a_hidden_layer(tmp_path, num_classes, hidden_act):
    config = tiny(head_ratio=2, hidden_act=hidden_act)
    model = randomize(TextClassifier(ConvBertEncoder(config), num_classes, 0.3))
    huggingface.save(model, tmp_path)
    path, tensors = read_weights(tmp_path)
    assert path.endswith("model.safetensors") and tensors["classifier.dense.weight"].any()
    back = huggingface.load(tmp_path)
    assert not back.hidden_layer
    same(back, model)
    # What is there has the same logits, in the network that Hugging Face has.
    wide = TextClassifier(back.encoder, num_classes, hidden_layer=True)
    names = ("classifier.dense", "classifier.out_proj")
    for layer, name in zip((wide.hidden, wide.logits), names, strict=True):
        layer.set_weights([tensors[f"{name}.weight"].T, tensors[f"{name}.bias"]])
    expected = conversion.outputs(model)["logits"]
    assert error(conversion.outputs(wide)["logits"], expected) < 1e-6


def test_a_hidden_layer_that_was_trained_stays(tmp_path):
    model = TextClassifier(ConvBertEncoder(tiny(head_ratio=2)), 2)
    huggingface.save(model, tmp_path)
    path, tensors = read_weights(tmp_path)
    tensors["classifier.out_proj.bias"] = np.array([0, 1e-3], "float32")
    write_safetensors(path, tensors)
    assert huggingface.load(tmp_path).hidden_layer


def read_weights(directory):
    """Path of the weights file, and name -> values."""
    path, tensors = huggingface_files.read_weights(directory)
    return path, {name: array.read() for name, array in tensors.items()}


def write_safetensors(path, tensors):
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_only_base_has_a_generator_that_hugging_face_can_hold(tmp_path):
    sizes = {"hidden_size": 48, "embedding_size": 48, "num_attention_heads": 12, "vocab_size": 50}
    config = ModelConfig.base(**sizes, num_hidden_layers=1, intermediate_size=64)
    model = randomize(ConvBertPretrainer(config))
    huggingface.save(model, tmp_path / "base", generator=True)
    loaded = huggingface.load(tmp_path / "base")
    assert loaded.config.num_attention_heads == 4
    same(loaded.generator, model.generator)
    same(loaded.generator_head, model.generator_head)
    small = ConvBertPretrainer(tiny(num_attention_heads=4, generator_hidden_size=0.25))
    with pytest.raises(UserError, match="num_attention_heads 1 with.*hidden / kept heads / 2"):
        huggingface.save(small, tmp_path / "small", generator=True)
    assert not (tmp_path / "small").exists()
    with pytest.raises(UserError, match="without a generator has none"):
        huggingface.save(model.encoder, tmp_path / "small", generator=True)


def test_of_a_pretrainer_the_encoder_is_written_and_the_rest_is_told(tmp_path, capsys):
    model = randomize(ConvBertPretrainer(tiny(head_ratio=2)))
    huggingface.save(model, tmp_path)
    assert "only the discriminator's encoder" in capsys.readouterr().out
    same(huggingface.load(tmp_path), model.discriminator)


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: QuestionAnswerer(ConvBertEncoder(tiny())), "starts and ends independently"),
        (lambda: QuestionAnswerer(ConvBertEncoder(tiny()), True, joint=False), "independently"),
        (lambda: TextClassifier(ConvBertEncoder(tiny()), 9), "cannot hold 9 logits"),
        (lambda: TextClassifier(ConvBertEncoder(tiny(hidden_act="tanh")), 2), "cannot hold"),
        (lambda: ConvBertEncoder(tiny(head_ratio=1)), "head_ratio 1"),
        (lambda: ConvBertEncoder(tiny(num_attention_heads=1)), "num_attention_heads 1"),
        (lambda: ConvBertEncoder(tiny(conv_type="noconv")), "always has its convolution"),
        (lambda: ConvBertEncoder(tiny(conv_type="dconv")), "conv_type 'dconv'"),
        (lambda: ConvBertEncoder(tiny(mask_convolution=True)), "never masks it"),
        (lambda: ConvBertEncoder(tiny(hidden_act="elu")), "hidden_act 'elu'"),
        (
            lambda: ConvBertPretrainer(tiny(hidden_act="relu"), PretrainingConfig(objective="mlm")),
            "masked LM head has gelu",
        ),
    ],
)
def test_what_hugging_face_cannot_hold_is_refused(tmp_path, make_model, message):
    with pytest.raises(UserError, match=message):
        huggingface.save(make_model(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "holds a bert"),
        ({"num_attention_heads": 1}, "num_attention_heads 1 with head_ratio 2"),
        ({"num_attention_heads": 3, "hidden_size": 48}, "number of heads even"),
        ({"head_ratio": 4}, "head_ratio 4"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"is_decoder": True}, "only encoders"),
        ({"num_hidden_layers": 3}, "has no 'convbert.encoder.layer.2"),
        ({"vocab_size": 60}, "word_embeddings.weight' has shape"),
        ({"tie_word_embeddings": False}, "output weights of its own"),
    ],
)
def test_what_computes_something_else_there_is_refused(tmp_path, changes, message):
    model = make("masked_lm")
    huggingface.save(model, tmp_path)
    path, tensors = read_weights(tmp_path)
    tensors["generator_lm_head.weight"] = np.ones((50, 8), "float32")
    write_safetensors(path, tensors)
    same(huggingface.load(tmp_path), model)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["ConvBertForMultipleChoice"]}, "head of ConvBertForMultipleChoice"),
        ({"architectures": ["ConvBertModel"]}, "4 weights without a place here are left out"),
    ],
)
def test_a_head_without_a_counterpart_is_told_and_left_out(tmp_path, capsys, changes, message):
    model = make("sequence_classification")
    huggingface.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    same(huggingface.load(tmp_path), model.encoder)
    assert message in capsys.readouterr().out


def test_several_labels_are_theirs_too(tmp_path, capsys):
    encoder = ConvBertEncoder(tiny(head_ratio=2))
    model = randomize(TextClassifier(encoder, 3, labels=["a", "b", "c"], multi_label=True))
    huggingface.save(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["problem_type"] == "multi_label_classification"
    same(huggingface.load(tmp_path), model)
    assert huggingface.load(tmp_path).multi_label
    # Transformers knows a head for several labels of which there is one.
    one = TextClassifier(encoder, 1, hidden_layer=True)
    huggingface.save(one, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    changed = values | {"problem_type": "multi_label_classification"}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    same(huggingface.load(tmp_path), encoder)
    assert "several labels with only one has no counterpart" in capsys.readouterr().out


@pytest.mark.parametrize("head", HEADS)
def test_without_architectures_the_weights_tell_the_head(tmp_path, head):
    model = make(head)
    huggingface.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(huggingface.load(tmp_path)) is type(model)


def test_shards_half_precision_and_old_names(tmp_path):
    model = make("encoder")
    huggingface.save(model, tmp_path)
    path, tensors = read_weights(tmp_path)
    os.remove(path)
    half, shards = {}, ({}, {})
    for i, (name, values) in enumerate(tensors.items()):
        half[name] = values.astype("bfloat16")
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        shards[i % 2][f"convbert.{old}"] = half[name]
    index = {}
    for i, shard in enumerate(shards):
        write_safetensors(tmp_path / f"model-{i}.safetensors", shard)
        index |= dict.fromkeys(shard, f"model-{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    loaded = huggingface.load(tmp_path)
    variables = storing.variables(loaded)
    for name, part in stored_huggingface.weight_names(storing.describe(loaded)).items():
        expected = half[name.removeprefix("convbert.")].astype("float32")
        np.testing.assert_array_equal(part.slice(variables[part.name]), expected)
    os.remove(tmp_path / "model-1.safetensors")
    with pytest.raises(UserError, match=r"model-1\.safetensors is not there"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(("head", "weights_file"), FILES[-3:])
def test_damaged_weights_are_told_in_one_line(head, weights_file, tmp_path):
    if weights_file.endswith(".bin"):
        pytest.importorskip("torch")
    directory = golden_directory(head, weights_file, tmp_path)
    content = (directory / weights_file).read_bytes()
    (directory / weights_file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged") as caught:
        huggingface.load(directory)
    assert "\n" not in str(caught.value)


@needs(*(f"huggingface/{head}/{name}" for head, name in OTHER_FILES))
def test_pytorch_is_asked_for_only_where_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("model.safetensors", "tf_model.h5"):
        (tmp_path / name[:5]).mkdir()
        huggingface.load(golden_directory("sequence_classification", name, tmp_path / name[:5]))
    directory = golden_directory("encoder", "pytorch_model.bin", tmp_path)
    with pytest.raises(UserError, match="pip install torch"):
        huggingface.load(directory)


@pytest.mark.peers
def test_a_pickle_with_more_than_tensors_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    shutil.copy(goldens.path("huggingface/encoder/config.json"), tmp_path)
    torch.save({"weight": pathlib.PurePosixPath("code")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is damaged, or no such file"):
        huggingface.load(tmp_path)


@pytest.mark.slow
def test_jax_without_tensorflow(tmp_path):
    pytest.importorskip("jax")
    script = JAX.format(root=goldens.path("huggingface"), out=tmp_path)
    result = run_python(script, KERAS_BACKEND="jax")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-2:] == ["jax", "False"]


JAX = """
import sys
import keras, numpy as np
from convbert_tf import ConvBertEncoder, TextClassifier, huggingface
model = TextClassifier.from_preset("{root}/sequence_classification")
golden = np.load("{root}/sequence_classification/tensors.npz")
inputs = {{"input_ids": golden["in/input_ids"], "input_mask": golden["in/attention_mask"],
          "segment_ids": golden["in/token_type_ids"]}}
huggingface.save(model, "{out}/saved")
for each in (model, TextClassifier.from_preset("{out}/saved")):
    difference = np.abs(np.array(each(inputs)) - golden["out/logits"]).max()
    assert difference < 1e-5 * np.abs(golden["out/logits"]).max(), difference
print(keras.backend.backend(), "tensorflow" in sys.modules)
"""
