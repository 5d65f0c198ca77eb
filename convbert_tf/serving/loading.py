"""Models that answer texts, from a SavedModel, a LiteRT model or a preset, behind one call."""

import dataclasses
import os
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (its ops are in the graph of a SavedModel)

from convbert_tf.console import UserError, without_stderr
from convbert_tf.files import is_address, read_json
from convbert_tf.serving import litert
from convbert_tf.serving.saved_model import SIGNATURE_FILE, make_server
from convbert_tf.text import requests
from convbert_tf.weights.presets import preset_of

_LITERT = "a LiteRT model"
_WORDS = re.compile(r"\w+|[^\w\s]")


def estimated_lengths(texts):
    """About how many tokens each of `texts` has, without its tokenizer: [n]."""
    return np.array([len(_WORDS.findall(text)) + len(text) / 40 for text in texts])


@dataclasses.dataclass(frozen=True)
class Served:
    """A model that takes texts.

    Attributes:
        inputs: names of its inputs: ["text"], ["text_a", "text_b"] or ["question", "context"].
        labels: names of its classes, or None where it has none or they are not known.
        call: a function of string tensors [B] by these names -> dict of tensors [B, ...]; without
            the outputs that end in _bytes, which give the texts of others again.
        owner: of the weights that `call` computes with; they go when it goes.
        lengths: a function of n texts -> about how many tokens each has, [n].

    Call:
        The inputs by their names, each a list of B texts (str, or bytes of UTF-8). Returns a dict
        of arrays [B, ...], as `call` does; strings are bytes.
    """

    inputs: list
    labels: list | None
    call: Callable
    owner: object
    lengths: Callable = estimated_lengths

    def __call__(self, **texts):
        batch = zip(self.inputs, requests.checked(texts, self.inputs), strict=True)
        outputs = self.call(**{name: tf.constant(values, tf.string) for name, values in batch})
        return {name: values.numpy() for name, values in outputs.items()}


def load(source, **options):
    """The Served model in `source`.

    Args:
        source: a SavedModel of `export`, a LiteRT directory of `export_litert`, a fine-tuned
            preset, the run that has made one, or "hf://owner/name".
        **options: as for `export`, also `serve`, of a preset alone; None is as not given.

    Raises:
        UserError: there is no such model; it has no head to serve; an option does not fit it.
    """
    exported = _exported_kind(source)
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if exported and given:
        raise UserError(f"{', '.join(given)}: {exported} is as it was exported.")
    if exported:
        return _load_litert(source) if exported == _LITERT else _load_saved_model(source)
    server = make_server(preset_of(source), **options)
    described = server.describe()

    def lengths(texts):
        return server.tokenizer.tokenize(texts).row_lengths().numpy()

    call = _without_bytes(server.serve)
    return Served(described["inputs"], described.get("labels"), call, server, lengths)


def _without_bytes(serve):
    def call(**texts):
        outputs = serve(**texts)
        return {name: x for name, x in outputs.items() if not name.endswith("_bytes")}

    return call


def is_exported(source):
    """Whether `source` is a directory of an exported model."""
    return bool(_exported_kind(source))


def _exported_kind(source):
    """What `source` holds, "" if no exported model."""
    if is_address(source):
        return ""
    if litert.holds_model(source):
        return _LITERT
    return "a SavedModel" if os.path.exists(os.path.join(source, "saved_model.pb")) else ""


def _load_litert(directory):
    with without_stderr():
        model = litert.load(directory)

    def call(**texts):
        outputs = model(**{name: tensor.numpy() for name, tensor in texts.items()})
        return {name: tf.constant(values) for name, values in outputs.items()}

    return Served(model.inputs, model.labels, _without_bytes(call), model, model.token_counts)


def _load_saved_model(directory):
    try:
        loaded = tf.saved_model.load(directory)
        serve = loaded.signatures["serving_default"]
    except (OSError, IndexError, KeyError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"the SavedModel in {directory} is damaged or of another kind; export it again."
        ) from error
    path, names = os.path.join(directory, SIGNATURE_FILE), serve.structured_input_signature[1]
    described = read_json(path, "what a SavedModel takes", dict) if os.path.exists(path) else {}
    inputs, labels = described.get("inputs"), described.get("labels")
    if not isinstance(inputs, list) or set(inputs) != set(names):
        inputs = sorted(names)
    labels = labels if isinstance(labels, list) else None
    return Served(inputs, labels, _without_bytes(serve), loaded)
