r"""Fine-tuning on SQuAD with the original's settings: configs/finetune_squad.py:v1 or :v2.

Two epochs, windows of 512 tokens every 128, batch 32, learning rate 3e-4 for small and
medium-small; for base add --config.training.learning_rate=1e-4.

    python tools/finetune.py --config=configs/finetune_squad.py:v2 \
        --config.task.init_from=PRESET --config.task.data_dir=squad2 \
        --config.training.model_dir=runs/squad2
"""

from convbert_tf import config


def get_config(version="v1"):
    if version not in ("v1", "v2"):
        raise ValueError(f"no version {version!r} of SQuAD; there are v1, v2.")
    return config.to_config_dict(
        config.FinetuningExperiment(
            task=config.TaskConfig(
                name=f"squad_{version}", max_seq_length=512, num_train_epochs=2.0
            ),
            training=config.finetuning_defaults(),
        )
    )
