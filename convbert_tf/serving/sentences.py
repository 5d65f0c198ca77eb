"""Texts and pairs of texts to labels and scores, in the graph."""

import tensorflow as tf

from convbert_tf.serving.inference import Padding, in_parts, of_ids, shared, signature
from convbert_tf.text.preprocessing import TextPreprocessor


class ClassifierServer(tf.Module):
    """Texts -> label and probabilities (or several labels, or the score of a regression).

    Signatures:

    `serving_default`: `text` string [B], or `text_a` and `text_b` -> `logits` float32 [B, C],
    `probabilities` [B, C], `label` string [B] (the class's name, or its number). Where a text may
    have several labels, `labels` string [B, L] instead of `label`: those with a probability above
    0.5, and "" up to the L of the text with most. A regression gives `score` [B] alone, from
    `min_score` to `max_score`.

    `classify`: `inputs` string [B], serialised tf.Examples with the texts as features of these
    names -> `classes` string [B, C], all of them in the model's order, and `scores` float32
    [B, C], their probabilities. Of a regression `regress`: `inputs` -> `outputs` float32 [B].

    `predict_ids`: `input_ids`, `input_mask`, `segment_ids` int32 [B, T] -> as `serving_default`.

    Args:
        model: TextClassifier.
        tokenizer: WordPieceTokenizer.
        max_seq_length: longest input in tokens.
        pair: whether the input is a pair of texts.
        min_score, max_score: the range of a regression's labels, which were trained on from 0 to
            1; without a max_score the output is left as it is.
        padding: "longest" pads to the longest of the texts that are computed at once; "full"
            answers as if all were padded to `max_seq_length`, as the model is scored.
    """

    def __init__(
        self,
        model,
        tokenizer,
        max_seq_length,
        pair=False,
        max_score=None,
        min_score=None,
        padding="longest",
    ):
        super().__init__()
        self.max_score, self.min_score = max_score, min_score or 0.0
        self.multi_label = model.multi_label
        self.padding = Padding(padding, model, max_seq_length)
        self._compute, self.tokenizer = shared(model), tokenizer
        self.num_classes, self.labels = model.num_classes, model.labels
        self.max_seq_length, self.pair = max_seq_length, pair
        self._preprocess = TextPreprocessor(tokenizer, max_seq_length, pad=False)
        names = model.labels or [str(i) for i in range(model.num_classes)]
        self._labels = tf.constant(names)
        self._ids = of_ids(lambda inputs: self._outputs(self._logits(inputs)), model)
        text = tf.TensorSpec([None], tf.string)
        if pair:
            self.serve = signature(self._serve_pair, text_a=text, text_b=text)
        else:
            self.serve = signature(self._serve, text=text)

    def signatures(self):
        """Name -> tf.function of all that the model answers."""
        is_regression = self.num_classes == 1
        method, function = (
            ("regress", self._regress) if is_regression else ("classify", self._classify)
        )
        of_examples = signature(function, inputs=tf.TensorSpec([None], tf.string))
        return {"serving_default": self.serve, method: of_examples, "predict_ids": self._ids}

    def _serve(self, text):
        return self._answer([text])

    def _serve_pair(self, text_a, text_b):
        return self._answer([text_a, text_b])

    def _classify(self, inputs):
        outputs = self._answer(self._texts(inputs))
        scores = outputs["probabilities"]
        return {"classes": tf.broadcast_to(self._labels, tf.shape(scores)), "scores": scores}

    def _regress(self, inputs):
        return {"outputs": self._answer(self._texts(inputs))["score"]}

    def _texts(self, examples):
        """The texts in serialised tf.Examples [B]."""
        names = self.describe()["inputs"]
        features = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
        found = tf.io.parse_example(examples, features)
        return [found[name] for name in names]

    def _answer(self, texts):
        return self._outputs(self._logits(self._preprocess(*texts), self.padding))

    def _logits(self, inputs, pad=lambda inputs: inputs):
        def compute(part):
            return {"logits": self._compute(pad(part))}

        specs = {"logits": tf.TensorSpec([None, self.num_classes], tf.float32)}
        length = tf.shape(inputs["input_ids"])[1] + self.padding.spare
        return in_parts(compute, inputs, length, specs)["logits"]

    def _outputs(self, logits):
        if self.num_classes == 1:
            score = logits[:, 0]
            if self.max_score is not None:
                score = tf.clip_by_value(score, 0, 1) * (self.max_score - self.min_score)
                score += self.min_score
            return {"score": score}
        if self.multi_label:
            names = tf.broadcast_to(self._labels, tf.shape(logits))
            return {
                "logits": logits,
                "probabilities": tf.sigmoid(logits),
                "labels": tf.ragged.boolean_mask(names, logits > 0).to_tensor(default_value=""),
            }
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "label": tf.gather(self._labels, tf.argmax(logits, axis=-1)),
        }

    def describe(self):
        inputs = ["text_a", "text_b"] if self.pair else ["text"]
        described = {
            "inputs": inputs,
            "labels": self.labels,
            "max_seq_length": self.max_seq_length,
            "padding": self.padding.kind,
        }
        if self.multi_label:
            described["multi_label"] = True
        if self.num_classes == 1 and self.max_score is not None:
            described |= {"min_score": self.min_score, "max_score": self.max_score}
        return described
