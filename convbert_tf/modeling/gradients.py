"""Functions with a gradient of their own, on any of Keras's backends; no TensorFlow."""

from keras import ops


def custom_gradient(function):
    """`keras.ops.custom_gradient` for functions of one output, alike on all backends.

    Args:
        function: takes tensors; returns its output, and a function of the output's gradient that
            gives that of each input.
    """

    @ops.custom_gradient
    def with_gradient(*inputs):
        output, backward = function(*inputs)

        def gradient(*args, upstream=None):  # by position or by name: backends differ
            return backward(*args) if upstream is None else backward(upstream)

        return output, gradient

    return with_gradient
