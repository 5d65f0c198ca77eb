"""Exports for LiteRT: what they write, what they find out about it, what they refuse."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import serving
from convbert_tf.config import TaskConfig
from convbert_tf.console import UserError
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import TextClassifier
from convbert_tf.serving import litert, litert_check, litert_export
from tests.serving.saved_model_test import MODEL, VOCAB
from tests.tools_test import run_tool

# Wide enough for the converter to give its weights eight bits.
CONFIG = dataclasses.replace(
    MODEL, hidden_size=64, embedding_size=64, intermediate_size=128, num_hidden_layers=1
)
TEXTS = ["the cat was in.", "who?", "東京 " * 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A preset of a classifier in a run, the run's data, and the preset's int8 export."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    rows = [f"{'the cat was ' * (i % 4)}{i},{['no', 'yes'][i % 2]}\n" for i in range(24)]
    (folder / "rows.csv").write_text("text,label\n" + "".join(rows))
    tf.keras.utils.set_random_seed(2)
    model = TextClassifier(ConvBertEncoder(CONFIG), 2, labels=["no", "yes"])
    model.save_to_preset(
        str(folder / "run" / "preset"), vocab_file=str(folder / "vocab.txt"), max_seq_length=32
    )
    task = {"name": "own", "train_file": str(folder / "rows.csv"), "held_out": 0.5}
    (folder / "run" / "config.json").write_text(json.dumps({"task": task}))
    return folder


@pytest.fixture(scope="module")
def findings(folder):
    """Those of the export to folder/model."""
    task = TaskConfig(
        name="own", train_file=str(folder / "rows.csv"), dev_file=str(folder / "rows.csv")
    )
    preset = str(folder / "run" / "preset")
    return serving.export_litert(preset, str(folder / "model"), task=task)


def test_int8_is_smaller_and_near_the_model(folder, findings):
    assert findings.megabytes["int8"] < 0.7 * findings.megabytes["float32"]
    assert findings.difference["float32"] < 1e-5 * findings.largest
    assert 1e-4 < findings.difference["int8"] / findings.largest < 0.1
    assert set(findings.milliseconds["int8"]) == {32}  # it takes no 128 tokens
    size = (folder / "model" / "model.tflite").stat().st_size
    assert size / 1e6 == pytest.approx(findings.megabytes["int8"])
    settings = json.loads((folder / "model" / "settings.json").read_text())
    assert (settings["precision"], settings["max_seq_length"]) == ("int8", 32)
    assert settings["spare"] == 0 and settings["labels"] == ["no", "yes"]


def test_scores_are_those_of_the_answers(folder, findings):
    labels = [["no", "yes"][i % 2].encode() for i in range(24)]
    texts = [f"{'the cat was ' * (i % 4)}{i}" for i in range(24)]
    right = litert.load(str(folder / "model"))(text=texts)["label"] == labels
    assert findings.metric == "accuracy" and findings.data == "24 examples"
    assert findings.scores["int8"]["accuracy"] == pytest.approx(100 * right.mean())
    assert set(findings.scores["float32"]) == {"accuracy", "macro_f1"}


def test_the_model_card_tells_them(folder, findings):
    card = (folder / "model" / "README.md").read_text()
    assert findings.table() in card and 'model = litert.load("model")' in card
    for part in (f"| {findings.megabytes['int8']:.1f} MB |", "accuracy, 24 examples", "int8"):
        assert part in card


def test_only_builtin_operators(folder, findings):
    from ai_edge_litert import schema_py_generated as schema

    content = (folder / "model" / "model.tflite").read_bytes()
    codes = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content)).operatorCodes
    assert codes and not any(code.customCode for code in codes)


@pytest.mark.parametrize(
    ("metric", "float32", "int8", "chosen"),
    [
        ("accuracy", 90.0, 89.6, "int8"),
        ("accuracy", 90.0, 89.4, "float32"),
        ("mean_squared_error", 3.0, 3.6, "float32"),
        ("mean_squared_error", 3.0, 1.0, "int8"),
    ],
)
def test_a_loss_above_half_a_point_falls_back_to_float32(capsys, metric, float32, int8, chosen):
    scores = {"float32": {metric: float32}, "int8": {metric: int8}}
    found = litert_check.Findings({}, {}, 1.0, "logits", {}, "x", metric, scores)
    assert litert_export._choose(found, "int8") == chosen
    said = capsys.readouterr().out
    assert ("0.60 points" in said and said.count("\n") == 1) == (chosen == "float32")
    assert litert_export._choose(dataclasses.replace(found, scores={}), "int8") == "int8"


def test_impossible_exports_are_refused_and_leave_nothing(folder, tmp_path, monkeypatch):
    preset, new = str(folder / "run"), str(tmp_path / "models" / "new")
    with pytest.raises(UserError, match="is there already"):
        serving.export_litert(preset, str(tmp_path))
    with pytest.raises(UserError, match="null_threshold: no option of a TextClassifier"):
        serving.export_litert(preset, new, null_threshold=1.0)
    with pytest.raises(UserError, match="padding must be"):
        serving.export_litert(preset, new, padding="short")
    task = TaskConfig(name="own", train_file=str(folder / "rows.csv"), labels="no,yes,maybe")
    with pytest.raises(UserError, match="the model is not of the task own: its num_classes: 2"):
        serving.export_litert(preset, new, task=task)
    monkeypatch.setattr(litert_check, "_MOST_DIFFERENT", -1)
    with pytest.raises(UserError, match="the converted network differs from the model by"):
        serving.export_litert(preset, new, "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_tool_scores_on_the_presets_run(folder, tmp_path):
    output = tmp_path / "cats"
    arguments = [f"--preset={folder}/run/preset", f"--output_dir={output}", "--format=litert"]
    process = run_tool("export_model", *arguments, f"--check_data={folder}/run")
    assert process.returncode == 0 and not process.stderr, process.stderr
    assert process.stdout.endswith(f"the LiteRT model is in {output}\n")
    assert re.search(r"\| accuracy, \d+ examples \|", process.stdout)
    answer = run_tool("ask", f"--saved_model={output}", f"--text={TEXTS[0]}")
    assert answer.returncode == 0 and not answer.stderr, answer.stderr
    expected = litert.load(str(output))(text=TEXTS[:1])
    assert json.loads(answer.stdout)["label"] == expected["label"][0].decode()
    np.testing.assert_allclose(
        json.loads(answer.stdout)["logits"], expected["logits"][0], atol=1e-6
    )


@pytest.mark.slow
def test_the_tool_refuses_data_of_no_task(folder, tmp_path):
    other = tmp_path / "preset"
    other.symlink_to(folder / "run" / "preset")
    for preset, data, message in (
        (other, folder / "rows.csv", "is not in a run"),
        (other, tmp_path / "none", "none is not there"),
    ):
        arguments = [f"--preset={preset}", f"--output_dir={tmp_path}/new", f"--check_data={data}"]
        process = run_tool("export_model", "--format=litert", *arguments)
        assert process.returncode == 1 and message in process.stderr, process.stderr
        assert process.stderr.count("\n") == 1
