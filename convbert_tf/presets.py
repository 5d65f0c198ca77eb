"""Preset directories: what passes between steps and people.

    config.json         the class of the model, its config, a hash of the weights file
    model.weights.h5    weights, as Keras 3 writes them
    vocab.txt           the vocabulary, where one is known
    README.md           one line that says what it is

A preset is written whole or not at all, and read whole or not at all.
"""

import hashlib
import importlib
import os
import shutil
import tempfile
import textwrap

import h5py

from convbert_tf.config import read_json, write_json
from convbert_tf.console import UserError

FORMAT = 1
# Class of a preset -> its module, imported when it is asked for: those modules import this one.
MODULES = {
    "ConvBertEncoder": "model",
    "ConvBertPretrainer": "pretraining",
    "TextClassifier": "heads",
    "QuestionAnswerer": "heads",
}
CONFIG_FILE, WEIGHTS_FILE, VOCAB_FILE = "config.json", "model.weights.h5", "vocab.txt"
README_FILE = "README.md"


def save(model, directory, vocab_file=None, lower_case=True):
    """Writes `model` (an encoder, pretrainer, classifier or question answerer) to `directory`.

    Args:
        model: a model of this package.
        directory: made if it is not there; a preset that is there is replaced.
        vocab_file: path of a vocabulary to go with it.
        lower_case: whether texts are lower-cased before they are tokenised.
    """
    os.makedirs(directory, exist_ok=True)
    # Everything that may fail comes first, in a folder beside; then the files move.
    with tempfile.TemporaryDirectory(prefix="partial-", dir=directory) as partial:
        names = _write_files(model, partial, vocab_file, lower_case)
        for name in names:
            os.replace(os.path.join(partial, name), os.path.join(directory, name))


def _write_files(model, directory, vocab_file, lower_case):
    """Writes the files of a preset; their names, config.json last: without it is no preset."""
    names, kind = [WEIGHTS_FILE, README_FILE, CONFIG_FILE], type(model).__name__
    weights, readme, config = (os.path.join(directory, name) for name in names)
    model.save_weights(weights)
    with open(readme, "w", encoding="utf-8") as file:
        file.write(
            f"A {kind} of convbert_tf with {model.count_params():,} parameters; load it with "
            f"`convbert_tf.{kind}.from_preset(directory)`.\n"
        )
    if vocab_file:
        shutil.copyfile(vocab_file, os.path.join(directory, VOCAB_FILE))
        names.insert(0, VOCAB_FILE)
    description = {
        "format": FORMAT,
        "class": kind,
        "config": model.get_config(),
        "lower_case": lower_case,
        "weights_sha256": _sha256(weights),
    }
    write_json(config, description)
    return names


def load(directory):
    """The model that was saved in `directory`, of whatever class.

    Raises:
        UserError: the directory is missing, foreign, damaged, or of a newer format; or a weight
            of the model is not in the file, or one in the file is not in the model.
    """
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
    importlib.import_module("convbert_tf.model")  # the encoder inside a head's config
    cls = getattr(importlib.import_module(f"convbert_tf.{MODULES[kind]}"), kind)
    try:
        model = cls.from_config(description["config"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = _one_line(error)
        raise UserError(f"{directory}/{CONFIG_FILE} describes no {kind}: {reason}") from error
    _load_weights(model, weights_file)
    return model


def load_encoder(directory):
    """The encoder of the model in `directory`: of a pretrainer the discriminator."""
    model = load(directory)
    return getattr(model, "encoder", model)


def describe(directory):
    """The content of a preset's config.json, checked."""
    description = read_json(os.path.join(directory, CONFIG_FILE), "a convbert_tf preset")
    fields = {"class", "config", "format", "weights_sha256"}
    if not isinstance(description, dict) or not fields <= description.keys():
        raise UserError(
            f"{directory} is no preset of convbert_tf; convbert_tf.conversion makes one from an "
            "original or Hugging Face checkpoint."
        )
    if description["format"] > FORMAT:
        raise UserError(
            f"{directory} was written in format {description['format']}, this version reads up to "
            f"{FORMAT}: update convbert_tf."
        )
    return description


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
        raise UserError(f"{path} does not fit its config.json: {_one_line(error)}") from error
    arrays = []
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                arrays.append(name)
                if isinstance(item, h5py.Dataset) and "seed_generator" not in name
                else None
            )
        )
    if len(arrays) != len(model.weights):
        raise UserError(
            f"{path} holds {len(arrays)} arrays for the {len(model.weights)} weights of the model."
        )


def _one_line(error):
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
