"""What a run leaves to go on from: whole whatever happens, and only to the same config."""

import dataclasses
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import ConvBertEncoder, ConvBertPretrainer
from convbert_tf.console import UserError
from convbert_tf.training import checkpoints, strategies
from convbert_tf.training.optimization import AdamW
from tests import runs
from tests.runs import make_options


@pytest.fixture
def state():
    """A weight and a step in a checkpoint."""
    weight, step = tf.Variable(tf.zeros(100)), tf.Variable(0, dtype=tf.int64)
    return tf.train.Checkpoint(weight=weight, step=step), weight, step


def save(manager, state, step):
    state[1].assign(tf.fill([100], float(step)))
    state[2].assign(step)
    return manager.save(checkpoint_number=step)


def test_the_last_are_kept_and_the_last_is_restored(tmp_path, state):
    folder = str(tmp_path / "checkpoints")
    manager = checkpoints.Manager(state[0], folder, state[2], keep=2, interval=3)
    assert [bool(save(manager, state, step)) for step in (3, 5, 6, 9, 9)] == [1, 0, 1, 1, 0]
    assert {name for name in os.listdir(folder) if ".index" in name} == {
        "ckpt-6.index",
        "ckpt-9.index",
    }
    state[1].assign(tf.zeros(100))
    again = checkpoints.Manager(state[0], folder, state[2], keep=2, interval=3)
    assert again.restore_or_initialize().endswith("ckpt-9")
    assert state[1].numpy().tolist() == [9.0] * 100
    assert not save(again, state, 10)  # the interval counts from the one gone on from


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, state):
    manager = checkpoints.Manager(state[0], str(tmp_path), state[2], keep=2, interval=1)
    for step in (3, 6):
        save(manager, state, step)
    before = set(os.listdir(tmp_path))
    (tmp_path / "ckpt-9.data-00000-of-00001.tempstate12").write_text("half")
    (tmp_path / "ckpt-9_temp").mkdir()
    (tmp_path / "ckpt-9_temp" / "part-00000").write_text("half")
    (tmp_path / "ckpt-12.index").write_text("whole, but not yet recorded")
    (tmp_path / "notes-9.txt").write_text("mine")
    worker = checkpoints.Manager(state[0], str(tmp_path), state[2], keep=2, interval=None)
    assert (tmp_path / "ckpt-9_temp").exists() and worker.latest_checkpoint.endswith("ckpt-6")
    checkpoints.Manager(state[0], str(tmp_path), state[2], keep=2, interval=1)
    assert set(os.listdir(tmp_path)) == before | {"notes-9.txt"}


def test_errors_of_reading_and_writing_are_told(tmp_path, state, monkeypatch):
    manager = checkpoints.Manager(state[0], str(tmp_path), state[2], keep=3, interval=1)
    for step in (3, 6):
        save(manager, state, step)

    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "ckpt-9; No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.CheckpointManager, "save", full)
        with pytest.raises(UserError, match="No space left on device.*that of step 6 is whole"):
            save(manager, state, 9)
    data = tmp_path / "ckpt-6.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:20])
    again = checkpoints.Manager(state[0], str(tmp_path), state[2], keep=3, interval=1)
    with pytest.raises(UserError, match=r"ckpt-6 cannot be read.*an earlier one \(3\), name it in"):
        again.restore_or_initialize()
    for path in tmp_path.glob("ckpt*"):
        path.unlink()
    for text in (None, "", "model_checkpoint_p"):
        if text is not None:
            (tmp_path / "checkpoint").write_text(text)
        with pytest.raises(UserError, match="checkpoint names no checkpoint that is there"):
            checkpoints.Manager(state[0], str(tmp_path), state[2], keep=3, interval=1)


def best_steps(folder, state, metric, evaluations):
    found = []
    for step, results in evaluations:
        best = checkpoints.Best(state[0], state[2], str(folder), metric)  # as after a restart
        best.update(results, step)
        found.append(json.loads((folder / "best.json").read_text())["step"])
        assert tf.train.latest_checkpoint(str(folder / "best")).endswith(f"ckpt-{found[-1]}")
    return found


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("masked_lm_loss", [3, 2, 2, 4, float("nan"), 1], [1, 2, 2, 2, 2, 6]),
        ("disc_auc", [0.5, 0.4, 0.7, 0.7], [1, 1, 3, 3]),
    ],
)
def test_the_best_is_kept_across_restarts(tmp_path, state, metric, values, expected):
    evaluations = [(step, {metric: value}) for step, value in enumerate(values, 1)]
    assert best_steps(tmp_path, state, metric, evaluations) == expected
    assert len(list((tmp_path / "best").glob("*.index"))) == 1


def test_the_best_is_kept_only_among_the_same_evaluations(tmp_path, state, capsys):
    def update(value, step, metric="disc_auc", **settings):
        best = checkpoints.Best(state[0], state[2], str(tmp_path), metric, settings)
        best.update({metric: value}, step)
        return json.loads((tmp_path / "best.json").read_text())["step"], capsys.readouterr().out

    assert update(0.9, 1, eval_dir={"a": 1}, max_seq_length=24) == (1, "")
    assert update(0.8, 2, eval_dir={"a": 1}, max_seq_length=24) == (1, "")
    step, said = update(0.7, 3, eval_dir={"a": 2}, max_seq_length=24)
    assert step == 3 and said == (
        "the best evaluation so far (disc_auc 0.9 at step 1) was made with another eval_dir: from "
        "here on the best is sought anew\n"
    )
    step, said = update(2.0, 4, "disc_loss", eval_dir={"a": 2}, max_seq_length=8)
    assert step == 4 and "with another metric and max_seq_length:" in said
    # Written before settings were kept: taken to be of the same.
    (tmp_path / "best.json").write_text('{"metric": "disc_loss", "value": 1.5, "step": 4}')
    assert update(1.9, 5, "disc_loss", eval_dir={"a": 2}) == (4, "")
    assert update(1.2, 6, "disc_loss", eval_dir={"a": 2}) == (6, "")


@pytest.mark.parametrize("content", ["[]", '{"metric": "x"}', '{"metric": 1, "value": null}', "3"])
def test_a_damaged_account_of_the_best_is_told(tmp_path, state, content):
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(UserError, match=r"best\.json is damaged: delete it"):
        checkpoints.Best(state[0], state[2], str(tmp_path), "disc_auc")


def test_the_best_of_a_start_that_left_no_checkpoint_is_dropped(tmp_path, state):
    def best(**options):
        return checkpoints.Best(state[0], state[2], str(tmp_path), "f1", **options)

    best().update({"f1": 0.9}, 8)
    assert (best().value, best().step) == (0.9, 8)
    worker = best(begun=False, saves=False)
    worker.update({"f1": 0.95}, 16)
    assert worker.step == 16 and best().step == 8  # it writes nothing
    again = best(begun=False)
    assert (again.value, again.step) == (None, None)
    assert not (tmp_path / "best.json").exists() and checkpoints.best_step(tmp_path) is None
    again.update({"f1": 0.1}, 4)
    assert checkpoints.best_step(tmp_path) == 4


def test_a_best_checkpoint_counts_with_its_step_where_its_account_was_not_written(tmp_path, state):
    first = checkpoints.Best(state[0], state[2], str(tmp_path), "f1")
    first.update({"f1": 0.5}, 4)
    state[2].assign(8)
    first.manager.save(checkpoint_number=8, check_interval=False)  # and killed
    again = checkpoints.Best(state[0], state[2], str(tmp_path), "f1")
    assert (again.value, again.step) == (0.5, 8)
    again.update({"f1": 0.6}, 8)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 8


def test_a_best_metric_that_is_not_evaluated_is_refused():
    with pytest.raises(UserError, match="best_metric 'auc' is none of disc_auc, loss"):
        checkpoints.check_metric("auc", {"loss": 1, "disc_auc": 2})


# --- starting from another run ---


def pretrainer(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    return ConvBertPretrainer(dataclasses.replace(runs.MODEL, **changes))


def built(model):
    optimizer = AdamW(0.1)
    optimizer.build(model.trainable_variables)
    return optimizer


def test_weights_of_a_preset_and_of_a_checkpoint(tmp_path):
    options = make_options(tmp_path)
    strategy = strategies.set_up(options)
    with strategy.scope():
        source = pretrainer()
    source.save_to_preset(str(tmp_path / "preset"))
    trainer = runs.make_trainer(_Task(source), options, strategy)
    for variable in trainer.optimizer.variables[2:]:
        variable.assign(np.full(variable.shape, 0.25))
    trainer.global_step.assign(7)
    manager = checkpoints.Manager(
        trainer.checkpoint, str(tmp_path / "checkpoints"), trainer.global_step, 1, 1
    )
    manager.save(checkpoint_number=7)
    for place, moments in ((tmp_path / "preset", False), (tmp_path, False), (tmp_path, True)):
        model = pretrainer(seed=1)
        optimizer = built(model)
        said = checkpoints.initialize(model, optimizer, str(place), moments)
        assert "starts from the weights" in said and str(place) in said
        runs.assert_close(runs.weights(source), runs.weights(model), 0)
        found = {float(np.max(v)) for v in optimizer.variables if v.path.endswith("_velocity")}
        assert found == {0.25 if moments else 0.0} and int(optimizer.iterations) == 0


class _Task:
    """As much of a task as a Trainer needs to be made."""

    count_shapes = {}

    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize(("number", "how"), [(12, "cut to 12"), (48, "interpolated to 48")])
def test_a_model_of_another_length(tmp_path, number, how):
    source = pretrainer()
    source.save_to_preset(str(tmp_path))
    model = pretrainer(seed=1, max_position_embeddings=number)
    said = checkpoints.initialize(model, built(model), str(tmp_path))
    assert said.endswith(f"; its 32 position embeddings are {how}")
    old, new = runs.weights(source), runs.weights(model)
    table, found = (x.pop("discriminator/embeddings/position_embeddings") for x in (old, new))
    runs.assert_close(old, new, 0)
    np.testing.assert_array_equal(found, checkpoints.resize_positions(table, number))


def test_positions_are_interpolated_linearly():
    table = np.float32([[0, 3], [2, 1], [4, 5]])
    found = checkpoints.resize_positions(table, 5)
    np.testing.assert_allclose(found, [[0, 3], [1, 2], [2, 1], [3, 3], [4, 5]])
    for number in (3, 2, 7, 1):
        resized = checkpoints.resize_positions(table, number)
        assert resized.shape == (number, 2) and resized.dtype == np.float32
        np.testing.assert_array_equal(resized[0], table[0])
    np.testing.assert_array_equal(checkpoints.resize_positions(table, 7)[-1], table[-1])
    np.testing.assert_array_equal(checkpoints.resize_positions(table[:1], 2), table[[0, 0]])


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    pretrainer().save_to_preset(str(tmp_path / "preset"))
    ConvBertEncoder(runs.MODEL).save_to_preset(str(tmp_path / "encoder"))
    model = pretrainer(intermediate_size=64)
    before = runs.weights(model)
    with pytest.raises(UserError, match=r"'[\w/]*feed_forward[\w/]*' has shape .*config asks for"):
        checkpoints.initialize(model, built(model), str(tmp_path / "preset"))
    runs.assert_close(before, runs.weights(model), 0)
    model = pretrainer()
    with pytest.raises(UserError, match="has no 'discriminator.*another kind of model"):
        checkpoints.initialize(model, built(model), str(tmp_path / "encoder"))
    with pytest.raises(UserError, match="holds no checkpoint with an optimiser's state"):
        checkpoints.initialize(model, built(model), str(tmp_path / "preset"), True)
    with pytest.raises(UserError, match="nowhere.* is not there"):
        checkpoints.initialize(model, built(model), str(tmp_path / "nowhere"))
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="begun is a run that has no checkpoint yet"):
        checkpoints.initialize(model, built(model), str(tmp_path / "begun"))
    prefix = tf.train.Checkpoint(step=tf.Variable(1)).write(str(tmp_path / "begun" / "ckpt-1"))
    (tmp_path / "begun" / "checkpoints" / "checkpoint").write_text(
        f'model_checkpoint_path: "{prefix}"'
    )
    (tmp_path / "begun" / "ckpt-1.index").write_bytes(b"short")
    with pytest.raises(UserError, match="ckpt-1, to start from, cannot be read"):
        checkpoints.initialize(model, built(model), str(tmp_path / "begun"))


def test_what_a_run_could_not_start_from_is_known_beforehand(tmp_path):
    pretrainer().save_to_preset(str(tmp_path / "preset"))
    checkpoints.check_start(pretrainer(), str(tmp_path / "preset"))
    checkpoints.check_start(pretrainer(max_position_embeddings=48), str(tmp_path / "preset"))
    for model, source, moments, message in (
        (pretrainer(intermediate_size=64), "preset", False, "config asks for"),
        (pretrainer(), "preset", True, "no checkpoint with an optimiser's state"),
        (pretrainer(), "nowhere", False, "is not there"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.check_start(model, str(tmp_path / source), moments)
