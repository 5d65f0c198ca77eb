"""Streams of batches: what comes when, and that nothing else has to be read for it."""

import json

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.data import input_pipeline, records

LENGTH = 40
COUNTS = [7, 5, 9, 4, 8, 6, 3]  # 42 records in 7 shards


def make_record(number, length, **scalars):
    """A record whose second token tells its number."""
    ids = [2, 100 + number, *[5] * (length - 3), 3]
    return records.encode({"input_ids": ids, "segment_ids": [0] * length, **scalars})


def write_shards(folder, counts=COUNTS):
    shards, number = [], 0
    for index, count in enumerate(counts):
        path = folder / f"shard-{index:05d}.tfrecord"
        records.write(path, [make_record(number + i, 4 + (number + i) % 30) for i in range(count)])
        number += count
        shards.append({"file": path.name, "records": count, "file_bytes": path.stat().st_size})
    manifest = {"format": 1, "max_seq_length": LENGTH, "num_records": number, "shards": shards}
    manifest |= {"vocab_size": 0, "vocab_sha256": "", "lower_case": True}  # not looked at here
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


def pretraining(folder, batch_size=4, seed=1, **options):
    options = {"max_seq_length": LENGTH, "shards_per_round": 3} | options
    return input_pipeline.pretraining_dataset(
        str(folder), batch_size=batch_size, seed=seed, **options
    )


def take(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def numbers(batches):
    return np.concatenate([batch["input_ids"][:, 1] - 100 for batch in batches]).tolist()


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def context(pipelines, pipeline, replicas):
    return tf.distribute.InputContext(pipelines, pipeline, replicas)


def test_pretraining_batch_has_static_shapes_and_right_values(data_dir):
    dataset = pretraining(data_dir)
    shapes = {name: spec.shape.as_list() for name, spec in dataset.element_spec.items()}
    assert shapes.pop("uniforms") == [4, 3, LENGTH]
    assert shapes == dict.fromkeys(["input_ids", "input_mask", "segment_ids"], [4, LENGTH])
    (batch,) = take(dataset, 1)
    for ids, mask in zip(batch["input_ids"], batch["input_mask"], strict=True):
        length = 4 + (ids[1] - 100) % 30
        assert ids[length - 1] == 3 and not ids[length:].any()
        assert mask.tolist() == [1] * length + [0] * (LENGTH - length)
    assert batch["uniforms"].min() >= 0 and batch["uniforms"].max() < 1
    assert len(np.unique(batch["uniforms"])) > 0.99 * batch["uniforms"].size


def test_every_record_once_an_epoch_and_epochs_in_different_orders(data_dir):
    order = numbers(take(pretraining(data_dir), 21))  # 84 records: 2 epochs, not cut at a batch
    assert sorted(order[:42]) == sorted(order[42:]) == list(range(42))
    assert order[:42] != order[42:]
    assert order[:42] != sorted(order[:42])


def test_a_round_mixes_its_shards_and_holds_no_others(data_dir):
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    order = shard_of[numbers(take(pretraining(data_dir, batch_size=1), 42))]
    seen = set(order[: sum(COUNTS[shard] for shard in dict.fromkeys(order[:8].tolist()))])
    assert len(seen) == 3
    assert np.count_nonzero(np.diff(order)) > 12  # shuffled, not shard after shard


def test_a_round_is_shuffled_anew_in_every_epoch_and_for_every_seed(tmp_path):
    write_shards(tmp_path, counts=[42])  # so that the order of shards plays no part
    first = numbers(take(pretraining(tmp_path), 21))
    other = numbers(take(pretraining(tmp_path, seed=2), 10))
    assert first[:40] != other and first[:40] != first[42:82]


def test_seed_decides(data_dir):
    assert_same(take(pretraining(data_dir), 3), take(pretraining(data_dir), 3))
    first, other = take(pretraining(data_dir), 9), take(pretraining(data_dir, seed=2), 9)
    assert numbers(first) != numbers(other)
    assert not np.isclose(first[0]["uniforms"], other[0]["uniforms"]).any(axis=-1).all()


@pytest.mark.parametrize("start", [4, 5, 11, 30])
def test_resumed_stream_is_the_uninterrupted_one(data_dir, start):
    whole = take(pretraining(data_dir), 40)
    assert_same(take(pretraining(data_dir, start_step=start), 40 - start), whole[start:])


def test_a_stream_of_another_batch_size_goes_on_at_its_record(data_dir):
    whole = numbers(take(pretraining(data_dir, batch_size=4), 20))
    resumed = take(pretraining(data_dir, batch_size=6, start_step=7, start_record=28), 8)
    assert numbers(resumed) == whole[28 : 28 + 48]


def test_resuming_opens_no_earlier_shard(tmp_path):
    write_shards(tmp_path)
    whole = take(pretraining(tmp_path, batch_size=1, shards_per_round=1), 42)
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    order = list(dict.fromkeys(shard_of[numbers(whole)].tolist()))
    start = sum(COUNTS[shard] for shard in order[:4]) + 1
    for shard in order[:4]:
        path = tmp_path / f"shard-{shard:05d}.tfrecord"
        path.write_bytes(b"x" * path.stat().st_size)
    resumed = pretraining(tmp_path, batch_size=1, shards_per_round=1, start_step=start)
    assert_same(take(resumed, 42 - start), whole[start:])


@pytest.mark.parametrize(("pipelines", "replicas"), [(1, 2), (2, 4)])
@pytest.mark.parametrize("make", [pretraining, "evaluation", "finetuning"])
def test_replicas_together_read_the_global_batch(data_dir, make, pipelines, replicas):
    def dataset(input_context=None):
        if make == pretraining:
            return pretraining(data_dir, batch_size=8, input_context=input_context)
        if make == "evaluation":
            return evaluation(data_dir, batch_size=8, input_context=input_context)
        return finetuning(batch_size=8, input_context=input_context)

    local = replicas // pipelines
    streams = [take(dataset(context(pipelines, w, replicas)), 3 * local) for w in range(pipelines)]
    joined = []
    for step in range(3):
        parts = [part for s in streams for part in s[step * local : (step + 1) * local]]
        assert len(parts) == replicas
        joined.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    assert_same(joined, take(dataset(), 3))


def test_batch_must_divide_among_replicas(data_dir):
    with pytest.raises(UserError, match="batch of 8 is not a multiple of the 3 replicas: use 6"):
        pretraining(data_dir, batch_size=8, input_context=context(1, 0, 3))


def evaluation(folder, batch_size=8, **options):
    return input_pipeline.evaluation_dataset(
        str(folder), batch_size=batch_size, max_seq_length=LENGTH, seed=3, **options
    )


def test_evaluation_is_in_file_order_and_finite(data_dir):
    batches = take(evaluation(data_dir), 99)
    assert numbers(batches) == list(range(40))
    assert numbers(take(evaluation(data_dir, num_batches=2), 99)) == list(range(16))
    assert_same(batches, take(evaluation(data_dir), 99))
    assert not np.array_equal(batches[0]["uniforms"], batches[1]["uniforms"])
    with pytest.raises(UserError, match="holds 42 records, fewer than one batch of 64"):
        evaluation(data_dir, batch_size=64)


def test_manifest_errors(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json is not there: build the records first"):
        input_pipeline.load_manifest(tmp_path)
    write_shards(tmp_path)
    with pytest.raises(UserError, match="up to 40 tokens long, more than max_seq_length=32"):
        pretraining(tmp_path, max_seq_length=32)
    (tmp_path / "shard-00002.tfrecord").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00002.tfrecord is 0 bytes long, not \d+"):
        input_pipeline.load_manifest(tmp_path)
    (tmp_path / "shard-00002.tfrecord").unlink()
    with pytest.raises(UserError, match=r"shard-00002.tfrecord is missing"):
        input_pipeline.load_manifest(tmp_path)
    for content in ("{", "[]", "{}", '{"format": 1, "num_records": 0, "shards": []}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest.json is no manifest"):
            input_pipeline.load_manifest(tmp_path)


def test_a_damaged_shard_stops_the_stream_and_is_named(tmp_path):
    path = write_shards(tmp_path) / "shard-00003.tfrecord"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError) as caught:
        take(pretraining(tmp_path), 21)
    found = input_pipeline.explain(caught.value, [str(tmp_path)], LENGTH)
    assert isinstance(found, UserError)
    assert "shard-00003.tfrecord is damaged: record 4 at byte 330 has a wrong" in str(found)


def test_ids_outside_the_vocabulary_stop_the_stream_and_the_shard_is_named(data_dir):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        take(pretraining(data_dir, vocab_size=120), 21)
    found = str(input_pipeline.explain(caught.value, [str(data_dir)], LENGTH, vocab_size=120))
    assert "shard-00002.tfrecord, record 9: A record has a token id outside the voc" in found
    assert found.endswith("built with another vocab.txt.")
    assert input_pipeline.explain(caught.value, [str(data_dir)], LENGTH) is caught.value


def test_a_shard_exchanged_for_one_of_the_same_size_is_noticed(tmp_path):
    write_shards(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][0]["records"] -= 1
    manifest["shards"][1]["records"] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(tf.errors.InvalidArgumentError, match="does not match its manifest") as e:
        take(pretraining(tmp_path), 21)
    found = str(input_pipeline.explain(e.value, [str(tmp_path)], LENGTH))
    assert "shard-00000.tfrecord holds 7 records, not 6" in found


def examples(count=403):
    lengths = np.random.default_rng(0).integers(4, LENGTH, count)
    return [
        make_record(i, int(length), example_id=i, label_ids=i % 3)
        for i, length in enumerate(lengths)
    ]


EXAMPLES = examples()


def finetuning(batch_size=4, max_seq_length=LENGTH, seed=1, source=None, **options):
    return input_pipeline.finetuning_dataset(
        source or EXAMPLES,
        records.CLASSIFICATION,
        batch_size=batch_size,
        max_seq_length=max_seq_length,
        seed=seed,
        **options,
    )


@pytest.mark.parametrize("bucket", [True, False])
def test_finetuning_epochs(bucket):
    steps = input_pipeline.steps_per_epoch(EXAMPLES, 4)
    assert steps == 100
    batches = take(finetuning(bucket=bucket, num_epochs=2), 999)
    assert len(batches) == 2 * steps
    first, second = numbers(batches[:steps]), numbers(batches[steps:])
    assert len(set(first)) == len(set(second)) == 400
    assert set(first) != set(second)  # other records are left over each time
    for batch in batches:
        np.testing.assert_array_equal(batch["example_id"], batch["input_ids"][:, 1] - 100)
        np.testing.assert_array_equal(batch["label_ids"], batch["example_id"] % 3)


def test_buckets_are_padded_only_to_their_own_length():
    batches = take(finetuning(), 100)
    for batch in batches:
        longest = batch["input_mask"].sum(axis=1).max()
        assert batch["input_ids"].shape[1] == min(-(-longest // 4) * 4, LENGTH)
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert set(lengths) <= set(range(4, LENGTH + 1, 4)) and len(set(lengths)) > 7
    assert np.count_nonzero(np.diff(lengths) < 0) > 10  # the batches are shuffled in turn
    spread = [np.ptp(batch["input_mask"].sum(axis=1)) for batch in batches]
    unsorted = [np.ptp(b["input_mask"].sum(axis=1)) for b in take(finetuning(bucket=False), 100)]
    assert np.mean(spread) < 2 < 10 < np.mean(unsorted)
    assert finetuning(bucket=False).element_spec["input_ids"].shape.as_list() == [4, LENGTH]
    assert finetuning().element_spec["input_ids"].shape.as_list() == [4, None]


@pytest.mark.parametrize("start", [99, 137])
def test_resumed_finetuning_is_the_uninterrupted_one(start):
    whole = take(finetuning(), 150)
    assert_same(take(finetuning(start_step=start), 150 - start), whole[start:])
    assert len(take(finetuning(start_step=start, num_epochs=2), 999)) == 200 - start


def test_finetuning_errors(tmp_path):
    with pytest.raises(UserError, match="data set holds 403 records, fewer than one batch of 404"):
        finetuning(batch_size=404)
    records.write(tmp_path / "train.tfrecord", EXAMPLES)
    with pytest.raises(
        UserError, match=r"train.tfrecord, record 1: A record is longer than max_seq_length"
    ):
        finetuning(source=tmp_path / "train.tfrecord", max_seq_length=32)


def test_records_stored_with_padding_are_cut_to_their_bucket():
    stored = [
        records.encode(
            {
                "input_ids": [2, 100 + i, 3] + [0] * (LENGTH - 3),
                "input_mask": [1] * 3 + [0] * (LENGTH - 3),
                "segment_ids": [0] * LENGTH,
                "example_id": i,
                "label_ids": 0,
            }
        )
        for i in range(4)
    ]
    (batch,) = take(finetuning(source=stored, num_epochs=1), 9)
    assert batch["input_ids"].shape == (4, 4)
    assert batch["input_mask"].sum() == 12


@pytest.mark.parametrize("bucket", [True, False])
def test_prediction_gives_every_record_once(bucket):
    batches = take(prediction(batch_size=16, bucket=bucket), 999)
    weights = np.concatenate([batch["example_weights"] for batch in batches])
    ids = np.concatenate([batch["example_id"] for batch in batches])
    assert len(batches) == 26 and weights.dtype == np.float32
    assert weights.tolist() == [1] * 403 + [0] * 13
    assert sorted(ids[:403]) == list(range(403))
    assert set(ids[403:]) == {ids[402]}
    lengths = np.concatenate([batch["input_mask"].sum(axis=1) for batch in batches])
    assert (np.diff(lengths) <= 0).all()
    widths = {batch["input_ids"].shape[1] for batch in batches}
    assert widths == (set(range(4, LENGTH + 1, 4)) if bucket else {LENGTH})


def prediction(batch_size, **options):
    return input_pipeline.prediction_dataset(
        EXAMPLES, records.CLASSIFICATION, batch_size=batch_size, max_seq_length=LENGTH, **options
    )


def test_prediction_in_replicas():
    parts = [take(prediction(16, input_context=context(2, w, 2)), 99) for w in range(2)]
    found = [part["example_id"] for pair in zip(*parts, strict=True) for part in pair]
    expected = [batch["example_id"] for batch in take(prediction(16), 99)]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
    with pytest.raises(UserError, match="holds no records"):
        input_pipeline.prediction_dataset([], {}, batch_size=2, max_seq_length=LENGTH)
