"""Models with their weights as constants of the graph, for serving and prediction."""

import keras
import tensorflow as tf


def freeze(model):
    """A function that computes `model` with its weights of now as constants of the graph.

    Constants let TensorFlow fuse LayerNorm into one operation, lay weights out for the matrix
    products once and drop what depends on weights alone. Training `model` further does not change
    the function.

    Args:
        model: a built Keras model.

    Returns:
        A function of the model's inputs that gives its outputs without dropout, to be called inside
        a `tf.function`: of one, each trace holds a copy of the weights, so give it an
        `input_signature` with None for the axes that vary.

    Example:
        >>> classify = tf.function(freeze(classifier), autograph=False)
    """
    values = [(variable, variable.numpy()) for variable in model.weights]

    def frozen(inputs):
        constants = [(variable, tf.constant(value)) for variable, value in values]
        with keras.StatelessScope(constants):
            return model(inputs, training=False)

    return frozen
