"""One trace for all blocks of an encoder, so that a run of the model starts sooner.

Twelve blocks are twelve times the same operations on other weights. Traced one by one they are most
of a graph, which Python writes, Grappler rewrites and the executor sets up operation by operation.
As one function that is called twelve times, that work is done once.
"""

import contextlib

import keras
import tensorflow as tf

from convbert_tf.modeling.encoder import ConvBertEncoder

# Functions with this attribute stay functions where Grappler would copy them to where they are
# called; tf.function itself sets it on those that XLA compiles.
_KEPT = {"_noinline": True}


@contextlib.contextmanager
def shared_blocks(model):
    """While it lasts, the encoders of `model` are traced with one function for all their blocks.

    Args:
        model: a Keras model; ConvBertEncoders are looked for among its layers and their layers.
    """
    encoders = [x for x in model._flatten_layers() if isinstance(x, ConvBertEncoder)]
    for encoder in encoders:
        encoder.run_block = _Shared(encoder.blocks[0])
    try:
        yield
    finally:
        for encoder in encoders:
            del encoder.run_block  # that of the class is left


class _Shared:
    """Calls a block by calling `first` with the other block's weights."""

    def __init__(self, first):
        self.first, self._functions = first, {}

    def __call__(self, block, hidden, mask=None, training=False):
        if training not in self._functions:
            self._functions[training] = self._function(training)
        values = [tf.convert_to_tensor(variable.value) for variable in block.variables]
        return self._functions[training](values, hidden, mask)

    def _function(self, training):
        def run(values, hidden, mask):
            scope = list(zip(self.first.variables, values, strict=True))
            with keras.StatelessScope(scope):
                return self.first(hidden, mask=mask, training=training)

        return tf.function(run, autograph=False, experimental_attributes=_KEPT)
