"""Golden tensors measured from the original and from Hugging Face; kept outside the tree."""

import json
import pathlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden"
DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="no golden tensors beside the tree")
needs_data = pytest.mark.skipif(not DATA.exists(), reason="no data sets beside the tree")

PRETRAINING = ["medium_small_like", "small_like", "base_like"]
FINETUNING = ["finetune_mnli", "finetune_sts", "finetune_squad_v1", "finetune_squad_v2"]


def tensors(name):
    """The arrays of a golden folder, by name."""
    with np.load(GOLDEN / name / "tensors.npz") as file:
        return {key: file[key] for key in file.files}


def config(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


def checkpoint(name):
    return str(GOLDEN / name / "model.ckpt")


def error(value, expected):
    """Largest difference, relative to the largest expected value."""
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    assert value.shape == expected.shape
    return np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30)
