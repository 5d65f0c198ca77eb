"""Every setting of the package, as frozen dataclasses that check themselves.

An experiment is a dataclass of sections (`PretrainingExperiment`, `FinetuningExperiment`). A file
in configs/ makes one; the command line overrides any value of it
(`--config.training.batch_size=64`); the resolved one is saved beside the checkpoints. Unknown keys
and impossible values are refused here, before anything is built.
"""

from convbert_tf.config.experiments import (
    DataConfig,
    FinetuningExperiment,
    PretrainingExperiment,
    TaskConfig,
    TrainingConfig,
    check_length,
    finetuning_defaults,
)
from convbert_tf.config.flags import ConfigFlag
from convbert_tf.config.model import ModelConfig, PretrainingConfig
from convbert_tf.config.overrides import (
    CONFIG_FILE,
    METRICS_FILE,
    changed_values,
    differences,
    from_config_dict,
    paths,
    save,
    to_config_dict,
    with_values,
)
from convbert_tf.config.tasks import (
    GLUE_EPOCHS,
    OWN_TASK,
    glue_task,
    join_list,
    split_list,
    task_name,
)

__all__ = [
    "CONFIG_FILE",
    "GLUE_EPOCHS",
    "METRICS_FILE",
    "OWN_TASK",
    "ConfigFlag",
    "DataConfig",
    "FinetuningExperiment",
    "ModelConfig",
    "PretrainingConfig",
    "PretrainingExperiment",
    "TaskConfig",
    "TrainingConfig",
    "changed_values",
    "check_length",
    "differences",
    "finetuning_defaults",
    "from_config_dict",
    "glue_task",
    "join_list",
    "paths",
    "save",
    "split_list",
    "task_name",
    "to_config_dict",
    "with_values",
]
