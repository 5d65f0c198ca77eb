"""Pre-training under JAX, from records packed with TensorFlow to a preset that it loads."""

import json

import numpy as np
import pytest

from convbert_tf.data import records, shards
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from tests import runs
from tests.modeling.backends_test import run_python
from tests.tools_test import assert_one_line, run_tool

MODEL = {
    "vocab_size": len(runs.VOCAB),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "embedding_size": 16,
    "hidden_dropout_prob": 0.1,
}
TRAINING = {
    "num_train_steps": 24,
    "steps_per_loop": 4,
    "checkpoint_interval": 8,
    "batch_size": 8,
    "learning_rate": 0.02,
    "warmup_steps": 4,
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Records, and the file of them."""
    folder = tmp_path_factory.mktemp("packed")
    data = runs.make_data(folder)
    run = run_tool("pack_records", f"--records={data}", f"--output_file={folder}/it.npz")
    last = run.stdout.splitlines()[-1]  # on a busy machine there is progress before it
    assert last.startswith(f"{folder}/it.npz: ") and " records, " in last
    return data, str(folder / "it.npz")


@pytest.mark.slow
def test_packed_records_are_the_records(packed):
    folder, path = packed
    manifest = shards.load_manifest(folder)
    (shard, *_), _ = shards.paths_and_counts(manifest, folder)
    expected = records.parse(records.read(shard), {}, manifest["max_seq_length"])
    expected = {name: values.numpy() for name, values in expected.items()}
    with np.load(path) as arrays:
        number = len(expected["input_ids"])
        ids, lengths, first = (arrays[name] for name in ("ids", "lengths", "first"))
        place = np.arange(ids.shape[1])[None]
        mask = place < lengths[:number, None]
        np.testing.assert_array_equal(mask, expected["input_mask"])
        np.testing.assert_array_equal(ids[:number] * mask, expected["input_ids"])
        second = mask & (place >= first[:number, None])
        np.testing.assert_array_equal(second, expected["segment_ids"])
        assert len(ids) == manifest["num_records"] and arrays["vocab"].tolist() == runs.VOCAB


RESUMED = """
import os, sys
import numpy as np
from tests.training import on_jax_cases
from convbert_tf.training import on_jax
assert "tensorflow" not in sys.modules
path, folder = sys.argv[1:]
whole = on_jax_cases.make_loop(path)
os.mkdir(folder + "/whole")
on_jax.fit(whole, folder + "/whole")
os.mkdir(folder + "/parts")
for calls in (2, 1, 9):  # ended twice, and gone on with
    asked = iter([True] * calls + [False])
    part = on_jax_cases.make_loop(path)
    on_jax.fit(part, folder + "/parts", lambda: next(asked))
assert part.step == whole.step == 24
for a, b in zip(whole.stateless.held, part.stateless.held, strict=True):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
print("the same")
"""


@pytest.mark.slow
def test_a_run_in_parts_is_the_run_in_one(packed, tmp_path):
    pytest.importorskip("jax")
    run = run_python(RESUMED, packed[1], str(tmp_path), KERAS_BACKEND="jax")
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "the same", run.stderr


@pytest.mark.slow
def test_a_preset_comes_back(packed, tmp_path):
    pytest.importorskip("jax")
    flags = ["--config=configs/pretrain_tiny.py"]
    flags += [f"--config.model.{name}={value}" for name, value in MODEL.items()]
    flags += [f"--config.training.{name}={value}" for name, value in TRAINING.items()]
    flags += [f"--config.training.model_dir={tmp_path}", f"--heldout={packed[1]}"]
    flags += [f"--records={packed[1]}"]
    run = run_tool("pretrain_on_jax", *flags)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == f"step 24; the model is in {tmp_path}/preset"
    report = json.loads((tmp_path / "eval_results.json").read_text())
    # Of 57 pieces one that knows nothing has a loss of 4.04.
    assert report["step"] == 24 and report["metrics"]["masked_lm_loss"] < 3.5
    model = ConvBertPretrainer.from_preset(str(tmp_path / "preset"))
    assert f"{model.count_params():,} parameters" in run.stdout
    # Given again, it has nothing left to do and keeps what it has.
    again = run_tool("pretrain_on_jax", *flags)
    assert "resumed from step 24" in again.stdout and again.returncode == 0
    missing = run_tool("pretrain_on_jax", *flags[:-1], "--records=no.npz")
    assert_one_line(missing, 1, "there is no file no.npz", "tools/pack_records.py")
    (tmp_path / "junk.npz").write_text("junk")
    junk = run_tool("pretrain_on_jax", *flags[:-1], f"--records={tmp_path}/junk.npz")
    assert_one_line(junk, 1, "junk.npz is damaged or no .npz file", "pack the records again")
    small = run_tool("pretrain_on_jax", *flags, "--config.model.vocab_size=20")
    assert_one_line(small, 1, "the records' vocabulary has 58 pieces")
