"""SavedModels against the same model offline: same tokens, same answers, same bytes."""

import json
import os
import pathlib
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import serving
from convbert_tf.config import ModelConfig
from convbert_tf.console import UserError
from convbert_tf.data import records
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier
from convbert_tf.serving import saved_model
from convbert_tf.tasks import glue, squad, squad_decoding
from convbert_tf.text.preprocessing import TextPreprocessor
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.workflows import finetuning
from tests.tools_test import run_tool

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
VOCAB += [*".,?!'", "東", "京", "the", "was", "in", "who", "where"]
# With masked convolutions, so that the answer does not depend on the padding of a batch.
MODEL = ModelConfig(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    embedding_size=16,
    max_position_embeddings=64,
    conv_kernel_size=3,
    initializer_range=0.5,  # so that scores differ widely, and the best is no matter of rounding
    mask_convolution=True,
)
WINDOWS = {"max_seq_length": 32, "doc_stride": 9, "max_query_length": 10}
# Loads and serves with what a model server has: TensorFlow and TF Text, nothing of ours.
CLIENT = """
import json, sys
import tensorflow as tf, tensorflow_text
results = []
for directory, inputs in json.load(sys.stdin):
    serve = tf.saved_model.load(directory).signatures["serving_default"]
    outputs = serve(**{k: tf.constant(v, tf.string) for k, v in inputs.items()})
    plain = {k: v.numpy().tolist() for k, v in outputs.items()}
    for values in plain.values():
        values[:] = [x.decode() if isinstance(x, bytes) else x for x in values]
    results.append(plain)
assert "convbert_tf" not in sys.modules
json.dump(results, sys.stdout)
"""


def long_context(seed):
    rng = random.Random(seed)
    words = [
        "Zoë",
        "東京",
        "🙂",
        "naïve",
        "was",
        "in",
        "the",
        "cat",
        "1984",
        "don't",
        "e\u0301t\u00e9",
    ]
    return " ".join(rng.choice(words) + rng.choice(["", "", ".", ","]) for _ in range(60))


QUESTIONS = [
    ("Who was in Tokyo?", "Ada was in 東京."),
    ("Where?", long_context(1)),
    ("", "The cat 🙂 was naïve, Zoë."),
    ("Who was the cat that was in the house of the old man in the north?", long_context(2)),
    ("Who?", ""),
    ("Who?", " \u00a0 "),
    ("", long_context(3)),
]
SINGLES = ["The cat was in.", "", "Zoë 🙂 " * 40, "東京"]
PAIRS = [("the cat", "was in"), ("", "who?"), ("where " * 50, "東 " * 13), ("a", "b " * 80)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    tf.keras.utils.set_random_seed(3)
    for name, head in {
        "single": lambda encoder: TextClassifier(encoder, 3, labels=["no", "maybe", "yes"]),
        "regression": lambda encoder: TextClassifier(encoder, 1),
        "answers": QuestionAnswerer,
        "answerable": lambda encoder: QuestionAnswerer(encoder, answerable=True),
        "independent": lambda encoder: QuestionAnswerer(encoder, joint=False),
        "encoder": lambda encoder: encoder,
    }.items():
        model = head(ConvBertEncoder(MODEL))
        model.save_to_preset(str(folder / name), str(folder / "vocab.txt"))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return WordPieceTokenizer(str(folder / "vocab.txt"))


@pytest.fixture(scope="module")
def served(folder):
    """name -> what a process with TensorFlow alone gets of each SavedModel."""
    exports = {
        "single": ("single", {"max_seq_length": 24}),
        "pair": ("single", {"max_seq_length": 24, "pair": True}),
        "regression": ("regression", {}),
        "answers": ("answers", WINDOWS),
        "answerable": ("answerable", WINDOWS),
        "independent": ("independent", WINDOWS),
        "threshold": ("answerable", WINDOWS | {"null_threshold": threshold(folder)}),
    }
    first, second = zip(*PAIRS, strict=True)
    questions, contexts = zip(*QUESTIONS, strict=True)
    asked = {"question": questions, "context": contexts}
    inputs = dict.fromkeys(["answers", "answerable", "independent", "threshold"], asked)
    inputs |= {"single": {"text": SINGLES}, "regression": {"text": SINGLES[:1] + SINGLES[3:]}}
    inputs["pair"] = {"text_a": first, "text_b": second}
    calls = []
    for name, (preset, options) in exports.items():
        serving.export(str(folder / preset), str(folder / "models" / name / "1"), **options)
        calls.append((str(folder / "models" / name / "1"), inputs[name]))
    client = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert client.returncode == 0, client.stderr
    return dict(zip(exports, json.loads(client.stdout), strict=True))


def test_several_labels_are_those_above_a_half(folder, tokenizer):
    names = ["red", "green", "blue"]
    model = TextClassifier(ConvBertEncoder(MODEL), 3, labels=names, multi_label=True)
    model.logits.bias.assign([0.1, -9.0, 0.0])  # green never
    model.save_to_preset(str(folder / "several"), str(folder / "vocab.txt"))
    model = presets.load(str(folder / "several"))
    server = serving.ClassifierServer(model, tokenizer, 24)
    found = {name: value.numpy() for name, value in server.serve(tf.constant(SINGLES)).items()}
    np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-found["logits"])), 1e-5)
    above = found["probabilities"] > 0.5
    assert set(found) == {"logits", "probabilities", "labels"} and 0 < above.sum() < above.size
    labels = [[name.decode() for name in row if name] for row in found["labels"]]
    assert labels == [
        [n for n, is_there in zip(names, row, strict=True) if is_there] for row in above
    ]
    assert server.describe()["multi_label"] and server.describe()["labels"] == names


def test_a_score_is_served_on_the_scale_of_its_labels(folder, tokenizer):
    model = TextClassifier(ConvBertEncoder(MODEL), 1)
    path = str(folder / "range")
    model.save_to_preset(path, str(folder / "vocab.txt"), min_score=-1.0, max_score=3.0)
    model, options = presets.load(path), presets.serving(path)
    assert options == {"min_score": -1.0, "max_score": 3.0}
    for bias, expected in (0.25, 0.0), (7.0, 3.0), (-7.0, -1.0):
        model.logits.set_weights([np.zeros([MODEL.hidden_size, 1]), np.array([bias])])
        server = serving.ClassifierServer(model, tokenizer, 24, **options)
        np.testing.assert_allclose(server.serve(tf.constant(SINGLES))["score"], [expected] * 4)
    assert server.describe()["min_score"] == -1


def offline_answers(folder, name):
    """Windows and outputs, and what squad_decoding makes of them."""
    model = presets.load(str(folder / name))
    tokenizer = WordPieceTokenizer(str(folder / "vocab.txt"))
    examples = [
        squad.SquadExample(str(i), question, context, (), False)
        for i, (question, context) in enumerate(QUESTIONS)
    ]
    windows = squad.make_windows(examples, tokenizer, **WINDOWS)
    path = str(folder / f"{name}.tfrecord")
    squad.write_records(path, windows)
    predict = finetuning.Predictor(model, tf.distribute.get_strategy())
    outputs = predict(records.read(path), records.SQUAD, 4, 32)
    return windows, squad_decoding.decode(windows, outputs, version2=name == "answerable")


def threshold(folder):
    """Between the null odds of the questions, so that some are answered and some are not."""
    odds = sorted(offline_answers(folder, "answerable")[1][2].values())
    return (odds[2] + odds[3]) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["answers", "answerable", "independent"])
def test_answers_are_those_of_the_offline_code(folder, served, name):
    windows, (predictions, nbest, null_odds) = offline_answers(folder, name)
    counts = [sum(w.question_id == str(i) for w in windows) for i in range(len(QUESTIONS))]
    assert counts[0] == counts[4] == 1 and min(counts[1], counts[3], counts[6]) > 5
    given = served[name]
    assert given["answer"] == [predictions[str(i)] for i in range(len(QUESTIONS))]
    for i, (_, context) in enumerate(QUESTIONS):
        start, end = given["start"][i], given["end"][i]
        assert context.encode()[start:end].decode() == given["answer"][i]
        assert context[given["start_char"][i] : given["end_char"][i]] == given["answer"][i]
        bounds = {(0, 0)} if not given["answer"][i] else {
            (first, last)
            for w in windows if w.question_id == str(i)
            for first in w.starts for last in w.ends
        }  # fmt: skip
        assert (start, end) in bounds
        if given["answer"][i]:
            best = nbest[str(i)][0]
            score = best["start_log_prob"] + best["end_log_prob"]
            assert given["score"][i] == pytest.approx(score, abs=1e-4)
    assert given["answer"][4:6] == ["", ""] and all(given["answer"][:4])
    if name == "answerable":
        odds = np.array([null_odds[str(i)] for i in range(len(QUESTIONS))])
        np.testing.assert_allclose(given["null_odds"], odds, 1e-4)
        np.testing.assert_allclose(given["no_answer_probability"], 1 / (1 + np.exp(-odds)), 1e-4)


@pytest.mark.slow
def test_null_threshold_withholds_answers(folder, served):
    odds = offline_answers(folder, "answerable")[1][2]
    free, strict = served["answerable"], served["threshold"]
    withheld = [odds[str(i)] > threshold(folder) for i in range(len(QUESTIONS))]
    assert 0 < sum(withheld) < len(withheld)
    for i, none in enumerate(withheld):
        assert strict["answer"][i] == ("" if none else free["answer"][i])
        assert strict["start"][i] == free["start"][i]
        if none:
            assert strict["end"][i] == strict["start"][i]
            assert strict["end_char"][i] == strict["start_char"][i] == free["start_char"][i]


def offline_logits(folder, preset, task, examples, max_seq_length):
    """Of the fine-tuning code's records."""
    tokenizer = WordPieceTokenizer(str(folder / "vocab.txt"))
    path = str(folder / f"{task.name}.tfrecord")
    glue.write_records(path, task, examples, tokenizer, max_seq_length)
    model = presets.load(str(folder / preset))
    predict = finetuning.Predictor(model, tf.distribute.get_strategy())
    return predict(records.read(path), task.schema, 2, max_seq_length)["logits"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single", "pair"])
def test_classes_are_those_of_the_offline_code(folder, served, name):
    texts = PAIRS if name == "pair" else [(text, None) for text in SINGLES]
    task = glue.Task(name, text_b="text_b" if name == "pair" else None, labels=("0", "1", "2"))
    examples = [glue.Example(i, a, b, 0) for i, (a, b) in enumerate(texts)]
    logits = offline_logits(folder, "single", task, examples, 24)
    given = served[name]
    np.testing.assert_allclose(given["logits"], logits, rtol=1e-4, atol=1e-5)
    assert given["label"] == [["no", "maybe", "yes"][i] for i in logits.argmax(axis=1)]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(given["probabilities"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_regression_gives_a_score_alone(folder, served):
    task = glue.Task("regression", labels=())
    texts = SINGLES[:1] + SINGLES[3:]
    examples = [glue.Example(i, text, None, 0.0) for i, text in enumerate(texts)]
    logits = offline_logits(folder, "regression", task, examples, 64)
    assert set(served["regression"]) == {"score"}
    np.testing.assert_allclose(served["regression"]["score"], logits[:, 0], rtol=1e-4, atol=1e-5)


def test_impossible_exports_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="holds a ConvBertEncoder; only a fine-tuned"):
        serving.export(str(folder / "encoder"), str(tmp_path / "new"))
    with pytest.raises(UserError, match="is there already"):
        serving.export(str(folder / "single"), str(tmp_path))
    with pytest.raises(UserError, match="max_seq_length 65 must be"):
        serving.export(str(folder / "single"), str(tmp_path / "new"), max_seq_length=65)
    with pytest.raises(UserError, match="must exceed max_query_length 64"):
        serving.export(str(folder / "answers"), str(tmp_path / "new"), max_seq_length=40)
    for name, option in (("answers", "pair"), ("single", "null_threshold")):
        with pytest.raises(UserError, match=f"{option}: no option of a "):
            serving.export(str(folder / name), str(tmp_path / "new"), **{option: 1})
    with pytest.raises(UserError, match="null_threshold: this model always answers"):
        serving.export(str(folder / "answers"), str(tmp_path / "new"), **WINDOWS, null_threshold=0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        serving.export(str(folder / "single"), str(tmp_path / "file" / "1"), max_seq_length=24)


def test_what_is_not_said_is_as_the_preset_was_trained(folder, tmp_path):
    model = presets.load(str(folder / "regression"))
    trained = {"max_seq_length": 20, "pair": True, "max_score": 5.0}
    vocab_file = str(folder / "vocab.txt")
    presets.save(model, str(tmp_path / "preset"), vocab_file, serving=trained)
    serving.export(str(tmp_path / "preset"), str(tmp_path / "1"))
    signature = json.loads((tmp_path / "1" / "signature.json").read_text())
    assert (signature["inputs"], signature["max_seq_length"]) == (["text_a", "text_b"], 20)
    assert signature["unicode_version"] == unicodedata.unidata_version
    serve = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    first, second = (tf.constant(texts) for texts in zip(*PAIRS, strict=True))
    preprocessor = TextPreprocessor(WordPieceTokenizer(vocab_file), 20, pad=False)
    logits = model(preprocessor(first, second), training=False)[:, 0]
    expected = np.clip(logits, 0, 1) * 5
    np.testing.assert_allclose(serve(text_a=first, text_b=second)["score"], expected, atol=1e-4)


def test_a_saved_classifier_needs_no_more_to_be_exported(folder, tmp_path):
    """What save_to_preset was given is what is served: length, pairs and the scale of scores."""
    model = presets.load(str(folder / "regression"))
    preprocessor = TextPreprocessor.from_preset(str(folder / "regression"), 20, pair=True)
    model.save_to_preset(tmp_path / "preset", preprocessor, max_score=5.0)
    serving.export(str(tmp_path / "preset"), str(tmp_path / "models" / "1"))
    signature = json.loads((tmp_path / "models" / "1" / "signature.json").read_text())
    assert (signature["inputs"], signature["max_seq_length"]) == (["text_a", "text_b"], 20)
    serve = tf.saved_model.load(str(tmp_path / "models" / "1")).signatures["serving_default"]
    first, second = (tf.constant(texts) for texts in zip(*PAIRS, strict=True))
    preprocessor = TextPreprocessor.from_preset(tmp_path / "preset")
    scores = np.clip(model.predict(preprocessor(first, second), verbose=0)[:, 0], 0, 1) * 5
    np.testing.assert_allclose(serve(text_a=first, text_b=second)["score"], scores, atol=1e-4)


@pytest.mark.slow
def test_an_answer_that_is_not_utf_8_is_shown_escaped(folder, tmp_path):
    serving.export(str(folder / "answers"), str(tmp_path / "1"), **WINDOWS)
    context = os.fsdecode(b"the c\xffat")
    process = run_tool("ask", f"--saved_model={tmp_path}/1", "--question=", f"--context={context}")
    assert process.returncode == 0 and not process.stderr, process.stderr
    answer = json.loads(process.stdout)
    start, end = answer["start"], answer["end"]
    expected = b"the c\xffat"[start:end].decode("utf-8", "backslashreplace")
    assert answer["answer"] == expected


def test_nothing_is_left_of_an_export_that_fails(folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("anything")

    monkeypatch.setattr(saved_model, "write_json", fail)
    with pytest.raises(RuntimeError):
        serving.export(str(folder / "single"), str(tmp_path / "models" / "sst2" / "1"))
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_of_another_model_is_refused(folder, tmp_path):
    model = presets.load(str(folder / "single"))
    big = tmp_path / "big.txt"
    big.write_text("".join(f"piece{i}\n" for i in range(10_000)))
    with pytest.raises(UserError, match="10,000 pieces, the model .* another model's vocabulary"):
        model.save_to_preset(str(tmp_path / "preset"), str(big))
    assert not (tmp_path / "preset").exists()


def test_describe_tells_what_the_model_takes(folder, tokenizer):
    model = presets.load(str(folder / "single"))
    description = serving.ClassifierServer(model, tokenizer, 24, pair=True).describe()
    labels = ["no", "maybe", "yes"]
    expected = {"inputs": ["text_a", "text_b"], "labels": labels, "max_seq_length": 24}
    assert description == expected | {"padding": "longest"}
    assert pathlib.Path(tokenizer.vocab_file).name == "vocab.txt"
