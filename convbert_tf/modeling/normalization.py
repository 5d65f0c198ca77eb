"""Layer normalisation with a gradient of its own; no TensorFlow."""

import math

import keras
from keras import ops

from convbert_tf.modeling.gradients import custom_gradient

EPSILON = 1e-12
# What TensorFlow (2.20) adds to the variance where it fuses the operations, whatever they add. The
# result is that of any epsilon for an input made larger by the root of the ratio.
_ONEDNN_EPSILON = 1e-3


@keras.saving.register_keras_serializable("convbert_tf")
class LayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis, with about half the passes in training.

    The gradient is written out (`layer_norm`) instead of traced through the mean and the variance.
    Computes in float32 whatever the precision policy, as Keras's does.

    With constant weights (inference.freeze) oneDNN computes all of it as one operation.

    Call: [..., H] -> [..., H]. Weights: `gamma`, `beta` [H].
    """

    def __init__(self, epsilon=EPSILON, **kwargs):
        super().__init__(epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None):
        x, gamma, beta = (ops.cast(v, "float32") for v in (inputs, self.gamma, self.beta))
        epsilon = self.epsilon
        if not training:
            x, epsilon = x * math.sqrt(_ONEDNN_EPSILON / epsilon), _ONEDNN_EPSILON
        return ops.cast(layer_norm(x, gamma, beta, epsilon), self.compute_dtype)


def layer_norm(x, gamma, beta, epsilon=EPSILON):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, over the last axis.

    Args:
        x: [..., H].
        gamma, beta: [H].
        epsilon: added to the variance.

    Returns:
        [..., H].
    """

    size, axis = x.shape[-1], len(x.shape) - 1  # known, where a gradient's may not be

    @custom_gradient
    def normalize(x, gamma, beta):
        mean = ops.mean(x, axis=axis, keepdims=True)
        variance = ops.mean(ops.square(x - mean), axis=axis, keepdims=True)
        scale = ops.rsqrt(variance + epsilon)

        def gradient(dy):
            normed = (x - mean) * scale
            dy_normed = dy * normed
            d_normed = dy * gamma
            d_mean = ops.mean(d_normed, axis=axis, keepdims=True)
            slope = ops.mean(dy_normed * gamma, axis=axis, keepdims=True)
            dx = (d_normed - d_mean - normed * slope) * scale
            return dx, _sum_rows(dy_normed, size), _sum_rows(dy, size)

        # In the original's order, which is the one that TensorFlow knows how to fuse.
        factor = scale * gamma
        return x * factor + (beta - factor * mean), gradient

    return normalize(x, gamma, beta)


def _sum_rows(x, size):
    """[..., H] -> [H]."""
    return ops.sum(ops.reshape(x, (-1, size)), axis=0)
