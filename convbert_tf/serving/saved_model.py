"""SavedModels that take text and give answers, with the tokenizer and all else in the graph.

They load wherever `tensorflow` and `tensorflow_text` are: in TensorFlow Serving, or by
`tf.saved_model.load` in a process that has nothing of this package.
"""

import inspect
import os

import tensorflow as tf

from convbert_tf.config import check_length
from convbert_tf.console import UserError, reason
from convbert_tf.files import undone_on_error, write_json
from convbert_tf.modeling import presets
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.serving import windows as windowing
from convbert_tf.serving.inference import freeze, signature
from convbert_tf.serving.tokens import TaggerServer
from convbert_tf.text.characters import UNICODE_VERSION
from convbert_tf.text.preprocessing import TextPreprocessor, head, pack
from convbert_tf.text.tokenization import WordPieceTokenizer

# Of a question answerer: outputs that are decoded.
_SPANS = {
    "start_top_index": tf.int32,
    "end_top_index": tf.int32,
    "start_top_log_probs": tf.float32,
    "end_top_log_probs": tf.float32,
}


def export(preset_dir, output_dir, max_seq_length=None, **options):
    """Writes the SavedModel of a fine-tuned preset to `output_dir`.

    What is not given is as the model was trained and scored, if the preset tells it.

    Args:
        preset_dir: a preset of a TextClassifier, TokenClassifier or QuestionAnswerer with its
            vocabulary, or what else presets.load takes.
        output_dir: for TensorFlow Serving, a number below the model's name: models/sst2/1.
        max_seq_length: longest input in tokens; without a word on it the model's positions.
        **options: of ClassifierServer, TaggerServer or QuestionAnswererServer; None is as not
            given.

    Raises:
        UserError: the preset has no head to serve, `output_dir` is there already or cannot be
            written, or an option does not fit the model.
    """
    if os.path.exists(output_dir):
        raise UserError(f"{output_dir} is there already; serve a new version under a new number.")
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
    given = {"max_seq_length": max_seq_length} | options
    options = {"max_seq_length": model.encoder.config.max_position_embeddings}
    options |= presets.serving(directory)
    if kind is TaggerServer and not options.get("pair"):  # as a TextPreprocessor tells it
        options.pop("pair", None)
    options |= {name: value for name, value in given.items() if value is not None}
    check_length(options["max_seq_length"], model.encoder.config)
    foreign = options.keys() - inspect.signature(kind.__init__).parameters.keys()
    if foreign:
        raise UserError(f"{', '.join(sorted(foreign))}: no option of a {type(model).__name__}.")
    server = kind(model, WordPieceTokenizer(*vocabulary), **options)
    partial = f"{output_dir.rstrip('/')}.partial-{os.getpid()}"
    try:
        with undone_on_error(partial):
            tf.saved_model.save(server, partial, signatures={"serving_default": server.serve})
            described = server.describe() | {"unicode_version": UNICODE_VERSION}
            write_json(os.path.join(partial, "signature.json"), described)
            os.replace(partial, output_dir)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{output_dir} cannot be written ({reason(error)}).") from error


class ClassifierServer(tf.Module):
    """Texts -> label and probabilities (or the score of a regression).

    Signature: `text` string [B], or `text_a` and `text_b` -> `logits` float32 [B, C],
    `probabilities` [B, C], `label` string [B] (the class's name, or its number); a regression
    gives `score` [B] alone, from 0 to `max_score`.

    Args:
        model: TextClassifier.
        tokenizer: WordPieceTokenizer.
        max_seq_length: longest input in tokens.
        pair: whether the input is a pair of texts.
        max_score: of a regression whose labels were divided by it; None leaves the output as it is.
    """

    def __init__(self, model, tokenizer, max_seq_length, pair=False, max_score=None):
        super().__init__()
        self.max_score = max_score
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
                score = tf.clip_by_value(score, 0, 1) * self.max_score
            return {"score": score}
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "label": tf.gather(self._labels, tf.argmax(logits, axis=-1)),
        }

    def describe(self):
        inputs = ["text_a", "text_b"] if self.pair else ["text"]
        return {
            "inputs": inputs,
            "labels": self.labels,
            "max_seq_length": self.max_seq_length,
        }


class QuestionAnswererServer(tf.Module):
    """A question and a context of any length -> the answer, cut from the context.

    Long contexts are read in overlapping windows, and the best span of all of them is chosen, as
    squad.make_windows and squad_decoding.decode do it.

    Signature: `question`, `context` string [B] -> `answer` string [B]; `start`, `end` int64 [B],
    the answer's bytes in the context; `score` float32 [B], its log probability; with an
    answerable head also `no_answer_probability` [B].

    Args:
        model: QuestionAnswerer.
        tokenizer: WordPieceTokenizer.
        max_seq_length: of a window.
        doc_stride, max_query_length, max_answer_length: as in config.TaskConfig.
        null_threshold: log-odds of "no answer" above which `answer` is ""; None never gives "".
    """

    def __init__(
        self,
        model,
        tokenizer,
        max_seq_length,
        doc_stride=128,
        max_query_length=64,
        max_answer_length=30,
        null_threshold=None,
    ):
        super().__init__()
        if max_seq_length < max_query_length + 4 or doc_stride < 1:
            raise UserError(
                f"max_seq_length {max_seq_length} must exceed max_query_length {max_query_length} "
                f"by at least 4, and doc_stride {doc_stride} be at least 1."
            )
        if null_threshold is not None and not model.answerable:
            raise UserError("null_threshold: this model always answers (SQuAD 1.1).")
        self._compute, self.tokenizer = freeze(model), tokenizer
        self.answerable, self.max_seq_length = model.answerable, max_seq_length
        self.doc_stride, self.max_query_length = doc_stride, max_query_length
        self.max_answer_length, self.null_threshold = max_answer_length, null_threshold
        text = tf.TensorSpec([None], tf.string)
        self.serve = signature(self._serve, question=text, context=text)

    def _serve(self, question, context):
        query = self.tokenizer.tokenize(question)
        query = head(query, tf.constant(self.max_query_length, tf.int64))
        pieces, starts, ends = self.tokenizer.tokenize_with_offsets(context)
        room = self.max_seq_length - 3 - query.row_lengths()
        windows = windowing.cut(pieces.row_lengths(), room, self.doc_stride)
        queries = tf.gather(query, windows["example"])
        inputs = pack(self.tokenizer, queries, windowing.gather(pieces, windows))
        dtypes = dict(_SPANS, answerable_logit=tf.float32) if self.answerable else _SPANS
        outputs = windowing.in_parts(self._compute, inputs, dtypes)
        best, start, end = self._best_spans(outputs, windows, query.row_lengths())
        found = best > -1e8

        def offset(offsets, piece):
            bounded = tf.where(found, piece, 0)
            flat = tf.concat([offsets.values, [0]], axis=0)
            index = tf.minimum(offsets.row_starts() + bounded, tf.size(flat, tf.int64) - 1)
            return tf.where(found, tf.gather(flat, index), 0)

        first, last = offset(starts, start), offset(ends, end)
        results = {"start": first, "end": last, "score": best}
        if self.answerable:
            null_odds = tf.math.segment_min(outputs["answerable_logit"], windows["example"])
            results["no_answer_probability"] = tf.sigmoid(null_odds)
            if self.null_threshold is not None:
                last = tf.where(null_odds > self.null_threshold, first, last)
                results["end"] = last
        results["answer"] = tf.strings.substr(context, first, last - first)
        return results

    def _best_spans(self, outputs, windows, query_lengths):
        """Score, first piece and last piece of each example's best span, each [B]."""
        offset = tf.gather(query_lengths, windows["example"]) + 2  # of pieces in a window's input
        start = tf.cast(outputs["start_top_index"], tf.int64) - offset[:, None]  # [W, J]
        end = tf.cast(outputs["end_top_index"], tf.int64) - offset[:, None, None]  # [W, J, J]
        length = windows["length"][:, None]
        startable = (start >= 0) & (start < length)
        startable &= self._has_most_context(start, windows)
        spans = end - start[:, :, None] + 1
        allowed = startable[:, :, None] & (end < length[:, :, None])
        allowed &= (spans >= 1) & (spans <= self.max_answer_length)
        scores = outputs["start_top_log_probs"][:, :, None] + outputs["end_top_log_probs"]
        scores = tf.where(allowed, scores, -1e9)

        beam = tf.shape(end)[1]
        flat = tf.reshape(scores, [-1, beam * beam])
        best = tf.argmax(flat, axis=1)
        of_window = tf.gather(flat, best, batch_dims=1)
        chosen = _first_best(of_window, windows["example"])  # a window of each example
        start = tf.gather(start + windows["start"][:, None], chosen)
        end = tf.gather(tf.reshape(end, [-1, beam * beam]) + windows["start"][:, None], chosen)
        best = tf.gather(best, chosen)
        return (
            tf.gather(of_window, chosen),
            tf.gather(start, best // tf.cast(beam, tf.int64), batch_dims=1),
            tf.gather(end, best, batch_dims=1),
        )

    def _has_most_context(self, piece, windows):
        """Whether no other window of the example shows more around the piece: [W, J] -> bool."""
        ragged = [
            tf.RaggedTensor.from_value_rowids(windows[name], windows["example"])
            for name in ("start", "length")
        ]
        starts, lengths = (tf.gather(x, windows["example"]).to_tensor() for x in ragged)  # [W, S]
        position = (piece + windows["start"][:, None])[:, :, None]  # in the context, [W, J, 1]
        left = position - starts[:, None]
        right = starts[:, None] + lengths[:, None] - 1 - position  # [W, J, S]
        context = tf.cast(tf.minimum(left, right), tf.float64)
        context += 0.01 * tf.cast(lengths, tf.float64)[:, None]
        context = tf.where((left >= 0) & (right >= 0), context, -1.0)
        return tf.argmax(context, axis=2) == windows["number"][:, None]

    def describe(self):
        return {
            "inputs": ["question", "context"],
            "answerable": self.answerable,
            "max_seq_length": self.max_seq_length,
            "doc_stride": self.doc_stride,
        }


def _first_best(values, segment):
    """Index of the largest of `values` [W] in each segment; the first of equal ones."""
    largest = tf.gather(tf.math.segment_max(values, segment), segment)
    index = tf.range(tf.size(values))
    return tf.math.segment_min(tf.where(values == largest, index, tf.size(values)), segment)


_SERVERS = {
    TextClassifier: ClassifierServer,
    TokenClassifier: TaggerServer,
    QuestionAnswerer: QuestionAnswererServer,
}
