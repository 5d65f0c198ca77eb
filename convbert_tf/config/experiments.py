"""Experiments: all settings of a run, in sections."""

import dataclasses
import math

from convbert_tf.config.checks import (
    check_types,
    path_setting,
    require,
    require_at_least_one,
    require_not_negative,
    require_one_of,
    setting,
)
from convbert_tf.config.model import ModelConfig, PretrainingConfig
from convbert_tf.config.tasks import task_name
from convbert_tf.console import UserError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Pre-training data: directories made by tools/build_pretraining_data.py."""

    train_dir: str = path_setting("Records to train on.")
    eval_dir: str = path_setting("Held-out records; no evaluation if empty.")
    max_seq_length: int = setting(128, "Tokens of an input; as the records were built with.")
    shards_per_round: int = setting(16, "Shards that are shuffled together.")
    cache: bool = setting(False, "Keep all records in memory: for data that fits, on slow disks.")
    on_corrupt_record: str = setting(
        "stop",
        "A record whose checksum is wrong stops the run, or (skip) is left out and counted; the "
        "next whole record of its shard takes its place.",
    )

    def __post_init__(self):
        check_types(self)
        require_at_least_one(self, "shards_per_round")
        require_one_of(self, "on_corrupt_record", "stop", "skip")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A task to fine-tune on."""

    name: str = setting("", "A GLUE task (see glue.TASKS), squad_v1, squad_v2, tokens, or own.")
    data_dir: str = path_setting(
        "Folder of the data. GLUE: train.tsv, dev.tsv, or tfds:glue, tfds:glue@FOLDER; SQuAD: "
        "train.json and dev.json (or .jsonl, .csv ...), or tfds:squad/v1.1, tfds:squad/v2.0; "
        "tokens: train.txt, train.conll or the like."
    )
    init_from: str = path_setting(
        "Preset or Hugging Face directory, or hf://owner/name, to start from."
    )
    from_scratch: bool = setting(
        False, "Take only the architecture and vocabulary of init_from, for comparison."
    )
    max_seq_length: int = setting(128, "Longest input, in tokens.")
    num_train_epochs: float = setting(
        3.0, "Times that the training data is gone through; see training.num_train_steps."
    )
    double_unordered: bool = setting(
        True, "MRPC, STS-B: add each training pair swapped, as the original does."
    )
    classifier_dropout: float = setting(0.1, "Sentences, tokens: dropout before the classifier.")
    train_file: str = path_setting(
        "Own: rows to train on: .csv, .tsv, .jsonl or .parquet. SQuAD, tokens: a file of questions "
        "or of words, in place of data_dir."
    )
    dev_file: str = path_setting(
        "As train_file, to score; own, SQuAD: without, a part of train_file is held out."
    )
    test_file: str = path_setting("As train_file, to predict, with or without labels.")
    text_column: str = setting("text", "Own: column of the text.")
    text_b_column: str = setting("", "Own: column of the second text, where there are pairs.")
    label_column: str = setting("label", "Own: column of the class, the labels or the score.")
    id_column: str = setting("", "Own: column of names of the rows, each there once.")
    split_column: str = setting("", "Own: column of train_file that says train, dev or test.")
    delimiter: str = setting("", "Own: what is between the values of a .csv file, if no comma.")
    kind: str = setting(
        "classes",
        "Own: classes: a class a text; labels: any number of labels a text, in a list or with "
        "label_separator between them; score: a number a text.",
    )
    label_separator: str = setting(",", "Own: between the labels of a text.")
    labels: str = setting("", "Own: all labels, a comma between them; by default those there are.")
    min_score: float = setting(0.0, "Own: the lowest score; by default that of the data.")
    max_score: float = setting(0.0, "Own: the highest score; by default that of the data.")
    held_out: float = setting(
        0.1, "Own, SQuAD: share of train_file to score, by a hash of the texts."
    )
    held_out_seed: int = setting(0, "Own, SQuAD: another number holds out other rows.")
    metrics: str = setting(
        "",
        "Own: a comma between them, the one that counts first. classes: accuracy, macro_f1 (by "
        "default), mcc, and of two classes f1; labels: micro_f1, macro_f1, subset_accuracy; "
        "score: pearson, spearman, mean_squared_error.",
    )
    class_weights: str = setting(
        "",
        "Sentences: what an example of each class counts for in the loss. balanced: the fewer "
        "there are of a class, the more; or a number a label: 1,3 in their order, or 0:1,1:3.",
    )
    num_trials: int = setting(
        1, "Runs with the seeds training.seed, training.seed + 1 ..., each in model_dir/trial-N."
    )
    max_query_length: int = setting(64, "SQuAD: longest question, in tokens.")
    doc_stride: int = setting(128, "SQuAD, tokens: pieces between the starts of two windows.")
    max_answer_length: int = setting(30, "SQuAD: longest answer, in tokens.")
    answer_positions: str = setting(
        "answer_start",
        "SQuAD: tokens to train on: answer_start: those at the answer's place; original: of the "
        "words there, the first tokens that are the answer's.",
    )
    n_best_size: int = setting(20, "SQuAD: answers that are kept for a question.")
    beam_size: int = setting(20, "SQuAD: starts for which ends are sought.")
    word_column: str = setting(
        "",
        "Tokens: column of the words, a number from 1 (from the end: -1) or a name of the header "
        "line; empty: FORM if there are names, or the first.",
    )
    tag_column: str = setting(
        "", "Tokens: column of the tags; empty: UPOS if there are names, or the last."
    )
    joint_prediction: bool = setting(
        True,
        "SQuAD: True: the original's joint head, or the one that the preset has; False: "
        "independent start and end, a head that Hugging Face's format can hold.",
    )
    answerable_weight: float = setting(
        0.5, "SQuAD 2.0: weight of the loss of whether there is an answer."
    )
    null_threshold: str = setting(
        "f1",
        'SQuAD 2.0: log-odds of "no answer" above which the answer is "": f1 or exact for the '
        "threshold with the best of these on the dev set, a number, or none to answer all.",
    )

    def __post_init__(self):
        check_types(self)
        names = "max_query_length doc_stride max_answer_length n_best_size beam_size"
        for name in ["num_train_epochs", *names.split()]:
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be above 0, got {value}.")
        require(
            self.num_train_epochs <= 1e6,
            f"num_train_epochs must be at most 1,000,000, got {self.num_train_epochs}.",
        )
        require(
            self.null_threshold in ("f1", "exact", "none") or _is_number(self.null_threshold),
            f"null_threshold must be f1, exact, none or a number, got {self.null_threshold!r}.",
        )
        object.__setattr__(self, "name", task_name(self.name))
        require_one_of(self, "kind", "classes", "labels", "score")
        require_one_of(self, "answer_positions", "answer_start", "original")
        require(0 < self.held_out < 1, f"held_out must be in (0, 1), got {self.held_out}.")
        scores = (self.min_score, self.max_score)
        require(
            all(map(math.isfinite, scores)) and (scores[0] < scores[1] or scores == (0, 0)),
            f"min_score {scores[0]} must be below max_score {scores[1]}.",
        )
        require_at_least_one(self, "num_trials")
        dropout = self.classifier_dropout
        require(0 <= dropout < 1, f"classifier_dropout must be in [0, 1), got {dropout}.")


def _is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a run is carried out, whatever the task."""

    model_dir: str = path_setting("Folder of the run: checkpoints, metrics, results.")
    init_from: str = path_setting(
        "Pre-training: start from the weights of a preset, or of the last checkpoint in this "
        "model_dir of another run."
    )
    init_optimizer: bool = setting(
        False, "With init_from: take that checkpoint's optimiser moments as well."
    )
    batch_size: int = setting(
        128, "Examples of a step, over all replicas and all parts of an accumulated step."
    )
    gradient_accumulation_steps: int = setting(1, "Parts in which a replica's batch is computed.")
    learning_rate: float = setting(3e-4, "The highest, at the end of the warm-up.")
    num_train_steps: int = setting(
        0,
        "Length of the run and of its learning-rate schedule. Fine-tuning: 0 for "
        "task.num_train_epochs.",
    )
    warmup_steps: int = setting(10_000, "Steps in which the learning rate rises.")
    warmup_proportion: float = setting(
        0.0, "The same as a share of the run; the larger of the two counts."
    )
    weight_decay_rate: float = setting(
        0.01, "Decoupled weight decay, of all but LayerNorm and biases."
    )
    layerwise_lr_decay: float = setting(
        0.0, "Fine-tuning: factor of the learning rate from a layer to the one below; 0: none."
    )
    clip_norm: float = setting(1.0, "Largest norm of the gradient.")
    strategy: str = setting("one_device", "one_device, mirrored, multi_worker_mirrored or tpu.")
    num_devices: int = setting(0, "Of strategy mirrored; 0: all there are.")
    tpu: str = setting("", "Of strategy tpu: its name or address, or local on a TPU VM.")
    precision: str = setting("float32", "float32, mixed_bfloat16 or mixed_float16.")
    jit_compile: bool = setting(False, "Compile the step with XLA.")
    deterministic: bool = setting(
        False, "Bit-identical runs: op determinism, without Grappler; slower."
    )
    steps_per_loop: int = setting(100, "Steps in the graph between two looks from the host.")
    eval_interval: int = setting(0, "Steps between evaluations; 0: at the end only.")
    num_eval_steps: int = setting(0, "Batches of an evaluation; 0: all.")
    checkpoint_interval: int = setting(1000, "Steps between checkpoints.")
    keep_checkpoints: int = setting(5, "The last checkpoints that are kept.")
    best_metric: str = setting(
        "",
        "Metric of the evaluation whose best checkpoint is kept in best/: the lowest of a loss, "
        "the highest of anything else. Fine-tuning ends with that checkpoint's weights. none: no "
        "metric. Empty: none, but in fine-tuning with an eval_interval the task's main metric.",
    )
    patience: int = setting(
        0,
        "Evaluations without a better best_metric after which the run stops; 0: it never does. "
        "Needs an eval_interval.",
    )
    on_nonfinite: str = setting(
        "stop",
        "A step whose loss or gradient is not finite stops the run, or (skip) changes no weight "
        "and is counted.",
    )
    peak_flops: float = setting(
        0.0, "FLOP/s of one device, to show the share that is used; 0: not shown."
    )
    seed: int = setting(0, "Of data order, masking, dropout and initial weights.")

    def __post_init__(self):
        check_types(self)
        require_one_of(self, "strategy", "one_device", "mirrored", "multi_worker_mirrored", "tpu")
        require_one_of(self, "precision", "float32", "mixed_bfloat16", "mixed_float16")
        require_at_least_one(
            self,
            "batch_size steps_per_loop checkpoint_interval keep_checkpoints "
            "gradient_accumulation_steps",
        )
        require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"batch_size {self.batch_size} is not divisible by gradient_accumulation_steps "
            f"{self.gradient_accumulation_steps}.",
        )
        require_one_of(self, "on_nonfinite", "stop", "skip")
        require(self.init_from or not self.init_optimizer, "init_optimizer needs an init_from.")
        require(
            0 < self.learning_rate < math.inf,
            f"learning_rate must be positive, got {self.learning_rate}.",
        )
        require(self.seed < 2**32, f"seed must be below 2**32, got {self.seed}.")
        for name in ("model_dir", "init_from"):
            # TensorFlow takes a checkpoint's path for a pattern, and would delete what it matches.
            require(
                not set(getattr(self, name)) & set("*?[]\\"),
                f"{name} {getattr(self, name)!r} has one of the characters *?[]\\: rename it.",
            )
        require_not_negative(
            self,
            "warmup_steps warmup_proportion weight_decay_rate layerwise_lr_decay clip_norm "
            "num_train_steps num_devices eval_interval num_eval_steps seed peak_flops patience",
        )
        require(
            not self.patience or (self.eval_interval and self.best_metric != "none"),
            "patience needs an eval_interval, and a best_metric other than none.",
        )
        require(self.warmup_proportion <= 1, "warmup_proportion must be at most 1.")


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
    training: TrainingConfig = TrainingConfig(num_train_steps=1_000_000)

    def __post_init__(self):
        require(
            self.training.num_train_steps >= 1,
            "num_train_steps must be at least 1: a pre-training has no epochs to end by.",
        )
        check_length(self.data.max_seq_length, self.model)
        require(
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
        require(
            self.data.train_dir and self.training.model_dir,
            "set --config.data.train_dir and --config.training.model_dir.",
        )


@dataclasses.dataclass(frozen=True)
class FinetuningExperiment:
    """All of a fine-tuning run; the architecture comes from the preset `task.init_from`."""

    task: TaskConfig = TaskConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self):
        require(
            not self.training.init_from,
            "training.init_from is for pre-training; fine-tuning starts from task.init_from.",
        )


def check_length(max_seq_length, model):
    """Refuses a `max_seq_length` that a model of ModelConfig `model` has no positions for."""
    require(
        8 <= max_seq_length <= model.max_position_embeddings,
        f"max_seq_length {max_seq_length} must be between 8 and the model's "
        f"max_position_embeddings {model.max_position_embeddings}.",
    )
