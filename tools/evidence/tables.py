"""Tables in Markdown and the picture of curves, of what runs.py found; no TensorFlow."""

import math
import statistics

from convbert_tf import files
from convbert_tf.console import say
from convbert_tf.training import plots

# Task -> the metrics that the papers report, and their factor.
FINETUNING = {
    "cola": ("mcc", 100),
    "sst2": ("accuracy", 100),
    "mrpc": ("accuracy", 100),
    "stsb": ("spearman", 100),
    "rte": ("accuracy", 100),
    "tagging": ("accuracy", 100),
    "squad": ("f1", 1),
}
HELD_OUT = ("masked_lm_loss", "disc_loss", "disc_auc")
# Above it a model knows how often words are, and which go into one text, but not yet their order.
PLATEAU = 5.5  # of masked_lm_loss


def markdown(rows):
    """A table of rows of strings; the first is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def around(values, digits=3):
    """The mean of `values`, with their standard deviation where there are several."""
    values = [value for value in values if value is not None and not math.isnan(value)]
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def difference(first, second):
    """Mean of `first` less that of `second`, and its standard error; lists of at least 2."""
    gain = statistics.fmean(first) - statistics.fmean(second)
    error = math.sqrt(
        statistics.variance(first) / len(first) + statistics.variance(second) / len(second)
    )
    return gain, error


def pretraining_table(found):
    """A row a model: size, time, last held-out losses, AUC on the reference text, plateau's end.

    Args:
        found: model -> dict of `parameters`, `seconds_a_step`, and lists with an entry a seed:
            `curves` (see runs.curve), `reference` (dicts of reference.score, or None).
    """
    rows = [
        ["model", "parameters", "ms a step", "steps", "tokens", "minutes", *HELD_OUT]
        + ["AUC on the reference text", f"masked-LM loss below {PLATEAU} at step"]
    ]
    for model, each in found.items():
        last = [curve[-1] for curve in each["curves"]]
        rows.append(
            [
                model,
                f"{each['parameters']:,}",
                f"{1e3 * each['seconds_a_step']:.0f}",
                f"{last[0]['step']:,}",
                f"{last[0]['tokens'] / 1e6:.1f} M",
                f"{statistics.fmean(point['seconds'] for point in last) / 60:.0f}",
                *(around([point.get(metric) for point in last]) for metric in HELD_OUT),
                around([one["disc_auc"] for one in each["reference"] if one]),
                ", ".join(map(left_plateau, each["curves"])),
            ]
        )
    return markdown(rows)


def left_plateau(curve):
    """The step of the first evaluation of a curve whose masked-LM loss is below PLATEAU."""
    steps = (point["step"] for point in curve if point["masked_lm_loss"] < PLATEAU)
    return next((f"{step:,}" for step in steps), "-")


def finetuning_table(found):
    """A row a task, a column a model, each mean and deviation over the trials; then the gains.

    Args:
        found: model -> task -> content of trials.json.
    """
    tasks = [task for task in FINETUNING if any(task in each for each in found.values())]
    rows = [["task", "metric", *found, "without a model"]]
    for task in tasks:
        metric, factor = FINETUNING[task]
        row, baseline = [task, metric], None
        for each in found.values():
            row.append(around(_values(each, task), 1))
            baseline = each[task]["baseline"].get(metric) if task in each else baseline
        rows.append([*row, "-" if baseline is None else f"{factor * baseline:.1f}"])
    return markdown(rows)


def gains(found, first, second):
    """Lines: by how much `first` is ahead of `second` in each task, and on the mean of all."""
    tasks = [task for task in FINETUNING if task in found[first] and task in found[second]]
    parts, total, variance = [], 0.0, 0.0
    for task in tasks:
        values = [_values(found[name], task) for name in (first, second)]
        if min(map(len, values)) < 2:
            return ["a single trial each: no uncertainty can be told"]
        gain, error = difference(*values)
        parts.append(f"{task} {gain:+.1f} ± {error:.1f}")
        total, variance = total + gain / len(tasks), variance + (error / len(tasks)) ** 2
    if not parts:
        return []
    parts.append(f"mean of {len(tasks)} tasks {total:+.2f} ± {math.sqrt(variance):.2f}")
    return [f"{first} less {second} (standard errors): {', '.join(parts)}"]


def _values(each, task):
    """The scores of all trials of a task in percent; [] where it is not there."""
    metric, factor = FINETUNING[task]
    return (
        [factor * trial["metrics"][metric] for trial in each[task]["trials"]]
        if task in each
        else []
    )


def write(path, text):
    """Writes a table to a file and shows it."""
    files.write_bytes(path, text.encode("utf-8"))
    say(f"\n{text}")
    say(f"the table is in {path}")


def draw(found, path):
    """Draws held-out curves over tokens and over time: means of the seeds, with bands around.

    Args:
        found: as for `pretraining_table`.
        path: .svg.

    Raises:
        UserError: matplotlib is missing.
    """
    axes = {"tokens": (1e6, "million tokens"), "seconds": (60, "minutes of training")}
    size = (4 * len(HELD_OUT), 3.0 * len(axes))
    drawing = plots.matplotlib_figure().Figure(figsize=size, layout="constrained")
    panels = drawing.subplots(len(axes), len(HELD_OUT), squeeze=False)
    for row, (axis, (unit, label)) in zip(panels, axes.items(), strict=True):
        for panel, metric in zip(row, HELD_OUT, strict=True):
            for number, (model, each) in enumerate(found.items()):
                _draw_band(panel, each["curves"], axis, unit, metric, f"C{number}", model)
            panel.set(xlabel=label, ylabel=f"held-out {metric}")
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize="small")
    with files.atomic_path(path) as partial:
        drawing.savefig(partial, format="svg")


def _draw_band(panel, curves, axis, unit, metric, color, label):
    """One model's mean over its seeds; the band is from the lowest to the highest."""
    points = list(zip(*curves, strict=False))  # the evaluations that all seeds have
    points = [each for each in points if all(metric in point for point in each)]
    if not points:
        return
    x = [statistics.fmean(point[axis] for point in each) / unit for each in points]
    values = [[point[metric] for point in each] for each in points]
    middle = [statistics.fmean(each) for each in values]
    panel.plot(x, middle, color=color, marker="o", markersize=2.5, label=label)
    panel.fill_between(x, list(map(min, values)), list(map(max, values)), color=color, alpha=0.2)
