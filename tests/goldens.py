"""Golden tensors measured from the original and from Hugging Face.

tests/testdata holds a compact set of them, so that these tests run everywhere. Where the whole set
lies beside the tree, it is taken instead, and the cases that only it has run too.
"""

import json
import pathlib

import numpy as np
import pytest

TESTDATA = pathlib.Path(__file__).parent / "testdata"
SHARED = pathlib.Path(__file__).parents[2] / "shared"
WHOLE = SHARED / "golden"


def path(name):
    """A golden file or folder: of the whole set, or of the compact one where that is absent."""
    whole = WHOLE / name
    return whole if whole.exists() else TESTDATA / name


def needs(*names):
    """The mark that skips a test where one of these goldens is absent."""
    absent = [name for name in names if not path(name).exists()]
    return pytest.mark.skipif(bool(absent), reason=f"golden not there: {', '.join(absent)}")


def cases(*names):
    """Parameters of a test, each skipped where its golden is absent."""
    return [pytest.param(name, marks=needs(name)) for name in names]


needs_shared = pytest.mark.skipif(
    not (WHOLE.exists() and (SHARED / "data").exists()),
    reason="the whole set of goldens and its data are not beside the tree",
)
PRETRAINING = cases("medium_small_like", "small_like", "base_like")
FINETUNING = cases("finetune_mnli", "finetune_sts", "finetune_squad_v1", "finetune_squad_v2")


def tensors(name):
    """The arrays of a golden folder, by name."""
    with np.load(path(name) / "tensors.npz") as file:
        return {key: file[key] for key in file.files}


def config(name):
    return json.loads((path(name) / "config.json").read_text())


def checkpoint(name):
    return str(path(name) / "model.ckpt")


def error(value, expected):
    """Largest difference, relative to the largest expected value."""
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    assert value.shape == expected.shape
    return np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30)
