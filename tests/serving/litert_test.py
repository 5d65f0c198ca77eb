"""LiteRT models against the SavedModels' servers: the same answers, without TensorFlow."""

import ast
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import serving
from convbert_tf.console import UserError
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.serving import litert
from convbert_tf.serving.saved_model import make_server
from convbert_tf.text.preprocessing import TextPreprocessor
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests.serving.saved_model_test import MODEL, PAIRS, QUESTIONS, SINGLES, VOCAB, WINDOWS

ROOT = pathlib.Path(__file__).parents[2]
ONE_LAYER = dataclasses.replace(MODEL, num_hidden_layers=1)
# Of a convolution that sees padding, as most models' does, a text alone is computed as by LiteRT;
# a long text is not, whose last window is padded in the graph.
LEAKING = dataclasses.replace(MODEL, mask_convolution=False)
ENTITIES = ["O", "B-x-y", "I-x-y", "E-x-y", "S-x-y", "B-PER", "I-PER"]
HEADS = {
    "classes": lambda encoder: TextClassifier(encoder, 3, labels=["no", "maybe", "yes"]),
    "labels": lambda encoder: TextClassifier(encoder, 4, labels=[*"abcd"], multi_label=True),
    "score": lambda encoder: TextClassifier(encoder, 1),
    "answers": QuestionAnswerer,
    "answerable": lambda encoder: QuestionAnswerer(encoder, answerable=True),
    "independent": lambda encoder: QuestionAnswerer(encoder, joint=False),
    "tags": lambda encoder: TokenClassifier(encoder, 7, labels=ENTITIES),
    "words": lambda encoder: TokenClassifier(encoder, 3),
}
OPTIONS = {
    "classes": {"max_seq_length": 40},
    "labels": {"max_seq_length": 24, "pair": True},
    "score": {"max_seq_length": 24, "max_score": 5.0, "min_score": 1.0},
    "answers": WINDOWS | {"max_answer_length": 6},
    "answerable": WINDOWS | {"null_threshold": 0.5},
    "independent": WINDOWS,
    "tags": {"max_seq_length": 16, "doc_stride": 5},
    "words": {"max_seq_length": 16},
}
QUICK = ("classes", "answers")
ODD = [*SINGLES, b"the \xff\xfe cat", "a\x00b", "cat " * 500, "\u0301", "ΑΣ ΣΑΣ!"]


def texts_of(name):
    """Inputs for a model of HEADS."""
    if name in ("answers", "answerable", "independent"):
        questions = [*QUESTIONS, ("who?", b"the c\xffat was in \xe6\x9d the")]
        return dict(zip(("question", "context"), zip(*questions, strict=True), strict=True))
    if OPTIONS[name].get("pair"):
        return dict(zip(("text_a", "text_b"), zip(*PAIRS, strict=True), strict=True))
    return {"text": ODD}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Presets of all HEADS, and the LiteRT directories that were asked for."""
    folder = tmp_path_factory.mktemp("litert")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    tf.keras.utils.set_random_seed(7)
    for name, head in HEADS.items():
        config = LEAKING if name in ("classes", "labels", "score") else ONE_LAYER
        head(ConvBertEncoder(config)).save_to_preset(folder / name, str(folder / "vocab.txt"))
    return folder


def exported(folder, name, precision="float32", **options):
    path = folder / f"{name}-{precision}"
    if not path.exists():
        serving.export_litert(str(folder / name), str(path), precision, **OPTIONS[name] | options)
    return str(path)


def one_by_one(folder, name, texts):
    """What the SavedModel's server gives for each text alone, which has no padding then."""
    server = make_server(str(folder / name), **OPTIONS[name])
    rows = []
    for row in zip(*texts.values(), strict=True):
        given = {k: tf.constant([v]) for k, v in zip(texts, row, strict=True)}
        rows.append({k: v.numpy()[0] for k, v in server.serve(**given).items()})
    return rows


def same(value, expected):
    """Whether a value is the expected one, behind which there may be b"" or 0 in a batch."""
    if np.ndim(expected):
        value, rest = value[: len(expected)], value[len(expected) :]
        assert not any(rest)
    if np.asarray(value).dtype.kind in "OS":
        return np.array_equal(value, expected)
    return np.allclose(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in HEADS]
)
def test_answers_are_the_servers(folder, name):
    texts = texts_of(name)
    model = litert.load(exported(folder, name))
    found, expected = model(**texts), one_by_one(folder, name, texts)
    assert set(found) == set(expected[0]) and model.inputs == list(texts)
    for key, values in found.items():
        assert len(values) == len(expected)
        for value, row in zip(values, expected, strict=True):
            assert same(value, row[key]), key
            assert values.dtype == object or values.dtype == row[key].dtype, key
    empty = model(**dict.fromkeys(texts, []))
    assert {k: v.dtype for k, v in empty.items()} == {k: v.dtype for k, v in found.items()}
    assert not any(map(len, empty.values()))


# Loads and answers where TensorFlow and Keras cannot be imported.
CLIENT = """
import ast, sys
import convbert_tf
sys.modules |= dict.fromkeys(["tensorflow", "keras", "tensorflow_text", "tf_keras", "absl"])
from convbert_tf.serving import litert
for directory, texts in ast.literal_eval(sys.stdin.read()):
    outputs = litert.load(directory)(**texts)
    print({name: values.tolist() for name, values in outputs.items()})
"""


def test_a_process_without_tensorflow_gives_the_same(folder):
    calls = [(exported(folder, name), texts_of(name)) for name in QUICK]
    client = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=repr(calls),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert client.returncode == 0, client.stderr
    for (directory, texts), line in zip(calls, client.stdout.splitlines(), strict=True):
        found, expected = ast.literal_eval(line), litert.load(directory)(**texts)
        assert set(found) == set(expected)
        assert all(same(np.array(found[k]), expected[k].tolist()) for k in found)


def test_what_a_text_gets_depends_on_no_other_text_or_thread(folder):
    texts = ["cat " * n for n in (1, 3, 38, 12, 30, 14, 25)]
    model = litert.load(exported(folder, "classes"))
    alone = [model(text=[text])["logits"][0] for text in texts]
    assert np.ptp(alone, axis=0).max() > 0.01
    np.testing.assert_allclose(model(text=texts)["logits"], alone, atol=1e-5)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: model(text=[text])["logits"][0], texts * 4))
    np.testing.assert_allclose(rows, alone * 4, atol=1e-5)


# As servers do that load a model before they start their workers.
FORKED = """
import os, sys
from convbert_tf.serving import litert
model = litert.load(sys.argv[1], num_threads=1)
before = model(text=["cat"])["logits"].tolist()
child = os.fork()
if not child:
    os._exit(0 if model(text=["cat"])["logits"].tolist() == before else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_child_of_a_fork_answers_too(folder):
    forked = subprocess.run(
        [sys.executable, "-c", FORKED, exported(folder, "classes")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert forked.stdout == "0\n", forked.stderr


def test_few_interpreters_compute_inputs_of_all_lengths(folder, monkeypatch):
    model = litert.load(exported(folder, "classes"))
    texts = ["cat " * n for n in (1, 38, 8, 3, 30)]
    expected = model(text=texts)["logits"]
    monkeypatch.setattr(litert, "_WEIGHTS_MB", 0)
    few = litert.load(exported(folder, "classes"))
    np.testing.assert_allclose(few(text=texts)["logits"], expected, atol=1e-5)
    # One of 40 tokens came second, and all that follow cost less in it than a new one.
    assert list(few._compute._slots) == [40] and set(model._compute._slots) == {16, 32, 40}


@pytest.mark.slow
def test_padding_in_full_is_as_scored(folder):
    """The model's convolution sees padding, so the amount of it counts."""
    path = folder / "padded"
    serving.export_litert(str(folder / "classes"), str(path), "float32", "full", max_seq_length=40)
    preprocessor = TextPreprocessor(WordPieceTokenizer(str(folder / "vocab.txt")), 40)
    logits = presets.load(str(folder / "classes"))(preprocessor(SINGLES)).numpy()
    np.testing.assert_allclose(litert.load(path)(text=SINGLES)["logits"], logits, atol=1e-5)
    alone = litert.load(exported(folder, "classes"))(text=SINGLES)["logits"]
    assert np.abs(alone - logits).max() > 1e-3


def test_what_cannot_be_asked_is_refused(folder):
    model = litert.load(exported(folder, "answers"))
    for given, message in {
        "this model takes question, context; given: text": {"text": ["a"]},
        "question is one string; give a list": {"question": "a", "context": ["a"]},
        "go together: 1 and 2 of them": {"question": ["a"], "context": ["a", "b"]},
        "context must be a list of strings, got None": {"question": ["a"], "context": None},
        "must be a string, got 3": {"question": ["a"], "context": [3]},
        "half a surrogate pair": {"question": ["a"], "context": ["\ud800"]},
    }.items():
        with pytest.raises(UserError, match=given):
            model(**message)
    with pytest.raises(UserError, match="texts is one string"):  # not its letters' counts
        model.token_counts("abc")


def test_a_damaged_directory_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"settings\.json is not there"):
        litert.load(str(tmp_path))
    for name, content in {
        "model.tflite": b"none",
        "vocab.txt": b"[PAD]\n",
        "settings.json": b'{"kind": "classifier"}',
    }.items():
        directory = tmp_path / name
        shutil.copytree(exported(folder, "classes"), directory)
        (directory / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            litert.load(str(directory))
    (directory / "settings.json").unlink()
    settings = json.loads((tmp_path / "vocab.txt" / "settings.json").read_text())
    (directory / "settings.json").write_text(json.dumps(settings | {"kind": "other"}))
    with pytest.raises(UserError, match="'other' is no kind of model"):
        litert.load(str(directory))
    fewer = {key: value for key, value in settings.items() if key != "num_classes"}
    (directory / "settings.json").write_text(json.dumps(fewer))
    with pytest.raises(UserError, match=r"settings\.json lacks num_classes"):
        litert.load(str(directory))
    for change in ({"num_classes": 1}, {"num_classes": 7}, {"labels": ["a"]}):
        (directory / "settings.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=r"settings\.json is of another model"):
            litert.load(str(directory))
    (directory / "model.tflite").write_bytes(b"none")
    hashes = settings["sha256"] | {"model.tflite": hashlib.sha256(b"none").hexdigest()}
    (directory / "settings.json").write_text(json.dumps(settings | {"sha256": hashes}))
    with pytest.raises(UserError, match="cannot run the model"):
        litert.load(str(directory))


def test_another_version_of_unicode_is_told(folder, tmp_path, capsys):
    directory = tmp_path / "old"
    shutil.copytree(exported(folder, "classes"), directory)
    settings = json.loads((directory / "settings.json").read_text())
    settings["unicode_version"] = "9.0.0"
    (directory / "settings.json").write_text(json.dumps(settings))
    litert.load(str(directory))
    assert "exported with Unicode 9.0.0, this Python has" in capsys.readouterr().err
