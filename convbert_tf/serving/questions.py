"""Questions about contexts of any length to answers, in the graph."""

import dataclasses
import math

import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.serving.inference import (
    Padding,
    check_counts,
    in_parts,
    of_ids,
    shared,
    signature,
)
from convbert_tf.text import windows as windowing
from convbert_tf.text.preprocessing import head, pack
from convbert_tf.text.strings import cut, num_characters, readable

_IMPOSSIBLE = -1e9  # score of what is no answer
_SPAN = {"score": tf.float32, "start": tf.int64, "end": tf.int64}
# So many times the length of an n-best list are candidates for it, since some give the same text.
_CANDIDATES = 5


class QuestionAnswererServer(tf.Module):
    """A question and a context of any length -> the answer, cut from the context.

    Long contexts are read in overlapping windows, and the best span of all of them is chosen, as
    squad.make_windows and squad_decoding.decode do it. Of a window only its best span is kept, so
    that time and memory grow with the length of the context and no faster.

    Signatures:

    `serving_default`: `question`, `context` string [B] ->

        answer          string [B]; what is no UTF-8 in it is U+FFFD
        answer_bytes    string [B], as it stands in the context
        start           int64 [B], where it begins in the context: the byte, of UTF-8
        end             int64 [B], the byte behind its last
        start_char      int64 [B], the same in characters (code points), as Python counts them in
        end_char        int64 [B]     context.decode(errors="replace")
        score           float32 [B], its log probability

    and with an answerable head

        null_odds               float32 [B], log-odds of "no answer", the lowest of the windows
        no_answer_probability   float32 [B], their sigmoid

    `n_best`: `question`, `context` -> the N best answers, best first, no text twice, as
    squad_decoding.decode lists them: `answers`, `answers_bytes`, `starts`, `ends`, `start_chars`,
    `end_chars`, `scores` as above, each [B, N], and `probabilities` float32 [B, N], the softmax of
    the scores; `num_answers` int64 [B] is how many there are, and what stands behind them is ""
    and 0. The threshold does not apply.

    `predict_ids`: `input_ids`, `input_mask`, `segment_ids` int32 [B, T], a window a row: [CLS]
    question [SEP] context [SEP] -> `start_token`, `end_token` int64 [B], the answer's first token
    and the one behind its last (0 and 0 without an answer); `score`, `null_odds`,
    `no_answer_probability`.

    Args:
        model: QuestionAnswerer.
        tokenizer: WordPieceTokenizer.
        max_seq_length: of a window.
        doc_stride, max_query_length, max_answer_length: as in config.TaskConfig.
        null_threshold: `null_odds` above which `answer` is ""; None or infinity never gives "".
        n_best_size: N.
        padding: "longest" pads to the longest of the windows that are computed at once; "full"
            answers as if all were padded to `max_seq_length`, as the model is scored.
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
        n_best_size=20,
        padding="longest",
    ):
        super().__init__()
        counts = {"max_query_length": max_query_length, "max_answer_length": max_answer_length}
        check_counts(doc_stride=doc_stride, n_best_size=n_best_size, **counts)
        if max_seq_length < max_query_length + 4:
            raise UserError(
                f"max_seq_length {max_seq_length} must exceed max_query_length {max_query_length} "
                "by at least 4."
            )
        if null_threshold is not None and not model.answerable:
            raise UserError("null_threshold: this model always answers (SQuAD 1.1).")
        if null_threshold is not None and not null_threshold > -math.inf:
            raise UserError(f"null_threshold must be a number, or inf; got {null_threshold}.")
        self._compute, self.tokenizer = shared(model), tokenizer
        self.answerable, self.max_seq_length = model.answerable, max_seq_length
        self.doc_stride, self.max_query_length = doc_stride, max_query_length
        self.max_answer_length, self.n_best_size = max_answer_length, n_best_size
        self.null_threshold = None if null_threshold == math.inf else null_threshold
        self.padding = Padding(padding, model, max_seq_length)
        self._num_spans = model.beam_size**2  # of a window
        text = tf.TensorSpec([None], tf.string)
        self.serve = signature(self._serve, question=text, context=text)
        self._ids = of_ids(self._serve_ids, model)

    def signatures(self):
        """Name -> tf.function of all that the model answers."""
        text = tf.TensorSpec([None], tf.string)
        n_best = signature(self._serve_n_best, question=text, context=text)
        return {"serving_default": self.serve, "n_best": n_best, "predict_ids": self._ids}

    def _serve(self, question, context):
        read = self._read(question, context)
        found = self._search(read, _best_of_each, [None])
        example = read.windows["example"]
        chosen = _first_best(found["score"], example)  # a window of each example
        score, first, last = (tf.gather(found[name], chosen) for name in _SPAN)
        start, end = read.places(tf.range(tf.size(context, tf.int64)), score, first, last)
        results = {"score": score} | self._no_answer(found, example)
        if self.null_threshold is not None:
            end = tf.where(results["null_odds"] > self.null_threshold, start, end)
        answer = tf.strings.substr(context, start, end - start)
        start_char = num_characters(tf.strings.substr(context, tf.zeros_like(start), start))
        return results | {
            "answer": readable(answer),
            "answer_bytes": answer,
            "start": start,
            "end": end,
            "start_char": start_char,
            "end_char": start_char + num_characters(answer),
        }

    def _serve_n_best(self, question, context):
        read = self._read(question, context)
        found = self._search(read, lambda spans: spans, [None, self._num_spans])
        number, example = tf.size(context, tf.int64), read.windows["example"]
        counts = tf.math.unsorted_segment_sum(tf.ones_like(example), example, number)
        splits = tf.concat([[0], tf.cumsum(counts)], axis=0)  # of the windows

        def of_example(i):
            spans = [tf.reshape(found[name][splits[i] : splits[i + 1]], [-1]) for name in _SPAN]
            most = tf.minimum(_CANDIDATES * self.n_best_size, tf.size(spans[0]))
            score, chosen = tf.math.top_k(spans[0], most)
            first, last = (tf.gather(pieces, chosen) for pieces in spans[1:])
            start, end = read.places(tf.fill([most], i), score, first, last)
            return _distinct(context[i], score, start, end, self.n_best_size)

        specs = _n_best_specs(self.n_best_size)
        results = tf.map_fn(of_example, tf.range(number), fn_output_signature=specs)
        return results | self._no_answer(found, example)

    def _serve_ids(self, inputs):
        def best_of(part):
            inputs = {name: part[name] for name in ("input_ids", "input_mask", "segment_ids")}
            context = tf.cast(part["input_mask"] * part["segment_ids"], tf.int64)
            size = tf.maximum(tf.reduce_sum(context, axis=1) - 1, 0)  # without its [SEP]
            zero = tf.zeros_like(size)
            window = {"offset": tf.argmax(context, axis=1), "length": size, "num_pieces": size}
            window |= {"start": zero, "number": zero, "room": tf.maximum(size, 1)}
            best = self._chosen(self._compute(inputs), window, _best_of_each)
            # From pieces of the context to tokens, the last to the one behind it.
            exists = best["score"] > _IMPOSSIBLE
            for name, more in (("start", 0), ("end", 1)):
                best[name] = tf.where(exists, best[name] + window["offset"] + more, 0)
            return best

        shape = tf.shape(inputs["input_ids"])
        found = in_parts(best_of, inputs, shape[1], self._specs([None]))
        places = {"start_token": found["start"], "end_token": found["end"]}
        return places | {"score": found["score"]} | self._no_answer(found, tf.range(shape[0]))

    def _read(self, question, context):
        """The _Read question and context."""
        query = self.tokenizer.tokenize(question)
        query = head(query, tf.constant(self.max_query_length, tf.int64))
        pieces, starts, ends = self.tokenizer.tokenize_with_offsets(context)
        num_pieces, query_length = pieces.row_lengths(), query.row_lengths()
        room = self.max_seq_length - 3 - query_length
        windows = windowing.cut(num_pieces, room, self.doc_stride)
        of_example = {"num_pieces": num_pieces, "room": room, "offset": query_length + 2}
        windows |= {k: tf.gather(x, windows["example"]) for k, x in of_example.items()}
        return _Read(windows, query, pieces, starts, ends)

    def _search(self, read, choose, shape):
        """What `choose` makes of the spans of each window, `shape`, and the windows' null odds."""

        def of_part(part):
            query = tf.gather(read.query, part["example"])
            inputs = pack(self.tokenizer, query, windowing.gather(read.pieces, part))
            return self._chosen(self._compute(self.padding(inputs)), part, choose)

        longest = tf.reduce_max(read.windows["offset"] + read.windows["length"] + 1)
        longest += self.padding.spare
        return in_parts(of_part, read.windows, longest, self._specs(shape))

    def _specs(self, shape):
        specs = {name: tf.TensorSpec(shape, dtype) for name, dtype in _SPAN.items()}
        return specs | ({"null_odds": tf.TensorSpec([None])} if self.answerable else {})

    def _chosen(self, outputs, windows, choose):
        found = choose(self._candidates(outputs, windows))
        return found | ({"null_odds": outputs["answerable_logit"]} if self.answerable else {})

    def _candidates(self, outputs, windows):
        """The spans of each window: scores, first and last pieces in the context, [W, J * J].

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
        first, last = (
            windows["start"][:, None, None] + tf.where(allowed, piece, 0)
            for piece in (start[:, :, None], end)
        )
        found = {"score": tf.where(allowed, scores, _IMPOSSIBLE), "start": first, "end": last}
        return {name: tf.reshape(x, [-1, self._num_spans]) for name, x in found.items()}

    def _no_answer(self, found, example):
        """The outputs of "no answer" of each example, from those of its windows."""
        if not self.answerable:
            return {}
        odds = tf.math.segment_min(found["null_odds"], example)
        return {"null_odds": odds, "no_answer_probability": tf.sigmoid(odds)}

    def describe(self):
        described = {
            "inputs": ["question", "context"],
            "answerable": self.answerable,
            "max_seq_length": self.max_seq_length,
            "doc_stride": self.doc_stride,
            "max_query_length": self.max_query_length,
            "max_answer_length": self.max_answer_length,
            "n_best_size": self.n_best_size,
            "padding": self.padding.kind,
        }
        return described | ({"null_threshold": self.null_threshold} if self.answerable else {})


@dataclasses.dataclass(frozen=True)
class _Read:
    """Tokenised questions and contexts: their windows [W], pieces and the bytes of the pieces."""

    windows: dict
    query: tf.RaggedTensor
    pieces: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor

    def places(self, rows, scores, first, last):
        """Where the spans from piece `first` to `last` of the contexts `rows` begin and end, [n].

        In bytes; 0 and 0 for what is no answer.
        """
        before, exists = tf.gather(self.pieces.row_starts(), rows), scores > _IMPOSSIBLE

        def of(offsets, piece):
            flat = tf.concat([offsets.values, [0]], axis=0)
            index = tf.minimum(before + piece, tf.size(flat, tf.int64) - 1)
            return tf.where(exists, tf.gather(flat, index), 0)

        return of(self.starts, first), of(self.ends, last)


def _best_of_each(spans):
    """The best span of each window, [W]."""
    best = tf.argmax(spans["score"], axis=1)
    return {name: tf.gather(values, best, batch_dims=1) for name, values in spans.items()}


def _first_best(values, segment):
    """Index of the largest of `values` [W] in each segment; the first of equal ones."""
    largest = tf.gather(tf.math.segment_max(values, segment), segment)
    index = tf.range(tf.size(values))
    return tf.math.segment_min(tf.where(values == largest, index, tf.size(values)), segment)


def _n_best_specs(number):
    """Of the outputs of `_distinct`."""
    dtypes = dict.fromkeys(["answers", "answers_bytes"], tf.string)
    dtypes |= dict.fromkeys(["starts", "ends", "start_chars", "end_chars"], tf.int64)
    dtypes |= dict.fromkeys(["scores", "probabilities"], tf.float32)
    specs = {name: tf.TensorSpec([number], dtype) for name, dtype in dtypes.items()}
    return specs | {"num_answers": tf.TensorSpec([], tf.int64)}


def _distinct(context, score, start, end, number):
    """The first `number` distinct answers of candidates [n], best first, with all about them."""
    exists = score > _IMPOSSIBLE
    score, start, end = (tf.boolean_mask(x, exists) for x in (score, start, end))
    answers = cut(context[None], tf.zeros_like(start), start, end)
    texts, which = tf.unique(answers)
    first = tf.math.unsorted_segment_min(tf.range(tf.size(answers)), which, tf.size(texts))
    first = first[:number]
    score, start, end = (tf.gather(x, first) for x in (score, start, end))
    answers = tf.gather(answers, first)
    # Where each character of the context begins.
    begins = tf.strings.unicode_decode_with_offsets(context, "UTF-8", errors="replace")[1]
    results = {
        "answers": readable(answers),
        "answers_bytes": answers,
        "starts": start,
        "ends": end,
        "start_chars": tf.searchsorted(begins, start, out_type=tf.int64),
        "end_chars": tf.searchsorted(begins, end, out_type=tf.int64),
        "scores": score,
        "probabilities": tf.nn.softmax(score),
    }
    rest = [number - tf.size(first)]
    padded = {k: tf.concat([x, tf.zeros(rest, x.dtype)], axis=0) for k, x in results.items()}
    return padded | {"num_answers": tf.size(first, tf.int64)}
