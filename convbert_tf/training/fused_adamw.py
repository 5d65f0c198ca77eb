"""AdamW whose update is one operation of TensorFlow's a weight."""

import keras
import numpy as np
import tensorflow as tf

from convbert_tf.training.optimization import AdamW


@keras.saving.register_keras_serializable("convbert_tf")
class FusedAdamW(AdamW):
    """`AdamW`, with the same arguments, weights and results, which reads and writes a weight once.

    Written as separate operations, an update goes through memory a dozen times: on CPUs a fifth of
    a fine-tuning step. TensorFlow's own Adam is BERT's where the powers for the bias correction are
    zero. It takes 1 - beta_2 in float32, which is 5e-5 too much for 0.999; gradients that are
    smaller by the root of that, and a first moment that gives them more weight, make up for it.
    With `skip_nonfinite` it is AdamW itself.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        excess = float(np.float32(1) - np.float32(self.beta_2)) / (1 - self.beta_2)
        self._correction = 1.0 if self.skip_nonfinite else excess**-0.5

    def _gradient_scale(self):
        scale = super()._gradient_scale()
        return self._correction if scale is None else scale * self._correction

    def _global_norm(self, gradients):
        return tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(tf.cast(g, tf.float32)) for g in gradients]))

    def update_step(self, gradient, variable, learning_rate):
        if self.skip_nonfinite:
            return super().update_step(gradient, variable, learning_rate)
        index, dtype = self._get_variable_index(variable), variable.dtype
        rate = tf.cast(learning_rate, dtype) * self._multipliers[index]
        if self._decays(variable):
            # First, as it is of the weight before the step; and as a difference, since a factor so
            # close to 1 cannot be told from it in float32.
            variable.assign_sub(rate * self.weight_decay_rate * variable)
        zero = tf.zeros([], dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=zero,
            beta2_power=zero,
            lr=rate,
            beta1=tf.constant(1 - (1 - self.beta_1) / self._correction, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )
