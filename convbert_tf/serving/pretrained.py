"""Texts to embeddings, to probabilities of replaced tokens, and masks to what fills them.

What pre-trained models give without fine-tuning, in the graph.
"""

import tensorflow as tf

from convbert_tf.modeling.pretrained import (
    MaskFiller,
    ReplacedTokenDetector,
    SentenceEmbedder,
    as_pretrainer,
)
from convbert_tf.serving.inference import (
    Padding,
    check_counts,
    in_parts,
    of_ids,
    shared,
    signature,
)
from convbert_tf.serving.litert_decoding import MASK
from convbert_tf.serving.tokens import PieceReader, padded, rectangular
from convbert_tf.text.preprocessing import TextPreprocessor
from convbert_tf.text.strings import readable

_TEXT = tf.TensorSpec([None], tf.string)


class EmbedderServer(tf.Module):
    """Texts -> a vector each.

    Signatures:

    `serving_default`: `text` string [B] -> `embedding` float32 [B, H].

    `predict_ids`: `input_ids`, `input_mask`, `segment_ids` int32 [B, T] -> `embedding`.

    Args:
        model: the model whose encoder it is, of any class.
        tokenizer: WordPieceTokenizer.
        max_seq_length: longest input in tokens; what a text has more is left out.
        pooling: "mean" of the tokens, or "first".
        normalize: whether vectors have length 1.
        padding: as for ClassifierServer.
    """

    def __init__(
        self, model, tokenizer, max_seq_length, pooling="mean", normalize=False, padding="longest"
    ):
        super().__init__()
        self.pooling, self.normalize = pooling, normalize
        network = self.network(model)
        self.hidden_size = network.encoder.config.hidden_size
        self.padding = Padding(padding, network, max_seq_length)
        self._compute, self.tokenizer = shared(network), tokenizer
        self.max_seq_length = max_seq_length
        self._specs = {"embedding": tf.TensorSpec([None, self.hidden_size])}
        self._preprocess = TextPreprocessor(tokenizer, max_seq_length, pad=False)
        self.serve = signature(self._serve, text=_TEXT)
        self._ids = of_ids(self._embed, network)

    def network(self, model):
        """What is computed of `model`, the one that is served or one like it."""
        return SentenceEmbedder(getattr(model, "encoder", model), self.pooling, self.normalize)

    def signatures(self):
        """Name -> tf.function of all that the model answers."""
        return {"serving_default": self.serve, "predict_ids": self._ids}

    def _serve(self, text):
        return self._embed(self._preprocess(text), self.padding)

    def _embed(self, inputs, pad=lambda inputs: inputs):
        length = tf.shape(inputs["input_ids"])[1] + self.padding.spare
        return in_parts(
            lambda part: {"embedding": self._compute(pad(part))}, inputs, length, self._specs
        )

    def describe(self):
        return {
            "inputs": ["text"],
            "max_seq_length": self.max_seq_length,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "hidden_size": self.hidden_size,
            "padding": self.padding.kind,
        }


class ReplacedTokenServer(tf.Module):
    """Texts of any length -> for each token, how probable it is that another one stood there.

    Signatures:

    `serving_default`: `text` string [B] -> of W tokens (pieces of words), as many as the longest
    text has,

        num_tokens             int64 [B]
        token                  string [B, W]; what is no UTF-8 in it is U+FFFD
        token_bytes            string [B, W], as it stands in the text
        token_start            int64 [B, W], the token's bytes in the text
        token_end              int64 [B, W]
        replaced_probability   float32 [B, W]

    What stands behind the last token of a text is "" and 0. Texts are refused together as by
    TaggerServer.

    `predict_ids`: `input_ids`, `input_mask`, `segment_ids` int32 [B, T] -> `replaced_probability`
    float32 [B, T], 0 for padding.

    Args:
        model: ConvBertPretrainer.
        tokenizer: WordPieceTokenizer.
        max_seq_length, doc_stride, padding: as for TaggerServer.
    """

    def __init__(self, model, tokenizer, max_seq_length, doc_stride=None, padding="longest"):
        super().__init__()
        network = self.network(model)
        self._compute, self.tokenizer = shared(network), tokenizer
        self.padding = Padding(padding, network, max_seq_length)
        self.max_seq_length = max_seq_length
        self._of_pieces = PieceReader(tokenizer, self.padding, max_seq_length, doc_stride)
        self.serve = signature(self._serve, text=_TEXT)
        self._ids = of_ids(self._serve_ids, network)

    def network(self, model):
        """As EmbedderServer.network."""
        return ReplacedTokenDetector(as_pretrainer(model, "serve=replaced_tokens"))

    def signatures(self):
        """Name -> tf.function of all that the model answers."""
        return {"serving_default": self.serve, "predict_ids": self._ids}

    def _serve(self, text):
        pieces, starts, ends = self.tokenizer.tokenize_with_offsets(text)

        def of_own(inputs, is_own):
            return {"logits": tf.boolean_mask(self._compute(inputs), is_own)}

        logits = self._of_pieces(pieces, of_own, {"logits": tf.TensorSpec([None])})["logits"]
        tokens = {
            "token_start": starts.values,
            "token_end": ends.values,
            "replaced_probability": tf.sigmoid(logits),
        }
        return padded(text, pieces.value_rowids(), tokens, "token")

    def _serve_ids(self, inputs):
        shape = tf.shape(inputs["input_ids"])

        def flat(part):
            return {"logits": tf.reshape(self._compute(part), [-1])}

        logits = in_parts(flat, inputs, shape[1], {"logits": tf.TensorSpec([None])})["logits"]
        probabilities = tf.sigmoid(tf.reshape(logits, shape))
        return {"replaced_probability": tf.where(inputs["input_mask"] > 0, probabilities, 0)}

    def describe(self):
        return {
            "inputs": ["text"],
            "max_seq_length": self.max_seq_length,
            "doc_stride": self._of_pieces.stride,
            "padding": self.padding.kind,
        }


class MaskFillerServer(tf.Module):
    """Texts of any length with "[MASK]" in them -> the K most probable pieces for each.

    Signatures:

    `serving_default`: `text` string [B] -> of M masks, as many as a text has at most,

        filled             string [B], the text with the most probable piece for each mask. A piece
                           that goes on with a word ("##ing") is joined to what is before it. What
                           is no UTF-8 in it is U+FFFD
        filled_bytes       string [B], the same with the text as it is
        num_masks          int64 [B]
        fills              string [B, M, K], pieces of the vocabulary, the most probable first
        fill_probability   float32 [B, M, K], each given the text as it is: of several masks none
                           knows what fills another

    What stands behind the last mask of a text is "" and 0.

    `predict_ids`: `input_ids`, `input_mask`, `segment_ids` int32 [B, T] -> `num_masks`, `fills`,
    `fill_probability`.

    Args:
        model: ConvBertPretrainer.
        tokenizer: WordPieceTokenizer.
        top_k: K.
        max_seq_length, doc_stride, padding: as for TaggerServer.
    """

    def __init__(
        self, model, tokenizer, max_seq_length, top_k=5, doc_stride=None, padding="longest"
    ):
        super().__init__()
        check_counts(top_k=top_k)
        self.tokenizer = tokenizer
        network = self.network(model)
        self._compute = shared(network)
        self.padding = Padding(padding, network, max_seq_length)
        self.max_seq_length, self.top_k = max_seq_length, min(top_k, tokenizer.vocab_size)
        self._of_pieces = PieceReader(tokenizer, self.padding, max_seq_length, doc_stride)
        self._vocab = tf.constant(tokenizer.vocab)
        shape = [None, self.top_k]
        self._specs = {
            "fills": tf.TensorSpec(shape, tf.int32),
            "fill_probability": tf.TensorSpec(shape, tf.float32),
        }
        self.serve = signature(self._serve, text=_TEXT)
        self._ids = of_ids(self._serve_ids, network)

    def network(self, model):
        """As EmbedderServer.network."""
        return MaskFiller(as_pretrainer(model, "serve=fill_mask"), self.tokenizer.mask_id)

    def signatures(self):
        """Name -> tf.function of all that the model answers."""
        return {"serving_default": self.serve, "predict_ids": self._ids}

    def _serve(self, text):
        parts = self._parts(text)
        pieces = self._pieces(parts)

        def of_own(inputs, is_own):
            is_mask = inputs["input_ids"] == self.tokenizer.mask_id
            return self._best(inputs, tf.boolean_mask(is_own, is_mask))

        wanted = pieces.values == self.tokenizer.mask_id
        found = self._of_pieces(pieces, of_own, self._specs, wanted)
        found["fills"] = tf.gather(self._vocab, found["fills"])
        rows = tf.repeat(tf.range(parts.nrows()), parts.row_lengths() - 1)
        filled = self._fill(parts, found["fills"][:, 0])
        filled = {"filled": readable(filled), "filled_bytes": filled}
        return filled | self._rectangular(rows, found, parts.nrows())

    def _serve_ids(self, inputs):
        """Of the masks of each row, whatever its `input_mask`: padding has none."""
        shape = tf.shape(inputs["input_ids"])
        found = in_parts(self._best, inputs, shape[1], self._specs)
        found["fills"] = tf.gather(self._vocab, found["fills"])
        rows = tf.where(inputs["input_ids"] == self.tokenizer.mask_id)[:, 0]
        return self._rectangular(rows, found, tf.cast(shape[0], tf.int64))

    def _rectangular(self, rows, found, nrows):
        return rectangular(rows, found, nrows, "num_masks", self.top_k)

    def _best(self, inputs, wanted=None):
        """The K best pieces for the masks of the inputs, or those `wanted`, with probabilities."""
        logits = tf.ensure_shape(self._compute(inputs), [None, self.tokenizer.vocab_size])
        if wanted is not None:
            logits = tf.boolean_mask(logits, wanted)
        fills = tf.math.top_k(logits, self.top_k)[1]
        probabilities = tf.gather(tf.nn.softmax(logits), fills, batch_dims=1)
        return {"fills": fills, "fill_probability": probabilities}

    def _parts(self, text):
        """What stands between the masks of each text, one more than masks: ragged [B, None]."""
        parts = tf.strings.split(text, MASK)
        # Of an empty text there is no part.
        empty = tf.cast(parts.row_lengths() == 0, tf.int64)
        none = tf.RaggedTensor.from_row_lengths(tf.fill([tf.reduce_sum(empty)], ""), empty)
        return tf.concat([parts, none], axis=1)

    def _pieces(self, parts):
        """Ids of the texts with [MASK] between the parts: ragged [B, None]."""
        ids = self.tokenizer.tokenize(parts.values)
        masks = tf.cast(_has_mask_behind(parts), tf.int64)
        behind = tf.fill([tf.reduce_sum(masks)], self.tokenizer.mask_id)
        ids = tf.concat([ids, tf.RaggedTensor.from_row_lengths(behind, masks)], axis=1)
        splits = tf.gather(ids.row_splits, parts.row_splits)
        return tf.RaggedTensor.from_row_splits(ids.values, splits)

    def _fill(self, parts, best):
        """The texts with the pieces `best` [masks] in the places of the masks: [B]."""
        masks = tf.where(_has_mask_behind(parts))
        behind = tf.tensor_scatter_nd_update(tf.fill(tf.shape(parts.values), ""), masks, best)
        goes_on = tf.strings.regex_full_match(behind, "##(?s:.+)")
        stripped = tf.strings.regex_replace(parts.values, r"\s+$", "")
        before = tf.where(goes_on, stripped, parts.values)
        behind = tf.where(goes_on, tf.strings.regex_replace(behind, "^##", ""), behind)
        return tf.strings.reduce_join(parts.with_values(before + behind), axis=1)

    def describe(self):
        return {
            "inputs": ["text"],
            "max_seq_length": self.max_seq_length,
            "top_k": self.top_k,
            "doc_stride": self._of_pieces.stride,
            "padding": self.padding.kind,
        }


def _has_mask_behind(parts):
    """Which of the parts of all texts, flat bool, are not the last of their text."""
    last = tf.cumsum(parts.row_lengths()) - 1
    every = tf.fill([tf.size(parts.values)], True)
    return tf.tensor_scatter_nd_update(every, last[:, None], tf.zeros_like(last, tf.bool))


# What `serving.export` may serve of a pre-trained model, by the name of its option `serve`.
SERVERS = {
    "embedding": EmbedderServer,
    "replaced_tokens": ReplacedTokenServer,
    "fill_mask": MaskFillerServer,
}
