"""Floating-point operations that the model's mathematics asks for; no TensorFlow.

Counted are matrix products and convolutions, two operations a multiply-add; not lookups, norms,
softmaxes and other work linear in the activations. What an implementation does beyond that
(rematerialisation, products with bands of zeros) is not counted, so a share of the device's peak
computed from these is "model FLOPs utilisation" (Chowdhery et al., 2022, appendix B).

    a layer, of one token:
        projections    4 H A      (q, k, v, convolution values; 3 H A without convolution)
        convolution    K H + H A  (span key: depthwise, pointwise; not with "dconv")
                       A N K + A K (kernel, its use)
        attention      2 T A      (scores, weighted values)
        output         2 A H      (A H without convolution)
        feed-forward   2 H I / G

    a position of the MLM head: H E + E V; of the discriminator head: H^2 + H
    embeddings: E H a token, where E differs from H

Backward is twice forward.
"""


def encoder_macs(config, num_tokens):
    """Multiply-adds of ConvBertEncoder(config) forward, for one input of `num_tokens` tokens."""
    hidden, tokens = config.hidden_size, num_tokens
    heads = max(1, int(config.num_attention_heads / config.head_ratio))
    width = heads * (hidden // config.num_attention_heads)  # A
    layer = 3 * hidden * width + 2 * tokens * width + width * hidden
    layer += 2 * hidden * config.intermediate_size // config.linear_groups
    if config.conv_type != "noconv":
        kernel = config.conv_kernel_size
        layer += hidden * width  # values
        if config.conv_type == "sdconv":
            layer += kernel * hidden + hidden * width  # span key
        layer += width * heads * kernel + width * kernel
        layer += width * hidden  # the other half of the output's input
    project = config.embedding_size * hidden if config.embedding_size != hidden else 0
    return tokens * (config.num_hidden_layers * layer + project)


def pretraining_flops(config, pretraining, max_seq_length):
    """FLOPs of one example in a pre-training step, forward and backward.

    Args:
        config: ModelConfig of the discriminator.
        pretraining: PretrainingConfig.
        max_seq_length: T; padding counts like tokens, as it is computed.
    """
    slots = pretraining.max_predictions_per_seq(max_seq_length)
    macs = 0
    if not pretraining.uniform_generator:
        separate = pretraining.objective == "electra" and pretraining.untied_generator
        generator = config.generator() if separate else config
        macs += encoder_macs(generator, max_seq_length)
        embedding = generator.embedding_size
        macs += slots * embedding * (generator.hidden_size + generator.vocab_size)
    if pretraining.objective == "electra":
        macs += encoder_macs(config, max_seq_length)
        macs += max_seq_length * (config.hidden_size**2 + config.hidden_size)
    return 3 * 2 * macs
