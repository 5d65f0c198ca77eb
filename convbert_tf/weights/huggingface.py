"""Hugging Face's ConvBERT directories, read and written.

The weights' names follow from those of the original (names.py), the shapes are PyTorch's. A file's
class says which head it has:

    ConvBertModel                       ConvBertEncoder
    ConvBertForMaskedLM                 ConvBertPretrainer with objective "mlm"
    ConvBertForSequenceClassification   TextClassifier with `hidden_layer`; without, where `write`
                                        wrote one without
    ConvBertForTokenClassification      TokenClassifier
    ConvBertForQuestionAnswering        QuestionAnswerer with joint=False and mask_logits=False, for
                                        transformers has no mask; with one, where `write` says so
"""

import dataclasses
import os
from typing import Required, TypedDict

import numpy as np

from convbert_tf import schema
from convbert_tf.config import ModelConfig, PretrainingConfig
from convbert_tf.console import UserError, say
from convbert_tf.files import read_json, write_json
from convbert_tf.text import vocabulary
from convbert_tf.weights import hidden_layer, names
from convbert_tf.weights.huggingface_files import WEIGHT_FILES, read_weights, write_safetensors
from convbert_tf.weights.presets import check_vocabulary, replacing
from convbert_tf.weights.stored import (
    Stored,
    encoder_config,
    head_config,
    pretrainer_config,
)

LAYER_NORM_EPSILON = 1e-12
ARCHITECTURES = {
    "ConvBertEncoder": "ConvBertModel",
    "ConvBertPretrainer": "ConvBertForMaskedLM",
    "TextClassifier": "ConvBertForSequenceClassification",
    "TokenClassifier": "ConvBertForTokenClassification",
    "QuestionAnswerer": "ConvBertForQuestionAnswering",
}
# Where the two sides mean the same by a name. All but "tanh" have f(x) - f(-x) = x.
ACTIVATIONS = ("gelu", "relu", "silu", "swish", "tanh")
# Pieces of the original's names and what Hugging Face has for them, in this order.
_PIECES = (
    ("electra/", "convbert/"),
    ("encoder/layer_", "encoder/layer/"),
    ("_embeddings", "_embeddings/weight"),
    ("conv_attn_point", "conv_out_layer"),
    ("conv_attn_kernel", "conv_kernel_layer"),
    ("conv_attn_key", "key_conv_attn_layer"),
    ("depthwise_kernel", "depthwise/weight"),
    ("pointwise_kernel", "pointwise/weight"),
    ("g_dense", "dense"),
    ("/kernel", "/weight"),
    ("/gamma", "/weight"),
    ("/beta", "/bias"),
    ("generator_predictions/output_bias", "generator_lm_head/bias"),
    ("/", "."),
)


class _Config(TypedDict, total=False):
    """The type of a config.json, beside the fields of ModelConfig (see schema.py)."""

    model_type: Required[str]
    architectures: list[str] | None
    id2label: dict[str, str] | None
    num_labels: int | None
    classifier_dropout: float | None
    problem_type: str | None
    num_groups: int | None
    layer_norm_eps: float | None
    tie_word_embeddings: bool | None
    is_decoder: bool | None
    quantization_config: dict | None
    add_cross_attention: bool | None
    mask_logits: bool | None


_SINGLE_LABEL, _MULTI_LABEL = "single_label_classification", "multi_label_classification"
_REGRESSION = "regression"
_FILES = (WEIGHT_FILES[0], "vocab.txt", "tokenizer_config.json")  # and config.json
_OURS = {"linear_groups", "conv_type", "mask_convolution"}  # fields that are not written


# --- reading ---


def read(directory):
    """The Stored of a Hugging Face ConvBERT directory, with its head (see the module's docstring).

    Of a head that is not there, and of weights that have no place here, a line says that they are
    left out; the encoder is read all the same.

    Raises:
        UserError: a file is missing or damaged, the weights do not fit the config, or the config
            computes something else there than in the original.
    """
    config_file = os.path.join(directory, "config.json")
    values = read_json(config_file, "a Hugging Face config", _Config)
    if values["model_type"] != "convbert":
        kind = schema.shortened(values["model_type"])
        raise UserError(f"{directory} holds a {kind}, not a convbert.")
    if values.get("quantization_config"):
        raise UserError(f"{config_file}: quantization_config: quantised weights are not supported.")
    path, tensors = read_weights(directory)
    stored = _describe(values, tensors, directory)
    stored.check_config(config_file)
    names.check_layers(stored, len(tensors), path)
    if not any(name.startswith("convbert.") for name in tensors):  # of a bare encoder
        heads = [name for name in weight_names(stored) if not name.startswith("convbert.")]
        tensors = {n if n in heads else f"convbert.{n}": array for n, array in tensors.items()}
    head_weight = tensors.pop("generator_lm_head.weight", None)
    table = weight_names(stored)
    stored.arrays.update(names.to_ours(table, tensors, path))
    if stored.kind == "ConvBertPretrainer" and head_weight is not None:
        _check_tied(values, stored, head_weight, path)
    left = sorted(tensors.keys() - table.keys())
    left = [name for name in left if not name.endswith("position_ids")]
    if left:
        say(f"{directory}: {len(left)} weights without a place here are left out ({left[0]}, ...)")
    return hidden_layer.removed_from(stored) if stored.kind == "TextClassifier" else stored


def _describe(values, tensors, directory):
    """A Stored without arrays for a config.json and the names of its weights."""
    config_file = os.path.join(directory, "config.json")
    config = model_config(values, config_file)
    kind = (values.get("architectures") or [_architecture(tensors)])[0].removeprefix("TF")
    dropout = values.get("classifier_dropout")
    dropout = config.hidden_dropout_prob if dropout is None else dropout
    num_classes, labels = _labels(values, config_file)
    classes = {"num_classes": num_classes, "dropout": dropout, "labels": labels}
    if kind == "ConvBertForMaskedLM":
        _check_masked_lm(config)
        return _masked_lm(config)
    if kind == "ConvBertForQuestionAnswering":
        mask_logits = bool(values.get("mask_logits"))
        return Stored("QuestionAnswerer", head_config(config, joint=False, mask_logits=mask_logits))
    if kind == "ConvBertForTokenClassification":
        return Stored("TokenClassifier", head_config(config, **classes))
    problem = values.get("problem_type")
    multi_label, what = problem == _MULTI_LABEL, f"the head of {kind}"
    if kind == "ConvBertForSequenceClassification":
        what = _misfit(problem, num_classes)
    if not what:
        options = classes | {"hidden_layer": True, "multi_label": multi_label}
        return Stored("TextClassifier", head_config(config, **options))
    if kind != "ConvBertModel":
        say(f"{directory}: {what} has no counterpart here; only the encoder is taken")
    return Stored("ConvBertEncoder", encoder_config(config))


def _misfit(problem, num_classes):
    """What a classifier there is that has no counterpart here, or ""."""
    if problem == _MULTI_LABEL and num_classes < 2:
        return "a head for several labels with only one"
    if problem == _REGRESSION and num_classes > 1:
        return f"a head for a regression of {num_classes} numbers"
    if problem == _SINGLE_LABEL and num_classes < 2:
        return "a head for one of several labels with only one"
    if problem not in (None, _MULTI_LABEL, _REGRESSION, _SINGLE_LABEL):
        return f"a head with problem_type {schema.shortened(problem)}"
    return ""


def _masked_lm(config):
    return Stored(
        "ConvBertPretrainer", pretrainer_config(config, PretrainingConfig(objective="mlm"))
    )


def _architecture(tensors):
    """The class whose weights have these names, where config.json does not tell it."""
    classes = {
        "generator_lm_head.bias": "ConvBertForMaskedLM",
        "classifier.out_proj.bias": "ConvBertForSequenceClassification",
        "qa_outputs.bias": "ConvBertForQuestionAnswering",
        "classifier.bias": "ConvBertForTokenClassification",
    }
    return next((kind for name, kind in classes.items() if name in tensors), "ConvBertModel")


def _labels(values, config_file):
    """Number of classes and their names; None where they are transformers' stand-ins."""
    names = values.get("id2label") or {}
    missing = [i for i in range(len(names)) if str(i) not in names]
    if missing:
        raise UserError(
            f"{config_file}: id2label has {len(names)} labels, but none for {missing[0]}."
        )
    labels = [names[str(i)] for i in range(len(names))]
    if labels == [f"LABEL_{i}" for i in range(len(labels))]:
        number = values.get("num_labels")
        return len(labels) or (2 if number is None else number), None
    return len(labels), labels


def _check_tied(values, stored, head_weight, path):
    tied = values.get("tie_word_embeddings", True)
    table = stored.arrays["discriminator/embeddings/word_embeddings"]
    if not tied and not np.array_equal(head_weight.read().astype("float32"), table.read()):
        raise UserError(
            f"{path}: the masked LM head has output weights of its own (tie_word_embeddings is "
            "false); ConvBERT's are the word embeddings."
        )


def _check_masked_lm(config):
    if config.hidden_act != "gelu":
        raise UserError(
            f"hidden_act {config.hidden_act!r:.60}: Hugging Face's masked LM head has gelu "
            "whatever hidden_act is, the original's head has hidden_act."
        )


def model_config(values, where="the config"):
    """ModelConfig of the content of a Hugging Face config.json; `where` names it in messages.

    Raises:
        UserError: the configuration computes something else there than in the original.
    """
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    # What a file leaves out is transformers' default, which is the base model's.
    known = ModelConfig.base().to_dict() | {"pad_token_id": 0 if "pad_token_id" in values else 1}
    values = {key: value for key, value in values.items() if value is not None}
    known |= {key: value for key, value in values.items() if key in fields}
    known["linear_groups"] = values.get("num_groups", 1)
    schema.check(known, ModelConfig, where)
    try:
        config = ModelConfig.from_dict(known)
        _check_config(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    epsilon = values.get("layer_norm_eps", LAYER_NORM_EPSILON)
    if epsilon != LAYER_NORM_EPSILON:
        raise UserError(f"layer_norm_eps {epsilon}: ConvBERT's is {LAYER_NORM_EPSILON}.")
    if values.get("is_decoder") or values.get("add_cross_attention"):
        raise UserError("is_decoder, add_cross_attention: only encoders are known here.")
    return config


def _check_config(config):
    """Refuses what is not the same network on both sides."""
    heads, ratio = config.num_attention_heads, config.head_ratio
    if 2 * max(1, int(heads / ratio)) != heads:
        raise UserError(
            f"num_attention_heads {heads} with head_ratio {ratio}: Hugging Face sizes a head as "
            "hidden / kept heads / 2, which is ConvBERT's hidden / heads only where head_ratio is "
            "2 and the number of heads even."
        )
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(
            f"hidden_act {config.hidden_act!r:.60} is not known on both sides; these are: "
            f"{', '.join(ACTIVATIONS)}."
        )
    if config.conv_type != "sdconv" or config.mask_convolution:
        raise UserError(
            f"conv_type {config.conv_type!r}, mask_convolution {config.mask_convolution}: Hugging "
            "Face's ConvBERT always has its convolution, and never masks it."
        )


# --- names ---


def weight_names(stored):
    """Name in Hugging Face's state dict -> Part, for every weight of `stored`.

    Args:
        stored: Stored, whose kind and config count, of one of the kinds that `read` gives.
    """
    if stored.kind in ("ConvBertEncoder", "ConvBertPretrainer"):
        table = names.original_names(stored)
    else:  # without heads, whose names follow no rule
        encoder = names.original_names(dataclasses.replace(stored.encoder(), arrays={}))
        table = {
            name: dataclasses.replace(part, name=f"encoder/{part.name}")
            for name, part in encoder.items()
        } | _head_names(stored)
    return dict(_torch(name, part) for name, part in table.items())


def _head_names(stored):
    layers = {
        "TextClassifier": {"hidden": "classifier/dense", "logits": "classifier/out_proj"},
        "TokenClassifier": {"logits": "classifier"},
        "QuestionAnswerer": {"logits": "qa_outputs"},
    }[stored.kind]
    shapes = names.shapes(stored)
    return {
        f"{theirs}/{x}": names.Part(f"{ours}/{x}", shapes[f"{ours}/{x}"])
        for ours, theirs in layers.items()
        for x in ("kernel", "bias")
    }


def _torch(name, part):
    """Name and Part there of a weight of the original's name: PyTorch has its matrices transposed.

    All but the grouped ones; a depthwise kernel is [H, 1, K], and the bias after it [A, 1].
    """
    if name.endswith("depthwise_kernel"):
        kernel_size, hidden_size, _ = part.shape
        part = part.elsewhere((hidden_size, 1, kernel_size), transpose=True)
    elif name.endswith("pointwise_kernel"):
        part = part.elsewhere(part.shape[::-1], transpose=True)
    elif name.endswith("/kernel") and "g_dense" not in name:
        part = part.elsewhere(transpose=True)
    elif name.endswith("conv_attn_key/bias"):
        part = part.elsewhere((*part.shape, 1))
    for piece, theirs in _PIECES:
        name = name.replace(piece, theirs)
    return name, part


# --- writing ---


def write(stored, directory, generator=False):
    """Writes `stored` as a directory that `transformers` loads: config.json, model.safetensors.

    Of a pretrainer with a discriminator its encoder is written. The original's classifier gets the
    hidden layer that is needed there, such that the logits are the same: the layer holds x and -x
    of each logit x, and f(x) - f(-x) = x for the activation f.

    Args:
        stored: Stored; of its vocabulary vocab.txt and tokenizer_config.json are made.
        directory: made if it is not there.
        generator: whether a pretrainer's generator is written, as a masked LM.

    Raises:
        UserError: `transformers` has no such head, or computes something else; or as `replacing`.
    """
    stored = as_theirs(stored, generator)
    config = stored.model_config
    _check_config(config)
    values = _config_values(stored, config)
    prefix = "convbert." if stored.kind == "ConvBertEncoder" else ""
    weights = names.to_theirs(weight_names(stored), stored.arrays)
    with replacing(directory, "model_type", _FILES, closed=True) as partial:
        write_safetensors(
            os.path.join(partial, WEIGHT_FILES[0]),
            ((name.removeprefix(prefix), value) for name, value in weights),
        )
        if stored.vocabulary.path:
            check_vocabulary(stored.vocabulary.path, config)
            vocabulary.copy(stored.vocabulary.path, os.path.join(partial, "vocab.txt"))
            options = {
                "tokenizer_class": "ConvBertTokenizer",
                "do_lower_case": stored.vocabulary.lower_case,
                "strip_accents": stored.vocabulary.strips_accents,
                "model_max_length": config.max_position_embeddings,
            }
            write_json(os.path.join(partial, "tokenizer_config.json"), options)
        write_json(os.path.join(partial, "config.json"), values)


def as_theirs(stored, generator=False):
    """`stored`, or the part of it that transformers has a class for."""
    if generator:
        return masked_lm(stored)
    config = stored.config
    if stored.kind == "QuestionAnswerer" and (config.get("joint", True) or config["answerable"]):
        raise UserError(
            "Hugging Face's question answerer scores starts and ends independently and does not "
            "tell whether there is an answer; train with joint_prediction=False on SQuAD 1.1."
        )
    if stored.kind == "TextClassifier" and not config.get("hidden_layer"):
        return hidden_layer.added_to(stored)
    if stored.kind == "ConvBertPretrainer":
        if stored.pretraining.objective == "electra":
            say("of the pretrainer only the discriminator's encoder is written, without its head")
            return stored.encoder()
        _check_masked_lm(stored.model_config)
    return stored


def masked_lm(stored):
    """A pretrainer's generator as a pretrainer with objective "mlm"."""
    if "generator_head/output_bias" not in stored.arrays:
        raise UserError(f"a {stored.kind} without a generator has none to write.")
    config, own = stored.model_config, stored.pretraining.has_own_generator
    config = config.generator() if own else config
    _check_config(config)
    _check_masked_lm(config)
    new = _masked_lm(config)
    for name in names.shapes(new):
        place = name.replace("discriminator/", "generator/") if own else name
        # Tied embeddings are the discriminator's.
        new.arrays[name] = stored.arrays[place if place in stored.arrays else name]
    return new.with_vocabulary(stored.vocabulary)


def _config_values(stored, config):
    """The content of config.json. It keeps what describes the generator, for conversion back."""
    values = {key: value for key, value in config.to_dict().items() if key not in _OURS}
    values |= {"model_type": "convbert", "num_groups": config.linear_groups, "head_ratio": 2}
    values |= {"layer_norm_eps": LAYER_NORM_EPSILON, "tie_word_embeddings": True}
    values["architectures"] = [ARCHITECTURES[stored.kind]]
    if stored.kind == "QuestionAnswerer":  # for the way back; transformers does not look at it
        values["mask_logits"] = stored.config.get("mask_logits", True)
    if stored.kind in ("TextClassifier", "TokenClassifier"):
        number = stored.config["num_classes"]
        labels = stored.config.get("labels") or [f"LABEL_{i}" for i in range(number)]
        values |= {
            "classifier_dropout": stored.config.get("dropout", 0.1),
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    if stored.kind == "TextClassifier":
        several = _MULTI_LABEL if stored.config.get("multi_label") else _SINGLE_LABEL
        one = stored.config["num_classes"] == 1
        values["problem_type"] = _REGRESSION if one else several
    return values
