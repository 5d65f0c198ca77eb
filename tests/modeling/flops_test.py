"""Counted operations against matrix products written out by hand."""

import numpy as np
import pytest

from convbert_tf.config import ModelConfig, PretrainingConfig
from convbert_tf.modeling import flops


def product(rows, inner, columns):
    return rows * inner * columns


def test_a_layer_by_hand():
    """H 12, 4 heads halved to 2 of size 3 (A 6), I 20, K 3, T 5: every product of one layer."""
    config = ModelConfig(
        vocab_size=50,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=20,
        embedding_size=8,
        conv_kernel_size=3,
        linear_groups=2,
    )
    expected = product(5, 8, 12)  # embeddings_project
    expected += 4 * product(5, 12, 6)  # query, key, value, convolution values
    expected += 5 * 12 * 3 + product(5, 12, 6)  # span key: depthwise, pointwise
    expected += product(5, 6, 2 * 3)  # kernels of two heads
    expected += 5 * 2 * product(1, 3, 3)  # each kernel over three values of size 3
    expected += 2 * product(5, 3, 5) + 2 * product(5, 5, 3)  # two heads: scores, context
    expected += product(5, 12, 12)  # output, of both branches
    expected += 2 * product(5, 6, 10) + 2 * product(5, 10, 6)  # feed-forward in two groups
    assert flops.encoder_macs(config, 5) == expected


def test_a_layer_of_attention_alone_by_hand():
    """BERT-base's layer: 12 heads of size 64, all kept."""
    config = ModelConfig.base(conv_type="noconv", head_ratio=1)
    layer = 4 * product(128, 768, 768) + 2 * product(128, 768, 3072)
    layer += 12 * (product(128, 64, 128) + product(128, 128, 64))
    assert flops.encoder_macs(config, 128) == 12 * layer


def test_a_pretraining_step_by_hand():
    config, length = ModelConfig.small(), 128
    encoders = flops.encoder_macs(config, length) + flops.encoder_macs(config.generator(), length)
    mlm_head = product(19, 64, 128) + product(19, 128, 30522)
    disc_head = product(128, 256, 256) + product(128, 256, 1)
    found = flops.pretraining_flops(config, PretrainingConfig(), length)
    assert found == 3 * 2 * (encoders + mlm_head + disc_head)


@pytest.mark.parametrize(
    ("options", "encoders", "mlm_head", "disc_head"),
    [
        ({"objective": "mlm"}, 1, 1, 0),
        ({"uniform_generator": True}, 1, 0, 1),
        ({"untied_generator": False}, 2, 1, 1),
    ],
    ids=str,
)
def test_what_other_steps_leave_out(options, encoders, mlm_head, disc_head):
    config = ModelConfig.small()
    expected = encoders * flops.encoder_macs(config, 128)
    expected += mlm_head * (product(19, 256, 128) + product(19, 128, 30522))
    expected += disc_head * (product(128, 256, 256) + product(128, 256, 1))
    found = flops.pretraining_flops(config, PretrainingConfig(**options), 128)
    np.testing.assert_equal(found, 6 * expected)
