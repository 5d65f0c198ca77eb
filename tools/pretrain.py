r"""Pre-trains a ConvBERT on records of tools/build_pretraining_data.py.

    python tools/pretrain.py --config=configs/pretrain_small.py \
        --config.data.train_dir=data/train --config.data.eval_dir=data/heldout \
        --config.training.model_dir=runs/small

Resumes from the last checkpoint of model_dir. Leaves the model there as preset/, generator and
discriminator, from which another run can start: --config.training.init_from=runs/small/preset, or
runs/small --config.training.init_optimizer to take the optimiser's moments along.
"""

from absl import flags

from convbert_tf import config, console

CONFIG = config.ConfigFlag(config.PretrainingExperiment(), "A file of configs/.")
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Resume a run whose config was another one."
)


def main(_):
    experiment = CONFIG.experiment()
    experiment.require_directories()

    console.load_tensorflow("orbit")
    from convbert_tf.workflows import pretraining

    pretraining.run(experiment, ALLOW_CONFIG_CHANGE.value)


if __name__ == "__main__":
    console.run(main, CONFIG.help)
