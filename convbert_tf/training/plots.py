"""Pictures of a run's metrics.jsonl; no TensorFlow."""

import json
import os

from convbert_tf.config import METRICS_FILE
from convbert_tf.console import UserError
from convbert_tf.files import atomic_path

METRICS = ("masked_lm_loss", "disc_loss", "disc_auc")


def read_metrics(model_dir):
    """The lines of a run's metrics.jsonl, as dicts with `step`, `kind`, `time` and metrics.

    Raises:
        UserError: the file is not there, or a line of it is no JSON.
    """
    path = os.path.join(model_dir, METRICS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        raise UserError(f"{path} is not there: name the model_dir of a run.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from None


def plot_run(model_dirs, path, metrics=METRICS):
    """Draws one panel a metric over the steps: held-out points, and training's as a thin line.

    Args:
        model_dirs: one run or several, told apart by the folders' names.
        path: .svg or .png.
        metrics: names in metrics.jsonl.

    Raises:
        UserError: matplotlib is missing, or no run has one of the metrics.
    """
    try:
        from matplotlib import figure
    except ImportError:
        raise UserError("matplotlib is missing: pip install matplotlib.") from None
    kind = os.path.splitext(path)[1]
    if kind not in (".svg", ".png"):
        raise UserError(f"{path} must end in .svg or .png.")
    if not metrics:
        raise UserError(f"no metric is named; there are, for example, {', '.join(METRICS)}.")
    names = [os.path.basename(os.path.normpath(folder)) for folder in model_dirs]
    if len(set(names)) < len(names):
        raise UserError("two of the runs have folders of the same name, by which they are told.")
    runs = dict(zip(names, map(read_metrics, model_dirs), strict=True))
    drawing = figure.Figure(figsize=(4 * len(metrics), 3.2), layout="constrained")
    panels = drawing.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        if not any(metric in line for lines in runs.values() for line in lines):
            raise UserError(f"there is no metric {metric!r} in {', '.join(model_dirs)}.")
        for number, (name, lines) in enumerate(runs.items()):
            _draw(panel, lines, metric, f"C{number}", f"{name}: " if len(runs) > 1 else "")
        panel.set(xlabel="step", ylabel=metric)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    with atomic_path(path) as partial:
        drawing.savefig(partial, format=kind[1:])


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
