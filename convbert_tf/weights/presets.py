"""Preset directories: what passes between steps and people.

    config.json         the class of the model, its config, a hash of the weights file
    model.weights.h5    weights, as Keras 3 writes them
    vocab.txt           the vocabulary, where one is known
    README.md           one line that says what it is

A preset is written whole or not at all, and read whole or not at all. What is read may as well be
a Hugging Face directory, or a preset or model on its hub: "hf://owner/name@revision".
"""

import contextlib
import glob
import hashlib
import importlib
import os
import shutil
import tempfile

import h5py

from convbert_tf.console import UserError, reason
from convbert_tf.files import read_json, write_json
from convbert_tf.weights import huggingface_files

FORMAT = 1
# Class of a preset -> its module, imported when it is asked for, as huggingface is: those modules
# import this one.
MODULES = {
    "ConvBertEncoder": "modeling.encoder",
    "ConvBertPretrainer": "modeling.pretraining",
    "TextClassifier": "modeling.heads",
    "TokenClassifier": "modeling.heads",
    "QuestionAnswerer": "modeling.heads",
}
CONFIG_FILE, WEIGHTS_FILE, VOCAB_FILE = "config.json", "model.weights.h5", "vocab.txt"
README_FILE = "README.md"


def save(model, directory, vocab_file=None, lower_case=True, serving=None):
    """Writes `model` (an encoder, a pretrainer or a model with a head) to `directory`.

    Args:
        model: a model of this package.
        directory: made if it is not there; a preset that is there is replaced.
        vocab_file: path of a vocabulary to go with it.
        lower_case: whether texts are lower-cased before they are tokenised.
        serving: arguments of serving.export that the model was trained with, a dict.

    Raises:
        UserError: `vocab_file` has more pieces than the model's vocabulary.
    """
    with replacing(directory) as partial:
        _write_files(model, partial, vocab_file, lower_case, serving or {})


@contextlib.contextmanager
def replacing(directory):
    """A new folder, whose files move into `directory` when all went well; config.json last.

    Everything that may fail comes first, in the folder beside; without config.json there is no
    model in a directory.
    """
    if _is_address(directory):
        raise UserError(f"{directory}: a model is written to a directory, not to the hub.")
    os.makedirs(directory, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=directory) as partial:
        yield partial
        for name in sorted(os.listdir(partial), key=lambda name: name == CONFIG_FILE):
            os.replace(os.path.join(partial, name), os.path.join(directory, name))


def check_vocabulary(vocab_file, model):
    """Refuses a vocabulary with ids that `model` has no embedding for."""
    config = getattr(model, "encoder", model).config
    with open(vocab_file, encoding="utf-8") as file:
        pieces = sum(1 for _ in file)
    if pieces > config.vocab_size:
        raise UserError(
            f"{vocab_file} has {pieces:,} pieces, the model {config.vocab_size:,}: it is another "
            "model's vocabulary."
        )


def _write_files(model, directory, vocab_file, lower_case, serving):
    names, kind = (WEIGHTS_FILE, README_FILE, CONFIG_FILE), type(model).__name__
    weights, readme, config = (os.path.join(directory, name) for name in names)
    model.save_weights(weights)
    with open(readme, "w", encoding="utf-8") as file:
        file.write(
            f"A {kind} of convbert_tf with {model.count_params():,} parameters; load it with "
            f"`convbert_tf.{kind}.from_preset(directory)`.\n"
        )
    if vocab_file:
        check_vocabulary(vocab_file, model)
        shutil.copyfile(vocab_file, os.path.join(directory, VOCAB_FILE))
    description = {
        "format": FORMAT,
        "class": kind,
        "config": model.get_config(),
        "lower_case": lower_case,
        "weights_sha256": _sha256(weights),
        "serving": serving,
    }
    write_json(config, description)


def _is_address(source):
    return str(source).startswith("hf://")


def fetch(source):
    """Path of a local directory: `source`, or where "hf://owner/name@revision" is downloaded to."""
    if not _is_address(source):
        return source
    return huggingface_files.download(source)


def load(source):
    """The model in `source`, of whatever class: a preset, or what huggingface.load takes.

    Raises:
        UserError: the directory is missing, foreign, damaged, or of a newer format; or a weight
            of the model is not in the file, or one in the file is not in the model.
    """
    directory = fetch(source)
    if is_huggingface(directory):
        return importlib.import_module("convbert_tf.weights.huggingface").load(directory)
    description = describe(directory)
    weights_file = os.path.join(directory, WEIGHTS_FILE)
    if not os.path.exists(weights_file):
        raise UserError(f"{weights_file} is not there: the preset is incomplete.")
    if _sha256(weights_file) != description["weights_sha256"]:
        raise UserError(
            f"{weights_file} is not the file that {CONFIG_FILE} was written for (its hash "
            "differs): the preset is damaged; copy or make it again."
        )
    kind = description["class"]
    if kind not in MODULES:
        raise UserError(f"{directory} holds a {kind}, which this version does not know.")
    cls = getattr(importlib.import_module(f"convbert_tf.{MODULES[kind]}"), kind)
    try:
        model = cls.from_config(description["config"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{directory}/{CONFIG_FILE} describes no {kind}: {reason(error)}"
        ) from error
    _load_weights(model, weights_file)
    return model


def load_encoder(source):
    """The encoder of the model in `source`, as `load` takes it: of a pretrainer the discriminator.

    Of a head that has no counterpart here, a Hugging Face directory's encoder is taken as well.
    """
    model = load(source)
    return getattr(model, "encoder", model)


def describe(directory):
    """The content of a preset's config.json, checked."""
    description = _read_config(directory)
    fields = {"class", "config", "format", "weights_sha256"}
    if not fields <= _fields(description):
        preset = os.path.join(directory, "preset")
        if os.path.exists(os.path.join(preset, CONFIG_FILE)):
            raise UserError(f"{directory} is a run; its preset is {preset}.")
        raise UserError(
            f"{directory} is no preset of convbert_tf; tools/convert_checkpoint.py makes one from "
            "an original or Hugging Face checkpoint."
        )
    kinds = {"class": str, "config": dict, "format": int, "weights_sha256": str, "lower_case": bool}
    for name, kind in kinds.items():
        if not isinstance(description.get(name), kind):
            raise UserError(
                f"{directory}/{CONFIG_FILE} is damaged: {name!r} is no {kind.__name__}."
            )
    if description["format"] > FORMAT:
        raise UserError(
            f"{directory} was written in format {description['format']}, this version reads up to "
            f"{FORMAT}: update convbert_tf."
        )
    return description


def is_huggingface(directory):
    """Whether the local `directory` is a Hugging Face model's."""
    return "model_type" in _fields(_read_config(directory))


def is_original(directory):
    """Whether the local `directory` holds a checkpoint of the original, and no other format.

    A config.json of its own may be beside it.
    """
    pattern = os.path.join(glob.escape(directory), "*.ckpt*.index")
    if not glob.glob(pattern):
        return False
    path = os.path.join(directory, CONFIG_FILE)
    values = read_json(path, "a config") if os.path.exists(path) else {}
    return not _fields(values) & {"model_type", "format"}


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


def vocabulary(source):
    """Path of the vocabulary that goes with `source`, and whether its texts are lower-cased.

    Raises:
        UserError: it has none.
    """
    directory = fetch(source)
    if is_huggingface(directory):
        return huggingface_files.vocabulary(directory)
    return vocab_file(directory), describe(directory)["lower_case"]


def serving(source):
    """The arguments of serving.export that the model in `source` was trained with."""
    directory = fetch(source)
    return {} if is_huggingface(directory) else describe(directory).get("serving", {})


def vocab_file(directory):
    """Path of the preset's vocabulary.

    Raises:
        UserError: it has none.
    """
    path = os.path.join(directory, VOCAB_FILE)
    if not os.path.exists(path):
        raise UserError(f"{path} is not there: the preset has no vocabulary.")
    return path


def _load_weights(model, path):
    """Loads `path` into `model` and checks that each array of the file went to a weight."""
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} does not fit its config.json: {reason(error)}") from error
    arrays = stored_arrays(os.path.dirname(path))
    if len(arrays) != len(model.weights):
        raise UserError(
            f"{path} holds {len(arrays)} arrays for the {len(model.weights)} weights of the model."
        )


def stored_arrays(directory):
    """Names of the weights in a preset's file."""
    arrays = []

    def note(name, item):
        if isinstance(item, h5py.Dataset) and "seed_generator" not in name:
            arrays.append(name)

    with h5py.File(os.path.join(directory, WEIGHTS_FILE)) as file:
        file.visititems(note)
    return arrays


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
