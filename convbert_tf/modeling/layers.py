"""The layers of ConvBERT ("ConvBERT: Improving BERT with Span-based Dynamic Convolution", 2020).

Axis legend, here and in every shape comment of the package:

    B batch    T tokens    H hidden      E embedding    I intermediate    V vocabulary
    N heads    D size per head           A = N * D      K kernel          G groups
    L layers   M masked positions

Everything is written in `keras.ops`, so the layers run on Keras's TensorFlow, JAX and PyTorch
backends. Dense projections work on [B*T, H]: a plain matrix product with a bias is what every
backend fuses best.
"""

import math

import keras
from keras import ops

from convbert_tf.modeling.functions import activation, convolve_heads, cut, gelu
from convbert_tf.modeling.linear import (
    Dense,
    FeedForward,
    GroupedDense,
    LayerNormalization,
    fields,
    flatten,
    leading,
    restore,
    truncated_normal,
)

__all__ = [
    "ConvBertBlock",
    "Dense",
    "FeedForward",
    "GroupedDense",
    "MixedAttention",
    "SpanDynamicConvolution",
    "activation",
    "gelu",
]

MASKED_SCORE = -10000.0


class _TakesMask(keras.layers.Layer):
    """A layer whose mask is an argument of `call`; Keras's implicit masks are not passed on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, *_, **__):
        return None


@keras.saving.register_keras_serializable("convbert_tf")
class SpanDynamicConvolution(_TakesMask):
    """Span-based dynamic convolution (section 4.1): the kernel comes from a span of the input.

        span_key = pointwise(depthwise_K(x))                       [B, T, A]
        kernel   = softmax_K(Dense(N*K)(span_key * query))         [B, T, N, K]
        out[t]   = sum over j of kernel[t, j] * values[t + j - (K-1)/2]

    With span=False it is dynamic convolution (Wu et al., 2019), whose kernel comes from the token
    alone: softmax_K(Dense(N*K)(query)).

    `query` and `values` are projections of x. MixedAttention passes its own, so that the query is
    shared with self-attention; a layer used alone computes both.

    Args:
        num_heads: N.
        size_per_head: D.
        conv_kernel_size: K, odd.
        initializer_range: standard deviation of the truncated normal for dense weights; the
            depthwise kernel takes 1/K.
        span: see above.

    Call:
        inputs: x [B, T, H].
        query: [B, T, A], or None.
        values: [B, T, A], or None.
        mask: [B, T], 1 for tokens and 0 for padding, or None. Padded positions of x and of the
            values then count as zeros; None is the original, where padding leaks into the last
            (K-1)/2 tokens.
        Returns [B, T, A].

    Weights: `kernel_projection`; with `span` `depthwise_kernel` [K, H], `pointwise_kernel` [H, A],
    `pointwise_bias` [A]; and `query`, `value` in a layer used alone.

    Example:
        >>> layer = SpanDynamicConvolution(num_heads=4, size_per_head=48, conv_kernel_size=9)
        >>> layer(keras.random.normal((2, 128, 384))).shape
        (2, 128, 192)
    """

    def __init__(
        self,
        num_heads,
        size_per_head,
        conv_kernel_size=9,
        initializer_range=0.02,
        span=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if conv_kernel_size % 2 != 1:
            raise ValueError(f"conv_kernel_size must be odd, got {conv_kernel_size}.")
        self.num_heads, self.size_per_head = num_heads, size_per_head
        self.conv_kernel_size = conv_kernel_size
        self.initializer_range, self.span = initializer_range, span
        self.width = num_heads * size_per_head  # A
        self.kernel_projection = self._dense(num_heads * conv_kernel_size, "kernel_projection")
        self.query = self.value = None

    def _dense(self, units, name):
        initializer = truncated_normal(self.initializer_range)
        return Dense(units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name)

    def build(self, inputs_shape, query_shape=None, values_shape=None, mask_shape=None):
        if self.span:
            self._build_span_key(inputs_shape[-1])
        self.kernel_projection.build((*inputs_shape[:-1], self.width))
        if query_shape is None:
            self.query = self._dense(self.width, "query")
            self.query.build(inputs_shape)
        if values_shape is None:
            self.value = self._dense(self.width, "value")
            self.value.build(inputs_shape)

    def _build_span_key(self, hidden_size):
        self.depthwise_kernel = self.add_weight(
            shape=(self.conv_kernel_size, hidden_size),
            initializer=truncated_normal(1 / self.conv_kernel_size),
            name="depthwise_kernel",
        )
        self.pointwise_kernel = self.add_weight(
            shape=(hidden_size, self.width),
            initializer=truncated_normal(self.initializer_range),
            name="pointwise_kernel",
        )
        self.pointwise_bias = self.add_weight(
            shape=(self.width,), initializer="zeros", name="pointwise_bias"
        )

    def call(self, inputs, query=None, values=None, mask=None):
        query = self.query(inputs) if query is None else query
        values = self.value(inputs) if values is None else values
        values = split_heads(values, self.num_heads, self.size_per_head)
        return merge_heads(self.convolve(inputs, query, values, mask))

    def convolve(self, inputs, query, values, mask=None):
        """As `call`, with values [B, N, T, D] by head; returns [B, N, T, D]."""
        if mask is not None:
            mask = ops.cast(mask, values.dtype)
            values = values * mask[:, None, :, None]
        return convolve_heads(self.kernels(inputs, query, mask), values)

    def kernels(self, inputs, query, mask=None):
        """The kernel of each token and head [B, N, T, K]; arguments as of `call`."""
        if not self.span:
            return self._kernels(query)
        if mask is not None:
            inputs = inputs * ops.cast(mask, inputs.dtype)[:, :, None]
        return self._kernels(self._span_key(inputs) * query)

    def _span_key(self, inputs):
        # As a 2-D convolution with one column: the layout every backend is quick at.
        kernel = ops.cast(self.depthwise_kernel, inputs.dtype)[:, None, :, None]
        columns = ops.expand_dims(inputs, 2)  # [B, T, 1, H]
        spans = ops.depthwise_conv(columns, kernel, padding="same")
        flat = ops.reshape(spans, (-1, inputs.shape[-1]))  # [B*T, H]
        keys = ops.add(ops.matmul(flat, self.pointwise_kernel), self.pointwise_bias)
        return restore(keys, inputs)

    def _kernels(self, span_query):
        logits = self.kernel_projection(span_query)  # [B, T, N*K]
        return ops.softmax(split_heads(logits, self.num_heads, self.conv_kernel_size), axis=-1)

    def compute_output_shape(self, inputs_shape, *_, **__):
        return (*inputs_shape[:-1], self.width)

    def get_config(self):
        return super().get_config() | fields(
            self, "num_heads size_per_head conv_kernel_size initializer_range span"
        )


def _spec(layer, hidden_states, num_heads, return_attention_scores):
    """The symbolic outputs of an attention layer, for functional models."""
    shape = hidden_states.shape
    outputs = keras.KerasTensor(layer.compute_output_shape(shape), dtype=layer.compute_dtype)
    if not return_attention_scores:
        return outputs
    scores_shape = (shape[0], num_heads, shape[1], shape[1])
    return outputs, keras.KerasTensor(scores_shape, dtype=layer.compute_dtype)


def split_heads(x, num_heads, size):
    """[B, T, N*D] -> [B, N, T, D]."""
    return ops.transpose(ops.reshape(x, (*leading(x, 2), num_heads, size)), (0, 2, 1, 3))


def merge_heads(x):
    """[B, N, T, D] -> [B, T, N*D]."""
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (*leading(x, 2), x.shape[2] * x.shape[3]))


@keras.saving.register_keras_serializable("convbert_tf")
class MixedAttention(_TakesMask):
    """Mixed attention (section 4.2): self-attention and span-based dynamic convolution together.

    N = num_attention_heads / head_ratio heads are kept for each of the two (at least one); they
    share the query, and their results are concatenated, attention first.

    Args:
        num_attention_heads: heads before the reduction; H is divisible by it, and D = H / heads.
        head_ratio: how many times fewer heads each branch has ("gamma" in the paper).
        conv_kernel_size: K, odd.
        conv_type: "sdconv"; "dconv" for dynamic convolution without spans; "noconv" for
            self-attention alone (N heads, output A wide).
        attention_probs_dropout_prob: dropout rate on the attention probabilities.
        mask_convolution: keep padding out of the convolution (see SpanDynamicConvolution).
        initializer_range: standard deviation of the truncated normal for weights.

    Call:
        hidden_states: [B, T, H].
        mask: [B, T], 1 for tokens and 0 for padding, or None.
        return_attention_scores: whether to return the probabilities as well.
        Returns [B, T, 2A] ([B, T, A] without convolution), and the probabilities [B, N, T, T].

    Weights: `projection` (query, key, value and convolution values as one dense layer [H, 4A]),
    `convolution`.
    """

    def __init__(
        self,
        num_attention_heads,
        head_ratio=2,
        conv_kernel_size=9,
        conv_type="sdconv",
        attention_probs_dropout_prob=0.1,
        mask_convolution=False,
        initializer_range=0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if conv_type not in ("sdconv", "dconv", "noconv"):
            raise ValueError(f"conv_type must be 'sdconv', 'dconv' or 'noconv', got {conv_type!r}.")
        self.num_attention_heads = num_attention_heads
        self.head_ratio = head_ratio
        self.conv_kernel_size = conv_kernel_size
        self.conv_type = conv_type
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.mask_convolution = mask_convolution
        self.initializer_range = initializer_range
        self.num_heads = max(1, int(num_attention_heads / head_ratio))  # N
        self.dropout = keras.layers.Dropout(attention_probs_dropout_prob, dtype=self.dtype_policy)

    def build(self, hidden_states_shape, mask_shape=None):
        hidden_size = hidden_states_shape[-1]
        if hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}."
            )
        self.size_per_head = hidden_size // self.num_attention_heads  # D
        width = self.num_heads * self.size_per_head  # A
        self.projection = Dense(
            width * (3 if self.conv_type == "noconv" else 4),
            kernel_initializer=truncated_normal(self.initializer_range),
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build(hidden_states_shape)
        self.convolution = None
        if self.conv_type != "noconv":
            self.convolution = SpanDynamicConvolution(
                self.num_heads,
                self.size_per_head,
                self.conv_kernel_size,
                self.initializer_range,
                span=self.conv_type == "sdconv",
                dtype=self.dtype_policy,
                name="convolution",
            )
            part_shape = (*hidden_states_shape[:-1], width)
            self.convolution.build(hidden_states_shape, part_shape, part_shape)

    def call(self, hidden_states, mask=None, training=None, return_attention_scores=False):
        projected = self.projection(hidden_states)  # [B, T, 4A]
        parts = 4 if self.convolution else 3
        by_head = split_heads(projected, parts * self.num_heads, self.size_per_head)
        query, key, value, *conv_values = ops.split(by_head, parts, axis=1)  # [B, N, T, D] each
        outputs, probabilities = self._attend(query, key, value, mask, training)
        if self.convolution is not None:
            query = cut(projected, (2, 0, self.num_heads * self.size_per_head))
            convolved = self.convolution.convolve(
                hidden_states, query, *conv_values, mask if self.mask_convolution else None
            )
            outputs = ops.concatenate([outputs, convolved], axis=1)  # [B, 2N, T, D]
        outputs = merge_heads(outputs)
        return (outputs, probabilities) if return_attention_scores else outputs

    def kernels(self, hidden_states, mask=None):
        """The convolution's kernels [B, N, T, K], each of weights that add up to 1.

        Weight j of token t is that of token t + j - (K-1)/2. Arguments as of `call`.
        """
        width = self.num_heads * self.size_per_head
        query = cut(self.projection(hidden_states), (2, 0, width))
        masked = mask if self.mask_convolution else None
        return self.convolution.kernels(hidden_states, query, masked)

    def _attend(self, query, key, value, mask, training):
        scale = 1 / math.sqrt(self.size_per_head)
        scores = ops.matmul(query * scale, ops.transpose(key, (0, 1, 3, 2)))  # [B, N, T, T]
        if mask is not None:
            hidden = 1 - ops.cast(mask, scores.dtype)
            scores = scores + (MASKED_SCORE * hidden)[:, None, None, :]
        # In float32 whatever the precision policy, as the sum runs over T.
        probabilities = ops.softmax(ops.cast(scores, "float32"), axis=-1)
        probabilities = ops.cast(probabilities, value.dtype)
        return ops.matmul(self.dropout(probabilities, training=training), value), probabilities

    def compute_output_shape(self, hidden_states_shape, *_, **__):
        width = hidden_states_shape[-1] // self.num_attention_heads * self.num_heads
        return (*hidden_states_shape[:-1], width * (1 if self.conv_type == "noconv" else 2))

    def compute_output_spec(
        self, hidden_states, mask=None, training=None, return_attention_scores=False
    ):
        return _spec(self, hidden_states, self.num_heads, return_attention_scores)

    def get_config(self):
        return super().get_config() | fields(
            self,
            "num_attention_heads head_ratio conv_kernel_size conv_type "
            "attention_probs_dropout_prob mask_convolution initializer_range",
        )


@keras.saving.register_keras_serializable("convbert_tf")
class ConvBertBlock(_TakesMask):
    """One layer of the encoder, normalised after each residual connection:

        y = LayerNorm(x + dropout(Dense(MixedAttention(x))))
        z = LayerNorm(y + dropout(FeedForward(y)))

    Args:
        num_attention_heads, head_ratio, conv_kernel_size, conv_type,
        attention_probs_dropout_prob, mask_convolution: see MixedAttention.
        intermediate_size, linear_groups, hidden_act: see FeedForward.
        hidden_dropout_prob: dropout rate on each residual branch.
        initializer_range: standard deviation of the truncated normal for weights.

    Call: as MixedAttention; returns [B, T, H] (and the attention probabilities if asked for).

    Weights: `attention`, `attention_output`, `attention_norm`, `feed_forward`, `output_norm`.
    """

    def __init__(
        self,
        num_attention_heads,
        intermediate_size,
        head_ratio=2,
        conv_kernel_size=9,
        conv_type="sdconv",
        linear_groups=1,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        mask_convolution=False,
        initializer_range=0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention = MixedAttention(
            num_attention_heads,
            head_ratio,
            conv_kernel_size,
            conv_type,
            attention_probs_dropout_prob,
            mask_convolution,
            initializer_range,
            dtype=self.dtype_policy,
            name="attention",
        )
        self.feed_forward = FeedForward(
            intermediate_size,
            linear_groups,
            hidden_act,
            initializer_range,
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        self.attention_norm = LayerNormalization(dtype=self.dtype_policy, name="attention_norm")
        self.output_norm = LayerNormalization(dtype=self.dtype_policy, name="output_norm")
        self.dropout = keras.layers.Dropout(hidden_dropout_prob, dtype=self.dtype_policy)

    def build(self, hidden_states_shape, mask_shape=None):
        self.attention.build(hidden_states_shape)
        self.attention_output = Dense(
            hidden_states_shape[-1],
            kernel_initializer=truncated_normal(self.attention.initializer_range),
            dtype=self.dtype_policy,
            name="attention_output",
        )
        self.attention_output.build(self.attention.compute_output_shape(hidden_states_shape))
        for layer in (self.attention_norm, self.feed_forward, self.output_norm):
            layer.build(hidden_states_shape)

    def call(self, hidden_states, mask=None, training=None, return_attention_scores=False):
        attended, probabilities = self.attention(
            hidden_states, mask=mask, training=training, return_attention_scores=True
        )
        # From here on [B*T, ...]: a product, its bias and the residual's sum then fuse.
        attended = self.attention_output(flatten(attended))
        attended = self.dropout(attended, training=training)
        middle = self.attention_norm(flatten(hidden_states) + attended)
        changed = self.dropout(self.feed_forward(middle), training=training)
        outputs = restore(self.output_norm(middle + changed), hidden_states)
        return (outputs, probabilities) if return_attention_scores else outputs

    def compute_output_shape(self, hidden_states_shape, *_, **__):
        return hidden_states_shape

    def compute_output_spec(
        self, hidden_states, mask=None, training=None, return_attention_scores=False
    ):
        return _spec(self, hidden_states, self.attention.num_heads, return_attention_scores)

    def get_config(self):
        attention, feed_forward = self.attention.get_config(), self.feed_forward.get_config()
        own = super().get_config() | fields(self, "hidden_dropout_prob")
        return attention | feed_forward | own
