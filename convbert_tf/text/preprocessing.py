"""Raw strings to the inputs of the models: [CLS] text [SEP] (second text [SEP]), in the graph."""

import numbers

import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.files import fetch
from convbert_tf.text import stored_vocabulary
from convbert_tf.text.strings import as_strings
from convbert_tf.text.tokenization import WordPieceTokenizer


class TextPreprocessor:
    """Makes the models' inputs of texts or of pairs of texts, for `fit`, `predict` and `tf.data`.

    Args:
        tokenizer: WordPieceTokenizer.
        max_seq_length: T; longer texts are cut at the end, pairs at the end of the longer text.
        pad: whether T is always `max_seq_length`, or that of the longest row of a call.
        pair: whether texts come in pairs: True refuses calls without `second`; None takes both.

    Attributes:
        pair: the argument; if that was None, whether the last call had pairs. `save_to_preset`
            stores it with the length and the vocabulary.

    Call:
        texts: strings [B], a list or a tensor.
        second: strings [B] that go with them, or None.
        Returns a dict of `input_ids`, `input_mask`, `segment_ids` int32 [B, T].

    Raises:
        UserError: `max_seq_length` is no whole number or has no room for text beside the special
            tokens, or the texts are no lists of strings, or not as many first as second ones.

    Example:
        >>> preprocessor = TextPreprocessor.from_preset("runs/sst2/preset")
        >>> preprocessor(["A text.", "Another one."])["input_ids"].shape
        TensorShape([2, 128])
    """

    def __init__(self, tokenizer, max_seq_length=128, pad=True, pair=None):
        if not isinstance(tokenizer, WordPieceTokenizer):
            raise UserError(
                f"tokenizer must be a WordPieceTokenizer, got {tokenizer!r}; from_preset makes a "
                "preprocessor of a model's directory."
            )
        if isinstance(max_seq_length, bool) or not isinstance(max_seq_length, numbers.Integral):
            raise UserError(f"max_seq_length must be a whole number, got {max_seq_length!r}.")
        if max_seq_length < 8:
            raise UserError(f"max_seq_length must be at least 8, got {max_seq_length}.")
        self.tokenizer, self.max_seq_length, self.pad = tokenizer, max_seq_length, pad
        self.pair, self._only_pairs = pair, pair is True

    @classmethod
    def from_preset(cls, directory, max_seq_length=None, pair=None):
        """Returns a preprocessor with the vocabulary of a stored model; cased or not as that is.

        Args:
            directory: a preset or Hugging Face directory, or "hf://owner/name@revision".
            max_seq_length: T; None for that of the preset, or 128 if it tells none.
            pair: whether texts come in pairs; None for what the preset tells.
        """
        directory = fetch(directory)
        tokenizer = WordPieceTokenizer(*stored_vocabulary.find(directory))
        stored_length, stored_pair = stored_vocabulary.find_serving(directory)
        length = (stored_length or 128) if max_seq_length is None else max_seq_length
        return cls(tokenizer, length, pair=stored_pair if pair is None else pair)

    def __call__(self, texts, second=None):
        first = as_strings(texts, "texts")
        if second is None:
            if self._only_pairs:
                raise UserError("the texts come in pairs: call preprocessor(first, second).")
            self.pair = False
            first = self.tokenizer.tokenize(first)
            first = head(first, tf.constant(self.max_seq_length - 2, tf.int64))
        else:
            second = as_strings(second, "second texts")
            _check_pairs(first, second)
            self.pair = True
            first, second = truncate_pair(
                self.tokenizer.tokenize(first),
                self.tokenizer.tokenize(second),
                tf.constant(self.max_seq_length - 3, tf.int64),
            )
        return pack(self.tokenizer, first, second, self.max_seq_length if self.pad else None)


def _check_pairs(first, second):
    if not first.shape.is_compatible_with(second.shape):
        raise UserError(
            f"{first.shape[0]} first texts and {second.shape[0]} second ones; pairs have one of "
            "each."
        )


def pack(tokenizer, first, second=None, max_seq_length=None):
    """[CLS] first [SEP] (second [SEP]) of ragged ids [B, None].

    Returns:
        dict of `input_ids`, `input_mask`, `segment_ids` int32 [B, T], padded to `max_seq_length`,
        or to the longest row if that is None.
    """
    rows = tf.shape(first.row_splits)[0] - 1
    cls, sep = (tf.fill([rows, 1], token) for token in (tokenizer.cls_id, tokenizer.sep_id))
    first = tf.concat([cls, first, sep], axis=1)
    segments = tf.zeros_like(first)
    if second is not None:
        second = tf.concat([second, sep], axis=1)
        segments = tf.concat([segments, tf.ones_like(second)], axis=1)
        first = tf.concat([first, second], axis=1)
    shape = [None, max_seq_length]
    return {
        "input_ids": first.to_tensor(shape=shape),
        "input_mask": tf.ones_like(first).to_tensor(shape=shape),
        "segment_ids": segments.to_tensor(shape=shape),
    }


def truncate_pair(first, second, limit):
    """Cuts ragged ids to `limit` tokens together, from the end of the longer, as BERT does."""
    a, b = first.row_lengths(), second.row_lengths()
    kept_a = tf.minimum(a, tf.maximum(limit - b, (limit + 1) // 2))
    kept_a = tf.where(a + b <= limit, a, kept_a)
    return head(first, kept_a), head(second, tf.minimum(b, limit - kept_a))


def head(ragged, lengths):
    """The first `lengths` [B] elements of each row of `ragged` [B, None]."""
    starts = ragged.row_starts()
    index = tf.ragged.range(starts, starts + tf.minimum(lengths, ragged.row_lengths()))
    return tf.gather(ragged.values, index)
