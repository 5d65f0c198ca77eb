"""Models with their weights as constants of the graph: frozen, padded, computed in parts."""

import numbers

import keras
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.modeling import flops

# A model's inputs, ids of tokens [B, T].
IDS = {
    name: tf.TensorSpec([None, None], tf.int32, name)
    for name in ("input_ids", "input_mask", "segment_ids")
}
PADDINGS = ("longest", "full")
# Tokens of windows that are computed at once, with padding: it bounds the memory of a call, and
# more at once are not quicker on a processor.
_TOKENS_AT_ONCE = 2048
# Multiply-adds of a call up to which one thread an operation is quicker than several: most
# operations are over before a second thread has woken up.
_SINGLE_THREAD_MACS = 2.2e9
# Bytes of matrices in half precision that become constants: small's 28 MB do, base's 212 do not.
_MOST_CONSTANTS = 100_000_000


def single_thread_tokens(config):
    """Tokens of a text up to which a model is quickest with one thread an operation, on processors.

    Args:
        config: ModelConfig.

    Returns:
        An int, at most the model's positions.
    """
    lengths = range(config.max_position_embeddings, 0, -1)
    fits = (each for each in lengths if flops.encoder_macs(config, each) <= _SINGLE_THREAD_MACS)
    return next(fits, 0)


def freeze(model, constant_matrices=True):
    """A function that computes `model` with its weights of now as constants.

    With scales and biases as constants of the graph TensorFlow computes LayerNorm as one operation.
    In half precision it lays matrices out for the processor at every call, unless they are
    constants as well; they are where the model is small. Else matrices stay outside of the graph,
    where all traces share them and they take no more memory. Training `model` further does not
    change the function.

    Args:
        model: a built Keras model.
        constant_matrices: whether small matrices in half precision become constants. A SavedModel
            that has them takes twice the memory, once for each function that calls the model.

    Returns:
        A function of the model's inputs that gives its outputs without dropout, to be called inside
        a `tf.function`.

    Example:
        >>> classify = tf.function(freeze(classifier), autograph=False)
    """
    values = [(weight, tf.convert_to_tensor(weight.value)) for weight in model.weights]
    halves = [value for _, value in values if value.dtype.size == 2]
    size = sum(2 * value.shape.num_elements() for value in halves)
    fit = constant_matrices and size <= _MOST_CONSTANTS

    def is_constant(value):
        return value.shape.rank < 2 or (fit and value.dtype.size == 2)

    def frozen(inputs):
        constants = [
            (weight, tf.constant(value.numpy()) if is_constant(value) else value)
            for weight, value in values
        ]
        with keras.StatelessScope(constants):
            return model(inputs, training=False)

    return frozen


def shared(model):
    """`freeze(model)` as one function of the graph, which all signatures of a SavedModel call."""
    return tf.function(
        freeze(model, constant_matrices=False),
        input_signature=[dict(IDS)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def signature(function, **specs):
    """A tf.function of `function` whose inputs go by these names."""
    named = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()]
    return tf.function(function, input_signature=named, autograph=False)


def of_ids(function, model):
    """A signature of `function`, which takes a dict of a model's inputs of pre-tokenised text.

    Inputs that are longer than `model` has positions for are refused by name, not by a shape deep
    inside of it.
    """
    most = model.encoder.config.max_position_embeddings

    def checked(input_ids, input_mask, segment_ids):
        message = f"input_ids has more tokens than the {most} that this model takes"
        check = tf.debugging.assert_less_equal(tf.shape(input_ids)[1], most, message)
        with tf.control_dependencies([check]):
            input_ids = tf.identity(input_ids)
        return function(dict(zip(IDS, (input_ids, input_mask, segment_ids), strict=True)))

    return signature(checked, **IDS)


class Padding:
    """How much padding is computed behind texts of `model`.

    Args:
        kind: "longest": none behind the longest row that is computed at once. "full": as much as
            changes anything, which gives the outputs of rows that are padded to `max_seq_length`.
        model: see above.
        max_seq_length: T at most.
    """

    def __init__(self, kind, model, max_seq_length):
        if kind not in PADDINGS:
            raise UserError(f"padding must be {' or '.join(PADDINGS)}, got {kind!r:.60}.")
        reach = model.encoder.config.padding_reach
        self.kind, self._max_seq_length = kind, max_seq_length
        self.spare = reach if kind == "full" else 0
        # Whether outputs depend on what else is computed with a text.
        self.matters = reach > self.spare

    def __call__(self, inputs):
        """`inputs` [B, T] with this padding behind the longest of them, and no other."""
        longest = tf.reduce_max(tf.reduce_sum(inputs["input_mask"], axis=1))
        inputs = {name: values[:, :longest] for name, values in inputs.items()}
        if not self.spare:
            return inputs
        more = tf.minimum(self.spare, self._max_seq_length - longest)
        return {name: tf.pad(values, [[0, 0], [0, more]]) for name, values in inputs.items()}


def in_parts(compute, rows, length, specs):
    """compute(rows) for some rows at a time, to bound the memory.

    Args:
        compute: a function of a dict of tensors [N, ...] that returns one, with any first axis.
        rows: dict of tensors [N, ...].
        length: tokens of the longest row: with it decides how many are computed at once.
        specs: name -> TensorSpec of the results that are wanted, whose first axis alone may vary.

    Returns:
        name -> the results of the parts behind one another; empty ones of no rows.
    """
    number = tf.shape(next(iter(rows.values())))[0]
    at_once = tf.maximum(_TOKENS_AT_ONCE // tf.maximum(tf.cast(length, tf.int32), 1), 1)
    parts = (number + at_once - 1) // at_once

    def step(i, arrays):
        first = i * at_once
        outputs = compute({name: x[first : first + at_once] for name, x in rows.items()})
        return i + 1, {name: array.write(i, outputs[name]) for name, array in arrays.items()}

    def many():
        arrays = {
            name: tf.TensorArray(spec.dtype, parts, infer_shape=False, element_shape=spec.shape)
            for name, spec in specs.items()
        }
        goes_on = lambda i, _: i < parts  # noqa: E731
        _, arrays = tf.while_loop(goes_on, step, (0, arrays), parallel_iterations=1)
        return {name: array.concat() for name, array in arrays.items()}

    def one():  # a loop of one step costs a short text some 6% of its time
        outputs = compute(rows)
        return {name: outputs[name] for name in specs}

    found = tf.cond(parts == 1, one, many)
    return {name: tf.ensure_shape(found[name], spec.shape) for name, spec in specs.items()}


def check_counts(**counts):
    """Refuses what is no whole number of at least 1, by its name."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise UserError(f"{name} must be a whole number, got {value!r:.60}.")
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
