"""SavedModels as TensorFlow Serving answers with them: its messages, its JSON, its operators."""

import base64
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)

from convbert_tf import serving
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.serving import model_server
from tests.serving.saved_model_test import MODEL, VOCAB, WINDOWS

TEXTS = [b"The cat was in.", b"", "Zoë 東京 🙂 ".encode() * 30, b"a\xffb \xe6\x9d cat\x00s"]
IDS = {
    "input_ids": [[2, 5, 6, 3, 7, 8, 9, 3], [2, 5, 3, 6, 7, 3, 0, 0]],
    "input_mask": [[1] * 8, [1, 1, 1, 1, 1, 1, 0, 0]],
    "segment_ids": [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0]],
}
N = 5  # answers of n_best


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    encoder = ConvBertEncoder(MODEL)
    for name, head, options in (
        ("pairs", TextClassifier(encoder, 3, labels=["no", "maybe", "yes"]), {"pair": True}),
        ("scores", TextClassifier(encoder, 1), {"max_score": 5.0}),
        ("answers", QuestionAnswerer(encoder, answerable=True), WINDOWS),
        ("tags", TokenClassifier(encoder, 3, labels=["O", "B-X", "I-X"]), {}),
    ):
        head.save_to_preset(str(folder / "preset" / name), str(folder / "vocab.txt"))
        more = {"n_best_size": N} if name == "answers" else {}
        path = folder / "models" / name / "1"
        serving.export(str(folder / "preset" / name), str(path), **options, **more)
    return folder / "models"


class Server:
    """Answers messages as TensorFlow Serving does: a session, fed by the names of a signature."""

    def __init__(self, path):
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = loaded.signature_def

    def run(self, name, inputs, method="predict"):
        signature = self.signatures[name]
        if method != "predict":  # which takes any signature
            assert signature.method_name == f"tensorflow/serving/{method}"
        assert set(inputs) == set(signature.inputs)
        feeds = {signature.inputs[key].name: values for key, values in inputs.items()}
        outputs = {key: info.name for key, info in signature.outputs.items()}
        return self.session.run(outputs, feeds)

    def predict(self, request):
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        outputs = self.run(request.model_spec.signature_name or "serving_default", inputs)
        response = predict_pb2.PredictResponse()
        for key, values in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(values))
        return response

    def of_examples(self, request, method):
        """Outputs for a ClassificationRequest or RegressionRequest; checks what a server does."""
        examples = [e.SerializeToString() for e in request.input.example_list.examples]
        assert examples
        name = request.model_spec.signature_name
        outputs = self.run(name, {"inputs": np.array(examples, object)}, method)
        assert all(len(values) == len(examples) for values in outputs.values())
        return outputs

    def classify(self, request):
        outputs = self.of_examples(request, "classify")
        classes, scores = outputs["classes"], outputs["scores"]
        assert classes.dtype == object and scores.dtype == np.float32
        assert classes.ndim == 2 and classes.shape == scores.shape
        response = classification_pb2.ClassificationResponse()
        for row in zip(classes, scores, strict=True):
            found = response.result.classifications.add()
            for label, score in zip(*row, strict=True):
                found.classes.add(label=label.decode(), score=score)
        return response

    def regress(self, request):
        (values,) = self.of_examples(request, "regress").values()
        assert values.ndim == 1 and values.dtype == np.float32
        response = regression_pb2.RegressionResponse()
        for value in values:
            response.result.regressions.add(value=value)
        return response


@pytest.fixture(scope="module")
def servers(folder):
    return {path.name: Server(path / "1") for path in folder.iterdir()}


def example(**texts):
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
        for name, text in texts.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def predict_request(signature="", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = signature
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return predict_pb2.PredictRequest.FromString(request.SerializeToString())


def predicted(server, signature="", **inputs):
    response = server.predict(predict_request(signature, **inputs))
    return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}


# --- names, types and shapes, as docs/serving.md has them ---

B, TEXT, IDS_SPEC = "B", {"text": "string B"}, dict.fromkeys(IDS, "int32 B T")
CLASSES = {"label": "string B", "probabilities": "float32 B 3", "logits": "float32 B 3"}
NO_ANSWER = {"null_odds": "float32 B", "no_answer_probability": "float32 B"}
ASKED = {"question": "string B", "context": "string B"}
PLACES = {"start": "int64 B", "end": "int64 B", "start_char": "int64 B", "end_char": "int64 B"}
LISTS = dict.fromkeys(["starts", "ends", "start_chars", "end_chars"], f"int64 B {N}")
LISTS |= dict.fromkeys(["answers", "answers_bytes"], f"string B {N}")
LISTS |= dict.fromkeys(["scores", "probabilities"], f"float32 B {N}") | {"num_answers": "int64 B"}


def spans(name, label, score):
    texts = dict.fromkeys([name, f"{name}_bytes", label], "string B T")
    places = dict.fromkeys([f"{name}_start", f"{name}_end"], "int64 B T")
    return texts | places | {score: "float32 B T"}


WORDS = spans("word", "tag", "tag_score") | {"num_words": "int64 B", "num_entities": "int64 B"}
WORDS |= spans("entity", "entity_label", "entity_score")
SCORED = {"score": "float32 B"}
SIGNATURES = {
    "pairs": {
        "serving_default": ({"text_a": "string B", "text_b": "string B"}, CLASSES),
        "classify": ({"inputs": "string B"}, {"classes": "string B 3", "scores": "float32 B 3"}),
        "predict_ids": (IDS_SPEC, CLASSES),
    },
    "scores": {
        "serving_default": (TEXT, SCORED),
        "regress": ({"inputs": "string B"}, {"outputs": "float32 B"}),
        "predict_ids": (IDS_SPEC, SCORED),
    },
    "answers": {
        "serving_default": (
            ASKED,
            {"answer": "string B", "answer_bytes": "string B"} | PLACES | SCORED | NO_ANSWER,
        ),
        "n_best": (ASKED, LISTS | NO_ANSWER),
        "predict_ids": (
            IDS_SPEC,
            {"start_token": "int64 B", "end_token": "int64 B"} | SCORED | NO_ANSWER,
        ),
    },
    "tags": {
        "serving_default": (TEXT, WORDS),
        "predict_ids": (IDS_SPEC, {"tag": "string B T", "tag_score": "float32 B T"}),
    },
}


@pytest.mark.parametrize("name", [*SIGNATURES])
def test_signatures_have_these_names_types_and_shapes(folder, servers, name):
    def shown(infos):
        found = {}
        for key, info in infos.items():
            sizes = tf.TensorShape(info.tensor_shape).as_list()
            letters = [size or "BT"[i] for i, size in enumerate(sizes)]
            found[key] = " ".join(map(str, [tf.dtypes.as_dtype(info.dtype).name, *letters]))
        return found

    signatures = servers[name].signatures
    found = {
        key: (shown(signatures[key].inputs), shown(signatures[key].outputs))
        for key in signatures
        if not key.startswith("__")
    }
    assert found == SIGNATURES[name]
    told = json.loads((folder / name / "1" / "signature.json").read_text())["signatures"]
    for key in found:
        method = key if key in ("classify", "regress") else "predict"
        assert signatures[key].method_name == told[key]["method"] == f"tensorflow/serving/{method}"
        for values, infos in zip(
            found[key], (told[key]["inputs"], told[key]["outputs"]), strict=True
        ):
            assert {k: v.split()[0] for k, v in values.items()} == {
                k: info["dtype"] for k, info in infos.items()
            }


def test_the_fingerprint_is_that_of_the_file(folder):
    path = str(folder / "pairs" / "1")
    before = tf.saved_model.experimental.read_fingerprint(path)
    model_server.fingerprinting_utils.write_fingerprint(path)
    assert tf.saved_model.experimental.read_fingerprint(path) == before


# --- messages ---


def test_classify_and_predict_say_the_same(servers):
    given = [(text, TEXTS[0]) for text in TEXTS]
    request = classification_pb2.ClassificationRequest()
    request.model_spec.signature_name = "classify"
    for first, second in given:
        request.input.example_list.examples.append(example(text_a=first, text_b=second))
    request = classification_pb2.ClassificationRequest.FromString(request.SerializeToString())
    result = servers["pairs"].classify(request).result
    first, second = zip(*given, strict=True)
    outputs = predicted(servers["pairs"], text_a=first, text_b=second)
    for found, label, row in zip(
        result.classifications, outputs["label"], outputs["probabilities"], strict=True
    ):
        assert [each.label for each in found.classes] == ["no", "maybe", "yes"]
        np.testing.assert_allclose([each.score for each in found.classes], row, atol=1e-6)
        assert max(found.classes, key=lambda each: each.score).label == label.decode()


def test_regress_and_predict_say_the_same(servers):
    request = regression_pb2.RegressionRequest()
    request.model_spec.signature_name = "regress"
    request.input.example_list.examples.extend(example(text=text) for text in TEXTS)
    found = servers["scores"].regress(request).result.regressions
    scores = predicted(servers["scores"], text=TEXTS)["score"]
    np.testing.assert_allclose([each.value for each in found], scores, atol=1e-6)
    request.input.example_list.examples[0].CopyFrom(example(words=b"none of this name"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="text .*required but could not be"):
        servers["scores"].regress(request)


def test_a_batch_of_pre_tokenised_text(servers):
    """The same ids as of texts give the same; too many of them are refused by name."""
    text = {"input_ids": [[2, 5, 6, 3]], "input_mask": [[1] * 4], "segment_ids": [[0] * 4]}
    text = {name: np.array(values, np.int32) for name, values in text.items()}
    words = f"{VOCAB[5]}{VOCAB[6]}"  # a and b: apart, each is a word
    by_text = predicted(servers["scores"], text=[f"{words[0]} {words[1]}"])
    np.testing.assert_allclose(
        predicted(servers["scores"], "predict_ids", **text)["score"], by_text["score"], atol=1e-5
    )
    tags = predicted(servers["tags"], "predict_ids", **text)
    found = predicted(servers["tags"], text=[f"{words[0]} {words[1]}"])
    assert (tags["tag"][0, 1:3] == found["tag"][0]).all()
    np.testing.assert_allclose(tags["tag_score"][0, 1:3], found["tag_score"][0], atol=1e-5)
    long = {name: np.ones([1, MODEL.max_position_embeddings + 1], np.int32) for name in text}
    for name in servers:
        with pytest.raises(tf.errors.InvalidArgumentError, match="more tokens than the 64"):
            predicted(servers[name], "predict_ids", **long)


def test_an_answer_in_tokens_is_the_answer_in_text(servers):
    question, context = "who was it?", "the cat was in 東京, ada."
    found = predicted(servers["answers"], question=[question], context=[context])
    vocab = {piece: i for i, piece in enumerate(VOCAB)}
    pieces = [["who", "was", "i", "##t", "?"]]
    pieces += [["the", "c", "##a", "##t", "was", "in", "東", "京", ",", "a", "##d", "##a", "."]]
    ids = [vocab[p] for p in ["[CLS]", *pieces[0], "[SEP]", *pieces[1], "[SEP]"]]
    offset = len(pieces[0]) + 2
    segments = [0] * offset + [1] * (len(pieces[1]) + 1)
    inputs = {"input_ids": [ids], "input_mask": [[1] * len(ids)], "segment_ids": [segments]}
    inputs = {name: np.array(values, np.int32) for name, values in inputs.items()}
    tokens = predicted(servers["answers"], "predict_ids", **inputs)
    np.testing.assert_allclose(tokens["score"], found["score"], rtol=1e-4)
    np.testing.assert_allclose(tokens["null_odds"], found["null_odds"], rtol=1e-4)
    chosen = pieces[1][tokens["start_token"][0] - offset : tokens["end_token"][0] - offset]
    answer = found["answer"][0].decode().replace(" ", "").lower()
    assert "".join(piece.removeprefix("##") for piece in chosen) == answer != ""
    nothing = predicted(
        servers["answers"], "predict_ids", **{k: np.zeros([2, 4], np.int32) for k in inputs}
    )
    assert nothing["start_token"].tolist() == nothing["end_token"].tolist() == [0, 0]


# --- REST ---


def rows(outputs):
    """JSON as the server's REST interface writes it for a request with `instances`."""
    assert len({len(values) for values in outputs.values()}) == 1

    def plain(value, name):
        if isinstance(value, list):
            return [plain(each, name) for each in value]
        if not isinstance(value, bytes):
            assert np.isfinite(value)  # JSON has no others
            return value
        if name.endswith("_bytes"):
            return {"b64": base64.b64encode(value).decode()}
        return (
            value.decode()
        )  # raises where it is no UTF-8: the server writes the bytes as they are

    columns = {name: plain(values.tolist(), name) for name, values in outputs.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_every_output_can_stand_in_a_row_of_json(servers):
    questions = [b"who?", b"\xff\xfe", b"", b"\x00"]
    asked = {"question": questions, "context": TEXTS}
    for name, inputs in (
        ("tags", {"text": TEXTS}),
        ("scores", {"text": TEXTS}),
        ("answers", asked),
    ):
        found = rows(predicted(servers[name], **inputs))
        assert json.loads(json.dumps(found)) == found and len(found) == len(TEXTS)
        for row, text in zip(found, TEXTS, strict=True):
            if name == "tags":
                for i in range(row["num_words"]):
                    exact = text[row["word_start"][i] : row["word_end"][i]]
                    assert base64.b64decode(row["word_bytes"][i]["b64"]) == exact
                    assert row["word"][i] == exact.decode(errors="replace")
            if name == "answers":
                exact = text[row["start"] : row["end"]]
                assert base64.b64decode(row["answer_bytes"]["b64"]) == exact
                characters = text.decode(errors="replace")
                assert row["answer"] == characters[row["start_char"] : row["end_char"]]
    assert len(rows(predicted(servers["answers"], "n_best", **asked))) == len(TEXTS)


# --- files ---


def read_warmup(path):
    for record in tf.data.TFRecordDataset(str(path / model_server.WARMUP_FILE)):
        yield prediction_log_pb2.PredictionLog.FromString(record.numpy())


@pytest.mark.parametrize("name", [*SIGNATURES])
def test_warmup_requests_are_answered(folder, servers, name):
    server, seen, lengths = servers[name], [], []
    for log in read_warmup(folder / name / "1"):
        kind = log.WhichOneof("log_type").removesuffix("_log")
        request = getattr(log, f"{kind}_log").request
        getattr(server, kind)(request)
        seen.append(request.model_spec.signature_name)
        if seen[-1] == "serving_default":
            words = sum(len(tf.make_ndarray(x)[0].split()) for x in request.inputs.values())
            lengths.append(words)
    assert set(seen) == set(SIGNATURES[name]) and len(seen) <= 1000
    expected = [16, 32] if name == "answers" else [16, 32, 64]
    assert len(lengths) == len(expected)
    for length, bucket in zip(lengths, expected, strict=True):
        assert bucket - 4 <= length < bucket
    assert model_server.buckets(200) == [16, 32, 64, 128, 200]


def test_batching_parameters_have_the_fields_of_a_server(folder):
    text = (folder / "pairs" / "1" / "batching_params.pbtxt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    # All are messages of a field `value`, google.protobuf.Int64Value or BoolValue.
    names = [re.fullmatch(r"(\w+) { value: (\d+|true) }", line)[1] for line in lines]
    assert len(names) == len(set(names)) and set(names) == {
        "max_execution_batch_size",
        "max_batch_size",
        "enable_large_batch_splitting",
        "batch_timeout_micros",
        "max_enqueued_batches",
    }


# The operators of the graphs, each known to be in TensorFlow Serving 2.12: TensorFlow 2.12.1 and
# TF Text 2.12.1, which it links, have loaded these models and answered alike. A new one must be
# looked up there before it is added: RoundRobinTrim, for one, is in TF Text from 2.13 on.
OPERATORS = {
    "the model": """Add AddV2 BatchMatMulV2 BiasAdd DepthwiseConv2dNative Erf LogSoftmax MatMul
        Mean Mul Neg RealDiv Rsqrt Sigmoid Softmax Sqrt Square Sub TopKV2 Transpose Exp""",
    "TF Text": "FastBertNormalize FastWordpieceTokenizeWithOffsets",
    "strings": """StaticRegexFullMatch StaticRegexReplace StringJoin StringLength StringSplit
        StringSplitV2 Substr UnicodeDecodeWithOffsets UnicodeTranscode UnsortedSegmentJoin""",
    "ragged rows": "RaggedGather RaggedRange RaggedTensorToTensor DenseBincount LowerBound",
    "tf.Example": "ParseExampleV2",
    "windows, words and answers": """All Any ArgMax Cumsum GatherNd GatherV2 Max Maximum Minimum
        ScatterNd SegmentMax SegmentMean SegmentMin Select SelectV2 Sum TensorScatterUpdate Unique
        UnsortedSegmentMin UnsortedSegmentSum Where Prod FloorDiv""",
    "comparing": """Equal Greater GreaterEqual Less LessEqual LogicalAnd LogicalNot LogicalOr
        NotEqual""",
    "shapes": """BroadcastTo Cast ConcatV2 Const EnsureShape ExpandDims Fill Identity IdentityN
        OneHot OnesLike Pack Pad PadV2 Range Reshape Shape Size Slice Split Squeeze StridedSlice
        Tile ZerosLike""",
    "calls, branches and loops": """Assert If NoOp PartitionedCall Placeholder
        StatefulPartitionedCall StatelessIf StatelessWhile While""",
    "lists of a loop": """TensorListConcatV2 TensorListFromTensor TensorListGetItem
        TensorListReserve TensorListSetItem TensorListStack""",
    "loading": "MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename",
}


def test_no_operator_is_new_to_a_server(folder):
    known = {name for names in OPERATORS.values() for name in names.split()}
    found = set()
    for path in folder.iterdir():
        saved = saved_model_pb2.SavedModel.FromString((path / "1" / "saved_model.pb").read_bytes())
        graph = saved.meta_graphs[0].graph_def
        found |= {node.op for node in graph.node}
        found |= {node.op for function in graph.library.function for node in function.node_def}
    assert found - known == set()
    assert len(known - found) < 6  # of other activations and heads
