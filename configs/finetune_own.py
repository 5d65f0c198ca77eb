r"""Fine-tuning on texts of your own, in a CSV, TSV, JSON lines or Parquet file.

    python tools/finetune.py --config=configs/finetune_own.py \
        --config.task.train_file=reviews.csv --config.task.text_column=review \
        --config.task.label_column=verdict --config.task.init_from=PRESET \
        --config.training.model_dir=runs/reviews

A tenth of the rows is held out and scored, if there is no --config.task.dev_file or
--config.task.split_column. --config.task.kind: classes (a class a text), labels (any number of
labels a text) or score (a number a text). Epochs 3, batch 32, learning rate 3e-4 for small and
medium-small; for base add --config.training.learning_rate=1e-4.
"""

from convbert_tf import config


def get_config():
    return config.to_config_dict(
        config.FinetuningExperiment(
            task=config.TaskConfig(name=config.OWN_TASK),
            training=config.finetuning_defaults(),
        )
    )
