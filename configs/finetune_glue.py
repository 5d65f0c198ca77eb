"""Fine-tuning on a GLUE task with the original's settings: configs/finetune_glue.py:TASK.

Epochs 3 (RTE and STS-B: 10), batch 32, learning rate 3e-4 for small and medium-small; for base
add --config.training.learning_rate=1e-4. A file of your own in the form of CoLA's or SST-2's works
as that task.

    python tools/finetune.py --config=configs/finetune_glue.py:sst2 \
        --config.task.init_from=PRESET --config.task.data_dir=glue/SST-2 \
        --config.training.model_dir=runs/sst2
"""

from convbert_tf import config

EPOCHS = {
    "cola": 3.0,
    "sst2": 3.0,
    "mrpc": 3.0,
    "stsb": 10.0,
    "rte": 10.0,
    "wnli": 3.0,
    "qnli": 3.0,
    "qqp": 3.0,
    "mnli": 3.0,
}


def get_config(task="cola"):
    if task not in EPOCHS:
        raise ValueError(f"no task {task!r}; there are {', '.join(EPOCHS)}.")
    return config.to_config_dict(
        config.FinetuningExperiment(
            task=config.TaskConfig(name=task, num_train_epochs=EPOCHS[task]),
            training=config.finetuning_defaults(),
        )
    )
