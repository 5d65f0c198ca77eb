"""Packs pre-training records into one file of arrays, for machines without TensorFlow.

    python tools/pack_records.py --records=records/train --output_file=train.npz

The records are those of tools/build_pretraining_data.py; the file also holds their vocabulary, and
tools/pretrain_on_jax.py reads it. 128 tokens take 256 bytes before compression.
"""

import os

from absl import flags

from convbert_tf import console

FLAGS = flags.FLAGS
flags.DEFINE_string("records", None, "Folder of the records.", required=True)
flags.DEFINE_string("output_file", None, "Ends in .npz.", required=True)


def main(_):
    path = FLAGS.output_file
    if not path.endswith(".npz"):
        raise console.UserError(f"--output_file={path} must end in .npz.")
    console.load_tensorflow()
    import numpy as np

    from convbert_tf.data import shards
    from convbert_tf.files import atomic_path
    from convbert_tf.text.vocabulary import VOCAB_FILE, load_vocab

    folder = FLAGS.records
    manifest = shards.load_manifest(folder)
    vocab = load_vocab(os.path.join(folder, VOCAB_FILE))
    smallest = np.uint16 if len(vocab) <= 1 << 16 else np.int32
    progress, parts, done = console.Progress("packing", manifest["num_records"], "records"), [], 0
    for features in shards.features(manifest, folder):
        mask, segments = features["input_mask"].numpy(), features["segment_ids"].numpy()
        lengths = mask.sum(axis=1)
        ids = features["input_ids"].numpy().astype(smallest)
        parts.append((ids, lengths, lengths - segments.sum(axis=1)))
        progress.update(done := done + len(ids))
    ids, lengths, first = (np.concatenate(values) for values in zip(*parts, strict=True))
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            ids=ids,
            lengths=lengths.astype(np.int32),
            first=first.astype(np.int32),
            vocab=np.array(vocab),
            normalization=np.array(shards.normalization(manifest)),
        )
    size = os.path.getsize(path) / 1e6
    console.say(f"{path}: {len(ids):,} records, {size:.1f} MB")


if __name__ == "__main__":
    console.run(main)
