"""The scores that runs have reached, a line a run; no TensorFlow."""

import math
import os
from typing import Required, TypedDict

from convbert_tf import files
from convbert_tf.config import METRICS_FILE
from convbert_tf.console import UserError
from convbert_tf.training import plots

RESULTS_FILE = "eval_results.json"
TRIALS_FILE, GRID_FILE = "trials.json", "grid.json"


class Trial(TypedDict, total=False):
    """A run of trials.json: its folder, its seed, the step and the metrics of its results."""

    name: Required[str]
    seed: Required[int]
    step: Required[int]
    metrics: Required[dict[str, float]]


class Trials(TypedDict, total=False):
    """The content of trials.json; without the means while the first trial goes on."""

    trials: Required[list[Trial]]
    metric: str
    mean: dict[str, float]
    median: dict[str, float]
    deviation: dict[str, float]
    baseline: dict[str, float]
    ensemble: dict[str, float] | None
    best: str


class GridRun(TypedDict, total=False):
    """A combination of grid.json: its metrics, which are means where there are several trials."""

    name: Required[str]
    metrics: dict[str, float]
    deviation: dict[str, float]
    baseline: dict[str, float]
    num_trials: int
    step: int
    error: str


class Grid(TypedDict, total=False):
    """The content of grid.json."""

    metric: Required[str]
    runs: Required[list[GridRun]]
    grid: dict[str, list]


def summary(model_dir):
    """A line of the scores of the run in `model_dir`: with its baseline, if it has one.

    Of a fine-tuning run they are those of eval_results.json, of a pre-training run those of its
    last evaluation; of trials they are means and deviations, of a grid there is a line each.

    Raises:
        UserError: there are no results in `model_dir`.
    """
    name = os.path.basename(os.path.abspath(model_dir))
    path = os.path.join(model_dir, TRIALS_FILE)
    if os.path.exists(path):
        return f"{name:24} {_of_trials(files.read_json(path, 'the scores of trials', Trials))}"
    path = os.path.join(model_dir, GRID_FILE)
    if os.path.exists(path):
        report = files.read_json(path, "the scores of a grid", Grid)
        return "\n".join([f"{name:24} a grid", *(f"  {line}" for line in grid_table(report))])
    path = os.path.join(model_dir, RESULTS_FILE)
    if os.path.exists(path):
        metrics, baseline = _results(path)
        return f"{name:24} {_scores(metrics, baseline)}".rstrip()
    step, metrics = _last_evaluation(model_dir)
    shown = "  ".join(f"{metric} {value:.4g}" for metric, value in metrics.items())
    return f"{name:24} step {step:,}: {shown}"


def remark(metrics, baseline):
    """A remark on results that are no better than the baseline in their first metric, or ""."""
    metric = next((name for name in metrics if name in baseline and name != "total"), None)
    if metric is None:
        return ""
    sign = 1 if higher_is_better(metric) else -1
    if sign * metrics[metric] > sign * baseline[metric]:
        return ""
    return (
        f"no better than the baseline: {metric} {metrics[metric]:.4g}, without a model "
        f"{baseline[metric]:.4g}"
    )


def higher_is_better(metric):
    """Whether a metric of this name is better where it is higher: all but losses and errors."""
    return not metric.endswith(("loss", "error"))


def _of_trials(report):
    if "mean" not in report:
        return "trials, which are not finished"
    parts = _scores(report["mean"], report["baseline"], report["deviation"])
    ensemble = (report.get("ensemble") or {}).get(report["metric"])
    more = "" if ensemble is None else f", their ensemble {report['metric']} {ensemble:.4g}"
    return f"{parts}  ({len(report['trials'])} trials, the best {report['best']}{more})"


def trials_table(report):
    """Lines of a table of trials.json: the trials, and what they are together."""
    names = [name for name in report["mean"] if name in report["baseline"] and name != "total"]
    rows = [["trial", "seed", "step", *names]]
    for trial in report["trials"]:
        head = [trial["name"], trial["seed"], f"{trial['step']:,}"]
        rows.append([*head, *_cells(trial["metrics"], names)])
    for key in ("mean", "median", "deviation", "ensemble", "baseline"):
        if report.get(key):
            rows.append([key, "", "", *_cells(report[key], names)])
    return table(rows)


def grid_table(report):
    """Lines of a table of grid.json: the best first, those that ended with an error last."""
    metric = report["metric"]
    done = [run for run in report["runs"] if "metrics" in run]
    done.sort(key=lambda run: run["metrics"][metric], reverse=higher_is_better(metric))
    first = done[0] if done else {"metrics": {}, "baseline": {}}
    names = [name for name in first["metrics"] if name in first["baseline"] and name != "total"]
    names.sort(key=lambda name: name != metric)
    rows = [["run", *names]]
    rows += [[run["name"], *_cells(run["metrics"], names, run.get("deviation"))] for run in done]
    rows += [["baseline", *_cells(first["baseline"], names)]] if done else []
    rows += [[run["name"], "error"] for run in report["runs"] if "metrics" not in run]
    return table(rows)


def _cells(metrics, names, deviation=None):
    around = [f" ± {deviation[name]:.4f}" if deviation else "" for name in names]
    return [f"{metrics[name]:.4f}{more}" for name, more in zip(names, around, strict=True)]


def table(rows, align="<"):
    """Lines of a table whose columns stand below each other, to the left (<) or the right (>)."""
    width = max(map(len, rows))
    rows = [[*map(str, row), *[""] * (width - len(row))] for row in rows]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [f"{cell:{align}{size}}" for cell, size in zip(row, sizes, strict=True)] for row in rows
    )
    return ["  ".join(row).rstrip() for row in cells]


def _results(path):
    report = files.read_json(path, "the result of tools/finetune.py")
    parts = [report.get(key) for key in ("metrics", "baseline")] if isinstance(report, dict) else []
    numbers = [value for part in parts if isinstance(part, dict) for value in part.values()]
    if not all(isinstance(part, dict) for part in parts) or not numbers:
        raise UserError(f"{path} is no result of tools/finetune.py.")
    if not all(isinstance(value, int | float) for value in numbers):
        raise UserError(f"{path} is no result of tools/finetune.py: a score is no number.")
    return parts


def _scores(metrics, baseline, deviation=None):
    scores = [
        f"{name} {value:.4g}{f' ± {deviation[name]:.2g}' if deviation else ''} "
        f"(baseline {baseline[name]:.4g})"
        for name, value in metrics.items()
        if name in baseline and name != "total"
    ]
    remarks = [f"-- {line}" for line in [remark(metrics, baseline)] if line]
    return "  ".join(scores + remarks)


def _last_evaluation(model_dir):
    """Step and metrics of the last evaluation in metrics.jsonl."""
    if not os.path.exists(os.path.join(model_dir, METRICS_FILE)):
        raise UserError(
            f"{model_dir!r} is no run that has been evaluated: it has neither {RESULTS_FILE} nor "
            f"{METRICS_FILE}."
        )
    lines = plots.read_metrics(model_dir)
    done = [line for line in lines if line["kind"] == "eval"]
    if not done:
        raise UserError(f"the run in {model_dir} has not been evaluated yet.")
    metrics = {k: v for k, v in done[-1].items() if k not in plots.NO_METRICS}
    return done[-1]["step"], {k: math.nan if v is None else v for k, v in metrics.items()}
