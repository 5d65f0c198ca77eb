"""Discriminators on one text: that into which one reference generator has put its samples.

Each discriminator learns from its own generator, and a better generator makes a harder task; on one
text they are compared by what they find.
"""

import os

import tensorflow as tf
from keras import ops

from convbert_tf.data import input_pipeline, shards
from convbert_tf.modeling import masking, pretraining
from convbert_tf.modeling.functions import sigmoid_cross_entropy
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from convbert_tf.text.vocabulary import VOCAB_FILE, load_vocab


def score(reference, presets, records, batch_size, num_batches=None, seed=0):
    """Metrics of the discriminators of `presets` on records with the samples of `reference`.

    Args:
        reference: directory of the preset whose generator is asked.
        presets: directories of presets with the same vocabulary.
        records: folder of pre-training records, of which the first `num_batches` are taken; None
            for all.
        batch_size: inputs of a batch.
        seed: of masking and sampling.

    Returns:
        preset -> dict of `disc_auc`, `disc_loss` and `disc_accuracy`.
    """
    manifest = shards.load_manifest(records)
    vocab = load_vocab(os.path.join(records, VOCAB_FILE))
    special = masking.special_tokens(vocab)
    dataset = input_pipeline.evaluation_dataset(
        records,
        batch_size=batch_size,
        max_seq_length=manifest["max_seq_length"],
        seed=seed,
        num_batches=num_batches,
    )
    generator = ConvBertPretrainer.from_preset(reference)
    corrupted = [_corrupted(generator, batch, special) for batch in dataset]
    return {preset: _score(ConvBertPretrainer.from_preset(preset), corrupted) for preset in presets}


def _corrupted(generator, batch, special_tokens):
    """The batch with samples in it, and the outputs of the reference, as numbers."""
    features = {name: batch[name] for name in ("input_ids", "input_mask", "segment_ids")}
    uniforms = batch["uniforms"]
    masked = masking.mask_inputs(features, uniforms[:, :2], special_tokens, generator.pretraining)
    samples = uniforms[:, 2, : masked.masked_lm_positions.shape[1]]
    return features, masked, generator.losses(features, masked, samples)


def _score(model, corrupted):
    compute = tf.function(model.discriminator_logits, autograph=False)
    totals = {}
    for features, masked, outputs in corrupted:
        logits = compute(features, outputs["fake_input_ids"])
        labels = ops.cast(outputs["disc_labels"], "float32")
        weights = ops.cast(features["input_mask"], "float32")
        losses = sigmoid_cross_entropy(logits, labels)
        own = {"disc_logits": logits, "disc_loss_sum": ops.sum(losses * weights)}
        for name, value in pretraining.counts(outputs | own, features, masked).items():
            totals[name] = totals.get(name, 0.0) + value
    found = pretraining.metrics(totals)
    return {name: found[name] for name in ("disc_auc", "disc_loss", "disc_accuracy")}
