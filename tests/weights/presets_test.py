"""Presets: there and back bit for bit; damage and foreign files are refused in one line."""

import json
import os
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import (
    ConvBertEncoder,
    ConvBertPretrainer,
    ModelConfig,
    PretrainingConfig,
    QuestionAnswerer,
    TextClassifier,
    TextPreprocessor,
    TokenClassifier,
    files,
)
from convbert_tf.console import UserError
from convbert_tf.modeling import presets
from convbert_tf.text import vocabulary
from convbert_tf.weights import presets as stored_presets
from tests.modeling.encoder_test import tiny
from tests.modeling.heads_test import inputs

MODELS = {
    "encoder": lambda: ConvBertEncoder(tiny()),
    "pretrainer": lambda: ConvBertPretrainer(tiny(), PretrainingConfig(temperature=0.5)),
    "untied": lambda: ConvBertPretrainer(tiny(untied_generator_embeddings=True)),
    "mlm": lambda: ConvBertPretrainer(tiny(), PretrainingConfig(objective="mlm")),
    "classifier": lambda: TextClassifier(ConvBertEncoder(tiny()), 2, 0.2, ["no", "yes"]),
    "hidden": lambda: TextClassifier(ConvBertEncoder(tiny()), 2, hidden_layer=True),
    "tagger": lambda: TokenClassifier(ConvBertEncoder(tiny()), 3, labels=["O", "B", "I"]),
    "answerer": lambda: QuestionAnswerer(ConvBertEncoder(tiny()), True, 4),
    "independent": lambda: QuestionAnswerer(ConvBertEncoder(tiny()), joint=False),
    "bare": lambda: QuestionAnswerer(ConvBertEncoder(tiny()), joint=False, mask_logits=False),
}
VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n"


def randomize(model):
    """None of the weights keeps its initial value."""
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape).astype("float32") for w in model.weights])
    return model


def make(kind):
    return randomize(MODELS[kind]())


@pytest.fixture
def saved(tmp_path):
    """An encoder and the preset of it."""
    model = make("encoder")
    model.save_to_preset(tmp_path / "preset")
    return model, tmp_path / "preset"


def same(model, other):
    assert len(model.weights) == len(other.weights)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back(tmp_path, kind):
    model = make(kind)
    vocab = tmp_path / "words.txt"
    vocab.write_text(VOCABULARY)
    model.save_to_preset(tmp_path / "preset", vocab, lower_case=False)
    loaded = type(model).from_preset(tmp_path / "preset")
    assert type(loaded) is type(model)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    same(loaded, model)
    outputs = zip(tf.nest.flatten(loaded(inputs())), tf.nest.flatten(model(inputs())), strict=True)
    for value, expected in outputs:
        np.testing.assert_array_equal(value, expected)
    files = ["README.md", "config.json", "model.weights.h5", "vocab.txt"]
    assert sorted(os.listdir(tmp_path / "preset")) == files
    assert presets.vocab_file(tmp_path / "preset") == str(tmp_path / "preset" / "vocab.txt")
    assert (tmp_path / "preset" / "vocab.txt").read_text() == VOCABULARY
    description = presets.describe(tmp_path / "preset")
    assert (description["lower_case"], description["strip_accents"]) == (False, False)
    assert type(model).__name__ in (tmp_path / "preset" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["pretrainer", "mlm", "encoder", "classifier"])
def test_fine_tuning_starts_from_the_encoder(tmp_path, kind):
    model = make(kind)
    model.save_to_preset(tmp_path)
    encoder = {"pretrainer": lambda: model.discriminator, "encoder": lambda: model}.get(
        kind, lambda: model.encoder
    )()
    classifier = TextClassifier.from_preset(tmp_path, num_classes=3)
    assert classifier.num_classes == 3
    same(classifier.encoder, encoder)
    same(QuestionAnswerer.from_preset(tmp_path).encoder, encoder)
    same(ConvBertEncoder.from_preset(tmp_path), encoder)


def test_a_preset_loads_under_another_precision(saved):
    model, directory = saved
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        loaded = ConvBertEncoder.from_preset(directory)
    finally:
        keras.config.set_dtype_policy(before)
    same(loaded, model)
    assert loaded(inputs())["sequence_output"].dtype == "bfloat16"


def rewrite(**changes):
    def change(directory):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def flip_a_byte(directory):
    content = bytearray((directory / "model.weights.h5").read_bytes())
    content[len(content) // 2] ^= 1
    (directory / "model.weights.h5").write_bytes(content)


def remove(name):
    return lambda directory: os.remove(directory / name)


def write(text):
    return lambda directory: (directory / "config.json").write_text(text)


def encoder_config(**options):
    return {"config": tiny(**options).to_dict(), "name": "encoder"}


def encoder_size(value):
    return {"config": tiny().to_dict() | {"hidden_size": value}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "hash differs"),
        (remove("config.json"), "config.json is not there"),
        (remove("model.weights.h5"), "model.weights.h5 is not there"),
        (write('{"model_type": "bert"}'), "holds a bert, not a convbert"),
        (write(json.dumps({"model_type": "x\n" * 5000})), "holds a (x )+x?, not a convbert"),
        (write('{"model_type": "convbert"}'), "has none of model.safetensors"),
        (write('{"hidden_size": 16}'), "no preset of convbert_tf; tools/convert_checkpoint"),
        (write('{"class": "ConvBertEncoder", "weights_sha256": "0"}'), "no preset of convbert_tf"),
        (write("[1, 2]"), "no preset of convbert_tf"),
        (write("{"), "is no JSON"),
        (rewrite(format=2), "format 2.*update convbert_tf"),
        (rewrite(**{"class": "Other"}), "holds a Other"),
        (rewrite(**{"class": "Other" * 5000}), "holds a (Other){12}, which"),
        (rewrite(config=encoder_config(hidden_size=32)), "does not fit its config.json"),
        (rewrite(config=encoder_config(vocab_size=60)), "does not fit its config.json"),
        (rewrite(config=encoder_config(max_position_embeddings=3)), "does not fit its config.json"),
        (rewrite(config=encoder_config(num_hidden_layers=3)), "does not fit|holds .* arrays"),
        (rewrite(config=encoder_config(num_hidden_layers=1)), "holds .* arrays"),
        (rewrite(config={"config": {"hidden_sise": 3}}), "unknown key 'hidden_sise'"),
        (rewrite(config={"config": "words"}), 'config.config must be an object, not "words"'),
        (rewrite(config={}), "config.config is missing"),
        (rewrite(config=encoder_config() | {"x": 1}), "config.x is no option of the model"),
        (rewrite(config=encoder_config() | {"name": "a/b"}), "'a/b', which is no layer's name"),
        (rewrite(config=encoder_config(vocab_size=10**12)), "does not fit its config.json"),
        (rewrite(config=encoder_config(num_hidden_layers=2**31)), "too few for num_hidden_layers"),
        (rewrite(config=encoder_config(hidden_size=10**9)), "does not fit its config.json"),
        (rewrite(config=encoder_size("1")), 'hidden_size must be a whole number, not "1"'),
        (rewrite(config=encoder_size(10**400)), "hidden_size must be a whole number, not 1000"),
        (rewrite(lower_case=1), "lower_case must be true or false, not 1"),
        (rewrite(serving=[]), "serving must be an object, not a list"),
        (rewrite(serving={"pair": 1}), "serving.pair must be true or false, not 1"),
        (rewrite(serving={"max_score": 5.0}), "serving.max_score is unknown"),
        (rewrite(sha256={"vocab.txt": "0"}), "vocab.txt is not there: the preset is incomplete"),
        (write("[" * 100_000), "nested too deeply"),
    ],
)
def test_damage_is_told_in_one_line(saved, damage, message):
    damage(saved[1])
    with pytest.raises(UserError, match=message) as caught:
        ConvBertEncoder.from_preset(saved[1])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.fixture
def with_vocabulary(saved):
    """A preset with a vocabulary, and one without the hashes, as versions before wrote it."""
    model, directory = saved
    (directory.parent / "words.txt").write_text(VOCABULARY)
    model.save_to_preset(directory, directory.parent / "words.txt")
    old = directory.parent / "old"
    shutil.copytree(directory, old)
    values = json.loads((old / "config.json").read_text())
    del values["sha256"]
    (old / "config.json").write_text(json.dumps(values))
    return directory, old


@pytest.mark.parametrize("content", [VOCABULARY[:20], VOCABULARY[::-1], VOCABULARY + "more\n", ""])
def test_another_vocabulary_is_seen(with_vocabulary, content):
    directory, old = with_vocabulary
    for path in (directory, old):
        (path / "vocab.txt").write_text(content)
    for read in (ConvBertEncoder.from_preset, TextPreprocessor.from_preset, presets.vocabulary):
        with pytest.raises(UserError, match=r"preset/vocab.txt is not the file.*hash differs"):
            read(directory)
    ConvBertEncoder.from_preset(old)  # as ever


def test_a_preset_without_a_vocabulary_replaces_one_with(with_vocabulary, saved):
    saved[0].save_to_preset(with_vocabulary[0])
    assert "vocab.txt" not in os.listdir(with_vocabulary[0])
    ConvBertEncoder.from_preset(with_vocabulary[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(saved, tmp_path, value):
    model, directory = saved
    kernel = model.blocks[1].attention_norm.gamma
    kernel.assign(np.full(kernel.shape, value))
    with pytest.raises(UserError, match="'layer_1/attention_norm/gamma' has values that are not"):
        model.save_to_preset(tmp_path / "new" / "preset")
    assert not (tmp_path / "new").exists()
    with h5py.File(directory / "model.weights.h5", "r+") as file:
        file["blocks/conv_bert_block_1/attention_norm/vars/0"][0] = value
    rewrite(weights_sha256=files.sha256(directory / "model.weights.h5"), sha256={})(directory)
    with pytest.raises(UserError, match="model.weights.h5: 'layer_1/attention_norm/gamma' has"):
        ConvBertEncoder.from_preset(directory)


def test_what_is_not_there_is_told(saved, tmp_path):
    with pytest.raises(UserError, match="has no vocabulary"):
        presets.vocab_file(saved[1])
    with pytest.raises(UserError, match="nowhere.*is not there"):
        TextClassifier.from_preset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds a ConvBertEncoder.*generator"):
        ConvBertPretrainer.from_preset(saved[1])


def fail(*_, **__):
    raise OSError("no space left")


@pytest.mark.parametrize("step", ["weights", "vocabulary", "config"])
def test_a_failing_save_leaves_the_old_preset(saved, monkeypatch, step):
    model, directory = saved
    other, options = ConvBertEncoder(tiny()), {}
    if step == "weights":
        monkeypatch.setattr(stored_presets, "_write_weights", fail)
    elif step == "config":
        monkeypatch.setattr(stored_presets, "write_json", fail)
    else:
        options["vocab_file"] = directory / "nowhere.txt"
    with pytest.raises((OSError, UserError)):
        presets.save(other, directory, **options)
    same(ConvBertEncoder.from_preset(directory), model)
    assert sorted(os.listdir(directory)) == ["README.md", "config.json", "model.weights.h5"]


def test_saving_again_replaces(saved):
    directory = saved[1]
    (directory / "vocab.txt").write_text(VOCABULARY)
    other = make("classifier")
    other.save_to_preset(directory, directory / "vocab.txt")
    same(TextClassifier.from_preset(directory), other)
    assert (directory / "vocab.txt").read_text() == VOCABULARY
    assert TextClassifier.from_preset(directory).labels == ["no", "yes"]
    assert isinstance(other.encoder.config, ModelConfig)


def test_a_checkpoint_of_the_original_is_sent_to_the_tool(tmp_path):
    (tmp_path / "model.ckpt-10.index").write_text("")
    (tmp_path / "config.json").write_text('{"discriminator": {}}')
    for cls in (ConvBertEncoder, ConvBertPretrainer, TextClassifier):
        with pytest.raises(UserError, match=r"checkpoint of the original.*convert_checkpoint\.py"):
            cls.from_preset(tmp_path)


def test_a_checkpoint_beside_a_preset_does_no_harm(saved):
    (saved[1] / "model.ckpt.index").write_text("")
    same(ConvBertEncoder.from_preset(saved[1]), saved[0])


def test_nothing_is_written_to_the_hub(saved):
    with pytest.raises(UserError, match="to a directory, not to the hub"):
        saved[0].save_to_preset("hf://owner/name")
    assert not os.path.exists("hf:")


@pytest.mark.parametrize("path", ["", None, 3])
def test_a_directory_has_a_name(saved, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="name a directory to save the model to"):
        saved[0].save_to_preset(path)
    with pytest.raises(UserError, match="name a directory or hf://owner/name to load from"):
        ConvBertEncoder.from_preset(path)
    assert os.listdir(tmp_path) == ["preset"]


@pytest.mark.parametrize(
    "content",
    [
        {"README.md": "mine"},
        {"config.json": '{"model_type": "convbert"}', "model.safetensors": "theirs"},
        {"config.json": '{"mine": 1}', "vocab.txt": "mine"},
    ],
)
def test_files_of_others_are_not_replaced(saved, tmp_path, monkeypatch, content):
    home = tmp_path / "home"
    home.mkdir()
    for name, text in content.items():
        (home / name).write_text(text)
    monkeypatch.chdir(home)
    for path in (home, "."):
        with pytest.raises(UserError, match="no earlier model of this format .*a new directory"):
            saved[0].save_to_preset(path)
    with pytest.raises(UserError, match="home/config.json is a file: name a directory|is not a di"):
        (home / "config.json").write_text("{}")
        saved[0].save_to_preset(home / "config.json")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        saved[0].save_to_preset(home / "config.json" / "new")
    assert {p.name for p in home.iterdir()} == {*content, "config.json"}
    assert all((home / n).read_text() == t for n, t in content.items() if n != "config.json")


def test_an_edited_readme_and_what_a_killed_save_has_left(saved):
    model, directory = saved
    readme = directory / "README.md"
    assert readme.read_text().startswith("A ConvBertEncoder of")
    make("classifier").save_to_preset(directory)
    assert readme.read_text().startswith("A TextClassifier of")
    readme.write_text(readme.read_text() + "Trained on my reviews.")
    model.save_to_preset(directory)
    assert readme.read_text().endswith("Trained on my reviews.")
    # Killed between the moves: its folder is there and config.json still in it.
    (directory / "partial-1").mkdir()
    (directory / "config.json").rename(directory / "partial-1" / "config.json")
    model.save_to_preset(directory)
    same(ConvBertEncoder.from_preset(directory), model)


def test_a_full_disk_is_said(saved, monkeypatch):
    model, directory = saved

    def full(*_, **__):
        raise RuntimeError("Problems closing file (errno = 28, 'No space left on device')")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(UserError, match="preset cannot be written: .*No space left on device"):
        ConvBertEncoder(tiny()).save_to_preset(directory)
    same(ConvBertEncoder.from_preset(directory), model)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "vocab.txt"])
def test_pointers_and_broken_links_are_said(with_vocabulary, name):
    path = with_vocabulary[0] / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for read in (ConvBertEncoder.from_preset, vocabulary.read_pieces):
        place = path if read is vocabulary.read_pieces else with_vocabulary[0]
        with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*run git lfs pull"):
            read(place)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(UserError, match=f"{name} is a broken link"):
        ConvBertEncoder.from_preset(with_vocabulary[0])


FRESH = """
import sys
import numpy as np
{imports}
model = {load}
flat = [np.array(x).ravel() for x in model.get_weights()]
np.save(sys.argv[2], np.concatenate(flat))
print(type(model).__name__)
"""


def weights_in_a_fresh_process(imports, load, path, tmp_path):
    """Loads `path` where nothing of ours but `imports` was imported."""
    arguments = [str(path), str(tmp_path / "weights.npy")]
    process = subprocess.run(
        [sys.executable, "-c", FRESH.format(imports=imports, load=load), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()[-1], np.load(tmp_path / "weights.npy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "imports", "load"),
    [
        ("classifier", "from convbert_tf import presets", "presets.load(sys.argv[1])"),
        ("tagger", "from convbert_tf import TokenClassifier as T", "T.from_preset(sys.argv[1])"),
        ("pretrainer", "import convbert_tf", "convbert_tf.presets.load(sys.argv[1])"),
        (
            "classifier.keras",
            "import convbert_tf, keras",
            "keras.models.load_model(sys.argv[1])",
        ),
        (
            "untied.keras",
            "import keras, convbert_tf",
            "keras.models.load_model(sys.argv[1])",
        ),
    ],
)
def test_a_fresh_process_needs_only_what_it_names(tmp_path, kind, imports, load):
    model, path = make(kind.removesuffix(".keras")), tmp_path / kind
    model.save(path) if kind.endswith(".keras") else model.save_to_preset(path)
    name, weights = weights_in_a_fresh_process(imports, load, path, tmp_path)
    assert name == type(model).__name__
    expected = np.concatenate([weight.ravel() for weight in model.get_weights()])
    np.testing.assert_array_equal(weights, expected)
