"""Damaged shards: found with file, record and byte, and read around."""

import hashlib
import json

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.data import input_pipeline, records, shards
from tests.data.input_pipeline_test import (
    COUNTS,
    LENGTH,
    assert_same,
    evaluation,
    numbers,
    pretraining,
    take,
    write_shards,
)


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path)


def offsets(path):
    """Where each record of a file begins, and its end."""
    content, places = path.read_bytes(), [0]
    while places[-1] < len(content):
        length = int.from_bytes(content[places[-1] : places[-1] + 8], "little")
        places.append(places[-1] + 12 + length + 4)
    return places


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_what_a_build_without_a_shard_leaves(tmp_path):
    def fail(folder, *names):
        with pytest.raises(KeyError), shards.undone_without_shards(str(folder)):
            for name in names:
                (folder / name).write_bytes(b"")
            raise KeyError
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else None

    files = ("vocab.txt", "build.jsonl", "shard-00000.tfrecord.partial-1-a")
    assert fail(tmp_path / "a" / "b", *files) is None and not (tmp_path / "a").exists()
    assert fail(tmp_path, *files, "mine.txt") == ["mine.txt"]
    left = {*files, "mine.txt", "shard-00001.tfrecord"}
    assert set(fail(tmp_path, *files, "shard-00001.tfrecord")) == left
    (tmp_path / "shard-00001.tfrecord").unlink()  # vocab.txt is an earlier one from here on
    assert fail(tmp_path, *files) == ["mine.txt", "vocab.txt"]


def test_salvage_reads_a_whole_file(folder):
    path = folder / "shard-00002.tfrecord"
    found, damages = records.salvage(str(path))
    assert found == records.read(str(path)) and len(found) == 9 and damages == []
    (folder / "empty").write_bytes(b"")
    assert records.salvage(str(folder / "empty")) == ([], [])


@pytest.mark.parametrize("part", ["body", "body's checksum"])
def test_a_flipped_bit_costs_one_record(folder, part):
    path = folder / "shard-00002.tfrecord"
    whole, places = records.read(str(path)), offsets(path)
    flip(path, places[4] + 20 if part == "body" else places[5] - 1)
    found, damages = records.salvage(str(path))
    assert found == [*whole[:4], None, *whole[5:]]
    assert damages == [(4, places[4], "has a wrong checksum")]
    with pytest.raises(UserError, match=f"is damaged: record 5 at byte {places[4]} has a wrong ch"):
        records.read(str(path))


@pytest.mark.parametrize("place", [0, 6, 9])
def test_a_flipped_bit_in_a_length_hides_the_rest(folder, place):
    path = folder / "shard-00002.tfrecord"
    whole, places = records.read(str(path)), offsets(path)
    flip(path, places[4] + place)
    found, damages = records.salvage(str(path))
    assert found == [*whole[:4], None]
    ((number, offset, reason),) = damages
    assert (number, offset) == (4, places[4]) and "wrong length" in reason


@pytest.mark.parametrize("missing", [1, 30, 200])
def test_a_file_that_is_cut_off(folder, missing):
    path = folder / "shard-00002.tfrecord"
    whole, places = records.read(str(path)), offsets(path)
    path.write_bytes(path.read_bytes()[:-missing])
    kept = sum(place <= path.stat().st_size for place in places) - 1
    found, damages = records.salvage(str(path))
    assert found == [*whole[:kept], None]
    assert damages == [(kept, places[kept], "is cut off")]
    with pytest.raises(
        UserError, match=f"bytes long, not .*: record {kept + 1} at byte .* cut off"
    ):
        shards.load_manifest(str(folder))


def test_damaged_records_are_replaced_by_their_neighbours_and_nothing_else_moves(folder):
    whole = numbers(take(pretraining(folder), 21))
    path, cut = folder / "shard-00002.tfrecord", folder / "shard-00004.tfrecord"
    flip(path, offsets(path)[4] + 20)
    flip(path, offsets(path)[5] + 20)
    cut.write_bytes(cut.read_bytes()[:-5])
    damaged = {}
    batches = take(pretraining(folder, damaged=damaged), 21)
    first, last = sum(COUNTS[:2]) + 4, sum(COUNTS[:5]) - 1
    instead = {first: first + 2, first + 1: first + 2, last: sum(COUNTS[:4])}
    assert numbers(batches) == [instead.get(number, number) for number in whole]
    assert set(damaged) == {(str(path), 4), (str(path), 5), (str(cut), 7)}
    assert damaged[str(path), 4].offset == offsets(path)[4]
    # Resumed, in the same place; kept in memory, the same.
    resumed = pretraining(folder, start_step=13, damaged={})
    assert_same(take(resumed, 8), batches[13:])
    assert_same(take(pretraining(folder, damaged={}, cache=True), 21), batches)
    found = numbers(take(evaluation(folder, damaged=damaged), 99))
    assert found == [instead.get(number, number) for number in range(40)]


def test_a_shard_without_a_whole_record_or_with_too_many_is_refused(folder):
    path = folder / "shard-00000.tfrecord"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(tf.errors.OpError, match="shard-00000.tfrecord holds no whole record"):
        take(pretraining(folder, damaged={}), 21)
    records.write(path, records.read(str(folder / "shard-00002.tfrecord")))
    with pytest.raises(tf.errors.OpError, match="shard-00000.tfrecord holds more than the 7 rec"):
        take(pretraining(folder, damaged={}), 21)
    arguments = ([str(folder)], LENGTH)
    found = input_pipeline.explain(ValueError(), *arguments, damage_allowed=True)
    assert "holds 9 records, not 7" in str(found)


def test_an_empty_shard_is_no_obstacle(tmp_path):
    write_shards(tmp_path)
    whole = take(pretraining(tmp_path, shards_per_round=1), 21)
    (tmp_path / "shard-00007.tfrecord").write_bytes(b"")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"].insert(3, {"file": "shard-00007.tfrecord", "records": 0, "file_bytes": 0})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert_same(take(pretraining(tmp_path, shards_per_round=1), 21), whole)


def test_records_kept_in_memory_come_as_those_read_from_disk(folder):
    whole = take(pretraining(folder), 21)
    cached = pretraining(folder, cache=True, start_step=3)
    for path in folder.glob("*.tfrecord"):
        path.unlink()
    assert_same(take(cached, 18), whole[3:])


def test_features_are_those_of_a_manifest_or_refused(folder):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(500))]
    content = "".join(f"{piece}\n" for piece in vocab)
    (folder / "vocab.txt").write_text(content)
    (folder / "manifest.json").write_text(
        json.dumps(
            json.loads((folder / "manifest.json").read_text())
            | {"vocab_size": 505, "vocab_sha256": hashlib.sha256(content.encode()).hexdigest()}
        )
    )
    manifest = shards.load_manifest(str(folder))
    parts = list(shards.features(manifest, str(folder)))
    assert [len(part["input_ids"]) for part in parts] == [count for count in COUNTS if count]
    first = records.parse(records.read(folder / "shard-00000.tfrecord"), {}, LENGTH)
    assert_same(parts[:1], [first])

    def refused(change, *said):
        with pytest.raises(UserError) as error:
            list(shards.features(manifest | change, str(folder)))
        for part in said:
            assert part in str(error.value)
        assert "Condition" not in str(error.value)

    refused({"max_seq_length": 8}, "shard-00000.tfrecord does not fit", "longer than")
    refused({"vocab_size": 20}, "shard-00000.tfrecord does not fit", "outside the vocabulary")
    more = [each | {"records": each["records"] + 1} for each in manifest["shards"]]
    refused({"shards": more}, f"it holds {COUNTS[0]} records, not {COUNTS[0] + 1}")
    swapped = [*vocab[:5], vocab[6], vocab[5], *vocab[7:]]  # ids would name other pieces
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in swapped))
    refused({}, "vocab.txt is not the vocabulary that the records")


@pytest.mark.parametrize("name", ["max_seq_length", "vocab_size", "vocab_sha256", "lower_case"])
def test_a_manifest_without_a_value_is_none(folder, name):
    manifest = json.loads((folder / "manifest.json").read_text())
    for wrong in ({}, {name: None}, {name: "128" if name != "vocab_sha256" else 1}):
        rest = {key: value for key, value in manifest.items() if key != name}
        (folder / "manifest.json").write_text(json.dumps(rest | wrong))
        with pytest.raises(UserError, match="is no manifest of this version"):
            shards.load_manifest(str(folder))


def test_checksums_are_tensorflows(tmp_path):
    random = np.random.default_rng(0)
    written = [random.bytes(int(n)) for n in random.integers(0, 3000, 50)] + [b""]
    records.write(tmp_path / "a.tfrecord", written)
    assert records.salvage(str(tmp_path / "a.tfrecord")) == (written, [])
