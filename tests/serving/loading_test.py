"""Models that answer texts: the same from a preset, a run, a SavedModel and a LiteRT model."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import serving
from convbert_tf.config import ModelConfig
from convbert_tf.console import UserError
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import TextClassifier

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "."]
MODEL = ModelConfig(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    embedding_size=16,
    max_position_embeddings=32,
    conv_kernel_size=3,
    initializer_range=1.0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "pieces.txt").write_text("\n".join(VOCAB) + "\n")
    model = TextClassifier(ConvBertEncoder(MODEL), 2, labels=["bad", "good"])
    path = str(folder / "preset")
    model.save_to_preset(path, vocab_file=str(folder / "pieces.txt"), pair=True)
    model.encoder.save_to_preset(str(folder / "encoder"), str(folder / "pieces.txt"))
    serving.export(path, str(folder / "served"))
    serving.export_litert(path, str(folder / "litert"), "float32")
    return folder


def test_a_preset_a_run_and_exported_models_answer_alike(folder):
    answers = []
    for name in ("preset", "", "served", "litert"):
        served = serving.load(str(folder / name))
        assert (served.inputs, served.labels) == (["text_a", "text_b"], ["bad", "good"])
        answers.append(served(text_b=["dog", b"cat"], text_a=["cat dog", "."]))
        assert served(text_a=[], text_b=[])["label"].shape == (0,)
        with pytest.raises(UserError, match="takes text_a, text_b; given: text"):
            served(text=["cat"])
    for other in answers[1:]:
        assert other["label"].tolist() == answers[0]["label"].tolist()
        np.testing.assert_allclose(other["probabilities"], answers[0]["probabilities"], atol=1e-6)


@pytest.mark.slow
def test_a_saved_model_may_compute_in_bfloat16(folder, tmp_path):
    serving.export(str(folder / "preset"), str(tmp_path / "1"), precision="bfloat16")
    given = {"text_a": tf.constant(["cat dog"]), "text_b": tf.constant(["."])}
    logits = [
        serving.load(str(path)).call(**given)["logits"].numpy()
        for path in (tmp_path / "1", folder / "served")
    ]
    assert logits[0].dtype == np.float32
    assert 1e-4 < np.abs(logits[0] - logits[1]).max() < 0.1
    assert keras.config.dtype_policy().name == "float32"
    described = json.loads((tmp_path / "1" / "signature.json").read_text())
    assert described["precision"] == "bfloat16"
    config = TextClassifier.from_preset(str(folder / "preset")).encoder.config
    assert described["single_thread_tokens"] == config.max_position_embeddings  # it is tiny


def test_what_cannot_be_asked_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="--pair: a SavedModel is as it was exported"):
        serving.load(str(folder / "served"), pair=False, max_seq_length=None)
    with pytest.raises(UserError, match="--pair: a LiteRT model is as it was exported"):
        serving.load(str(folder / "litert"), pair=False)
    with pytest.raises(UserError, match="holds a ConvBertEncoder; only a fine-tuned"):
        serving.load(str(folder / "encoder"))
    with pytest.raises(UserError, match="is not there"):
        serving.load(str(tmp_path / "none"))
    (tmp_path / "saved_model.pb").write_bytes(b"none")
    with pytest.raises(UserError, match="is damaged or of another kind; export it again"):
        serving.load(str(tmp_path))
    assert serving.load(str(folder), pair=False, max_seq_length=None).inputs == ["text"]
