"""Hugging Face's ConvBERT directories, read and written, and its hub; no TensorFlow.

The weights' names follow from those of the original (weight_names.py), the shapes are PyTorch's.
A file's class says which head it has:

    ConvBertModel                       ConvBertEncoder
    ConvBertForMaskedLM                 ConvBertPretrainer with objective "mlm"
    ConvBertForSequenceClassification   TextClassifier with `hidden_layer`; without, where `save`
                                        wrote one without
    ConvBertForTokenClassification      TokenClassifier
    ConvBertForQuestionAnswering        QuestionAnswerer with joint=False
"""

import dataclasses
import os
import shutil

import numpy as np
from keras import ops

from convbert_tf.config import ModelConfig, PretrainingConfig
from convbert_tf.console import UserError, say
from convbert_tf.files import read_json, write_json
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.modeling.normalization import EPSILON as LAYER_NORM_EPSILON
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from convbert_tf.weights import presets
from convbert_tf.weights.huggingface_files import WEIGHT_FILES, read_weights
from convbert_tf.weights.weight_names import (
    assign,
    dense_names,
    encoder_names,
    masked_lm_head_names,
)

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
_OURS = {"linear_groups", "conv_type", "mask_convolution"}  # fields that are not written


def load(directory):
    """The model of a Hugging Face ConvBERT directory, with its head (see the module's docstring).

    Of a head that is not there, and of weights that have no place here, a line says that they are
    left out; the encoder is loaded all the same.

    Raises:
        UserError: a file is missing or damaged, the weights do not fit the config, or the config
            computes something else there than in the original.
    """
    values = read_json(os.path.join(directory, "config.json"), "a Hugging Face config")
    if values.get("model_type") != "convbert":
        raise UserError(f"{directory} holds a {values.get('model_type')}, not a convbert.")
    path, tensors = read_weights(directory)
    model = _make_model(values, tensors, directory)
    is_bare = not any(name.startswith("convbert.") for name in tensors)

    def read(name):
        return tensors.pop(name.removeprefix("convbert.") if is_bare else name, None)

    head_weight = tensors.pop("generator_lm_head.weight", None)
    assign(weight_names(model), read, path)
    if isinstance(model, ConvBertPretrainer) and head_weight is not None:
        _check_tied(values, model, head_weight, path)
    if isinstance(model, TextClassifier):
        model = _without_hidden_layer(model)
    left = sorted(name for name in tensors if not name.endswith("position_ids"))
    if left:
        say(f"{directory}: {len(left)} weights without a place here are left out ({left[0]}, ...)")
    return model


def _make_model(values, tensors, directory):
    """A model with random weights for a config.json and the names of its weights."""
    encoder = ConvBertEncoder(model_config(values))
    kind = (values.get("architectures") or [_architecture(tensors)])[0].removeprefix("TF")
    dropout = values.get("classifier_dropout")
    dropout = encoder.config.hidden_dropout_prob if dropout is None else dropout
    num_classes, labels = _labels(values)
    if kind == "ConvBertModel":
        return encoder
    if kind == "ConvBertForMaskedLM":
        _check_masked_lm(encoder.config)
        return ConvBertPretrainer(encoder.config, PretrainingConfig(objective="mlm"))
    if kind == "ConvBertForQuestionAnswering":
        return QuestionAnswerer(encoder, joint=False)
    if kind == "ConvBertForTokenClassification":
        return TokenClassifier(encoder, num_classes, dropout, labels)
    multi_label = values.get("problem_type") == "multi_label_classification"
    if kind == "ConvBertForSequenceClassification" and not multi_label:
        return TextClassifier(encoder, num_classes, dropout, labels, hidden_layer=True)
    what = "a head for several labels at once" if multi_label else f"the head of {kind}"
    say(f"{directory}: {what} has no counterpart here; only the encoder is taken")
    return encoder


def _architecture(tensors):
    """The class whose weights have these names, where config.json does not tell it."""
    classes = {
        "generator_lm_head.bias": "ConvBertForMaskedLM",
        "classifier.out_proj.bias": "ConvBertForSequenceClassification",
        "qa_outputs.bias": "ConvBertForQuestionAnswering",
        "classifier.bias": "ConvBertForTokenClassification",
    }
    return next((kind for name, kind in classes.items() if name in tensors), "ConvBertModel")


def _labels(values):
    """Number of classes and their names; None where they are transformers' stand-ins."""
    names = values.get("id2label") or {}
    labels = [names[key] for key in sorted(names, key=int)]
    if labels == [f"LABEL_{i}" for i in range(len(labels))]:
        return len(labels) or values.get("num_labels", 2), None
    return len(labels), labels


def _check_tied(values, model, head_weight, path):
    table = ops.convert_to_numpy(model.generator.embeddings.word_embeddings)
    tied = values.get("tie_word_embeddings", True)
    if not tied and not np.array_equal(head_weight.astype("float32"), table):
        raise UserError(
            f"{path}: the masked LM head has output weights of its own (tie_word_embeddings is "
            "false); ConvBERT's are the word embeddings."
        )


def _check_masked_lm(config):
    if config.hidden_act != "gelu":
        raise UserError(
            f"hidden_act {config.hidden_act!r}: Hugging Face's masked LM head has gelu whatever "
            "hidden_act is, the original's head has hidden_act."
        )


def model_config(values):
    """ModelConfig of the content of a Hugging Face config.json.

    Raises:
        UserError: the configuration computes something else there than in the original.
    """
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    known = {key: value for key, value in values.items() if key in fields and value is not None}
    # What a file leaves out is transformers' default, which is the base model's.
    defaults = ModelConfig.base().to_dict() | {"pad_token_id": values.get("pad_token_id", 1) or 0}
    config = ModelConfig.from_dict(
        defaults | known | {"linear_groups": values.get("num_groups", 1)}
    )
    _check_config(config)
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
            f"hidden_act {config.hidden_act!r} is not known on both sides; these are: "
            f"{', '.join(ACTIVATIONS)}."
        )
    if config.conv_type != "sdconv" or config.mask_convolution:
        raise UserError(
            f"conv_type {config.conv_type!r}, mask_convolution {config.mask_convolution}: Hugging "
            "Face's ConvBERT always has its convolution, and never masks it."
        )


def weight_names(model):
    """Name in Hugging Face's state dict -> Part, for every weight of `model`.

    Args:
        model: what `load` returns; of a pretrainer with a discriminator, its encoder counts.
    """
    encoder = getattr(model, "encoder", model)
    names = encoder_names(encoder)
    if isinstance(model, ConvBertPretrainer) and model.discriminator_head is None:
        names |= masked_lm_head_names(model.generator_head)
    elif isinstance(model, TextClassifier):
        names |= dense_names(model.hidden, "classifier/dense")
        names |= dense_names(model.logits, "classifier/out_proj")
    elif isinstance(model, TokenClassifier):
        names |= dense_names(model.logits, "classifier")
    elif isinstance(model, QuestionAnswerer):
        names |= dense_names(model.logits, "qa_outputs")
    return dict(_torch(name, part) for name, part in names.items())


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


def save(model, directory, vocab_file=None, lower_case=True, generator=False):
    """Writes `model` as a directory that `transformers` loads: config.json, model.safetensors.

    Args:
        model: any model of this package. Of a pretrainer with a discriminator its encoder is
            written. The original's classifier gets the hidden layer that is needed there, such
            that the logits are the same: the layer holds x and -x of each logit x, and
            f(x) - f(-x) = x for the activation f.
        directory: made if it is not there.
        vocab_file: path of the vocabulary; vocab.txt and tokenizer_config.json are made of it.
        lower_case: whether texts are lower-cased before they are tokenised.
        generator: whether a pretrainer's generator is written, as a masked LM.

    Raises:
        UserError: `transformers` has no such head, or computes something else.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError("safetensors is not installed: pip install safetensors.") from error
    model = _as_theirs(model, generator)
    config = getattr(model, "encoder", model).config
    _check_config(config)
    values = _config_values(model, config)
    prefix = "convbert." if values["architectures"] == ["ConvBertModel"] else ""
    weights = {
        name.removeprefix(prefix): np.ascontiguousarray(part.get(), "float32")
        for name, part in weight_names(model).items()
    }
    with presets.replacing(directory) as partial:
        save_file(weights, os.path.join(partial, WEIGHT_FILES[0]), metadata={"format": "pt"})
        if vocab_file:
            shutil.copyfile(vocab_file, os.path.join(partial, "vocab.txt"))
            options = {
                "tokenizer_class": "ConvBertTokenizer",
                "do_lower_case": lower_case,
                "model_max_length": config.max_position_embeddings,
            }
            write_json(os.path.join(partial, "tokenizer_config.json"), options)
        write_json(os.path.join(partial, "config.json"), values)


def _as_theirs(model, generator):
    """`model`, or what of it transformers has a class for, with the weights under our names."""
    if generator:
        return masked_lm(model)
    if isinstance(model, QuestionAnswerer) and (model.joint or model.answerable):
        raise UserError(
            "Hugging Face's question answerer scores starts and ends independently and does not "
            "tell whether there is an answer; train with joint_prediction=False on SQuAD 1.1."
        )
    if isinstance(model, TextClassifier) and not model.hidden_layer:
        return _with_hidden_layer(model)
    if isinstance(model, ConvBertPretrainer):
        if model.discriminator_head is not None:
            say("of the pretrainer only the discriminator's encoder is written, without its head")
            return model.encoder
        _check_masked_lm(model.config)
    return model


def masked_lm(model):
    """A pretrainer's generator as a pretrainer with objective "mlm"."""
    if getattr(model, "generator_head", None) is None:
        raise UserError(f"a {type(model).__name__} without a generator has none to write.")
    _check_config(model.generator.config)
    _check_masked_lm(model.generator.config)
    new = ConvBertPretrainer(model.generator.config, PretrainingConfig(objective="mlm"))
    new.generator.set_weights(model.generator.get_weights())
    new.generator_head.set_weights(model.generator_head.get_weights())
    return new


def _with_hidden_layer(model):
    """A TextClassifier with `hidden_layer` that gives the logits of one without."""
    config, num_classes = model.encoder.config, model.num_classes
    if not _can_hold_logits(model):
        raise UserError(
            f"Hugging Face's classifier has a hidden layer of {config.hidden_size} units after "
            f"{config.hidden_act}, which cannot hold {num_classes} logits as they are; train with "
            "hidden_layer=True."
        )
    new = TextClassifier(
        model.encoder, num_classes, model.dropout.rate, model.labels, hidden_layer=True
    )
    kernel, bias = model.logits.get_weights()
    both, rest = np.concatenate([kernel, -kernel], axis=1), config.hidden_size - 2 * num_classes
    new.hidden.set_weights(
        [np.pad(both, [(0, 0), (0, rest)]), np.pad(np.concatenate([bias, -bias]), (0, rest))]
    )
    signs = np.concatenate([np.eye(num_classes), -np.eye(num_classes)])
    new.logits.set_weights([np.pad(signs, [(0, rest), (0, 0)]), np.zeros(num_classes)])
    return new


def _can_hold_logits(model):
    config = model.encoder.config
    return 2 * model.num_classes <= config.hidden_size and config.hidden_act != "tanh"


def _without_hidden_layer(model):
    """Takes back what `_with_hidden_layer` did, if that made the head; else the model as it is."""
    if not _can_hold_logits(model):
        return model
    kernel, bias = model.hidden.get_weights()
    new = TextClassifier(model.encoder, model.num_classes, model.dropout.rate, model.labels)
    new.logits.set_weights([kernel[:, : model.num_classes], bias[: model.num_classes]])
    made = _with_hidden_layer(new)
    pairs = zip(_head_weights(made), _head_weights(model), strict=True)
    return new if all(np.array_equal(*pair) for pair in pairs) else model


def _head_weights(model):
    return [*model.hidden.get_weights(), *model.logits.get_weights()]


def architecture(model):
    """Name of the class of `transformers` that a model is there."""
    kinds = {
        ConvBertEncoder: "Model",
        ConvBertPretrainer: "ForMaskedLM",
        TextClassifier: "ForSequenceClassification",
        TokenClassifier: "ForTokenClassification",
        QuestionAnswerer: "ForQuestionAnswering",
    }
    return f"ConvBert{kinds[type(model)]}"


def _config_values(model, config):
    """The content of config.json. What describes a generator goes along, for the way back."""
    values = {key: value for key, value in config.to_dict().items() if key not in _OURS}
    values |= {"model_type": "convbert", "num_groups": config.linear_groups, "head_ratio": 2}
    values |= {"layer_norm_eps": LAYER_NORM_EPSILON, "tie_word_embeddings": True}
    values["architectures"] = [architecture(model)]
    if isinstance(model, TextClassifier | TokenClassifier):
        labels = model.labels or [f"LABEL_{i}" for i in range(model.num_classes)]
        values |= {
            "classifier_dropout": model.dropout.rate,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    if isinstance(model, TextClassifier):
        single = "single_label_classification"
        values["problem_type"] = "regression" if model.num_classes == 1 else single
    return values
