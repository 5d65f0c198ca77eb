"""Models with their weights as constants of the graph, and named inputs of functions."""

import keras
import tensorflow as tf


def freeze(model):
    """A function that computes `model` with its weights of now as constants.

    With scales and biases as constants of the graph TensorFlow computes LayerNorm as one operation.
    Matrices stay outside of the graph, where all traces share them and they take no more memory.
    Training `model` further does not change the function.

    Args:
        model: a built Keras model.

    Returns:
        A function of the model's inputs that gives its outputs without dropout, to be called inside
        a `tf.function`.

    Example:
        >>> classify = tf.function(freeze(classifier), autograph=False)
    """
    values = [(weight, tf.convert_to_tensor(weight.value)) for weight in model.weights]

    def frozen(inputs):
        constants = [
            (weight, tf.constant(value.numpy()) if value.shape.rank < 2 else value)
            for weight, value in values
        ]
        with keras.StatelessScope(constants):
            return model(inputs, training=False)

    return frozen


def signature(function, **specs):
    """A tf.function of `function` whose inputs go by these names."""
    named = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()]
    return tf.function(function, input_signature=named, autograph=False)
