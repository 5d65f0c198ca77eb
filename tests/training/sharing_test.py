"""Blocks that share a trace compute what blocks of their own traces do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.config import ModelConfig
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import TextClassifier
from convbert_tf.training import sharing

LAYERS = 4


def make_model(dtype):
    config = ModelConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        embedding_size=8,
        max_position_embeddings=12,
        conv_kernel_size=3,
        initializer_range=0.3,
    )
    keras.utils.set_random_seed(0)
    return TextClassifier(ConvBertEncoder(config, dtype=dtype), 3)


def batch():
    ids = np.random.default_rng(1).integers(5, 30, (3, 12)).astype("int32")
    mask = (np.arange(12) < np.array([[12], [7], [4]])).astype("int32")
    return {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(ids)}


def step(model, shared):
    """A function of dropout's seeds that gives logits and gradients, traced for all lengths."""
    seeds = [v for v in model.variables if "seed" in v.path]

    @tf.function(autograph=False)
    def run(inputs, values):
        scope = [(variable, values[i]) for i, variable in enumerate(seeds)]
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape, keras.StatelessScope(scope):
            if shared:
                with sharing.shared_blocks(model):
                    logits = model(inputs, training=True)
            else:
                logits = model(inputs, training=True)
            loss = tf.reduce_sum(tf.square(logits))
        return logits, tape.gradient(loss, variables)

    draws = np.random.default_rng(2).integers(0, 1000, (len(seeds), 2)).astype("uint32")
    return run, draws


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_the_step_is_the_same_and_its_graph_smaller(dtype):
    model = make_model(dtype)
    (alone, seeds), (shared, _) = step(model, False), step(model, True)
    (logits, gradients), (shared_logits, shared_gradients) = (
        run(batch(), seeds) for run in (alone, shared)
    )
    # In bfloat16, products that are fused with what follows are rounded once less.
    tolerance = 1e-6 if dtype == "float32" else 0.05
    np.testing.assert_allclose(shared_logits, logits, rtol=tolerance, atol=tolerance)
    for variable, one, other in zip(
        model.trainable_variables, shared_gradients, gradients, strict=True
    ):
        one, other = (np.asarray(tf.convert_to_tensor(x)) for x in (one, other))
        scale = max(np.abs(other).max(), 1e-6)
        assert np.abs(one - other).max() / scale < 10 * tolerance, variable.path
    sizes = [
        len(run.get_concrete_function(batch(), seeds).graph.get_operations())
        for run in (alone, shared)
    ]
    assert sizes[1] < 0.6 * sizes[0]
    other_seeds = shared(batch(), seeds + 1)[0]
    assert np.abs(other_seeds - shared_logits).max() > 1e-3


def test_each_block_has_its_own_weights_and_the_model_is_left_as_it_was():
    model = make_model("float32")
    with sharing.shared_blocks(model):
        before = model(batch()).numpy()
    for block in model.encoder.blocks:
        kernel = block.attention_output.kernel
        values = kernel.numpy()
        kernel.assign(-values)
        with sharing.shared_blocks(model):
            changed = model(batch()).numpy()
        np.testing.assert_allclose(changed, model(batch()), rtol=1e-5, atol=1e-6)
        assert np.abs(changed - before).max() > 1e-3
        kernel.assign(values)
    assert model.encoder.run_block is ConvBertEncoder.run_block
    with pytest.raises(KeyError), sharing.shared_blocks(model):
        raise KeyError
    assert model.encoder.run_block is ConvBertEncoder.run_block
