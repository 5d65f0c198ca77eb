"""From Keras to presets and back, and `.keras` files in a new process, without loss."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import convbert_tf
from convbert_tf import (
    AdamW,
    TextClassifier,
    TextPreprocessor,
    TokenClassifier,
    WordPieceTokenizer,
)
from convbert_tf.console import UserError
from convbert_tf.modeling import presets
from convbert_tf.training.optimization import FusedAdamW, LinearWarmupDecay
from tests.modeling.heads_test import inputs
from tests.weights.presets_test import MODELS, VOCABULARY, make, rewrite, same

KERAS_OF_TENSORFLOW = "import convbert_tf, tensorflow as tf; keras = tf.keras"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a"]}, "1 labels for 2 classes"),
        ({"labels": "ab"}, "labels must be a list, the names of the classes in order, not a str"),
        (
            {"labels": {"a": 1, "b": 0}},
            "labels must be a list, the names of the classes in order, not a dict",
        ),
        ({"labels": ["a", "a"]}, "'a' stands for several classes"),
        ({"labels": ["a", 1]}, "labels must be strings; 1 is a int"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_labels_are_strings_as_many_as_classes(tmp_path, options, message):
    encoder = make("encoder")
    with pytest.raises(UserError, match=message):
        TextClassifier(encoder, **({"num_classes": 2} | options))
    make("classifier").save_to_preset(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["config"] | options
    rewrite(config=config)(tmp_path)
    with pytest.raises(UserError):
        TextClassifier.from_preset(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "num_classes is missing: the number of classes, or give their labels"),
        ({"num_classes": "2"}, "num_classes must be a whole number, got '2'"),
        ({"num_classes": 2.7}, "num_classes must be a whole number, got 2.7"),
        ({"num_classes": True}, "num_classes must be a whole number, got True"),
        ({"num_classes": 2, "labels": "ab"}, "labels must be a list, .* in order, not a str"),
        ({"labels": {"a": 0, "b": 1}}, "labels must be a list, .* in order, not a dict"),
        ({"labels": {"a", "b"}}, "labels must be a list, .* in order, not a set"),
    ],
)
def test_the_number_of_classes_is_known(tmp_path, options, message):
    make("encoder").save_to_preset(tmp_path / "encoder")
    for kind in (TextClassifier, TokenClassifier):
        with pytest.raises(UserError, match=message):
            kind.from_preset(tmp_path / "encoder", **options)
    model = TextClassifier.from_preset(tmp_path / "encoder", labels=("a", "b", "c"))
    assert (model.num_classes, model.labels) == (3, ["a", "b", "c"])


def test_what_cannot_be_exported_is_said_at_saving(tmp_path, capsys):
    (tmp_path / "words.txt").write_text(VOCABULARY)
    preprocessor = TextPreprocessor(WordPieceTokenizer(tmp_path / "words.txt"), 32, pair=True)
    model = make("classifier")
    model.save_to_preset(tmp_path / "without")
    assert "without has no vocabulary, so it cannot be exported" in capsys.readouterr().out
    model.save_to_preset(tmp_path / "with", preprocessor, max_score=5.0)
    assert not capsys.readouterr().out
    expected = {"max_seq_length": 32, "pair": True, "max_score": 5.0}
    assert presets.serving(tmp_path / "with") == expected
    answerer = make("answerer")
    answerer.save_to_preset(tmp_path / "answers", preprocessor, max_query_length=20)
    assert presets.serving(tmp_path / "answers") == {"max_seq_length": 32, "max_query_length": 20}
    for options, message in (
        ({"max_scores": 5.0}, "serving.max_scores is unknown"),
        ({"max_score": "5"}, 'serving.max_score must be a finite number, not "5"'),
        ({"max_seq_length": 100}, "max_seq_length 100 must be between"),
    ):
        with pytest.raises(UserError, match=f"not saved.*{message}"):
            model.save_to_preset(tmp_path / "new", preprocessor, **options)
    with pytest.raises(UserError, match="max_seq_length 32 must exceed max_query_length 30"):
        answerer.save_to_preset(tmp_path / "new", preprocessor, max_query_length=30)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16", "float16"])
@pytest.mark.parametrize("fit", [True, False])
@pytest.mark.parametrize("optimizer", [AdamW, keras.optimizers.Adam])
def test_a_compiled_model_goes_to_a_preset_and_back(tmp_path, policy, fit, optimizer):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = make("classifier")
        model.encoder.embeddings.trainable = False
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(1e-5), loss, metrics=["accuracy"])
        if fit:
            model.set_weights([0.1 * weight for weight in model.get_weights()])
            model.fit(inputs(), [0, 1], verbose=0)
        model.save_to_preset(tmp_path)
        loaded = TextClassifier.from_preset(tmp_path)
        same(loaded, model)
        np.testing.assert_array_equal(loaded(inputs()), model(inputs()))
    finally:
        keras.config.set_dtype_policy(before)
    again = TextClassifier.from_preset(tmp_path)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b.astype("float32"))


SAVED = """
import sys
{imports}
assert "convbert_tf.modeling.heads" not in sys.modules
model = keras.models.load_model(sys.argv[1])
print(type(model).__name__, type(model.optimizer).__name__, int(model.optimizer.iterations))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports", ["import convbert_tf, keras", "import keras, convbert_tf", KERAS_OF_TENSORFLOW]
)
def test_a_compiled_model_is_loaded_in_a_fresh_process(tmp_path, imports):
    model = make("classifier")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(FusedAdamW(LinearWarmupDecay(1e-4, 10)), loss)
    model.fit(inputs(), [0, 1], verbose=0)
    model.save(tmp_path / "model.keras")
    command = [sys.executable, "-c", SAVED.format(imports=imports), str(tmp_path / "model.keras")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["TextClassifier", "FusedAdamW", "1"]


def test_keras_is_told_of_every_class():
    registered = {
        (cls.__module__.removeprefix("convbert_tf."), cls.__name__)
        for name, cls in keras.saving.get_custom_objects().items()
        if name.startswith("convbert_tf>")
    }
    known = {(module, name) for module, names in convbert_tf._SAVED.items() for name in names}
    assert registered == known


@pytest.mark.parametrize("kind", MODELS)
def test_plain_keras_saving(tmp_path, kind):
    model, other = make(kind), MODELS[kind]()
    model.save(tmp_path / "model.keras")
    same(keras.models.load_model(tmp_path / "model.keras"), model)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    same(other, model)
