r"""Fine-tunes a preset on a GLUE task, SQuAD or texts of your own, and scores it on the dev set.

    python tools/finetune.py --config=configs/finetune_glue.py:cola \
        --config.task.init_from=runs/small/preset --config.task.data_dir=glue/CoLA \
        --config.training.model_dir=runs/small-cola

Leaves in model_dir: eval_results.json, predictions/, and the fine-tuned model as preset/.

With --config.task.num_trials=3 it does so three times with other seeds, in model_dir/trial-1 to 3,
and with --grid.training.learning_rate=1e-4,3e-4 --grid.task.num_train_epochs=3,5 for each of the
four combinations. Model_dir then has the scores of all as a table, and the preset of the best.
"""

from absl import flags

from convbert_tf import config, console
from convbert_tf.config import grid

CONFIG = config.ConfigFlag(
    config.FinetuningExperiment(training=config.finetuning_defaults()),
    "configs/finetune_own.py (texts of your own), configs/finetune_tokens.py (tagged words), "
    "configs/finetune_glue.py:TASK, configs/finetune_squad.py:v1 or :v2, or a file like these.",
)
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Resume a run whose config was another one."
)
GRID = flags.DEFINE_multi_string(
    "grid",
    [],
    "SECTION.KEY=VALUE,VALUE of the config: a run for each combination with those of the other "
    "keys; --grid.SECTION.KEY=VALUE,VALUE is the same.",
)


def main(_):
    experiment = CONFIG.experiment()
    values = grid.parse(GRID.value, experiment)
    grid.combinations(values, experiment)  # which refuses impossible ones

    console.load_tensorflow("orbit")
    from convbert_tf.workflows import trials

    trials.run(experiment, values, ALLOW_CONFIG_CHANGE.value)


if __name__ == "__main__":
    console.run(main, CONFIG.help)
