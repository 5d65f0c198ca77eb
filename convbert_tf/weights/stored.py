"""A stored model as pure data, whatever its format: what `read` gives and `write` takes."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Required, TypedDict

import numpy as np

from convbert_tf import schema
from convbert_tf.config import ModelConfig, PretrainingConfig, check_length
from convbert_tf.console import UserError
from convbert_tf.text.stored_vocabulary import Serving
from convbert_tf.text.vocabulary import Vocabulary

# A beam of a question answerer is a table of its square for every input.
_LARGEST_BEAM = 1000


# The types of `Stored.config`, by kind (see schema.py).
class _Encoder(TypedDict, total=False):
    config: Required[ModelConfig]
    name: str


class _Pretrainer(_Encoder, total=False):
    pretraining: PretrainingConfig | None


class _Serialized(TypedDict, total=False):
    config: Required[_Encoder]


class _Head(TypedDict, total=False):
    encoder: Required[_Serialized]
    name: str


class _TokenClassifier(_Head, total=False):
    num_classes: Required[int]
    dropout: float
    labels: list[str] | None


class _TextClassifier(_TokenClassifier, total=False):
    hidden_layer: bool
    multi_label: bool


class _QuestionAnswerer(_Head, total=False):
    answerable: bool
    beam_size: int
    joint: bool
    mask_logits: bool


_CONFIGS = {
    "ConvBertEncoder": _Encoder,
    "ConvBertPretrainer": _Pretrainer,
    "TextClassifier": _TextClassifier,
    "TokenClassifier": _TokenClassifier,
    "QuestionAnswerer": _QuestionAnswerer,
}
KINDS = tuple(_CONFIGS)


# The types of `Stored.serving`, by kind.
class _ClassifierServing(Serving, total=False):
    max_score: float | None
    min_score: float | None


class _TaggerServing(Serving, total=False):
    doc_stride: int


class _AnswererServing(TypedDict, total=False):
    max_seq_length: int
    doc_stride: int
    max_query_length: int
    max_answer_length: int
    null_threshold: float | None


_SERVING = dict.fromkeys(KINDS, Serving)
_SERVING |= {
    "TextClassifier": _ClassifierServing,
    "TokenClassifier": _TaggerServing,
    "QuestionAnswerer": _AnswererServing,
}


def takes(kind, option):
    """Whether models of `kind` are served with the option `option` of `serving.export`."""
    return option in _SERVING[kind].__annotations__


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that is read when it is needed: `shape`, and `read()` for its values."""

    shape: tuple
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, values):
        """An array that is in memory."""
        values = np.asarray(values)
        return cls(values.shape, lambda: values)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model of one of this package's classes, without the class.

    Attributes:
        kind: name of the class, one of KINDS.
        config: what the class's `get_config` gives.
        arrays: name -> Array, the names and shapes those of `names.shapes(self)`.
        vocabulary: its Vocabulary, whose path is None where it has none.
        serving: options of `serving.export` that the model was trained with.
    """

    kind: str
    config: dict
    arrays: dict[str, Array] = dataclasses.field(default_factory=dict)
    vocabulary: Vocabulary = Vocabulary()
    serving: dict = dataclasses.field(default_factory=dict)

    @property
    def model_config(self):
        """ModelConfig of the encoder; of a pretrainer, of the discriminator."""
        return ModelConfig.from_dict(self._encoder_config["config"])

    @property
    def _encoder_config(self):
        return self.config["encoder"]["config"] if "encoder" in self.config else self.config

    @property
    def pretraining(self):
        """PretrainingConfig of a pretrainer."""
        return PretrainingConfig(**(self.config.get("pretraining") or {}))

    @property
    def num_parameters(self):
        return sum(int(np.prod(array.shape)) for array in self.arrays.values())

    def encoder(self):
        """The encoder alone; of a pretrainer, the discriminator's."""
        if self.kind == "ConvBertEncoder":
            return self
        prefix = "discriminator/" if self.kind == "ConvBertPretrainer" else "encoder/"
        own = {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }
        config = {"config": self.model_config.to_dict()}
        return dataclasses.replace(self, kind="ConvBertEncoder", config=config, arrays=own)

    def with_vocabulary(self, vocabulary):
        return dataclasses.replace(self, vocabulary=vocabulary)

    def check_config(self, where):
        """Refuses a config that describes no model of the kind; `where` names its file."""
        schema.check(self.config, _CONFIGS[self.kind], where, "config")
        _check_keys(self.config, _CONFIGS[self.kind], where)
        pretraining = self.config.get("pretraining") or {}
        schema.check(pretraining, PretrainingConfig, where, "config.pretraining", closed=True)
        schema.check(self.serving, _SERVING[self.kind], where, "serving", closed=True)
        try:
            self.model_config, self.pretraining  # noqa: B018  they check themselves
            _check_options(self.config)
            _check_serving(self.serving, self.config, self.model_config)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


def _check_keys(config, kind, where):
    """Refuses options that the class of this kind, or the encoder's, does not take."""
    parts = {"config": (config, kind)}
    if "encoder" in config:
        parts["config.encoder.config"] = (config["encoder"]["config"], _Encoder)
    for key, (values, known) in parts.items():
        unknown = sorted(set(values) - set(known.__annotations__))
        if unknown:
            raise UserError(f"{where}: {key}.{unknown[0]} is no option of the model.")
        if "/" in values.get("name", "") or values.get("name") == "":
            raise UserError(f"{where}: {key}.name is {values['name']!r}, which is no layer's name.")


def _check_options(config):
    """Refuses options of a head that are of the right type but impossible."""
    if "num_classes" in config:
        check_labels(config.get("labels"), config["num_classes"])
        check_multi_label(config.get("multi_label", False), config["num_classes"])
    if not 0 <= config.get("dropout", 0) < 1:
        raise UserError(f"dropout must be in [0, 1), got {config['dropout']}.")
    check_mask(config.get("joint", True), config.get("mask_logits", True))
    if not 1 <= config.get("beam_size", 1) <= _LARGEST_BEAM:
        raise UserError(f"beam_size must be from 1 to {_LARGEST_BEAM}, got {config['beam_size']}.")


def _check_serving(serving, config, model_config):
    """Refuses options that the model could not be exported with."""
    length = serving.get("max_seq_length", model_config.max_position_embeddings)
    if "max_seq_length" in serving:
        check_length(length, model_config)
    for name in ("doc_stride", "max_query_length", "max_answer_length"):
        if serving.get(name, 1) < 1:
            raise UserError(f"{name} must be at least 1, got {serving[name]}.")
    query = serving.get("max_query_length", 0)
    if query and length < query + 4:
        raise UserError(
            f"max_seq_length {length} must exceed max_query_length {query} by at least 4."
        )
    if serving.get("null_threshold") is not None and not config.get("answerable"):
        raise UserError("null_threshold: this model always answers (SQuAD 1.1).")


def check_mask(joint, mask_logits):
    """Refuses a joint question answerer without a mask: there is none."""
    if joint and not mask_logits:
        raise UserError("mask_logits=False is for joint=False: the joint head has its mask.")


def as_labels(labels):
    """Names of classes as users give them, as a list; None for none."""
    if isinstance(labels, str | dict | set | frozenset):
        kind = type(labels).__name__
        raise UserError(f"labels must be a list, the names of the classes in order, not a {kind}.")
    return list(labels) if labels is not None and len(labels) else None


def check_labels(labels, num_classes):
    """Refuses `labels` (None for none) that are not `num_classes` different strings."""
    if num_classes is None:
        raise UserError("num_classes is missing: the number of classes, or give their labels.")
    is_number = isinstance(num_classes, numbers.Real) and not isinstance(num_classes, bool)
    if not is_number or num_classes != num_classes // 1:
        raise UserError(f"num_classes must be a whole number, got {num_classes!r}.")
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}.")
    if labels is None:
        return
    for label in labels:
        if not isinstance(label, str):
            raise UserError(f"labels must be strings; {label!r} is a {type(label).__name__}.")
    if len(labels) != num_classes:
        raise UserError(f"{len(labels)} labels for {num_classes:,} classes: give one for each.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(f"the label {twice!r} stands for several classes: labels must differ.")


def check_multi_label(multi_label, num_classes):
    """Refuses several labels at once where there is only one."""
    if multi_label and num_classes < 2:
        raise UserError(f"multi_label needs at least 2 labels, got num_classes {num_classes}.")


def as_weights(values, name, where):
    """`values` as float32, which must be finite numbers; `where` and `name` are for the message.

    Raises:
        UserError: they are not.
    """
    try:
        # V: bfloat16 and its like. Whole numbers and bytes are quantised, and mean nothing alone.
        if values.dtype.kind not in "fV" or values.dtype.itemsize < 2:
            raise TypeError(f"values of type {values.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            values = np.asarray(values, "float32")
    except (AttributeError, TypeError, ValueError) as error:
        kind = getattr(getattr(values, "dtype", None), "name", type(values).__name__)
        raise UserError(
            f"{where}: {name!r} is of type {kind:.40}, not of 16, 32 or 64 bits of floating point."
        ) from error
    # One pass without a copy; the sum of finite values may overflow, so that is no proof.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(values)
    if not np.isfinite(total) and not np.isfinite(values).all():
        raise UserError(
            f"{where}: {name!r} has values that are not finite (NaN or infinity): the model has "
            "diverged, or the file is damaged."
        )
    return values


def encoder_config(model_config):
    """A `config` of kind "ConvBertEncoder"."""
    return {"config": model_config.to_dict()}


def head_config(model_config, **options):
    """A `config` of a model with a head on an encoder of ModelConfig `model_config`."""
    encoder = {"class_name": "ConvBertEncoder", "config": encoder_config(model_config)}
    return {"encoder": encoder} | options


def pretrainer_config(model_config, pretraining):
    """A `config` of kind "ConvBertPretrainer"."""
    return encoder_config(model_config) | {"pretraining": dataclasses.asdict(pretraining)}
