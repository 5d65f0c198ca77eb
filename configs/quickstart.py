"""Fine-tuning as tools/quickstart.sh does it: short, for a tiny model on two CPU cores.

configs/quickstart.py:cola or :squad_v1. Less than an epoch of some 12,000 sentences, three of some
4,000 questions; small batches, because so short a run needs steps more than smooth gradients.
"""

from convbert_tf import config

EPOCHS = {"cola": 0.7, "squad_v1": 3.0}
LEARNING_RATES = {"cola": 5e-4, "squad_v1": 1e-3}


def get_config(task="cola"):
    if task not in EPOCHS:
        raise ValueError(f"no task {task!r}; there are {', '.join(EPOCHS)}.")
    return config.to_config_dict(
        config.FinetuningExperiment(
            task=config.TaskConfig(
                name=task, max_seq_length=128, doc_stride=64, num_train_epochs=EPOCHS[task]
            ),
            training=config.finetuning_defaults(
                batch_size=16, learning_rate=LEARNING_RATES[task], layerwise_lr_decay=0.9
            ),
        )
    )
