"""A fine-tuned model scored on splits of a task."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from convbert_tf.config import FinetuningExperiment, ModelConfig, TaskConfig, TrainingConfig
from convbert_tf.console import UserError
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier
from convbert_tf.workflows import evaluation

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
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
def cola(tmp_path_factory):
    """A classifier with random weights, and sentences of CoLA's form; test.tsv has no labels."""
    folder = tmp_path_factory.mktemp("cola")
    (folder / "pieces.txt").write_text("\n".join(VOCAB) + "\n")
    keras.utils.set_random_seed(0)
    model = TextClassifier(ConvBertEncoder(MODEL), 2, labels=["0", "1"])
    inputs = {name: np.zeros([1, 8], int) for name in ("input_ids", "input_mask", "segment_ids")}
    # So that it answers neither always 0 nor always 1.
    model.logits.kernel.assign(20 * model.logits.kernel)
    model.logits.bias.assign(-model(inputs)[0])
    model.save_to_preset(str(folder / "preset"), vocab_file=str(folder / "pieces.txt"))
    rng = np.random.default_rng(0)
    rows = [
        (int(rng.integers(2)), " ".join(rng.choice(LETTERS, rng.integers(1, 20))))
        for _ in range(50)
    ]
    for name in ("train", "dev"):
        lines = (f"me\t{label}\t\t{text}\n" for label, text in rows)
        (folder / f"{name}.tsv").write_text("".join(lines))
    lines = (f"{i}\t{text}\n" for i, (_, text) in enumerate(rows[:7]))
    (folder / "test.tsv").write_text("index\tsentence\n" + "".join(lines))
    return folder


def experiment(folder, **task):
    settings = {
        "name": "cola",
        "init_from": str(folder / "preset"),
        "data_dir": str(folder),
        "max_seq_length": 32,
    }
    return FinetuningExperiment(TaskConfig(**settings | task), TrainingConfig(batch_size=16))


def test_splits_are_scored_or_only_predicted(cola, tmp_path):
    found = evaluation.evaluate(experiment(cola), ["dev", "test"], str(tmp_path))
    dev, test = found["dev"], found["test"]
    lines = (tmp_path / "predictions" / "dev" / "CoLA.tsv").read_text().splitlines()[1:]
    predicted = [line.split("\t")[1] for line in lines]
    labels = [line.split("\t")[1] for line in (cola / "dev.tsv").read_text().splitlines()]
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    assert dev["metrics"]["accuracy"] == pytest.approx(right / 50)
    assert sum(map(sum, dev["confusion"]["matrix"])) == dev["examples"] == 50
    assert dev["baseline"]["mcc"] == 0 and len(set(predicted)) == 2
    assert test["metrics"] == {} and test["examples"] == 7
    lines = (tmp_path / "predictions" / "test" / "CoLA.tsv").read_text().splitlines()
    assert lines[1:] == [f"{i}\t{label}" for i, label in enumerate(predicted[:7])]
    assert json.loads((tmp_path / "dev.json").read_text()) == dev


def test_scores_in_half_precision_are_told(cola, tmp_path, capsys):
    whole = experiment(cola)
    training = dataclasses.replace(whole.training, precision="mixed_bfloat16")
    evaluation.evaluate(whole, ["dev"], str(tmp_path / "whole"))
    assert "bfloat16" not in capsys.readouterr().out
    half = dataclasses.replace(whole, training=training)
    evaluation.evaluate(half, ["dev"], str(tmp_path / "half"))
    assert "these scores are computed in mixed_bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "split", "message"),
    [
        ({"name": "rte"}, "dev", r"its labels: \['0', '1'\], not \['entailment', 'not_entail"),
        ({"name": "stsb"}, "dev", "its num_classes: 2, not 1"),
        ({"name": "squad_v1"}, "dev", "it is a TextClassifier, not a QuestionAnswerer"),
        ({}, "dev_mismatched", "cola has no split 'dev_mismatched'; it has train, dev, test"),
        ({"max_seq_length": 33}, "dev", "33 must be between 8 and the model's"),
        ({"data_dir": ""}, "dev", "set config.task.init_from"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(cola, tmp_path, task, split, message):
    kind = "json" if task.get("name") == "squad_v1" else "tsv"
    (tmp_path / f"dev.{kind}").write_text("x")
    data_dir = {} if task.get("name") in (None, "cola") else {"data_dir": str(tmp_path)}
    with pytest.raises(UserError, match=message):
        evaluation.evaluate(experiment(cola, **data_dir | task), [split], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_reports_is_told(cola, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="Not a directory: .*out'"):
        evaluation.evaluate(experiment(cola), ["dev"], str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_questions_of_a_file_are_scored_and_shown(cola, tmp_path):
    model = QuestionAnswerer(ConvBertEncoder(MODEL), beam_size=4)
    model.save_to_preset(str(tmp_path / "preset"), vocab_file=str(cola / "pieces.txt"))
    rows = [f"{LETTERS[i]},{' '.join(LETTERS[i:])},{LETTERS[i + 1]}" for i in range(20)]
    (tmp_path / "mine.csv").write_text("question,context,answer\n" + "\n".join(rows))
    task = {"name": "squad_v1", "data_dir": "", "dev_file": str(tmp_path / "mine.csv")}
    task |= {"init_from": str(tmp_path / "preset"), "max_query_length": 8, "beam_size": 4}
    found = evaluation.evaluate(experiment(cola, **task), ["dev"], str(tmp_path / "out"))["dev"]
    answers = json.loads((tmp_path / "out/predictions/dev/predictions.json").read_text())
    exact = [answers[str(i + 2)] == LETTERS[i + 1] for i in range(20)]
    assert found["metrics"]["exact_match"] == pytest.approx(5 * sum(exact))
    assert found["files"] == [str(tmp_path / "mine.csv")]
    page = (tmp_path / "out" / "dev.html").read_text()
    assert f"20 questions; exact match {5 * sum(exact):.2f}" in page and page.count("<h3>") == 20
