"""What a model looks at: its attention, and the kernels that it makes for each token."""

import dataclasses

import numpy as np
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.text.preprocessing import pack
from convbert_tf.training import plots


@dataclasses.dataclass(frozen=True)
class Inside:
    """What `inspect` finds for a text of T tokens, of L layers with N heads and kernels of K.

    Attributes:
        tokens: T pieces, [CLS] and [SEP] among them.
        attention: float32 [L, N, T, T], the probabilities of the tokens (last axis) that each looks
            at.
        kernels: float32 [L, N, T, K], the weights of the tokens t - (K-1)/2 to t + (K-1)/2 in the
            convolution at each token t; None of a model without convolution.
    """

    tokens: list
    attention: np.ndarray
    kernels: np.ndarray | None


def inspect(encoder, tokenizer, text, second=None):
    """Computes an encoder's attention and dynamic kernels for a text, or for a pair.

    Args:
        encoder: ConvBertEncoder.
        tokenizer: WordPieceTokenizer.
        text, second: strings. Together with [CLS] and [SEP] they are cut to the model's positions.

    Returns:
        Inside.
    """
    first = tokenizer.tokenize([text])
    second = None if second is None else tokenizer.tokenize([second])
    inputs = pack(tokenizer, first, second)
    longest = encoder.config.max_position_embeddings
    inputs = {name: values[:, :longest] for name, values in inputs.items()}
    outputs = encoder(inputs, return_attention_scores=True)
    befores = [outputs["embedding_output"], *outputs["hidden_states"][:-1]]
    kernels = None
    if encoder.config.conv_type != "noconv":
        kernels = [
            block.attention.kernels(before, inputs["input_mask"])[0]
            for block, before in zip(encoder.blocks, befores, strict=True)
        ]
        kernels = tf.cast(tf.stack(kernels), tf.float32).numpy()
    attention = tf.stack([scores[0] for scores in outputs["attention_scores"]])
    tokens = [tokenizer.vocab[i] for i in inputs["input_ids"][0].numpy()]
    return Inside(tokens, tf.cast(attention, tf.float32).numpy(), kernels)


def draw_attention(inside, layer):
    """A matplotlib figure of a layer's attention, a panel a head.

    Args:
        inside: Inside.
        layer: its number, from 0.

    Raises:
        UserError: matplotlib is missing.
    """
    size = 1.5 + 0.22 * len(inside.tokens)
    drawing, panels = _panels(len(inside.attention[layer]), size, size)
    for head, (panel, values) in enumerate(zip(panels, inside.attention[layer], strict=True)):
        panel.imshow(values, cmap="Blues", vmin=0, vmax=max(values.max(), 1e-6))
        panel.set(title=f"attention, layer {layer + 1}, head {head + 1}", xlabel="looks at")
        panel.set_xticks(
            range(len(inside.tokens)), plots.as_shown(inside.tokens), rotation=90, fontsize=8
        )
        panel.set_yticks(range(len(inside.tokens)), plots.as_shown(inside.tokens), fontsize=8)
    return drawing


def draw_kernels(inside, layer):
    """A matplotlib figure of a layer's kernels, a panel a head and a row a token.

    Args and errors as of `draw_attention`; also a UserError of a model without convolution.
    """
    if inside.kernels is None:
        raise UserError("this model has no convolution (conv_type='noconv').")
    values, half = inside.kernels[layer], inside.kernels.shape[-1] // 2
    drawing, panels = _panels(len(values), 3.2, 1.5 + 0.22 * len(inside.tokens))
    for head, (panel, of_head) in enumerate(zip(panels, values, strict=True)):
        panel.imshow(of_head, cmap="Oranges", vmin=0, vmax=values.max(), aspect="auto")
        panel.set(title=f"kernels, layer {layer + 1}, head {head + 1}", xlabel="place")
        panel.set_xticks(range(2 * half + 1), [f"{j - half:+d}" for j in range(2 * half + 1)])
        panel.set_yticks(range(len(inside.tokens)), plots.as_shown(inside.tokens), fontsize=8)
    return drawing


def _panels(number, width, height):
    size = (min(width * number, 40), min(height, 40))
    drawing = plots.matplotlib_figure().Figure(figsize=size, layout="constrained", dpi=80)
    return drawing, drawing.subplots(1, number, squeeze=False)[0]
