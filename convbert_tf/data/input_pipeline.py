"""Records to batches: deterministic, resumable at any step, bucketed by length, cut by replica.

Every stream here is a pure function of the records, the seed and the global batch size. It is laid
out as global batches first and cut into replicas afterwards, so that N replicas read what one
replica would, and a run that starts at step s reads what an uninterrupted run reads from s on.
"""

import os

import numpy as np
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.data import records, shards
from convbert_tf.data.shards import load_manifest

# The second half of a stateless seed: keeps the streams drawn from one user's seed apart.
_SHARD_ORDER, _RECORD_ORDER, _UNIFORMS = 1, 2, 3

_LENGTH_MULTIPLE = 4  # a batch's length is rounded up to this, so that there are few shapes
_BATCHES_PER_POOL = 50  # batches sorted by length together; more: less padding, less randomness


# --- pre-training: shards on disk ---


def pretraining_dataset(
    data_dir,
    start_step=0,
    input_context=None,
    *,
    batch_size,
    max_seq_length,
    seed,
    vocab_size=None,
    shards_per_round=16,
    cache=False,
    damaged=None,
    start_record=None,
):
    """The endless stream of pre-training batches from step `start_step` on.

    Every epoch permutes the shards and takes them in rounds of `shards_per_round`; the records of a
    round are held in memory and shuffled completely. No record is left out: a batch may span two
    rounds or two epochs. Shards before the first round that `start_step` needs are not opened.

    Args:
        data_dir: what `corpus.build` wrote.
        start_step: the step whose batch comes first.
        input_context: `tf.distribute.InputContext`; each of its pipeline's replicas gets b = B / R
            rows of every global batch, as one element each.
        batch_size: B, the global batch.
        max_seq_length: T, at least the longest record.
        seed: of the order of the records and of the uniforms.
        vocab_size: if given, records with other ids are refused.
        shards_per_round: how far records are mixed, and how much is held in memory (about twice).
        cache: whether to read all records at once and keep them in memory.
        damaged: if given, a dict to which every damaged record is added, (file, number) ->
            records.Damage, instead of raising an error. The next undamaged record of the shard is
            read twice, so that the position of all other records stays the same. Shards are then
            read in Python.
        start_record: the number of records read before `start_step`; by default B for each step.
            Needed where the batch size has changed.

    Returns:
        A dataset of `input_ids`, `input_mask`, `segment_ids` int32 [b, T] and `uniforms` float32
        [b, 3, T] in [0, 1): the step's randomness, a function of (seed, step, row in B).

    Raises:
        UserError: see `load_manifest`; or B is not a multiple of the replicas.
        tf.errors.OpError: while reading, on a damaged record; `explain` names the shard.
    """
    manifest = load_manifest(data_dir, damaged is not None)
    _check_length(manifest, max_seq_length, data_dir)
    paths, counts = shards.paths_and_counts(manifest, data_dir)
    reader = shards.reader(paths, counts, cache, damaged)
    start = start_step * batch_size if start_record is None else start_record
    serialized = _shuffled_records(counts, reader, seed, start, shards_per_round)
    return _pretraining_batches(
        serialized, batch_size, max_seq_length, seed, start_step, vocab_size, input_context
    )


def evaluation_dataset(
    data_dir,
    input_context=None,
    *,
    batch_size,
    max_seq_length,
    seed,
    num_batches=None,
    vocab_size=None,
    damaged=None,
):
    """The first `num_batches` batches (default: all) of `data_dir` in the order of the files.

    Elements as in `pretraining_dataset`, with uniforms fixed by `seed`. The last batch is dropped
    when it is incomplete.

    Raises:
        UserError: as `pretraining_dataset`; or the records do not fill one batch.
    """
    manifest = load_manifest(data_dir, damaged is not None)
    _check_length(manifest, max_seq_length, data_dir)
    full_batches(manifest["num_records"], batch_size, data_dir)
    paths, counts = shards.paths_and_counts(manifest, data_dir)
    serialized = tf.data.TFRecordDataset(paths)
    if damaged is not None:
        numbers = _map(tf.data.Dataset.range(len(paths)), lambda number: number[None])
        serialized = _map(numbers, shards.reader(paths, counts, False, damaged)).unbatch()
    if num_batches is not None:
        serialized = serialized.take(num_batches * batch_size)
    return _pretraining_batches(
        serialized, batch_size, max_seq_length, seed, 0, vocab_size, input_context
    )


def explain(error, data_dirs, max_seq_length, vocab_size=None, damage_allowed=False):
    """Turns `error`, raised while reading `data_dirs`, into a `UserError` that names the shard.

    Reads the shards again to find it. Returns `error` itself if none of them is at fault.
    """
    for data_dir in data_dirs:
        for shard in load_manifest(data_dir, damage_allowed)["shards"]:
            path, expected = os.path.join(data_dir, shard["file"]), shard["records"]
            try:
                found = records.salvage(path)[0] if damage_allowed else records.read(path)
                whole = [record for record in found if record is not None]
                _lengths(whole, records.PRETRAINING, max_seq_length, path, vocab_size)
            except UserError as fault:
                return fault
            if len(found) > expected or (len(found) < expected and not damage_allowed):
                return UserError(
                    f"{path} holds {len(found)} records, not {expected} as its manifest says; "
                    "build the records again."
                )
    return error


def _check_length(manifest, max_seq_length, data_dir):
    if manifest["max_seq_length"] > max_seq_length:
        raise UserError(
            f"the records in {data_dir} are up to {manifest['max_seq_length']} tokens long, more "
            f"than max_seq_length={max_seq_length}: raise it, or build records of that length."
        )


def _shuffled_records(counts, read, seed, start, shards_per_round):
    """The endless stream of serialised records from record number `start` on."""
    rounds_per_epoch = -(-len(counts) // shards_per_round)
    num_shards, num_records = len(counts), sum(counts)
    counts = tf.constant(counts, tf.int64)

    def shards_of(round_number):
        epoch, part = round_number // rounds_per_epoch, round_number % rounds_per_epoch
        order = tf.random.experimental.stateless_shuffle(
            tf.range(num_shards), _fold([seed, _SHARD_ORDER], epoch)
        )
        return order[part * shards_per_round : (part + 1) * shards_per_round]

    def read_shuffled(round_number):
        return tf.random.experimental.stateless_shuffle(
            read(shards_of(round_number)), _fold([seed, _RECORD_ORDER], round_number)
        )

    epoch, skip = divmod(start, num_records)
    first_round = epoch * rounds_per_epoch
    with tf.device("CPU:0"):  # where tf.data runs, so that both draw the same order
        while skip >= (size := int(tf.reduce_sum(tf.gather(counts, shards_of(first_round))))):
            first_round, skip = first_round + 1, skip - size
    rounds = _map(tf.data.Dataset.counter(first_round), read_shuffled, 1)
    return rounds.prefetch(1).unbatch().skip(skip)


def _pretraining_batches(
    serialized, batch_size, max_seq_length, seed, start_step, vocab_size, input_context
):
    """Batches, uniforms added, cut by replica and parsed, of a stream of serialised records."""
    cut, rows = _replica_cut(batch_size, input_context)

    def add_uniforms(step, batch):
        uniforms = tf.random.stateless_uniform(
            [batch_size, 3, max_seq_length], _fold([seed, _UNIFORMS], step)
        )
        return cut(batch), cut(uniforms)

    def parse(batch, uniforms):
        parsed = records.parse(batch, records.PRETRAINING, max_seq_length, vocab_size)
        return _with_static_rows(parsed, rows) | {"uniforms": uniforms}

    steps = tf.data.Dataset.counter(start_step)
    batches = tf.data.Dataset.zip(steps, serialized.batch(batch_size, drop_remainder=True))
    return _finished(_map(batches, add_uniforms, tf.data.AUTOTUNE).unbatch(), parse)


# --- fine-tuning and prediction: one file, held in memory ---


def steps_per_epoch(source, batch_size):
    """Steps that `finetuning_dataset` makes of one epoch of `source`; see there.

    Raises:
        UserError: the records do not fill one batch.
    """
    serialized, name = _load(source)
    return full_batches(len(serialized), batch_size, name)


def finetuning_dataset(
    source,
    schema,
    *,
    batch_size,
    max_seq_length,
    seed,
    num_epochs=None,
    start_step=0,
    bucket=True,
    vocab_size=None,
    input_context=None,
):
    """Shuffled batches of a file that fits into memory, from step `start_step` on.

    Every epoch shuffles the records anew and drops those that do not fill a batch.

    Args:
        source: a TFRecord file, or a list of serialised records.
        schema: the scalars and labels of tokens to read beside the ids, see `records`.
        batch_size: B, the global batch.
        max_seq_length: at least the longest record.
        num_epochs: None to repeat without end.
        bucket: batches of records alike in length, padded to the longest one's length rounded up
            to a multiple of 4: [b, None]. Otherwise padded to `max_seq_length`, a static shape,
            which TPUs need.
        seed, start_step, vocab_size, input_context: as in `pretraining_dataset`.

    Returns:
        A dataset of `input_ids`, `input_mask`, `segment_ids` int32 [b, T], labels of tokens [b, T]
        and scalars [b].

    Raises:
        UserError: the file is missing or damaged, holds a record that is too long, or does not
            fill one batch; or B is not a multiple of the replicas.
    """
    serialized, name = _load(source)
    steps = full_batches(len(serialized), batch_size, name)
    lengths = _lengths(serialized, schema, max_seq_length, name, vocab_size)

    def plan(epoch):
        rng = np.random.default_rng([seed, int(epoch)])
        return _epoch_plan(lengths, batch_size, steps, bucket, rng)

    def plan_in_graph(epoch):
        rows = tf.numpy_function(plan, [epoch], tf.int64, stateful=False)
        return tf.ensure_shape(rows, [steps, batch_size])

    first_epoch, skip = divmod(start_step, steps)
    epochs = tf.data.Dataset.counter(first_epoch)
    if num_epochs is not None:
        epochs = epochs.take(max(num_epochs - first_epoch, 0))
    batches = _map(epochs, plan_in_graph).unbatch().skip(skip)
    return _memory_batches(
        batches, serialized, lengths, schema, batch_size, max_seq_length, bucket, input_context
    )


def prediction_dataset(
    source,
    schema,
    *,
    batch_size,
    max_seq_length,
    bucket=True,
    vocab_size=None,
    input_context=None,
    padding=0,
):
    """Every record exactly once, in batches of records alike in length, the longest first.

    Args and errors as in `finetuning_dataset`. The order follows from the lengths, so results are
    matched by `example_id`, if the schema has it. The last batch is filled up by repeating the
    last record. Behind the longest record of a batch are at least `padding` tokens of padding, as
    far as `max_seq_length` allows.

    Returns:
        As `finetuning_dataset`, and `example_weights` float32 [b]: 1 for a record, 0 for filler.
    """
    serialized, name = _load(source)
    if not serialized:
        raise UserError(f"{name} holds no records.")
    lengths = _lengths(serialized, schema, max_seq_length, name, vocab_size)
    order = np.argsort(-lengths, kind="stable")
    filler = -len(order) % batch_size
    rows = np.pad(order, (0, filler), mode="edge").reshape(-1, batch_size)
    weights = np.float32(np.arange(rows.size) < len(order)).reshape(-1, batch_size)
    batches = tf.data.Dataset.from_tensor_slices((rows, weights))
    lengths = lengths + padding
    return _memory_batches(
        batches, serialized, lengths, schema, batch_size, max_seq_length, bucket, input_context
    )


def _load(source):
    """`source` (a file or a list of records) as a list of records, and a name for messages."""
    if isinstance(source, (str, os.PathLike)):
        return records.read(os.fspath(source)), os.fspath(source)
    return list(source), "the data set"


def full_batches(num_records, batch_size, name):
    """How many whole batches the records of `name` fill; a UserError if not one."""
    if num_records < batch_size:
        raise UserError(
            f"{name} holds {num_records} records, fewer than one batch of {batch_size}: use a "
            "smaller batch."
        )
    return num_records // batch_size


def _lengths(serialized, schema, max_seq_length, name, vocab_size=None):
    """The number of tokens of each record, int64 [N]; checks every record on the way."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(serialized), 1024):
        part = tf.constant(serialized[start : start + 1024])
        try:
            parsed = records.parse(part, schema, max_seq_length, vocab_size)
        except tf.errors.InvalidArgumentError as error:
            if len(part) > 1:  # to find the one that is at fault
                for i in range(len(part)):
                    one = f"{name}, record {start + i + 1}"
                    _lengths(
                        serialized[start + i : start + i + 1],
                        schema,
                        max_seq_length,
                        one,
                        vocab_size,
                    )
            # Without what tf.debugging adds of the values compared.
            reason = " ".join(error.message.split()).split(" Condition x ")[0]
            raise UserError(f"{name}: {reason}") from error
        found.append(tf.reduce_sum(parsed["input_mask"], axis=1).numpy())
    return np.concatenate(found)


def _epoch_plan(lengths, batch_size, num_batches, bucket, rng):
    """The rows of each batch of one epoch, int64 [num_batches, batch_size]."""
    rows = rng.permutation(len(lengths))[: num_batches * batch_size]
    if not bucket:
        return rows.reshape(num_batches, batch_size)
    pool_size = _BATCHES_PER_POOL * batch_size
    pools = [rows[start : start + pool_size] for start in range(0, len(rows), pool_size)]
    rows = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    return rng.permutation(rows.reshape(num_batches, batch_size))


def _memory_batches(
    batches, serialized, lengths, schema, batch_size, max_seq_length, bucket, input_context
):
    """Gathers, pads and cuts by replica the rows listed in `batches` (with weights, if any)."""
    cut, local_rows = _replica_cut(batch_size, input_context)
    serialized, lengths = tf.constant(serialized), tf.constant(lengths, tf.int64)
    fixed = [name for name, kind in schema.items() if records.is_vector(kind)]

    def gather(rows, *weights):
        # The length of the global batch, so that the replicas of a step have equal shares of work.
        longest = tf.reduce_max(tf.gather(lengths, rows))
        padded = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        strings = cut(tf.gather(serialized, rows))
        padded = tf.repeat(tf.minimum(padded, max_seq_length), tf.shape(strings)[0])
        return strings, padded, *(cut(values) for values in weights)

    def parse(strings, padded, *weights):
        # Padded to the maximum and cut, since records of the original builder hold their padding.
        parsed = records.parse(strings, schema, max_seq_length)
        parsed = _with_static_rows(parsed, local_rows)
        if bucket:
            parsed = {
                name: values[:, :padded] if name not in fixed and values.shape.rank == 2 else values
                for name, values in parsed.items()
            }
        return parsed | ({"example_weights": weights[0]} if weights else {})

    return _finished(_map(batches, gather).unbatch(), parse)


# --- common ---


def _fold(stream, number):
    """A stateless seed for `number` (a step, an epoch) within the stream `[seed, stream]`."""
    stream = tf.constant(stream, tf.int64)
    return tf.random.experimental.stateless_fold_in(stream, tf.cast(number, tf.int64))


def _replica_cut(batch_size, input_context):
    """How a global batch is split: `cut` ([B, ...] -> [local replicas, b, ...]), and b."""
    context = input_context or tf.distribute.InputContext()
    replicas = context.num_replicas_in_sync
    if batch_size % replicas:
        raise UserError(
            f"the global batch of {batch_size} is not a multiple of the {replicas} replicas: "
            f"use {max(batch_size // replicas, 1) * replicas}, or another number of devices."
        )
    rows = batch_size // replicas
    local = replicas // context.num_input_pipelines
    start = context.input_pipeline_id * local * rows

    def cut(values):
        part = values[start : start + local * rows]
        return tf.reshape(part, [local, rows, *values.shape[1:]])

    return cut, rows


def _with_static_rows(parsed, rows):
    return {
        name: tf.ensure_shape(values, [rows, *values.shape[1:]]) for name, values in parsed.items()
    }


def _finished(dataset, parse):
    """`dataset` parsed in parallel, in order, with prefetching and without auto-sharding."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return _map(dataset, parse, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE).with_options(options)


def _map(dataset, function, num_parallel_calls=None):
    """dataset.map without AutoGraph, whose reading of source takes most of the time to start."""
    return dataset.map(tf.autograph.experimental.do_not_convert(function), num_parallel_calls)
