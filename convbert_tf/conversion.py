"""Weights in and out: presets, Hugging Face's directories, the original's checkpoints.

Any of the three to any other, with a check on a probe input. The formats themselves stand in the
wing weights/; models are built for the probe alone.
"""

import gc
import importlib.util
import os

import numpy as np
import tensorflow as tf

from convbert_tf.config import ModelConfig
from convbert_tf.console import UserError, say, without
from convbert_tf.files import fetch, is_address, read_json, undone_on_error, write_json
from convbert_tf.modeling import huggingface as huggingface_models
from convbert_tf.modeling import storing
from convbert_tf.modeling.heads import NO_ANSWER, answer_mask
from convbert_tf.modeling.presets import build
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from convbert_tf.text import stored_vocabulary, vocabulary
from convbert_tf.text.vocabulary import Vocabulary
from convbert_tf.training import checkpoints, optimization
from convbert_tf.weights import huggingface, huggingface_files, names, original, presets
from convbert_tf.weights.original import pretraining_config  # noqa: F401  public here
from convbert_tf.weights.stored import Array

load_huggingface, save_huggingface = huggingface_models.load, huggingface_models.save

FORMATS = ("preset", "huggingface", "original")
SIZES = ("small", "medium_small", "base")  # published; the name is as good as a config
CHECKPOINT = "model.ckpt"


# --- models to and from the original's checkpoints ---


def load_original(checkpoint_prefix, config):
    """Returns the model of a checkpoint of the original code.

    Args:
        checkpoint_prefix: path of the checkpoint without its suffixes, as TensorFlow takes it.
        config: dict with "discriminator" (pre-training), or "encoder" and "task" (fine-tuned), each
            the original's hyper-parameters, as `original_config` makes it. The generator's follow
            from "generator_hidden_size" and "generator_layers", or "generator", which has the
            number of its layers.

    Returns:
        ConvBertPretrainer or a model with a head; ConvBertEncoder for a config without "task".
        Adam's moments are left out: see `load_original_optimizer`. Of other variables without a
        place in the model a line says so.

    Raises:
        UserError: no checkpoint there, or it does not fit `config`.
    """
    return build(original.read(checkpoint_prefix, config)[0])


def load_original_optimizer(checkpoint_prefix, model, optimizer, task=None):
    """Sets the step and Adam's moments from a checkpoint, so that its training goes on.

    Args:
        checkpoint_prefix: as for `load_original`.
        model: what that returned.
        optimizer: optimization.AdamW; it is built on the model's weights if it is not.
        task: the original's name of the task, for a model with a task head.

    Returns:
        The step the checkpoint was saved at.

    Raises:
        UserError: the checkpoint holds no moments, as published ones do not, or others.
    """
    moments, step = original.read_moments(checkpoint_prefix, storing.describe(model), task)
    for slot, variables in _slots(model, optimizer).items():
        for name, variable in variables.items():
            variable.assign(moments[slot][name].read())
    optimizer.iterations.assign(step)
    return step


def _slots(model, optimizer):
    """Slot of Adam -> name of a weight (see weights/names.py) -> the optimiser's variable."""
    optimizer.build(model.trainable_variables)
    index = {variable.path: i for i, variable in enumerate(model.trainable_variables)}
    place = {name: index[v.path] for name, v in storing.variables(model).items()}
    slots = {"adam_m": optimizer._momentums, "adam_v": optimizer._velocities}
    return {
        slot: {name: variables[i] for name, i in place.items()} for slot, variables in slots.items()
    }


def save_original(model, checkpoint_prefix, task=None, optimizer=None):
    """Writes `model` as a checkpoint with the original's names and shapes.

    Args:
        model: any model of this package.
        checkpoint_prefix: path without suffixes.
        task: the original's name of the task, for a model with a task head.
        optimizer: the AdamW it is trained with, whose moments and step go along.

    Raises:
        UserError: the original has no such head, or `task` is missing.
    """
    moments, step = None, 0
    if optimizer is not None:
        step = int(optimizer.iterations)
        moments = {
            slot: {name: Array.of(variable) for name, variable in variables.items()}
            for slot, variables in _slots(model, optimizer).items()
        }
    original.write(storing.describe(model), checkpoint_prefix, task, moments, step)


def original_config(model, task=None):
    """The config that `load_original` takes for a checkpoint of `model`, as JSON can hold it."""
    return original.config_of(storing.describe(model), task)


def original_names(model, task=None):
    """Name in the original's checkpoints -> names.Part, for every weight of `model`."""
    return names.original_names(storing.describe(model), task)


# --- any format to any other ---


def convert(
    source,
    target,
    to_format=None,
    config=None,
    vocab_file=None,
    lower_case=None,
    task=None,
    generator=False,
    pretrainer=False,
    optimizer=False,
    strip_accents=None,
):
    """Writes the model in `source` to the directory `target` in another format.

    Args:
        source: a preset or Hugging Face directory, "hf://owner/name@revision", or a checkpoint of
            the original: its prefix, or the directory of one.
        target: directory; an original checkpoint becomes target/model.ckpt with its config.json.
        to_format: of FORMATS; None is "preset", but of a preset "huggingface".
        config: for an original checkpoint: path of a JSON file as original.load_original takes it,
            or one of SIZES; None for the config.json beside it.
        vocab_file: vocabulary that goes with the model; None for the one in `source`.
        lower_case: whether texts are lower-cased; None for what `source` says (an original
            checkpoint says nothing: True).
        task: the original's name of the task, to write a model with a head in its format.
        generator: whether a pretrainer's generator is written instead (to "huggingface" only).
        pretrainer: whether a model without a generator becomes a pretrainer, to be trained further:
            generator and heads with random weights around its encoder.
        optimizer: whether Adam's moments of an original pre-training checkpoint go along, to
            target/checkpoints: `init_from=target` takes them up with `init_optimizer`.
        strip_accents: whether accents are stripped; None for what `source` says, or where
            `lower_case` is given, the same as that.

    Returns:
        list of (what, value), both str: the summary.

    Raises:
        UserError: what is there cannot be read or written so.
    """
    if not source or not target:
        raise UserError("name the model to read and the directory to write.")
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise UserError(f"{target} is there already and not empty: choose another directory.")
    from_format, stored, source = _read(source, config)
    to_format = to_format or ("huggingface" if from_format == "preset" else "preset")
    _check_options(from_format, to_format, generator, optimizer)
    if pretrainer:
        stored = storing.describe(as_pretrainer(build(stored)))
    given = Vocabulary(vocab_file, lower_case, strip_accents)
    stored = stored.with_vocabulary(_vocabulary(from_format, source, given))
    with undone_on_error(target):
        if to_format == "huggingface":
            huggingface.write(stored, target, generator)
        elif to_format == "preset":
            presets.write(stored, target)
            if optimizer:
                _write_run(stored, source, target)
        else:
            _write_original(stored, target, task)
        return _summary(
            (from_format, huggingface.masked_lm(stored) if generator else stored, source),
            (to_format, _read(target, None)[1], target),
        )


def _check_options(from_format, to_format, generator, optimizer):
    if to_format not in FORMATS:
        raise UserError(f"to_format {to_format!r} is none of {', '.join(FORMATS)}.")
    if generator and to_format != "huggingface":
        raise UserError("a generator alone can be written to Hugging Face's format only.")
    if optimizer and (from_format, to_format) != ("original", "preset"):
        raise UserError("an optimizer's state goes from an original checkpoint to a preset only.")


def _summary(source, target):
    """Rows of `convert`, of two (format, Stored, path): what was read, and what was written."""
    (_, stored, _), (to_format, written, _) = source, target
    rows = [
        (what, f"{kind}, {each.kind}: {path}")
        for what, (kind, each, path) in (("from", source), ("to", target))
    ]
    expected, found = _probed(stored, written)
    rows += [
        ("tensors", f"{len(written.arrays)} here, {_count_tensors(to_format, *target[1:])} there"),
        ("parameters", f"{written.num_parameters:,}"),
        ("vocabulary", stored.vocabulary.path or "none"),
        ("written and read again", _difference(found, expected)),
    ]
    for (kind, each, path), ours in ((source, expected), (target, found)):
        if kind == "huggingface":
            rows.append(("transformers on it", _difference_to_transformers(path, each, ours)))
    return rows


def _read(source, config):
    """Format, Stored and local path of `source`."""
    prefix = None
    if not is_address(source) and not presets.is_described(source):
        prefix = original.find(source)
    if prefix:
        values, where = _original_config(prefix, config)
        return "original", original.read(prefix, values, where)[0], prefix
    if config:
        raise UserError(f"{source} is no checkpoint of the original: it takes no config.")
    directory = fetch(source)
    if presets.is_huggingface(directory):
        return "huggingface", huggingface.read(directory), directory
    return "preset", presets.read(directory), directory


def _original_config(prefix, config):
    """The config of the checkpoint at `prefix`, and what names it in messages."""
    if config in SIZES:
        return original.pretraining_config(getattr(ModelConfig, config)()), config
    path = config or os.path.join(os.path.dirname(prefix), "config.json")
    if not os.path.exists(path):
        raise UserError(
            f"{prefix} does not tell its architecture: give --config, a JSON file of the "
            f"original's hyper-parameters or one of {', '.join(SIZES)}."
        )
    return read_json(path, "the config of an original checkpoint", original.Config), path


def _vocabulary(from_format, source, given):
    """The Vocabulary of the model: what is not None in `given`, the rest as in `source`."""
    if given.path and not os.path.isfile(given.path):
        raise UserError(f"{given.path} is not there, or no file: a vocabulary is expected.")
    found = Vocabulary()
    if from_format == "original":
        beside = os.path.join(os.path.dirname(source), vocabulary.VOCAB_FILE)
        found = Vocabulary(beside if os.path.exists(beside) else None)
    elif not (given.path and given.lower_case is not None):
        try:
            found = stored_vocabulary.find(source)
        except stored_vocabulary.NoVocabularyError as error:
            say(f"no vocabulary: {error}")
    lower_case, strip_accents = found.lower_case, found.strip_accents
    if given.lower_case is not None:
        lower_case, strip_accents = given.lower_case, None
    if given.strip_accents is not None:
        strip_accents = given.strip_accents
    return Vocabulary(given.path or found.path, lower_case, strip_accents)


def _write_original(stored, target, task):
    if stored.vocabulary.path:
        presets.check_vocabulary(stored.vocabulary.path, stored.model_config)
    original.write(stored, os.path.join(target, CHECKPOINT), task)
    write_json(os.path.join(target, "config.json"), original.config_of(stored, task))
    if stored.vocabulary.path:
        vocabulary.copy(stored.vocabulary.path, os.path.join(target, vocabulary.VOCAB_FILE))


def as_pretrainer(model):
    """A ConvBertPretrainer whose discriminator is the encoder of `model`, if it is none itself."""
    if isinstance(model, ConvBertPretrainer):
        return model
    encoder = getattr(model, "encoder", model)
    pretrainer = ConvBertPretrainer(encoder.config)
    pretrainer.discriminator.set_weights(encoder.get_weights())
    say("the generator and the heads of the pretrainer have random weights")
    return pretrainer


def _write_run(stored, prefix, target):
    """Weights and moments as the last checkpoint of a run in `target`."""
    model, optimizer = build(stored), optimization.AdamW(0.0)
    step = load_original_optimizer(prefix, model, optimizer)
    checkpoint = checkpoints.state(model, optimizer, tf.Variable(step, dtype=tf.int64))
    directory = os.path.join(target, "checkpoints")
    tf.train.CheckpointManager(checkpoint, directory, max_to_keep=1).save(step)


def _count_tensors(to_format, written, target):
    if to_format == "original":
        return len(tf.train.list_variables(os.path.join(target, CHECKPOINT)))
    if to_format == "huggingface":
        return len(huggingface_files.read_weights(target)[1])
    return len(written.arrays)


# --- the probe ---


def probe(config, rows=2, num_tokens=16):
    """Inputs [2, 16] at which two models are compared: two segments, and padding in one."""
    num_tokens = min(num_tokens, config.max_position_embeddings)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, num_tokens))
    lengths = np.linspace(num_tokens, num_tokens // 2, rows).astype(int)[:, None]
    tokens = np.arange(num_tokens)[None]
    return {
        "input_ids": ids.astype("int32"),
        "input_mask": (tokens < lengths).astype("int32"),
        "segment_ids": ((tokens >= num_tokens // 4) & (tokens < lengths)).astype("int32"),
    }


def _probed(stored, written):
    """`outputs` of two Stored models, one after the other so that one is in memory at a time."""
    model = build(stored)
    expected = outputs(model)
    if names.shapes(stored) == names.shapes(written) and stored.kind == written.kind:
        storing.set_weights(model, written)
    else:
        del model
        gc.collect()  # a Keras model refers to itself
        model = build(written)
    return expected, outputs(model)


def outputs(model):
    """Name -> float array of the outputs of `model` for the probe."""
    inputs = probe(getattr(model, "encoder", model).config)
    values = model(inputs)
    if isinstance(model, ConvBertPretrainer):
        values = {"sequence_output": values["sequence_output"]}
        if model.discriminator_head is not None:
            values["discriminator"] = model.discriminator_logits(inputs, inputs["input_ids"])
        if model.generator is not None:
            hidden = model.generator(inputs)["sequence_output"]
            table = model.generator.embeddings.word_embeddings
            values["logits"] = model.generator_head(hidden, table)
    values = values if isinstance(values, dict) else {"logits": values}
    return {
        name: np.asarray(value, "float64")
        for name, value in values.items()
        if not isinstance(value, list) and "index" not in name
    }


def _difference(found, expected):
    """The largest difference of outputs that both have, relative to each output's largest."""
    shared = [name for name in expected if name in found]
    errors = [
        np.abs(found[name] - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-30)
        for name in shared
    ]
    return f"{max(errors):.1e} largest relative difference on a probe ({', '.join(shared)})"


def _difference_to_transformers(directory, stored, ours):
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return "not compared: torch and transformers are not installed"
    return _difference(transformers_outputs(directory, stored), ours)


def transformers_outputs(directory, stored):
    """As `outputs`, of the model that `transformers` loads from the directory of `stored`.

    Logits that ours masks are masked here too, as transformers leaves that to what reads them.
    """
    inputs = probe(stored.model_config)
    names = {"input_ids": "input_ids", "attention_mask": "input_mask"}
    names["token_type_ids"] = "segment_ids"
    with without("triton"):  # its LLVM and TensorFlow's end a process that has both
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        tensors = {theirs: torch.from_numpy(inputs[ours]).long() for theirs, ours in names.items()}
        with torch.no_grad():
            kind = getattr(transformers, huggingface.ARCHITECTURES[stored.kind])
            theirs = kind.from_pretrained(directory).eval()
            found = theirs(**tensors, output_hidden_states=True)
    hidden = found.hidden_states[-1]
    shown = {"sequence_output": hidden} | {
        name: found[name] for name in ("logits", "start_logits", "end_logits") if name in found
    }
    shown = {name: value.double().numpy() for name, value in shown.items()}
    if stored.kind == "QuestionAnswerer" and stored.config.get("mask_logits", True):
        excluded = NO_ANSWER * (1 - np.asarray(answer_mask(inputs)))
        shown |= {name: shown[name] - excluded for name in ("start_logits", "end_logits")}
    return shown
