"""The scores that runs have reached, a line a run; no TensorFlow."""

import math
import os

from convbert_tf import files
from convbert_tf.config import METRICS_FILE
from convbert_tf.console import UserError
from convbert_tf.training import plots

RESULTS_FILE = "eval_results.json"


def summary(model_dir):
    """A line of the scores of the run in `model_dir`: with its baseline, if it has one.

    Of a fine-tuning run they are those of eval_results.json, of a pre-training run those of its
    last evaluation.

    Raises:
        UserError: there are no results in `model_dir`.
    """
    name = os.path.basename(os.path.abspath(model_dir))
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


def _results(path):
    report = files.read_json(path, "the result of tools/finetune.py")
    parts = [report.get(key) for key in ("metrics", "baseline")] if isinstance(report, dict) else []
    numbers = [value for part in parts if isinstance(part, dict) for value in part.values()]
    if not all(isinstance(part, dict) for part in parts) or not numbers:
        raise UserError(f"{path} is no result of tools/finetune.py.")
    if not all(isinstance(value, int | float) for value in numbers):
        raise UserError(f"{path} is no result of tools/finetune.py: a score is no number.")
    return parts


def _scores(metrics, baseline):
    scores = [
        f"{name} {value:.4g} (baseline {baseline[name]:.4g})"
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
