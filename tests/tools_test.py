"""The binaries: one clear line for a mistake, and what they say when all goes well."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run_tool(name, *args):
    return subprocess.run(
        [sys.executable, f"tools/{name}.py", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(process, status, *parts):
    """The process failed with `status` and told why in a single line on stderr."""
    lines = process.stderr.splitlines()
    assert process.returncode == status, process.stderr
    assert len(lines) == 1 and ": error: " in lines[0], process.stderr
    for part in parts:
        assert part in lines[0]
    assert "Traceback" not in process.stdout


PRETRAIN = "--config=configs/pretrain_tiny.py"
FINETUNE = "--config=configs/finetune_glue.py:cola"


# Mistakes that are found before TensorFlow is imported, which takes seconds.
@pytest.mark.parametrize(
    "name, args, status, parts",
    [
        ("pretrain", [PRETRAIN, "--config.training.batchsize=4"], 2, ["batch_size"]),
        ("pretrain", [PRETRAIN, "--config.training.batch_size=many"], 2, ["many"]),
        ("pretrain", [PRETRAIN, "--no_such_flag=1"], 2, ["no_such_flag"]),
        ("pretrain", [PRETRAIN, "--config.model.hidden_size=10"], 1, ["num_attention_heads"]),
        ("pretrain", [PRETRAIN], 1, ["--config.data.train_dir"]),
        ("pretrain", ["--config=configs/missing.py"], 1, ["missing.py"]),
        ("pretrain", [], 2, ["--config"]),
        ("pretrain", [PRETRAIN, "stray"], 1, ["'stray'"]),
        ("finetune", [FINETUNE, "--config.task.data_dri=x"], 2, ["data_dir"]),
        ("export_saved_model", ["--preset=x"], 2, ["output_dir"]),
        ("export_saved_model", ["--preset=x", "--output_dir=y", "--max_seq_length=3"], 2, ["3"]),
        ("compare_runs", ["--run=no/such/run"], 1, ["no/such/run/eval_results.json is not there"]),
        ("build_pretraining_data", ["--input=x", "--output_dir=y"], 2, ["vocab_file"]),
        (
            "build_pretraining_data",
            ["--output_dir=y", "--vocab_file=z"],
            1,
            ["set --input or --tfds"],
        ),
        (
            "build_pretraining_data",
            ["--input=x", "--output_dir=y", "--vocab_file=z", "--beam_option=a=1"],
            1,
            ["--runner"],
        ),
        ("train_vocabulary", ["--input=x", "--output_file=y", "--vocab_size=5"], 2, ["100"]),
        ("ask", ["--text=x"], 2, ["saved_model"]),
    ],
)
def test_mistakes_are_told_in_one_line(name, args, status, parts):
    assert_one_line(run_tool(name, *args), status, *parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, args, part",
    [
        (
            "pretrain",
            [PRETRAIN, "--config.data.train_dir=no/dir", "--config.training.model_dir=no/run"],
            "no/dir",
        ),
        ("export_saved_model", ["--preset=no/preset", "--output_dir=no/model"], "no/preset"),
        ("ask", ["--saved_model=no/model", "--text=x"], "no/model"),
    ],
)
def test_missing_directories_are_told_in_one_line(name, args, part):
    assert_one_line(run_tool(name, *args), 1, part)
    assert not (ROOT / "no").exists()


def test_compare_runs_prints_scores_beside_baselines(tmp_path):
    for name, accuracy in (("one", 0.75), ("two", 0.5)):
        (tmp_path / name).mkdir()
        report = {"metrics": {"accuracy": accuracy, "total": 9}, "baseline": {"accuracy": 0.25}}
        (tmp_path / name / "eval_results.json").write_text(json.dumps(report))
    process = run_tool("compare_runs", f"--run={tmp_path}/one/", f"--run={tmp_path}/two")
    assert process.returncode == 0 and not process.stderr
    first, second = process.stdout.splitlines()
    assert first.split() == ["one", "accuracy", "0.75", "(baseline", "0.25)"]
    assert second.split() == ["two", "accuracy", "0.5", "(baseline", "0.25)"]


def test_help_names_the_flags():
    process = run_tool("pretrain", "--help")
    assert "--config" in process.stdout and "Pre-trains a ConvBERT" in process.stdout
    assert "Traceback" not in process.stderr
