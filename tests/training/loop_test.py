"""A run from start to end: resumed, killed, told to stop, watched, out of disk."""

import dataclasses
import json
import os
import pathlib
import random
import resource
import signal
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import config
from convbert_tf.console import UserError
from convbert_tf.training import checkpoints, identity, loop, strategies
from tests import runs
from tests.runs import make_options, make_task
from tests.training import trainer_test

DROPOUT = trainer_test.DROPOUT
LONG = 400  # steps of the run that is killed


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


def fit(data_dir, options, strategy=None, **task_options):
    strategy = strategy or strategies.set_up(options)
    task = make_task(data_dir, strategy, **task_options)
    return task, loop.fit(task, options, options.num_train_steps, strategy)


# --- resuming ---


def train_broken_and_whole(data_dir, folder):
    """12 steps at once; and 12 with a loss that breaks in the 8th, taken up from the 6th."""
    folder = pathlib.Path(folder)
    options = make_options(folder / "whole", deterministic=True)
    task, _ = fit(data_dir, options, model=DROPOUT)
    np.savez(folder / "whole.npz", **runs.weights(task.model))

    options = dataclasses.replace(options, model_dir=str(folder / "broken"))
    with pytest.raises(UserError, match="not finite in step 8 .*examples 57 to 64"):
        fit(data_dir, options, model=DROPOUT, poisoned=lambda step: step >= 7)
    assert checkpoints.latest(options.model_dir).endswith("-6")
    strategy = strategies.set_up(options)
    keras.utils.set_random_seed(99)  # so that only the checkpoint can bring the weights back
    task, _ = fit(data_dir, options, strategy, model=DROPOUT)
    np.savez(folder / "resumed.npz", **runs.weights(task.model))


def assert_same_bits(left, right):
    left, right = runs.load(left), runs.load(right)
    assert set(left) == set(right) and len(left) > 20
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.slow
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(data_dir, tmp_path):
    runs.in_process("training.loop_test", train_broken_and_whole, data_dir, tmp_path)
    assert_same_bits(tmp_path / "whole.npz", tmp_path / "resumed.npz")


def train_long(data_dir, model_dir, steps):
    """`steps` with dropout and evaluation, from wherever the run in `model_dir` stands."""
    options = make_options(
        model_dir,
        deterministic=True,
        num_train_steps=int(steps),
        steps_per_loop=5,
        checkpoint_interval=10,
        eval_interval=100,
        keep_checkpoints=2,
        best_metric="masked_lm_loss",
        learning_rate=1e-3,
    )
    task, _ = fit(data_dir, options, model=DROPOUT)
    np.savez(os.path.join(model_dir, "weights.npz"), **runs.weights(task.model))


def kill_at_random(data_dir, model_dir, kills, num_steps=LONG, seed=0):
    """Kills `train_long` `kills` times, then lets it end; the steps it went on from each time."""
    rng, steps = random.Random(seed), []
    while True:
        process = runs.start_process(
            "training.loop_test", train_long, data_dir, model_dir, num_steps
        )
        if len(steps) == kills:
            _, errors = process.communicate()
            assert process.returncode == 0, errors[-3000:]
            return steps
        # Once it trains, and then at any moment, also while a checkpoint is being written.
        log = pathlib.Path(model_dir) / "metrics.jsonl"
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        while process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) > lines + 1:
                break
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
        last = checkpoints.latest(model_dir)
        steps.append(int(last.rpartition("-")[2]) if last else 0)


@pytest.mark.slow
def test_a_run_killed_at_random_ends_with_the_same_bits(data_dir, tmp_path):
    (tmp_path / "whole").mkdir()
    runs.in_process("training.loop_test", train_long, data_dir, tmp_path / "whole", LONG)
    steps = kill_at_random(data_dir, str(tmp_path / "killed"), kills=2)
    assert len(steps) == 2 and steps[-1] < LONG
    assert_same_bits(tmp_path / "whole" / "weights.npz", tmp_path / "killed" / "weights.npz")
    files = [set(map(str, _files(tmp_path / run))) for run in ("whole", "killed")]
    assert files[0] == files[1]  # nothing half-written was left
    whole, killed = (_lines(tmp_path / run) for run in ("whole", "killed"))
    assert [(line["step"], line["kind"]) for line in killed] == [
        (line["step"], line["kind"]) for line in whole
    ]
    for left, right in zip(whole, killed, strict=True):
        assert left["masked_lm_loss"] == right["masked_lm_loss"]


def _files(model_dir):
    return {
        p.relative_to(model_dir) for f in ("checkpoints", "best") for p in (model_dir / f).iterdir()
    }


def _lines(model_dir):
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def resume_on_replicas(data_dir, model_dir, replicas, *steps):
    """Goes on up to each of `steps` on another number of devices."""
    runs.logical_cpus(int(replicas))
    options = make_options(model_dir, strategy="mirrored", learning_rate=1e-3)
    for stop in steps:
        strategy = strategies.set_up(options)
        task = make_task(data_dir, strategy)
        loop.fit(task, options, int(stop), strategy)
        np.savez(os.path.join(model_dir, f"{stop}.npz"), **runs.weights(task.model))


@pytest.mark.slow
def test_a_run_goes_on_in_its_place_on_another_number_of_replicas(data_dir, tmp_path):
    """The schedule's length follows from the steps, so both runs stop once in between."""
    for run, *arguments in (("one", 1, 6, 12), ("more", 4, 6), ("more", 2, 12)):
        (tmp_path / run).mkdir(exist_ok=True)
        runs.in_process(
            "training.loop_test", resume_on_replicas, data_dir, tmp_path / run, *arguments
        )
    for steps in (6, 12):
        one, more = (runs.load(tmp_path / run / f"{steps}.npz") for run in ("one", "more"))
        runs.assert_close(one, more, 1e-5)


@pytest.mark.slow
def test_an_evaluation_that_the_end_of_the_process_left_out_is_made_up_for(data_dir, tmp_path):
    options = make_options(tmp_path, num_train_steps=6, eval_interval=3)
    strategy = strategies.set_up(options)
    task = make_task(data_dir, strategy, evaluate=False)
    loop.fit(task, options, 3, strategy)
    for _ in range(2):  # the second time at its end already
        loop.fit(make_task(data_dir, strategy), options, 6, strategy)
        lines = [(line["step"], line["kind"]) for line in _lines(tmp_path)]
        assert lines == [(step, kind) for step in (3, 6) for kind in ("train", "eval")]
    with pytest.raises(UserError, match="the run is at step 6, beyond its end at 5"):
        loop.fit(make_task(data_dir, strategy), options, 5, strategy)


def test_a_second_process_on_a_run_touches_nothing(data_dir, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-3_temp").mkdir()  # the other one's, in the making
    refused = pytest.raises(UserError, match="another process is at work")
    with runs.another_process_in(tmp_path), refused:
        fit(data_dir, make_options(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["ckpt-3_temp"]


def test_another_batch_size_goes_on_at_the_record_where_the_run_stopped(data_dir, tmp_path):
    places = []

    def train(stop, batch_size):
        options = make_options(tmp_path, batch_size=batch_size, num_train_steps=stop)
        strategy = strategies.set_up(options)
        task = make_task(data_dir, strategy, evaluate=False, batch_size=batch_size)
        dataset = task.train_dataset
        task.train_dataset = lambda step, context, **place: (
            places.append((step, place)) or dataset(step, context, **place)
        )
        loop.fit(task, options, stop, strategy)
        reader = tf.train.load_checkpoint(checkpoints.latest(str(tmp_path)))
        return int(reader.get_tensor("records_seen/.ATTRIBUTES/VARIABLE_VALUE"))

    assert [train(2, 8), train(3, 12), train(4, 12), train(5, 8)] == [16, 28, 40, 48]
    assert places == [
        (0, {}),
        (2, {"start_record": 16}),
        (3, {"start_record": 28}),
        (4, {"start_record": 40}),
    ]


# --- being told to stop ---


def train_until_stopped(data_dir, model_dir, *_):
    """One endless loop in the graph, so that only the graph itself can see a signal."""
    strategy = "multi_worker_mirrored" if "TF_CONFIG" in os.environ else "one_device"
    options = make_options(
        model_dir, num_train_steps=10**6, steps_per_loop=10**6, strategy=strategy
    )

    def read(step):
        if step == 500:  # the loop has taken many of them by now
            (pathlib.Path(model_dir) / "trains").touch()
        return False

    fit(data_dir, options, poisoned=lambda step: tf.numpy_function(read, [step], tf.bool))


def wait_for_training(model_dir):
    """Until a run is in its loop."""
    while not (model_dir / "trains").exists():
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_saves_and_ends_within_seconds(data_dir, tmp_path, signum, status):
    process = runs.start_process("training.loop_test", train_until_stopped, data_dir, tmp_path)
    wait_for_training(tmp_path)
    began = time.monotonic()
    process.send_signal(signum)
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 20  # the machine may be busy; it is one or two
    assert process.returncode == status, errors[-3000:]
    step = int(checkpoints.latest(str(tmp_path)).rpartition("-")[2])
    name = signal.Signals(signum).name
    expected = f"{name}: saved at step {step:,}; the same command goes on from there"
    assert step > 0 and output.splitlines()[-1] == expected
    assert "Traceback" not in errors


@pytest.mark.slow
def test_workers_end_together_when_one_is_told_to(data_dir, tmp_path):
    arguments = ("training.loop_test", train_until_stopped, data_dir, tmp_path)
    workers = trainer_test.start_workers(*arguments)
    wait_for_training(tmp_path)
    workers[1].send_signal(signal.SIGTERM)  # not the one that saves
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 143, errors[-3000:]
    assert int(checkpoints.latest(str(tmp_path)).rpartition("-")[2]) > 0


# --- watching ---


HELD_OUT_TAGS = {
    "loss/masked_lm_loss",
    "loss/disc_loss",
    "generator/masked_lm_accuracy",
    "generator/sampled_masked_lm_accuracy",
    "discriminator/disc_accuracy",
    "discriminator/disc_precision",
    "discriminator/disc_recall",
    "discriminator/disc_auc",
}
TRAINING_TAGS = HELD_OUT_TAGS | {
    "optimizer/learning_rate",
    "optimizer/gradient_norm",
    "throughput/examples_per_second",
    "throughput/tokens_per_second",
    "throughput/steps_per_second",
    "throughput/model_flops_utilisation",
}


@pytest.mark.slow
def test_fit_writes_its_logs_and_returns_the_last_evaluation(data_dir, tmp_path, capsys):
    options = make_options(
        tmp_path, num_train_steps=6, eval_interval=3, best_metric="disc_auc", peak_flops=1e12
    )
    identity.save_config(config.PretrainingExperiment(training=options), str(tmp_path))
    _, results = fit(data_dir, options)
    (train, _), (held_out, _), (_, others) = (
        runs.read_events(tmp_path / part) for part in ("train", "eval", ".")
    )
    assert set(train) == TRAINING_TAGS and set(held_out) == HELD_OUT_TAGS
    assert "config" in others and any("hparams" in name for name in others)
    for name, points in (train | held_out).items():
        assert [step for step, _ in points] == [3, 6], name
    tags = {tag.rpartition("/")[2]: tag for tag in TRAINING_TAGS}
    metrics = {name for name, tag in tags.items() if tag in HELD_OUT_TAGS}
    assert set(results) == metrics
    for name in metrics:
        assert held_out[tags[name]][-1][1] == pytest.approx(results[name]), name
    rate = 1e-2 * (1 - np.array([3, 6]) / 6)  # after the warm-up of two steps
    rates = [value for _, value in train["optimizer/learning_rate"]]
    assert rates == pytest.approx(rate, abs=1e-9)
    assert all(value > 0 for _, value in train["optimizer/gradient_norm"])
    lines = _lines(tmp_path)
    kinds = [(line["kind"], line["step"]) for line in lines]
    assert kinds == [("train", 3), ("eval", 3), ("train", 6), ("eval", 6)]
    for line, scalars in zip(lines[2:], (train, held_out), strict=True):
        assert {name: line[name] for name in metrics} == pytest.approx(
            {name: scalars[tags[name]][-1][1] for name in metrics}
        )
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["value"] == max(value for _, value in held_out["discriminator/disc_auc"])
    assert "step 6: masked_lm_loss" in capsys.readouterr().out
    # A finished run is not trained further, but evaluated again.
    _, again = fit(data_dir, options)
    assert again == pytest.approx(results)
    assert "resumed from the checkpoint of step 6" in capsys.readouterr().out
    with pytest.raises(UserError, match="best_metric 'auc' is none of .*disc_auc"):
        fit(data_dir, dataclasses.replace(options, best_metric="auc"))
    with pytest.raises(UserError, match="best_metric needs an evaluation"):
        fit(data_dir, dataclasses.replace(options, best_metric="disc_auc"), evaluate=False)
    with pytest.raises(UserError, match="patience needs a best_metric"):
        fit(data_dir, dataclasses.replace(options, best_metric="", patience=1))


@pytest.mark.slow
def test_a_second_phase_starts_from_the_first_at_another_length(data_dir, tmp_path, capsys):
    task, _ = fit(data_dir, make_options(tmp_path / "first", num_train_steps=3))
    first = runs.weights(task.model)
    options = make_options(
        tmp_path / "second", num_train_steps=1, init_from=str(tmp_path / "first"),
        init_optimizer=True,
    )  # fmt: skip
    task, _ = fit(
        data_dir, options, model=dataclasses.replace(runs.MODEL, max_position_embeddings=64)
    )
    said = capsys.readouterr().out
    assert "starts from the weights and moments of" in said and "interpolated to 64" in said
    second = runs.weights(task.model)  # its only step has a learning rate of zero
    name = "discriminator/embeddings/position_embeddings"
    assert (first.pop(name).shape, second.pop(name).shape) == ((32, 8), (64, 8))
    runs.assert_close(first, second, 0)


# --- what goes wrong ---


def train_on_a_full_disk(data_dir, model_dir):
    """Files that may grow to 2 kB only are a full disk to whoever writes a checkpoint."""
    options = make_options(model_dir, num_train_steps=6)
    strategy = strategies.set_up(options)
    task = make_task(data_dir, strategy)
    loop.fit(task, options, 3, strategy)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    with pytest.raises(UserError, match="that of step 3 is whole|are whole"):
        loop.fit(task, options, 6, strategy)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert checkpoints.latest(model_dir).endswith("-3")
    loop.fit(make_task(data_dir, strategy), options, 6, strategy)
    assert checkpoints.latest(model_dir).endswith("-6")
    names = {name.split(".")[0] for name in os.listdir(os.path.join(model_dir, "checkpoints"))}
    assert names == {"checkpoint", "ckpt-3", "ckpt-6"}


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_loses_nothing(data_dir, tmp_path):
    runs.in_process("training.loop_test", train_on_a_full_disk, data_dir, tmp_path)


def test_a_lack_of_memory_is_told_with_what_helps():
    def explain(error):
        raise AssertionError("reads all the data")

    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    task = types.SimpleNamespace(explain=explain)
    assert "gradient_accumulation_steps" in str(loop._told(error, task, "run"))


def damage(folder):
    """A copy of nothing: flips a bit in the last record of a shard; returns its path."""
    path = sorted(pathlib.Path(folder).glob("*.tfrecord"))[0]
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.slow
def test_a_damaged_record_stops_the_run_or_is_left_out_and_counted(tmp_path):
    data_dir = runs.make_data(tmp_path)
    path = damage(data_dir)
    options = make_options(tmp_path / "run", num_train_steps=30)
    with pytest.raises(UserError, match=rf"{path.name} is damaged: record \d+ at byte \d+ has a w"):
        fit(data_dir, options)
    damaged = {}
    _, results = fit(data_dir, options, damaged=damaged, evaluate=False)
    assert results == {} and set(damaged) == {(str(path), next(iter(damaged))[1])}
    assert _lines(tmp_path / "run")[-1]["damaged_records"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 20}, "tfrecord, record [0-9]+: A record has a token id outside the vocab"),
        ({"max_seq_length": 16}, "tokens long, more than max_seq_length=16: raise it, or build"),
    ],
)
def test_records_that_do_not_fit_are_told_in_one_line(data_dir, tmp_path, options, message):
    with pytest.raises(UserError, match=message) as caught:
        fit(data_dir, make_options(tmp_path), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "start, end, interval, stops",
    [
        (0, 10, 0, [10]),
        (0, 10, 4, [4, 8, 10]),
        (3, 10, 4, [4, 8, 10]),
        (4, 10, 4, [4, 8, 10]),  # the run may have ended before the evaluation at 4
        (5, 10, 4, [8, 10]),
        (8, 8, 4, [8]),
    ],
)
def test_stops(start, end, interval, stops):
    assert loop._stops(start, end, interval) == stops


def test_a_run_has_stalled_after_so_many_evaluations():
    def stalled(best, step, patience):
        best = types.SimpleNamespace(step=best, metric="f1", value=0.5)
        training = make_options(eval_interval=40, patience=patience)
        run = types.SimpleNamespace(best=best, step=step, training=training, chief=False)
        return loop._Run._has_stalled(run)

    assert stalled(40, 80, 1) and stalled(40, 120, 2) and stalled(80, 400, 3)
    assert not (stalled(40, 40, 1) or stalled(40, 80, 2) or stalled(40, 120, 0))
    assert not stalled(None, 400, 1)  # no evaluation had a finite value
    assert not stalled(120, 80, 1)  # the best is of the steps before a kill
