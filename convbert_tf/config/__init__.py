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
    differences,
    from_config_dict,
    paths,
    save,
    to_config_dict,
)

__all__ = [
    "CONFIG_FILE",
    "METRICS_FILE",
    "ConfigFlag",
    "DataConfig",
    "FinetuningExperiment",
    "ModelConfig",
    "PretrainingConfig",
    "PretrainingExperiment",
    "TaskConfig",
    "TrainingConfig",
    "check_length",
    "differences",
    "finetuning_defaults",
    "from_config_dict",
    "paths",
    "save",
    "to_config_dict",
]
