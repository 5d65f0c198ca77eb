"""Models that take text and give answers: SavedModels with the tokenizer inside.

What is public here is loaded when it is first used.
"""

import importlib

_PUBLIC = {
    "ClassifierServer": "sentences",
    "EmbedderServer": "pretrained",
    "MaskFillerServer": "pretrained",
    "QuestionAnswererServer": "questions",
    "ReplacedTokenServer": "pretrained",
    "TaggerServer": "tokens",
    "export": "saved_model",
    "export_litert": "litert_export",
    "freeze": "inference",
    "load": "loading",
}

__all__ = [*_PUBLIC]


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
