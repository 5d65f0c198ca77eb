"""Pre-training and its records: rebuilt, or of texts of another casing."""

import dataclasses
import pathlib

import pytest

from convbert_tf import config
from convbert_tf.console import UserError
from convbert_tf.data import corpus, shards
from convbert_tf.workflows import pretraining
from tests import runs


def build(folder, name, text="the cat sat.\n\n", **options):
    (folder / f"{name}.txt").write_text(text * 40)
    options = {"max_seq_length": 24, "num_workers": 1, "overwrite": True} | options
    inputs, output = str(folder / f"{name}.txt"), str(folder / name)
    corpus.build(inputs, output, str(folder / "vocab.txt"), **options)
    return output


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(runs.VOCAB) + "\n")
    train, held_out = build(tmp_path, "train"), build(tmp_path, "heldout")
    return config.PretrainingExperiment(
        model=runs.MODEL,
        data=config.DataConfig(train_dir=train, eval_dir=held_out, max_seq_length=24),
        training=runs.make_options(tmp_path / "run", num_train_steps=2, checkpoint_interval=1),
    )


def test_records_rebuilt_under_a_run_are_noticed(experiment, tmp_path):
    pretraining.run(experiment)
    longer = dataclasses.replace(experiment.training, num_train_steps=3)
    build(tmp_path, "train")  # the same again
    pretraining.run(experiment)
    for name, options, difference in (
        ("train", {"text": "the dog ran.\n\n"}, "other text"),
        ("heldout", {"text": "the dog ran.\n\n"}, "other text"),
        ("train", {"seed": 1}, "seed: 0 -> 1"),
    ):
        build(tmp_path, name, **options)
        with pytest.raises(UserError, match=rf"{name} were built again .*\({difference}\).*allow"):
            pretraining.run(experiment)
        build(tmp_path, name)
    build(tmp_path, "train", seed=1)
    changed = dataclasses.replace(experiment, training=longer)
    pretraining.run(changed, allow_config_change=True)
    pretraining.run(changed)  # these are the run's records from now on


def test_a_second_process_changes_nothing_of_a_run(experiment, tmp_path):
    with (
        runs.another_process_in(tmp_path / "run"),
        pytest.raises(UserError, match="another process is at work"),
    ):
        pretraining.run(experiment)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_run_of_jax_is_not_written_over(experiment, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"run holds a run of tools/pretrain_on_jax\.py"):
        pretraining.run(experiment)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state.npz"]


def test_held_out_records_and_a_start_of_another_casing_are_refused(experiment, tmp_path):
    build(tmp_path, "heldout", lower_case=False)
    with pytest.raises(UserError, match="heldout is of texts with lower_case=False.*=True"):
        pretraining.run(experiment)
    assert not pathlib.Path(experiment.training.model_dir).exists()
    build(tmp_path, "heldout")
    pretraining.run(experiment)
    for source in ("run", "run/preset"):
        other = runs.make_options(tmp_path / "other", init_from=str(tmp_path / source))
        other = dataclasses.replace(experiment, training=other)
        for name in ("train", "heldout"):
            build(tmp_path, name, lower_case=False)
        with pytest.raises(UserError, match=f"{source} is of texts with lower_case=True"):
            pretraining.run(other)
    assert not (tmp_path / "other").exists()


def test_normalization_of_manifests_without_strip_accents():
    assert shards.normalization({"lower_case": True}) == (True, True)
    assert shards.normalization({"lower_case": True, "strip_accents": False}) == (True, False)
