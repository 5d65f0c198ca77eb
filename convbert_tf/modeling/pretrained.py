"""What a pre-trained model gives without fine-tuning: embeddings, replaced tokens, filled masks.

No TensorFlow. Each is made of a model that is there and shares its weights.
"""

import keras
from keras import ops

from convbert_tf.console import UserError
from convbert_tf.modeling.pretraining import ConvBertPretrainer

POOLINGS = ("mean", "first")


class SentenceEmbedder(keras.Model):
    """A vector for each text: the mean of its tokens' hidden states, or that of the first.

    Args:
        encoder: ConvBertEncoder.
        pooling: "mean", of all tokens with [CLS] and [SEP], without padding; or "first", [CLS].
        normalize: whether vectors are divided by their length, so that the product of two is the
            cosine of the angle between them.

    Call: the encoder's inputs -> float32 [B, H].
    """

    output_name = "embedding"

    def __init__(self, encoder, pooling="mean", normalize=False, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        if pooling not in POOLINGS:
            raise UserError(f"pooling must be {' or '.join(POOLINGS)}, got {pooling!r:.60}.")
        self.encoder, self.pooling, self.normalize = encoder, pooling, normalize
        self.built = True

    def call(self, inputs, training=False):
        outputs = self.encoder(inputs, training=training)
        if self.pooling == "first":
            vectors = ops.cast(outputs["pooled_output"], "float32")
        else:
            hidden = ops.cast(outputs["sequence_output"], "float32")
            mask = ops.cast(inputs["input_mask"], "float32")[:, :, None]
            vectors = ops.sum(hidden * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1.0)
        if not self.normalize:
            return vectors
        length = ops.sqrt(ops.sum(ops.square(vectors), axis=-1, keepdims=True))
        return vectors / ops.maximum(length, 1e-12)


class ReplacedTokenDetector(keras.Model):
    """A pre-trained discriminator: for each token the logit that it was replaced.

    Args:
        pretrainer: ConvBertPretrainer with a discriminator.

    Call: the encoder's inputs -> float32 [B, T].
    """

    output_name = "token_logits"

    def __init__(self, pretrainer, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        if pretrainer.discriminator_head is None:
            raise UserError("the model has no discriminator: it was pre-trained with masks alone.")
        self.encoder, self.head = pretrainer.discriminator, pretrainer.discriminator_head
        self.built = True

    def call(self, inputs, training=False):
        hidden = self.encoder(inputs, training=training)["sequence_output"]
        return ops.cast(self.head(hidden), "float32")


class MaskFiller(keras.Model):
    """A pre-trained generator: for each [MASK] the logits of the vocabulary.

    Args:
        pretrainer: ConvBertPretrainer with a generator, or of objective "mlm".
        mask_id: id of [MASK].

    Call: the encoder's inputs -> float32 [M, V], of the M masks row by row.
    """

    output_name = "mask_logits"

    def __init__(self, pretrainer, mask_id, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        if pretrainer.generator is None:
            raise UserError("the model has no generator (uniform_generator): nothing fills masks.")
        self.encoder, self.head = pretrainer.generator, pretrainer.generator_head
        self.mask_id = mask_id
        self.built = True

    def call(self, inputs, training=False):
        hidden = self.encoder(inputs, training=training)["sequence_output"]
        is_mask = ops.cast(ops.reshape(inputs["input_ids"] == self.mask_id, (-1,)), "int32")
        # Sorting brings the masks to the front, in their order; LiteRT has no op for `nonzero`.
        size = ops.shape(is_mask)[0]
        masks = ops.argsort(ops.arange(size) + (1 - is_mask) * size)[: ops.sum(is_mask)]
        hidden = ops.reshape(hidden, (-1, self.encoder.config.hidden_size))
        hidden = ops.take(hidden, masks, axis=0)
        table = self.encoder.embeddings.word_embeddings
        return ops.cast(self.head(hidden[None], table)[0], "float32")


def as_pretrainer(model, what):
    """`model`, if it can do `what`: is a ConvBertPretrainer."""
    if isinstance(model, ConvBertPretrainer):
        return model
    raise UserError(
        f"{what} needs the preset of a pre-training run, with generator and discriminator; this "
        f"one holds a {type(model).__name__}."
    )
