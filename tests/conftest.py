"""Every test draws the same random numbers, whichever tests ran before it in its process."""

import sys

import pytest

# PyTorch loads it, whose LLVM and TensorFlow's end a process that has both.
sys.modules.setdefault("triton", None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed Keras, NumPy and Python before the fixtures of `item` are made."""
    if "keras" in sys.modules:  # a test without Keras does not pay for its import
        sys.modules["keras"].utils.set_random_seed(0)
