"""Shards of pre-training records on disk: their manifest, and reading them, damaged ones too."""

import contextlib
import hashlib
import json
import os
import re

import numpy as np
import tensorflow as tf

from convbert_tf.console import UserError, reason
from convbert_tf.data import records
from convbert_tf.text.vocabulary import VOCAB_FILE, file_content, strips_accents

MANIFEST = "manifest.json"
LOG = "build.jsonl"  # the settings and the finished shards of a build, so that it can go on
FORMAT = 1  # of the manifest
_KINDS = {"max_seq_length": int, "vocab_size": int, "vocab_sha256": str, "lower_case": bool}


@contextlib.contextmanager
def undone_without_shards(folder):
    """Makes `folder`; after an error within, no file of a build is left, unless a shard is there.

    A vocabulary from before stays; folders that were made go.
    """
    folder, made = os.path.abspath(folder), []
    while not os.path.lexists(path := os.path.dirname(made[-1]) if made else folder):
        made.append(path)
    os.makedirs(folder, exist_ok=True)
    had_vocabulary = os.path.exists(os.path.join(folder, "vocab.txt"))
    ours = re.compile(rf"{re.escape(LOG)}{'' if had_vocabulary else '|vocab.txt'}|.*\.partial-.*")
    try:
        yield
    except BaseException:
        names = os.listdir(folder)
        if not any(re.fullmatch(r"shard-\d+\.tfrecord", name) for name in names):
            for name in filter(ours.fullmatch, names):
                os.remove(os.path.join(folder, name))
            with contextlib.suppress(OSError):  # somebody else has written there meanwhile
                for path in made:
                    os.rmdir(path)
        raise


def load_manifest(data_dir, damage_allowed=False):
    """The manifest of pre-training records that `corpus.build` left in `data_dir`, as a dict.

    Raises:
        UserError: the manifest is missing or broken, or a shard it lists is missing or, unless
            `damage_allowed`, not of the size it was written with.
    """
    path = os.path.join(data_dir, MANIFEST)
    if not tf.io.gfile.exists(path):
        raise UserError(
            f"{path} is not there: build the records first, or finish building them "
            "(tools/build_pretraining_data.py)."
        )
    try:
        with tf.io.gfile.GFile(path) as file:
            manifest = json.load(file)
        sizes = {shard["file"]: shard["file_bytes"] for shard in manifest["shards"]}
        counted = sum(shard["records"] for shard in manifest["shards"])
        broken = manifest["format"] != FORMAT or not counted or counted != manifest["num_records"]
        broken = broken or not all(
            isinstance(manifest[name], kind) for name, kind in _KINDS.items()
        )
    except (ValueError, KeyError, TypeError):
        broken = True
    if broken:
        raise UserError(f"{path} is no manifest of this version; build the records again.")
    for name, size in sizes.items():
        shard = os.path.join(data_dir, name)
        found = tf.io.gfile.stat(shard).length if tf.io.gfile.exists(shard) else None
        if found is None:
            raise UserError(f"{shard} is missing; build the records again.")
        if found != size and not damage_allowed:
            damages = "".join(f": {damage.text}" for damage in records.salvage(shard)[1][:1])
            raise UserError(
                f"{shard} is {found} bytes long, not {size}{damages}; build the records again."
            )
    return manifest


def check_manifest(manifest, data_dir, *, vocab_file, vocab_size, max_seq_length):
    """Refuses records that are not for a model: built with another vocabulary or length.

    Args:
        manifest: of the records in `data_dir`.
        vocab_file: the vocabulary that the model is to have.
        vocab_size, max_seq_length: of the model's config.

    Raises:
        UserError: says what differs.
    """
    if manifest["vocab_size"] != vocab_size:
        raise UserError(
            f"the vocabulary of the records in {data_dir} has {manifest['vocab_size']} entries, "
            f"the model's {vocab_size}: set --config.model.vocab_size."
        )
    if manifest["max_seq_length"] != max_seq_length:
        raise UserError(
            f"the records in {data_dir} were built with max_seq_length="
            f"{manifest['max_seq_length']}, not {max_seq_length}: set "
            "--config.data.max_seq_length, or build records of that length."
        )
    for path in (os.path.join(data_dir, VOCAB_FILE), vocab_file):
        check_vocabulary(manifest, data_dir, path)


def check_vocabulary(manifest, data_dir, vocab_file):
    """Refuses a vocabulary that is not the one that the records in `data_dir` were built with."""
    if hashlib.sha256(file_content(vocab_file)).hexdigest() != manifest["vocab_sha256"]:
        raise UserError(
            f"{vocab_file} is not the vocabulary that the records in {data_dir} were built with: "
            "build them with it."
        )


def normalization(values):
    """(lower_case, strip_accents) of a manifest's values, of which the second may be unset."""
    lower_case = values["lower_case"]
    return lower_case, strips_accents(lower_case, values.get("strip_accents"))


def identity(manifest):
    """What a run keeps of a manifest to know its records by: the settings and a hash of it all."""
    content = json.dumps(manifest, sort_keys=True).encode("utf-8")
    lists = ("shards", "inputs", "unknown_words")
    settings = {name: value for name, value in manifest.items() if name not in lists}
    return settings | {"sha256": hashlib.sha256(content).hexdigest()}


def difference(earlier, present):
    """How the records of two identities differ; "" if they do not.

    The settings come before what follows from them.
    """
    if earlier.get("sha256") == present["sha256"]:
        return ""
    for name, value in present.items():
        if not name.startswith(("num_", "sha256")) and earlier.get(name) != value:
            return f"{name}: {earlier.get(name)} -> {value}"
    return "other text"


def paths_and_counts(manifest, data_dir):
    """Paths of the shards that hold records, and how many each holds."""
    shards = [shard for shard in manifest["shards"] if shard["records"]]
    paths = [os.path.join(data_dir, shard["file"]) for shard in shards]
    return paths, [shard["records"] for shard in shards]


def features(manifest, data_dir):
    """Yields for each shard its features in whole, as `records.parse` gives them.

    Raises:
        UserError: a shard does not fit the manifest, or the vocabulary beside it is another one.
    """
    check_vocabulary(manifest, data_dir, os.path.join(data_dir, VOCAB_FILE))
    for path, count in zip(*paths_and_counts(manifest, data_dir), strict=True):
        serialized = records.read(path)
        try:
            if len(serialized) != count:
                raise ValueError(f"it holds {len(serialized):,} records, not {count:,}")
            yield records.parse(serialized, {}, manifest["max_seq_length"], manifest["vocab_size"])
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            # Without what tf.debugging adds of the values compared.
            why = reason(error).split(" Condition x ")[0].rstrip(".")
            raise UserError(
                f"{path} does not fit {MANIFEST} ({why}): build the records again."
            ) from None


def reader(paths, counts, cache, damaged):
    """A function in the graph: numbers of shards [n] -> their serialised records, in order."""
    expected = tf.constant(counts, tf.int64)

    def read(shards):
        count = tf.reduce_sum(tf.gather(expected, shards))
        # One more than there should be, so that a surplus is seen as well as a lack.
        files = tf.data.TFRecordDataset(tf.gather(paths, shards), buffer_size=4 << 20)
        serialized = files.batch(count + 1).get_single_element()
        same = tf.debugging.assert_equal(
            tf.size(serialized, tf.int64), count, "A shard does not match its manifest."
        )
        with tf.control_dependencies([same]):
            return tf.identity(serialized)

    def read_whole(shards):
        def join(shards):
            parts = [_whole_records(paths[i], counts[i], damaged) for i in shards]
            return np.array([record for part in parts for record in part], object)

        serialized = tf.numpy_function(join, [shards], tf.string, stateful=False)
        return tf.ensure_shape(serialized, [None])

    if damaged is not None:
        read = read_whole
    if not cache:
        return read
    everything = tf.RaggedTensor.from_row_lengths(read(tf.range(len(paths))), expected)
    return lambda shards: tf.gather(everything, shards).flat_values


def _whole_records(path, count, damaged):
    """The `count` records of a shard, those that are damaged replaced by the next whole ones."""
    found, damages = records.salvage(path)
    if len(found) > count:
        raise UserError(f"{path} holds more than the {count} records of its manifest.")
    for damage in damages:
        damaged[path, damage.number] = damage
    for number in range(len(found), count):
        damaged[path, number] = records.Damage(number, None, "is missing")
    found += [None] * (count - len(found))
    whole = [number for number, record in enumerate(found) if record is not None]
    if not whole:
        raise UserError(f"{path} holds no whole record.")
    places = np.searchsorted(whole, np.arange(count)) % len(whole)
    return [found[whole[place]] for place in places]
