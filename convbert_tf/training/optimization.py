"""The optimiser of BERT, ELECTRA and ConvBERT, and its schedule.

FusedAdamW alone loads TensorFlow, when it is used.
"""

import re

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("convbert_tf")
class LinearWarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """lr(t) = learning_rate * (1 - t / num_train_steps) * min(1, t / warmup_steps).

    The decay runs through the warm-up as well, as in the original, so the first update has rate 0
    and the peak stays below `learning_rate`.
    """

    def __init__(self, learning_rate, num_train_steps, warmup_steps=0):
        self.learning_rate, self.num_train_steps = learning_rate, num_train_steps
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = self.learning_rate * (1 - ops.minimum(step / self.num_train_steps, 1.0))
        if self.warmup_steps:
            rate = rate * ops.minimum(1.0, step / self.warmup_steps)
        return rate

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "num_train_steps": self.num_train_steps,
            "warmup_steps": self.warmup_steps,
        }


@keras.saving.register_keras_serializable("convbert_tf")
class AdamW(keras.optimizers.Optimizer):
    """Adam without bias correction, with decoupled weight decay, as BERT and ELECTRA train.

        g    = gradients summed over replicas, clipped together to global norm `clip_norm`
        m, v = moving averages of g and g^2
        w   -= lr * multiplier(w) * (m / (sqrt(v) + epsilon) + weight_decay_rate * w)

    Decay spares biases and LayerNorm, which are the weights of rank 1. Unlike Keras's optimisers,
    which clip each replica's gradient by itself, the norm is the global gradient's, so the step
    does not depend on the number of replicas.

    Args:
        learning_rate: a float or a schedule.
        weight_decay_rate: of the decoupled decay; 0 for none.
        beta_1, beta_2, epsilon: Adam's.
        clip_norm: largest global norm; None for no clipping.
        layerwise_lr_decay: multiplier(w) = decay ** (num_hidden_layers + 2 - depth), with depth 0
            for embeddings, i + 1 for layer i, and num_hidden_layers + 2 for a task's head; None or
            0 for 1 everywhere.
        num_hidden_layers: L, for the above.
        skip_nonfinite: whether a gradient whose norm is not finite changes no weight and no moment
            (the step is counted in the schedule all the same).

    Attributes:
        gradient_norm: norm of the last step's global gradient before clipping.
    """

    def __init__(
        self,
        learning_rate,
        weight_decay_rate=0.01,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        clip_norm=1.0,
        layerwise_lr_decay=None,
        num_hidden_layers=None,
        skip_nonfinite=False,
        name="adamw",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.weight_decay_rate, self.clip_norm = weight_decay_rate, clip_norm
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.layerwise_lr_decay = layerwise_lr_decay or None
        self.num_hidden_layers, self.skip_nonfinite = num_hidden_layers, skip_nonfinite
        self.gradient_norm = None

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )
        self._multipliers = [self._multiplier(variable.path) for variable in variables]

    def _multiplier(self, path):
        if self.layerwise_lr_decay is None:
            return 1.0
        depth = self.num_hidden_layers + 2
        if layer := re.search(r"\blayer_(\d+)/", path):
            depth = int(layer.group(1)) + 1
        elif re.search(r"\bembeddings(_project)?/", path):
            depth = 0
        return self.layerwise_lr_decay ** (self.num_hidden_layers + 2 - depth)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        # Keras's hook on TensorFlow; the sum over replicas is taken before clipping instead.
        return grads_and_vars

    def _backend_apply_gradients(self, grads, trainable_variables):
        reduce = getattr(super(), "_all_reduce_sum_gradients", None)
        grads = [_dense(g, v) for g, v in zip(grads, trainable_variables, strict=True)]
        if reduce is not None:
            pairs = reduce(list(zip(grads, trainable_variables, strict=True)))
            grads = [grad for grad, _ in pairs]
        self.gradient_norm = self._global_norm(grads)
        scale = self._gradient_scale()
        if scale is not None:
            grads = [grad * ops.cast(scale, grad.dtype) for grad in grads]
        if self.skip_nonfinite:
            # Marks every element, for update_step: an infinite norm has scaled some to 0.
            mark = ops.where(ops.isfinite(self.gradient_norm), 0.0, float("nan"))
            grads = [grad + ops.cast(mark, grad.dtype) for grad in grads]
        super()._backend_apply_gradients(grads, trainable_variables)

    def _global_norm(self, gradients):
        return global_norm(gradients)

    def _gradient_scale(self):
        """What all gradients are multiplied by, by which they are clipped; None for nothing."""
        if self.clip_norm:
            return self.clip_norm / ops.maximum(self.gradient_norm, self.clip_norm)
        return None

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index], self._velocities[index]
        gradient = ops.cast(gradient, variable.dtype)
        new_momentum = self.beta_1 * momentum + (1 - self.beta_1) * gradient
        new_velocity = self.beta_2 * velocity + (1 - self.beta_2) * ops.square(gradient)
        update = new_momentum / (ops.sqrt(new_velocity) + self.epsilon)
        if self._decays(variable):
            update = update + self.weight_decay_rate * variable
        change = ops.cast(learning_rate, variable.dtype) * self._multipliers[index] * update
        if self.skip_nonfinite:
            good = ops.isfinite(gradient)
            new_momentum = ops.where(good, new_momentum, momentum)
            new_velocity = ops.where(good, new_velocity, velocity)
            change = ops.where(good, change, 0.0)
        self.assign(momentum, new_momentum)
        self.assign(velocity, new_velocity)
        self.assign_sub(variable, change)

    def _decays(self, variable):
        return self.weight_decay_rate and len(variable.shape) > 1

    def get_config(self):
        names = (
            "weight_decay_rate beta_1 beta_2 epsilon clip_norm layerwise_lr_decay "
            "num_hidden_layers skip_nonfinite"
        )
        config = super().get_config()
        # Keras's own options of that kind are not ours.
        for name in ("weight_decay", "clipnorm", "global_clipnorm", "clipvalue"):
            config.pop(name, None)
        return config | {name: getattr(self, name) for name in names.split()}


@keras.saving.register_keras_serializable("convbert_tf")
class FusedAdamW(AdamW):
    """`AdamW`, with the same arguments, weights and results, which reads and writes a weight once.

    Written as separate operations, an update reads or writes memory a dozen times, which takes a
    fifth of a fine-tuning step on CPUs. TensorFlow's fused Adam computes BERT's update if the
    powers for its bias correction are zero. It computes 1 - beta_2 in float32, which is 5e-5 too
    large for 0.999; this is corrected by gradients that are smaller by the square root of that
    factor and a larger weight for them in the first moment. With `skip_nonfinite` it is AdamW.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        excess = float(np.float32(1) - np.float32(self.beta_2)) / (1 - self.beta_2)
        self._correction = 1.0 if self.skip_nonfinite else excess**-0.5
        self._made = {}

    def _gradient_scale(self):
        scale = super()._gradient_scale()
        return self._correction if scale is None else scale * self._correction

    def _global_norm(self, gradients):
        import tensorflow as tf

        return tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(tf.cast(g, tf.float32)) for g in gradients]))

    def update_step(self, gradient, variable, learning_rate):
        if self.skip_nonfinite:
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        index = self._get_variable_index(variable)
        one = self._scalars(variable.dtype, self._multipliers[index], learning_rate)
        if self._decays(variable):
            # First, as it is of the weight before the step; and as a difference, since a factor so
            # close to 1 cannot be told from it in float32.
            variable.assign_sub(one["decay"] * variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=one["zero"],
            beta2_power=one["zero"],
            lr=one["rate"],
            beta1=one["beta_1"],
            beta2=one["beta_2"],
            epsilon=one["epsilon"],
            grad=tf.cast(gradient, variable.dtype),
        )

    def _scalars(self, dtype, multiplier, learning_rate):
        """The scalars of an update, by name; the same tensors for all weights alike in a step."""
        import tensorflow as tf

        key = (dtype, multiplier)
        if key not in self._made:
            constants = {
                "zero": 0.0,
                "beta_1": 1 - (1 - self.beta_1) / self._correction,
                "beta_2": self.beta_2,
                "epsilon": self.epsilon,
            }
            rate = tf.cast(learning_rate, dtype) * multiplier
            self._made[key] = {name: tf.constant(x, dtype) for name, x in constants.items()}
            self._made[key] |= {"rate": rate, "decay": rate * self.weight_decay_rate}
        return self._made[key]

    def _backend_apply_gradients(self, grads, trainable_variables):
        self._made = {}  # tensors of this step's graph alone
        super()._backend_apply_gradients(grads, trainable_variables)


def _dense(gradient, variable):
    """A lookup's sparse gradient (TensorFlow's IndexedSlices) as a tensor, its rows merged.

    Its norm is then that of the gradient; over unmerged rows, as the original took it, it is not.
    """
    if hasattr(gradient, "indices"):
        return ops.segment_sum(gradient.values, gradient.indices, variable.shape[0])
    return gradient


def global_norm(tensors):
    """Square root of the sum of all squares, in float32."""
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(x, "float32"))) for x in tensors))


def create(training, num_train_steps, num_hidden_layers=None, optimizer_class=AdamW):
    """The AdamW that a TrainingConfig describes, for a run of `num_train_steps` steps."""
    warmup_steps = max(int(num_train_steps * training.warmup_proportion), training.warmup_steps)
    return optimizer_class(
        LinearWarmupDecay(training.learning_rate, num_train_steps, warmup_steps),
        weight_decay_rate=training.weight_decay_rate,
        clip_norm=training.clip_norm,
        layerwise_lr_decay=training.layerwise_lr_decay,
        num_hidden_layers=num_hidden_layers,
        skip_nonfinite=training.on_nonfinite == "skip",
    )
