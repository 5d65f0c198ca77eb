"""ConvBERT for TensorFlow 2 and Keras 3: pre-train, fine-tune, serve.

The public names below are loaded when they are first used, so that the TensorFlow-free ones stay
usable where there is no TensorFlow (`KERAS_BACKEND=jax`).
"""

import importlib
import importlib.machinery
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
    "finetune": "workflows.rows",
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

# Classes that Keras meets in saved models, by module; see `_Saved`.
_SAVED = {
    "modeling.linear": ("Dense", "FeedForward", "GroupedDense", "LayerNormalization"),
    "modeling.layers": ("ConvBertBlock", "MixedAttention", "SpanDynamicConvolution"),
    "modeling.encoder": ("ConvBertEncoder", "Embeddings"),
    "modeling.heads": ("QuestionAnswerer", "TextClassifier", "TokenClassifier"),
    "modeling.pretraining": ("ConvBertPretrainer", "DiscriminatorHead", "MaskedLmHead"),
    "training.optimization": ("AdamW", "FusedAdamW", "LinearWarmupDecay"),
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
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})


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


class _Saved:
    """Stands for a class in Keras's registry until the module that registers it is imported.

    So `keras.models.load_model` finds our classes after `import convbert_tf` alone, which imports
    neither Keras nor TensorFlow.
    """

    def __init__(self, module, name):
        self._module, self.__name__ = module, name

    def __getattr__(self, name):
        module = importlib.import_module(f"{__name__}.{self._module}")
        return getattr(getattr(module, self.__name__), name)

    def __call__(self, *args, **kwargs):
        return self.__getattr__("__call__")(*args, **kwargs)


def _register(keras):
    """Names our classes to Keras; those that are imported already stay."""
    registry = keras.saving.get_custom_objects()
    for module, names in _SAVED.items():
        for name in names:
            registry.setdefault(f"{__name__}>{name}", _Saved(module, name))


class _AfterKeras:
    """Registers our classes as soon as Keras has been imported, by whomever."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname != "keras":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _register(module)
                sys.meta_path.remove(_AfterKeras)

            spec.loader.exec_module = exec_module
        return spec


if "keras" in sys.modules:
    _register(sys.modules["keras"])
else:
    sys.meta_path.insert(0, _AfterKeras)
