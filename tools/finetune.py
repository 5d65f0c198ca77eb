r"""Fine-tunes a preset on a GLUE task, SQuAD or texts of your own, and scores it on the dev set.

    python tools/finetune.py --config=configs/finetune_glue.py:cola \
        --config.task.init_from=runs/small/preset --config.task.data_dir=glue/CoLA \
        --config.training.model_dir=runs/small-cola

Leaves in model_dir: eval_results.json, predictions/, and the fine-tuned model as preset/.
"""

from absl import flags

from convbert_tf import config, console

CONFIG = config.ConfigFlag(
    config.FinetuningExperiment(training=config.finetuning_defaults()),
    "A file of configs/, with :TASK.",
)
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Resume a run whose config was another one."
)


def main(_):
    experiment = CONFIG.experiment()

    console.load_tensorflow("orbit")
    from convbert_tf.tasks import finetuning

    results = finetuning.run(experiment, ALLOW_CONFIG_CHANGE.value)
    for name, value in results.items():
        console.say(f"{name}: {value:.4f}")


if __name__ == "__main__":
    console.run(main, CONFIG.help)
