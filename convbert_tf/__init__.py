"""ConvBERT for TensorFlow 2 and Keras 3: pre-train, fine-tune, serve.

The public names below are loaded when they are first used, so that the TensorFlow-free ones stay
usable where there is no TensorFlow (`KERAS_BACKEND=jax`).
"""

import importlib
import importlib.util
import sys

_PUBLIC = {
    "ModelConfig": "config.model",
    "PretrainingConfig": "config.model",
    "UserError": "console",
    "ConvBertEncoder": "modeling.encoder",
    "TextClassifier": "modeling.heads",
    "TokenClassifier": "modeling.heads",
    "QuestionAnswerer": "modeling.heads",
    "ConvBertPretrainer": "modeling.pretraining",
    "TextPreprocessor": "text.preprocessing",
    "WordPieceTokenizer": "text.tokenization",
    "AdamW": "training.optimization",
}
# Public modules by their short names: `convbert_tf.layers`, `from convbert_tf.layers import ...`.
_MODULES = {
    "conversion": "conversion",
    "glue": "tasks.glue",
    "huggingface": "modeling.huggingface",
    "inference": "serving.inference",
    "layers": "modeling.layers",
    "optimization": "training.optimization",
    "presets": "modeling.presets",
    "serving": "serving",
    "squad": "tasks.squad",
}

__all__ = [*_PUBLIC, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


class _ShortNames:
    """Finds the modules of `_MODULES` under their short names, for `import` statements."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        place = _MODULES.get(name)
        if package != __name__ or place in (None, name):
            return None
        return importlib.util.spec_from_loader(fullname, _ShortNames)

    @staticmethod
    def create_module(spec):
        module = importlib.import_module(f"{__name__}.{_MODULES[spec.name.rpartition('.')[2]]}")
        spec.loader_state = module.__spec__  # which the import system is about to replace
        return module

    @staticmethod
    def exec_module(module):
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_ShortNames)
