"""Runs under JAX that are refused, broken off or gone on with; needs no JAX."""

import os
import signal

import numpy as np
import pytest

from convbert_tf import config
from convbert_tf.console import UserError
from convbert_tf.training import on_jax

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c"]
WHOLE = {
    "ids": np.array([[2, 5, 6, 3, 0, 0, 0, 0], [2, 5, 3, 7, 5, 5, 5, 3]], np.uint16),
    "lengths": np.array([4, 8], np.int32),
    "first": np.array([4, 3], np.int32),
    "vocab": np.array(VOCAB),
    "normalization": np.array([True, False]),
}
EXPERIMENT = config.PretrainingExperiment(
    model=config.ModelConfig(vocab_size=8, max_position_embeddings=8),
    data=config.DataConfig(max_seq_length=8),
    training=config.TrainingConfig(batch_size=2, num_train_steps=10),
)


def packed(path, **changes):
    np.savez(path, **(WHOLE | changes))
    return on_jax.Records(str(path))


def changed(**values):
    return config.with_values(EXPERIMENT, {f"training.{n}": x for n, x in values.items()})


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": WHOLE["ids"].astype(np.float32)},
        {"ids": WHOLE["ids"] + np.uint16(1)},  # beyond the vocabulary
        {"ids": WHOLE["ids"].astype(np.int32) - 1},
        {"ids": WHOLE["ids"].ravel()},
        {"ids": WHOLE["ids"][:, :6]},  # shorter than `lengths` says
        {"ids": WHOLE["ids"][:0], "lengths": WHOLE["lengths"][:0], "first": WHOLE["first"][:0]},
        {"lengths": WHOLE["lengths"][:1]},
        {"lengths": np.array([0, 8])},
        {"first": np.array([5, 3])},
        {"vocab": np.array(["a"] * 8)},
        {"normalization": np.array([True])},
    ],
)
def test_records_that_are_not_as_they_are_packed(tmp_path, wrong):
    packed(tmp_path / "whole.npz")
    with pytest.raises(UserError, match=r"x\.npz is not as tools/pack_records\.py writes it"):
        packed(tmp_path / "x.npz", **wrong)


def test_an_array_alone_is_no_file_of_records(tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, WHOLE["ids"])
    with pytest.raises(UserError, match=r"x\.npz is damaged or no \.npz file"):
        on_jax.Records(str(tmp_path / "x.npz"))


def test_what_does_not_fit_is_said_before_the_training(tmp_path):
    records = packed(tmp_path / "a.npz")
    on_jax.check(EXPERIMENT, records, packed(tmp_path / "b.npz"))
    with pytest.raises(UserError, match="init_from is for tools/pretrain"):
        on_jax.check(changed(init_from="runs/small/preset"), records)
    with pytest.raises(UserError, match=r"a\.npz holds 2 records, fewer than one batch of 3"):
        on_jax.check(changed(batch_size=3), records)
    swapped = packed(tmp_path / "c.npz", vocab=np.array([*VOCAB[:6], "c", "##b"]))
    with pytest.raises(UserError, match=r"c\.npz is of another vocabulary than .*a\.npz"):
        on_jax.check(EXPERIMENT, records, swapped)
    cased = packed(tmp_path / "d.npz", normalization=np.array([False, False]))
    with pytest.raises(UserError, match=r"d\.npz is of another lower_case"):
        on_jax.check(EXPERIMENT, records, cased)
    one = {name: WHOLE[name][:1] for name in ("ids", "lengths", "first")}
    with pytest.raises(UserError, match=r"e\.npz holds 1 record,"):
        on_jax.check(EXPERIMENT, records, packed(tmp_path / "e.npz", **one))
    wide = packed(tmp_path / "f.npz", ids=np.pad(WHOLE["ids"], ((0, 0), (0, 1))))
    with pytest.raises(UserError, match=r"f\.npz have 9 tokens"):
        on_jax.check(EXPERIMENT, records, wide)


def test_a_run_goes_on_as_it_began(tmp_path):
    records, folder = packed(tmp_path / "a.npz"), tmp_path / "run"
    folder.mkdir()
    on_jax.save_config(changed(model_dir=str(folder)), records)
    faster = changed(model_dir=str(folder), learning_rate=0.5)
    on_jax.check_run(faster, records)  # there is no state yet
    (folder / on_jax.STATE_FILE).write_bytes(b"")
    folder.rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    on_jax.check_run(changed(model_dir=str(folder)), records)
    faster = changed(model_dir=str(folder), learning_rate=0.5)
    with pytest.raises(UserError, match=r"training\.learning_rate: 0\.0003 -> 0\.5\).*--allow_con"):
        on_jax.check_run(faster, records)
    other = packed(tmp_path / "b.npz", first=WHOLE["lengths"])
    with pytest.raises(UserError, match="other records"):
        on_jax.check_run(changed(model_dir=str(folder)), other)
    on_jax.check_run(faster, other, allow_change=True)
    on_jax.save_config(faster, other)
    on_jax.check_run(faster, other)
    (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"holds a run of tools/pretrain\.py"):
        on_jax.check_run(faster, other, allow_change=True)


class Steps:
    """What `fit` needs of a Loop and its arrays: a weight that grows by 1 in each step."""

    def __init__(self, losses=(), **training):
        self.training, self.step, self.weight = changed(**training).training, 0, 0.0
        self.losses, self.stateless = dict(losses), self

    def run(self, end, stop):
        for step in range(self.step + 1, min(self.step + 5, end + 1)):
            self.step = step
            self.weight = self.losses.get(self.step, self.weight + 1)
            if self.step == self.losses.get("killed"):
                os.kill(os.getpid(), signal.SIGTERM)
            if stop:
                break
        return {"masked_lm_loss": self.weight, "disc_auc": float("nan")}

    def save(self, path, step):
        self.held = [[np.float32(self.weight)], [], []]
        on_jax.Stateless.save(self, path, step)

    def load(self, path):
        with np.load(path) as arrays:
            self.weight = float(arrays["0_0"])
            return int(arrays["step"])

    def assign(self):
        pass


def state(folder):
    with np.load(folder / on_jax.STATE_FILE) as arrays:
        return int(arrays["step"]), float(arrays["0_0"])


def test_a_signal_saves_the_step_it_came_in(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        on_jax.fit(Steps({"killed": 6}), str(tmp_path))
    assert ended.value.code == 143 and state(tmp_path) == (6, 6.0)
    assert "SIGTERM: saved at step 6; the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    loop = Steps()
    on_jax.fit(loop, str(tmp_path))
    assert state(tmp_path) == (10, 10.0)
    asked = []
    with pytest.raises(UserError, match="is at step 10, beyond num_train_steps 9"):
        on_jax.fit(Steps(num_train_steps=9), str(tmp_path), ready=lambda: asked.append(1))
    assert not asked  # so that the config there stays that of the state


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_run_that_diverges_keeps_what_it_has_saved(tmp_path, on_nonfinite):
    options = {"checkpoint_interval": 4, "on_nonfinite": on_nonfinite}
    for _ in range(2):
        loop = Steps({8: float("nan")}, **options)
        with pytest.raises(UserError, match="not finite at step 8: take a lower learning_rate"):
            on_jax.fit(loop, str(tmp_path))
        assert state(tmp_path) == (4, 4.0)
