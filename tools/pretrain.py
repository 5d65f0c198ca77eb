"""Pre-trains a ConvBERT on records of tools/build_pretraining_data.py.

    python tools/pretrain.py --config=configs/pretrain_small.py \
        --config.data.train_dir=data/train --config.data.eval_dir=data/heldout \
        --config.training.model_dir=runs/small

Resumes from the last checkpoint of model_dir. Leaves the model there as preset/.
"""

import functools
import os

from absl import flags
from ml_collections import config_flags

from convbert_tf import config, console

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

    from convbert_tf import input_pipeline, masking, pretraining, tokenization, training

    manifest = input_pipeline.load_manifest(data.train_dir)
    if manifest["vocab_size"] != experiment.model.vocab_size:
        raise console.UserError(
            f"the records' vocabulary has {manifest['vocab_size']} entries, the model's "
            f"{experiment.model.vocab_size}: set --config.model.vocab_size."
        )
    vocab_file = os.path.join(data.train_dir, "vocab.txt")
    vocab = tokenization.load_vocab(vocab_file)
    special_tokens = masking.SpecialTokens(*map(vocab.index, ("[CLS]", "[SEP]", "[MASK]")))

    strategy = training.set_up(options)
    training.save_config(experiment, options.model_dir, ALLOW_CONFIG_CHANGE.value)
    with strategy.scope():
        model = pretraining.ConvBertPretrainer(experiment.model, experiment.pretraining)
    console.say(f"{model.count_params():,} parameters")
    training.describe(strategy, options)
    batches = {
        "batch_size": options.batch_size,
        "max_seq_length": data.max_seq_length,
        "seed": options.seed,
        "vocab_size": experiment.model.vocab_size,
    }
    train_dataset = functools.partial(
        _training_batches, data.train_dir, data.shards_per_round, batches
    )
    eval_dataset = functools.partial(_evaluation_batches, data.eval_dir, batches)
    task = pretraining.PretrainingTask(
        model, special_tokens, train_dataset, eval_dataset if data.eval_dir else None
    )
    training.fit(task, options, options.num_train_steps, strategy)
    preset_dir = os.path.join(options.model_dir, "preset")
    model.save_to_preset(preset_dir, vocab_file, manifest["lower_case"])
    console.say(f"the model is in {preset_dir}")


def _training_batches(train_dir, shards_per_round, batches, start_step, input_context):
    from convbert_tf import input_pipeline

    return input_pipeline.pretraining_dataset(
        train_dir,
        **batches,
        start_step=start_step,
        shards_per_round=shards_per_round,
        input_context=input_context,
    )


def _evaluation_batches(eval_dir, batches, input_context):
    from convbert_tf import input_pipeline

    return input_pipeline.evaluation_dataset(eval_dir, **batches, input_context=input_context)


if __name__ == "__main__":
    console.run(main)
