"""ConvBERT for TensorFlow 2 and Keras 3: pre-train, fine-tune, serve.

The public names below are loaded when they are first used, so that the TensorFlow-free ones stay
usable where there is no TensorFlow (`KERAS_BACKEND=jax`).
"""

import importlib

_PUBLIC = {
    "ModelConfig": "config",
    "PretrainingConfig": "config",
    "UserError": "console",
    "ConvBertEncoder": "model",
    "TextClassifier": "heads",
    "TokenClassifier": "heads",
    "QuestionAnswerer": "heads",
    "ConvBertPretrainer": "pretraining",
    "TextPreprocessor": "preprocessing",
    "WordPieceTokenizer": "tokenization",
    "AdamW": "optimization",
}
_MODULES = (
    "conversion",
    "glue",
    "huggingface",
    "inference",
    "layers",
    "optimization",
    "presets",
    "serving",
    "squad",
)

__all__ = [*_PUBLIC, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
