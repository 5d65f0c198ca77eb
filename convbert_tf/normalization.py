"""Layer normalisation with a gradient of its own; no TensorFlow."""

import keras
from keras import ops

EPSILON = 1e-12


@keras.saving.register_keras_serializable("convbert_tf")
class LayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis, with about half the passes in training.

    The gradient is written out (`layer_norm`) instead of traced through the mean and the variance.
    Computes in float32 whatever the precision policy, as Keras's does.

    Call: [..., H] -> [..., H]. Weights: `gamma`, `beta` [H].
    """

    def __init__(self, epsilon=EPSILON, **kwargs):
        super().__init__(epsilon=epsilon, **kwargs)

    def call(self, inputs):
        x, gamma, beta = (ops.cast(v, "float32") for v in (inputs, self.gamma, self.beta))
        return ops.cast(layer_norm(x, gamma, beta, self.epsilon), self.compute_dtype)


def layer_norm(x, gamma, beta, epsilon=EPSILON):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, over the last axis.

    Args:
        x: [..., H].
        gamma, beta: [H].
        epsilon: added to the variance.

    Returns:
        [..., H].
    """

    size = x.shape[-1]  # known, where a gradient's may not be

    @ops.custom_gradient
    def normalize(x, gamma, beta):
        centered = x - ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(centered), axis=-1, keepdims=True)
        scale = ops.rsqrt(variance + epsilon)
        normed = centered * scale

        def gradient(*args, upstream=None):
            (dy,) = args if upstream is None else (upstream,)
            dy_normed = dy * normed
            d_normed = dy * gamma
            mean = ops.mean(d_normed, axis=-1, keepdims=True)
            slope = ops.mean(dy_normed * gamma, axis=-1, keepdims=True)
            dx = (d_normed - mean - normed * slope) * scale
            return dx, _sum_rows(dy_normed, size), _sum_rows(dy, size)

        return normed * gamma + beta, gradient

    return normalize(x, gamma, beta)


def _sum_rows(x, size):
    """[..., H] -> [H]."""
    return ops.sum(ops.reshape(x, (-1, size)), axis=0)
