"""Text to WordPiece ids inside the TensorFlow graph, exactly as BERT's reference tokenizer does it.

Two C++ ops of TF Text do the work, each driven by a table that is a constant of the graph, so a
SavedModel needs no vocabulary file: `FastBertNormalize` with the tables of characters.py, then
`FastWordpieceTokenize`, which splits at blanks, punctuation and CJK ideographs and matches the
longest pieces of the vocabulary. Its ICU and Python agree on what is punctuation; a test asks for
all.
"""

import functools
import os

import tensorflow as tf
import tensorflow_text as tf_text

from convbert_tf.console import UserError
from convbert_tf.text.characters import Normalizer
from convbert_tf.text.strings import as_strings, cut
from convbert_tf.text.vocabulary import SPECIAL_TOKENS, ids_of, load_vocab, strips_accents

MAX_WORD_CHARS = 200  # a longer word is [UNK], as in the reference


class WordPieceTokenizer(tf.Module):
    """BERT's WordPiece tokenizer as a part of the graph, without [CLS] and [SEP].

    It works eagerly, in `tf.function`, in `tf.data` and in a SavedModel, which then needs only
    `import tensorflow_text` to run.

    Args:
        vocab_file: path of a vocabulary; see `load_vocab` for what it may hold and its errors.
        lower_case: whether texts are lower-cased; True for uncased models.
        strip_accents: whether characters are decomposed and lose their accents. None is as
            `lower_case`; False with `lower_case` is the original's do_lower_case without
            strip_accents. True without `lower_case` is as in transformers (the original strips
            accents of lower-cased texts only).
    """

    def __init__(self, vocab_file, lower_case=True, strip_accents=None):
        super().__init__()
        self.vocab_file, self.lower_case = os.fspath(vocab_file), bool(lower_case)
        self.strip_accents = strips_accents(lower_case, strip_accents)
        self.vocab = vocab = load_vocab(vocab_file)  # list of str, one a line
        self.vocab_size = len(vocab)
        ids = ids_of(vocab)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            ids[token] for token in SPECIAL_TOKENS
        )
        self._pieces = tf.constant(vocab)
        self._normalizer = Normalizer(self.lower_case, self.strip_accents)
        # The op takes no piece twice: on lines that are unused a filler stands, which no text has,
        # since the normaliser drops private-use characters.
        pieces = [p if ids.get(p) == i else f"\ue000 {i}" for i, p in enumerate(vocab)]
        op = functools.partial(tf_text.FastWordpieceTokenizer, pieces, token_out_type=tf.int32)
        # The reference counts a word's characters, TF Text its bytes. The first op is right but
        # for words over 200 bytes, and those of them not over 200 characters go to the second.
        try:
            self._wordpiece = op(max_bytes_per_word=MAX_WORD_CHARS)
            self._long_wordpiece = op(max_bytes_per_word=4 * MAX_WORD_CHARS)
        except RuntimeError as error:  # no piece but special tokens
            raise UserError(f"{vocab_file}: {error}") from error

    def tokenize(self, strings):
        """Ids of `strings` [B] (UTF-8; other bytes are ignored): a RaggedTensor [B, None] int32."""
        strings = as_strings(strings, "strings")
        ids, _, _ = self._split(self._normalizer.normalize(strings))
        return ids

    def tokenize_with_offsets(self, strings):
        """Ids of `strings` [B] and the bytes of the input that each piece stands for.

        Returns:
          ids int32, starts int64, ends int64, each a RaggedTensor [B, None]. input[start:end] is
          whole characters: with the accents that were stripped from the piece, without blanks and
          dropped characters around it. Several pieces of one character (Hangul is taken apart)
          have the same span.
        """
        strings = as_strings(strings, "strings")
        text, spans = self._normalizer.normalize_with_offsets(strings)
        ids, starts, ends = self._split(text)
        starts, ends = spans(ids.value_rowids(), starts.values, ends.values)
        return ids, ids.with_values(starts), ids.with_values(ends)

    def detokenize(self, ids):
        """Text of `ids` [B, None], a tensor or lists: strings [B], words separated by a blank.

        "##" pieces are joined to the piece before; [PAD], [CLS] and [SEP] are left out. Any line
        of a repeated piece stands for it.
        """
        if isinstance(ids, list | tuple):
            ids = _ragged_ids(ids)
        elif not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids)
        silent = tf.constant([self.pad_id, self.cls_id, self.sep_id], ids.dtype)
        spoken = tf.reduce_all(ids.values[:, None] != silent, axis=1)
        ids = tf.ragged.boolean_mask(ids, ids.with_values(spoken))
        pieces = ids.with_values(tf.gather(self._pieces, ids.values))
        text = tf.strings.reduce_join(pieces, axis=1, separator=" ")
        return tf.strings.regex_replace(text, " ##", "")

    def _split(self, text):
        """Ids, starts and ends (bytes of `text`) of normalised strings."""
        ids, starts, ends = self._wordpiece.tokenize_with_offsets(text)
        return tf.cond(
            tf.reduce_any(ends.values - starts.values > MAX_WORD_CHARS),
            lambda: self._split_long_words(text, ids, starts, ends),
            lambda: (ids, starts, ends),
        )

    def _split_long_words(self, text, ids, starts, ends):
        """Replaces the [UNK] of words over 200 bytes, not over 200 characters, by their pieces."""
        first, length = starts.values, ends.values - starts.values
        rows = ids.value_rowids()
        long = (length > MAX_WORD_CHARS) & (length <= 4 * MAX_WORD_CHARS)
        long = tf.where(long)  # [words, 1]
        at, size = tf.gather_nd(first, long), tf.gather_nd(length, long)
        words = cut(text, tf.gather_nd(rows, long), at, at + size, joined=4 * MAX_WORD_CHARS)
        kept = tf.strings.length(words, unit="UTF8_CHAR") <= MAX_WORD_CHARS
        again = tf.scatter_nd(long, kept, tf.shape(length, tf.int64))
        none = tf.fill(tf.shape(length), "")
        words = tf.tensor_scatter_nd_update(none, long, tf.where(kept, words, ""))
        long = self._long_wordpiece.tokenize_with_offsets(words)

        def splice(tokens, pieces):
            kept = tf.ragged.boolean_mask(tokens.values[:, None], ~again[:, None])
            both = tf.concat([kept, pieces], axis=1)  # [tokens, 1 or the number of its pieces]
            row_splits = tf.gather(both.row_splits, tokens.row_splits)
            return tf.RaggedTensor.from_row_splits(both.values, row_splits, validate=False)

        first = first[:, None]
        return splice(ids, long[0]), splice(starts, long[1] + first), splice(ends, long[2] + first)


def _ragged_ids(ids):
    """Lists of ids, one a text, as a RaggedTensor; empty ones are ids too, and not floats."""
    try:
        return tf.ragged.constant(ids, tf.int32, ragged_rank=1, inner_shape=())
    except (TypeError, ValueError) as error:
        raise UserError("ids must be a list of lists of whole numbers, one list a text.") from error
