"""The compact set of goldens: small, and the very numbers of the whole set."""

import fnmatch
import json

import numpy as np
import pytest

from tests import goldens

# Arrays that the compact set leaves out for their size; var/* are the weights of model.ckpt again.
LEFT_OUT = {
    "medium_small_like": ["var/*"],
    "finetune_mnli": ["var/*", "opt/after_2/*"],
    "finetune_squad_v2": [
        "var/*",
        "opt/after_*",
        "grad/task_specific/squad/qa_hidden/kernel",
        "grad/task_specific/squad/dense_2/kernel",
    ],
    "huggingface/encoder": [],
    "huggingface/sequence_classification": [],
}


def test_the_compact_set_has_at_most_5_megabytes():
    sizes = [file.stat().st_size for file in goldens.TESTDATA.rglob("*") if file.is_file()]
    assert 1_000_000 < sum(sizes) <= 5_000_000


@goldens.needs_shared
@pytest.mark.parametrize("name", LEFT_OUT)
def test_arrays_are_those_of_the_whole_set(name):
    with (
        np.load(goldens.TESTDATA / name / "tensors.npz") as compact,
        np.load(goldens.WHOLE / name / "tensors.npz") as whole,
    ):
        assert set(compact.files) == {
            key
            for key in whole.files
            if not any(fnmatch.fnmatchcase(key, pattern) for pattern in LEFT_OUT[name])
        }
        for key in compact.files:
            assert compact[key].dtype == whole[key].dtype
            assert compact[key].tobytes() == whole[key].tobytes(), key


@goldens.needs_shared
def test_other_files_are_those_of_the_whole_set():
    files = {file for file in goldens.TESTDATA.glob("*/**/*") if file.is_file()}
    files = {file for file in files if file.name != "tensors.npz"}
    assert {str(file.parent.relative_to(goldens.TESTDATA)) for file in files} == LEFT_OUT.keys()
    for file in files:
        whole = goldens.WHOLE / file.relative_to(goldens.TESTDATA)
        assert file.read_bytes() == whole.read_bytes(), file


@goldens.needs_shared
def test_lines_and_pieces_are_those_of_the_whole_set():
    """The lines are those from the first empty one on: before them stands text of other people."""
    name = "tokenization.jsonl"
    compact, whole = (
        list(map(json.loads, (folder / name).read_bytes().splitlines()))
        for folder in (goldens.TESTDATA, goldens.WHOLE)
    )
    assert compact == whole[[line["text"] for line in whole].index("") :]
    pieces = json.loads((goldens.TESTDATA / "tokenization_vocab.json").read_bytes())
    vocabulary = (goldens.SHARED / "data" / "vocab.txt").read_text("utf-8").split("\n")
    assert all(vocabulary[index] == piece for piece, index in pieces.items())
