"""The encoder: a Keras model over dicts of `input_ids`, `input_mask`, `segment_ids`.

Axes as in layers.py. No TensorFlow: the model runs on every backend of Keras.
"""

import keras
from keras import ops

from convbert_tf.config import ModelConfig
from convbert_tf.modeling import storing
from convbert_tf.modeling.functions import check_inputs, cut
from convbert_tf.modeling.layers import ConvBertBlock
from convbert_tf.modeling.linear import Dense, LayerNormalization, truncated_normal
from convbert_tf.weights import formats


@keras.saving.register_keras_serializable("convbert_tf")
class Embeddings(keras.layers.Layer):
    """Word, token type and position embeddings, normalised; shared by generator and discriminator.

    Call: `input_ids`, `segment_ids` int [B, T] -> [B, T, E].

    Weights: `word_embeddings` [V, E], `token_type_embeddings` [2, E], `position_embeddings`
    [P, E], `norm`.

    Raises:
        ValueError: T is above `max_position_embeddings`.
    """

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else ModelConfig.from_dict(config)
        self.norm = LayerNormalization(dtype=self.dtype_policy, name="norm")
        self.dropout = keras.layers.Dropout(
            self.config.hidden_dropout_prob, dtype=self.dtype_policy
        )

    def build(self, input_ids_shape=None, segment_ids_shape=None):
        config, size = self.config, self.config.embedding_size
        self.word_embeddings = self._table(config.vocab_size, "word_embeddings")
        self.token_type_embeddings = self._table(config.type_vocab_size, "token_type_embeddings")
        self.position_embeddings = self._table(
            config.max_position_embeddings, "position_embeddings"
        )
        self.norm.build((None, None, size))

    def _table(self, rows, name):
        return self.add_weight(
            shape=(rows, self.config.embedding_size),
            initializer=truncated_normal(self.config.initializer_range),
            name=name,
        )

    def call(self, input_ids, segment_ids, training=None):
        num_tokens = input_ids.shape[1]
        if num_tokens is not None and num_tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"Inputs have {num_tokens} tokens, but the model has only "
                f"{self.config.max_position_embeddings} positions."
            )
        words = ops.take(self.word_embeddings, input_ids, axis=0)
        # As a product: there are two rows, and the gradient needs no scatter.
        types = ops.one_hot(segment_ids, self.config.type_vocab_size, dtype=words.dtype)
        types = ops.matmul(types, self.token_type_embeddings)
        table = ops.convert_to_tensor(self.position_embeddings)
        positions = cut(table, (0, 0, ops.shape(input_ids)[1]))
        return self.dropout(self.norm(words + types + positions), training=training)

    def compute_output_shape(self, input_ids_shape, *_, **__):
        return (*input_ids_shape, self.config.embedding_size)

    def get_config(self):
        return super().get_config() | {"config": self.config.to_dict()}


@keras.saving.register_keras_serializable("convbert_tf")
class ConvBertEncoder(storing.Storable, keras.Model):
    """The ConvBERT encoder.

    Args:
        config: ModelConfig.
        embeddings: an `Embeddings` layer to share; made anew if None.

    Call:
        inputs: dict of int [B, T]: `input_ids`; `input_mask`, 1 for tokens and 0 for padding (all
            ones if absent); `segment_ids` (all zeros if absent).
        return_attention_scores: adds "attention_scores", L tensors [B, N, T, T].
        Returns a dict of "sequence_output" [B, T, H], "pooled_output" [B, H] (the first token of
        it), "embedding_output" [B, T, H] (after the projection, as in the original) and
        "hidden_states", L tensors [B, T, H].

    Raises:
        UserError: the inputs are texts or no dict; or, where values are known, an id is not in the
            vocabulary, a segment or a mask not in range.

    Weights: `embeddings`, `embeddings_project` (only where E differs from H), `blocks`.

    Example:
        >>> encoder = ConvBertEncoder(ModelConfig.small())
        >>> encoder({"input_ids": np.ones((1, 16), "int32")})["sequence_output"].shape
        (1, 16, 256)
    """

    def __init__(self, config, embeddings=None, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else ModelConfig.from_dict(config)
        config = self.config
        self.embeddings = embeddings or Embeddings(
            config, dtype=self.dtype_policy, name="embeddings"
        )
        self.embeddings_project = None
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = Dense(
                config.hidden_size, dtype=self.dtype_policy, name="embeddings_project"
            )
        self.blocks = [
            ConvBertBlock(
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                head_ratio=config.head_ratio,
                conv_kernel_size=config.conv_kernel_size,
                conv_type=config.conv_type,
                linear_groups=config.linear_groups,
                hidden_act=config.hidden_act,
                hidden_dropout_prob=config.hidden_dropout_prob,
                attention_probs_dropout_prob=config.attention_probs_dropout_prob,
                mask_convolution=config.mask_convolution,
                initializer_range=config.initializer_range,
                dtype=self.dtype_policy,
                name=f"layer_{i}",
            )
            for i in range(config.num_hidden_layers)
        ]
        self.build()

    def build(self, inputs_shape=None):
        if not self.embeddings.built:
            self.embeddings.build()
        if self.embeddings_project is not None:
            self.embeddings_project.build((None, None, self.config.embedding_size))
        for block in self.blocks:
            block.build((None, None, self.config.hidden_size))
        self.built = True

    def __call__(self, inputs, *args, **kwargs):
        check_inputs(inputs, self.config)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs, training=False, return_attention_scores=False):
        input_ids = ops.cast(inputs["input_ids"], "int32")
        segment_ids = inputs.get("segment_ids")
        segment_ids = ops.zeros_like(input_ids) if segment_ids is None else segment_ids
        mask = inputs.get("input_mask")
        hidden = self.embeddings(input_ids, segment_ids, training=training)
        if self.embeddings_project is not None:
            hidden = self.embeddings_project(hidden)
        outputs = {"embedding_output": hidden}
        hidden_states, scores = [], []
        options = {"mask": mask, "training": training}
        for block in self.blocks:
            if return_attention_scores:
                hidden, probabilities = block(hidden, return_attention_scores=True, **options)
                scores.append(probabilities)
            else:  # kept, they would be most of the memory
                hidden = self.run_block(block, hidden, **options)
            hidden_states.append(hidden)
        outputs |= {
            "hidden_states": hidden_states,
            "sequence_output": hidden,
            "pooled_output": ops.squeeze(cut(hidden, (1, 0, 1)), 1),
        }
        return outputs | ({"attention_scores": scores} if return_attention_scores else {})

    @staticmethod
    def run_block(block, hidden, **options):
        """Calls one of `blocks`; training/sharing.py has another way to, for faster starts."""
        return block(hidden, **options)

    def get_config(self):
        return {"config": self.config.to_dict(), "name": self.name}

    @classmethod
    def from_preset(cls, source):
        """Returns the encoder of a stored model, whatever heads it was saved with.

        Args:
            source: a preset or Hugging Face directory, or "hf://owner/name@revision".

        Raises:
            UserError: see weights/formats.py.
        """
        return cls.from_stored(formats.read(source))

    @classmethod
    def from_stored(cls, stored):
        """Returns the encoder of a Stored model of any kind."""
        return super().from_stored(stored.encoder())
