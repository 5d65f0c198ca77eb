"""The hidden layer of Hugging Face's classifiers, which the original's have not: there and back."""

import dataclasses

import numpy as np

from convbert_tf.console import UserError
from convbert_tf.weights.stored import Array


def added_to(stored):
    """A TextClassifier with `hidden_layer` that gives the logits of one without."""
    config, num_classes = stored.model_config, stored.config["num_classes"]
    if not _can_hold_logits(stored):
        raise UserError(
            f"Hugging Face's classifier has a hidden layer of {config.hidden_size} units after "
            f"{config.hidden_act}, which cannot hold {num_classes} logits as they are; train with "
            "hidden_layer=True."
        )
    kernel, bias = (stored.arrays[f"logits/{x}"].read() for x in ("kernel", "bias"))
    rest, eye = config.hidden_size - 2 * num_classes, np.eye(num_classes, dtype="float32")
    head = {
        "hidden/kernel": np.pad(np.concatenate([kernel, -kernel], axis=1), [(0, 0), (0, rest)]),
        "hidden/bias": np.pad(np.concatenate([bias, -bias]), (0, rest)),
        "logits/kernel": np.pad(np.concatenate([eye, -eye]), [(0, rest), (0, 0)]),
        "logits/bias": np.zeros(num_classes, "float32"),
    }
    return _with_head(stored, head, hidden_layer=True)


def _with_head(stored, head, hidden_layer):
    """`stored` with other arrays for the head: name -> values."""
    arrays = {n: array for n, array in stored.arrays.items() if n.startswith("encoder/")}
    arrays |= {name: Array.of(values) for name, values in head.items()}
    config = stored.config | {"hidden_layer": hidden_layer}
    return dataclasses.replace(stored, config=config, arrays=arrays)


def _can_hold_logits(stored):
    config = stored.model_config
    return 2 * stored.config["num_classes"] <= config.hidden_size and config.hidden_act != "tanh"


def removed_from(stored):
    """Takes back what `added_to` did, if that made the head; else `stored` as it is."""
    if not _can_hold_logits(stored):
        return stored
    number = stored.config["num_classes"]
    kernel, bias = (stored.arrays[f"hidden/{x}"].read() for x in ("kernel", "bias"))
    head = {"logits/kernel": kernel[:, :number], "logits/bias": bias[:number]}
    new = _with_head(stored, head, hidden_layer=False)
    made = added_to(new).arrays
    own = [name for name in made if not name.startswith("encoder/")]
    same = all(np.array_equal(made[n].read(), stored.arrays[n].read()) for n in own)
    return new if same else stored
