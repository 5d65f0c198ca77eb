"""Texts to tags of their words, and to the entities that the tags mark, in the graph."""

import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.serving import windows as windowing
from convbert_tf.serving.inference import freeze, signature
from convbert_tf.tasks import tokens
from convbert_tf.text.preprocessing import pack


class TaggerServer(tf.Module):
    """Texts of any length -> their words with a tag each, and entities if the tags mark any.

    Words are what the tokenizer splits a text into before it looks for pieces: at white space and
    around punctuation. A word has the tag that the model gives to its first piece. Long texts are
    read in overlapping windows, as tokens.make_windows does it.

    Signature: `text` string [B] -> of W words, as many as the longest text has,

        num_words       int64 [B]
        word            string [B, W]
        word_start      int64 [B, W], the word's bytes in the text
        word_end        int64 [B, W]
        tag             string [B, W], the tag's name, or its number
        tag_score       float32 [B, W], its probability

    and where the tags are of entities, of E entities num_entities, `entity`, `entity_start`,
    `entity_end`, `entity_label` (the type) and `entity_score` (the mean of its words' `tag_score`)
    in the same way. What stands behind the last word or entity of a text is "" and 0.

    Args:
        model: TokenClassifier.
        tokenizer: WordPieceTokenizer.
        max_seq_length: of a window.
        doc_stride: pieces between the starts of two windows; None for half a window.
    """

    def __init__(self, model, tokenizer, max_seq_length, doc_stride=None):
        super().__init__()
        self._room = max_seq_length - 2
        self._stride = max(1, self._room // 2) if doc_stride is None else doc_stride
        if self._stride < 1:
            raise UserError(f"doc_stride must be at least 1, got {doc_stride}.")
        self._stride = min(self._stride, self._room)
        self._compute, self.tokenizer = freeze(model), tokenizer
        self.max_seq_length = max_seq_length
        self.labels = model.labels or [str(i) for i in range(model.num_classes)]
        self.scheme = tokens.scheme(self.labels)
        self._labels = tf.constant(self.labels)
        self._begins = tf.constant([not piece.startswith("##") for piece in tokenizer.vocab])
        self.serve = signature(self._serve, text=tf.TensorSpec([None], tf.string))

    def _serve(self, text):
        pieces, starts, ends = self.tokenizer.tokenize_with_offsets(text)
        labels, scores = self._label(pieces)
        begins = tf.gather(self._begins, pieces.values)
        word = tf.cumsum(tf.cast(begins, tf.int32)) - 1  # of each piece
        rows = tf.boolean_mask(pieces.value_rowids(), begins)
        labels = tf.boolean_mask(labels, begins)
        words = {
            "word_start": tf.boolean_mask(starts.values, begins),
            "word_end": tf.math.segment_max(ends.values, word),
            "tag": tf.gather(self._labels, labels),
            "tag_score": tf.boolean_mask(scores, begins),
        }
        results = _padded(text, rows, words, "word")
        if self.scheme:
            results |= _padded(text, *self._entities(rows, labels, words), "entity")
        return results

    def _label(self, pieces):
        """The best label of each piece and its probability, flat [pieces]."""
        room = tf.fill([pieces.nrows()], tf.constant(self._room, tf.int64))
        windows = windowing.cut(pieces.row_lengths(), room, self._stride)
        inputs = pack(self.tokenizer, windowing.gather(pieces, windows))
        inputs["is_own"] = self._own(pieces, windows, tf.shape(inputs["input_ids"])[1])

        def compute(inputs):
            longest = tf.reduce_max(tf.reduce_sum(inputs["input_mask"], axis=1))
            inputs = {name: values[:, :longest] for name, values in inputs.items()}
            is_own = inputs.pop("is_own")
            probabilities = tf.nn.softmax(self._compute(inputs))
            best = tf.argmax(probabilities, axis=-1)
            scores = tf.reduce_max(probabilities, axis=-1)
            return {
                "label": tf.boolean_mask(best, is_own),
                "score": tf.boolean_mask(scores, is_own),
            }

        found = windowing.in_parts(compute, inputs, {"label": tf.int64, "score": tf.float32})
        return tf.ensure_shape(found["label"], [None]), tf.ensure_shape(found["score"], [None])

    def _own(self, pieces, windows, num_tokens):
        """Which tokens of the windows, bool [W, T], are pieces that no other window answers for.

        Where two windows overlap, the earlier one has the first half, as in tokens.make_windows.
        """
        start, last = windows["start"], windows["start"] + windows["length"]
        half = (self._room - self._stride + 1) // 2
        first = tf.where(windows["number"] > 0, start + half, 0)
        is_last = last == tf.gather(pieces.row_lengths(), windows["example"])
        last = tf.where(is_last, last, start + self._stride + half)
        # The first token is [CLS].
        piece = start[:, None] + tf.range(-1, tf.cast(num_tokens, tf.int64) - 1)
        return (piece >= first[:, None]) & (piece < last[:, None])

    def _entities(self, rows, labels, words):
        """The entities' rows, and what is given out of them; limits are as in `tokens.metrics`."""
        parts = [tokens.entity_part(label) for label in self.labels]
        types = sorted({part[1] for part in parts if part})
        kinds = tf.constant([types.index(part[1]) if part else -1 for part in parts])
        begins = tf.constant([bool(part) and part[0] in "BS" for part in parts])
        closes = tf.constant([bool(part) and part[0] in "ES" for part in parts])

        kind = tf.gather(kinds, labels)  # -1 outside of entities
        before = tf.concat([[-1], kind[:-1]], axis=0)
        before = tf.where(tf.concat([[-1], rows[:-1]], axis=0) == rows, before, -1)
        closed = tf.concat([[False], tf.gather(closes, labels)[:-1]], axis=0)
        first = (kind >= 0) & ((kind != before) | closed | tf.gather(begins, labels))
        entity = tf.boolean_mask(tf.cumsum(tf.cast(first, tf.int32)) - 1, kind >= 0)
        scores = tf.boolean_mask(words["tag_score"], kind >= 0)
        ends = tf.boolean_mask(words["word_end"], kind >= 0)
        return tf.boolean_mask(rows, first), {
            "entity_start": tf.boolean_mask(words["word_start"], first),
            "entity_end": tf.math.segment_max(ends, entity),
            "entity_label": tf.gather(tf.constant(types), tf.boolean_mask(kind, first)),
            "entity_score": tf.math.segment_mean(scores, entity),
        }

    def describe(self):
        return {
            "inputs": ["text"],
            "labels": self.labels,
            "scheme": self.scheme,
            "max_seq_length": self.max_seq_length,
            "doc_stride": self._stride,
        }


def _padded(text, rows, values, name):
    """`values` (name -> flat [n]) of the texts `rows` [n], padded to [B, most of a text].

    With them the strings that they stand for in the texts, `name`, and their numbers.
    """
    start, end = values[f"{name}_start"], values[f"{name}_end"]
    values = {name: tf.strings.substr(tf.gather(text, rows), start, end - start), **values}
    nrows = tf.size(text, tf.int64)
    ragged = {
        key: tf.RaggedTensor.from_value_rowids(flat, rows, nrows) for key, flat in values.items()
    }
    plural = {"word": "num_words", "entity": "num_entities"}[name]
    return {plural: ragged[name].row_lengths()} | {k: x.to_tensor() for k, x in ragged.items()}
