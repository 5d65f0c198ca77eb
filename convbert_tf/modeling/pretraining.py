"""ELECTRA-style pre-training of ConvBERT: generator, sampling, discriminator, losses, metrics.

No TensorFlow: a step is a pure function of weights and batch on every backend of Keras. Axes as in
layers.py.
"""

import dataclasses
import math

import keras
from keras import ops

from convbert_tf.config import ModelConfig, PretrainingConfig
from convbert_tf.console import UserError
from convbert_tf.modeling import functions, masking, storing
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.functions import activation, cross_entropy, sigmoid_cross_entropy
from convbert_tf.modeling.linear import Dense, LayerNormalization, truncated_normal
from convbert_tf.weights import formats


@keras.saving.register_keras_serializable("convbert_tf")
class MaskedLmHead(keras.layers.Layer):
    """Scores the vocabulary at masked positions, with the word table as output weights.

    Call: hidden [B, M, H] and the word table [V, E] -> logits [B, M, V].

    Weights: `dense`, `norm`, `output_bias` [V].
    """

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else ModelConfig.from_dict(config)
        self.dense = Dense(
            self.config.embedding_size,
            activation=activation(self.config.hidden_act),
            kernel_initializer=truncated_normal(self.config.initializer_range),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.norm = LayerNormalization(dtype=self.dtype_policy, name="norm")

    def build(self, hidden_shape=None, word_embeddings_shape=None):
        self.dense.build((None, None, self.config.hidden_size))
        self.norm.build((None, None, self.config.embedding_size))
        self.output_bias = self.add_weight(
            shape=(self.config.vocab_size,), initializer="zeros", name="output_bias"
        )

    def call(self, hidden, word_embeddings):
        hidden = self.norm(self.dense(hidden))
        flat = ops.reshape(hidden, (-1, self.config.embedding_size))
        table = ops.cast(word_embeddings, flat.dtype)
        logits = ops.matmul(flat, ops.transpose(table)) + self.output_bias
        return ops.reshape(logits, (*ops.shape(hidden)[:2], self.config.vocab_size))

    def compute_output_shape(self, hidden_shape, *_, **__):
        return (*hidden_shape[:-1], self.config.vocab_size)

    def get_config(self):
        return super().get_config() | {"config": self.config.to_dict()}


@keras.saving.register_keras_serializable("convbert_tf")
class DiscriminatorHead(keras.layers.Layer):
    """One logit a token: was it replaced? Call: [B, T, H] -> [B, T]. Weights: `dense`, `logit`."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else ModelConfig.from_dict(config)
        self.dense = Dense(
            self.config.hidden_size,
            activation=activation(self.config.hidden_act),
            kernel_initializer=truncated_normal(self.config.initializer_range),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.logit = Dense(1, dtype=self.dtype_policy, name="logit")

    def build(self, inputs_shape=None):
        self.dense.build((None, None, self.config.hidden_size))
        self.logit.build((None, None, self.config.hidden_size))

    def call(self, inputs):
        return ops.squeeze(self.logit(self.dense(inputs)), -1)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape[:-1]

    def get_config(self):
        return super().get_config() | {"config": self.config.to_dict()}


@keras.saving.register_keras_serializable("convbert_tf")
class ConvBertPretrainer(storing.Storable, keras.Model):
    """Generator and discriminator, trained together (section 5.1; Clark et al., 2020).

    The generator fills in masked tokens; the discriminator sees its samples in place and tells
    for every token whether it was replaced. They share the embeddings unless
    `untied_generator_embeddings`; with `untied_generator=False` they are one encoder of full size.
    With `uniform_generator` there is none, and samples are uniform over the vocabulary. With
    objective "mlm" there is no discriminator task: the full-size encoder itself predicts the masked
    tokens, as BERT.

    Args:
        config: ModelConfig of the discriminator; the generator's follows from it.
        pretraining: PretrainingConfig.

    Attributes:
        generator, discriminator: ConvBertEncoders (the same one with objective "mlm" or
            `untied_generator=False`; no generator with `uniform_generator`: None).
        generator_head, discriminator_head: MaskedLmHead or None; DiscriminatorHead or None.
    """

    def __init__(self, config, pretraining=None, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ModelConfig) else ModelConfig.from_dict(config)
        if isinstance(pretraining, dict):
            pretraining = PretrainingConfig(**pretraining)
        self.pretraining = pretraining or PretrainingConfig()
        self.discriminator = ConvBertEncoder(
            self.config, dtype=self.dtype_policy, name="discriminator"
        )
        self.generator = self._make_generator()
        self.generator_head = self.discriminator_head = None
        if self.pretraining.objective == "electra":
            self.discriminator_head = DiscriminatorHead(
                self.config, dtype=self.dtype_policy, name="discriminator_head"
            )
            self.discriminator_head.build()
        if self.generator is not None:
            self.generator_head = MaskedLmHead(
                self.generator.config, dtype=self.dtype_policy, name="generator_head"
            )
            self.generator_head.build()
        self.built = True

    def _make_generator(self):
        if self.pretraining.uniform_generator:
            return None
        if not self.pretraining.has_own_generator:
            return self.discriminator
        tied = not self.config.untied_generator_embeddings
        return ConvBertEncoder(
            self.config.generator(),
            embeddings=self.discriminator.embeddings if tied else None,
            dtype=self.dtype_policy,
            name="generator",
        )

    @property
    def encoder(self):
        """The encoder that fine-tuning takes: the discriminator."""
        return self.discriminator

    def mlm_logits(self, features, masked, training=False):
        """Logits float32 [B, M, V] of the generator at the masked positions."""
        inputs = features | {"input_ids": masked.masked_input_ids}
        hidden = self.generator(inputs, training=training)["sequence_output"]
        hidden = ops.take_along_axis(hidden, masked.masked_lm_positions[:, :, None], axis=1)
        table = self.generator.embeddings.word_embeddings
        return ops.cast(self.generator_head(hidden, table), "float32")

    def discriminator_logits(self, features, input_ids, training=False):
        """Logits float32 [B, T]: positive where a token looks replaced."""
        inputs = features | {"input_ids": input_ids}
        hidden = self.discriminator(inputs, training=training)["sequence_output"]
        return ops.cast(self.discriminator_head(hidden), "float32")

    def losses(self, features, masked, sample_uniforms=None, training=False):
        """Losses from inputs that are masked already.

        Args:
            features: `input_ids`, `input_mask`, `segment_ids` int [B, T].
            masked: masking.MaskedInputs.
            sample_uniforms: float32 [B, M] for sampling from the generator; None takes its most
                likely token, so that nothing is random (not with `uniform_generator`).
            training: whether dropout is on.

        Returns:
            A dict of sums over the batch and of their weights, which add up over replicas:
            `mlm_loss_sum`, `mlm_weight`, `disc_loss_sum`, `disc_weight`; and of `mlm_logits`
            [B, M, V], `sampled_ids` [B, M], `fake_input_ids`, `disc_labels`, `disc_logits` [B, T].
            Without a generator no `mlm_logits` and `mlm_loss_sum`.
        """
        outputs, logits = {"mlm_weight": ops.sum(masked.masked_lm_weights)}, None
        if self.generator is not None:
            logits = self.mlm_logits(features, masked, training)
            mlm_losses = cross_entropy(logits, masked.masked_lm_ids)
            mlm_loss_sum = ops.sum(mlm_losses * masked.masked_lm_weights)
            outputs |= {"mlm_logits": logits, "mlm_loss_sum": mlm_loss_sum}
        if self.discriminator_head is not None:
            sampled = self._sample(logits, masked, sample_uniforms)
            outputs |= self._discriminate(features, masked, sampled, training)
        return outputs

    def loss_terms(self, outputs):
        """Loss term -> (its coefficient, its sum over the batch), of the outputs of `losses`."""
        terms, config = {}, self.pretraining
        if self.generator is not None:
            terms["mlm"] = (config.gen_weight, outputs["mlm_loss_sum"])
        if self.discriminator_head is not None:
            terms["disc"] = (config.disc_weight, outputs["disc_loss_sum"])
        return terms

    def _sample(self, logits, masked, uniforms):
        if logits is None:
            return self._sample_uniformly(masked.masked_lm_ids, uniforms)
        logits = ops.stop_gradient(logits) / self.pretraining.temperature
        if self.pretraining.disallow_correct:
            correct = ops.arange(logits.shape[-1])[None, None] == masked.masked_lm_ids[:, :, None]
            logits = ops.where(correct, logits - 1000.0, logits)
        if uniforms is None:
            return ops.cast(ops.argmax(logits, axis=-1), "int32")
        return masking.sample(logits, uniforms)

    def _sample_uniformly(self, correct, uniforms):
        """Any entry of the vocabulary, [PAD] and [MASK] too, as the original."""
        if uniforms is None:
            raise ValueError("uniform_generator has no most likely token: give sample_uniforms.")
        choices = self.config.vocab_size - int(self.pretraining.disallow_correct)
        # float32 rounds u * n up to n for the largest u.
        sampled = ops.minimum(ops.cast(uniforms * float(choices), "int32"), choices - 1)
        if self.pretraining.disallow_correct:
            sampled += ops.cast(sampled >= correct, "int32")
        return sampled

    def _discriminate(self, features, masked, sampled, training):
        input_ids = features["input_ids"]
        fake_ids, written = masking.scatter_update(input_ids, sampled, masked.masked_lm_positions)
        labels = written * ops.cast(fake_ids != input_ids, "int32")
        logits = self.discriminator_logits(features, fake_ids, training)
        weights = ops.cast(features["input_mask"], "float32")
        token_losses = sigmoid_cross_entropy(logits, ops.cast(labels, "float32"))
        return {
            "sampled_ids": sampled,
            "fake_input_ids": fake_ids,
            "disc_labels": labels,
            "disc_logits": logits,
            "disc_loss_sum": ops.sum(token_losses * weights),
            "disc_weight": ops.sum(weights),
        }

    def total_loss(self, outputs, mlm_weight=None, disc_weight=None):
        """gen_weight * MLM loss + disc_weight * discriminator loss, each a weighted mean.

        Args:
            outputs: of `losses`.
            mlm_weight, disc_weight: the weights' sums over all replicas; this replica's if None.
        """
        terms, given = self.loss_terms(outputs), {"mlm": mlm_weight, "disc": disc_weight}
        weights = {
            name: outputs[f"{name}_weight"] if given[name] is None else given[name]
            for name in terms
        }
        return functions.total_loss(terms, weights)

    def call(self, inputs, training=False):
        """The discriminator's encoder outputs: what the model gives when it is used as one."""
        return self.discriminator(inputs, training=training)

    def get_config(self):
        return {
            "config": self.config.to_dict(),
            "pretraining": dataclasses.asdict(self.pretraining),
            "name": self.name,
        }

    @classmethod
    def from_preset(cls, source):
        """Returns the pretrainer of a stored one; `source` as for ConvBertEncoder.from_preset."""
        stored = formats.read(source)
        if stored.kind != "ConvBertPretrainer":
            raise UserError(
                f"{source} holds a {stored.kind}; pre-training needs the generator too."
            )
        return cls.from_stored(stored)


def counts(outputs, features, masked):
    """What the metrics of a batch need, as sums that add up over batches and replicas.

    Returns:
        dict of float32 scalars, and `disc_histogram` [2, 200]: how many original and how many
        replaced tokens have a probability in each of 200 bins, for the AUC.
    """
    weights = masked.masked_lm_weights
    sums = {"mlm_weight": outputs["mlm_weight"]}
    if "mlm_logits" in outputs:
        predictions = ops.cast(ops.argmax(outputs["mlm_logits"], axis=-1), "int32")
        sums["mlm_loss_sum"] = outputs["mlm_loss_sum"]
        sums["mlm_correct"] = _weighted_equal(predictions, masked.masked_lm_ids, weights)
    if "disc_logits" not in outputs:
        return sums
    real = ops.cast(features["input_mask"], "float32")
    labels = ops.cast(outputs["disc_labels"], "float32") * real
    guesses = ops.cast(outputs["disc_logits"] > 0, "float32") * real
    return sums | {
        "sampled_correct": _weighted_equal(outputs["sampled_ids"], masked.masked_lm_ids, weights),
        "disc_loss_sum": outputs["disc_loss_sum"],
        "disc_weight": outputs["disc_weight"],
        "disc_correct": ops.sum((1 - ops.abs(guesses - labels)) * real),
        "disc_hits": ops.sum(guesses * labels),
        "disc_guessed": ops.sum(guesses),
        "disc_replaced": ops.sum(labels),
        "disc_histogram": _histogram(outputs["disc_logits"], labels, real),
    }


def _weighted_equal(a, b, weights):
    return ops.sum(ops.cast(a == b, "float32") * weights)


def _histogram(logits, labels, weights, bins=200):
    bin_of = ops.cast(ops.sigmoid(logits) * (bins - 1e-3), "int32")
    members = ops.reshape(ops.one_hot(bin_of, bins), (-1, bins))  # [B*T, 200]
    by_label = ops.stack([(1 - labels) * weights, labels * weights], axis=0)  # [2, B, T]
    return ops.matmul(ops.reshape(by_label, (2, -1)), members)


def metrics(sums):
    """Metrics of accumulated `counts`, as floats; discriminator metrics on real tokens only."""
    sums = {name: ops.convert_to_numpy(value) for name, value in sums.items()}

    def ratio(numerator, denominator):
        return float(sums[numerator] / max(sums[denominator], 1e-6))

    def loss(name):
        """Of steps that were all left out there is none."""
        return ratio(f"{name}_loss_sum", f"{name}_weight") if sums[f"{name}_weight"] else math.nan

    results = {}
    if "mlm_loss_sum" in sums:
        results["masked_lm_loss"] = loss("mlm")
        results["masked_lm_accuracy"] = ratio("mlm_correct", "mlm_weight")
    if "disc_weight" not in sums:
        return results
    return results | {
        "sampled_masked_lm_accuracy": ratio("sampled_correct", "mlm_weight"),
        "disc_loss": loss("disc"),
        "disc_accuracy": ratio("disc_correct", "disc_weight"),
        "disc_precision": ratio("disc_hits", "disc_guessed"),
        "disc_recall": ratio("disc_hits", "disc_replaced"),
        "disc_auc": _auc(*sums["disc_histogram"]),
    }


def _auc(original, replaced):
    """Area under the ROC curve from the two histograms; ties in a bin count half."""
    below = original.cumsum() - original / 2
    total = original.sum() * replaced.sum()
    return float((replaced * below).sum() / total) if total else 0.5


class PretrainingTask:
    """Pre-training as trainer.Trainer takes it.

    Args:
        model: ConvBertPretrainer.
        special_tokens: masking.SpecialTokens.
        train_dataset: (start_step, input_context) -> dataset of per-replica batches with
            `input_ids`, `input_mask`, `segment_ids` [B, T] and `uniforms` [B, 3, T]; takes
            start_record too, see training/trainer.py.
        eval_dataset: (input_context) -> dataset of the same, or None.
        explain: turns an error of reading into a UserError where it can; see training.
        damaged: a container of the damaged records that were left out so far, which the metrics
            count; None where none may be.
    """

    def __init__(
        self,
        model,
        special_tokens,
        train_dataset,
        eval_dataset=None,
        explain=None,
        damaged=None,
    ):
        self.model, self.special_tokens = model, special_tokens
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.explain, self.damaged = explain, damaged

    def prepare(self, batch):
        """Masks the batch; the weights are the masked and the real tokens in it."""
        features = {name: batch[name] for name in ("input_ids", "input_mask", "segment_ids")}
        uniforms = batch["uniforms"]
        config = self.model.pretraining
        masked = masking.mask_inputs(features, uniforms[:, :2], self.special_tokens, config)
        inputs = features | masked._asdict()
        inputs["sample_uniforms"] = uniforms[:, 2, : masked.masked_lm_positions.shape[1]]
        weights = {"mlm": ops.sum(masked.masked_lm_weights)}
        if config.objective == "electra":
            weights["disc"] = ops.sum(ops.cast(features["input_mask"], "float32"))
        return inputs, weights

    def flops(self, num_tokens):
        """Model FLOPs of one example of `num_tokens` (with padding) in a training step."""
        from convbert_tf.modeling import flops  # only asked for where peak_flops is set

        return flops.pretraining_flops(self.model.config, self.model.pretraining, num_tokens)

    def losses(self, inputs, training):
        masked = masking.MaskedInputs(*(inputs[name] for name in masking.MaskedInputs._fields))
        outputs = self.model.losses(inputs, masked, inputs["sample_uniforms"], training)
        return self.model.loss_terms(outputs), counts(outputs, inputs, masked)

    @property
    def count_shapes(self):
        names = ["mlm_weight"]
        if self.model.generator is not None:
            names += ["mlm_loss_sum", "mlm_correct"]
        if self.model.discriminator_head is None:
            return dict.fromkeys(names, ())
        names += ["sampled_correct", "disc_loss_sum", "disc_weight", "disc_correct", "disc_hits"]
        names += ["disc_guessed", "disc_replaced"]
        return dict.fromkeys(names, ()) | {"disc_histogram": (2, 200)}

    def metrics(self, counts):
        results = metrics(counts)
        if self.damaged is not None:
            results["damaged_records"] = float(len(self.damaged))
        return results
