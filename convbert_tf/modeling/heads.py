"""Heads for fine-tuning: TextClassifier, TokenClassifier, QuestionAnswerer; each with its losses.

Axes as in layers.py, and J the beam of the question answerer. No TensorFlow.
"""

import keras
import numpy as np
from keras import ops

from convbert_tf.console import UserError, say
from convbert_tf.modeling import storing
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.functions import (
    activation,
    check_inputs,
    cross_entropy,
    gather_rows,
    gelu,
    holds_text,
    sigmoid_cross_entropy,
    top_k,
)
from convbert_tf.modeling.linear import Dense
from convbert_tf.weights import formats
from convbert_tf.weights.names import QA_HIDDEN_SIZE
from convbert_tf.weights.stored import check_labels, check_mask, check_multi_label

# What the original subtracts from the logits of positions that cannot be an answer.
NO_ANSWER = 1000.0


class _Head(storing.Storable, keras.Model):
    """A head on `self.encoder`: what the models below share.

    Heads compute in float32 whatever the precision policy, as they are small; so they are float32
    models around an encoder of the policy's type. `_SAME` names the options that must be equal for
    a head's weights to mean the same.
    """

    _SAME = ()

    @classmethod
    def from_preset(cls, source, **options):
        """Returns the model of a preset or Hugging Face directory, or of "hf://owner/name@revision".

        With `options`, or where there is another kind of model, as `start_from`: so fine-tuning
        starts from anything.
        """
        stored = formats.read(source)
        if stored.kind == cls.__name__:
            return cls.start_from(cls.from_stored(stored), source, **options)
        if "encoder" in stored.config:
            _say_dropped(source, f"it is a {stored.kind}")
        return cls(ConvBertEncoder.from_stored(stored), **options)

    @classmethod
    def start_from(cls, model, source="the model", **options):
        """A model of this class with `options` on the encoder of `model` (any of this package).

        Options that are not given are those of `model` where it is of this class. Its head goes
        along if its labels, sizes and kind are what `options` ask for; if not, the head is new. A
        line says what is kept or dropped; `source` names `model` there.
        """
        same_class = isinstance(model, cls)
        if same_class and not options:
            return model
        encoder = getattr(model, "encoder", model)
        old = model._options() if same_class else {}
        if options.get("num_classes") not in (None, old.get("num_classes")):
            options = {"labels": None} | options  # the names of other classes
        new = cls(encoder, **(old | options))
        changes = [f"{key} {old[key]!r} -> {value!r}" for key, value in new._meaning(old)]
        if same_class and not changes:
            for layer, other in zip(new._own_layers(), model._own_layers(), strict=True):
                layer.set_weights(other.get_weights())
            say(f"{source}: its head is kept")
        elif isinstance(model, _Head):
            _say_dropped(source, "; ".join(changes) or f"it is a {type(model).__name__}")
        return new

    def _options(self):
        """All options of the constructor but the encoder."""
        return {key: value for key, value in self.get_config().items() if key != "encoder"}

    def _meaning(self, old):
        """(option, value) of those in `_SAME` that differ from `old`, if there is any."""
        new = self._options()
        return [(key, new[key]) for key in self._SAME if old and new[key] != old[key]]

    def _own_layers(self):
        return [layer for layer in self.layers if layer is not self.encoder and layer.weights]

    def save_to_preset(self, directory, preprocessor=None, **options):
        """As `storing.Storable.save_to_preset`."""
        super().save_to_preset(directory, preprocessor, **options)
        if preprocessor is None and options.get("vocab_file") is None:
            say(
                f"{directory} has no vocabulary, so it cannot be exported to serve texts: give "
                "save_to_preset the preprocessor as well"
            )

    def __call__(self, inputs, *args, **kwargs):
        check_inputs(inputs, self.encoder.config)
        return super().__call__(inputs, *args, **kwargs)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`; labels may be a list."""
        if isinstance(kwargs.get("validation_data"), tuple | list):
            held_out, labels, *rest = kwargs["validation_data"]
            kwargs["validation_data"] = (*self._checked(held_out, labels), *rest)
        return super().fit(*self._checked(x, y), *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`; labels may be a list."""
        return super().evaluate(*self._checked(x, y), *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`."""
        return super().predict(self._checked(x)[0], *args, **kwargs)

    def _checked(self, x, y=None):
        """Inputs and labels; those that are arrays and cannot be right are refused."""
        if isinstance(x, dict) or holds_text(x):
            check_inputs(x, self.encoder.config)
        return x, y

    @classmethod
    def from_config(cls, config):
        encoder = ConvBertEncoder.from_config(config["encoder"]["config"])
        return cls(**(config | {"encoder": encoder}))

    def get_config(self):
        # As keras.saving.serialize_keras_object, which loads TensorFlow on every backend.
        encoder = {
            "module": ConvBertEncoder.__module__,
            "class_name": ConvBertEncoder.__name__,
            "config": self.encoder.get_config(),
            "registered_name": "convbert_tf>ConvBertEncoder",
        }
        return {"encoder": encoder, "name": self.name}

    def _dense(self, input_size, units, name, act=None):
        layer = Dense(units, activation=act, dtype="float32", name=name)
        layer.build((None, input_size))
        return layer


def _say_dropped(source, reason):
    say(f"{source}: its head is dropped ({reason}); the new one has random weights")


class _Classifier(_Head):
    """What the classifiers of texts and of tokens share."""

    _SAME = ("num_classes", "labels")

    def __init__(self, encoder, num_classes, dropout=0.1, labels=None, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.encoder, self.num_classes = encoder, int(num_classes)
        if isinstance(labels, str | dict | set | frozenset):
            raise UserError(f"labels must be a list of names by class id, got {labels!r:.60}.")
        self.labels = list(labels) if labels is not None and len(labels) else None
        check_labels(self.labels, self.num_classes)
        self.dropout = keras.layers.Dropout(dropout, dtype="float32")
        self.logits = self._dense(encoder.config.hidden_size, num_classes, "logits")
        self.built = True

    def get_config(self):
        return super().get_config() | {
            "num_classes": self.num_classes,
            "dropout": self.dropout.rate,
            "labels": self.labels,
        }

    def _checked(self, x, y=None):
        x, y = super()._checked(x, y)
        if y is None:
            return x, y
        if holds_text(y):
            raise UserError(
                f"the labels are texts; give the numbers of the classes, 0 to "
                f"{self.num_classes - 1}, in the order of `labels`."
            )
        y = np.asarray(y) if isinstance(y, list | tuple) else y
        is_whole = getattr(getattr(y, "dtype", None), "kind", "-") in "iu" and len(y)
        if is_whole and len(y.shape) == 1 and self.num_classes > 1:
            for label in (y.min(), y.max()):
                if not 0 <= label < self.num_classes:
                    raise UserError(
                        f"labels must be from 0 to {self.num_classes - 1}; there is a {label}."
                    )
        return x, y


@keras.saving.register_keras_serializable("convbert_tf")
class TextClassifier(_Classifier):
    """Classifies a text or a pair of texts: first token -> dropout -> Dense(num_classes).

    With num_classes=1 it is a regressor (STS-B).

    Args:
        encoder: ConvBertEncoder.
        num_classes: number of logits.
        dropout: rate on the pooled output while training.
        labels: names of the classes, or None.
        hidden_layer: True is Hugging Face's head, False the original's: dropout -> Dense(H) of the
            encoder's activation -> dropout -> Dense(num_classes).
        multi_label: whether a text has any number of the labels, those whose logit is above 0.

    Call: the encoder's inputs -> logits float32 [B, num_classes].

    Weights: `encoder`, `logits`; `hidden` [H, H] with `hidden_layer`.
    """

    _SAME = (*_Classifier._SAME, "hidden_layer", "multi_label")

    def __init__(
        self,
        encoder,
        num_classes,
        dropout=0.1,
        labels=None,
        hidden_layer=False,
        multi_label=False,
        **kwargs,
    ):
        super().__init__(encoder, num_classes, dropout, labels, **kwargs)
        check_multi_label(multi_label, self.num_classes)
        self.hidden_layer, self.multi_label = hidden_layer, multi_label
        if hidden_layer:
            size = encoder.config.hidden_size
            act = activation(encoder.config.hidden_act)
            self.hidden = self._dense(size, size, "hidden", act)

    def call(self, inputs, training=False):
        pooled = self.encoder(inputs, training=training)["pooled_output"]
        features = self.dropout(ops.cast(pooled, "float32"), training=training)
        if self.hidden_layer:
            features = self.dropout(self.hidden(features), training=training)
        return self.logits(features)

    def example_losses(self, logits, batch, class_weights=None):
        """Loss of each example [B]: cross-entropy of `label_ids`, or the squared error to them.

        With `multi_label` the sum of each label's, for `label_ids` [B, C] of 0 and 1. Otherwise
        `class_weights` has a factor for the examples of each class.
        """
        if self.multi_label:
            labels = ops.cast(batch["label_ids"], "float32")
            return ops.sum(sigmoid_cross_entropy(logits, labels), axis=-1)
        if self.num_classes == 1:
            return ops.square(logits[:, 0] - ops.cast(batch["label_ids"], "float32"))
        losses = cross_entropy(logits, batch["label_ids"])
        if class_weights is None:
            return losses
        weights = ops.convert_to_tensor(class_weights, "float32")
        return losses * ops.take(weights, batch["label_ids"])

    def get_config(self):
        names = ("hidden_layer", "multi_label")
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("convbert_tf")
class TokenClassifier(_Classifier):
    """Labels each token (named entities, parts of speech): dropout -> Dense(num_classes).

    Args: as TextClassifier, without a hidden layer.

    Call: the encoder's inputs -> logits float32 [B, T, num_classes].

    Weights: `encoder`, `logits`.
    """

    def call(self, inputs, training=False):
        hidden = self.encoder(inputs, training=training)["sequence_output"]
        return self.logits(self.dropout(ops.cast(hidden, "float32"), training=training))

    def example_losses(self, logits, batch):
        """Loss of each example [B]: the sum over its tokens with `label_ids` [B, T] >= 0."""
        labels = ops.convert_to_tensor(batch["label_ids"])
        losses = cross_entropy(logits, ops.maximum(labels, 0))
        return ops.sum(losses * ops.cast(labels >= 0, "float32"), axis=1)


@keras.saving.register_keras_serializable("convbert_tf")
class QuestionAnswerer(_Head):
    """Finds the span of a context that answers a question; the original's joint head.

    The start comes from a Dense(1). The end is scored given the start, from the hidden states of
    both: the labelled start in training, the J best starts in prediction. With `answerable`, a
    third head tells from the first token and the start-weighted hidden state whether the question
    has no answer. Only [CLS] (for "no answer") and tokens of the second segment can be chosen.

    With joint=False the end does not depend on the start: both come from one Dense(2), as in the
    original's `joint_prediction=False` and in Hugging Face's head. The original subtracts 1000 from
    the logits of tokens that cannot be chosen, here as in the joint head, in training as in
    prediction; Hugging Face's logits, and its loss, are of all tokens (mask_logits=False).

    Args:
        encoder: ConvBertEncoder.
        answerable: whether to learn that a question has no answer (SQuAD 2.0).
        beam_size: J.
        joint: whether the end is scored given the start.
        mask_logits: False, with joint=False: Hugging Face's logits. A beam has none but tokens that
            can be chosen in any case.

    Call:
        inputs: the encoder's inputs; when training also `start_positions` int [B].
        Returns a dict of float32 "start_logits" [B, T] and, if answerable, "answerable_logit" [B]
        (positive: no answer); when training "end_logits" [B, T]; else "start_top_log_probs",
        "start_top_index" [B, J] and "end_top_log_probs", "end_top_index" [B, J, J]: for each of
        the J best starts its J best ends; positions from T on, at -1e9, where T is below J.
        With joint=False "start_logits" and "end_logits" [B, T] are always there.

    Weights: `encoder`, `start`, `end_hidden` [2H, 512], `end`, or `logits` [H, 2] with joint=False;
    `answerable_hidden` [2H, 512], `answerable_logit`.
    """

    _SAME = ("answerable", "joint")

    def __init__(
        self, encoder, answerable=False, beam_size=20, joint=True, mask_logits=True, **kwargs
    ):
        super().__init__(dtype="float32", **kwargs)
        self.encoder, self.answerable = encoder, answerable
        self.beam_size, self.joint, self.mask_logits = beam_size, joint, mask_logits
        check_mask(joint, mask_logits)
        hidden_size = encoder.config.hidden_size
        if joint:
            self.start = self._dense(hidden_size, 1, "start")
            self.end_hidden = self._dense(2 * hidden_size, QA_HIDDEN_SIZE, "end_hidden")
            self.end = self._dense(QA_HIDDEN_SIZE, 1, "end")
        else:
            self.logits = self._dense(hidden_size, 2, "logits")
        if answerable:
            self.answerable_hidden = self._dense(
                2 * hidden_size, QA_HIDDEN_SIZE, "answerable_hidden", gelu
            )
            self.answerable_logit = self._dense(QA_HIDDEN_SIZE, 1, "answerable_logit")
        self.built = True

    def call(self, inputs, training=False):
        hidden = ops.cast(self.encoder(inputs, training=training)["sequence_output"], "float32")
        excluded = NO_ANSWER * (1 - answer_mask(inputs))  # [B, T]
        if self.joint:
            starts = inputs["start_positions"] if training else None
            outputs = self._joint_outputs(hidden, excluded, starts)
            start_logits = outputs["start_logits"]
        else:
            outputs, start_logits = self._independent_outputs(hidden, excluded, training)
        if self.answerable:
            weights = ops.softmax(start_logits, axis=-1)[:, :, None]
            expected_start = ops.sum(weights * hidden, axis=1)
            features = ops.concatenate([hidden[:, 0], expected_start], axis=-1)
            logits = self.answerable_logit(self.answerable_hidden(features))
            outputs["answerable_logit"] = logits[:, 0]
        return outputs

    def _joint_outputs(self, hidden, excluded, starts):
        """`starts` int [B]: of the ends to score; None for the beam's."""
        start_logits = self.start(hidden)[:, :, 0] - excluded
        if starts is None:
            return {"start_logits": start_logits} | self._beam(hidden, start_logits, excluded)
        of_starts = gather_rows(hidden, starts[:, None])  # [B, 1, H]
        end_logits = self._end_logits(hidden, of_starts)[:, 0] - excluded
        return {"start_logits": start_logits, "end_logits": end_logits}

    def _independent_outputs(self, hidden, excluded, training):
        """The outputs, and start logits with what is `excluded`, whether shown or not."""
        bare = self.logits(hidden)
        masked = bare - excluded[:, :, None]
        shown = masked if self.mask_logits else bare
        outputs = {"start_logits": shown[:, :, 0], "end_logits": shown[:, :, 1]}
        beam = {} if training else self._independent_beam(masked[:, :, 0], masked[:, :, 1])
        return outputs | beam, masked[:, :, 0]

    def _end_logits(self, hidden, starts):
        """hidden [B, T, H] and the hidden states of starts [B, J, H] -> logits [B, J, T].

        The dense layer on [start; end] is applied to each half once and added, so that the pairs
        are never concatenated.
        """
        size = hidden.shape[-1]
        kernel = self.end_hidden.kernel
        of_starts = ops.matmul(starts, kernel[:size]) + self.end_hidden.bias  # [B, J, 512]
        of_ends = ops.matmul(hidden, kernel[size:])  # [B, T, 512]
        pairs = gelu(of_starts[:, :, None] + of_ends[:, None])  # [B, J, T, 512]
        return self.end(pairs)[..., 0]

    def _beam(self, hidden, start_logits, excluded):
        start_log_probs, start_index = top_k(ops.log_softmax(start_logits), self.beam_size)
        starts = ops.minimum(start_index, ops.shape(hidden)[1] - 1)
        end_logits = self._end_logits(hidden, gather_rows(hidden, starts)) - excluded[:, None]
        end_log_probs, end_index = top_k(ops.log_softmax(end_logits), self.beam_size)
        return _beams(start_log_probs, start_index, end_log_probs, end_index)

    def _independent_beam(self, start_logits, end_logits):
        """The J best ends are the same for each start."""
        starts, ends = (
            top_k(ops.log_softmax(x), self.beam_size) for x in (start_logits, end_logits)
        )
        ends = [ops.repeat(x[:, None], self.beam_size, axis=1) for x in ends]  # [B, J, J]
        return _beams(*starts, *ends)

    def example_losses(self, outputs, batch, answerable_weight=0.5):
        """Loss of each example [B], from outputs in training mode."""
        losses = (
            cross_entropy(outputs["start_logits"], batch["start_positions"])
            + cross_entropy(outputs["end_logits"], batch["end_positions"])
        ) / 2
        if self.answerable:
            impossible = ops.cast(batch["is_impossible"], "float32")
            losses += answerable_weight * sigmoid_cross_entropy(
                outputs["answerable_logit"], impossible
            )
        return losses

    def get_config(self):
        return super().get_config() | {
            "answerable": self.answerable,
            "beam_size": self.beam_size,
            "joint": self.joint,
            "mask_logits": self.mask_logits,
        }


def answer_mask(inputs):
    """float32 [B, T]: 1 for what a QuestionAnswerer can choose of its inputs, else 0.

    Those are the tokens of the context (the closing [SEP] too, as in the original) and [CLS].
    """
    mask = ops.cast(inputs["input_mask"] * inputs["segment_ids"], "float32")
    first = ops.cast(ops.arange(ops.shape(mask)[1]) == 0, "float32")
    return mask + first[None]


def _beams(*values):
    names = ("start_top_log_probs", "start_top_index", "end_top_log_probs", "end_top_index")
    return dict(zip(names, values, strict=True))
