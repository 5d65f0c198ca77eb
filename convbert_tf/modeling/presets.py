"""Stored models to models, whatever their kind and format; public as `convbert_tf.presets`."""

from convbert_tf.files import fetch
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from convbert_tf.modeling.storing import save
from convbert_tf.weights import formats, presets
from convbert_tf.weights.formats import serving, vocab_file, vocabulary
from convbert_tf.weights.presets import describe, is_huggingface, is_original

__all__ = [
    "build",
    "check_vocabulary",
    "describe",
    "fetch",
    "is_huggingface",
    "is_original",
    "load",
    "load_encoder",
    "misfit",
    "preset_of",
    "save",
    "serving",
    "vocab_file",
    "vocabulary",
]

_CLASSES = {
    cls.__name__: cls
    for cls in (
        ConvBertEncoder,
        ConvBertPretrainer,
        TextClassifier,
        TokenClassifier,
        QuestionAnswerer,
    )
}


def load(source):
    """Returns the model in `source`, of whatever class; see weights/formats.py for its errors.

    Args:
        source: a preset or Hugging Face directory, or "hf://owner/name@revision".
    """
    return build(formats.read(source))


def build(stored):
    """Returns the model of a Stored one."""
    return _CLASSES[stored.kind].from_stored(stored)


def load_encoder(source):
    """Returns the encoder of the model in `source`: of a pretrainer the discriminator.

    Of a head that has no counterpart here, a Hugging Face directory's encoder is taken as well.
    """
    return ConvBertEncoder.from_preset(source)


preset_of = presets.preset_of


def check_vocabulary(path, model):
    """Refuses a vocabulary with ids that `model` has no embedding for."""
    presets.check_vocabulary(path, getattr(model, "encoder", model).config)


def misfit(model, kind, **options):
    """Why the head of `model` is none of the class `kind` with `options`, or "" if it is one."""
    if not isinstance(model, kind):
        return f"it is a {type(model).__name__}, not a {kind.__name__}"
    has = model.get_config()
    asked = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    differing = [key for key in asked if asked[key] != has[key]]
    return "; ".join(f"its {key}: {has[key]!r}, not {asked[key]!r}" for key in differing)
