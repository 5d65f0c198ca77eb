"""tf.distribute strategies by name, and the settings of a process: seed, precision, determinism."""

import contextlib
import os

import keras
import tensorflow as tf

from convbert_tf.console import UserError, reason, say

_NO_GRAPPLER = "disable_meta_optimizer"


def set_up(training):
    """Sets seed, precision and determinism for the process; returns the strategy.

    Args:
        training: TrainingConfig.

    Raises:
        UserError: the strategy cannot be had here, or the batch not be divided among its replicas.
    """
    keras.utils.set_random_seed(training.seed)
    keras.config.set_dtype_policy(training.precision)
    if training.deterministic:
        tf.config.experimental.enable_op_determinism()
        # Where Grappler estimates that memory is short, it adds three or more gradients in the
        # order in which they are computed, in spite of op determinism.
        tf.config.optimizer.set_experimental_options({_NO_GRAPPLER: True})
    strategy = make_strategy(training)
    replicas, parts = strategy.num_replicas_in_sync, training.gradient_accumulation_steps
    if training.batch_size % (replicas * parts):
        raise UserError(
            f"batch_size {training.batch_size} cannot be divided among {replicas} replicas"
            + (f" in {parts} parts each." if parts > 1 else ".")
        )
    return strategy


@contextlib.contextmanager
def as_traced():
    """While it lasts, graphs run as they were traced where there is no GPU or TPU.

    Grappler takes seconds to rewrite the graph of a training step, and on a processor the step is
    no quicker for it.
    """
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        yield
        return
    before = tf.config.optimizer.get_experimental_options().get(_NO_GRAPPLER, False)
    tf.config.optimizer.set_experimental_options({_NO_GRAPPLER: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({_NO_GRAPPLER: before})


def make_strategy(training):
    """The tf.distribute strategy that a TrainingConfig names."""
    if training.strategy == "one_device":
        gpus = tf.config.list_logical_devices("GPU")
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if training.strategy == "mirrored":
        return tf.distribute.MirroredStrategy(_devices(training.num_devices))
    if training.strategy == "multi_worker_mirrored":
        if "TF_CONFIG" not in os.environ:
            raise UserError(
                "strategy 'multi_worker_mirrored' needs the cluster in the environment variable "
                "TF_CONFIG; set it on every worker."
            )
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"TF_CONFIG describes no cluster ({reason(error)}); it is JSON with the addresses "
                "in cluster.worker, and task.type and task.index of this worker."
            ) from error
    return _tpu_strategy(training.tpu)


def _devices(number):
    """Names of the first `number` GPUs, or CPUs where there is no GPU; 0 for all."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < number:
        raise UserError(f"num_devices is {number}, but this machine has {len(devices)}.")
    return [device.name for device in devices[: number or None]]


def _tpu_strategy(address):
    """TPUStrategy of the TPU at `address`; "local" for that of this TPU VM."""
    from official.common import distribute_utils

    try:
        return distribute_utils.get_distribution_strategy("tpu", tpu_address=address)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(
            f"no TPU at tpu={address!r} ({str(error).splitlines()[0]}): give its name or address, "
            "'local' on a TPU VM."
        ) from error


def is_chief(strategy):
    """Whether this process writes the run's files; of several workers only one does."""
    return strategy.extended.should_checkpoint


def is_multi_worker(strategy):
    """Whether several processes take each step together."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def describe(strategy, training):
    """Prints the strategy, its replicas, their batch and the precision in one line."""
    replicas, parts = strategy.num_replicas_in_sync, training.gradient_accumulation_steps
    say(
        f"{type(strategy).__name__}, {replicas} replica{'s' if replicas > 1 else ''} of batch "
        f"{training.batch_size // replicas}{f' in {parts} parts' if parts > 1 else ''}, "
        f"{training.precision}"
    )
