"""Pictures of a run's metrics.jsonl, of precision and recall, of confusion; no TensorFlow."""

import json
import os

import numpy as np

from convbert_tf.config import METRICS_FILE
from convbert_tf.console import UserError
from convbert_tf.files import atomic_path

# The panels that are drawn by default: the first of these that the runs have.
METRICS = (
    "masked_lm_loss",
    "disc_loss",
    "disc_auc",
    "loss",
    "mcc",
    "spearman",
    "accuracy",
    "f1",
    "exact_match",
    "gradient_norm",
)
MOST_PANELS = 3
_MOST_NUMBERS = 20  # classes up to which a confusion matrix shows its numbers
NO_METRICS = ("step", "kind", "time")  # what else a line of metrics.jsonl has


def read_metrics(model_dir):
    """The lines of a run's metrics.jsonl, as dicts with `step`, `kind`, `time` and metrics.

    Raises:
        UserError: the file is not there, or a line of it is no such dict.
    """
    path = os.path.join(model_dir, METRICS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.endswith("\n")]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is not there: name the model_dir of a run.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from None
    for number, line in enumerate(lines, 1):
        if not _is_whole(line):
            raise UserError(f"{path} is damaged: line {number} is none of a run's metrics.")
    return lines


def _is_whole(line):
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    values = [value for name, value in line.items() if name not in NO_METRICS]
    numbers = (int, float)
    return isinstance(line.get("step"), int) and all(
        value is None or (isinstance(value, numbers) and not isinstance(value, bool))
        for value in values
    )


def default_metrics(runs):
    """Up to MOST_PANELS of METRICS that `runs` (lists of lines) hold, or else what they hold."""
    held = {
        name: None
        for lines in runs
        for line in lines
        for name, value in line.items()
        if value is not None and name not in NO_METRICS
    }
    return ([name for name in METRICS if name in held] or list(held))[:MOST_PANELS]


def plot_run(model_dirs, path, metrics=None):
    """Draws one panel a metric over the steps: held-out points, and training's as a thin line.

    Args:
        model_dirs: one run or several, told apart by the folders' names.
        path: .svg or .png.
        metrics: names in metrics.jsonl; by default those of METRICS that the runs have.

    Raises:
        UserError: matplotlib is missing, or no run has one of the metrics.
    """
    figure = matplotlib_figure()
    kind = os.path.splitext(path)[1]
    if kind not in (".svg", ".png"):
        raise UserError(f"{path} must end in .svg or .png.")
    runs = _read_runs(model_dirs)
    found = default_metrics(runs.values())
    if not found:
        raise UserError(f"there are no metrics yet in {', '.join(model_dirs)}.")
    metrics = found if metrics is None else metrics
    if not metrics:
        raise UserError(f"no metric is named; there are, for example, {', '.join(found)}.")
    drawing = figure.Figure(figsize=(4 * len(metrics), 3.2), layout="constrained")
    panels = drawing.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        _check_metric(metric, runs, model_dirs)
        for number, (name, lines) in enumerate(runs.items()):
            _draw(panel, lines, metric, f"C{number}", f"{name}: " if len(runs) > 1 else "")
        panel.set(xlabel="step", ylabel=metric)
        panel.grid(alpha=0.3)
    curves = {curve.get_label(): curve for panel in panels for curve in panel.get_lines()}
    panels[0].legend(handles=list(curves.values()), fontsize="small")
    with atomic_path(path) as partial:
        drawing.savefig(partial, format=kind[1:])


def plot_precision_recall(curves, path):
    """Draws precision over recall, with the average precision of each curve.

    Args:
        curves: name -> (recalls, precisions), both from 0 to 1, the recalls rising from 0.
        path: .png.

    Raises:
        UserError: matplotlib is missing.
    """
    drawing = matplotlib_figure().Figure(figsize=(5, 4), layout="constrained")
    panel = drawing.subplots()
    for name, (recalls, precisions) in curves.items():
        average = 100 * sum((recalls[1:] - recalls[:-1]) * precisions[1:])
        # The precision that a recall is reached with, as the average counts it.
        panel.step(recalls, precisions, where="pre", label=f"{name}: average {average:.2f}")
    panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.05))
    panel.grid(alpha=0.3)
    if curves:
        panel.legend(fontsize="small")
    with atomic_path(path) as partial:
        drawing.savefig(partial, format="png")


def _read_runs(model_dirs):
    """Name of its folder -> lines, of each run."""
    names = [os.path.basename(os.path.abspath(folder)) for folder in model_dirs]
    if len(set(names)) < len(names):
        raise UserError("two of the runs have folders of the same name, by which they are told.")
    return dict(zip(names, map(read_metrics, model_dirs), strict=True))


def _check_metric(metric, runs, model_dirs):
    lines = [line for run in runs.values() for line in run]
    if any(line.get(metric) is not None for line in lines) and metric not in NO_METRICS:
        return
    held = sorted({name for line in lines for name in line} - set(NO_METRICS))
    there = f"; there are {', '.join(held)}" if held else ""
    raise UserError(f"there is no metric {metric!r} in {', '.join(model_dirs)}{there}.")


def _draw(panel, lines, metric, color, prefix):
    styles = {
        "train": {"alpha": 0.35, "linewidth": 1, "label": f"{prefix}training"},
        "eval": {"marker": "o", "markersize": 3, "label": f"{prefix}held out"},
    }
    for kind, style in styles.items():
        known = [line for line in lines if line["kind"] == kind and line.get(metric) is not None]
        if known:
            points = [(line["step"], line[metric]) for line in known]
            panel.plot(*zip(*points, strict=True), color=color, **style)


def confusion_image(labels, matrix):
    """The picture of a confusion matrix: uint8 [height, width, 3].

    A cell's color is its share of the row, which is a true class.

    Args:
        labels: names of the C classes.
        matrix: [C, C] numbers of examples, rows of true classes and columns of predicted ones.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = matplotlib_figure()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = len(labels) <= _MOST_NUMBERS
    size = 2.5 + len(labels) * (0.55 if numbered else 0.18)
    drawing = figure.Figure(figsize=(min(size, 20), min(size, 20)), layout="constrained", dpi=80)
    canvas, panel = FigureCanvasAgg(drawing), drawing.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [label if len(label) <= 20 else label[:18] + "..." for label in labels]
    names = as_shown(names)
    panel.set_xticks(range(len(names)), names, rotation=90 if len(names) > 3 else 0)
    panel.set_yticks(range(len(names)), names)
    panel.tick_params(labelsize=9 if numbered else 6)
    panel.set(xlabel="predicted", ylabel="true")
    for (row, column), count in np.ndenumerate(counts if numbered else counts[:0]):
        color = "white" if shares[row, column] > 0.5 else "black"
        panel.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def as_shown(names):
    """`names` as matplotlib shows them literally: between two dollars stands a formula."""
    return [name.replace("$", r"\$") for name in names]


def matplotlib_figure():
    try:
        from matplotlib import figure
    except ImportError:
        raise UserError("matplotlib is missing: pip install matplotlib.") from None
    return figure
