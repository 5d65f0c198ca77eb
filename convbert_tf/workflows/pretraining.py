"""Pre-training on records: from a config to a preset."""

import dataclasses
import functools
import os
import shutil

from convbert_tf import config as configs
from convbert_tf.console import UserError, say
from convbert_tf.data import input_pipeline, shards
from convbert_tf.files import atomic_path, only_one, read_json, write_json
from convbert_tf.modeling import masking
from convbert_tf.modeling.pretraining import ConvBertPretrainer, PretrainingTask
from convbert_tf.text import stored_vocabulary
from convbert_tf.text.vocabulary import VOCAB_FILE, load_vocab
from convbert_tf.training import checkpoints, identity, loop, on_jax, strategies

RECORDS_FILE = "records.json"  # in a run's model_dir: what records it was trained on


def run(experiment, allow_config_change=False):
    """Pre-trains as `experiment` (PretrainingExperiment) says; goes on from the last checkpoint.

    Leaves in `model_dir`: checkpoints and TensorBoard logs, vocab.txt, records.json and preset/,
    generator and discriminator. Returns the last evaluation's metrics.

    Raises:
        UserError: the records do not fit the model or the run, or what loop.fit raises.
    """
    data, options = experiment.data, experiment.training
    experiment.require_directories()
    if os.path.exists(os.path.join(options.model_dir, on_jax.STATE_FILE)):
        raise UserError(
            f"{options.model_dir} holds a run of tools/pretrain_on_jax.py, whose model this one's "
            "would take the place of: choose another model_dir."
        )
    manifests = _manifests(experiment)
    manifest = manifests[data.train_dir]
    records = {folder: shards.identity(each) for folder, each in manifests.items()}
    vocab_file = os.path.join(data.train_dir, VOCAB_FILE)
    vocab = load_vocab(vocab_file)
    if options.init_from:
        _check_vocabulary(options.init_from, vocab_file, vocab)
        found, wanted = _normalization(options.init_from), shards.normalization(manifest)
        _check_normalization(options.init_from, found, wanted, data.train_dir)
    if checkpoints.latest(options.model_dir):
        _check_vocabulary(options.model_dir, vocab_file, vocab)
        if not allow_config_change:
            _check_same_records(experiment, records)

    strategy = strategies.set_up(options)
    with strategy.scope():
        model = ConvBertPretrainer(experiment.model, experiment.pretraining)
    task = PretrainingTask(model, masking.special_tokens(vocab), **_datasets(experiment, records))
    loop.check_best_metric(task, options)
    if options.init_from and not checkpoints.latest(options.model_dir):
        checkpoints.check_start(model, options.init_from, options.init_optimizer)
    with only_one(options.model_dir if strategies.is_chief(strategy) else ""):
        return _train(experiment, task, strategy, records, manifest, allow_config_change)


def _train(experiment, task, strategy, records, manifest, allow_config_change):
    """Trains and saves; see `run`.

    Args:
        task: PretrainingTask.
        strategy: tf.distribute.Strategy.
        records: folder -> identity of its records.
        manifest: of the training records.
    """
    data, options, inputs = experiment.data, experiment.training, _inputs(experiment)
    vocab_file = os.path.join(data.train_dir, VOCAB_FILE)
    identity.save_config(experiment, options.model_dir, allow_config_change, inputs)
    if strategies.is_chief(strategy):
        with atomic_path(os.path.join(options.model_dir, VOCAB_FILE)) as partial:
            shutil.copyfile(vocab_file, partial)
        roles = {"train": records.get(data.train_dir), "eval": records.get(data.eval_dir)}
        write_json(os.path.join(options.model_dir, RECORDS_FILE), roles)
    say(f"{task.model.count_params():,} parameters")
    strategies.describe(strategy, options)
    evaluation = _evaluation(experiment, inputs)
    results = loop.fit(task, options, options.num_train_steps, strategy, evaluation=evaluation)
    if strategies.is_chief(strategy):
        preset_dir = os.path.join(options.model_dir, "preset")
        # Older manifests have no strip_accents; None is as lower_case.
        normalization = (manifest["lower_case"], manifest.get("strip_accents"))
        task.model.save_to_preset(preset_dir, vocab_file, *normalization)
        say(f"the model is in {preset_dir}")
    return results


def _manifests(experiment):
    """Folder -> manifest of the training and held-out records, which must fit the model."""
    data, manifests = experiment.data, {}
    for folder in filter(None, (data.train_dir, data.eval_dir)):
        manifests[folder] = shards.load_manifest(folder, data.on_corrupt_record == "skip")
        shards.check_manifest(
            manifests[folder],
            folder,
            vocab_file=os.path.join(data.train_dir, VOCAB_FILE),
            vocab_size=experiment.model.vocab_size,
            max_seq_length=data.max_seq_length,
        )
    if data.eval_dir:
        held_out, batch_size = manifests[data.eval_dir], experiment.training.batch_size
        found, wanted = map(shards.normalization, (held_out, manifests[data.train_dir]))
        _check_normalization(data.eval_dir, found, wanted, data.train_dir)
        input_pipeline.full_batches(held_out["num_records"], batch_size, data.eval_dir)
    return manifests


def _normalization(source):
    """(lower_case, strip_accents) of the texts that `source`, a run or a model, was trained on.

    None where it does not say.
    """
    if checkpoints.latest(source):
        path = os.path.join(source, RECORDS_FILE)
        earlier = read_json(path, "a run's records") if os.path.exists(path) else {}
        return shards.normalization(earlier["train"]) if earlier else None
    if not os.path.exists(os.path.join(source, VOCAB_FILE)):
        return None
    found = stored_vocabulary.find(source)
    return found.lower_case, found.strip_accents


def _check_normalization(name, found, wanted, train_dir):
    """Refuses `name` if its texts were normalised as `found`, the training records as `wanted`."""
    options = ("lower_case", "strip_accents")
    for option, theirs, ours in zip(options, found or wanted, wanted, strict=True):
        if theirs != ours:
            raise UserError(
                f"{name} is of texts with {option}={theirs}, the records in {train_dir} have "
                f"{option}={ours}: build records alike."
            )


def _check_same_records(experiment, records):
    """Refuses to go on with other records than those that the run was trained on so far."""
    path = os.path.join(experiment.training.model_dir, RECORDS_FILE)
    earlier = read_json(path, "a run's records") if os.path.exists(path) else {}
    for role in ("train", "eval"):
        folder = getattr(experiment.data, f"{role}_dir")
        if folder and earlier.get(role):
            changed = shards.difference(earlier[role], records[folder])
            if changed:
                raise UserError(
                    f"the records in {folder} were built again since the run in "
                    f"{experiment.training.model_dir} began ({changed}): choose another model_dir, "
                    "or resume with the change by --allow_config_change."
                )


def _check_not_rebuilt(folder, earlier, damage_allowed):
    """Refuses records that were built again while the run goes on."""
    present = shards.identity(shards.load_manifest(folder, damage_allowed))
    changed = shards.difference(earlier, present)
    if changed:
        raise UserError(
            f"the records in {folder} were built again while the run went on ({changed}): it "
            "cannot go on with these; the last checkpoint is of the earlier ones."
        )


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


def _datasets(experiment, identities):
    """What PretrainingTask takes to read the data of `experiment`; folder -> its `identity`."""
    data, options = experiment.data, experiment.training
    damaged = {} if data.on_corrupt_record == "skip" else None
    records = {"max_seq_length": data.max_seq_length, "vocab_size": experiment.model.vocab_size}
    batches = records | {"batch_size": options.batch_size, "seed": options.seed, "damaged": damaged}
    train = functools.partial(input_pipeline.pretraining_dataset, data.train_dir, **batches)

    def evaluation(context):
        for folder, earlier in identities.items():
            _check_not_rebuilt(folder, earlier, damaged is not None)
        return input_pipeline.evaluation_dataset(data.eval_dir, context, **batches)

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
