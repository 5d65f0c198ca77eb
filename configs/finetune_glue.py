r"""Fine-tuning on a GLUE task with the original's settings: configs/finetune_glue.py:TASK.

TASK is cola, sst2, mrpc, stsb, rte, wnli, qnli, qqp or mnli, in any case and also as GLUE spells it
(SST-2, STS-B). Epochs 3 (RTE and STS-B: 10), batch 32, learning rate 3e-4 for small and
medium-small; for base add --config.training.learning_rate=1e-4. The data are GLUE's TSV files or,
with --config.task.data_dir=tfds:glue, those of TensorFlow Datasets. For data of your own there is
configs/finetune_own.py.

    python tools/finetune.py --config=configs/finetune_glue.py:sst2 \
        --config.task.init_from=PRESET --config.task.data_dir=glue/SST-2 \
        --config.training.model_dir=runs/sst2
"""

from convbert_tf import config


def get_config(task=""):
    name, epochs = config.glue_task(task)
    return config.to_config_dict(
        config.FinetuningExperiment(
            task=config.TaskConfig(name=name, num_train_epochs=epochs),
            training=config.finetuning_defaults(),
        )
    )
