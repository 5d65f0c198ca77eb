"""Models to and from their stored form (weights/stored.py)."""

import functools

from keras import ops

from convbert_tf.weights import names, presets
from convbert_tf.weights.stored import Array, Stored, Vocabulary


def describe(model, **details):
    """The Stored of a model of this package; `details` are fields of it, say `vocabulary`."""
    kind = next(base.__name__ for base in type(model).__mro__ if base.__name__ in names.KINDS)
    stored = Stored(kind, model.get_config(), **details)
    for name in names.shapes(stored):
        stored.arrays[name] = _array(_variable(model, name))
    return stored


def _array(variable):
    return Array(tuple(variable.shape), lambda: ops.convert_to_numpy(variable))


def variables(model):
    """Name (see weights/names.py) -> Keras variable, of all weights of a model of this package."""
    return {name: _variable(model, name) for name in describe(model).arrays}


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


def save(model, directory, vocab_file=None, lower_case=True, serving=None, strip_accents=None):
    """Writes `model` (an encoder, a pretrainer or a model with a head) as a preset.

    Args:
        model: a model of this package.
        directory: made if it is not there; a preset that is there is replaced.
        vocab_file: path of a vocabulary to go with it.
        lower_case: whether texts are lower-cased before they are tokenised.
        serving: arguments of `serving.export` that the model was trained with, a dict.
        strip_accents: whether their accents are stripped; None is as `lower_case`.

    Raises:
        UserError: `vocab_file` cannot be read, or has more pieces than the model's vocabulary.
    """
    vocabulary = Vocabulary(vocab_file, lower_case, strip_accents)
    presets.write(describe(model, vocabulary=vocabulary, serving=serving or {}), directory)
