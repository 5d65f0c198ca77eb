"""Trials and grids: what they leave, that it is kept, and what is made of it."""

import dataclasses
import json
import os

import numpy as np
import pytest

from convbert_tf.config import TaskConfig
from convbert_tf.console import UserError
from convbert_tf.tasks import glue, sentences
from convbert_tf.training import scores
from convbert_tf.workflows import finetuning, trials
from tests import runs
from tests.small_tasks import make_cola, make_experiment, make_preset


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return make_preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="module")
def cola(tmp_path_factory):
    return make_cola(tmp_path_factory.mktemp("cola"))


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_trials_are_summed_up_and_kept(preset, cola, tmp_path, monkeypatch, capsys):
    def run(number):
        return trials.run(make_experiment(preset, cola, tmp_path, epochs=2.0, num_trials=number))

    report = run(2)
    assert report == read(tmp_path / "trials.json")
    results = [read(tmp_path / f"trial-{i}" / "eval_results.json") for i in (1, 2)]
    assert [each["metrics"] for each in report["trials"]] == [r["metrics"] for r in results]
    assert [each["seed"] for each in report["trials"]] == [0, 1]
    values = [result["metrics"]["mcc"] for result in results]
    assert report["mean"]["mcc"] == pytest.approx(np.mean(values))
    assert report["deviation"]["mcc"] == pytest.approx(np.std(values, ddof=1))
    assert report["best"] == f"trial-{np.argmax(values) + 1}"
    best = tmp_path / report["best"] / "preset" / "model.weights.h5"
    assert (tmp_path / "preset" / "model.weights.h5").read_bytes() == best.read_bytes()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["trial", "seed", "step", "mcc", "accuracy"])
    rows = ["trial-1", "trial-2", "mean", "median", "deviation", "ensemble", "baseline"]
    assert [line[0] for line in lines[start + 1 : start + 8]] == rows
    assert lines[start + 2][3] == f"{values[1]:.4f}"
    # The ensemble's answers are those of the models' mean probabilities.
    outputs = [np.load(tmp_path / f"trial-{i}" / "predictions" / "dev_outputs.npz") for i in (1, 2)]
    logits = np.stack([each["logits"] for each in outputs]).astype(float)
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    answers = (tmp_path / "predictions" / "CoLA.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[1] for line in answers] == [
        str(label) for label in odds.mean(0).argmax(-1)
    ]
    assert (
        len(os.listdir(tmp_path / "records")) == 3 and not (tmp_path / "trial-1/records").exists()
    )

    trained, fit = [], finetuning.loop.fit
    monkeypatch.setattr(
        finetuning.loop,
        "fit",
        lambda task, options, *args, **kw: (
            trained.append(options.seed) or fit(task, options, *args, **kw)
        ),
    )
    assert run(2) == report and trained == []
    assert run(3)["trials"][:2] == report["trials"] and trained == [2]
    with pytest.raises(UserError, match="holds trials, not a single run: choose another"):
        run(1)


@pytest.mark.slow
def test_a_grid_is_sorted_and_a_run_with_an_error_ends_alone(preset, cola, tmp_path, capsys):
    experiment = make_experiment(preset, cola, tmp_path, epochs=12.0)
    values = {"training.learning_rate": [1e30, 1e-5, 3e-3]}
    with pytest.raises(UserError, match="1 of 3 runs ended with an error"):
        trials.run(experiment, values)
    said = capsys.readouterr().out
    assert "learning_rate=1e+30 ended with an error: the loss or its gradient is not fin" in said
    report = read(tmp_path / "grid.json")
    names = ["learning_rate=1e+30", "learning_rate=1e-05", "learning_rate=0.003"]
    assert [run["name"] for run in report["runs"]] == names
    assert "not finite" in report["runs"][0]["error"]
    assert [run["values"] for run in report["runs"][1:]] == [
        {"training.learning_rate": rate} for rate in values["training.learning_rate"][1:]
    ]
    metrics = {name: read(tmp_path / name / "eval_results.json")["metrics"] for name in names[1:]}
    assert report["best"] == max(metrics, key=lambda name: metrics[name]["mcc"])
    lines = [line.split() for line in said.splitlines()]
    first, second, *others = lines[lines.index(["run", "mcc", "accuracy"]) + 1 :]
    assert first[:2] == [names[2], f"{metrics[names[2]]['mcc']:.4f}"] and second[0] == names[1]
    assert [line[0] for line in others] == ["baseline", names[0]]
    best = tmp_path / report["best"] / "preset" / "model.weights.h5"
    assert (tmp_path / "preset" / "model.weights.h5").read_bytes() == best.read_bytes()
    assert any("experiment" in name for name in runs.read_events(tmp_path)[1])
    points, others = runs.read_events(tmp_path / names[1])
    assert points["results/mcc"] == [(96, pytest.approx(metrics[names[1]]["mcc"]))]
    assert any("session_start_info" in name for name in others)


def test_what_is_impossible_in_any_run_is_refused_before_anything_is_made(preset, cola, tmp_path):
    experiment = make_experiment(preset, cola, tmp_path / "run", num_trials=2)
    for grid, message in (
        ({"task.max_seq_length": [32, 64]}, "64 must be between 8 and the model's"),
        ({"training.batch_size": [16, 129]}, "holds 128 records, fewer than one batch of 129"),
        ({"training.weight_decay_rate": [0.1, -1.0]}, "weight_decay_rate=-1: weight_decay_rate"),
    ):
        with pytest.raises(UserError, match=message):
            trials.run(experiment, grid)
    last = dataclasses.replace(experiment.training, seed=2**32 - 1)
    with pytest.raises(UserError, match="seed must be below"):
        trials.run(dataclasses.replace(experiment, training=last))
    assert not (tmp_path / "run").exists()


def test_a_folder_holds_one_kind_of_runs(preset, cola, tmp_path):
    for file, number, grid, message in (
        ("config.json", 2, None, "holds a single run, not trials"),
        ("grid.json", 2, None, "holds a grid, not trials"),
        ("trials.json", 1, {"training.seed": [1]}, "holds trials, not a grid"),
        ("grid.json", 1, None, "holds a grid, not a single run"),
    ):
        folder = tmp_path / f"{file}-{number}"
        folder.mkdir()
        (folder / file).write_text("{}")
        with pytest.raises(UserError, match=message):
            trials.run(make_experiment(preset, cola, folder, num_trials=number), grid)


# --- what is made of several runs ---


def test_the_summary_by_hand():
    members = [
        {"name": f"trial-{i}", "seed": i, "step": 9, "metrics": {"f1": f1}, "baseline": {"f1": 0}}
        for i, f1 in enumerate((0.2, 0.6, 0.4, 0.6))
    ]
    members = [member | {"seconds": 1.5} for member in members]
    report = trials.summarize(members, "f1")
    assert report["mean"] == {"f1": pytest.approx(0.45)}
    assert report["median"] == {"f1": pytest.approx(0.5)}
    assert report["deviation"] == {"f1": pytest.approx((0.11 / 3) ** 0.5)}
    assert report["best"] == "trial-1"  # the first of two
    assert report["seconds"] == 6
    assert trials.summarize(members[:1], "f1")["deviation"] == {"f1": 0.0}
    lines = scores.trials_table(report)
    assert lines[0].split() == ["trial", "seed", "step", "f1"]
    assert lines[2].split() == ["trial-1", "1", "9", "0.6000"]
    assert [line.split() for line in lines[5:]] == [
        ["mean", "0.4500"],
        ["median", "0.5000"],
        ["deviation", "0.1915"],
        ["baseline", "0.0000"],
    ]


def test_an_ensemble_is_the_mean_of_probabilities_or_of_scores():
    evaluation = sentences.SentencesEvaluation(glue.TASKS["sst2"], [], [])
    # Two are hardly for class 1, one is surely for class 0.
    logits = [[[0.0, 0.1]], [[0.0, 0.1]], [[1000.0, 0.0]]]
    mean = evaluation.ensemble([{"logits": np.float32(each)} for each in logits])
    odds = 1 / (1 + np.exp(0.1))
    assert np.exp(mean["logits"]) == pytest.approx(
        np.array([[(1 + 2 * odds) / 3, 2 * (1 - odds) / 3]])
    )
    assert evaluation.predictions(mean).tolist() == [0]
    evaluation = sentences.SentencesEvaluation(glue.TASKS["stsb"], [], [])
    mean = evaluation.ensemble([{"logits": np.float32([[x]])} for x in (0.2, 0.6)])
    assert evaluation.predictions(mean) == pytest.approx([0.4])


# --- class weights ---


def examples(*labels):
    return [glue.Example(i, "a", None, label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("balanced", [4 / 6, 2.0]),  # of four examples three are of class 0
        ("1,3", [1.0, 3.0]),
        ("not_entailment:2.5, entailment:0", [0.0, 2.5]),
    ],
)
def test_class_weights(given, expected):
    found = sentences.class_weights(given, glue.TASKS["rte"], examples(0, 0, 1, 0))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("stsb", "balanced", "class_weights are for classes; the labels of stsb are numbers"),
        ("rte", "1,2,3", "a number for each of the labels entailment, not_entailment, as entail"),
        ("rte", "equal", "got 'equal'"),
        ("rte", "-1,1", "got '-1,1'"),
        ("rte", "nan,1", "got 'nan,1'"),
        ("rte", "0,0", "got '0,0'"),
        ("rte", "entailment:1,2", "got 'entailment:1,2'"),
        ("rte", "entailment:1,yes:2", "got 'entailment:1,yes:2'"),
    ],
)
def test_class_weights_that_make_no_sense_are_told(task, given, message):
    with pytest.raises(UserError, match=message):
        sentences.class_weights(given, glue.TASKS[task], examples(0, 1))


def test_class_weights_reach_the_loss(preset, cola, tmp_path, monkeypatch):
    totals = []

    def fit(task, *_, **__):
        batch = {name: np.ones((2, 8), int) for name in ("input_ids", "input_mask", "segment_ids")}
        batch["label_ids"] = np.array([0, 1])
        totals.append(float(task.losses(batch, training=False)[0]["task"][1]))
        raise UserError("stop")

    monkeypatch.setattr(finetuning.loop, "fit", fit)
    for weights in ("", "0,2", "2,0", "1,1"):
        experiment = make_experiment(preset, cola, tmp_path, class_weights=weights)
        with pytest.raises(UserError, match="stop"):
            finetuning.run(experiment)
    plain, only_second, only_first, equal = totals
    assert plain == pytest.approx(equal) == pytest.approx((only_first + only_second) / 2)
    assert only_first != pytest.approx(only_second)


def test_questions_have_no_class_weights(preset, tmp_path):
    for name in ("train", "dev"):
        paragraph = {"context": "the cat", "qas": [{"id": "a", "question": "who?"}]}
        paragraph["qas"][0]["answers"] = [{"text": "cat", "answer_start": 4}]
        content = {"version": "1.1", "data": [{"paragraphs": [paragraph]}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    experiment = make_experiment(
        preset, str(tmp_path), tmp_path / "run", "squad_v1", class_weights="balanced"
    )
    with pytest.raises(UserError, match="are for classes of sentences, not for squad_v1"):
        finetuning.run(experiment)
    with pytest.raises(UserError, match="num_trials must be at least 1, got 0"):
        TaskConfig(num_trials=0)
