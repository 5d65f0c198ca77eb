"""Questions about contexts of any length to answers, in the graph."""

import math

import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.serving import windows as windowing
from convbert_tf.serving.inference import freeze, signature
from convbert_tf.text.preprocessing import head, pack

_IMPOSSIBLE = -1e9  # score of what is no answer


class QuestionAnswererServer(tf.Module):
    """A question and a context of any length -> the answer, cut from the context.

    Long contexts are read in overlapping windows, and the best span of all of them is chosen, as
    squad.make_windows and squad_decoding.decode do it. Of a window only its best span is kept, so
    that time and memory grow with the length of the context and no faster.

    Signature: `question`, `context` string [B] ->

        answer      string [B]
        start       int64 [B], where it begins in the context: the byte, of UTF-8
        end         int64 [B], the byte behind its last
        start_char  int64 [B], the same in characters (code points), as Python counts them in a str
        end_char    int64 [B]
        score       float32 [B], its log probability

    and with an answerable head

        null_odds               float32 [B], log-odds of "no answer", the lowest of the windows
        no_answer_probability   float32 [B], their sigmoid

    Args:
        model: QuestionAnswerer.
        tokenizer: WordPieceTokenizer.
        max_seq_length: of a window.
        doc_stride, max_query_length, max_answer_length: as in config.TaskConfig.
        null_threshold: `null_odds` above which `answer` is ""; None or infinity never gives "".
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
        if null_threshold is not None and math.isnan(null_threshold):
            raise UserError("null_threshold must be a number.")
        self._compute, self.tokenizer = freeze(model), tokenizer
        self.answerable, self.max_seq_length = model.answerable, max_seq_length
        self.doc_stride, self.max_query_length = doc_stride, max_query_length
        self.max_answer_length = max_answer_length
        self.null_threshold = None if null_threshold == math.inf else null_threshold
        text = tf.TensorSpec([None], tf.string)
        self.serve = signature(self._serve, question=text, context=text)

    def _serve(self, question, context):
        query = self.tokenizer.tokenize(question)
        query = head(query, tf.constant(self.max_query_length, tf.int64))
        pieces, starts, ends = self.tokenizer.tokenize_with_offsets(context)
        found = self._best_spans(query, pieces)
        exists = found["score"] > _IMPOSSIBLE

        def offset(offsets, piece):
            flat = tf.concat([offsets.values, [0]], axis=0)
            index = tf.minimum(offsets.row_starts() + piece, tf.size(flat, tf.int64) - 1)
            return tf.where(exists, tf.gather(flat, index), 0)

        start, end = offset(starts, found["start"]), offset(ends, found["end"])
        results = {"score": found["score"]}
        if self.answerable:
            results["null_odds"] = found["null_odds"]
            results["no_answer_probability"] = tf.sigmoid(found["null_odds"])
            if self.null_threshold is not None:
                end = tf.where(found["null_odds"] > self.null_threshold, start, end)
        answer = tf.strings.substr(context, start, end - start)
        before = tf.strings.substr(context, tf.zeros_like(start), start)
        start_char, length = (
            tf.cast(tf.strings.length(text, unit="UTF8_CHAR"), tf.int64)
            for text in (before, answer)
        )
        places = {"start_char": start_char, "end_char": start_char + length}
        return results | {"answer": answer, "start": start, "end": end} | places

    def _best_spans(self, query, pieces):
        """`score`, first and last piece (`start`, `end`) of each example's best span, all [B].

        Also `null_odds` of an answerable model.
        """
        num_pieces, query_length = pieces.row_lengths(), query.row_lengths()
        room = self.max_seq_length - 3 - query_length
        windows = windowing.cut(num_pieces, room, self.doc_stride)
        example = windows["example"]
        inputs = pack(self.tokenizer, tf.gather(query, example), windowing.gather(pieces, windows))
        of_example = {"num_pieces": num_pieces, "room": room, "offset": query_length + 2}
        windows |= {name: tf.gather(values, example) for name, values in of_example.items()}
        dtypes = {"score": tf.float32, "start": tf.int64, "end": tf.int64}
        dtypes |= {"null_odds": tf.float32} if self.answerable else {}

        def best_of(part):
            outputs = self._compute({name: part[name] for name in inputs})
            best = self._best_of_windows(outputs, part)
            return best | ({"null_odds": outputs["answerable_logit"]} if self.answerable else {})

        found = windowing.in_parts(best_of, inputs | windows, dtypes)
        chosen = _first_best(found["score"], example)  # a window of each example
        best = {name: tf.gather(found[name], chosen) for name in ("score", "start", "end")}
        if self.answerable:
            best["null_odds"] = tf.math.segment_min(found["null_odds"], example)
        return best

    def _best_of_windows(self, outputs, windows):
        """The best span of each window: its score, and its pieces in the context, all [W].

        What is no answer has a score of _IMPOSSIBLE, and its pieces are the window's first.
        """
        offset = windows["offset"]  # of pieces in a window's input
        start = tf.cast(outputs["start_top_index"], tf.int64) - offset[:, None]  # [W, J]
        end = tf.cast(outputs["end_top_index"], tf.int64) - offset[:, None, None]  # [W, J, J]
        length = windows["length"][:, None]
        best_window = windowing.most_context(
            start + windows["start"][:, None],
            windows["num_pieces"][:, None],
            windows["room"][:, None],
            tf.constant(self.doc_stride, tf.int64),
        )
        startable = (start >= 0) & (start < length) & (best_window == windows["number"][:, None])
        spans = end - start[:, :, None] + 1
        allowed = startable[:, :, None] & (end < length[:, :, None])
        allowed &= (spans >= 1) & (spans <= self.max_answer_length)
        scores = outputs["start_top_log_probs"][:, :, None] + outputs["end_top_log_probs"]
        scores = tf.where(allowed, scores, _IMPOSSIBLE)

        beam = tf.shape(end)[1]
        scores, end = (tf.reshape(x, [-1, beam * beam]) for x in (scores, end))
        best = tf.argmax(scores, axis=1)
        score = tf.gather(scores, best, batch_dims=1)
        first = tf.gather(start, best // tf.cast(beam, tf.int64), batch_dims=1)
        last = tf.gather(end, best, batch_dims=1)
        first, last = (
            windows["start"] + tf.where(score > _IMPOSSIBLE, piece, 0) for piece in (first, last)
        )
        return {"score": score, "start": first, "end": last}

    def describe(self):
        described = {
            "inputs": ["question", "context"],
            "answerable": self.answerable,
            "max_seq_length": self.max_seq_length,
            "doc_stride": self.doc_stride,
        }
        return described | ({"null_threshold": self.null_threshold} if self.answerable else {})


def _first_best(values, segment):
    """Index of the largest of `values` [W] in each segment; the first of equal ones."""
    largest = tf.gather(tf.math.segment_max(values, segment), segment)
    index = tf.range(tf.size(values))
    return tf.math.segment_min(tf.where(values == largest, index, tf.size(values)), segment)
