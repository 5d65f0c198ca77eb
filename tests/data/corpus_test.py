"""Text to shards: nothing lost or doubled, the original's pairs, the same files every time."""

import collections
import gzip
import json
import lzma
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import files
from convbert_tf.console import UserError
from convbert_tf.data import corpus, input_pipeline, records, text_files
from convbert_tf.data.shards import check_manifest

WORDS = [f"w{first}{second}" for first in "abcdefgh" for second in "abcdefgh"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLS, SEP, FIRST_WORD = 2, 3, 5


def make_documents(count=60, seed=0, longest=40):
    rng = random.Random(seed)
    return [
        [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(rng.randint(1, 8))]
        for _ in range(count)
    ]


DOCUMENTS = make_documents()
TEXT = "\n\n".join("\n".join(document) for document in DOCUMENTS) + "\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def build(folder, name="text.txt", output="out", **options):
    options = {"num_workers": 1, "max_seq_length": 32, "chunk_bytes": 10_000} | options
    vocab_file = folder / "vocab.txt"
    return corpus.build(str(folder / name), str(folder / output), str(vocab_file), **options)


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def read_examples(folder):
    found = []
    for path in sorted(folder.glob("shard-*")):
        for record in records.read(str(path)):
            features = tf.train.Example.FromString(record).features.feature
            found.append(
                [list(features[name].int64_list.value) for name in ("input_ids", "segment_ids")]
            )
    return found


# --- documents ---


def test_sizes_add_up_and_a_long_document_is_ended_at_a_line(folder):
    found = list(text_files.documents(str(folder / "text.txt")))
    assert [text.split("\n") for text, _ in found] == DOCUMENTS
    assert sum(size for _, size in found) == len(TEXT)
    (folder / "long.txt").write_text("one\ntwo\nthree\nfour\n")
    found = list(text_files.documents(str(folder / "long.txt"), max_bytes=8))
    assert found == [("one\ntwo", 8), ("three\nfour", 11)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\n\ntwo\n\xff\n", r"a.txt:4 is not UTF-8"),
        ("a.txt", b"\n\none\n\xfftwo\n\nx\n", r"a.txt:4 is not UTF-8"),
        ("a.txt", "one".encode("utf-16"), r"a.txt:1 is not UTF-8"),
        ("a.txt", b"\n \n", r"holds no text"),
        ("a.jsonl", b'{"text": "one"}\n{"text": 2}\n', r"a.jsonl:2 is not a JSON object"),
        ("a.jsonl", b'{"text": "one"\n', r"a.jsonl:1 is not a JSON object"),
        ("a.jsonl", b'\n\n{"body": "one"}\n', r"a.jsonl:3 is not a JSON object"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a.jsonl:1 is not a JSON object"),
        ("a.JSONL", b'"one"\n', r"a.JSONL:1 is not a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a.jsonl:1 is not a JSON object, in UTF-8"),
        ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-30], r"a.txt.gz is damaged"),
        ("a.txt.gz", b"plain text", r"a.txt.gz is damaged"),
        ("a.txt.xz", lzma.compress(TEXT.encode())[:-30], r"a.txt.xz is damaged"),
        ("a.txt.xz", b"plain text", r"a.txt.xz is damaged"),
    ],
)
def test_unreadable_input_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        build(folder, name)
    assert "\n" not in str(caught.value)
    assert shard_bytes(folder / "out") or not (folder / "out").exists()


# --- segment pairs ---


def original_examples(documents, max_length, rule, rng):
    """The original builder, as described: one line after the other, with lists of ids."""
    examples, target = [], max_length
    for lines in documents:
        sentences = []
        for line in [*lines, ""]:
            ids = [FIRST_WORD + WORDS.index(word) for word in line.split()]
            sentences += [ids] if ids else []
            if not sentences or (line and sum(map(len, sentences)) < target):
                continue
            first_target = 100000 if rng.random() < 0.1 else (target - 3) // 2
            first, second = [], []
            for ids in sentences:
                if rule == "electra":
                    fits = not first or len(first) + len(ids) < first_target
                    fits = fits or (not second and len(first) < first_target and rng.random() < 0.5)
                else:
                    fits = first or len(first) + len(ids) < first_target
                    fits = fits or (second and len(first) < first_target and rng.random() < 0.5)
                if fits:
                    first = first + ids
                else:
                    second = second + ids
            first = first[: max_length - 2]
            second = second[: max(0, max_length - len(first) - 3)]
            input_ids = [CLS, *first, SEP, *second] + [SEP] * bool(second)
            segment_ids = [0] * (len(first) + 2) + [1] * (len(input_ids) - len(first) - 2)
            examples.append([input_ids, segment_ids])
            target = rng.randint(5, max_length) if rng.random() < 0.05 else max_length
            sentences = []
        target = max_length  # here, a document's first target does not depend on its neighbours
    return examples


@pytest.mark.parametrize("rule", ["electra", "convbert"])
@pytest.mark.parametrize("max_length", [8, 32, 64])
def test_examples_are_those_of_the_original(folder, rule, max_length):
    options = {"segment_rule": rule, "max_seq_length": max_length, "keep_long_lines": False}
    manifest = build(folder, chunk_bytes=10**6, seed=7, **options)
    expected = original_examples(DOCUMENTS, max_length, rule, random.Random("7/0"))
    assert read_examples(folder / "out") == expected
    assert manifest["num_records"] == len(expected)
    assert manifest["num_tokens"] == sum(len(input_ids) for input_ids, _ in expected)


@pytest.mark.parametrize("rule", ["electra", "convbert"])
def test_long_lines_are_kept_whole_over_examples(folder, rule):
    build(folder, segment_rule=rule, keep_long_lines=True)
    examples = read_examples(folder / "out")
    words = collections.Counter(id for ids, _ in examples for id in ids if id >= FIRST_WORD)
    expected = collections.Counter(TEXT.split())
    assert words == {FIRST_WORD + WORDS.index(word): n for word, n in expected.items()}
    for ids, segments in examples:
        assert 3 <= len(ids) == len(segments) <= 32
        assert ids[0] == CLS and ids[-1] == SEP and ids.count(SEP) == 1 + max(segments)
        assert segments == sorted(segments) and ids[segments.count(0) - 1] == SEP


def test_rules_differ_as_their_names_promise(folder):
    shares = {}
    for rule in corpus.SEGMENT_RULES:
        build(folder, output=rule, segment_rule=rule, max_seq_length=64, keep_long_lines=False)
        shares[rule] = np.mean([max(segments) for _, segments in read_examples(folder / rule)])
    assert shares["convbert"] < 0.3 < 0.6 < shares["electra"]


# --- builds ---


def test_manifest_and_what_reads_it(folder):
    manifest = build(folder)
    assert manifest == json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest == input_pipeline.load_manifest(str(folder / "out"))
    assert (folder / "out" / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert manifest["num_bytes"] == len(TEXT) and manifest["num_documents"] == len(DOCUMENTS)
    assert len(manifest["shards"]) > 2
    for name in ("records", "tokens", "documents", "bytes"):
        assert manifest[f"num_{name}"] == sum(shard[name] for shard in manifest["shards"])
    dataset = input_pipeline.pretraining_dataset(
        str(folder / "out"), batch_size=1, max_seq_length=32, seed=0, vocab_size=len(WORDS) + 5
    )
    epoch = dataset.take(manifest["num_records"]).as_numpy_iterator()
    found = [batch["input_ids"][0][batch["input_mask"][0] == 1].tolist() for batch in epoch]
    assert sorted(found) == sorted(ids for ids, _ in read_examples(folder / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("deduplicate", [False, True])
def test_any_number_of_workers_gives_the_same_files(folder, deduplicate):
    again = "\n\n".join("\n".join(document) for document in DOCUMENTS[:30])
    (folder / "text.txt").write_text(TEXT + "\n" + again)
    options = {"deduplicate": deduplicate, "chunk_bytes": 4000}
    one = build(folder, output="one", **options)
    assert one == build(folder, output="two", num_workers=2, **options)
    assert shard_bytes(folder / "one") == shard_bytes(folder / "two") != {}
    assert one["num_documents"] == len(DOCUMENTS) + (0 if deduplicate else 30)


def test_a_document_is_in_the_chunk_in_which_it_begins(folder):
    (folder / "text.txt").write_text("waa\nwab\n\nwac\n\n" + "wad\n" * 5 + "\nwae\n")
    manifest = build(folder, chunk_bytes=10)
    # Places 0 and 9; 14, where a document ends that is over 10 bytes long, 26 and 35.
    assert [shard["chunk"] for shard in manifest["shards"]] == [0, 1, 2, 3]
    assert [shard["bytes"] for shard in manifest["shards"]] == [14, 12, 9, 4]
    assert [shard["documents"] for shard in manifest["shards"]] == [2, 1, 1, 1]


@pytest.mark.slow
def test_an_error_of_the_text_ends_a_build_with_workers(folder):
    (folder / "text.txt").write_bytes(TEXT.encode() + b"\n\n\xff")
    with pytest.raises(UserError, match=r"text.txt:\d+ is not UTF-8"):
        build(folder, num_workers=2)


def test_seed_changes_the_examples(folder):
    build(folder, output="a")
    build(folder, output="b", seed=1)
    assert shard_bytes(folder / "a") != shard_bytes(folder / "b")


def test_a_build_that_was_broken_off_goes_on(folder):
    manifest = build(folder, chunk_bytes=4000)
    out = folder / "out"
    expected = shard_bytes(out)
    assert len(expected) > 4
    # As if killed: no manifest, a line of the log half written, a shard not logged, one partial.
    (out / "manifest.json").unlink()
    log = (out / "build.jsonl").read_text().splitlines(keepends=True)
    (out / "build.jsonl").write_text("".join(log[:-2]) + log[-2][:9])
    (out / "shard-00000.tfrecord").write_bytes(b"cut short")
    (out / "shard-00007.tfrecord.partial-123").touch()
    kept = out / "shard-00001.tfrecord"
    time = kept.stat().st_mtime_ns
    assert build(folder, chunk_bytes=4000) == manifest
    assert shard_bytes(out) == expected
    assert kept.stat().st_mtime_ns == time
    # The log it went on with is whole again, and a finished build is left as it is.
    assert len((out / "build.jsonl").read_text().splitlines()) == len(log)
    times = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert build(folder, chunk_bytes=4000) == manifest
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}


BUILD_SCRIPT = """
import sys
from convbert_tf.data import corpus
if __name__ == "__main__":
    options = {"max_seq_length": 32, "chunk_bytes": 20_000, "num_workers": int(sys.argv[4])}
    corpus.build(*sys.argv[1:4], **options)
"""


# What Linux has and macOS lacks: a call of one of these needs another way beside it.
LINUX_ONLY = """
copy_file_range eventfd fdatasync getrandom getresuid getxattr listxattr memfd_create pidfd_open
pipe2 posix_fadvise posix_fallocate sched_getaffinity sched_getscheduler sched_setaffinity setxattr
splice unshare"""


def test_without_the_calls_of_linux_the_same_records_are_built(folder, monkeypatch):
    expected = build(folder)
    for name in LINUX_ONLY.split():
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "process_cpu_count", os.cpu_count, raising=False)  # so without affinity
    monkeypatch.setattr(files, "fcntl", None)
    assert corpus._useful_workers([], ["a set"]) == os.cpu_count()
    with files.only_one(folder / "elsewhere"):
        assert build(folder, output="elsewhere", num_workers=None) == expected
    assert shard_bytes(folder / "elsewhere") == shard_bytes(folder / "out")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks into Linux's /proc")
def test_a_build_that_is_killed_again_and_again_gives_the_same_files(folder):
    text = "\n\n".join("\n".join(document) for document in make_documents(4000, seed=1))
    (folder / "text.txt").write_text(text)
    expected = build(folder, output="whole", chunk_bytes=20_000)
    (folder / "build.py").write_text(BUILD_SCRIPT)
    arguments = [folder / name for name in ("build.py", "text.txt", "out", "vocab.txt")]
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    (folder / "out").mkdir()
    # Killed with so many workers as soon as there are so many shards.
    for num_workers, shards in ((2, 1), (1, 9), (2, 25)):
        process = subprocess.Popen([*command, str(num_workers)], env=environment)
        while len(list((folder / "out").glob("shard-*.tfrecord"))) < shards:
            assert process.poll() is None
            time.sleep(0.002)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while any(is_running(child) for child in children.split()):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.01)
        assert shards <= len(shard_bytes(folder / "out")) < len(expected["shards"])
        assert not (folder / "out" / "manifest.json").exists()
    assert build(folder, chunk_bytes=20_000) == expected
    assert shard_bytes(folder / "out") == shard_bytes(folder / "whole")


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_training_refuses_records_of_another_vocabulary_or_length(folder):
    manifest = build(folder)
    (folder / "other.txt").write_text("\n".join([*SPECIAL, *WORDS[::-1]]) + "\n")
    fitting = {"vocab_file": folder / "vocab.txt", "vocab_size": 69, "max_seq_length": 32}
    check_manifest(manifest, str(folder / "out"), **fitting)
    for change, message in [
        ({"vocab_size": 70}, "vocabulary of the records in .*out has 69 entries, the model's 70"),
        ({"max_seq_length": 64}, "built with max_seq_length=32, not 64: set --config.data"),
        ({"vocab_file": folder / "other.txt"}, "other.txt is not the vocabulary that the records"),
    ]:
        with pytest.raises(UserError, match=message):
            check_manifest(manifest, str(folder / "out"), **(fitting | change))
    shutil.copy(folder / "other.txt", folder / "out" / "vocab.txt")
    with pytest.raises(UserError, match="out/vocab.txt is not the vocabulary"):
        check_manifest(manifest, str(folder / "out"), **fitting)


def test_accents_are_kept_where_asked(folder):
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, "cafe", "café", "CAFE"]), "utf-8")
    (folder / "text.txt").write_text("Café CAFÉ\n" * 9, "utf-8")
    ids = {
        (True, None): {5},
        (True, True): {5},
        (True, False): {6},
        (False, None): {1},
        (False, True): {1, 7},
    }
    for (lower_case, strip_accents), expected in ids.items():
        options = {"lower_case": lower_case, "strip_accents": strip_accents, "overwrite": True}
        manifest = build(folder, **options)
        stripped = lower_case if strip_accents is None else strip_accents
        assert (manifest["lower_case"], manifest["strip_accents"]) == (lower_case, stripped)
        (example,) = read_examples(folder / "out")
        assert set(example[0]) - {2, 3} == expected


def test_a_build_from_before_there_was_strip_accents_goes_on(folder):
    """Its settings have none, which was as lower_case."""
    manifest = build(folder)
    for name in ("build.jsonl", "manifest.json"):
        path = folder / "out" / name
        content = path.read_text()
        assert '"strip_accents": true,' in content
        path.write_text(content.replace('"strip_accents": true,', ""))
    assert build(folder) == {key: manifest[key] for key in manifest if key != "strip_accents"}
    (folder / "out" / "manifest.json").unlink()
    assert build(folder) == manifest
    with pytest.raises(UserError, match="strip_accents=True, not False"):
        build(folder, strip_accents=False)


def test_records_of_other_settings_are_not_mixed(folder):
    build(folder)
    for options, message in [
        ({"seed": 3}, "built with seed=0, not 3: choose another output directory"),
        ({"max_seq_length": 16}, "max_seq_length=32, not 16"),
        ({"deduplicate": True}, "deduplicate=False, not True"),
    ]:
        with pytest.raises(UserError, match=message):
            build(folder, **options)
    (folder / "text.txt").write_text(TEXT + "\nwaa\n")
    with pytest.raises(UserError, match="built with other input: choose.*text.txt was edited"):
        build(folder)
    (folder / "text.txt").write_text(TEXT.replace("waa", "wab"))  # of the same size
    os.utime(folder / "text.txt", (1, 1))
    with pytest.raises(UserError, match="text.txt was edited"):
        build(folder)
    shutil.copy(folder / "text.txt", folder / "more.txt")
    (folder / "text.txt").write_text(TEXT)
    with pytest.raises(UserError, match="more.txt is new"):
        build(folder, "[tm]*.txt", output="out")
    build(folder, overwrite=True, max_seq_length=16, chunk_bytes=10**6)
    assert len(shard_bytes(folder / "out")) == 1
    (folder / "out" / "build.jsonl").unlink()
    with pytest.raises(UserError, match="built with max_seq_length=unknown"):
        build(folder)


def test_unknown_tokens_are_counted_and_many_are_said(folder, capsys):
    assert build(folder, output="known")["num_unknown"] == 0
    assert "[UNK]" not in capsys.readouterr().out
    (folder / "text.txt").write_text((f"{WORDS[0]} waa other\n" * 5 + "\n") * 99)
    manifest = build(folder)
    assert (
        manifest["num_unknown"]
        == sum(ids.count(1) for ids, _ in read_examples(folder / "out"))
        == 99 * 5
    )
    assert manifest["unknown_words"] == ["other"]
    for _ in range(2):  # the second time there is nothing to do
        assert build(folder) == manifest
        said = capsys.readouterr().out.splitlines()[-1]
        assert "warning: 28.6% of the text's tokens are [UNK] (other)" in said


def test_packed_and_json_text_give_the_same_shards(folder):
    expected = build(folder, output="plain", chunk_bytes=10**6)
    (folder / "text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    (folder / "text.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    lines = "".join(json.dumps({"text": "\n".join(lines)}) + "\n" for lines in DOCUMENTS)
    (folder / "text.jsonl").write_text(lines)
    (folder / "text.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("text.txt.gz", "text.txt.xz", "text.jsonl", "text.jsonl.gz"):
        manifest = build(folder, name, output=name + ".out", chunk_bytes=10**6)
        assert manifest["num_records"] == expected["num_records"]
        assert shard_bytes(folder / f"{name}.out") == shard_bytes(folder / "plain")


def test_deduplicate(folder):
    (folder / "twice").mkdir()
    for name, text in (("a.txt", TEXT), ("b.txt", TEXT.replace("\n", "\r\n"))):
        (folder / "twice" / name).write_bytes(text.encode())
    once = build(folder, output="once", chunk_bytes=10**6)
    assert build(folder, "twice", output="two")["num_documents"] == 2 * len(DOCUMENTS)
    found = build(folder, "twice", output="found", deduplicate=True, chunk_bytes=10**6)
    assert found["num_documents"] == len(DOCUMENTS)
    assert found["num_tokens"] == once["num_tokens"]
    assert shard_bytes(folder / "found") == shard_bytes(folder / "once")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_rule": "bert"}, "segment_rule is 'bert': choose electra or convbert"),
        ({"max_seq_length": 7}, "max_seq_length is 7"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"output": "."}, "text.txt, of the input, lies in output_dir"),
    ],
)
def test_impossible_options(folder, options, message):
    with pytest.raises(UserError, match=message):
        build(folder, **options)
