"""One training loop: replicas, resuming, precision, what it leaves on disk."""

import dataclasses
import math
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import config, corpus, input_pipeline, masking, optimization, pretraining, training
from convbert_tf.console import UserError

ROOT = pathlib.Path(__file__).parents[1]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), "."]
SPECIAL_TOKENS = masking.SpecialTokens(2, 3, 4)
MODEL = config.ModelConfig(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    embedding_size=8,
    max_position_embeddings=32,
    conv_kernel_size=3,
    generator_hidden_size=0.5,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
BATCH = 8


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    lines = [f"{'ab ' * (i % 5)}the {LETTERS[i % 26]} cat.\nit sat.\n" for i in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    corpus.build(
        [str(folder / "text.txt")],
        str(folder / "records"),
        str(folder / "vocab.txt"),
        max_seq_length=24,
        num_workers=1,
        chunk_bytes=600,
    )
    return str(folder / "records")


@pytest.fixture(autouse=True)
def float32_again():
    yield
    keras.config.set_dtype_policy("float32")


def make_options(model_dir="", **changes):
    settings = {
        "model_dir": str(model_dir),
        "batch_size": BATCH,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "num_train_steps": 12,
        "steps_per_loop": 3,
        "checkpoint_interval": 3,
    }
    return config.TrainingConfig(**(settings | changes))


class PoisonedTask(pretraining.PretrainingTask):
    """Pre-training whose loss is not a number from the step of index `poisoned_from` on."""

    poisoned_from = 1 << 30

    def prepare(self, batch):
        inputs, weights = super().prepare({k: v for k, v in batch.items() if k != "poison"})
        return inputs | {"poison": batch["poison"]}, weights

    def losses(self, inputs, training):
        terms, counts = super().losses(inputs, training)
        coefficient, total = terms["mlm"]
        terms["mlm"] = coefficient, total + inputs["poison"]
        counts["mlm_loss_sum"] += inputs["poison"]
        return terms, counts


def make_task(data_dir, strategy, model=MODEL, poisoned_from=None):
    batches = {"batch_size": BATCH, "max_seq_length": 24, "seed": 5}

    def train_dataset(start_step, context):
        dataset = input_pipeline.pretraining_dataset(
            data_dir, **batches, start_step=start_step, input_context=context
        )
        if poisoned_from is None:
            return dataset

        def poison(step, batch):
            return batch | {"poison": tf.where(step >= poisoned_from, math.nan, 0.0)}

        return tf.data.Dataset.zip(tf.data.Dataset.counter(start_step), dataset).map(poison)

    def eval_dataset(context):
        return input_pipeline.evaluation_dataset(data_dir, **batches, input_context=context)

    with strategy.scope():
        pretrainer = pretraining.ConvBertPretrainer(model)
    kind = pretraining.PretrainingTask if poisoned_from is None else PoisonedTask
    return kind(pretrainer, SPECIAL_TOKENS, train_dataset, eval_dataset)


def in_subprocess(function, *args):
    """Calls a function of this file in a process whose TensorFlow has not started yet."""
    code = (
        "import sys; from tests import training_test as t; getattr(t, sys.argv[1])(*sys.argv[2:])"
    )
    subprocess.run(
        [sys.executable, "-c", code, function.__name__, *map(str, args)],
        cwd=ROOT,
        check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def save_weights(model, path):
    np.savez(path, **{variable.path: np.asarray(variable) for variable in model.weights})


def worst_difference(left, right):
    """Of all weights, relative to the largest value of each; both are npz files."""
    with np.load(left) as a, np.load(right) as b:
        assert set(a.files) == set(b.files)
        return max(np.abs(a[n] - b[n]).max() / max(np.abs(a[n]).max(), 1e-6) for n in a.files)


def train_on_replicas(data_dir, replicas, path):
    replicas = int(replicas)
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * replicas
    tf.config.set_logical_device_configuration(cpu, devices)
    options = make_options(strategy="mirrored" if replicas > 1 else "one_device")
    strategy = training.set_up(options)
    assert strategy.num_replicas_in_sync == replicas
    task = make_task(data_dir, strategy)
    before = [np.asarray(variable) for variable in task.model.trainable_variables]
    trainer = make_trainer(task, options, strategy)
    results = trainer.train(tf.constant(10))
    moved = [
        np.abs(np.asarray(v) - w).max()
        for v, w in zip(task.model.trainable_variables, before, strict=True)
    ]
    assert np.median(moved) > 1e-3
    save_weights(task.model, path)
    scores = results | trainer.evaluate(tf.constant(-1))
    del scores["examples_per_second"]
    np.savez(path + ".scores.npz", **scores)


def make_trainer(task, options, strategy):
    with strategy.scope():
        optimizer = optimization.create(options, options.num_train_steps)
    return training.Trainer(task, optimizer, options, strategy)


@pytest.mark.slow
def test_two_replicas_take_the_steps_of_one(data_dir, tmp_path):
    one, two = str(tmp_path / "one.npz"), str(tmp_path / "two.npz")
    in_subprocess(train_on_replicas, data_dir, 1, one)
    in_subprocess(train_on_replicas, data_dir, 2, two)
    assert worst_difference(one, two) < 1e-5
    with np.load(one + ".scores.npz") as a, np.load(two + ".scores.npz") as b:
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)


def train_broken_and_whole(data_dir, folder):
    """12 steps at once; and 12 with a loss that breaks in the 8th, taken up from the 6th."""
    folder = pathlib.Path(folder)
    options = make_options(folder / "whole", deterministic=True)
    strategy = training.set_up(options)
    task = make_task(data_dir, strategy)
    training.fit(task, options, 12, strategy)
    save_weights(task.model, folder / "whole.npz")

    options = dataclasses.replace(options, model_dir=str(folder / "broken"))
    training.set_up(options)
    task = make_task(data_dir, strategy, poisoned_from=7)
    with pytest.raises(UserError, match="masked_lm_loss.* not finite between steps 6 and 9"):
        training.fit(task, options, 12, strategy)
    latest = tf.train.latest_checkpoint(str(folder / "broken" / "checkpoints"))
    assert latest.endswith("-6"), latest
    keras.utils.set_random_seed(99)  # so that only the checkpoint can bring the weights back
    task = make_task(data_dir, strategy)
    training.fit(task, options, 12, strategy)
    save_weights(task.model, folder / "resumed.npz")


@pytest.mark.slow
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(data_dir, tmp_path):
    in_subprocess(train_broken_and_whole, data_dir, tmp_path)
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "resumed.npz") as b:
        assert set(a.files) == set(b.files) and len(a.files) > 20
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def read_events(folder):
    """name -> [(step, value)] of all event files of a folder."""
    scalars = {}
    for path in sorted(pathlib.Path(folder).glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                scalar = float(tf.make_ndarray(value.tensor))
                scalars.setdefault(value.tag, []).append((event.step, scalar))
    return scalars


@pytest.mark.slow
def test_fit_writes_tensorboard_logs_and_returns_the_last_evaluation(data_dir, tmp_path, capsys):
    options = make_options(tmp_path, num_train_steps=6, eval_interval=3)
    strategy = training.set_up(options)
    results = training.fit(make_task(data_dir, strategy), options, 6, strategy)
    metrics = {"masked_lm_loss", "disc_loss", "masked_lm_accuracy", "disc_auc"}
    metrics |= {"disc_precision", "disc_recall"}
    train, held_out = read_events(tmp_path / "train"), read_events(tmp_path / "eval")
    assert metrics | {"learning_rate", "gradient_norm"} <= set(train)
    assert metrics <= set(held_out) and metrics <= set(results)
    for name, points in (train | held_out).items():
        assert [step for step, _ in points] == [3, 6], name
    for name in metrics:
        assert held_out[name][-1][1] == pytest.approx(results[name]), name
    rate = 1e-2 * (1 - np.array([3, 6]) / 6)  # after the warm-up of two steps
    assert [value for _, value in train["learning_rate"]] == pytest.approx(rate, abs=1e-9)
    assert all(value > 0 for _, value in train["gradient_norm"])
    assert "step 6: masked_lm_loss" in capsys.readouterr().out
    # A finished run is not trained further, but evaluated again.
    again = training.fit(make_task(data_dir, strategy), options, 6, strategy)
    assert again == pytest.approx(results)
    assert "resumed from the checkpoint of step 6" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16"},
        {"jit_compile": True},
        {"jit_compile": True, "precision": "mixed_bfloat16"},
    ],
    ids=str,
)
def test_precisions_and_compilation_train(data_dir, changes):
    options = make_options(**changes)
    strategy = training.set_up(options)
    task = make_task(data_dir, strategy)
    before = np.asarray(task.model.discriminator.embeddings.word_embeddings)
    assert before.dtype == np.float32
    trainer = make_trainer(task, options, strategy)
    first = trainer.train(tf.constant(3))
    for _ in range(8):
        last = trainer.train(tf.constant(3))
    assert all(math.isfinite(value) for value in (first | last).values())
    assert 0 < last["gradient_norm"] < 500  # float16's is unscaled; its first steps may be skipped
    assert 50 * last["disc_loss"] + last["masked_lm_loss"] < (
        50 * first["disc_loss"] + first["masked_lm_loss"]
    )
    assert np.abs(np.asarray(task.model.discriminator.embeddings.word_embeddings) - before).max()


def test_mlm_objective_trains_without_discriminator_metrics(data_dir):
    options = make_options()
    strategy = training.set_up(options)
    task = make_task(data_dir, strategy)
    with strategy.scope():
        objective = config.PretrainingConfig(objective="mlm")
        task.model = pretraining.ConvBertPretrainer(MODEL, objective)
    trainer = make_trainer(task, options, strategy)
    results = trainer.train(tf.constant(2))
    assert set(results) == {
        "masked_lm_loss", "masked_lm_accuracy", "gradient_norm", "learning_rate",
        "examples_per_second",
    }  # fmt: skip


def test_save_config_refuses_another_config_of_a_run(tmp_path):
    first = config.PretrainingExperiment(training=make_options(tmp_path))
    other = dataclasses.replace(first, training=make_options(tmp_path, learning_rate=0.5))
    training.save_config(first, str(tmp_path))
    training.save_config(first, str(tmp_path))
    saved = (tmp_path / "config.json").read_text()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint").write_text("")
    with pytest.raises(UserError, match=r"training\.learning_rate: 0\.01 -> 0\.5.*allow_config"):
        training.save_config(other, str(tmp_path))
    assert (tmp_path / "config.json").read_text() == saved
    training.save_config(other, str(tmp_path), allow_change=True)
    assert '"learning_rate": 0.5' in (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is no JSON"):
        training.save_config(first, str(tmp_path))


def test_impossible_strategies_are_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="num_devices is 64, but this machine has"):
        training.make_strategy(make_options(strategy="mirrored", num_devices=64))
    with pytest.raises(UserError, match="TF_CONFIG"):
        training.make_strategy(make_options(strategy="multi_worker_mirrored"))


@pytest.mark.parametrize(
    "start, end, interval, stops",
    [
        (0, 10, 0, [10]),
        (0, 10, 4, [4, 8, 10]),
        (4, 10, 4, [8, 10]),
        (0, 8, 4, [4, 8]),
        (8, 8, 4, [8]),
    ],
)
def test_stops(start, end, interval, stops):
    assert training._stops(start, end, interval) == stops
