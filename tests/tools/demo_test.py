"""The page of tools/demo.py: what its buttons compute, asked as a browser asks."""

import dataclasses
import importlib.util
import pathlib

import keras
import pytest

from convbert_tf import serving
from convbert_tf.config import PretrainingConfig
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from convbert_tf.serving import loading
from tests.serving.saved_model_test import MODEL, VOCAB, WINDOWS
from tests.tools_test import assert_one_line, run_tool

CONFIG = dataclasses.replace(MODEL, num_hidden_layers=1)
# The tool's flags would meet those of other tools in one process, so each has its own.
TOOL = pathlib.Path(__file__).parents[2] / "tools" / "demo.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    keras.utils.set_random_seed(2)
    for name, model in {
        "run/preset": ConvBertPretrainer(CONFIG),
        "mlm": ConvBertPretrainer(CONFIG, PretrainingConfig(objective="mlm")),
        "classes": TextClassifier(ConvBertEncoder(CONFIG), 2, labels=["no", "yes"]),
        "score": TextClassifier(ConvBertEncoder(CONFIG), 1),
        "tags": TokenClassifier(ConvBertEncoder(CONFIG), 3, labels=["O", "B-x", "I-x"]),
        "answers": QuestionAnswerer(ConvBertEncoder(CONFIG), answerable=True),
    }.items():
        model.save_to_preset(str(folder / name), vocab_file=str(folder / "vocab.txt"))
    serving.export(str(folder / "answers"), str(folder / "qa"), **WINDOWS)
    return folder


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client(demo, folder):
    """A client of the page, which is served as by the tool."""
    gradio_client = pytest.importorskip("gradio_client")
    names = ("run", "classes", "score", "tags", "qa")
    page = demo.make_page([str(folder / name) for name in names])
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield gradio_client.Client(url, verbose=False)
    page.close()


def test_texts_are_classified_and_scored(client, demo, folder):
    found = client.predict("the cat", api_name="/classify")
    assert found["label"] in ("no", "yes")
    assert sum(each["confidence"] for each in found["confidences"]) == pytest.approx(1)
    score = demo.ask(loading.load(str(folder / "score")), "the cat")["score"]
    assert client.predict("the cat", api_name="/classify_1")["label"] == f"{score:.3f}"


def test_an_answer_is_marked_in_its_context(client):
    context = "東京 was where the cat was."
    answer, marked, score = client.predict("where was it?", context, api_name="/ask")
    assert "".join(part["token"] for part in marked) == context
    labelled = [part["token"] for part in marked if part["class_or_confidence"] == "answer"]
    assert labelled == [answer] and "log-odds of no answer" in score


def test_tags_and_tokens_are_marked_in_their_text(client):
    text = "Zoë was in 東京."
    for name in ("/tag", "/detect"):
        marked = client.predict(text, api_name=name)
        assert "".join(part["token"] for part in marked) == text
    labels = [part["class_or_confidence"] for part in marked]
    assert sum(isinstance(label, float) for label in labels) == 8


def test_masks_are_filled_and_texts_compared(client):
    filled, table = client.predict("the [MASK] was", api_name="/fill_in")
    assert table["headers"] == ["mask", "piece", "probability"] and len(table["data"]) == 5
    best = max(table["data"], key=lambda row: row[2])
    assert best[1].strip("#") in filled and "[MASK]" not in filled
    assert float(client.predict("the cat", "the cat", api_name="/compare")) == pytest.approx(1)


def test_there_are_pictures_of_attention_and_kernels(client):
    for picture in client.predict("the cat was in 東京", 1, api_name="/look"):
        assert picture["type"] == "matplotlib" and picture["plot"].startswith("data:image/")


def test_of_a_pre_trained_model_there_is_what_it_can(demo, folder):
    names = [name for name, _ in demo.panels_of(str(folder / "mlm"))]
    assert names == ["fill in", "likeness", "inside"]


def test_what_is_no_model_is_told_in_one_line(tmp_path):
    assert_one_line(run_tool("demo", f"--model={tmp_path}"), 1, str(tmp_path))
