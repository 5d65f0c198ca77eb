"""The TFRecord schema: how an example is written and how a batch of them is read, side by side.

A record is a `tf.train.Example`. Token sequences are stored without padding; `input_mask` is not
stored, since it follows from the length. Records of the original ConvBERT builder (padded, with an
`input_mask` of their own) are read as well.
"""

import collections
import functools
import os

import numpy as np
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.files import atomic_path

# A schema maps each feature beside the two token sequences to its kind: the dtype of a scalar, the
# tf.TensorSpec of a vector of fixed length, or LABELS_OF_TOKENS for a third sequence, of integers,
# which is padded with -1.
LABELS_OF_TOKENS = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
PRETRAINING = {}
CLASSIFICATION = {"example_id": tf.int64, "label_ids": tf.int64}
REGRESSION = {"example_id": tf.int64, "label_ids": tf.float32}
TOKENS = {"example_id": tf.int64, "label_ids": LABELS_OF_TOKENS}
SQUAD = {
    "example_id": tf.int64,
    "start_positions": tf.int64,
    "end_positions": tf.int64,
    "is_impossible": tf.int64,
}

_SEQUENCES = ("input_ids", "segment_ids", "input_mask")


def several_labels(num_classes):
    """The schema of texts that each have any number of `num_classes` labels: 1 for one it has."""
    return {"example_id": tf.int64, "label_ids": tf.TensorSpec([num_classes], tf.int64)}


def is_vector(kind):
    """Whether a feature of this kind in a schema is a vector."""
    return isinstance(kind, tf.TensorSpec)


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


def pack(values):
    """The varints of `values` (int array [n], none negative) end to end, for `encode_packed`.

    Returns:
        The bytes, and a memoryview of n + 1 places: value i is in bytes[places[i] : places[i + 1]].
    """
    rest, parts, used = np.asarray(values), [], []
    more = np.ones(len(rest), bool)
    while not parts or more.any():
        used.append(more)
        seven_bits, rest = rest & 0x7F, rest >> 7
        more = rest > 0
        parts.append((seven_bits | more * np.int32(0x80)).astype(np.uint8))
    lengths = sum(byte.astype(np.int64) for byte in used)
    places = np.append(0, np.cumsum(lengths))
    return np.stack(parts, axis=1)[np.stack(used, axis=1)].tobytes(), places.data


def encode_packed(features):
    """`encode` of integer sequences that went through `pack` before (name -> bytes).

    The same bytes, without another look at each token.
    """
    entries = [_before(name, len(packed)) + packed for name, packed in sorted(features.items())]
    content = b"".join(entries)
    return _prefix(1, len(content)) + content


@functools.lru_cache(maxsize=1 << 16)
def _before(name, size):
    """The bytes in front of the `size` bytes of packed values in a feature's entry."""
    values = bytes(size)
    feature = _field(3, _field(1, values) if values else values)  # Int64List.value in int64_list
    entry = _field(1, _field(1, name.encode()) + _field(2, feature))  # key and value of the map
    return entry[: len(entry) - size]


def _field(number, content):
    """A length-delimited protocol buffer field."""
    return _prefix(number, len(content)) + content


@functools.lru_cache(maxsize=1 << 16)
def _prefix(number, size):
    prefix = bytearray([number << 3 | 2])
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(prefix) + bytes([size])


def parse(serialized, schema, max_seq_length, vocab_size=None):
    """Parses a batch of records and pads it to `max_seq_length`.

    Args:
        serialized: string tensor [B] of Examples.
        schema: features to read beside the two sequences, see above.
        max_seq_length: T, an int: the static length of the result.
        vocab_size: if given, ids at or above it raise `InvalidArgumentError`.

    Returns:
        `input_ids`, `input_mask`, `segment_ids` int32 [B, T]; each scalar feature as int32 or
        float32 [B], a vector of C as int32 [B, C], labels of tokens as int32 [B, T].

    Raises:
        tf.errors.InvalidArgumentError: a record is longer than T, has an id outside the
            vocabulary, or lacks a feature of the schema, or a label for each of its tokens.
    """
    spec = {name: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64) for name in _SEQUENCES}
    labels = [name for name, kind in schema.items() if kind is LABELS_OF_TOKENS]
    fixed = {name: kind for name, kind in schema.items() if name not in labels}
    spec |= dict.fromkeys(labels, LABELS_OF_TOKENS)
    spec |= {name: _fixed_length(kind) for name, kind in fixed.items()}
    parsed = tf.io.parse_example(serialized, spec)
    ids, stored_mask = parsed["input_ids"], parsed["input_mask"]
    checks = _length_checks(ids, max_seq_length) + _vocabulary_checks(ids, vocab_size)
    checks += [_label_check(ids, parsed[name], name) for name in labels]
    with tf.control_dependencies(checks):
        batch = {
            name: tf.cast(parsed[name].to_tensor(shape=[None, max_seq_length]), tf.int32)
            for name in ("input_ids", "segment_ids")
        }
        for name in labels:
            padded = parsed[name].to_tensor(default_value=-1, shape=[None, max_seq_length])
            batch[name] = tf.cast(padded, tf.int32)
    lengths = tf.where(
        stored_mask.row_lengths() > 0, tf.reduce_sum(stored_mask, axis=1), ids.row_lengths()
    )
    batch["input_mask"] = tf.sequence_mask(lengths, max_seq_length, dtype=tf.int32)
    for name, dtype in fixed.items():
        batch[name] = tf.cast(parsed[name], tf.float32 if dtype == tf.float32 else tf.int32)
    return batch


def _fixed_length(kind):
    return tf.io.FixedLenFeature(*([kind.shape, kind.dtype] if is_vector(kind) else [[], kind]))


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


def _label_check(ids, labels, name):
    return tf.debugging.assert_equal(
        labels.row_lengths(),
        ids.row_lengths(),
        message=f"A record does not have one of {name} for each token.",
    )


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
    count = 0
    with atomic_path(path) as partial, tf.io.TFRecordWriter(partial) as writer:
        for record in serialized:
            writer.write(record)
            count += 1
    return count


def read(path):
    """All serialised records of the file at `path` as a list of bytes.

    Raises:
        UserError: the file is missing, or damaged; names the file, the record and its place.
    """
    if not os.path.exists(path):
        raise UserError(f"{path} is not there; build the records first.")
    try:
        batches = tf.data.TFRecordDataset(path).batch(1024).as_numpy_iterator()
        return [record for batch in batches for record in batch.tolist()]
    except tf.errors.DataLossError as error:
        damages = salvage(path)[1]
        reason = damages[0].text if damages else error.message
        raise UserError(f"{path} is damaged: {reason}; delete it and build it again.") from error


# --- damaged files ---


class Damage(collections.namedtuple("Damage", "number offset reason")):
    """Record `number` (from 0) at byte `offset` of a file cannot be read."""

    @property
    def text(self):
        return f"record {self.number + 1} at byte {self.offset} {self.reason}"


def salvage(path):
    """Reads the undamaged records of a TFRecord file.

    A record is stored as its length (8 bytes), the checksum of the length (4), its bytes, and their
    checksum (4). A wrong byte damages one record only, unless it is in a length: the start of the
    next record is unknown then, and the rest of the file is lost.

    Returns:
        A list of the records' bytes, None for a damaged one, up to the last record found; and the
        list of Damages.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        content = np.frombuffer(file.read(), np.uint8)
    starts, lengths, end = [], [], 0
    while end + 12 <= len(content):
        starts.append(end)
        lengths.append(int.from_bytes(content[end : end + 8].tobytes(), "little"))
        end += 12 + lengths[-1] + 4
    starts = np.array(starts, np.int64)
    # Lengths are trusted up to the first with a wrong checksum, or past the end of the file.
    headers = _checksums_right(content, starts, np.full(len(starts), 8))
    whole = len(starts) if headers.all() else int(np.argmin(headers))
    cut_off = whole == len(starts) and end != len(content)
    if cut_off and end > len(content):
        whole -= 1
    lengths = np.array(lengths[:whole], np.int64)
    bodies = starts[:whole] + 12
    right = _checksums_right(content, bodies, lengths)
    found = [
        content[a : a + n].tobytes() if ok else None
        for a, n, ok in zip(bodies, lengths, right, strict=True)
    ]
    wrong = np.flatnonzero(~right)
    damages = [Damage(int(i), int(starts[i]), "has a wrong checksum") for i in wrong]
    if cut_off or whole < len(starts):
        offset = int(starts[whole]) if whole < len(starts) else end
        reason = "is cut off" if cut_off else "has a wrong length, which hides all after it"
        damages.append(Damage(whole, offset, reason))
        found.append(None)
    return found, damages


def _checksums_right(content, starts, lengths):
    """Whether the masked CRC-32C behind content[start : start + length] is right, bool [N].

    All records go byte by byte together, so a file takes as many steps as its longest record has.
    """
    table = _crc_table()
    crc = np.full(len(starts), 0xFFFFFFFF, np.uint32)
    alive = np.arange(len(starts))
    for i in range(max(lengths, default=0)):
        alive = alive[lengths[alive] > i]
        old = crc[alive]
        crc[alive] = table[(old ^ content[starts[alive] + i]) & 0xFF] ^ (old >> 8)
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    stored = content[(starts + lengths)[:, None] + np.arange(4)].astype(np.uint32)
    return masked == (stored << np.array([0, 8, 16, 24], np.uint32)).sum(axis=1, dtype=np.uint32)


@functools.cache
def _crc_table():
    """The 256 remainders of CRC-32C (Castagnoli), for one byte at a time."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table
