"""One step in the graph: replicas, workers, parts, precisions, compilation, what is not finite."""

import dataclasses
import json
import math
import os
import signal
import socket
import time

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import config
from convbert_tf.console import UserError
from convbert_tf.modeling import flops
from convbert_tf.training import strategies, trainer
from tests import runs
from tests.runs import make_options, make_task, make_trainer

STEPS = 20
DROPOUT = dataclasses.replace(runs.MODEL, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
REAL_SIZE = config.ModelConfig(
    vocab_size=8000,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=512,
    embedding_size=128,
    linear_groups=2,
)
RATES = {"examples_per_second", "tokens_per_second"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def float32_again():
    yield
    runs.reset_policy()


def train(
    data_dir, steps=STEPS, loops=1, model=runs.MODEL, objective=None, poisoned=None, **changes
):
    """Weights after `steps` steps on one device, and the metrics of the last loop."""
    options = make_options(num_train_steps=STEPS, **changes)
    strategy = strategies.set_up(options)
    task = make_task(data_dir, strategy, model, objective, poisoned)
    trainer = make_trainer(task, options, strategy)
    for _ in range(loops):
        results = trainer.train(tf.constant(steps))
    return runs.weights(task.model), results


def train_on_replicas(data_dir, replicas, path):
    runs.logical_cpus(int(replicas))
    options = make_options(strategy="mirrored", num_train_steps=STEPS, learning_rate=1e-3)
    strategy = strategies.set_up(options)
    assert strategy.num_replicas_in_sync == int(replicas)
    save_training(data_dir, options, strategy, path)


def train_as_worker(data_dir, path):
    changes = {"num_train_steps": STEPS, "learning_rate": 1e-3}
    options = make_options(strategy="multi_worker_mirrored", **changes)
    strategy = strategies.set_up(options)
    assert strategy.num_replicas_in_sync == 2 and strategies.is_multi_worker(strategy)
    save_training(data_dir, options, strategy, path)


def save_training(data_dir, options, strategy, path):
    task = make_task(data_dir, strategy)
    before = runs.weights(task.model)
    trainer = make_trainer(task, options, strategy)
    results = trainer.train(tf.constant(STEPS))
    after = runs.weights(task.model)
    assert np.median([np.abs(after[name] - before[name]).max() for name in after]) > 1e-3
    scores = results | {f"eval_{k}": v for k, v in trainer.evaluate(tf.constant(-1)).items()}
    np.savez(path, **after, **{f"score/{k}": v for k, v in scores.items() if k not in RATES})


def assert_same_training(left, right):
    left, right = runs.load(left), runs.load(right)
    scores = {name for name in left if name.startswith("score/")}
    assert len(scores) > 15 and scores <= set(right)
    for name in scores:
        np.testing.assert_allclose(left.pop(name), right.pop(name), rtol=1e-4, err_msg=name)
    runs.assert_close(left, right, 1e-5)


@pytest.fixture(scope="module")
def one_device(data_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "one.npz"
    runs.in_process("training.trainer_test", train_on_replicas, data_dir, 1, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_take_the_steps_of_one(data_dir, tmp_path, one_device, replicas):
    path = tmp_path / "replicas.npz"
    runs.in_process("training.trainer_test", train_on_replicas, data_dir, replicas, path)
    assert_same_training(one_device, path)


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(module, function, *args):
    """Two processes that are each other's workers; each gets its number as the last argument."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    return [
        runs.start_process(
            module,
            function,
            *args,
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(data_dir, tmp_path, one_device):
    workers = start_workers(
        "training.trainer_test", train_as_worker, data_dir, tmp_path / "workers.npz"
    )
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors[-3000:]
    assert_same_training(one_device, tmp_path / "workers.npz")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_an_accumulated_step_is_that_of_the_whole_batch(data_dir, parts):
    whole, scores = train(data_dir, learning_rate=1e-3)
    split, other = train(data_dir, learning_rate=1e-3, gradient_accumulation_steps=parts)
    runs.assert_close(whole, split, 1e-5)
    for name in scores.keys() - RATES:
        assert scores[name] == pytest.approx(other[name], rel=1e-4), name
    assert scores["gradient_norm"] > 1  # so that the whole gradient's norm counted, by clipping


@pytest.mark.slow
def test_dropout_is_a_function_of_seed_and_step(data_dir):
    first, _ = train(data_dir, 4, model=DROPOUT)
    again, _ = train(data_dir, 2, loops=2, model=DROPOUT)
    runs.assert_close(first, again, 1e-6)
    none, _ = train(data_dir, 4)
    with pytest.raises(AssertionError):
        runs.assert_close(first, none, 1e-3)
    parts, _ = train(data_dir, 4, model=DROPOUT, gradient_accumulation_steps=2)
    with pytest.raises(AssertionError):  # each part has masks of its own
        runs.assert_close(first, parts, 1e-3)


def train_again_and_again(path):
    """Three steps of 32 x 128, several times from the same state; the weights after each time.

    On this size, TensorFlow's optimisation of graphs for memory sets in.
    """
    options = make_options(batch_size=32, learning_rate=1e-3, deterministic=True)
    strategy = strategies.set_up(options)
    task = make_task(None, strategy, REAL_SIZE)
    rng, shape = np.random.default_rng(0), (32, 128)
    batch = {
        "input_ids": rng.geometric(0.01, shape).clip(5, REAL_SIZE.vocab_size - 1).astype(np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "input_mask": np.ones(shape, np.float32),
        "uniforms": rng.uniform(size=(32, 3, 128)).astype(np.float32),
    }
    task.train_dataset = lambda *_: tf.data.Dataset.from_tensors(batch).repeat()
    trainer, runs_of_it = make_trainer(task, options, strategy), []
    start = trainer.checkpoint.write(f"{path}.start")
    for _ in range(6):
        trainer.checkpoint.read(start).assert_consumed()
        trainer.train(tf.constant(3))
        runs_of_it.append(np.concatenate([w.ravel() for w in runs.weights(task.model).values()]))
    np.save(path, runs_of_it)


@pytest.mark.slow
def test_a_step_of_real_size_is_the_same_each_time(tmp_path):
    runs.in_process("training.trainer_test", train_again_and_again, tmp_path / "weights.npy")
    first, *others = np.load(tmp_path / "weights.npy")
    assert len(others) == 5 and np.isfinite(first).all()
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_replicas_and_parts_and_steps_have_dropout_seeds_of_their_own(data_dir):
    options = make_options(gradient_accumulation_steps=2)
    strategy = strategies.set_up(options)
    trainer = make_trainer(make_task(data_dir, strategy, DROPOUT), options, strategy)
    seeds = [strategy.run(trainer._dropout_seeds, (tf.constant(step),)) for step in (3, 4, 3)]
    assert seeds[0].shape == (2, len(trainer._seeds), 2) and len(trainer._seeds) == 5
    np.testing.assert_array_equal(seeds[0], seeds[2])
    pairs = np.concatenate([np.reshape(s, (-1, 2)) for s in seeds[:2]])
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16"},
        {"jit_compile": True},
        {"jit_compile": True, "precision": "mixed_bfloat16", "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_precisions_and_compilation_train(data_dir, changes):
    options = make_options(**changes)
    strategy = strategies.set_up(options)
    task = make_task(data_dir, strategy)
    before = runs.weights(task.model)
    assert {value.dtype for value in before.values()} == {np.dtype("float32")}
    trainer = make_trainer(task, options, strategy)
    first = trainer.train(tf.constant(3))
    for _ in range(8):
        last = trainer.train(tf.constant(3))
    assert all(math.isfinite(value) for value in (first | last).values())
    assert 0 < last["gradient_norm"] < 500  # float16's is unscaled; its first steps may be skipped
    assert 50 * last["disc_loss"] + last["masked_lm_loss"] < (
        50 * first["disc_loss"] + first["masked_lm_loss"]
    )
    after = runs.weights(task.model)
    assert all(np.abs(after[name] - before[name]).max() > 0 for name in after)


@pytest.mark.slow
@pytest.mark.parametrize("model", [runs.MODEL, DROPOUT], ids=["plain", "dropout"])
def test_the_whole_step_compiles_as_a_tpu_needs_it(data_dir, model):
    """XLA takes masking, losses, gradients and update as one program of static shapes."""
    options = make_options(gradient_accumulation_steps=2)
    strategy = strategies.set_up(options)
    task = make_task(data_dir, strategy, model)
    trainer = make_trainer(task, dataclasses.replace(options, strategy="tpu"), strategy)
    batch = next(iter(task.train_dataset(0, tf.distribute.InputContext())))
    assert all(tensor.shape.is_fully_defined() for tensor in batch.values())
    step = tf.constant(0, tf.int64)

    @tf.function(jit_compile=True)
    def compiled(batch, step):
        return strategy.run(trainer._train_step, args=(batch, step))[0]

    program = compiled.experimental_get_compiler_ir(batch, step)(stage="hlo")
    for word in ("infeed", "outfeed", "send(", "recv(", "<=", "callback"):
        assert word not in program, word
    before = runs.weights(task.model)
    strategy.run(trainer._train_step, args=(batch, step))
    strategy.run(trainer._train_step, args=(batch, step))
    expected = runs.weights(task.model)
    for variable in trainer.optimizer.variables:
        variable.assign(tf.zeros(variable.shape, variable.dtype))
    for variable in task.model.weights:
        variable.assign(before[variable.path])
    assert compiled(batch, step) and compiled(batch, step)
    if model is runs.MODEL:  # XLA draws other random numbers
        runs.assert_close(expected, runs.weights(task.model), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"objective": "mlm"}, {"disc_loss", "sampled_masked_lm_accuracy"}),
        ({"uniform_generator": True}, {"masked_lm_loss", "masked_lm_accuracy"}),
        ({"untied_generator": False}, set()),
    ],
    ids=["mlm", "uniform_generator", "tied_generator"],
)
def test_objectives_and_generators_train(data_dir, options, absent):
    objective = config.PretrainingConfig(**options)
    after, results = train(data_dir, 2, objective=objective)
    everything = train(data_dir, 1)[1]
    assert set(results) >= {"gradient_norm", "learning_rate"} | RATES
    assert set(everything) - set(results) >= absent
    assert not absent & set(results) and all(map(math.isfinite, results.values()))


def test_a_loss_that_is_not_finite_stops_and_names_step_and_batch(data_dir, tmp_path):
    with pytest.raises(UserError) as caught:
        train(data_dir, 6, model_dir=tmp_path, poisoned=lambda step: step >= 3)
    assert "not finite in step 4 (its batch, examples 25 to 32 of the run" in str(caught.value)
    kept = runs.load(tmp_path / "nonfinite_batch_4.npz")
    options = make_options()
    task = make_task(data_dir, strategies.set_up(options))
    expected = next(iter(task.train_dataset(3, tf.distribute.InputContext())))
    for name, value in expected.items():
        np.testing.assert_array_equal(kept[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_steps_that_are_not_finite_are_left_out_and_counted(data_dir, parts):
    options = {"on_nonfinite": "skip", "gradient_accumulation_steps": parts}
    poisoned, results = train(data_dir, 6, poisoned=lambda step: step % 3 == 1, **options)
    assert results["skipped_steps"] == 2 and all(map(math.isfinite, results.values()))
    whole, others = train(data_dir, 6, **options)
    assert others["skipped_steps"] == 0
    assert all(np.isfinite(value).all() for value in poisoned.values())
    with pytest.raises(AssertionError):
        runs.assert_close(poisoned, whole, 1e-3)
    first, _ = train(data_dir, 1, poisoned=lambda step: step < 0, **options)
    second, _ = train(data_dir, 2, poisoned=lambda step: step == 1, **options)
    runs.assert_close(first, second, 0)  # the second step changed nothing
    _, none = train(data_dir, 2, poisoned=lambda step: step >= 0, **options)
    assert none["skipped_steps"] == 2 and math.isnan(none["masked_lm_loss"])


@pytest.mark.slow
def test_float16_tells_a_loss_that_is_not_finite_from_its_scale(data_dir, tmp_path):
    options = {"precision": "mixed_float16", "model_dir": tmp_path}
    train(data_dir, 3, **options)  # its first steps overflow
    with pytest.raises(UserError, match="not finite in step 3"):
        train(data_dir, 3, poisoned=lambda step: step == 2, **options)


def test_utilisation_of_the_stated_peak(data_dir):
    _, results = train(data_dir, 2, peak_flops=1e9)
    per_example = flops.pretraining_flops(runs.MODEL, config.PretrainingConfig(), 24)
    expected = results["examples_per_second"] * per_example / 1e9
    assert results["model_flops_utilisation"] == pytest.approx(expected)
    assert 0 < results["tokens_per_second"] / results["examples_per_second"] < 24


def test_a_signal_before_a_loop_or_in_python_is_heard_and_handlers_come_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with trainer.Interruption() as stop:
        assert not stop.flag.numpy()
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            if stop.flag.numpy():
                break
            time.sleep(0.05)
        assert stop.flag.numpy() and stop.signum == signal.SIGTERM
        stop.raises = True
        with pytest.raises(trainer.Interrupted, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert before == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert signal.set_wakeup_fd(-1) == -1
    with stop:  # again, from the start
        assert not stop.flag.numpy() and stop.signum is None
