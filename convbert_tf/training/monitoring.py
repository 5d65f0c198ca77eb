"""What is written of a run while it goes: console, TensorBoard, metrics.jsonl.

metrics.jsonl holds a JSON object a line: `step`, `kind` ("train" or "eval"), `time` (seconds since
1970) and the metrics. A run that is taken up again drops the lines after the checkpoint it goes on
from, and an evaluation there, which is made again; so each step stands there once.
"""

import contextlib
import glob
import io
import json
import math
import os
import sys
import time

import orbit
import tensorflow as tf

from convbert_tf import config as configs
from convbert_tf.files import read_json, write_bytes

# Group of the metrics whose name does not tell it; see `tag`.
_GROUPS = {
    "masked_lm_accuracy": "generator",
    "sampled_masked_lm_accuracy": "generator",
    "gradient_norm": "optimizer",
    "learning_rate": "optimizer",
    "skipped_steps": "optimizer",
    "damaged_records": "data",
    "model_flops_utilisation": "throughput",
}


class MetricsLog:
    """Appends to model_dir/metrics.jsonl; keeps the lines of what led to step `start`."""

    def __init__(self, model_dir, start):
        self.path = os.path.join(model_dir, configs.METRICS_FILE)
        kept = [line for line in _whole_lines(self.path) if _leads_to(json.loads(line), start)]
        write_bytes(self.path, "".join(f"{line}\n" for line in kept).encode("utf-8"))

    def write(self, kind, step, metrics):
        values = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        line = json.dumps({"step": step, "kind": kind, "time": round(time.time(), 3)} | values)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def _leads_to(line, start):
    return line["step"] < start or (line["step"] == start and line["kind"] == "train")


def _whole_lines(path):
    """Lines of a JSON-lines file; the last may have been cut off."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("}\n"):
                return
            yield line[:-1]


def tag(name):
    """A metric's name in TensorBoard, which shows a section for each group: "loss/disc_loss".

    Groups: loss, generator, discriminator, optimizer, throughput, data; metrics for the rest, which
    are the scores of a task.
    """
    if name in _GROUPS:
        group = _GROUPS[name]
    elif name.endswith("loss"):
        group = "loss"
    elif name.startswith("disc_"):
        group = "discriminator"
    else:
        group = "throughput" if name.endswith("_per_second") else "metrics"
    return f"{group}/{name}"


def summary_manager(folder, global_step):
    """What Orbit writes a loop's output with: as scalars to `folder`, under their `tag`s.

    Args:
        folder: for the event files; None to write nothing.
        global_step: tf.Variable.
    """

    def write(name, value, step):
        tf.summary.scalar(tag(name), value, step)

    return orbit.utils.SummaryManager(folder, write, global_step)


def write_config(model_dir):
    """Shows the config of the run in `model_dir` in TensorBoard, as text and as hparams.

    In model_dir itself, so that its HPARAMS page finds the metrics in the folders below.
    """
    path = os.path.join(model_dir, configs.CONFIG_FILE)
    if not os.path.exists(path):
        return
    from tensorboard.plugins.hparams import api

    sections = read_json(path, "a run's config")
    flat = {f"{name}.{key}": v for name, values in sections.items() for key, v in values.items()}
    with tf.summary.create_file_writer(model_dir).as_default(step=0):
        tf.summary.text("config", "\n".join(f"    {key} = {v!r}" for key, v in flat.items()))
        api.hparams(flat)


def write_scores(model_dir, step, metrics):
    """Shows the final scores of a run, those of `step`, in TensorBoard: "results/mcc"."""
    with tf.summary.create_file_writer(model_dir).as_default(step=step):
        for name, value in metrics.items():
            tf.summary.scalar(f"results/{name}", value)


def write_comparison(directory, values, metrics):
    """Sets the columns of TensorBoard's HPARAMS page for the runs in folders of `directory`.

    Args:
        directory: the runs are in folders of it.
        values: "section.key" of the config -> the values that it has in these runs.
        metrics: names of their scores.
    """
    from tensorboard.plugins.hparams import api

    for path in glob.glob(os.path.join(glob.escape(directory), "events.out.tfevents.*")):
        os.remove(path)  # of other columns
    with tf.summary.create_file_writer(directory).as_default(step=0):
        api.hparams_config(
            hparams=[api.HParam(key, api.Discrete(given)) for key, given in values.items()],
            metrics=[api.Metric(f"results/{name}", display_name=name) for name in metrics],
        )


class Report:
    """Shows and logs each loop's output: an Orbit action."""

    def __init__(self, progress, global_step, log=None):
        self.progress, self.global_step, self.log = progress, global_step, log

    def __call__(self, output):
        shown = {name: value for name, value in output.items() if "loss" in name}
        step = int(self.global_step.numpy())
        self.progress.update(step, format_metrics(shown))
        if self.log is not None:
            self.log.write("train", step, output)


@contextlib.contextmanager
def quiet_orbit():
    """Orbit prints its own account of every loop; ours says it in one line. Yields the terminal."""
    terminal = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):
        yield terminal


def format_metrics(metrics):
    """'masked_lm_loss 6.521  disc_auc 0.731'."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
