"""The TFRecord schema: how an example is written and how a batch of them is read, side by side.

A record is a `tf.train.Example`. Token sequences are stored without padding; `input_mask` is not
stored, since it follows from the length. Records of the original ConvBERT builder (padded, with an
`input_mask` of their own) are read as well.
"""

import contextlib
import os

import tensorflow as tf

from convbert_tf.console import UserError

# A schema gives the dtype of every scalar feature that goes with the two token sequences.
PRETRAINING = {}
CLASSIFICATION = {"example_id": tf.int64, "label_ids": tf.int64}
REGRESSION = {"example_id": tf.int64, "label_ids": tf.float32}
SQUAD = {
    "example_id": tf.int64,
    "start_positions": tf.int64,
    "end_positions": tf.int64,
    "is_impossible": tf.int64,
}

_SEQUENCES = ("input_ids", "segment_ids", "input_mask")


def encode(features):
    """Serialises `features` (name -> int or float, or a sequence of ints) to an Example's bytes."""
    example = tf.train.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, float):
            feature.float_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.int64_list.value.extend(value)
    return example.SerializeToString(deterministic=True)


def parse(serialized, schema, max_seq_length, vocab_size=None):
    """Parses a batch of records and pads it to `max_seq_length`.

    Args:
        serialized: string tensor [B] of Examples.
        schema: scalar features to read beside the sequences, name -> dtype.
        max_seq_length: T, an int: the static length of the result.
        vocab_size: if given, ids at or above it raise `InvalidArgumentError`.

    Returns:
        `input_ids`, `input_mask`, `segment_ids` int32 [B, T]; each scalar feature as int32 or
        float32 [B].

    Raises:
        tf.errors.InvalidArgumentError: a record is longer than T, has an id outside the
            vocabulary, or lacks a feature of the schema.
    """
    spec = {name: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64) for name in _SEQUENCES}
    spec |= {name: tf.io.FixedLenFeature([], dtype) for name, dtype in schema.items()}
    parsed = tf.io.parse_example(serialized, spec)
    ids, stored_mask = parsed["input_ids"], parsed["input_mask"]
    checks = _length_checks(ids, max_seq_length) + _vocabulary_checks(ids, vocab_size)
    with tf.control_dependencies(checks):
        batch = {
            name: tf.cast(parsed[name].to_tensor(shape=[None, max_seq_length]), tf.int32)
            for name in ("input_ids", "segment_ids")
        }
    lengths = tf.where(
        stored_mask.row_lengths() > 0, tf.reduce_sum(stored_mask, axis=1), ids.row_lengths()
    )
    batch["input_mask"] = tf.sequence_mask(lengths, max_seq_length, dtype=tf.int32)
    for name, dtype in schema.items():
        batch[name] = tf.cast(parsed[name], tf.float32 if dtype == tf.float32 else tf.int32)
    return batch


def _length_checks(ids, max_seq_length):
    longest = tf.reduce_max(ids.row_lengths())
    return [
        tf.debugging.assert_less_equal(
            longest,
            tf.cast(max_seq_length, tf.int64),
            message="A record is longer than max_seq_length: build the records again at this "
            "length, or raise max_seq_length.",
        ),
        tf.debugging.assert_greater(
            tf.reduce_min(ids.row_lengths()),
            tf.constant(0, tf.int64),
            message="A record has no input_ids: these are not ConvBERT records.",
        ),
    ]


def _vocabulary_checks(ids, vocab_size):
    if vocab_size is None:
        return []
    return [
        tf.debugging.assert_less(
            tf.reduce_max(ids.flat_values),
            tf.cast(vocab_size, tf.int64),
            message="A record has a token id outside the vocabulary: these records were built "
            "with another vocab.txt.",
        )
    ]


def write(path, serialized):
    """Writes `serialized` records (an iterable of bytes) to `path`, whole or not at all.

    Returns:
        The number of records written.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.partial-{os.getpid()}"
    count = 0
    try:
        with tf.io.TFRecordWriter(partial) as writer:
            for record in serialized:
                writer.write(record)
                count += 1
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return count


def read(path):
    """All serialised records of the file at `path` as a list of bytes.

    Raises:
        UserError: the file is missing, or damaged; names the file and the record.
    """
    if not os.path.exists(path):
        raise UserError(f"{path} is not there; build the records first.")
    try:
        batches = tf.data.TFRecordDataset(path).batch(1024).as_numpy_iterator()
        return [record for batch in batches for record in batch.tolist()]
    except tf.errors.DataLossError as error:
        raise UserError(
            f"{path} is damaged after record {_count_whole(path)}: {error.message}; delete it and "
            "build it again."
        ) from error


def _count_whole(path):
    """The number of records before the first damaged one."""
    count = 0
    with contextlib.suppress(tf.errors.DataLossError):
        for _ in tf.data.TFRecordDataset(path):
            count += 1
    return count
