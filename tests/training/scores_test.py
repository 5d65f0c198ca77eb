"""A line of what a run has reached."""

import json

import pytest

from convbert_tf.console import UserError
from convbert_tf.training import scores


def write_results(folder, metrics, baseline):
    folder.mkdir()
    report = {"metrics": metrics, "baseline": baseline}
    (folder / "eval_results.json").write_text(json.dumps(report))


def test_scores_stand_beside_the_baseline(tmp_path):
    write_results(
        tmp_path / "a", {"mcc": 0.5, "accuracy": 0.75, "total": 9}, {"mcc": 0, "total": 9}
    )
    assert scores.summary(str(tmp_path / "a")).split() == ["a", "mcc", "0.5", "(baseline", "0)"]


@pytest.mark.parametrize(("value", "remarked"), [(0.69, True), (0.7, True), (0.71, False)])
def test_a_result_no_better_than_the_baseline_gets_a_remark(tmp_path, value, remarked):
    write_results(tmp_path / "a", {"accuracy": value, "f1": 0.1}, {"accuracy": 0.7, "f1": 0.6})
    line = scores.summary(str(tmp_path / "a"))
    said = f"  -- no better than the baseline: accuracy {value}, without a model 0.7"
    assert line.endswith(said) == remarked and ("no better" in line) == remarked


def test_trials_are_a_line_and_a_grid_is_a_table(tmp_path):
    (tmp_path / "a").mkdir()
    report = {"trials": [], "num_trials": 2}
    (tmp_path / "a" / "trials.json").write_text(json.dumps(report))
    assert scores.summary(str(tmp_path / "a")).split("a  ")[1].strip() == (
        "trials, which are not finished"
    )
    trials = [{"name": f"trial-{i}", "seed": i, "step": 9, "metrics": {"f1": i}} for i in (0, 1)]
    values = {"mean": {"f1": 0.5}, "median": {"f1": 0.5}, "deviation": {"f1": 0.7071}}
    report |= {
        "trials": trials,
        "metric": "f1",
        "best": "trial-1",
        "baseline": {"f1": 0.1},
    } | values
    report["ensemble"] = {"f1": 0.75}
    (tmp_path / "a" / "trials.json").write_text(json.dumps(report))
    assert " ".join(scores.summary(str(tmp_path / "a")).split()) == (
        "a f1 0.5 ± 0.71 (baseline 0.1) (2 trials, the best trial-1, their ensemble f1 0.75)"
    )
    runs = [
        {"name": "x=1", "metrics": {"f1": 0.5, "em": 0}, "baseline": {"f1": 0, "em": 0}},
        {"name": "x=2", "error": "not finite"},
        {"name": "x=3", "metrics": {"f1": 0.7, "em": 0}, "deviation": {"f1": 0.02, "em": 0}},
    ]
    runs[2]["baseline"] = runs[0]["baseline"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "grid.json").write_text(json.dumps({"metric": "f1", "runs": runs}))
    assert [line.split() for line in scores.summary(str(tmp_path / "b")).splitlines()] == [
        ["b", "a", "grid"],
        ["run", "f1", "em"],
        ["x=3", "0.7000", "±", "0.0200", "0.0000", "±", "0.0000"],
        ["x=1", "0.5000", "0.0000"],
        ["baseline", "0.0000", "0.0000"],
        ["x=2", "error"],
    ]


def test_of_a_pretraining_run_the_last_evaluation_counts(tmp_path):
    lines = [
        {"step": 5, "kind": "eval", "time": 1.5, "disc_auc": 0.5},
        {"step": 1000, "kind": "eval", "time": 2.5, "disc_auc": 0.75, "disc_loss": None},
        {"step": 1010, "kind": "train", "time": 3.5, "disc_auc": 0.8},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = scores.summary(str(tmp_path))
    assert " ".join(found.split()) == f"{tmp_path.name} step 1,000: disc_auc 0.75 disc_loss nan"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "other",
            "",
            "is no run that has been evaluated: it has neither eval_results.json nor met",
        ),
        ("metrics.jsonl", "[]\n", "damaged: line 1 is none"),
        ("metrics.jsonl", "", "has not been evaluated yet"),
        ("trials.json", '{"trials": [{"name": "a"}]}', r"trials\[0\]\.\w+ is missing"),
        ("grid.json", "[]", "an object"),
        ("eval_results.json", "{", "is no JSON"),
        ("eval_results.json", "[]", "is no result of"),
        ("eval_results.json", '{"metrics": {}, "baseline": {}}', "is no result of"),
        ("eval_results.json", '{"metrics": {"f1": "1"}, "baseline": {"f1": 1}}', "no number"),
    ],
)
def test_a_run_without_results_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        scores.summary(str(tmp_path))


def test_an_error_is_better_where_it_is_lower():
    name = "mean_squared_error"
    assert scores.remark({name: 1.0}, {name: 2.0}) == ""
    assert "no better than the baseline" in scores.remark({name: 2.0}, {name: 1.0})
    assert scores.higher_is_better("accuracy") and not scores.higher_is_better("loss")
