"""One step of training in the graph, for every task, under any tf.distribute strategy.

A task (`pretraining.PretrainingTask`, `finetuning.FinetuningTask`) has

    model                       a Keras model
    prepare(batch)              -> inputs, weights: what the step takes, and for each loss term the
                                sum of its weights in this batch (a scalar; None: the term is a sum)
    losses(inputs, training)    -> terms, counts: for each term (coefficient, sum over the batch),
                                and a dict of tensors that add up over batches and replicas
    count_shapes                name -> shape of what `losses` counts
    metrics(counts)             -> dict of floats
    train_dataset(start_step, input_context), eval_dataset(input_context); the first also takes
                                start_record, the number of records read before, in a run whose
                                batch size was changed

and may have

    explain(error)              -> a UserError for an error of reading the data, or the error itself
    flops(num_tokens)           model FLOPs of one example in a step

The loss is the sum over terms of coefficient * (sum over all replicas) / (weights over all
replicas), and clipping sees the global gradient (optimization.AdamW): N replicas take the step
that one would take on the same global batch, and so do the parts of an accumulated step.

A run is a function of config, data, seed and step: the step determines its batch and the seeds of
dropout. The host sees a run once a loop; a signal and a loss that is not finite must not wait for
that and are seen in the graph.
"""

import contextlib
import functools
import os
import signal
import threading
import time

import keras
import numpy as np
import orbit
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.modeling import functions
from convbert_tf.training import checkpoints, optimization, sharing, strategies

_DROPOUT = 4  # keeps dropout's seeds apart from the streams of input_pipeline


class Trainer(orbit.AbstractTrainer, orbit.AbstractEvaluator):
    """Orbit's view of a task: `train(n)` runs n steps in the graph, `evaluate(n)` n batches.

    Args:
        task: see the module's docstring.
        optimizer: optimization.AdamW.
        training: TrainingConfig.
        strategy: in whose scope task.model and `optimizer` were made.
        interruption: Interruption, which ends a loop early; None for none.
    """

    def __init__(self, task, optimizer, training, strategy, interruption=None):
        self.task, self.optimizer = task, optimizer
        self.strategy, self.training = strategy, training
        self.interruption = interruption or Interruption()
        if training.precision == "mixed_float16":
            self.optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        shapes = task.count_shapes | {"norm": (), "tokens": (), "skipped": ()}
        with strategy.scope():
            self.optimizer.build(task.model.trainable_variables)
            self.global_step = _step_variable(0)
            self.records_seen = _step_variable(0)
            self._bad_step = _step_variable(-1)  # the first whose loss is not finite
            self._sums = {name: _summed(shape) for name, shape in shapes.items()}
        weights = {id(variable) for variable in task.model.weights}
        self._seeds = [v for v in task.model.variables if id(v) not in weights]
        self._norm_source = optimizer
        self._iterator = None
        self._loss_and_gradients = tf.function(
            self._gradients, jit_compile=training.jit_compile, autograph=False
        )

    @property
    def checkpoint(self):
        """All state of the run: weights, optimiser, step, place in the data."""
        return checkpoints.state(
            self.task.model, self.optimizer, self.global_step, self.records_seen
        )

    def train(self, num_steps):
        start = int(self.global_step.numpy())
        if self._iterator is None:
            self._first = start, self._place(start)
            self._iterator = iter(
                self.strategy.distribute_datasets_from_function(
                    lambda context: self._dataset(start, context)
                )
            )
        self._reset()
        began = time.monotonic()
        with strategies.as_traced():
            stopped = bool(self._train_loop(self._iterator, num_steps))
        steps = int(self.global_step.numpy()) - start
        if self.training.on_nonfinite == "stop" and self._bad_step.numpy() >= 0:
            self._refuse(int(self._bad_step.numpy()))
        if stopped:
            raise Interrupted(self.interruption.signum or signal.SIGTERM)  # None: of another worker
        return self._summary(self._counts(), steps, time.monotonic() - began)

    def _place(self, step):
        """The number of records read before `step`, at which a checkpoint was restored or none."""
        if step and not self.records_seen.numpy():  # a checkpoint from before they were counted
            self.records_seen.assign(step * self.training.batch_size)
        return int(self.records_seen.numpy())

    def _dataset(self, step, context):
        """The task's batches from `step` on, which this trainer has not passed yet."""
        rows, (first, place) = self.training.batch_size, self._first
        if place == first * rows:
            return self.task.train_dataset(step, context)
        record = place + (step - first) * rows
        return self.task.train_dataset(step, context, start_record=record)

    def _refuse(self, step):
        """Ends the run at the first step whose loss is not finite; keeps its batch to look at."""
        path = os.path.join(self.training.model_dir, f"nonfinite_batch_{step + 1}.npz")
        batch = next(iter(self._dataset(step, tf.distribute.InputContext())))
        if self.training.model_dir and strategies.is_chief(self.strategy):
            np.savez(path, **{name: value.numpy() for name, value in batch.items()})
        rows, (first, place) = self.training.batch_size, self._first
        seen = place + (step - first) * rows
        raise UserError(
            f"the loss or its gradient is not finite in step {step + 1} (its batch, examples "
            f"{seen + 1} to {seen + rows} of the run, is in {path}); checkpoints are "
            "of the steps before. Lower the learning rate, use float32, or leave such steps out by "
            "--config.training.on_nonfinite=skip."
        )

    def _summary(self, counts, num_steps, seconds):
        replicas = self.strategy.num_replicas_in_sync
        skipped = float(counts.pop("skipped")) / replicas
        norm = float(counts.pop("norm")) / max(num_steps - skipped, 1) / replicas
        tokens, examples = float(counts.pop("tokens")), num_steps * self.training.batch_size
        results = self.task.metrics(counts) | {
            "gradient_norm": norm,
            "learning_rate": float(self._norm_source.learning_rate),
            "examples_per_second": examples / seconds,
            "tokens_per_second": tokens / seconds,
        }
        if self.training.on_nonfinite == "skip" or self.optimizer is not self._norm_source:
            results["skipped_steps"] = skipped
        if self.training.peak_flops and hasattr(self.task, "flops"):
            done = examples * self.task.flops(self._num_tokens) / seconds
            results["model_flops_utilisation"] = done / (self.training.peak_flops * replicas)
        return results

    @functools.partial(tf.function, autograph=False)
    def _train_loop(self, iterator, num_steps):
        """Runs `num_steps` steps, fewer if a signal comes; returns whether one did."""
        alone = not strategies.is_multi_worker(self.strategy)

        def take_step(step, stopping):
            args = (iterator.get_next(), self.global_step)
            finite, stopping = self.strategy.run(self._train_step, args=args)
            finite = self.strategy.experimental_local_results(finite)[0]
            stopping = self.strategy.experimental_local_results(stopping)[0]
            if alone:
                stopping = self._is_stopping()
            known = tf.logical_or(finite, self._bad_step >= 0)
            self._bad_step.assign(tf.where(known, self._bad_step, self.global_step))
            self.global_step.assign_add(1)
            self.records_seen.assign_add(self.training.batch_size)
            return step + 1, stopping

        def goes_on(step, stopping):
            return tf.logical_and(step < num_steps, tf.logical_not(stopping))

        stopping = self._is_stopping() if alone else tf.constant(False)
        return tf.while_loop(goes_on, take_step, (tf.zeros([], num_steps.dtype), stopping))[1]

    def _is_stopping(self):
        return self.interruption.flag.read_value()

    def _train_step(self, batch, step):
        inputs, weights = self.task.prepare(batch)
        self._num_tokens = batch["input_ids"].shape[1]
        if strategies.is_multi_worker(self.strategy):
            # All workers must leave the loop at the same step, so the flag is summed over them.
            weights = weights | {"stop": tf.cast(self._is_stopping(), tf.float32)}
        sums = self._over_replicas(weights)
        stopping = sums.pop("stop", tf.zeros([])) > 0
        loss, gradients, counts = self._accumulated(inputs, sums, self._dropout_seeds(step))
        norm, finite = self._apply(loss, gradients)
        if self.training.on_nonfinite == "skip":
            counts = {name: tf.where(finite, value, 0.0) for name, value in counts.items()}
        taken = tf.math.is_finite(norm)
        counts["norm"] = tf.where(taken, norm, 0.0)
        counts["skipped"] = tf.where(taken, 0.0, 1.0)
        counts["tokens"] = tf.reduce_sum(batch["input_mask"])
        self._count(counts)
        return finite, stopping

    def _dropout_seeds(self, step):
        """Seeds of all dropouts, for each part of the step: int [parts, number of them, 2]."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.constant([self.training.seed, _DROPOUT], tf.int64)
        for number in (step, replica):
            seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int64))
        shape = (self.training.gradient_accumulation_steps, len(self._seeds), 2)
        return tf.random.stateless_uniform(shape, seed, 0, 1 << 30, tf.int32)

    def _accumulated(self, inputs, weights, seeds):
        """Loss, gradients and counts of a replica's batch, computed in parts that add up."""
        parts = self.training.gradient_accumulation_steps
        if parts == 1:
            return self._loss_and_gradients(inputs, weights, seeds[0])
        inputs = {name: _in_parts(value, parts) for name, value in inputs.items()}
        shapes = self.task.count_shapes
        zeros = (
            tf.zeros([]),
            [tf.zeros(v.shape) for v in self.task.model.trainable_variables],
            {name: tf.zeros(shapes[name]) for name in shapes},
        )

        def add(i, total):
            part = {name: value[i] for name, value in inputs.items()}
            loss, gradients, counts = self._loss_and_gradients(part, weights, seeds[i])
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            return i + 1, tf.nest.map_structure(tf.add, total, (loss, gradients, counts))

        return tf.while_loop(lambda i, total: i < parts, add, (0, zeros))[1]

    def _gradients(self, inputs, weights, seeds):
        """Loss, gradients and counts; dropout draws from `seeds` and keeps no state."""
        model = self.task.model
        variables = [variable.value for variable in model.trainable_variables]
        states = [(v, tf.cast(seeds[i], v.dtype)) for i, v in enumerate(self._seeds)]
        with tf.GradientTape() as tape:
            with keras.StatelessScope(states), self._sharing():
                terms, counts = self.task.losses(inputs, training=True)
            scaled = loss = functions.total_loss(terms, weights)
            if self.optimizer is not self._norm_source:
                scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(
            scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return loss, gradients, counts

    def _sharing(self):
        # XLA makes one program of all blocks in any case.
        compiled = self.training.jit_compile or self.training.strategy == "tpu"
        return contextlib.nullcontext() if compiled else sharing.shared_blocks(self.task.model)

    def _apply(self, loss, gradients):
        """Updates the weights; the global gradient's norm, and whether loss and it are finite."""
        variables = self.task.model.trainable_variables
        # A loss that is not finite makes the gradient so too, and by it every replica's.
        mark = tf.where(tf.math.is_finite(loss), 0.0, float("nan"))
        gradients[-1] = tf.convert_to_tensor(gradients[-1]) + mark
        if self.optimizer is not self._norm_source:
            return self._apply_scaled(loss, gradients)
        self.optimizer.apply(gradients, variables)
        norm = self._norm_source.gradient_norm
        return norm, tf.math.is_finite(norm)

    def _apply_scaled(self, loss, gradients):
        """Applies gradients of a scaled loss (float16), which skips those that are not finite.

        They are summed over the replicas first, so that all skip the same steps; AdamW sums them
        once more, hence the division. A gradient beyond float16 is no fault: the scale falls.
        """
        replicas = self.strategy.num_replicas_in_sync
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            *gradients, loss = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, loss])
        norm = optimization.global_norm(gradients) / self.optimizer.dynamic_scale
        gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply(gradients, self.task.model.trainable_variables)
        return norm, tf.math.is_finite(loss)

    def _over_replicas(self, sums):
        if self.strategy.num_replicas_in_sync == 1:
            return sums
        known = {name: value for name, value in sums.items() if value is not None}
        if not known:  # of which TensorFlow's all_reduce makes an error
            return sums
        context = tf.distribute.get_replica_context()
        return sums | context.all_reduce(tf.distribute.ReduceOp.SUM, known)

    def evaluate(self, num_steps):
        self._reset()
        dataset = self.strategy.distribute_datasets_from_function(self.task.eval_dataset)
        for i, batch in enumerate(dataset):
            if i == int(num_steps):
                break
            self._eval_step(batch)
        return self.task.metrics(
            {name: v for name, v in self._counts().items() if name in self.task.count_shapes}
        )

    @functools.partial(tf.function, autograph=False)
    def _eval_step(self, batch):
        def step(batch):
            inputs, _ = self.task.prepare(batch)
            with self._sharing():
                _, counts = self.task.losses(inputs, training=False)
            self._count(counts)

        self.strategy.run(step, args=(batch,))

    def _count(self, counts):
        for name, value in counts.items():
            self._sums[name].assign_add(tf.cast(value, tf.float32))

    def _reset(self):
        self._bad_step.assign(-1)
        for variable in self._sums.values():
            variable.assign(tf.zeros(variable.shape))

    def _counts(self):
        return {name: variable.read_value().numpy() for name, variable in self._sums.items()}


def _step_variable(value):
    return tf.Variable(
        value,
        trainable=False,
        dtype=tf.int64,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def _summed(shape):
    """A float32 variable of its own on each replica, whose value is the sum over them."""
    return tf.Variable(
        tf.zeros(shape),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def _in_parts(value, parts):
    """[b, ...] -> [parts, b / parts, ...]; at most one further axis of unknown size."""
    sizes = [-1 if size is None else size for size in value.shape[1:]]
    return tf.reshape(value, [parts, value.shape[0] // parts, *sizes])


# --- SIGTERM and Ctrl-C, heard while the main thread is inside a TensorFlow loop ---


class Interrupted(BaseException):
    """A signal asked the run to end.

    Attributes:
        signum: the number of the signal.
    """

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interruption:
    """A context in which SIGTERM and SIGINT set `flag`, which a graph reads at every step.

    Python runs signal handlers between two of its own instructions, so not before a loop in the
    graph is over. The byte that the interpreter writes to its wake-up descriptor comes at once; a
    thread waits for it. Outside of Python's main thread this context does nothing.

    Attributes:
        flag: bool tf.Variable on the host.
        signum: the signal that came, or None.
        raises: set it while Python code runs that may be broken off: a signal then raises
            Interrupted there.
    """

    def __init__(self):
        with tf.device("CPU:0"):
            self.flag = tf.Variable(False, trainable=False)
        self.signum, self.raises = None, False

    def __enter__(self):
        self.flag.assign(False)
        self.signum, self.raises, self._handlers = None, False, {}
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._handlers[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_):
        if not self._handlers:
            return
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: not set from Python
        signal.set_wakeup_fd(self._old_wakeup)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _listen(self):
        while byte := os.read(self._reader, 1)[0]:
            if byte in (signal.SIGTERM, signal.SIGINT):
                self.signum = byte
                self.flag.assign(True)

    def _handle(self, signum, _):
        self.signum = signum
        if self.raises:
            raise Interrupted(signum)
