"""Strategies by name, and what is refused before a model is built."""

import pytest
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.training import strategies
from tests.runs import make_options


def test_impossible_strategies_are_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="num_devices is 64, but this machine has"):
        strategies.make_strategy(make_options(strategy="mirrored", num_devices=64))
    with pytest.raises(UserError, match="TF_CONFIG"):
        strategies.make_strategy(make_options(strategy="multi_worker_mirrored"))
    monkeypatch.setenv("TF_CONFIG", "nonsense")
    with pytest.raises(UserError, match="TF_CONFIG describes no cluster .*cluster.worker"):
        strategies.make_strategy(make_options(strategy="multi_worker_mirrored"))


@pytest.mark.slow
def test_a_tpu_that_is_not_there_is_told_in_one_line():
    with pytest.raises(UserError, match="no TPU at tpu='local'") as caught:
        strategies.make_strategy(make_options(strategy="tpu", tpu="local"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "batch_size 9 cannot be divided among 2 replicas."),
        (
            {"batch_size": 6, "gradient_accumulation_steps": 3, "num_devices": 2},
            None,
        ),
        (
            {"batch_size": 10, "gradient_accumulation_steps": 2},
            "batch_size 10 cannot be divided among 2 replicas in 2 parts each.",
        ),
    ],
)
def test_a_batch_must_be_divisible(monkeypatch, changes, message):
    class TwoReplicas:
        num_replicas_in_sync = 2

    monkeypatch.setattr(strategies, "make_strategy", lambda training: TwoReplicas())
    if message is None:
        assert isinstance(strategies.set_up(make_options(**changes)), TwoReplicas)
        return
    with pytest.raises(UserError) as caught:
        strategies.set_up(make_options(**changes))
    assert str(caught.value) == message


def test_one_device_is_its_own_chief_and_described(capsys):
    options = make_options(batch_size=8, gradient_accumulation_steps=2)
    strategy = strategies.set_up(options)
    assert strategies.is_chief(strategy) and not strategies.is_multi_worker(strategy)
    strategies.describe(strategy, options)
    assert (
        capsys.readouterr().out == "OneDeviceStrategy, 1 replica of batch 8 in 2 parts, float32\n"
    )


def test_training_leaves_the_settings_of_graphs_as_they_were():
    def settings():
        return tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)

    assert not settings()
    with pytest.raises(ValueError), strategies.as_traced():
        assert settings()
        raise ValueError
    assert not settings()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:  # of a deterministic run
        with strategies.as_traced():
            assert settings()
        assert settings()
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
