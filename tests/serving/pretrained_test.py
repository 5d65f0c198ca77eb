"""What pre-trained models are served for, against the same models offline and in LiteRT."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from convbert_tf import serving
from convbert_tf.config import PretrainingConfig, TaskConfig
from convbert_tf.console import UserError
from convbert_tf.modeling.heads import TextClassifier
from convbert_tf.modeling.masking import MaskedInputs
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from convbert_tf.serving import litert, litert_decoding, loading
from convbert_tf.serving.saved_model import make_server
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.workflows import prediction
from tests.serving.model_server_test import OPERATORS, Server, read_warmup
from tests.serving.saved_model_test import MODEL, VOCAB
from tests.tools_test import run_tool

CONFIG = dataclasses.replace(MODEL, num_hidden_layers=1, generator_hidden_size=0.5)
MASK = VOCAB.index("[MASK]")
TEXTS = [
    "the [MASK] was in [MASK].",
    "",
    "[MASK]",
    "no mask, Zoë",
    "a [MASK][MASK] 東京[MASK] " * 15,  # longer than a window
    b"\xff the [MASK]\xfe",
    "[mask] [ MASK ]",
]
# What is served -> its options.
SERVED = {
    "embedding": {"normalize": True},
    "replaced_tokens": {"doc_stride": 7},
    "fill_mask": {"top_k": 3, "doc_stride": 7},
}

EACH, OF_EACH = "[None]", "[None, None]"
OUTPUTS = {
    "embedding": {"embedding": "float32 [None, 16]"},
    "replaced_tokens": {
        "num_tokens": f"int64 {EACH}",
        "token": f"string {OF_EACH}",
        "token_bytes": f"string {OF_EACH}",
        "token_start": f"int64 {OF_EACH}",
        "token_end": f"int64 {OF_EACH}",
        "replaced_probability": f"float32 {OF_EACH}",
    },
    "fill_mask": {
        "filled": f"string {EACH}",
        "filled_bytes": f"string {EACH}",
        "num_masks": f"int64 {EACH}",
        "fills": "string [None, None, 3]",
        "fill_probability": "float32 [None, None, 3]",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The preset of a pre-training run, and a SavedModel of all that it can be served for."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    keras.utils.set_random_seed(4)
    save(folder, "preset", ConvBertPretrainer(CONFIG))
    for serve, options in SERVED.items():
        path = str(folder / "models" / serve)
        serving.export(str(folder / "preset"), path, serve=serve, **options)
    return folder


def save(folder, name, model):
    model.save_to_preset(
        str(folder / name), vocab_file=str(folder / "vocab.txt"), max_seq_length=24
    )
    return str(folder / name)


@pytest.fixture(scope="module")
def pretrainer(folder):
    return ConvBertPretrainer.from_preset(str(folder / "preset"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return WordPieceTokenizer(str(folder / "vocab.txt"))


def outputs_of(server, texts):
    return {name: values.numpy() for name, values in server.serve(text=tf.constant(texts)).items()}


def pack(tokenizer, ids):
    ids = np.array([[tokenizer.cls_id, *ids, tokenizer.sep_id]])
    return {"input_ids": ids, "input_mask": ids * 0 + 1, "segment_ids": ids * 0}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_an_embedding_is_the_mean_of_the_tokens_or_the_first(folder, tokenizer, pooling):
    encoder = ConvBertPretrainer.from_preset(str(folder / "preset")).encoder
    server = make_server(str(folder / "preset"), serve="embedding", pooling=pooling)
    texts = ["the cat", "東京 " * 40, ""]
    found = outputs_of(server, texts)["embedding"]
    for row, ids in zip(found, tokenizer.tokenize(texts).to_list(), strict=True):
        hidden = encoder(pack(tokenizer, ids[:22]))["sequence_output"].numpy()[0]
        expected = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
        np.testing.assert_allclose(row, expected, atol=1e-5)
    unit = make_server(str(folder / "preset"), serve="embedding", pooling=pooling, normalize=True)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs_of(unit, texts)["embedding"], found / lengths, atol=1e-5)


def test_of_a_fine_tuned_model_the_encoder_embeds(folder, tmp_path):
    """Without the options of its head, which are not for an embedding."""
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    encoder = ConvBertPretrainer.from_preset(str(folder / "preset")).encoder
    TextClassifier(encoder, 1).save_to_preset(
        str(tmp_path / "p"), vocab_file=str(tmp_path / "vocab.txt"), max_seq_length=24, pair=True,
        max_score=5.0,
    )  # fmt: skip
    expected = outputs_of(make_server(str(folder / "preset"), serve="embedding"), TEXTS)
    assert_same(outputs_of(make_server(str(tmp_path / "p"), serve="embedding"), TEXTS), expected)


def test_each_token_has_the_discriminators_probability(folder, pretrainer, tokenizer):
    server = make_server(str(folder / "preset"), serve="replaced_tokens", doc_stride=7)
    found = outputs_of(server, TEXTS)
    pieces, starts, _ = tokenizer.tokenize_with_offsets(TEXTS)
    assert found["num_tokens"].tolist() == pieces.row_lengths().numpy().tolist()
    for i, ids in enumerate(pieces.to_list()):
        expected = []
        for start, end, first, last in litert_decoding.owned_windows(len(ids), 22, 7):
            inputs = pack(tokenizer, ids[start:end])
            logits = pretrainer.discriminator_logits(inputs, inputs["input_ids"]).numpy()[0]
            expected += logits[1 + first - start : 1 + last - start].tolist()
        probabilities = found["replaced_probability"][i]
        np.testing.assert_allclose(probabilities[: len(ids)], tf.sigmoid(expected), atol=1e-5)
        assert not probabilities[len(ids) :].any()
        assert found["token_start"][i][: len(ids)].tolist() == starts[i].numpy().tolist()
    text = TEXTS[5]
    start, end = found["token_start"][5][0], found["token_end"][5][0]
    assert found["token_bytes"][5][0] == text[start:end] == b"the"


def test_a_mask_gets_what_the_generator_puts_there(folder, pretrainer, tokenizer):
    server = make_server(str(folder / "preset"), serve="fill_mask", top_k=3, doc_stride=7)
    found = outputs_of(server, TEXTS)
    assert found["num_masks"].tolist() == [2, 0, 1, 0, 45, 1, 0]
    vocab = np.array([piece.encode() for piece in VOCAB], object)
    for i, text in enumerate(TEXTS):
        if len(text) > 60 or not found["num_masks"][i]:
            continue
        parts = tokenizer.tokenize(
            (text.encode() if isinstance(text, str) else text).split(b"[MASK]")
        )
        ids = np.concatenate([[MASK, *each] for each in parts.to_list()])[1:]
        inputs = pack(tokenizer, ids)
        places = np.flatnonzero(inputs["input_ids"][0] == MASK)[None]
        masked = MaskedInputs(inputs["input_ids"], places, places * 0, places * 0.0 + 1)
        probabilities = tf.nn.softmax(pretrainer.mlm_logits(inputs, masked))[0].numpy()
        order = np.argsort(-probabilities, axis=-1)[:, :3]
        count = len(order)
        assert (found["fills"][i][:count] == vocab[order]).all()
        expected = np.take_along_axis(probabilities, order, axis=-1)
        np.testing.assert_allclose(found["fill_probability"][i][:count], expected, atol=1e-5)
    assert found["filled"][3].decode() == TEXTS[3] and found["filled"][1] == b""
    assert (
        found["filled_bytes"][5].startswith(b"\xff the ")
        and "\ufffd".encode() in found["filled"][5]
    )


def test_a_piece_that_goes_on_is_joined_to_the_word_before():
    decode = litert_decoding.Fills(["##ing", "cat", "##"], 1)
    one_hot = np.eye(3, dtype=np.float32)
    assert decode([b"play ", b" on"], [one_hot[0]])[0] == b"playing on"
    assert decode([b"a ", b" \t", b""], [one_hot[1], one_hot[0]])[0] == b"a cating"
    assert decode([b"a ", b""], [one_hot[2]])[0] == b"a ##"


@pytest.mark.parametrize("serve", [*SERVED])
def test_litert_and_a_text_alone_give_the_same(folder, serve, tmp_path):
    server = make_server(str(folder / "preset"), serve=serve, **SERVED[serve])
    expected = outputs_of(server, TEXTS)
    path = str(tmp_path / "lite")
    findings = serving.export_litert(
        str(folder / "preset"), path, "float32", serve=serve, **SERVED[serve]
    )
    assert findings.difference["float32"] < 1e-4
    model = litert.load(path)
    assert_same(model(text=TEXTS), expected)
    assert_same(model(text=[]), outputs_of(server, tf.constant([], tf.string)))
    for i, text in enumerate(TEXTS[:4]):
        for name, values in outputs_of(server, [text]).items():
            alone, here = values[0], expected[name][i]
            if np.ndim(alone):
                here = here[tuple(map(slice, alone.shape))]
            if np.asarray(alone).dtype.kind == "f":
                np.testing.assert_allclose(here, alone, atol=1e-5)
            else:
                assert np.all(here == alone)


@pytest.mark.parametrize("serve", [*SERVED])
def test_a_model_server_takes_it(folder, serve):
    path = folder / "models" / serve
    server = Server(path)
    for log in read_warmup(path):
        assert server.predict(log.predict_log.request).outputs
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    found = {node.op for node in graph.node}
    found |= {node.op for function in graph.library.function for node in function.node_def}
    assert found - {name for names in OPERATORS.values() for name in names.split()} == set()
    told = json.loads((path / "signature.json").read_text())
    assert {told[name] for name in SERVED[serve]} == set(SERVED[serve].values())
    outputs = told["signatures"]["serving_default"]["outputs"]
    shown = {name: f"{each['dtype']} {each['shape']}" for name, each in outputs.items()}
    assert shown == OUTPUTS[serve]


@pytest.mark.parametrize("serve", [*SERVED])
def test_ids_give_what_texts_give(folder, tokenizer, serve):
    is_filler = serve == "fill_mask"
    row = pack(tokenizer, [VOCAB.index("the"), MASK if is_filler else VOCAB.index("was")])
    inputs = {name: tf.constant(np.pad(x, [(0, 1), (0, 2)]), tf.int32) for name, x in row.items()}
    server = make_server(str(folder / "preset"), serve=serve, **SERVED[serve])
    found = {k: v.numpy()[0] for k, v in server.signatures()["predict_ids"](**inputs).items()}
    of_text = outputs_of(server, ["the [MASK]" if is_filler else "the was"])
    if serve == "replaced_tokens":  # of all tokens, also [CLS] and [SEP], but not of padding
        assert found["replaced_probability"].shape == (6,)
        assert found["replaced_probability"][[0, 3]].all()
        assert not found["replaced_probability"][4:].any()
        found["replaced_probability"] = found["replaced_probability"][1:3]
    for name, values in found.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, of_text[name][0], atol=1e-5)
        else:
            assert np.all(values == of_text[name][0])


def test_predictions_and_answers_are_lists_of_what_is_there(folder):
    texts = [([text], {}) for text in ("the [MASK] was", "no mask")]
    found = {}
    for serve in SERVED:
        served = loading.load(str(folder / "models" / serve))
        found[serve] = [row for _, row in prediction.label(served, texts)]
    assert len(found["embedding"][0]["embedding"]) == 16
    assert [len(row["tokens"]) for row in found["replaced_tokens"]] == [8, 6]
    assert found["replaced_tokens"][0]["tokens"][0]["token"] == "the"
    first, second = found["fill_mask"]
    assert [len(mask["fills"]) for mask in first["masks"]] == [3] and second["masks"] == []
    best = first["masks"][0]["fills"][0]
    assert set(best) == {"piece", "probability"} and best["piece"].strip("#") in first["filled"]
    asked = run_tool("ask", f"--saved_model={folder}/models/fill_mask", "--text=the [MASK] was")
    assert asked.stdout.splitlines()[0] == first["filled"] and "masks:" in asked.stdout


def test_what_cannot_be_served_is_refused(folder, tmp_path, pretrainer):
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    encoder = save(tmp_path, "encoder", pretrainer.encoder)
    uniform = ConvBertPretrainer(CONFIG, PretrainingConfig(uniform_generator=True))
    mlm = ConvBertPretrainer(CONFIG, PretrainingConfig(objective="mlm"))
    preset = str(folder / "preset")
    for source, options, message in (
        (preset, {}, "say what to serve: --serve=embedding"),
        (preset, {"serve": "all"}, "serve must be one of embedding,"),
        (
            preset,
            {"serve": "fill_mask", "pooling": "mean"},
            "pooling: no option of serve=fill_mask",
        ),
        (preset, {"serve": "embedding", "pooling": "max"}, "pooling must be mean or first"),
        (preset, {"serve": "fill_mask", "top_k": 0}, "top_k must be at least 1"),
        (encoder, {"serve": "fill_mask"}, "serve=fill_mask needs the preset of a pre-training run"),
        (save(tmp_path, "uniform", uniform), {"serve": "fill_mask"}, "no generator"),
        (save(tmp_path, "mlm", mlm), {"serve": "replaced_tokens"}, "no discriminator"),
    ):
        with pytest.raises(UserError, match=message):
            make_server(source, **options)
    with pytest.raises(UserError, match="no scores to check"):
        serving.export_litert(
            preset, str(tmp_path / "lite"), task=TaskConfig(name="cola"), serve="embedding"
        )
    assert not (tmp_path / "lite").exists()
