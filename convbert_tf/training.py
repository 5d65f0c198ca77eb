"""One Orbit training loop for every task, under any tf.distribute strategy.

A task (`pretraining.PretrainingTask`, `finetuning.FinetuningTask`) has

    model                       a Keras model
    prepare(batch)              -> inputs, weights: what the step takes, and for each loss term the
                                sum of its weights in this batch (a scalar; None: the term is a sum)
    losses(inputs, training)    -> terms, counts: for each term (coefficient, sum over the batch),
                                and a dict of tensors that add up over batches and replicas
    count_shapes                name -> shape of what `losses` counts
    metrics(counts)             -> dict of floats
    train_dataset(start_step, input_context), eval_dataset(input_context)

The loss is the sum over terms of coefficient * (sum over all replicas) / (weights over all
replicas), and clipping sees the global gradient (optimization.AdamW): N replicas take the step
that one would take on the same global batch.
"""

import contextlib
import io
import math
import os
import time

import keras
import orbit
import tensorflow as tf

from convbert_tf import config as configs
from convbert_tf import optimization
from convbert_tf.console import Progress, UserError, say

CONFIG_FILE = "config.json"


def make_strategy(training):
    """The tf.distribute strategy that a TrainingConfig names."""
    if training.strategy == "one_device":
        gpus = tf.config.list_logical_devices("GPU")
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if training.strategy == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) < training.num_devices:
            raise UserError(
                f"num_devices is {training.num_devices}, but this machine has {len(devices)}."
            )
        chosen = devices[: training.num_devices or None]
        return tf.distribute.MirroredStrategy([device.name for device in chosen])
    if training.strategy == "multi_worker_mirrored":
        if "TF_CONFIG" not in os.environ:
            raise UserError(
                "strategy 'multi_worker_mirrored' needs the cluster in the environment variable "
                "TF_CONFIG; set it on every worker."
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    from official.common import distribute_utils

    return distribute_utils.get_distribution_strategy("tpu", tpu_address=training.tpu)


def set_up(training):
    """Sets seed, precision and determinism for the process; returns the strategy."""
    keras.utils.set_random_seed(training.seed)
    keras.config.set_dtype_policy(training.precision)
    if training.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(training)
    if training.batch_size % strategy.num_replicas_in_sync:
        raise UserError(
            f"batch_size {training.batch_size} cannot be divided among "
            f"{strategy.num_replicas_in_sync} replicas."
        )
    return strategy


def save_config(experiment, model_dir, allow_change=False):
    """Saves the experiment in `model_dir`; a run that is there must have had the same.

    A run that ended before its first checkpoint, say for a missing file, holds nothing to go on
    from, so another configuration may take its place.

    Returns:
        Whether the same configuration was there, so that files made by it are still good.

    Raises:
        UserError: a run with another configuration is there and `allow_change` is not set.
    """
    path = os.path.join(model_dir, CONFIG_FILE)
    changed = ["no config"]
    if os.path.exists(path):
        saved = configs.from_config_dict(
            type(experiment), configs.read_json(path, "a run's config")
        )
        changed = configs.differences(saved, experiment)
        has_checkpoint = os.path.exists(os.path.join(model_dir, "checkpoints", "checkpoint"))
        if changed and has_checkpoint and not allow_change:
            raise UserError(
                f"{model_dir} holds a run with another config ({'; '.join(changed)}); choose "
                "another model_dir, or resume with the change by --allow_config_change."
            )
    configs.save(experiment, path)
    return not changed


class Trainer(orbit.AbstractTrainer, orbit.AbstractEvaluator):
    """Orbit's view of a task: `train(n)` runs n steps in the graph, `evaluate(n)` n batches."""

    def __init__(self, task, optimizer, training, strategy):
        self.task, self.optimizer = task, optimizer
        self.strategy, self.training = strategy, training
        if training.precision == "mixed_float16":
            self.optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        with strategy.scope():
            self.optimizer.build(task.model.trainable_variables)
            self.global_step = tf.Variable(
                0,
                trainable=False,
                dtype=tf.int64,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            self._sums = {
                name: _summed(shape) for name, shape in (task.count_shapes | {"norm": ()}).items()
            }
        self._norm_source = optimizer
        self._iterator = None
        self._loss_and_gradients = tf.function(self._gradients, jit_compile=training.jit_compile)

    @property
    def checkpoint(self):
        """All state of the run: weights, dropout seeds, optimiser, step."""
        return tf.train.Checkpoint(
            model={variable.path: variable.value for variable in self.task.model.variables},
            optimizer={variable.path: variable.value for variable in self.optimizer.variables},
            global_step=self.global_step,
        )

    def train(self, num_steps):
        if self._iterator is None:
            start = int(self.global_step.numpy())
            self._iterator = iter(
                self.strategy.distribute_datasets_from_function(
                    lambda context: self.task.train_dataset(start, context)
                )
            )
        self._reset()
        began = time.monotonic()
        self._train_loop(self._iterator, num_steps)
        counts = self._counts()
        return self._summary(counts, int(num_steps), time.monotonic() - began)

    def _summary(self, counts, num_steps, seconds):
        norm = float(counts.pop("norm")) / num_steps / self.strategy.num_replicas_in_sync
        results = self.task.metrics(counts) | {
            "gradient_norm": norm,
            "learning_rate": float(self._norm_source.learning_rate),
            "examples_per_second": num_steps * self.training.batch_size / seconds,
        }
        bad = [name for name, value in results.items() if not math.isfinite(value)]
        if bad:
            step = int(self.global_step.numpy())
            raise UserError(
                f"{', '.join(bad)} not finite between steps {step - num_steps} and {step}; the "
                "last checkpoint is from before. Lower the learning rate or use float32."
            )
        return results

    @tf.function
    def _train_loop(self, iterator, num_steps):
        for _ in tf.range(num_steps):
            self.strategy.run(self._train_step, args=(next(iterator),))
            self.global_step.assign_add(1)

    def _train_step(self, batch):
        inputs, weights = self.task.prepare(batch)
        gradients, counts = self._loss_and_gradients(inputs, self._over_replicas(weights))
        if self.optimizer is self._norm_source:
            self.optimizer.apply(gradients, self.task.model.trainable_variables)
            norm = self._norm_source.gradient_norm
        else:
            norm = self._apply_scaled(gradients)
        self._count(counts | {"norm": norm})

    def _apply_scaled(self, gradients):
        """Applies gradients of a scaled loss (float16); returns the norm, 0 if the step is skipped.

        They are summed over the replicas first, so that all skip the same steps; AdamW sums them
        once more, hence the division.
        """
        replicas = self.strategy.num_replicas_in_sync
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = optimization.global_norm(gradients) / self.optimizer.dynamic_scale
        # The norm of very large scaled gradients is beyond float32 before they are.
        norm = tf.where(tf.math.is_finite(norm), norm, 0.0)
        gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply(gradients, self.task.model.trainable_variables)
        return norm

    def _over_replicas(self, weights):
        if self.strategy.num_replicas_in_sync == 1:
            return weights
        known = {name: weight for name, weight in weights.items() if weight is not None}
        if known:
            context = tf.distribute.get_replica_context()
            known = context.all_reduce(tf.distribute.ReduceOp.SUM, known)
        return weights | known

    def _gradients(self, inputs, weights):
        model = self.task.model
        with tf.GradientTape() as tape:
            terms, counts = self.task.losses(inputs, training=True)
            loss = 0.0
            for name, (coefficient, total) in terms.items():
                scale = 1.0 if weights[name] is None else weights[name] + 1e-6
                loss += coefficient * total / scale
            if self.optimizer is not self._norm_source:
                loss = self.optimizer.scale_loss(loss)
        variables = [variable.value for variable in model.trainable_variables]
        return tape.gradient(loss, variables), counts

    def evaluate(self, num_steps):
        self._reset()
        dataset = self.strategy.distribute_datasets_from_function(self.task.eval_dataset)
        for i, batch in enumerate(dataset):
            if i == int(num_steps):
                break
            self._eval_step(batch)
        counts = self._counts()
        del counts["norm"]
        return self.task.metrics(counts)

    @tf.function
    def _eval_step(self, batch):
        def step(batch):
            inputs, _ = self.task.prepare(batch)
            _, counts = self.task.losses(inputs, training=False)
            self._count(counts)

        self.strategy.run(step, args=(batch,))

    def _count(self, counts):
        for name, value in counts.items():
            self._sums[name].assign_add(tf.cast(value, tf.float32))

    def _reset(self):
        for variable in self._sums.values():
            variable.assign(tf.zeros(variable.shape))

    def _counts(self):
        return {name: variable.read_value().numpy() for name, variable in self._sums.items()}


def _summed(shape):
    """A float32 variable of its own on each replica, whose value is the sum over them."""
    return tf.Variable(
        tf.zeros(shape),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def fit(task, training, num_train_steps, strategy, num_hidden_layers=None, evaluator=None):
    """Trains `task` up to step `num_train_steps`, from the last checkpoint of its model_dir if any.

    Args:
        task: see the module's docstring.
        training: TrainingConfig; `model_dir` takes checkpoints/ and the TensorBoard logs.
        num_train_steps: length of the run, and of the learning-rate schedule.
        strategy: of `set_up`; the task's model was made in its scope.
        num_hidden_layers: for layer-wise learning rates.
        evaluator: orbit.AbstractEvaluator; the trainer itself (held-out losses) if None and the
            task has an `eval_dataset`.

    Returns:
        dict of the last evaluation's metrics; empty without evaluation.
    """
    with strategy.scope():
        optimizer = optimization.create(training, num_train_steps, num_hidden_layers)
    trainer = Trainer(task, optimizer, training, strategy)
    if evaluator is None and task.eval_dataset is not None:
        evaluator = trainer
    manager = tf.train.CheckpointManager(
        trainer.checkpoint,
        os.path.join(training.model_dir, "checkpoints"),
        max_to_keep=training.keep_checkpoints,
        step_counter=trainer.global_step,
        checkpoint_interval=training.checkpoint_interval,
    )
    results = {}
    with _quiet_orbit() as terminal:
        controller = orbit.Controller(
            strategy=strategy,
            trainer=trainer,
            evaluator=evaluator,
            global_step=trainer.global_step,
            steps_per_loop=min(training.steps_per_loop, num_train_steps),
            checkpoint_manager=manager,
            summary_dir=os.path.join(training.model_dir, "train"),
            eval_summary_dir=os.path.join(training.model_dir, "eval"),
        )
        start = int(trainer.global_step.numpy())
        progress = Progress(
            "training", total=num_train_steps, unit="steps", start=start, stream=terminal
        )
        controller.train_actions = [_Report(progress, trainer.global_step)]
        if start:
            print(f"resumed from the checkpoint of step {start:,}", file=terminal, flush=True)
        interval = training.eval_interval if evaluator else 0
        for stop in _stops(start, num_train_steps, interval):
            controller.train(stop, checkpoint_at_completion=stop == num_train_steps)
            if evaluator is not None:
                output = controller.evaluate(steps=training.num_eval_steps or -1)
                results = {name: float(value) for name, value in output.items()}
                print(f"step {stop:,}: {format_metrics(results)}", file=terminal, flush=True)
        progress.close()
    return results


def _stops(start, end, interval):
    """Steps to evaluate at: every `interval` (if any) after `start`, and `end`."""
    between = range((start // interval + 1) * interval, end, interval) if interval else []
    return [*between, end]


class _Report:
    """Shows each loop's output on the progress line."""

    def __init__(self, progress, global_step):
        self.progress, self.global_step = progress, global_step

    def __call__(self, output):
        shown = {name: value for name, value in output.items() if "loss" in name}
        self.progress.update(int(self.global_step.numpy()), format_metrics(shown))


@contextlib.contextmanager
def _quiet_orbit():
    """Orbit prints its own account of every loop; ours says it in one line. Yields the terminal."""
    import sys

    terminal = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):
        yield terminal


def format_metrics(metrics):
    """'masked_lm_loss 6.521  disc_auc 0.731'."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def describe(strategy, training):
    """Says in one line what the run runs on."""
    replicas = strategy.num_replicas_in_sync
    say(
        f"{type(strategy).__name__}, {replicas} replica{'s' if replicas > 1 else ''} of batch "
        f"{training.batch_size // replicas}, {training.precision}"
    )
