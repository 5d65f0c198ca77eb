"""metrics.jsonl across restarts."""

import json
import subprocess
import sys

import pytest

from convbert_tf.training import monitoring


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_step_stands_once_however_often_the_run_is_taken_up(tmp_path):
    log = monitoring.MetricsLog(str(tmp_path), 0)
    for step in (3, 6, 9):
        log.write("train", step, {"loss": step / 3})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 12, "kind": "tr')  # killed while it wrote
    log = monitoring.MetricsLog(str(tmp_path), 6)
    log.write("eval", 6, {"loss": float("nan")})
    lines = read(tmp_path)
    assert all(line.pop("time") > 1e9 for line in lines)
    assert lines == [
        {"step": 3, "kind": "train", "loss": 1.0},
        {"step": 6, "kind": "train", "loss": 2.0},
        {"step": 6, "kind": "eval", "loss": None},
    ]
    monitoring.MetricsLog(str(tmp_path), 0)
    assert read(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "loss/loss"),
        ("masked_lm_accuracy", "generator/masked_lm_accuracy"),
        ("disc_loss", "loss/disc_loss"),
        ("disc_auc", "discriminator/disc_auc"),
        ("skipped_steps", "optimizer/skipped_steps"),
        ("tokens_per_second", "throughput/tokens_per_second"),
        ("damaged_records", "data/damaged_records"),
        ("mcc", "metrics/mcc"),
        ("HasAns_f1", "metrics/HasAns_f1"),
    ],
)
def test_each_metric_has_a_group_in_tensorboard(name, expected):
    assert monitoring.tag(name) == expected


def test_format_metrics():
    assert monitoring.format_metrics({"a_loss": 6.52149, "b": 0.5}) == "a_loss 6.521  b 0.5"


@pytest.mark.slow
def test_tensorboard_starts_with_what_is_installed():
    """2.20 needs pkg_resources, which a newer setuptools does not have."""
    command = [sys.executable, "-m", "tensorboard.main", "--version"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
