"""The binaries: one clear line for a mistake, and what they say when all goes well."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from convbert_tf import config

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
        ("pretrain", [PRETRAIN, "--config.trainings.seed=4"], 2, ["no 'trainings'; did you mean"]),
        ("pretrain", [PRETRAIN, "--config.data.cache=x"], 2, ["'x' is neither true nor false"]),
        ("pretrain", [PRETRAIN, f"--config.training.seed={2**70}"], 1, ["must be below 2**63"]),
        ("pretrain", ["--flagfile=no/file"], 2, ["Unable to open flagfile"]),
        ("make_documentation_data", ["--output_dir=README.md"], 1, ["README.md is no folder."]),
        ("update_build", ["--root=no/tree", "--check"], 1, ["no/tree has no folder convbert_tf."]),
        ("pretrain", [PRETRAIN, "--no_such_flag=1"], 2, ["no_such_flag"]),
        ("pretrain", [PRETRAIN, "--config.model.hidden_size=10"], 1, ["num_attention_heads"]),
        ("pretrain", [PRETRAIN], 1, ["--config.data.train_dir"]),
        (
            "pretrain",
            ["--config=configs/pretrain_smal.py"],
            2,
            [
                "flag --config=configs/pretrain_smal.py: there is no such file; did you mean "
                "configs/pretrain_small.py"
            ],
        ),
        ("pretrain", ["--config=pretrain_tiny.py"], 2, ["did you mean configs/pretrain_tiny.py?"]),
        (
            "pretrain",
            ["--config=x"],
            2,
            ["x: there is no such file; in configs there are finetune_glue.py,"],
        ),
        ("pretrain", ["--config=configs"], 2, ["it is a folder: name a file in it, finetune_glue"]),
        ("pretrain", ["--config=README.md"], 2, ["README.md: a config is a Python file"]),
        ("pretrain", [f"{PRETRAIN}:x"], 2, ["pretrain_tiny.py:x: it takes nothing after a colon."]),
        ("pretrain", [FINETUNE], 2, ["it has the sections task, training, but here data, model"]),
        (
            "finetune",
            ["--config=configs/finetune_glue.py"],
            2,
            ["finetune_glue.py: name the task after a colon: one of cola, sst2, mrpc"],
        ),
        ("finetune", [f"{FINETUNE}a"], 2, ["colaa: no task 'colaa'; there are cola, sst2, mrpc"]),
        ("finetune", ["--config=configs/finetune_squad.py:v3"], 2, ["no version 'v3' of SQuAD"]),
        ("finetune", ["--config=configs/quickstart.py:x"], 2, ["'x'; there are cola, squad_v1."]),
        ("pretrain", [], 2, ["pretrain.py: error: --config is required."]),
        ("pretrain", [PRETRAIN, "stray"], 1, ["'stray'"]),
        ("finetune", [FINETUNE, "--config.task.data_dri=x"], 2, ["data_dir"]),
        ("export_model", ["--preset=x"], 2, ["output_dir"]),
        ("export_model", ["--preset=x", "--output_dir=y", "--max_seq_length=3"], 2, ["3"]),
        (
            "export_model",
            ["--preset=x", "--output_dir=y", "--precision=int8"],
            1,
            ["--format=saved_model it is float32 or bfloat16"],
        ),
        (
            "export_model",
            ["--preset=x", "--output_dir=y", "--check_data=z"],
            1,
            ["--check_data does not go with --format=saved_model"],
        ),
        ("compare_runs", ["--run=no/such/run"], 1, ["'no/such/run' is no run that has been eval"]),
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
        ("ask", ["--saved_model=x", "--text=-"], 1, ["tools/predict.py --model=x < FILE"]),
        (
            "ask",
            ["--saved_model=x", "--question=a", "--question=b", "--context=c"],
            1,
            ["there is --question 2 times and --context 1 times: each asks with one of each."],
        ),
        ("evaluate", [], 1, ["set either --run, or --config and values of it."]),
        ("evaluate", ["--run=no/run"], 1, ["no/run/config.json is not there"]),
        ("evaluate", [FINETUNE], 1, ["set --output_dir."]),
        ("evaluate", [FINETUNE, "--split=", "--output_dir=x"], 1, ["--split names no split"]),
        ("evaluate", [FINETUNE, "--data_dir=x"], 1, ["here it is --config.task.data_dir."]),
        ("evaluate", [FINETUNE, "--dev_file=x"], 1, ["here it is --config.task.dev_file."]),
        ("predict", ["--input=no/file"], 2, ["--model is required."]),
        ("predict", ["--model=x", "--input=no/file.csv"], 1, ["no/file.csv is not there"]),
        ("predict", ["--model=x", "--input=BUILD"], 1, ["BUILD: set --input_format"]),
        ("predict", ["--model=x", "--output=x.txt"], 1, ["x.txt: set --output_format"]),
        (
            "predict",
            ["--model=x", "--input=BUILD", "--input_format=text", "--output=./BUILD"]
            + ["--output_format=tsv"],
            1,
            ["--output=./BUILD is the input: name another file."],
        ),
        ("predict", ["--model=x", "--input=docs"], 1, ["--input=docs is a folder: name a file"]),
        ("predict", ["--model=x", "--output=docs"], 1, ["--output=docs is a folder: name a file"]),
        (
            "predict",
            ["--model=x", "--html=./a.tsv", "--output=a.tsv"],
            1,
            ["--html and --output name the same file."],
        ),
        ("glue", ["--preset=x", "--data_dir=y"], 2, ["model_dir"]),
        ("glue", ["--preset=x", "--data_dir=y", "--model_dir=z", "--tasks=x"], 1, ["no task 'x'"]),
        ("glue", ["--preset=x", "--data_dir=y", "--model_dir=z", "--tasks="], 1, ["names none"]),
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
        ("export_model", ["--preset=no/preset", "--output_dir=no/model"], "no/preset"),
        ("ask", ["--saved_model=no/model", "--text=x"], "no/model"),
        ("predict", ["--model=no/model", "--input=BUILD", "--input_format=text"], "no/model"),
        ("glue", ["--preset=no/preset", "--data_dir=no/glue", "--model_dir=no/run"], "no/glue has"),
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


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "tools").glob("*.py"))])
def test_help_is_usage_and_our_flags(name):
    process = run_tool(name, "--help")
    assert (process.returncode, process.stderr) == (0, "")
    usage, *_ = lines = process.stdout.splitlines()
    assert usage.startswith(f"Usage: python tools/{name}.py")
    assert usage.endswith(" [--flag=value ...]") and "Flags:" in lines
    assert not re.search(r"\b(absl|pdb|logtostderr|repeat\s+this)\b", process.stdout)
    longer = run_tool(name, "--helpfull")
    assert longer.returncode == 0 and "--[no]logtostderr" in longer.stdout
    assert longer.stdout.startswith(process.stdout)


def values_in_help(text):
    return dict(re.findall(r"^  --config\.([\w.]+)=(.*)\n {6}\S", text, re.M))


@pytest.mark.parametrize(
    ("name", "experiment"),
    [
        ("pretrain", config.PretrainingExperiment()),
        ("finetune", config.FinetuningExperiment(training=config.finetuning_defaults())),
    ],
)
def test_help_lists_every_value_of_a_config(name, experiment):
    expected = {
        f"{section}.{key}": str(value)
        for section, values in dataclasses.asdict(experiment).items()
        for key, value in values.items()
    }
    assert values_in_help(run_tool(name, "--help").stdout) == expected


def test_help_shows_the_values_of_a_config_file():
    process = run_tool("pretrain", PRETRAIN, "--help")
    assert "in configs/pretrain_tiny.py:" in process.stdout
    assert values_in_help(process.stdout)["training.num_train_steps"] == "550"
    assert_one_line(run_tool("pretrain", "--config=x.py", "--help"), 2, "--config=x.py: there is")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (1", "line 1: '(' was never closed."),
        ("\n\nimport no_such_package", "line 3: ModuleNotFoundError: No module named"),
        ("x = 1", "it has no function get_config()."),
        ("def get_config():\n    pass", "its get_config() returns a NoneType"),
        ("def get_config():\n    return {'training': 1}", "its get_config() returns a dict"),
        ("def get_config(name):\n    pass", "it needs a name after a colon."),
        ("\ndef get_config():\n    return 1 / 0", "line 3: ZeroDivisionError: division by zero."),
        ("open('no/file')", "No such file or directory: 'no/file'"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3."),
        (
            "from convbert_tf import config\n"
            "def get_config():\n    return config.FinetuningExperiment(task=3)",
            "has sections, each with keys and values.",
        ),
    ],
)
def test_a_config_file_that_fails_is_told_in_one_line(tmp_path, source, message):
    path = tmp_path / "mine.py"
    path.write_text(source)
    process = run_tool("finetune", f"--config={path}")
    assert_one_line(process, 2, f"flag --config={path}: ", message)


def test_a_config_file_may_return_the_experiment_itself(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from convbert_tf import config\n"
        "def get_config():\n"
        "    return config.PretrainingExperiment(data=config.DataConfig(max_seq_length=64))\n"
    )
    process = run_tool("pretrain", f"--config={path}", "--config.data.cache=true")
    assert_one_line(process, 1, "set --config.data.train_dir and --config.training.model_dir.")
    help = run_tool("pretrain", f"--config={path}", "--help").stdout
    assert values_in_help(help)["data.max_seq_length"] == "64"


def test_a_config_named_from_another_folder_is_found_by_its_right_path(tmp_path):
    process = subprocess.run(
        [sys.executable, ROOT / "tools" / "pretrain.py", PRETRAIN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    right = os.path.relpath(ROOT / "configs" / "pretrain_tiny.py", tmp_path)
    assert_one_line(process, 2, f"there is no such file; did you mean {right}")


def test_a_run_s_other_files_are_for_tasks_that_can_name_them(tmp_path):
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "config.json").write_text("{}")
    experiment = config.FinetuningExperiment(config.TaskConfig(name="cola"))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(experiment)))
    process = run_tool("evaluate", f"--run={tmp_path}", "--dev_file=x.csv")
    assert_one_line(process, 1, "cola takes --data_dir, and no --dev_file.")
    experiment = config.FinetuningExperiment(config.TaskConfig(name="own", train_file="a.csv"))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(experiment)))
    process = run_tool("evaluate", f"--run={tmp_path}", "--data_dir=x")
    assert_one_line(process, 1, "takes --dev_file, no --data_dir.")
    experiment = config.PretrainingExperiment()
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(experiment)))
    process = run_tool("evaluate", f"--run={tmp_path}")
    assert_one_line(process, 1, f"{tmp_path}/config.json is of no fine-tuning run: unknown config")
    (tmp_path / "trials.json").write_text('{"best": "trial-2"}')
    process = run_tool("evaluate", f"--run={tmp_path}")
    assert_one_line(process, 1, f"holds trials: name one of the runs in it, as --run={tmp_path}/tr")


def save_classifier(folder):
    from convbert_tf.modeling.encoder import ConvBertEncoder
    from convbert_tf.modeling.heads import TextClassifier
    from tests import runs

    (folder / "pieces.txt").write_text("\n".join(runs.VOCAB) + "\n")
    model = TextClassifier(ConvBertEncoder(runs.MODEL), 2, labels=["bad", "good"])
    model.save_to_preset(str(folder / "preset"), vocab_file=str(folder / "pieces.txt"))


@pytest.mark.slow
def test_another_file_of_one_s_own_is_scored_without_the_rows_of_the_run(tmp_path):
    from tests import runs

    save_classifier(tmp_path)
    task = {"name": "own", "train_file": "gone.csv", "split_column": "part", "labels": "bad,good"}
    length = runs.MODEL.max_position_embeddings
    task = config.TaskConfig(**task, max_seq_length=length)
    experiment = config.FinetuningExperiment(task)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(experiment)))
    (tmp_path / "new.csv").write_text("text,label\na b,good\nc,bad\n")
    process = run_tool("evaluate", f"--run={tmp_path}", f"--dev_file={tmp_path}/new.csv")
    assert process.returncode == 0, process.stderr
    assert "own dev, 2 examples: accuracy" in process.stdout
    assert "to train on" not in process.stdout
    (tmp_path / "new.csv").write_text("text\na b\nc\nd\n")
    files = [f"--dev_file={tmp_path}/old.csv", f"--test_file={tmp_path}/new.csv"]
    (tmp_path / "old.csv").write_text("text,label\na,bad\n")
    process = run_tool("evaluate", f"--run={tmp_path}", "--split=test", *files)
    assert "own test, 3 examples: predicted" in process.stdout, process.stderr


@pytest.mark.slow
def test_predict_reads_standard_input_and_writes_nothing_but_predictions(tmp_path):
    from tests import runs

    save_classifier(tmp_path)
    (tmp_path / "old.tsv").write_text("an earlier output")
    subprocess.run(
        [sys.executable, "tools/predict.py", f"--model={tmp_path}/preset"]
        + [f"--output={tmp_path}/old.tsv"],
        cwd=ROOT,
        check=True,
        input=b"a b\n",
    )
    assert len((tmp_path / "old.tsv").read_text().splitlines()) == 2
    process = subprocess.run(
        [sys.executable, "tools/predict.py", f"--model={tmp_path}/preset"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        input="a b\n\nc",
    )
    assert process.returncode == 0, process.stderr
    header, *lines = process.stdout.splitlines()
    assert header == "label\tprobability_bad\tprobability_good" and len(lines) == 3
    assert {line.split("\t")[0] for line in lines} <= {"bad", "good"}
    assert process.stderr.startswith("predictions: ") and "3 rows" in process.stderr
    vectors = subprocess.run(
        [sys.executable, "tools/predict.py", f"--model={tmp_path}/preset", "--serve=embedding"]
        + ["--output_format=jsonl"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        input=b"a b\n",
    )
    assert len(json.loads(vectors.stdout)["embedding"]) == runs.MODEL.hidden_size


@pytest.mark.slow
def test_predict_reads_a_squad_file_from_standard_input(tmp_path):
    from convbert_tf import ConvBertEncoder, QuestionAnswerer
    from tests import runs

    (tmp_path / "pieces.txt").write_text("\n".join(runs.VOCAB) + "\n")
    sizes = dataclasses.replace(runs.MODEL, max_position_embeddings=128)
    model = QuestionAnswerer(ConvBertEncoder(sizes))
    model.save_to_preset(str(tmp_path / "preset"), vocab_file=str(tmp_path / "pieces.txt"))
    asked = [{"id": str(i), "question": "a ?", "answers": []} for i in range(2)]
    content = {"data": [{"paragraphs": [{"context": "a b c", "qas": asked}]}], "version": "1.1"}
    process = subprocess.run(
        [sys.executable, "tools/predict.py", f"--model={tmp_path}/preset", "--keep=id"]
        + ["--input_format=json", "--output_format=jsonl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        input=json.dumps(content, indent=1),
    )
    assert process.returncode == 0, process.stderr
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    assert [each["id"] for each in answers] == ["0", "1"]
    assert all(each["answer"] in "a b c" for each in answers)
