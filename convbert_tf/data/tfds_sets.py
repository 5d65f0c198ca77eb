"""Sets of tasks from TensorFlow Datasets (texts to pre-train on: tfds_text.py)."""

import functools
import os

from convbert_tf.console import UserError, reason


def prepared(name, split, data_dir=None, instead=""):
    """TFDS's builder of a set, which is prepared, and downloaded if need be.

    Args:
        name: of the set, with its config.
        split: as TFDS calls it; it must be there.
        data_dir: TFDS's own folder of prepared sets; by default what TFDS_DATA_DIR in the
            environment says, or ~/tensorflow_datasets.
        instead: what a message names to read where there is no network.

    Raises:
        UserError: `data_dir` is missing, or the set is not on disk and cannot be downloaded.
    """
    builder = _builder(name, data_dir, instead)
    if split not in builder.info.splits:
        raise UserError(
            f"TensorFlow Datasets cannot give {name}, split {split!r}: there are "
            f"{', '.join(builder.info.splits)} in {builder.data_path}."
        )
    return builder


def files(builder, split):
    """Paths of the files that hold a split of a builder."""
    return [os.fspath(path) for path in builder.info.splits[split].filepaths]


@functools.cache
def _builder(name, data_dir, instead):
    # Here, since importing it takes seconds that users of files need not wait.
    import tensorflow_datasets as tfds

    if data_dir and not os.path.isdir(data_dir):
        raise UserError(f"{data_dir} is not there: the folder of a prepared {name} is expected.")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:  # of the network, of the set's own code, of TFDS
        raise UserError(
            f"TensorFlow Datasets cannot give {name} ({reason(error)}): where there is no network, "
            f"give the folder of a prepared set, --config.task.data_dir=tfds:{instead}."
        ) from error
    return builder
