"""A model's outputs for all records of a set."""

import numpy as np
import tensorflow as tf

from convbert_tf.data import input_pipeline
from convbert_tf.training import sharing


class Predictor:
    """Computes outputs of a model for all records of a set; traced at its first use.

    Args:
        model: TextClassifier, TokenClassifier or QuestionAnswerer, made in the scope of `strategy`.
        strategy: tf.distribute.Strategy.
    """

    def __init__(self, model, strategy):
        self.model, self.strategy = model, strategy
        self._step = None

    def __call__(self, serialized, schema, batch_size, max_seq_length, watch=None):
        """Outputs for every record, in the records' order.

        Args:
            serialized: list of N records whose `example_id`s are 0 .. N-1.
            schema: of the records.
            batch_size: global.
            max_seq_length: at least the longest record.
            watch: is called after each batch with the share of the records that are done.

        Returns:
            name -> array [N, ...]; a classifier's logits as "logits", [N, T, C] of tokens with 0
            behind the end of a record.
        """
        dataset = self.strategy.distribute_datasets_from_function(
            lambda context: input_pipeline.prediction_dataset(
                serialized,
                schema,
                batch_size=batch_size,
                max_seq_length=max_seq_length,
                input_context=context,
            )
        )
        if self._step is None:
            # With its signature known there is one trace for all lengths.
            signature = [dataset.element_spec]
            self._step = tf.function(self._outputs, input_signature=signature, autograph=False)
        batches, total = [], -(-len(serialized) // batch_size)
        for batch in dataset:
            batches.append(tf.nest.map_structure(np.asarray, self._step(batch)))
            if watch:
                watch(min(1.0, len(batches) / total))
        outputs = {name: _joined([batch[name] for batch in batches]) for name in batches[0]}
        real = outputs.pop("example_weights") > 0
        order = np.argsort(outputs.pop("example_id")[real], kind="stable")
        return {name: values[real][order] for name, values in outputs.items()}

    def _outputs(self, batch):
        outputs = self.strategy.run(_decision, args=(self.model, batch))
        return tf.nest.map_structure(lambda x: self.strategy.gather(x, axis=0), outputs)


def _joined(parts):
    """Arrays [b, ...] behind one another; a second axis of tokens is filled up with zeros."""
    if parts[0].ndim == 1 or len({part.shape[1] for part in parts}) == 1:
        return np.concatenate(parts)
    longest = max(part.shape[1] for part in parts)
    joined = np.zeros([sum(map(len, parts)), longest, *parts[0].shape[2:]], parts[0].dtype)
    row = 0
    for part in parts:
        joined[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return joined


def _decision(model, batch):
    with sharing.shared_blocks(model):
        outputs = model(batch, training=False)
    if not isinstance(outputs, dict):
        outputs = {"logits": outputs}
    of_tokens = ("start_logits", "end_logits")  # as long as the batch's longest input
    kept = {name: value for name, value in outputs.items() if name not in of_tokens}
    return kept | {name: batch[name] for name in ("example_id", "example_weights")}
