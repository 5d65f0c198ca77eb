"""Texts to tags of their words, and to the entities that the tags mark, in the graph."""

import tensorflow as tf

from convbert_tf.serving.inference import (
    Padding,
    check_counts,
    in_parts,
    of_ids,
    shared,
    signature,
)
from convbert_tf.tasks import tokens
from convbert_tf.text import windows as windowing
from convbert_tf.text.preprocessing import pack
from convbert_tf.text.strings import cut, readable

# Most places for words (texts of a request x words of its longest text), which bounds its memory.
MOST_PLACES = 2**22
_NUMBERS = {"word": "num_words", "entity": "num_entities", "token": "num_tokens"}
_BEST = {"label": tf.TensorSpec([None], tf.int64), "score": tf.TensorSpec([None], tf.float32)}


class PieceReader:
    """Computes what belongs to each piece of texts of any length, in overlapping windows.

    Of the windows that a piece is in, the one that shows most around it answers for it, as in
    tokens.make_windows.

    Args:
        tokenizer: WordPieceTokenizer.
        padding: inference.Padding.
        max_seq_length: of a window.
        doc_stride: pieces between the starts of two windows; None for half a window.

    Attributes:
        stride: `doc_stride`, or what stands for it.
    """

    def __init__(self, tokenizer, padding, max_seq_length, doc_stride=None):
        self._tokenizer, self._padding = tokenizer, padding
        self._room = max_seq_length - 2
        stride = max(1, self._room // 2) if doc_stride is None else doc_stride
        check_counts(doc_stride=stride)
        self.stride = min(stride, self._room)

    def __call__(self, pieces, compute, specs, wanted=None):
        """What `compute` gives for the pieces of all texts, in their order.

        Args:
            pieces: ragged ids [B, None].
            compute: a function of a model's inputs [W, T] and of which of their tokens these
                windows answer for, bool [W, T]; gives a dict of values of some of these, flat.
            specs: name -> TensorSpec of the values that are wanted.
            wanted: of which pieces there are such values, bool, flat; windows that answer for none
                of them are left out. None: of all.
        """
        room = tf.fill([pieces.nrows()], tf.constant(self._room, tf.int64))
        windows = windowing.cut(pieces.row_lengths(), room, self.stride)
        windows["first"], windows["last"] = self._owned(pieces, windows)
        if wanted is not None:
            windows = _with_wanted(pieces, windows, wanted)

        def of_part(part):
            inputs = self._padding(pack(self._tokenizer, windowing.gather(pieces, part)))
            # The first token is [CLS].
            tokens = tf.range(-1, tf.shape(inputs["input_ids"], tf.int64)[1] - 1)
            piece = part["start"][:, None] + tokens
            is_own = (piece >= part["first"][:, None]) & (piece < part["last"][:, None])
            return compute(inputs, is_own)

        longest = tf.reduce_max(windows["length"]) + 2 + self._padding.spare
        return in_parts(of_part, windows, longest, specs)

    def _owned(self, pieces, windows):
        """From which piece of its text to which each window answers: two times int64 [windows].

        Where two windows overlap, the earlier one has the first half.
        """
        start, last = windows["start"], windows["start"] + windows["length"]
        half = (self._room - self.stride + 1) // 2
        first = tf.where(windows["number"] > 0, start + half, 0)
        is_last = last == tf.gather(pieces.row_lengths(), windows["example"])
        return first, tf.where(is_last, last, start + self.stride + half)


def _with_wanted(pieces, windows, wanted):
    """Those of the windows that answer for a piece that is wanted."""
    before = tf.concat([[0], tf.cumsum(tf.cast(wanted, tf.int64))], axis=0)
    text = tf.gather(pieces.row_splits, windows["example"])
    counts = [tf.gather(before, text + windows[end]) for end in ("first", "last")]
    return {name: tf.boolean_mask(x, counts[0] < counts[1]) for name, x in windows.items()}


class TaggerServer(tf.Module):
    """Texts of any length -> their words with a tag each, and entities if the tags mark any.

    Words are what the tokenizer splits a text into before it looks for pieces: at white space and
    around punctuation. A word has the tag that the model gives to its first piece. Long texts are
    read in overlapping windows, as tokens.make_windows does it.

    Signatures:

    `serving_default`: `text` string [B] -> of W words, as many as the longest text has,

        num_words       int64 [B]
        word            string [B, W]; what is no UTF-8 in it is U+FFFD
        word_bytes      string [B, W], as it stands in the text
        word_start      int64 [B, W], the word's bytes in the text
        word_end        int64 [B, W]
        tag             string [B, W], the tag's name, or its number
        tag_score       float32 [B, W], its probability

    and where the tags are of entities, of E entities num_entities, `entity`, `entity_bytes`,
    `entity_start`, `entity_end`, `entity_label` (the type) and `entity_score` (the mean of its
    words' `tag_score`) in the same way. What stands behind the last word or entity of a text is ""
    and 0. Texts are refused together whose number times W is above 4,194,304.

    `predict_ids`: `input_ids`, `input_mask`, `segment_ids` int32 [B, T] -> `tag` string [B, T] and
    `tag_score` float32 [B, T] of every token; padding has "" and 0.

    Args:
        model: TokenClassifier.
        tokenizer: WordPieceTokenizer.
        max_seq_length: of a window.
        doc_stride: pieces between the starts of two windows; None for half a window.
        padding: "longest" pads to the longest of the windows that are computed at once; "full"
            answers as if all were padded to `max_seq_length`, as the model is scored.
    """

    def __init__(self, model, tokenizer, max_seq_length, doc_stride=None, padding="longest"):
        super().__init__()
        self._compute, self.tokenizer = shared(model), tokenizer
        self.max_seq_length = max_seq_length
        self.padding = Padding(padding, model, max_seq_length)
        self._of_pieces = PieceReader(tokenizer, self.padding, max_seq_length, doc_stride)
        self.labels = model.labels or [str(i) for i in range(model.num_classes)]
        self.scheme = tokens.scheme(self.labels)
        self._labels = tf.constant(self.labels)
        self._begins = tf.constant([not piece.startswith("##") for piece in tokenizer.vocab])
        self.serve = signature(self._serve, text=tf.TensorSpec([None], tf.string))
        self._ids = of_ids(self._serve_ids, model)

    def signatures(self):
        """Name -> tf.function of all that the model answers."""
        return {"serving_default": self.serve, "predict_ids": self._ids}

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
        results = padded(text, rows, words, "word")
        if self.scheme:
            results |= padded(text, *self._entities(rows, labels, words), "entity")
        return results

    def _serve_ids(self, inputs):
        shape = tf.shape(inputs["input_ids"])

        def flat(part):  # rows of any length can be empty together, but not of unknown width
            return {name: tf.reshape(x, [-1]) for name, x in self._best(part).items()}

        found = in_parts(flat, inputs, shape[1], _BEST)
        is_token = inputs["input_mask"] > 0
        labels, scores = (tf.reshape(found[name], shape) for name in _BEST)
        tags = tf.where(is_token, tf.gather(self._labels, labels), "")
        return {"tag": tags, "tag_score": tf.where(is_token, scores, 0)}

    def _best(self, inputs):
        """The best label of each token and its probability, [W, T]."""
        logits = tf.ensure_shape(self._compute(inputs), [None, None, len(self.labels)])
        probabilities = tf.nn.softmax(logits)
        best, score = tf.argmax(probabilities, axis=-1), tf.reduce_max(probabilities, axis=-1)
        return {"label": best, "score": score}

    def _label(self, pieces):
        """The best label of each piece and its probability, flat [pieces]."""

        def of_own(inputs, is_own):
            return {name: tf.boolean_mask(x, is_own) for name, x in self._best(inputs).items()}

        found = self._of_pieces(pieces, of_own, _BEST)
        return found["label"], found["score"]

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
            "doc_stride": self._of_pieces.stride,
            "padding": self.padding.kind,
        }


def padded(text, rows, values, name):
    """`values` (name -> flat [n, ...]) of the texts `rows` [n], padded to [B, most of a text, ...].

    With them the strings that they stand for in the texts, `name`, and their numbers.
    """
    pieces = cut(text, rows, values[f"{name}_start"], values[f"{name}_end"])
    values = {name: readable(pieces), f"{name}_bytes": pieces, **values}
    return rectangular(rows, values, tf.size(text, tf.int64), _NUMBERS[name])


def rectangular(rows, values, nrows, counts, places=1):
    """`values` (name -> flat [n, ...]) of the texts `rows` [n], padded to [B, most of a text, ...].

    Args:
        rows, values: see above.
        nrows: B.
        counts: name of the output that has their numbers.
        places: how many values one of them is at most.
    """
    ragged = {
        key: tf.RaggedTensor.from_value_rowids(flat, rows, nrows) for key, flat in values.items()
    }
    lengths = next(iter(ragged.values())).row_lengths()
    most = tf.reduce_max(tf.concat([[0], lengths], axis=0))
    limit = MOST_PLACES // places
    message = f"too many texts beside one of so many words: send it alone ({limit} places)"
    with tf.control_dependencies(
        [tf.debugging.assert_less_equal(nrows * most, tf.constant(limit, tf.int64), message)]
    ):
        return {counts: tf.identity(lengths)} | {k: x.to_tensor() for k, x in ragged.items()}
