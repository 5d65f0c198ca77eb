"""Preset directories: what passes between steps and people.

    config.json         the class of the model, its config, hashes of the files below
    model.weights.h5    weights, as Keras 3 writes them
    vocab.txt           the vocabulary, where one is known
    README.md           one line that says what it is; for people to edit, so it has no hash

A preset is written whole or not at all, and read whole or not at all. What is written is read again
before it takes its place.
"""

import contextlib
import glob
import os
import re
import tempfile
from typing import Required, TypedDict

import h5py

from convbert_tf import schema
from convbert_tf.console import UserError, reason
from convbert_tf.files import is_address, read_json, sha256, undone_on_error, write_json
from convbert_tf.text import vocabulary
from convbert_tf.text.stored_vocabulary import check_hash, check_is_preset
from convbert_tf.text.vocabulary import VOCAB_FILE, Vocabulary
from convbert_tf.weights import names
from convbert_tf.weights.stored import KINDS, Array, Stored, as_weights

FORMAT = 1
_Description = TypedDict(
    "_Description",
    {
        "format": Required[int],
        "class": Required[str],
        "config": Required[dict],
        "lower_case": Required[bool],
        "strip_accents": bool,  # presets of before have none: as lower_case
        "weights_sha256": Required[str],
        "sha256": dict[str, str],  # by file; presets of before have none
        "serving": dict,
    },
    total=False,
)
CONFIG_FILE, WEIGHTS_FILE, README_FILE = "config.json", "model.weights.h5", "README.md"
PRESET_DIR = "preset"  # of a run
_PARTIAL = "partial-"  # with it the name of a folder begins that a model is written to
# What h5py raises for a file that is not whole.
_H5_ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError)
# A weight's number among those of its own layer, by which Keras stores it.
_NUMBERS = {
    "word_embeddings": 0,
    "token_type_embeddings": 1,
    "position_embeddings": 2,
    "depthwise_kernel": 0,
    "pointwise_kernel": 1,
    "pointwise_bias": 2,
    "kernel": 0,
    "bias": 1,
    "gamma": 0,
    "beta": 1,
    "output_bias": 0,
}


# --- writing ---


def write(stored, directory):
    """Writes `stored` to `directory`, which is made if it is not there; a preset there is replaced.

    Raises:
        UserError: the vocabulary cannot be read or has more pieces than the model, a weight is not
            finite, an option of the model is impossible, or as `replacing`.
    """
    with replacing(directory, "weights_sha256", (WEIGHTS_FILE, VOCAB_FILE)) as partial:
        weights = os.path.join(partial, WEIGHTS_FILE)
        _write_weights(stored, weights)
        hashes = {WEIGHTS_FILE: sha256(weights)}
        with open(os.path.join(partial, README_FILE), "w", encoding="utf-8") as file:
            file.write(
                f"A {stored.kind} of convbert_tf with {stored.num_parameters:,} parameters; load "
                f"it with `convbert_tf.{stored.kind}.from_preset(directory)`.\n"
            )
        if stored.vocabulary.path:
            check_vocabulary(stored.vocabulary.path, stored.model_config)
            copy = os.path.join(partial, VOCAB_FILE)
            vocabulary.copy(stored.vocabulary.path, copy)
            hashes[VOCAB_FILE] = sha256(copy)
        description = {
            "format": FORMAT,
            "class": stored.kind,
            "config": stored.config,
            "lower_case": stored.vocabulary.lower_case,
            "strip_accents": stored.vocabulary.strips_accents,
            "weights_sha256": hashes[WEIGHTS_FILE],
            "sha256": hashes,
            "serving": stored.serving,
        }
        write_json(os.path.join(partial, CONFIG_FILE), description)
        _read_back(partial, directory)


def _read_back(partial, directory):
    """Reads what was written to the folder `partial`, which is to become `directory`."""
    try:
        read(partial)
    except UserError as error:
        message = str(error).replace(partial, str(directory))
        raise UserError(f"not saved, since it could not be loaded again: {message}") from error


@contextlib.contextmanager
def replacing(directory, mark, names, closed=False):
    """A new folder, whose files move into `directory` when all went well; config.json last.

    Everything that may fail comes first, in the folder beside; without config.json there is no
    model in a directory.

    Args:
        directory: made if it is not there.
        mark: key of config.json by which a model of the same format is known, which is replaced.
        names: of the files of a model; those that the new one has not are removed.
        closed: whether a model with more files than these is not replaced, but refused.

    Raises:
        UserError: `directory` is none, or holds anything but such a model; it cannot be written.
    """
    _check_target(directory, mark, {*names, CONFIG_FILE, README_FILE} if closed else None)
    try:
        with (
            undone_on_error(directory),
            tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=directory) as partial,
        ):
            yield partial
            _move(partial, directory, names)
    except OSError as error:
        why = error.strerror or reason(error)
        raise UserError(f"{directory} cannot be written: {why}.") from error


def _check_target(directory, mark, names):
    """Refuses to write a model to `directory` where that would overwrite what is none.

    Or where files would stay that are not in `names` (None: any may).

    What a killed process has left of a preset is none, but has its folder of new files.
    """
    if is_address(directory):
        raise UserError(f"{directory}: a model is written to a directory, not to the hub.")
    if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
        raise UserError(f"name a directory to save the model to, not {directory!r}.")
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise UserError(f"{directory} is a file: name a directory to save the model to.")
    there = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    there = [name for name in there if not name.startswith(".")]
    if not there or any(name.startswith(_PARTIAL) for name in there):
        return
    is_model = mark in _fields_at(directory)
    foreign = [name for name in there if is_model and names and name not in names]
    if not is_model or foreign:
        raise UserError(
            f"{directory} has files that are no earlier model of this format "
            f"({(foreign or there)[0]}): choose a new directory, or empty it."
        )


def _move(partial, directory, names):
    """Moves a new model's files to `directory`; of the old one's, `names`, none stays."""
    new = os.listdir(partial)
    for name in set(names) - set(new):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(directory, name))
    if _is_edited(os.path.join(directory, README_FILE)):
        new = [name for name in new if name != README_FILE]
    for name in sorted(new, key=lambda name: name == CONFIG_FILE):
        os.replace(os.path.join(partial, name), os.path.join(directory, name))


def _is_edited(readme):
    """Whether people have made more of the README than the line that `write` writes."""
    if not os.path.exists(readme):
        return False
    with open(readme, "rb") as file:
        return not re.fullmatch(rb"A \w+ of convbert_tf with [^\n]*\n", file.read())


def check_vocabulary(vocab_file, model_config):
    """Refuses a vocabulary with ids that a model of ModelConfig `model_config` has no row for.

    A line of the file is an id, also where its piece is repeated further down.
    """
    pieces = len(vocabulary.read_pieces(vocab_file))
    if pieces > model_config.vocab_size:
        raise UserError(
            f"{vocab_file} has {pieces:,} pieces, the model {model_config.vocab_size:,}: it is "
            "another model's vocabulary."
        )


def _write_weights(stored, path):
    try:
        # To a file of Python's: on a full disk HDF5's own ends the process by a fault of memory.
        with open(path, "w+b") as raw, h5py.File(raw, "w") as file:
            for name, array in stored.arrays.items():
                values = as_weights(array.read(), name, f"the {stored.kind}")
                file.create_dataset(h5_path(name), data=values)
    except RuntimeError as error:  # what h5py makes of some errors of the file
        raise OSError(reason(error)) from error


def h5_path(name):
    """Where Keras's `save_weights` and `load_weights` have the weight `name` in the file.

    Lists are folders there, whose members go by their class and number; the weights of a layer are
    in its folder `vars`, numbered in the order in which it makes them.
    """
    folder, _, weight = name.rpartition("/")
    folder = re.sub(r"\blayer_0\b", "blocks/conv_bert_block", folder)
    folder = re.sub(r"\blayer_(\d+)\b", r"blocks/conv_bert_block_\1", folder)
    return f"{folder}/vars/{_NUMBERS[weight]}"


# --- reading ---


def read(directory):
    """The Stored of a preset directory; its arrays are read when they are needed.

    Raises:
        UserError: the directory is missing, foreign, damaged, or of a newer format; or the weights
            are not those that the config asks for.
    """
    description = describe(directory)
    if description["class"] not in KINDS:
        kind = schema.shortened(description["class"])
        raise UserError(f"{directory} holds a {kind}, which this version does not know.")
    vocab_file = os.path.join(directory, VOCAB_FILE)
    stored = Stored(
        description["class"],
        description["config"],
        vocabulary=Vocabulary(
            vocab_file if os.path.exists(vocab_file) else None,
            description["lower_case"],
            description["strip_accents"],
        ),
        serving=description.get("serving", {}),
    )
    stored.check_config(os.path.join(directory, CONFIG_FILE))
    hashes = {WEIGHTS_FILE: description["weights_sha256"]} | description.get("sha256", {})
    for name in hashes:
        check_hash(directory, name, hashes)
    stored.arrays.update(_read_weights(stored, os.path.join(directory, WEIGHTS_FILE)))
    return stored


def _read_weights(stored, path):
    """The Arrays of the file at `path`, which must be all that the config asks for."""
    found, arrays = _datasets(path), {}
    names.check_layers(stored, len(found), path)
    wanted = names.shapes(stored)
    for name, shape in wanted.items():
        key = h5_path(name)
        if found.get(key) != shape:
            there = f"of shape {found[key]}" if key in found else "missing"
            raise UserError(
                f"{path} does not fit its config.json: {name!r} is {there}, not of shape {shape}."
            )
        arrays[name] = Array(shape, lambda name=name, key=key: _read_dataset(path, key, name))
    if len(found) != len(wanted):
        raise UserError(
            f"{path} holds {len(found)} arrays for the {len(wanted)} weights of the model."
        )
    return arrays


def _datasets(path):
    """Path -> shape of the weights in a file, without the seeds of dropout, which Keras stores."""
    found = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset) and "seed_generator" not in name:
            found[name] = item.shape

    try:
        with h5py.File(path) as file:
            file.visititems(note)
    except _H5_ERRORS as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from error
    return found


def _read_dataset(path, key, name):
    try:
        with h5py.File(path) as file:
            values = file[key][()]
    except _H5_ERRORS as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from error
    return as_weights(values, name, path)


def describe(directory):
    """The content of a preset's config.json, checked."""
    description = _read_config(directory)
    check_is_preset(directory, _fields(description))
    schema.check(description, _Description, os.path.join(directory, CONFIG_FILE))
    description.setdefault("strip_accents", description["lower_case"])
    if description["format"] > FORMAT:
        raise UserError(
            f"{directory} was written in format {description['format']}, this version reads up to "
            f"{FORMAT}: update convbert_tf."
        )
    return description


def preset_of(source):
    """`source`, or the directory of the preset in it if it is a run."""
    preset = os.path.join(str(source), PRESET_DIR)
    is_run = not is_address(source) and os.path.exists(os.path.join(preset, CONFIG_FILE))
    return preset if is_run else source


def is_huggingface(directory):
    """Whether the local `directory` is a Hugging Face model's."""
    return "model_type" in _fields(_read_config(directory))


def is_original(directory):
    """Whether the local `directory` holds a checkpoint of the original, and no other format.

    A config.json of its own may be beside it.
    """
    pattern = os.path.join(glob.escape(directory), "*.ckpt*.index")
    return bool(glob.glob(pattern)) and not is_described(directory)


def is_described(directory):
    """Whether the config.json of `directory` says that it is a preset or of Hugging Face."""
    return bool(_fields_at(directory) & {"model_type", "format"})


def _fields_at(directory):
    """The keys of the config.json of `directory`; none where there is none."""
    path = os.path.join(directory, CONFIG_FILE)
    return _fields(read_json(path, "a config") if os.path.exists(path) else {})


def _fields(values):
    return set(values) if isinstance(values, dict) else set()


def _read_config(directory):
    if is_original(directory):
        raise UserError(
            f"{directory} holds a checkpoint of the original, which does not tell its "
            "architecture: make a preset of it by tools/convert_checkpoint.py --config=..."
        )
    path = os.path.join(directory, CONFIG_FILE)
    return read_json(path, "a preset of convbert_tf or a Hugging Face model")
