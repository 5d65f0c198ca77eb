"""Records written, read, padded and refused."""

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.data import records

FEATURES = {"input_ids": [2, 7, 8, 3], "segment_ids": [0, 0, 1, 1]}


def parse(*features, schema=records.PRETRAINING, max_seq_length=6, **options):
    serialized = tf.constant([records.encode(each) for each in features])
    return records.parse(serialized, schema, max_seq_length, **options)


@pytest.mark.parametrize("length", [0, 1, 41, 42, 50, 127, 128, 5461, 9000])
def test_packed_records_are_the_same_bytes(length):
    edges = [0, 1, 127, 128, 16383, 16384, 30521, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 1]
    ids = np.resize(np.append(edges, np.random.default_rng(0).integers(0, 30522, 99)), length)
    packed, places = records.pack(ids)
    assert len(places) == length + 1 and places[-1] == len(packed)
    half = length // 2
    features = {"segment_ids": ids[half:].tolist(), "input_ids": ids[:half].tolist()}
    bytes_of = {"segment_ids": packed[places[half] :], "input_ids": packed[: places[half]]}
    assert records.encode_packed(bytes_of) == records.encode(features)


def test_parse_pads_and_makes_the_mask():
    batch = parse(FEATURES, {"input_ids": [2, 3], "segment_ids": [0, 0]})
    assert batch.keys() == {"input_ids", "input_mask", "segment_ids"}
    assert all(values.dtype == tf.int32 for values in batch.values())
    assert batch["input_ids"].numpy().tolist() == [[2, 7, 8, 3, 0, 0], [2, 3, 0, 0, 0, 0]]
    assert batch["segment_ids"].numpy().tolist() == [[0, 0, 1, 1, 0, 0], [0] * 6]
    assert batch["input_mask"].numpy().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_parse_keeps_the_mask_of_padded_records():
    padded = {"input_ids": [2, 7, 3, 0, 0], "segment_ids": [0] * 5, "input_mask": [1, 1, 1, 0, 0]}
    assert parse(padded)["input_mask"].numpy().tolist() == [[1, 1, 1, 0, 0, 0]]


def test_parse_casts_scalars_by_schema():
    batch = parse(FEATURES | {"example_id": 5, "label_ids": 2.5}, schema=records.REGRESSION)
    assert batch["example_id"].dtype == tf.int32 and batch["example_id"].numpy() == [5]
    assert batch["label_ids"].dtype == tf.float32 and batch["label_ids"].numpy() == [2.5]
    batch = parse(FEATURES | {"example_id": 5, "label_ids": 1}, schema=records.CLASSIFICATION)
    assert batch["label_ids"].dtype == tf.int32 and batch["label_ids"].numpy() == [1]


def test_parse_in_a_graph_has_a_static_length():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def parse_in_graph(serialized):
        batch = records.parse(serialized, records.PRETRAINING, 5)
        assert batch["input_ids"].shape.as_list() == [None, 5]
        return batch

    batch = parse_in_graph(tf.constant([records.encode(FEATURES)]))
    assert batch["input_ids"].numpy().tolist() == [[2, 7, 8, 3, 0]]


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (FEATURES, {"max_seq_length": 3}, "longer than max_seq_length"),
        (FEATURES, {"vocab_size": 8}, "outside the vocabulary"),
        ({"tokens": [1]}, {}, "no input_ids"),
        (FEATURES, {"schema": records.CLASSIFICATION}, "example_id"),
    ],
)
def test_parse_refuses(features, options, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        parse(features, **options)


def test_vocabulary_of_exactly_the_size_is_accepted():
    assert parse(FEATURES, vocab_size=9)["input_ids"].shape == (1, 6)


def test_write_and_read(tmp_path):
    path = tmp_path / "new" / "a.tfrecord"
    assert records.write(path, iter([b"one", b"two"])) == 2
    assert records.read(str(path)) == [b"one", b"two"]
    assert [entry.name for entry in path.parent.iterdir()] == ["a.tfrecord"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    def failing():
        yield b"new"
        raise RuntimeError("broken off")

    path = tmp_path / "a.tfrecord"
    records.write(path, [b"old"])
    with pytest.raises(RuntimeError, match="broken off"):
        records.write(path, failing())
    assert records.read(str(path)) == [b"old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tfrecord"]


def test_read_names_what_is_wrong(tmp_path):
    path = tmp_path / "a.tfrecord"
    with pytest.raises(UserError, match=r"a.tfrecord is not there"):
        records.read(str(path))
    records.write(path, [b"one", b"two", b"three"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"a.tfrecord is damaged: record 3 at byte 38 is cut off"):
        records.read(str(path))
