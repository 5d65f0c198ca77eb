"""A stored model as pure data, whatever its format: what `read` gives and `write` takes."""

import dataclasses
from collections.abc import Callable

import numpy as np

from convbert_tf.config import ModelConfig, PretrainingConfig
from convbert_tf.console import UserError, reason
from convbert_tf.text.vocabulary import Vocabulary


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
        kind: name of the class, one of names.KINDS.
        config: what the class's `get_config` gives.
        arrays: name -> Array, the names and shapes those of `names.shapes(self)`.
        vocabulary: its Vocabulary, whose path is None where it has none.
        serving: arguments of `serving.export` that the model was trained with.
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
        try:
            values = self._encoder_config["config"]
            if not isinstance(values, dict):
                raise ValueError(f"{values!r} is no architecture")
            self.model_config, self.pretraining  # noqa: B018  they check themselves
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} describes no {self.kind}: {reason(error)}") from error


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
