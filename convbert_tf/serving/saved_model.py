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
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier
from convbert_tf.serving.inference import freeze
from convbert_tf.text.characters import UNICODE_VERSION
from convbert_tf.text.preprocessing import TextPreprocessor, head, pack
from convbert_tf.text.tokenization import WordPieceTokenizer

# Of a question answerer: outputs that are decoded, and how many windows are computed at once.
_SPANS = {
    "start_top_index": tf.int32,
    "end_top_index": tf.int32,
    "start_top_log_probs": tf.float32,
    "end_top_log_probs": tf.float32,
}
_WINDOWS_AT_ONCE = 16


def export(preset_dir, output_dir, max_seq_length=None, **options):
    """Writes the SavedModel of a fine-tuned preset to `output_dir`.

    What is not given is as the model was trained and scored, if the preset tells it.

    Args:
        preset_dir: a preset of a TextClassifier or QuestionAnswerer with its vocabulary, or what
            else presets.load takes.
        output_dir: for TensorFlow Serving, a number below the model's name: models/sst2/1.
        max_seq_length: longest input in tokens; without a word on it the model's positions.
        **options: of ClassifierServer or QuestionAnswererServer; None is as not given.

    Raises:
        UserError: the preset has no head to serve, `output_dir` is there already or cannot be
            written, or an option does not fit the model.
    """
    if os.path.exists(output_dir):
        raise UserError(f"{output_dir} is there already; serve a new version under a new number.")
    directory = presets.fetch(preset_dir)
    model = presets.load(directory)
    if not isinstance(model, TextClassifier | QuestionAnswerer):
        raise UserError(
            f"{preset_dir} holds a {type(model).__name__}; only a fine-tuned classifier of texts "
            "or question answerer can be served."
        )
    vocabulary = presets.vocabulary(directory)
    presets.check_vocabulary(vocabulary.path, model)
    given = {"max_seq_length": max_seq_length} | options
    options = {"max_seq_length": model.encoder.config.max_position_embeddings}
    options |= presets.serving(directory)
    options |= {name: value for name, value in given.items() if value is not None}
    check_length(options["max_seq_length"], model.encoder.config)
    kind = ClassifierServer if isinstance(model, TextClassifier) else QuestionAnswererServer
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
            self.serve = _signature(self._serve_pair, text_a=text, text_b=text)
        else:
            self.serve = _signature(self._serve, text=text)

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


def _signature(function, **specs):
    """A tf.function of `function` whose inputs go by these names."""
    named = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()]
    return tf.function(function, input_signature=named, autograph=False)


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
        self.serve = _signature(self._serve, question=text, context=text)

    def _serve(self, question, context):
        query = self.tokenizer.tokenize(question)
        query = head(query, tf.constant(self.max_query_length, tf.int64))
        pieces, starts, ends = self.tokenizer.tokenize_with_offsets(context)
        windows = self._windows(query.row_lengths(), pieces.row_lengths())
        outputs = self._in_parts(self._inputs(query, pieces, windows))
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

    def _in_parts(self, inputs):
        """The model's outputs for all windows, computed for some at a time to bound the memory."""
        dtypes = dict(_SPANS, answerable_logit=tf.float32) if self.answerable else _SPANS
        number = tf.shape(inputs["input_ids"])[0]
        parts = (number + _WINDOWS_AT_ONCE - 1) // _WINDOWS_AT_ONCE
        arrays = {
            name: tf.TensorArray(dtype, parts, infer_shape=False) for name, dtype in dtypes.items()
        }

        def compute(i, arrays):
            first = i * _WINDOWS_AT_ONCE
            outputs = self._compute(
                {k: x[first : first + _WINDOWS_AT_ONCE] for k, x in inputs.items()}
            )
            return i + 1, {name: array.write(i, outputs[name]) for name, array in arrays.items()}

        goes_on = lambda i, _: i < parts  # noqa: E731
        _, arrays = tf.while_loop(goes_on, compute, (0, arrays), parallel_iterations=1)
        return {name: array.concat() for name, array in arrays.items()}

    def _windows(self, query_lengths, num_pieces):
        """Each window's example, place in the example's list, first piece and length, int64 [W]."""
        room = self.max_seq_length - 3 - query_lengths
        stride = tf.minimum(room, self.doc_stride)
        more = tf.maximum(num_pieces - room, 0)
        counts = 1 + (more + stride - 1) // stride  # windows of each example
        example = tf.repeat(tf.range(tf.size(counts, tf.int64)), counts)
        number = tf.ragged.range(counts).values
        start = number * tf.gather(stride, example)
        length = tf.minimum(tf.gather(num_pieces, example) - start, tf.gather(room, example))
        return {"example": example, "number": number, "start": start, "length": length}

    def _inputs(self, query, pieces, windows):
        first = tf.gather(pieces.row_starts(), windows["example"]) + windows["start"]
        index = tf.ragged.range(first, first + windows["length"])
        window_pieces = tf.gather(pieces.values, index)
        return pack(self.tokenizer, tf.gather(query, windows["example"]), window_pieces)

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
