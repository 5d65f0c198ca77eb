"""Which run a model_dir holds: the same wherever it lies, another if it is of something else."""

import dataclasses
import json
import os
import shutil

import pytest
import tensorflow as tf

from convbert_tf import config
from convbert_tf.console import UserError
from convbert_tf.training import checkpoints, identity
from tests.runs import make_options


def save_checkpoint(model_dir, step=6):
    checkpoint = tf.train.Checkpoint(step=tf.Variable(step))
    manager = tf.train.CheckpointManager(checkpoint, str(model_dir / "checkpoints"), 1)
    manager.save(checkpoint_number=step)


def test_save_config_refuses_another_config_of_a_run(tmp_path):
    first = config.PretrainingExperiment(training=make_options(tmp_path))
    other = dataclasses.replace(first, training=make_options(tmp_path, learning_rate=0.5))
    assert not identity.save_config(first, str(tmp_path))
    assert identity.save_config(first, str(tmp_path))
    saved = (tmp_path / "config.json").read_text()
    save_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"training\.learning_rate: 0\.01 -> 0\.5.*allow_config"):
        identity.save_config(other, str(tmp_path))
    with pytest.raises(UserError, match=r"0\.5\); choose another model_dir\.$"):
        identity.save_config(other, str(tmp_path), allow_change=None)  # there is no such flag
    assert (tmp_path / "config.json").read_text() == saved
    for section, change, message in (
        ("model", {"num_hidden_layers": 1}, r"run of another model \(model.num_hidden_layers: 12"),
        (
            "pretraining",
            {"objective": "mlm"},
            "another model .pretraining.objective.*choose another",
        ),
        ("training", {"num_train_steps": 5}, "is at step 6, beyond num_train_steps 5: set more"),
    ):
        changed = dataclasses.replace(getattr(first, section), **change)
        changed = dataclasses.replace(first, **{section: changed})
        with pytest.raises(UserError, match=message):
            identity.save_config(changed, str(tmp_path), allow_change=True)
    assert (tmp_path / "config.json").read_text() == saved
    identity.save_config(other, str(tmp_path), allow_change=True)
    assert '"learning_rate": 0.5' in (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is no JSON"):
        identity.save_config(first, str(tmp_path))


def test_a_model_dir_that_cannot_be_written_is_told_in_one_line():
    with pytest.raises(UserError, match="model_dir /proc/run cannot be written: No such file"):
        identity.save_config(config.PretrainingExperiment(), "/proc/run")


class Project:
    """A folder with records and a run on them that has a checkpoint."""

    def __init__(self, folder, content="1"):
        self.folder = folder
        for name in ("train", "heldout"):
            (folder / name).mkdir(parents=True)
            (folder / name / "manifest.json").write_text(content + name)
        self.train(folder / "train", folder / "run")
        save_checkpoint(folder / "run")

    def train(self, train_dir, model_dir, eval_dir="", **options):
        """What a run does first; returns whether it is the same."""
        data = config.DataConfig(train_dir=str(train_dir), eval_dir=str(eval_dir))
        experiment = config.PretrainingExperiment(
            data=data, training=make_options(model_dir, **options)
        )
        inputs = {"data.train_dir": [os.path.join(train_dir, "manifest.json")]}
        return identity.save_config(experiment, str(model_dir), inputs=inputs)


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = Project(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    return project


def test_a_run_goes_on_however_its_paths_are_spelled(project, monkeypatch, capsys):
    folder = project.folder
    (folder / "link").symlink_to(folder / "train")
    (folder / "runs").symlink_to(folder)
    monkeypatch.setenv("HOME", str(folder))
    for train_dir in (
        "train",
        "train/",
        "./train",
        "run/../train",
        "link",
        "~/train",
        folder / "train",
    ):
        assert project.train(os.path.expanduser(train_dir), folder / "run"), train_dir
    for model_dir in ("run", "./run/", "runs/run", os.path.join(folder, "run")):
        assert project.train("train", model_dir), model_dir
    monkeypatch.chdir(folder / "train")
    assert project.train(".", "../run")
    assert capsys.readouterr().out == ""


def test_a_run_that_was_moved_goes_on(project, capsys):
    moved = project.folder.with_name("moved")
    shutil.move(project.folder / "run", moved)
    assert project.train("train", moved)
    assert checkpoints.latest(str(moved)).startswith(str(moved))
    shutil.copytree("train", "copy")
    assert project.train("copy", moved)
    copy = os.path.realpath("copy")
    said = f"data.train_dir is {copy} now, where the same files are as before\n"
    assert capsys.readouterr().out == said
    assert project.train("copy", moved)
    assert capsys.readouterr().out == ""


def test_a_whole_project_that_was_moved_goes_on(project, monkeypatch):
    moved = project.folder.with_name("moved")
    shutil.move(project.folder, moved)
    monkeypatch.chdir(moved)
    assert project.train("train", "run")


def test_other_records_are_another_run(project):
    saved = (project.folder / "run" / "config.json").read_text()
    with pytest.raises(
        UserError, match=r"config \(data\.train_dir: '.*train' -> 'heldout'\); choose"
    ):
        project.train("heldout", "run")
    with pytest.raises(UserError, match=r"data\.eval_dir: '' -> 'heldout'"):
        project.train("train", "run", "heldout")
    with pytest.raises(UserError, match="data.train_dir: '.*train' -> 'nowhere'"):
        project.train("nowhere", "run")
    with pytest.raises(UserError, match=r"training\.seed: 0 -> 3"):
        project.train("train", "run", seed=3)
    assert (project.folder / "run" / "config.json").read_text() == saved
    (project.folder / "train" / "manifest.json").write_text("rebuilt")
    with pytest.raises(UserError, match=r"manifest\.json in .*train has changed"):
        project.train("train", "run")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"data.train_dir": 3}'])
def test_a_run_without_an_account_of_its_inputs_goes_on_where_it_is(project, content):
    path = project.folder / "run" / "inputs.json"
    path.unlink() if content is None else path.write_text(content)
    assert project.train(project.folder / "train", "run")
    assert json.loads(path.read_text())["data.train_dir"]["files"]


def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path):
    paths = [tmp_path / place for place in ("a/dev/rows.csv", "b/dev/rows.csv", "b/more.csv")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))
    found = identity.hashes([*map(str, paths), str(paths[0]), str(tmp_path / "none.csv")])
    assert list(found) == ["a/dev/rows.csv", "b/dev/rows.csv", "more.csv"]
    assert len(set(found.values())) == 3
    assert list(identity.hashes([str(paths[0])])) == ["rows.csv"]


def test_a_changed_table_is_another_run(tmp_path):
    own, run = tmp_path / "rows.csv", tmp_path / "run"
    own.write_text("first")

    def same(path, **task):
        task = config.TaskConfig(name="own", train_file=str(path), **task)
        experiment = config.FinetuningExperiment(task, make_options(run))
        inputs = {"task.train_file": [str(path)]}
        return identity.save_config(experiment, str(run), inputs=inputs)

    same(own)
    save_checkpoint(run)
    shutil.copy(own, tmp_path / "copy.csv")
    assert same(own)
    with pytest.raises(UserError, match=r"another model \(task.labels: '' -> 'a,b'\)"):
        identity.save_config(
            config.FinetuningExperiment(
                config.TaskConfig(name="own", train_file=str(own), labels="a,b"), make_options(run)
            ),
            str(run),
            allow_change=True,
        )
    own.write_text("second")
    with pytest.raises(UserError, match=r"task\.train_file: rows\.csv in .* has changed"):
        same(own)


def test_of_what_a_run_started_from_only_the_vocabulary_stays_to_count(project):
    start = project.folder / "start"
    start.mkdir()
    files = [start / "vocab.txt", start / "config.json"]
    for path in files:
        path.write_text("first")
    experiment = config.FinetuningExperiment(
        config.TaskConfig(init_from=str(start)), make_options(project.folder / "tuned")
    )
    inputs = {"task.init_from": files}
    tuned = project.folder / "tuned"
    identity.save_config(experiment, str(tuned), inputs=inputs)
    save_checkpoint(tuned)
    files[1].write_text("trained further")
    assert identity.save_config(experiment, str(tuned), inputs=inputs)
    files[0].write_text("other words")
    with pytest.raises(UserError, match=r"task.init_from: vocab\.txt in .*start has changed"):
        identity.save_config(experiment, str(tuned), inputs=inputs)
