"""Every setting of the package, as frozen dataclasses that check themselves.

An experiment is a dataclass of sections (`PretrainingExperiment`, `FinetuningExperiment`). A file
in configs/ makes one; the command line overrides any value of it
(`--config.training.batch_size=64`); the resolved one is saved beside the checkpoints. Unknown keys
and impossible values are refused here, before anything is built.
"""

import dataclasses
import difflib
import math

from convbert_tf.console import UserError
from convbert_tf.files import write_json

CONFIG_FILE = "config.json"  # in a run's model_dir
METRICS_FILE = "metrics.jsonl"


def _require(condition, message):
    if not condition:
        raise UserError(message)


def _require_one_of(config, name, *choices):
    value, shown = getattr(config, name), f"one of {', '.join(choices)}"
    if len(choices) == 2:
        shown = f"{choices[0]!r} or {choices[1]!r}"
    _require(value in choices, f"{name} must be {shown}, got {value!r:.60}.")


def _require_not_negative(config, names):
    for name in names.split():
        value = getattr(config, name)
        _require(value >= 0, f"{name} must not be negative, got {value}.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of an encoder and of its generator; names as in the original.

    `ModelConfig.small()`, `.medium_small()` and `.base()` are the published sizes; each takes
    overrides, e.g. `ModelConfig.small(vocab_size=8000)`.
    """

    vocab_size: int = 30522
    hidden_size: int = 256  # H
    num_hidden_layers: int = 12  # L
    num_attention_heads: int = 4  # before the reduction by head_ratio
    intermediate_size: int = 1024  # I
    embedding_size: int = 128  # E; projected to H where they differ
    hidden_act: str = "gelu"  # the exact (erf) form
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    conv_type: str = "sdconv"  # "noconv": self-attention alone, as BERT and ELECTRA
    conv_kernel_size: int = 9  # K
    head_ratio: float = 2  # gamma in the paper
    linear_groups: int = 1  # G
    # False is the original: padding leaks into the convolution's last (K-1)/2 tokens. True makes
    # outputs independent of the amount of padding, but published weights were not trained so.
    mask_convolution: bool = False
    generator_hidden_size: float = 0.25  # as a fraction of hidden_size
    generator_layers: float = 1.0  # as a fraction of num_hidden_layers
    untied_generator_embeddings: bool = False
    pad_token_id: int = 0  # only kept for Hugging Face's config.json; batches here pad with 0

    @classmethod
    def small(cls, **overrides):
        """ConvBERT small: 14.0 M parameters with its generator."""
        return cls(**overrides)

    @classmethod
    def medium_small(cls, **overrides):
        """ConvBERT medium-small, with grouped linear layers: 18.5 M parameters with generator."""
        sizes = {"hidden_size": 384, "num_attention_heads": 8, "intermediate_size": 1536}
        sizes["linear_groups"] = 2
        return cls(**(sizes | overrides))

    @classmethod
    def base(cls, **overrides):
        """ConvBERT base: 115.8 M parameters with its generator."""
        sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
        sizes |= {"embedding_size": 768, "generator_hidden_size": 1 / 3}
        return cls(**(sizes | overrides))

    def __post_init__(self):
        self._check_sizes()
        heads, groups = self.num_attention_heads, self.linear_groups
        _require(
            self.hidden_size % heads == 0,
            f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}.",
        )
        _require(
            self.conv_kernel_size % 2 == 1,
            f"conv_kernel_size must be odd, got {self.conv_kernel_size}.",
        )
        _require(
            self.hidden_size % groups == 0 and self.intermediate_size % groups == 0,
            f"linear_groups {groups} must divide hidden_size {self.hidden_size} and "
            f"intermediate_size {self.intermediate_size}.",
        )
        _require_one_of(self, "conv_type", "sdconv", "noconv")
        _require(
            0 < self.initializer_range < math.inf,
            f"initializer_range must be positive, got {self.initializer_range}.",
        )
        _require(self.head_ratio >= 1, f"head_ratio must be at least 1, got {self.head_ratio}.")
        for name in ("generator_hidden_size", "generator_layers"):
            value = getattr(self, name)
            _require(0 < value <= 1, f"{name} is a fraction above 0, at most 1; got {value}.")

    def _check_sizes(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                whole = isinstance(value, int | float) and float(value).is_integer()
                least = 0 if field.name == "pad_token_id" else 1
                _require(
                    whole and value >= least,
                    f"{field.name} must be a whole number above {least - 1}, got {value!r}.",
                )
                object.__setattr__(self, field.name, int(value))
            if field.name.endswith("dropout_prob"):
                _require(0 <= value < 1, f"{field.name} must be in [0, 1), got {value}.")

    def generator(self):
        """The generator's own ModelConfig: thinner, all else inherited.

        Embeddings of its own are of its hidden size, as in the original.
        """
        hidden_size = round(self.hidden_size * self.generator_hidden_size)
        untied = self.untied_generator_embeddings
        return dataclasses.replace(
            self,
            hidden_size=hidden_size,
            embedding_size=hidden_size if untied else self.embedding_size,
            num_hidden_layers=max(1, round(self.num_hidden_layers * self.generator_layers)),
            intermediate_size=4 * hidden_size,
            num_attention_heads=max(1, int(self.num_attention_heads * self.generator_hidden_size)),
        )

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """The config of `values`; a key that is no field is refused by name."""
        return _from_dict(cls, values, "model")


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """What the pre-training step computes."""

    objective: str = "electra"  # "mlm": BERT's objective on the full-size encoder alone
    mask_prob: float = 0.15
    # True is the original: positions are drawn with replacement, so a few fewer are masked.
    masking_with_replacement: bool = False
    # A word's pieces are masked together, all or none; the number of masked tokens stays the most.
    whole_word_masking: bool = False
    gen_weight: float = 1.0
    disc_weight: float = 50.0
    # False: one full-size encoder is generator and discriminator, each with its own head.
    untied_generator: bool = True
    uniform_generator: bool = False  # no generator: samples are uniform over the vocabulary
    temperature: float = 1.0  # of sampling from the generator
    disallow_correct: bool = False  # never sample the token that was masked

    def __post_init__(self):
        _require_one_of(self, "objective", "electra", "mlm")
        _require(0 < self.mask_prob < 1, f"mask_prob must be in (0, 1), got {self.mask_prob}.")
        _require(
            0 < self.temperature < math.inf,
            f"temperature must be positive, got {self.temperature}.",
        )
        _require_not_negative(self, "gen_weight disc_weight")
        _require(
            not (self.whole_word_masking and self.masking_with_replacement),
            "whole_word_masking draws words without replacement: not with "
            "masking_with_replacement.",
        )
        _require(
            self.objective == "electra" or (self.untied_generator and not self.uniform_generator),
            "untied_generator and uniform_generator are options of objective 'electra'.",
        )
        _require(
            self.untied_generator or not self.uniform_generator,
            "uniform_generator has no generator that untied_generator=False could tie.",
        )

    @property
    def has_own_generator(self):
        """Whether the generator is a second, smaller encoder."""
        return self.objective == "electra" and self.untied_generator and not self.uniform_generator

    def max_predictions_per_seq(self, max_seq_length):
        """M: the slots for masked positions in an input of `max_seq_length` tokens."""
        return min(max_seq_length, max(1, int((self.mask_prob + 0.005) * max_seq_length)))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Pre-training data: directories made by tools/build_pretraining_data.py."""

    train_dir: str = ""
    eval_dir: str = ""  # held-out records; no evaluation if empty
    max_seq_length: int = 128
    shards_per_round: int = 16  # shards shuffled together
    cache: bool = False  # keep all records in memory: for data that fits, on slow disks
    # A record whose checksum is wrong stops the run, or ("skip") is left out and counted; what
    # comes in its place is the next whole record of its shard.
    on_corrupt_record: str = "stop"

    def __post_init__(self):
        _require(self.shards_per_round >= 1, "shards_per_round must be at least 1.")
        _require_one_of(self, "on_corrupt_record", "stop", "skip")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A task to fine-tune on."""

    name: str = ""  # a GLUE task (see glue.TASKS), "squad_v1" or "squad_v2"
    data_dir: str = ""  # GLUE: train.tsv, dev.tsv; SQuAD: train.json, dev.json
    init_from: str = ""  # preset or Hugging Face directory, or hf://owner/name, to start from
    from_scratch: bool = False  # take only its architecture and vocabulary, for comparison
    max_seq_length: int = 128
    num_train_epochs: float = 3.0
    double_unordered: bool = True  # MRPC, STS-B: add each training pair swapped, as the original
    classifier_dropout: float = 0.1
    # SQuAD
    max_query_length: int = 64
    doc_stride: int = 128
    max_answer_length: int = 30
    n_best_size: int = 20
    beam_size: int = 20
    # False: independent start and end, the head that Hugging Face has; True: the original's, or
    # whichever the preset has.
    joint_prediction: bool = True
    answerable_weight: float = 0.5

    def __post_init__(self):
        names = "max_query_length doc_stride max_answer_length n_best_size beam_size"
        for name in ["num_train_epochs", *names.split()]:
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name} must be above 0, got {value}.")
        dropout = self.classifier_dropout
        _require(0 <= dropout < 1, f"classifier_dropout must be in [0, 1), got {dropout}.")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a run is carried out, whatever the task."""

    model_dir: str = ""
    # Pre-training: start from the weights of a preset, or of the last checkpoint in this model_dir
    # of another run; init_optimizer takes that checkpoint's moments as well.
    init_from: str = ""
    init_optimizer: bool = False
    batch_size: int = 128  # global: over all replicas, and over the parts of an accumulated step
    gradient_accumulation_steps: int = 1  # parts in which a replica's batch is computed
    learning_rate: float = 3e-4
    num_train_steps: int = 1_000_000  # fine-tuning computes it from the epochs
    warmup_steps: int = 10_000
    warmup_proportion: float = 0.0  # the larger of the two warm-ups counts
    weight_decay_rate: float = 0.01
    layerwise_lr_decay: float = 0.0  # fine-tuning: 0.8; 0 for one rate everywhere
    clip_norm: float = 1.0
    strategy: str = "one_device"  # "mirrored", "multi_worker_mirrored", "tpu"
    num_devices: int = 0  # mirrored: 0 for all there are
    tpu: str = ""  # TPU name or address for strategy="tpu"
    precision: str = "float32"  # "mixed_bfloat16", "mixed_float16"
    jit_compile: bool = False
    deterministic: bool = False  # bit-identical runs; op determinism, no Grappler
    steps_per_loop: int = 100  # steps in the graph between two looks from the host
    eval_interval: int = 0  # steps between evaluations; 0: at the end only
    num_eval_steps: int = 0  # batches of an evaluation; 0: all
    checkpoint_interval: int = 1000
    keep_checkpoints: int = 5  # the last ones
    # Metric of the evaluation whose best checkpoint is kept in best/: the lowest of a loss, the
    # highest of anything else. Empty: none.
    best_metric: str = ""
    # A step whose loss or gradient is not finite stops the run, or ("skip") changes no weight and
    # is counted.
    on_nonfinite: str = "stop"
    peak_flops: float = 0.0  # FLOP/s of one device, to show the share that is used; 0: not shown
    seed: int = 0

    def __post_init__(self):
        _require_one_of(self, "strategy", "one_device", "mirrored", "multi_worker_mirrored", "tpu")
        _require_one_of(self, "precision", "float32", "mixed_bfloat16", "mixed_float16")
        names = "batch_size num_train_steps steps_per_loop checkpoint_interval keep_checkpoints"
        for name in [*names.split(), "gradient_accumulation_steps"]:
            value = getattr(self, name)
            _require(value >= 1, f"{name} must be at least 1, got {value}.")
        _require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"batch_size {self.batch_size} is not divisible by gradient_accumulation_steps "
            f"{self.gradient_accumulation_steps}.",
        )
        _require_one_of(self, "on_nonfinite", "stop", "skip")
        _require(self.init_from or not self.init_optimizer, "init_optimizer needs an init_from.")
        _require(
            0 < self.learning_rate < math.inf,
            f"learning_rate must be positive, got {self.learning_rate}.",
        )
        _require(self.seed < 2**32, f"seed must be below 2**32, got {self.seed}.")
        for name in ("model_dir", "init_from"):
            # TensorFlow takes a checkpoint's path for a pattern, and would delete what it matches.
            _require(
                not set(getattr(self, name)) & set("*?[]\\"),
                f"{name} {getattr(self, name)!r} has one of the characters *?[]\\: rename it.",
            )
        _require_not_negative(
            self,
            "warmup_steps warmup_proportion weight_decay_rate layerwise_lr_decay clip_norm "
            "num_devices eval_interval num_eval_steps seed peak_flops",
        )
        _require(self.warmup_proportion <= 1, "warmup_proportion must be at most 1.")


def finetuning_defaults(**overrides):
    """The TrainingConfig that the original fine-tunes small and medium-small with."""
    settings = {
        "batch_size": 32,
        "learning_rate": 3e-4,
        "warmup_steps": 0,
        "warmup_proportion": 0.1,
        "layerwise_lr_decay": 0.8,
        "steps_per_loop": 50,
        "keep_checkpoints": 1,
    }
    return TrainingConfig(**(settings | overrides))


@dataclasses.dataclass(frozen=True)
class PretrainingExperiment:
    """All of a pre-training run."""

    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self):
        check_length(self.data.max_seq_length, self.model)
        _require(
            not self.training.layerwise_lr_decay, "layerwise_lr_decay is for fine-tuning: set it 0."
        )
        if self.pretraining.has_own_generator:
            try:
                self.model.generator()
            except UserError as error:
                raise UserError(
                    "generator_hidden_size or generator_layers makes an impossible generator: "
                    f"its {error}"
                ) from None

    def require_directories(self):
        """Refuses an experiment without records or without a model_dir."""
        _require(
            self.data.train_dir and self.training.model_dir,
            "set --config.data.train_dir and --config.training.model_dir.",
        )


@dataclasses.dataclass(frozen=True)
class FinetuningExperiment:
    """All of a fine-tuning run; the architecture comes from the preset `task.init_from`."""

    task: TaskConfig = TaskConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self):
        _require(
            not self.training.init_from,
            "training.init_from is for pre-training; fine-tuning starts from task.init_from.",
        )


def check_length(max_seq_length, model):
    """Refuses a `max_seq_length` that a model of ModelConfig `model` has no positions for."""
    _require(
        8 <= max_seq_length <= model.max_position_embeddings,
        f"max_seq_length {max_seq_length} must be between 8 and the model's "
        f"max_position_embeddings {model.max_position_embeddings}.",
    )


def to_config_dict(experiment):
    """`experiment` as an `ml_collections.ConfigDict`, for absl's --config flags to override."""
    from ml_collections import config_dict

    return config_dict.ConfigDict(dataclasses.asdict(experiment))


def from_config_dict(cls, values):
    """The experiment of class `cls` that a ConfigDict (or a plain dict of dicts) describes."""
    values = values.to_dict() if hasattr(values, "to_dict") else values
    _require(
        isinstance(values, dict) and all(isinstance(v, dict) for v in values.values()),
        "a config has sections, each with keys and values.",
    )
    sections = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(sections))
    _require(
        not unknown, f"unknown config section {', '.join(unknown)}; there are {list(sections)}."
    )
    return cls(
        **{
            name: _from_dict(type(sections[name].default), section, name)
            for name, section in values.items()
        }
    )


def _from_dict(cls, values, section):
    fields = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - fields)
    if unknown:
        near = difflib.get_close_matches(unknown[0], fields, n=1)
        hint = (
            f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(fields))}."
        )
        raise UserError(f"unknown key {unknown[0]!r} in the {section} config{hint}")
    return cls(**values)


def save(experiment, path):
    """Writes `experiment` to `path` as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(experiment))


def differences(saved, current):
    """Lines 'section.key: saved -> current' for all values in which two experiments differ."""
    old, new = dataclasses.asdict(saved), dataclasses.asdict(current)
    return [
        f"{section}.{key}: {old[section][key]!r} -> {value!r}"
        for section, values in new.items()
        for key, value in values.items()
        if old[section][key] != value
    ]
