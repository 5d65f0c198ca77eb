"""Fine-tunes a preset on a GLUE task or on SQuAD and scores it on the dev set.

    python tools/finetune.py --config=configs/finetune_glue.py:cola \
        --config.task.init_from=runs/small/preset --config.task.data_dir=glue/CoLA \
        --config.training.model_dir=runs/small-cola

Leaves in model_dir: eval_results.json, predictions/, and the fine-tuned model as preset/.
"""

from absl import flags
from ml_collections import config_flags

from convbert_tf import config, console

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with :TASK.")
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Resume a run whose config was another one."
)
flags.mark_flag_as_required("config")


def main(_):
    experiment = config.from_config_dict(config.FinetuningExperiment, CONFIG.value)

    console.load_tensorflow("orbit")
    from convbert_tf.tasks import finetuning

    results = finetuning.run(experiment, ALLOW_CONFIG_CHANGE.value)
    for name, value in results.items():
        console.say(f"{name}: {value:.4f}")


if __name__ == "__main__":
    console.run(main)
