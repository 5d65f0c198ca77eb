"""The builder on Apache Beam: the same files as without it."""

import json
import pathlib
import random
import subprocess
import sys

import pytest

from convbert_tf.console import UserError
from convbert_tf.data import corpus, corpus_beam
from tests.data import tfds_text_test

try:
    import apache_beam
except ImportError:
    apache_beam = None

needs_beam = pytest.mark.skipif(apache_beam is None, reason="Apache Beam is not installed")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{letter}" for letter in "abcdefghijklmnop"]


def make_text(seed, count=40):
    rng = random.Random(seed)
    return "\n\n".join(
        "\n".join(" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(4))
        for _ in range(count)
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    (tmp_path / "text").mkdir()
    for name, text in (("a.txt", make_text(1)), ("c.txt", make_text(2)), ("d.txt", make_text(1))):
        (tmp_path / "text" / name).write_text(text)
    lines = [json.dumps({"text": text}) for text in make_text(3).split("\n\n")]
    (tmp_path / "text" / "b.jsonl").write_text("\n".join(lines))
    return tmp_path


def build(folder, output, runner=None, beam_options=(), **options):
    if runner:
        options["run"] = corpus_beam.run_on(runner, beam_options)
    paths = [str(folder / name) for name in ("text", output, "vocab.txt")]
    return corpus.build(
        *paths, **{"num_workers": 1, "max_seq_length": 32, "chunk_bytes": 3000} | options
    )


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jsonl"}


@needs_beam
@pytest.mark.parametrize("deduplicate", [False, True])
def test_beam_writes_the_same_files(folder, deduplicate):
    options = {"deduplicate": deduplicate, "seed": 5}
    expected = build(folder, "here", **options)
    assert build(folder, "beam", "DirectRunner", **options) == expected
    assert files(folder / "beam") == files(folder / "here")
    assert len(expected["shards"]) > 6
    assert expected["num_documents"] == (120 if deduplicate else 160)
    # Nothing is left to do, on Beam or here.
    assert build(folder, "beam", "DirectRunner", **options) == expected


@needs_beam
@pytest.mark.slow
def test_beam_writes_the_same_files_in_several_processes(folder):
    expected = build(folder, "here", deduplicate=True)
    several = ["direct_num_workers=2", "direct_running_mode=multi_processing"]
    assert build(folder, "beam", "DirectRunner", several, deduplicate=True) == expected
    assert files(folder / "beam") == files(folder / "here")


@needs_beam
def test_beam_goes_on_with_what_was_built_here(folder):
    expected = build(folder, "whole", deduplicate=True)
    build(folder, "out", deduplicate=True)
    (folder / "out" / "manifest.json").unlink()
    log = (folder / "out" / "build.jsonl").read_text().splitlines(keepends=True)
    (folder / "out" / "build.jsonl").write_text("".join(log[:4]))
    kept = folder / "out" / json.loads(log[1])["file"]
    time = kept.stat().st_mtime_ns
    assert build(folder, "out", "DirectRunner", deduplicate=True) == expected
    assert files(folder / "out") == files(folder / "whole")
    assert kept.stat().st_mtime_ns == time


@needs_beam
def test_tfds_on_beam(folder, tmp_path):
    directory = tfds_text_test.write_set(tmp_path, texts=make_text(4).split("\n\n"))
    options = {"tfds": [f"{directory}:train"]}
    expected = build(folder, "here", **options)
    assert expected["num_documents"] == 200
    assert build(folder, "beam", "DirectRunner", **options) == expected
    assert files(folder / "beam") == files(folder / "here")


@needs_beam
def test_an_error_of_the_text_is_told_in_one_line(folder):
    (folder / "text" / "z.txt").write_bytes(b"fine\n\n\xff\n")
    with pytest.raises(UserError, match=r"z.txt:3 is not UTF-8") as caught:
        build(folder, "out", "DirectRunner")
    assert "\n" not in str(caught.value)
    assert not (folder / "out" / "manifest.json").exists()


@needs_beam
@pytest.mark.slow
def test_the_tool_builds_on_beam(folder):
    expected = build(folder, "here", max_seq_length=128, chunk_bytes=8_000_000)
    process = subprocess.run(
        [
            sys.executable,
            "tools/build_pretraining_data.py",
            f"--input={folder}/text",
            f"--output_dir={folder}/beam",
            f"--vocab_file={folder}/vocab.txt",
            "--runner=DirectRunner",
            "--beam_option=direct_num_workers=1",
        ],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert f"{expected['num_records']:,} records" in process.stdout.splitlines()[-1]
    assert files(folder / "beam") == files(folder / "here")


def test_without_beam_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[beam\]'"):
        corpus_beam.run_on("DirectRunner")
