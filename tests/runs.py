"""Small pre-training runs for the tests: records, a model, tasks that can be broken at will."""

import contextlib
import fcntl
import math
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

from convbert_tf import config
from convbert_tf.data import corpus, input_pipeline
from convbert_tf.modeling import masking, pretraining
from convbert_tf.training import optimization, trainer
from convbert_tf.training.optimization import FusedAdamW

ROOT = pathlib.Path(__file__).parents[1]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), "."]
SPECIAL_TOKENS = masking.SpecialTokens(2, 3, 4)
MODEL = config.ModelConfig(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    embedding_size=8,
    max_position_embeddings=32,
    conv_kernel_size=3,
    generator_hidden_size=0.5,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
BATCH = 8
BATCHES = {"batch_size": BATCH, "max_seq_length": 24, "seed": 5}


def make_data(folder):
    """Records of 120 short sentences; returns their directory."""
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    lines = [f"{'ab ' * (i % 5)}the {LETTERS[i % 26]} cat.\nit sat.\n" for i in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    corpus.build(
        [str(folder / "text.txt")],
        str(folder / "records"),
        str(folder / "vocab.txt"),
        max_seq_length=24,
        num_workers=1,
        chunk_bytes=600,
    )
    return str(folder / "records")


def make_options(model_dir="", **changes):
    settings = {
        "model_dir": str(model_dir),
        "batch_size": BATCH,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "num_train_steps": 12,
        "steps_per_loop": 3,
        "checkpoint_interval": 3,
    }
    return config.TrainingConfig(**(settings | changes))


class PoisonedTask(pretraining.PretrainingTask):
    """Pre-training whose loss is not a number in the steps with the indices `poisoned`."""

    def prepare(self, batch):
        inputs, weights = super().prepare({k: v for k, v in batch.items() if k != "poison"})
        return inputs | {"poison": batch["poison"]}, weights

    def losses(self, inputs, training):
        terms, counts = super().losses(inputs, training)
        coefficient, total = terms["mlm"]
        poison = tf.reduce_sum(inputs["poison"])
        terms["mlm"] = coefficient, total + poison
        counts["mlm_loss_sum"] += poison
        return terms, counts


def make_task(
    data_dir, strategy, model=MODEL, objective=None, poisoned=None, evaluate=True, **options
):
    """A PretrainingTask; `poisoned`: a function of the step, whether its loss is not a number."""
    options = BATCHES | options

    def train_dataset(start_step, context, **place):
        dataset = input_pipeline.pretraining_dataset(
            data_dir, start_step, context, **options, **place
        )
        if poisoned is None:
            return dataset

        def poison(step, batch):
            value = tf.where(tf.reshape(poisoned(step), []), math.nan, 0.0)
            return batch | {"poison": tf.fill(tf.shape(batch["input_ids"])[:1], value)}

        return tf.data.Dataset.zip(tf.data.Dataset.counter(start_step), dataset).map(poison)

    def eval_dataset(context):
        return input_pipeline.evaluation_dataset(data_dir, context, **BATCHES)

    def explain(error):
        vocab_size = options.get("vocab_size", len(VOCAB))
        return input_pipeline.explain(error, [data_dir], BATCHES["max_seq_length"], vocab_size)

    with strategy.scope():
        pretrainer = pretraining.ConvBertPretrainer(model, objective)
    kind = pretraining.PretrainingTask if poisoned is None else PoisonedTask
    evaluation = eval_dataset if evaluate else None
    damaged = options.get("damaged")
    return kind(pretrainer, SPECIAL_TOKENS, train_dataset, evaluation, explain, damaged)


def make_trainer(task, options, strategy):
    with strategy.scope():
        optimizer = optimization.create(
            options, options.num_train_steps, optimizer_class=FusedAdamW
        )
    return trainer.Trainer(task, optimizer, options, strategy)


def start_process(module, function, *args, **variables):
    """Calls a function of tests.`module` in a process whose TensorFlow has not started yet."""
    code = f"import sys; import tests.{module} as t; getattr(t, sys.argv[1])(*sys.argv[2:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, function.__name__, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_process(module, function, *args, **variables):
    process = start_process(module, function, *args, **variables)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]


def logical_cpus(number):
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * number
    tf.config.set_logical_device_configuration(cpu, devices)


def weights(model):
    return {variable.path: np.asarray(variable) for variable in model.weights}


def assert_close(left, right, tolerance):
    """Both: name -> array; the difference of each relative to its largest value."""
    assert set(left) == set(right) and len(left) > 5
    for name, value in left.items():
        scale = max(np.abs(value).max(), 1e-6)
        assert np.abs(value - right[name]).max() <= tolerance * scale, name


def load(path):
    with np.load(path) as file:
        return dict(file)


def reset_policy():
    keras.config.set_dtype_policy("float32")


def read_events(folder):
    """tag -> [(step, value)] of the scalars, and the tags of all else, of a folder's events."""
    scalars, others = {}, set()
    for path in sorted(pathlib.Path(folder).glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name in ("text", "hparams", "images"):
                    others.add(value.tag)
                    continue
                scalar = float(tf.make_ndarray(value.tensor))
                scalars.setdefault(value.tag, []).append((event.step, scalar))
    return scalars, others


@contextlib.contextmanager
def another_process_in(folder):
    """Within it, `folder` is locked as by another process."""
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
