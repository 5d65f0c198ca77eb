"""Properties of ModelConfig that follow from its values."""

from convbert_tf.config import ModelConfig


def test_padding_reaches_as_far_as_the_kernels_of_all_layers():
    reach = {"small": 48, "medium_small": 48, "base": 48}
    assert {size: getattr(ModelConfig, size)().padding_reach for size in reach} == reach
    assert ModelConfig(num_hidden_layers=3, conv_kernel_size=5).padding_reach == 6
    for options in ({"mask_convolution": True}, {"conv_type": "noconv"}):
        assert ModelConfig(**options).padding_reach == 0
