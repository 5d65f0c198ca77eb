"""The whole way of a published model: hub, fine-tuning, scoring, export, an answer."""

import json
from pathlib import Path

import h5py
import pytest
import tensorflow as tf

from convbert_tf import ConvBertEncoder, ModelConfig, TextPreprocessor, conversion, serving
from convbert_tf.config import FinetuningExperiment, TaskConfig, TrainingConfig
from convbert_tf.modeling import presets, storing
from convbert_tf.text.vocabulary import ids_of, read_pieces
from convbert_tf.weights import huggingface, names
from convbert_tf.workflows import finetuning
from tests import goldens
from tests.small_tasks import make_cola
from tests.weights.huggingface_files_test import hub  # noqa: F401  a fixture
from tests.weights.presets_test import randomize, same

WORDS = ["cat", "dog", "hen", "cow", "pig", "fox", "owl", "bee", "ant", "rat"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# "good" and "bad" are on several lines, as are 188 pieces of the vocabulary that was published.
VOCAB = [*SPECIAL, "good", "bad", "##s", "good", *WORDS, "good", "bad", "##s", "bad", "the", "."]
GOOD, BAD = 19, 22


def config(vocab_size):
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        embedding_size=16,
        linear_groups=2,
        max_position_embeddings=32,
        conv_kernel_size=3,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def torch_weights(encoder):
    stored = storing.describe(encoder)
    return dict(names.to_theirs(huggingface.weight_names(stored), stored.arrays))


def write_tf_model(path, weights):
    """Keras 2's file, as transformers' TFConvBertModel wrote it: layer/model/name."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["convbert"]
        for name, value in weights.items():
            place, _, last = name.replace("encoder.layer.", "encoder.layer_._").rpartition(".")
            if place.endswith("LayerNorm"):
                last = {"weight": "gamma", "bias": "beta"}[last]
            elif place.endswith(("position_embeddings", "token_type_embeddings")):
                last = "embeddings"
            elif place.endswith("wise"):  # depthwise.weight is depthwise_kernel there
                place, _, last = place.rpartition(".")
                last, value = f"{last}_kernel", value.T
            elif last == "weight" and not place.endswith("word_embeddings"):
                last, value = "kernel", value.T
            elif place.endswith("key_conv_attn_layer"):
                value = value[:, 0]
            key = f"{place}.{last}:0".replace(".", "/")
            file[f"convbert/tf_conv_bert_model/{key}"] = value


def publish(folder, encoder, vocab, weights_file):
    """A directory like those of the published models on the hub."""
    folder.mkdir(parents=True)
    values = {key: value for key, value in encoder.config.to_dict().items() if key != "head_ratio"}
    values |= {"num_groups": values.pop("linear_groups"), "head_ratio": 2}
    values |= {"model_type": "convbert", "architectures": ["ConvBertModel"], "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "vocab.txt").write_bytes(vocab)
    settings = {"do_lower_case": True, "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    weights = torch_weights(encoder)
    if weights_file == "tf_model.h5":
        write_tf_model(folder / weights_file, weights)
    else:
        torch = pytest.importorskip("torch")
        state = {
            name.removeprefix("convbert."): torch.tensor(value) for name, value in weights.items()
        }
        torch.save(state, folder / weights_file)


def fine_tune(address, data_dir, model_dir):
    task = TaskConfig(
        name="cola", data_dir=data_dir, init_from=address, max_seq_length=32, num_train_epochs=8.0
    )
    options = TrainingConfig(
        model_dir=str(model_dir),
        batch_size=16,
        learning_rate=5e-3,
        warmup_steps=0,
        warmup_proportion=0.1,
        layerwise_lr_decay=0.9,
        steps_per_loop=20,
    )
    return finetuning.run(FinetuningExperiment(task, options))


@pytest.mark.parametrize("weights_file", ["tf_model.h5", "pytorch_model.bin"])
def test_the_weights_of_a_published_model(hub, weights_file):  # noqa: F811
    encoder = randomize(ConvBertEncoder(config(len(VOCAB))))
    vocab = "".join(f"{piece}\r\n" for piece in VOCAB).encode()
    publish(hub("me/convbert", "main"), encoder, vocab, weights_file)
    same(ConvBertEncoder.from_preset("hf://me/convbert"), encoder)


@pytest.mark.parametrize(
    "vocabulary",
    [
        "constructed",
        pytest.param("original", marks=[goldens.needs_shared, pytest.mark.slow]),
    ],
)
def test_the_way_of_a_published_model(hub, tmp_path, capsys, vocabulary):  # noqa: F811
    vocab = "".join(f"{piece}\r\n" for piece in VOCAB).encode()
    if vocabulary == "original":
        vocab = (goldens.SHARED / "data" / "vocab-original.txt").read_bytes()
    size = vocab.count(b"\n")
    encoder = ConvBertEncoder(config(size))
    publish(hub("me/convbert", "main"), encoder, vocab, "tf_model.h5")
    inputs = TextPreprocessor.from_preset("hf://me/convbert", 32)(["Good, bad!"])
    if vocabulary == "constructed":
        assert inputs["input_ids"][0, :5].numpy().tolist() == [2, GOOD, 1, BAD, 1]

    (tmp_path / "task").mkdir()
    task = make_cola(tmp_path / "task", WORDS)
    results = fine_tune("hf://me/convbert", task, tmp_path / "run")
    assert results["accuracy"] > 0.9 and results["mcc"] > 0.8
    assert capsys.readouterr().out.count("repeated, the last line of each has the id") == 1

    preset = str(tmp_path / "run" / "preset")
    ids = ids_of(read_pieces(tmp_path / "run" / "preset" / "vocab.txt"))
    assert ids["[MASK]"] == (4 if vocabulary == "constructed" else 103)
    serving.export(preset, str(tmp_path / "served" / "1"))
    serve = tf.saved_model.load(str(tmp_path / "served" / "1")).signatures["serving_default"]
    dev = [line.split("\t") for line in Path(task, "dev.tsv").read_text().splitlines()]
    served = serve(text=tf.constant([row[3] for row in dev]))["label"].numpy()
    right = [label == row[1].encode() for label, row in zip(served, dev, strict=True)]
    assert sum(right) / len(right) == pytest.approx(results["accuracy"])

    # The ids stay in place in every format.
    for to_format, task in (("huggingface", None), ("original", "cola")):
        conversion.convert(preset, str(tmp_path / to_format), to_format, task=task)
        pieces = read_pieces(tmp_path / to_format / "vocab.txt")
        assert len(pieces) == size and ids_of(pieces) == ids
    conversion.convert(str(tmp_path / "original"), str(tmp_path / "back"))
    same(presets.load(str(tmp_path / "back")), presets.load(preset))
    assert ids_of(read_pieces(tmp_path / "back" / "vocab.txt")) == ids
