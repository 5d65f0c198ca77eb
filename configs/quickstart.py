"""Fine-tuning as tools/quickstart.sh does it: short, for a tiny model on two CPU cores.

configs/quickstart.py:cola or :squad_v1. About 12,000 sentences and 16,000 questions; part of
an epoch to one epoch of them.
"""

from convbert_tf import config

EPOCHS = {"cola": 1.0, "squad_v1": 0.4}


def get_config(task="cola"):
    return config.to_config_dict(
        config.FinetuningExperiment(
            task=config.TaskConfig(
                name=task, max_seq_length=128, doc_stride=64, num_train_epochs=EPOCHS[task]
            ),
            training=config.finetuning_defaults(learning_rate=5e-4, layerwise_lr_decay=0.9),
        )
    )
