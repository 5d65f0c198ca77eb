"""SavedModels that take text and give answers, with the tokenizer and all else in the graph.

They load wherever `tensorflow` and `tensorflow_text` are: in TensorFlow Serving, or by
`tf.saved_model.load` in a process that has nothing of this package.
"""

import contextlib
import inspect
import os

import keras
import tensorflow as tf

from convbert_tf.config import check_length
from convbert_tf.console import UserError, reason
from convbert_tf.files import undone_on_error, write_json
from convbert_tf.modeling import presets
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.serving.inference import freeze, signature
from convbert_tf.serving.questions import QuestionAnswererServer
from convbert_tf.serving.tokens import TaggerServer
from convbert_tf.text.preprocessing import TextPreprocessor
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.text.unicode_rules import UNICODE_VERSION

# Beside a SavedModel: its inputs, its labels, the lengths that it was exported with.
SIGNATURE_FILE = "signature.json"


def export(preset_dir, output_dir, max_seq_length=None, precision="float32", **options):
    """Writes the SavedModel of a fine-tuned preset to `output_dir`.

    What is not given is as the model was trained and scored, if the preset tells it.

    Args:
        preset_dir: a preset of a TextClassifier, TokenClassifier or QuestionAnswerer with its
            vocabulary, or what else presets.load takes.
        output_dir: for TensorFlow Serving, a number below the model's name: models/sst2/1.
        max_seq_length: longest input in tokens; without a word on it the model's positions.
        precision: that the encoder computes with: "float32" or "bfloat16".
        **options: of ClassifierServer, TaggerServer or QuestionAnswererServer; None is as not
            given.

    Raises:
        UserError: the preset has no head to serve, `output_dir` is there already or cannot be
            written, or an option does not fit the model.
    """
    if os.path.exists(output_dir):
        raise UserError(f"{output_dir} is there already; serve a new version under a new number.")
    with _precision(precision):
        server = make_server(preset_dir, max_seq_length=max_seq_length, **options)
    partial = f"{output_dir.rstrip('/')}.partial-{os.getpid()}"
    try:
        with undone_on_error(partial):
            tf.saved_model.save(server, partial, signatures={"serving_default": server.serve})
            described = server.describe() | {
                "precision": precision,
                "unicode_version": UNICODE_VERSION,
            }
            write_json(os.path.join(partial, SIGNATURE_FILE), described)
            os.replace(partial, output_dir)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{output_dir} cannot be written ({reason(error)}).") from error


@contextlib.contextmanager
def _precision(precision):
    """Within it, encoders are made that compute in `precision`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def make_server(preset_dir, **given):
    """The ClassifierServer or QuestionAnswererServer of a fine-tuned preset.

    Args and errors as for `export`.
    """
    directory = presets.fetch(preset_dir)
    model = presets.load(directory)
    kind = next((server for head, server in _SERVERS.items() if isinstance(model, head)), None)
    if kind is None:
        raise UserError(
            f"{preset_dir} holds a {type(model).__name__}; only a fine-tuned classifier of texts "
            "or of words, or a question answerer can be served."
        )
    vocabulary = presets.vocabulary(directory)
    presets.check_vocabulary(vocabulary.path, model)
    options = {"max_seq_length": model.encoder.config.max_position_embeddings}
    options |= presets.serving(directory)
    if kind is TaggerServer and not options.get("pair"):  # as a TextPreprocessor tells it
        options.pop("pair", None)
    options |= {name: value for name, value in given.items() if value is not None}
    check_length(options["max_seq_length"], model.encoder.config)
    foreign = options.keys() - inspect.signature(kind.__init__).parameters.keys()
    if foreign:
        raise UserError(f"{', '.join(sorted(foreign))}: no option of a {type(model).__name__}.")
    return kind(model, WordPieceTokenizer(*vocabulary), **options)


class ClassifierServer(tf.Module):
    """Texts -> label and probabilities (or several labels, or the score of a regression).

    Signature: `text` string [B], or `text_a` and `text_b` -> `logits` float32 [B, C],
    `probabilities` [B, C], `label` string [B] (the class's name, or its number). Where a text may
    have several labels, `labels` string [B, L] instead of `label`: those with a probability above
    0.5, and "" up to the L of the text with most. A regression gives `score` [B] alone, from
    `min_score` to `max_score`.

    Args:
        model: TextClassifier.
        tokenizer: WordPieceTokenizer.
        max_seq_length: longest input in tokens.
        pair: whether the input is a pair of texts.
        min_score, max_score: the range of a regression's labels, which were trained on from 0 to
            1; without a max_score the output is left as it is.
    """

    def __init__(
        self, model, tokenizer, max_seq_length, pair=False, max_score=None, min_score=None
    ):
        super().__init__()
        self.max_score, self.min_score = max_score, min_score or 0.0
        self.multi_label = model.multi_label
        self._compute, self.tokenizer = freeze(model), tokenizer
        self.num_classes, self.labels = model.num_classes, model.labels
        self.max_seq_length, self.pair = max_seq_length, pair
        self._preprocess = TextPreprocessor(tokenizer, max_seq_length, pad=False)
        names = model.labels or [str(i) for i in range(model.num_classes)]
        self._labels = tf.constant(names)
        text = tf.TensorSpec([None], tf.string)
        if pair:
            self.serve = signature(self._serve_pair, text_a=text, text_b=text)
        else:
            self.serve = signature(self._serve, text=text)

    def _serve(self, text):
        return self._outputs(self._preprocess(text))

    def _serve_pair(self, text_a, text_b):
        return self._outputs(self._preprocess(text_a, text_b))

    def _outputs(self, inputs):
        logits = self._compute(inputs)
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
        }
        if self.multi_label:
            described["multi_label"] = True
        if self.num_classes == 1 and self.max_score is not None:
            described |= {"min_score": self.min_score, "max_score": self.max_score}
        return described


_SERVERS = {
    TextClassifier: ClassifierServer,
    TokenClassifier: TaggerServer,
    QuestionAnswerer: QuestionAnswererServer,
}
