"""Models to and from their stored form (weights/stored.py)."""

import dataclasses
import functools
import os

from keras import ops

from convbert_tf.weights import names, presets
from convbert_tf.weights.stored import KINDS, Array, Stored, Vocabulary, takes


class Storable:
    """Makes a keras.Model of this package one that can be stored and read again."""

    @classmethod
    def from_stored(cls, stored):
        """Returns the model of a Stored one of this kind."""
        model = cls.from_config(stored.config)
        set_weights(model, stored)
        return model

    def save_to_preset(
        self,
        directory,
        preprocessor=None,
        lower_case=True,
        strip_accents=None,
        vocab_file=None,
        **serving,
    ):
        """Writes a preset directory, from which the model can be loaded, trained and exported.

        Args:
            directory, preprocessor, lower_case, vocab_file, strip_accents: as for `save`.
            **serving: more options of `serving.export` that the model was trained with, say
                max_score=5.0 or null_threshold=-1.5.

        Raises:
            UserError: as `save`.
        """
        save(self, directory, preprocessor, lower_case, serving, strip_accents, vocab_file)


def describe(model, **details):
    """The Stored of a model of this package; `details` are fields of it, say `vocabulary`."""
    stored = _without_arrays(model, **details)
    for name in names.shapes(stored):
        stored.arrays[name] = _array(_variable(model, name))
    return stored


def _without_arrays(model, **details):
    kind = next(base.__name__ for base in type(model).__mro__ if base.__name__ in KINDS)
    return Stored(kind, model.get_config(), **details)


def _array(variable):
    return Array(tuple(variable.shape), lambda: ops.convert_to_numpy(variable))


def variables(model):
    """Name (see weights/names.py) -> Keras variable, of all weights of a model of this package."""
    return {name: _variable(model, name) for name in names.shapes(_without_arrays(model))}


def _variable(model, name):
    def attribute(layer, part):
        kind, _, number = part.partition("_")
        is_block = kind == "layer" and number.isdecimal()
        return layer.blocks[int(number)] if is_block else getattr(layer, part)

    return functools.reduce(attribute, name.split("/"), model)


def set_weights(model, stored):
    """Sets all weights of `model`, which was built from the config of `stored`, from its arrays."""
    for name, array in stored.arrays.items():
        _variable(model, name).assign(array.read())


def save(
    model,
    directory,
    preprocessor=None,
    lower_case=True,
    serving=None,
    strip_accents=None,
    vocab_file=None,
):
    """Writes `model` (an encoder, a pretrainer or a model with a head) as a preset.

    Args:
        model: a model of this package.
        directory: made if it is not there; a preset that is there is replaced.
        preprocessor: TextPreprocessor whose vocabulary, casing, length and pairing go with it; or
            the path of a vocabulary alone.
        lower_case: with a path, whether texts are lower-cased before they are tokenised.
        serving: more options of `serving.export` that the model was trained with, a dict.
        strip_accents: with a path, whether accents are stripped; None is as `lower_case`.
        vocab_file: the path of a vocabulary, as for `preprocessor`.

    Raises:
        UserError: the vocabulary cannot be read or has more pieces than the model's, a weight is
            not finite, or an option is impossible.
    """
    given = vocab_file if preprocessor is None else preprocessor
    stored = describe(model, **_details(given, lower_case, strip_accents))
    known = {name: value for name, value in stored.serving.items() if takes(stored.kind, name)}
    presets.write(dataclasses.replace(stored, serving=known | (serving or {})), directory)


def _details(preprocessor, lower_case, strip_accents):
    """Fields of Stored for the arguments of `save`."""
    if not hasattr(preprocessor, "tokenizer"):
        vocab_file = None if preprocessor is None else os.fspath(preprocessor)
        return {"vocabulary": Vocabulary(vocab_file, lower_case, strip_accents)}
    serving = {"max_seq_length": preprocessor.max_seq_length}
    if preprocessor.pair is not None:
        serving["pair"] = preprocessor.pair
    tokenizer = preprocessor.tokenizer
    vocabulary = Vocabulary(tokenizer.vocab_file, tokenizer.lower_case, tokenizer.strip_accents)
    return {"vocabulary": vocabulary, "serving": serving}
