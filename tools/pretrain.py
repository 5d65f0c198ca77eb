"""Pre-trains a ConvBERT on records of tools/build_pretraining_data.py.

    python tools/pretrain.py --config=configs/pretrain_small.py \
        --config.data.train_dir=data/train --config.data.eval_dir=data/heldout \
        --config.training.model_dir=runs/small

Resumes from the last checkpoint of model_dir. Leaves the model there as preset/, generator and
discriminator, from which another run can start: --config.training.init_from=runs/small/preset, or
runs/small --config.training.init_optimizer to take the optimiser's moments along.
"""

import functools
import os
import shutil

from absl import flags
from ml_collections import config_flags

from convbert_tf import config, console, files

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Resume a run whose config was another one."
)
flags.mark_flag_as_required("config")


def main(_):
    experiment = config.from_config_dict(config.PretrainingExperiment, CONFIG.value)
    data, options = experiment.data, experiment.training
    if not data.train_dir or not options.model_dir:
        raise console.UserError("set --config.data.train_dir and --config.training.model_dir.")

    console.load_tensorflow("orbit")
    from convbert_tf.modeling import masking, pretraining
    from convbert_tf.text import tokenization
    from convbert_tf.training import checkpoints, loop, strategies

    manifest = _manifest(experiment)
    vocab_file = os.path.join(data.train_dir, "vocab.txt")
    vocab = tokenization.load_vocab(vocab_file)
    if options.init_from:
        _check_vocabulary(options.init_from, vocab_file, vocab)
    if checkpoints.latest(options.model_dir):
        _check_vocabulary(options.model_dir, vocab_file, vocab)
    special_tokens = masking.special_tokens(vocab)

    strategy = strategies.set_up(options)
    checkpoints.save_config(experiment, options.model_dir, ALLOW_CONFIG_CHANGE.value)
    if strategies.is_chief(strategy):
        with files.atomic_path(os.path.join(options.model_dir, "vocab.txt")) as partial:
            shutil.copyfile(vocab_file, partial)
    with strategy.scope():
        model = pretraining.ConvBertPretrainer(experiment.model, experiment.pretraining)
    console.say(f"{model.count_params():,} parameters")
    strategies.describe(strategy, options)
    task = pretraining.PretrainingTask(model, special_tokens, **_datasets(experiment))
    loop.fit(task, options, options.num_train_steps, strategy)
    if strategies.is_chief(strategy):
        preset_dir = os.path.join(options.model_dir, "preset")
        model.save_to_preset(preset_dir, vocab_file, manifest["lower_case"])
        console.say(f"the model is in {preset_dir}")


def _manifest(experiment):
    """The manifest of the training records; they and the held-out ones must fit the model."""
    from convbert_tf.data import corpus, input_pipeline, shards

    data, manifests = experiment.data, []
    for folder in filter(None, (data.train_dir, data.eval_dir)):
        manifests.append(shards.load_manifest(folder, data.on_corrupt_record == "skip"))
        corpus.check_manifest(
            manifests[-1],
            folder,
            vocab_file=os.path.join(data.train_dir, "vocab.txt"),
            vocab_size=experiment.model.vocab_size,
            max_seq_length=data.max_seq_length,
        )
    if data.eval_dir:
        batch_size, num_records = experiment.training.batch_size, manifests[-1]["num_records"]
        input_pipeline.full_batches(num_records, batch_size, data.eval_dir)
    return manifests[0]


def _check_vocabulary(earlier, vocab_file, vocab):
    """Refuses to go on from a preset or a run whose ids stand for other words."""
    from convbert_tf.text import tokenization

    theirs = os.path.join(earlier, "vocab.txt")
    if os.path.exists(theirs) and tokenization.load_vocab(theirs) != vocab:
        raise console.UserError(
            f"{theirs} is not the vocabulary of the records ({vocab_file}): build them with it."
        )


def _datasets(experiment):
    """What PretrainingTask takes to read the data of `experiment`."""
    from convbert_tf.data import input_pipeline

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


if __name__ == "__main__":
    console.run(main)
