"""What a model looks at: its attention, and the kernels that it makes for each token."""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf

from convbert_tf.console import Progress, UserError
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
    attention, kernels = _look(encoder, inputs)
    tokens = [tokenizer.vocab[i] for i in inputs["input_ids"][0].numpy()]
    return Inside(tokens, attention[:, 0], None if kernels is None else kernels[:, 0])


def _look(encoder, inputs):
    """Attention [L, B, N, T, T] and kernels [L, B, N, T, K], or None, of a batch of inputs."""
    outputs = encoder(inputs, return_attention_scores=True)
    attention = tf.cast(tf.stack(outputs["attention_scores"]), tf.float32).numpy()
    if encoder.config.conv_type == "noconv":
        return attention, None
    befores = [outputs["embedding_output"], *outputs["hidden_states"][:-1]]
    kernels = [
        block.attention.kernels(before, inputs["input_mask"])
        for block, before in zip(encoder.blocks, befores, strict=True)
    ]
    return attention, tf.cast(tf.stack(kernels), tf.float32).numpy()


@dataclasses.dataclass(frozen=True)
class Averages:
    """Means over `number` windows of T tokens, of L layers with N heads and kernels of K.

    Attributes:
        attention: float32 [L, N, T, T], as of Inside.
        kernels: float32 [L, N, K], over all tokens too; None of a model without convolution.
        number: of windows.
    """

    attention: np.ndarray
    kernels: np.ndarray | None
    number: int


def average(encoder, tokenizer, texts, length=64, most=256):
    """Averages an encoder's attention by place, and its kernels, over texts.

    As the paper does it for BERT, in the motivation of its method: what is left does not hang on
    the words, and where it is near the diagonal, convolution can take its place.

    Args:
        encoder: ConvBertEncoder.
        tokenizer: WordPieceTokenizer.
        texts: iterable of strings; windows of `length` tokens, [CLS] and [SEP] among them, are cut
            from each, and what is left at its end is not used.
        length: T.
        most: windows, at most.

    Raises:
        UserError: no text is so long.
    """
    longest = encoder.config.max_position_embeddings
    if not 3 <= length <= longest:
        raise UserError(f"length must be between 3 and the model's {longest} positions: {length}.")
    windows = itertools.islice(_full_windows(tokenizer, texts, length - 2), most)
    sums, number, progress = None, 0, Progress("windows", most, "windows")
    while rows := list(itertools.islice(windows, 16)):
        attention, kernels = _look(encoder, pack(tokenizer, tf.ragged.stack(rows)))
        parts = [attention.sum(axis=1)]
        parts += [] if kernels is None else [kernels.mean(axis=3).sum(axis=1)]
        sums = parts if sums is None else [a + b for a, b in zip(sums, parts, strict=True)]
        number += len(rows)
        progress.update(number)
    if not number:
        raise UserError(f"no text has {length - 2} tokens: take a smaller length or longer texts.")
    means = [total / number for total in sums]
    return Averages(means[0], means[1] if len(means) > 1 else None, number)


def _full_windows(tokenizer, texts, room):
    for text in texts:
        ids = tokenizer.tokenize([text]).values
        yield from (ids[start : start + room] for start in range(0, len(ids) - room + 1, room))


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


def draw_averages(averages):
    """A matplotlib figure of `averages`, a row a layer: a panel a head, then all heads' kernels.

    [CLS] and [SEP] are left out: they draw so much that nothing else would be seen. Errors as of
    `draw_attention`.
    """
    layers, heads = averages.attention.shape[:2]
    columns = heads + (averages.kernels is not None)
    drawing = plots.matplotlib_figure().Figure(
        figsize=(2.2 * columns, 2.2 * layers + 0.5), layout="constrained", dpi=80
    )
    rows = drawing.subplots(layers, columns, squeeze=False)
    for layer, panels in enumerate(rows):
        of_heads = zip(panels[:heads], averages.attention[layer], strict=True)
        for head, (panel, values) in enumerate(of_heads):
            values = values[1:-1, 1:-1]
            panel.imshow(values, cmap="Blues", vmin=0, vmax=max(np.quantile(values, 0.995), 1e-6))
            panel.set(xticks=[], yticks=[])
            panel.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
        if averages.kernels is not None:
            _draw_mean_kernels(panels[-1], averages.kernels[layer])
    drawing.suptitle(
        f"attention and kernels, mean of {averages.number:,} windows of "
        f"{averages.attention.shape[-1]} tokens, without [CLS] and [SEP]",
        fontsize=9,
    )
    return drawing


def _draw_mean_kernels(panel, kernels):
    half = kernels.shape[-1] // 2
    for head, values in enumerate(kernels):
        panel.plot(range(-half, half + 1), values, marker=".", label=f"head {head + 1}")
    panel.axhline(1 / kernels.shape[-1], color="gray", linewidth=0.5)  # of equal weights
    panel.set_title("kernels", fontsize=8)
    panel.tick_params(labelsize=6)
    panel.set_ylim(bottom=0)
    if len(kernels) <= 6:
        panel.legend(fontsize=6)


def _panels(number, width, height):
    size = (min(width * number, 40), min(height, 40))
    drawing = plots.matplotlib_figure().Figure(figsize=size, layout="constrained", dpi=80)
    return drawing, drawing.subplots(1, number, squeeze=False)[0]
