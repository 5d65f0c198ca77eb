"""Position-wise layers: dense, grouped dense, feed-forward, layer normalisation.

Axes as in layers.py; no TensorFlow.
"""

import math

import keras
from keras import ops

from convbert_tf.modeling.functions import EPSILON, activation, layer_norm

# What TensorFlow (2.20) adds to the variance where it fuses the operations, whatever they add. The
# result is that of any epsilon for an input made larger by the root of the ratio.
_ONEDNN_EPSILON = 1e-3


def truncated_normal(stddev):
    return keras.initializers.TruncatedNormal(stddev=stddev)


def fields(layer, names):
    return {name: getattr(layer, name) for name in names.split()}


@keras.saving.register_keras_serializable("convbert_tf")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` that works on [B*T, H], where product, bias and activation fuse.

    Takes [..., H] and returns [..., units]; weights as in `keras.layers.Dense`.
    """

    def call(self, inputs, training=None):
        return restore(super().call(flatten(inputs)), inputs)


def flatten(x):
    """[B, T, H] -> [B*T, H]."""
    return x if len(x.shape) == 2 else ops.reshape(x, (-1, x.shape[-1]))


def restore(flat, like):
    """Gives `flat` [B*T, O] the leading axes of `like` [B, T, H]."""
    if len(like.shape) == 2:
        return flat
    return ops.reshape(flat, (*leading(like, len(like.shape) - 1), flat.shape[-1]))


def leading(x, number):
    """Sizes of the first `number` axes for a reshape: -1 for the first that is not known."""
    sizes = list(x.shape[:number])
    unknown = [axis for axis, size in enumerate(sizes) if size is None]
    for axis in unknown:
        sizes[axis] = -1 if axis == unknown[0] else ops.shape(x)[axis]
    return sizes


@keras.saving.register_keras_serializable("convbert_tf")
class GroupedDense(keras.layers.Layer):
    """Grouped linear layer (section 4.3): G dense layers side by side, each on its slice.

    The input's last axis is cut into G contiguous slices of H/G; slice g is multiplied by
    `kernel[g]` and gives slice g of the output. One bias for all. With G = 1 it is a dense layer.

    Args:
        units: size of the output's last axis; divisible by `groups`.
        groups: G, a divisor of the input's last axis.
        activation: applied to the output, or None.
        kernel_initializer: for each group's kernel.

    Call:
        inputs: [..., H]. Returns [..., units].

    Weights: `kernel` [G, H/G, units/G], `bias` [units].

    Raises:
        ValueError: a size is not divisible by `groups`.
    """

    def __init__(self, units, groups=1, activation=None, kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        if groups < 1 or units % groups:
            raise ValueError(f"units={units} cannot be divided into groups={groups}.")
        self.units, self.groups = units, groups
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or truncated_normal(0.02)
        )

    def build(self, inputs_shape):
        size = inputs_shape[-1]
        if size % self.groups:
            raise ValueError(f"An input of {size} cannot be divided into groups={self.groups}.")
        self.kernel = self.add_weight(
            shape=(self.groups, size // self.groups, self.units // self.groups),
            initializer=self.kernel_initializer,
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, inputs):
        outputs = self.apply_slices(ops.split(flatten(inputs), self.groups, axis=-1))
        return restore(ops.concatenate(outputs, axis=-1), inputs)

    def apply_slices(self, slices):
        """G slices [B*T, H/G] of the input -> G slices [B*T, units/G] of the output."""
        kernels = ops.unstack(ops.cast(self.kernel, slices[0].dtype), self.groups)
        biases = ops.split(ops.cast(self.bias, slices[0].dtype), self.groups)
        return [
            self.activation(ops.add(ops.matmul(x, kernel), bias))
            for x, kernel, bias in zip(slices, kernels, biases, strict=True)
        ]

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape[:-1], self.units)

    def get_config(self):
        return super().get_config() | {
            "units": self.units,
            "groups": self.groups,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable("convbert_tf")
class FeedForward(keras.layers.Layer):
    """Position-wise feed-forward network: down(gelu(up(x))), dense or grouped (section 4.3).

    Args:
        intermediate_size: I.
        linear_groups: G; dense layers when 1.
        hidden_act: activation in the middle; "gelu" is the exact (erf) form.
        initializer_range: standard deviation of the truncated normal for weights.

    Call: [B, T, H] -> [B, T, H]. Weights: `up`, `down`.
    """

    def __init__(
        self,
        intermediate_size,
        linear_groups=1,
        hidden_act="gelu",
        initializer_range=0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.intermediate_size, self.linear_groups = intermediate_size, linear_groups
        self.hidden_act, self.initializer_range = hidden_act, initializer_range

    def build(self, inputs_shape):
        self.up = self._linear(self.intermediate_size, activation(self.hidden_act), "up")
        self.up.build(inputs_shape)
        self.down = self._linear(inputs_shape[-1], None, "down")
        self.down.build((*inputs_shape[:-1], self.intermediate_size))

    def _linear(self, units, act, name):
        options = {
            "activation": act,
            "kernel_initializer": truncated_normal(self.initializer_range),
            "dtype": self.dtype_policy,
            "name": name,
        }
        if self.linear_groups == 1:
            return Dense(units, **options)
        return GroupedDense(units, self.linear_groups, **options)

    def call(self, inputs):
        if self.linear_groups == 1:
            return self.down(self.up(inputs))
        # A group's slice goes through both layers before the slices are put together.
        slices = ops.split(flatten(inputs), self.linear_groups, axis=-1)
        slices = self.down.apply_slices(self.up.apply_slices(slices))
        return restore(ops.concatenate(slices, axis=-1), inputs)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return super().get_config() | fields(
            self, "intermediate_size linear_groups hidden_act initializer_range"
        )


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
