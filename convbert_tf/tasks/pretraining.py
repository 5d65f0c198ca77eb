"""Pre-training on records: from a config to a preset."""

import dataclasses
import functools
import os
import shutil

from convbert_tf import config as configs
from convbert_tf.console import UserError, say
from convbert_tf.data import input_pipeline, shards
from convbert_tf.files import atomic_path
from convbert_tf.modeling import masking
from convbert_tf.modeling.pretraining import ConvBertPretrainer, PretrainingTask
from convbert_tf.text.vocabulary import VOCAB_FILE, load_vocab
from convbert_tf.training import checkpoints, identity, loop, strategies


def run(experiment, allow_config_change=False):
    """Pre-trains as `experiment` (PretrainingExperiment) says; goes on from the last checkpoint.

    Leaves in `model_dir`: checkpoints and TensorBoard logs, vocab.txt and preset/, generator and
    discriminator. Returns the last evaluation's metrics.

    Raises:
        UserError: the records do not fit the model or the run, or what loop.fit raises.
    """
    data, options = experiment.data, experiment.training
    experiment.require_directories()
    manifest = _manifest(experiment)
    vocab_file = os.path.join(data.train_dir, VOCAB_FILE)
    vocab = load_vocab(vocab_file)
    if options.init_from:
        _check_vocabulary(options.init_from, vocab_file, vocab)
    if checkpoints.latest(options.model_dir):
        _check_vocabulary(options.model_dir, vocab_file, vocab)

    strategy = strategies.set_up(options)
    with strategy.scope():
        model = ConvBertPretrainer(experiment.model, experiment.pretraining)
    task = PretrainingTask(model, masking.special_tokens(vocab), **_datasets(experiment))
    loop.check_best_metric(task, options)
    if options.init_from and not checkpoints.latest(options.model_dir):
        checkpoints.check_start(model, options.init_from, options.init_optimizer)
    inputs = _inputs(experiment)
    identity.save_config(experiment, options.model_dir, allow_config_change, inputs)
    if strategies.is_chief(strategy):
        with atomic_path(os.path.join(options.model_dir, VOCAB_FILE)) as partial:
            shutil.copyfile(vocab_file, partial)
    say(f"{model.count_params():,} parameters")
    strategies.describe(strategy, options)
    evaluation = _evaluation(experiment, inputs)
    results = loop.fit(task, options, options.num_train_steps, strategy, evaluation=evaluation)
    if strategies.is_chief(strategy):
        preset_dir = os.path.join(options.model_dir, "preset")
        model.save_to_preset(preset_dir, vocab_file, manifest["lower_case"])
        say(f"the model is in {preset_dir}")
    return results


def _manifest(experiment):
    """The manifest of the training records; they and the held-out ones must fit the model."""
    data, manifests = experiment.data, []
    for folder in filter(None, (data.train_dir, data.eval_dir)):
        manifests.append(shards.load_manifest(folder, data.on_corrupt_record == "skip"))
        shards.check_manifest(
            manifests[-1],
            folder,
            vocab_file=os.path.join(data.train_dir, VOCAB_FILE),
            vocab_size=experiment.model.vocab_size,
            max_seq_length=data.max_seq_length,
        )
    if data.eval_dir:
        batch_size, num_records = experiment.training.batch_size, manifests[-1]["num_records"]
        input_pipeline.full_batches(num_records, batch_size, data.eval_dir)
    return manifests[0]


def _inputs(experiment):
    """The files by which the records and the start of a run are known; see identity.save_config."""
    data, init_from = experiment.data, experiment.training.init_from
    return {
        "data.train_dir": [os.path.join(data.train_dir, shards.MANIFEST)],
        "data.eval_dir": [os.path.join(data.eval_dir, shards.MANIFEST)],
        "training.init_from": [
            os.path.join(init_from, name) for name in (VOCAB_FILE, configs.CONFIG_FILE)
        ],
    }


def _evaluation(experiment, inputs):
    """What the held-out metrics depend on besides the weights."""
    options = experiment.training
    batches = options.num_eval_steps
    return {
        "eval_dir": identity.hashes(inputs["data.eval_dir"]),
        "max_seq_length": experiment.data.max_seq_length,
        "pretraining": dataclasses.asdict(experiment.pretraining),
        "num_eval_steps": [batches, options.batch_size] if batches else 0,
    }


def _check_vocabulary(earlier, vocab_file, vocab):
    """Refuses to go on from a preset or a run whose ids stand for other words."""
    theirs = os.path.join(earlier, VOCAB_FILE)
    if os.path.exists(theirs) and load_vocab(theirs) != vocab:
        raise UserError(
            f"{theirs} is not the vocabulary of the records ({vocab_file}): build them with it."
        )


def _datasets(experiment):
    """What PretrainingTask takes to read the data of `experiment`."""
    data, options = experiment.data, experiment.training
    damaged = {} if data.on_corrupt_record == "skip" else None
    records = {"max_seq_length": data.max_seq_length, "vocab_size": experiment.model.vocab_size}
    batches = records | {"batch_size": options.batch_size, "seed": options.seed, "damaged": damaged}
    train = functools.partial(input_pipeline.pretraining_dataset, data.train_dir, **batches)
    evaluation = functools.partial(input_pipeline.evaluation_dataset, data.eval_dir, **batches)
    return {
        "train_dataset": functools.partial(
            train, shards_per_round=data.shards_per_round, cache=data.cache
        ),
        "eval_dataset": evaluation if data.eval_dir else None,
        "explain": functools.partial(
            input_pipeline.explain,
            data_dirs=[folder for folder in (data.train_dir, data.eval_dir) if folder],
            damage_allowed=damaged is not None,
            **records,
        ),
        "damaged": damaged,
    }
