"""Text sets of TensorFlow Datasets as documents for the builder of records."""

import collections
import itertools
import os
import re

from convbert_tf.console import UserError

# One shard of a split, or a part of a split that TFDS's own syntax describes. `field` is the
# feature that holds the text.
Split = collections.namedtuple("Split", "directory split field")

_SPEC = re.compile(
    r"(?P<name>(?:\w+://)?[^:]+(?::\d[\d.]*)?)"  # a name may end in a version
    r":(?P<split>(?:[^:\[\]]|\[[^\]]*\])+)"  # a split may hold a slice
    r"(?::(?P<field>\w+))?"
)


def find_splits(specs):
    """The Splits that `specs` name, in order; a set that is not prepared is downloaded.

    Args:
        specs: a list of "name:split" or "name:split:field". The name is TFDS's own, with config and
            version if need be ("wikipedia/20230601.en:1.0.0"), or a directory that TFDS wrote; the
            split may be a slice ("train[:10%]"); the field is "text", or the only one that holds
            text, if none is given. TFDS_DATA_DIR in the environment says where sets lie.

    Raises:
        UserError: a spec of another form; a set, split or field that is not there.
    """
    return [split for spec in specs for split in _find(spec)]


def _find(spec):
    match = _SPEC.fullmatch(spec)
    if not match:
        raise UserError(f"{spec!r} is no TFDS set: write name:split, say wiki40b/en:train.")
    builder = _builder(match["name"])
    splits, split = builder.info.splits, match["split"]
    try:
        shards = splits[split].num_shards if split in splits else 0
        if not splits[split].num_examples:
            raise ValueError("it is empty")
    except Exception as error:  # TFDS raises many types here
        raise UserError(
            f"{spec}: no split {split!r} ({_line(error)}); there are {', '.join(splits)}."
        ) from error
    field = _field(spec, builder.info.features, match["field"])
    # Shards one by one, so that on a cluster several machines can read the set.
    parts = [f"{split}[{i}shard:{i + 1}shard]" for i in range(shards)] if shards > 1 else [split]
    return [Split(os.fspath(builder.data_path), part, field) for part in parts]


def _builder(name):
    import tensorflow_datasets as tfds

    try:
        if os.path.isdir(os.path.expanduser(name)) or "://" in name:
            return tfds.builder_from_directory(os.path.expanduser(name))
        builder = tfds.builder(name)
        builder.download_and_prepare()
        return builder
    except Exception as error:  # of the network, of the set's own code, of TFDS
        raise UserError(
            f"TFDS has no set {name!r} here ({_line(error)}): name a set it knows or the directory "
            "of one that is prepared."
        ) from error


def _line(error):
    return str(error).strip().split("\n")[0][:200]  # TFDS writes paragraphs, a list of all its sets


def _field(spec, features, field):
    """The feature that holds the text; `field` where the user chose one."""
    texts = [name for name, feature in features.items() if _is_text(feature)]
    if field is None:
        field = "text" if "text" in texts or len(texts) != 1 else texts[0]
    if field not in texts:
        raise UserError(
            f"{spec} has no text in a field {field!r}: write name:split:field with one of "
            f"{', '.join(texts) or 'its own (it has none)'}."
        )
    return field


def _is_text(feature):
    return feature.shape == () and getattr(feature.tf_dtype, "name", "") == "string"


def identity(split):
    """What tells a Split from others: name, config and version of its set, and its size."""
    info = _builder(split.directory).info
    return [f"{info.full_name}:{split.split}:{split.field}", info.splits[split.split].num_examples]


def documents(split):
    """The documents of a Split, in the order of its files.

    Yields:
        Tuples of the document (str, without blank lines) and its length in bytes.

    Raises:
        UserError: text that is not UTF-8, or a file that is damaged.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = _builder(split.directory)
    dataset = builder.as_dataset(
        split=split.split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({split.field: True}),
        # One file after the other; the default mixes them.
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    batches = dataset.batch(64).as_numpy_iterator()
    number = 0
    try:
        for raw in itertools.chain.from_iterable(batch[split.field] for batch in batches):
            number += 1
            lines = raw.decode("utf-8").split("\n")
            yield "\n".join(line for line in lines if line and not line.isspace()), len(raw)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{split.directory}, {split.split}: example {number} is not UTF-8; choose another "
            "field or leave the set out."
        ) from error
    except tf.errors.OpError as error:
        raise UserError(
            f"{split.directory}, {split.split} is damaged ({_line(error.message)}): prepare the "
            "set again."
        ) from error
