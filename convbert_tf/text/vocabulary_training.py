"""Learning a WordPiece vocabulary from text."""

import collections
import itertools
import re
import zlib

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

from convbert_tf.console import UserError, say
from convbert_tf.text.characters import Normalizer
from convbert_tf.text.tokenization import MAX_WORD_CHARS
from convbert_tf.text.vocabulary import SPECIAL_TOKENS, strips_accents

# What FastWordpieceTokenize splits off by itself, as the inside of a class of `re`.
_SPLIT_OFF = (
    r"!-/:-@\[-`{-~\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
    r"\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f"
)
_RARE = 0.0003  # share of a text's characters: the rarest, up to it, give way to longer pieces
_ALPHABET = 100  # characters that every vocabulary must hold, if the texts have so many
# Longer words are cut. The trainer counts all parts of a word, so its time and memory grow with the
# square of the length; the second length is for texts that are mostly such words.
_WORD_CHARS, _PART_CHARS = 50, 8
_PARTS_PER_WORD = 100  # above which, on average, texts are such; English has about 40
# Before a cut word's later parts: they do not begin a word. The normaliser drops this character.
_CONTINUED = "\ue000"
MAX_UNKNOWN = 0.05  # share of [UNK] among a text's tokens from which on users are warned


def train_vocab(texts, vocab_size, lower_case=True, strip_accents=None):
    """Learns a WordPiece vocabulary with TF Text's trainer on words split as the tokenizer does.

    The trainer keeps the pieces that occur at least so often; a threshold is sought that gives
    slightly more than `vocab_size`, and the rarest pieces are cut: the size is met exactly, unless
    `texts` (iterable of str) have fewer pieces to offer. Characters come before longer pieces, but
    for the rarest, 0.03% of the text; a line says what was left out. Words of over 50 characters
    are learned from in parts. The result depends only on the words' counts. 5 MB of English take
    some seconds, the trainer most of them. `lower_case` and `strip_accents` as for
    WordPieceTokenizer.

    Returns: list of str: [PAD] [UNK] [CLS] [SEP] [MASK], single characters, the rest by frequency.
    Raises UserError: the texts hold no word, or `vocab_size` does not even hold their alphabet.
    """
    normalizer = Normalizer(lower_case, strips_accents(lower_case, strip_accents))
    words = sorted(_count_words(texts, normalizer).items(), key=lambda item: (-item[1], item[0]))
    if not words:
        raise UserError("no words to learn a vocabulary from: the texts are empty.")
    characters = _Characters(words, vocab_size)
    parts, most, low, threshold = _trainer_words(words, vocab_size)
    high, excess, vocabs = max(low, sum(count for _, count in parts)), 0.0, []
    while low <= high and not 1 <= excess <= 1.1:
        threshold = min(max(threshold, low), high)
        vocabs.append(_learn(parts, most, threshold, characters))
        excess = len(vocabs[-1]) / vocab_size
        low, high = (threshold + 1, high) if excess > 1 else (low, threshold - 1)
        # The number of pieces falls as threshold^-0.65.
        threshold = round(threshold * (excess / 1.05) ** (1 / 0.65))
    vocabs.sort(key=len)
    vocab = next((vocab for vocab in vocabs if len(vocab) >= vocab_size), vocabs[-1])
    longer = [piece for piece in vocab if len(piece.removeprefix("##")) > 1]
    rarest = set(longer[len(longer) - max(len(vocab) - vocab_size, 0) :])
    vocab = [piece for piece in vocab if piece not in rarest]
    characters.report(vocab)
    _report_unknown(vocab, words)
    return vocab


class _Characters:
    """The characters of the texts, and which of them a vocabulary holds.

    Args:
        words: (word, count) pairs.
        vocab_size: of the vocabulary.

    Raises:
        UserError: not even the alphabet fits.
    """

    def __init__(self, words, vocab_size):
        self._vocab_size, counts = vocab_size, collections.Counter()
        for word, count in words:
            for char in word:
                counts[char] += count
        self._counts = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        # A character that may stand inside a word needs a place as its continuation, too.
        split_off = re.compile(f"[{_SPLIT_OFF}]")
        places = [1 if split_off.match(char) else 2 for char in self._counts]
        places = np.cumsum(places) + len(SPECIAL_TOKENS)
        self._most = int(np.searchsorted(places, vocab_size, side="right"))
        self._least = min(1000, max(_ALPHABET, vocab_size // 16))
        alphabet = min(_ALPHABET, len(places))
        if self._most < alphabet:
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: the special tokens and the texts' "
                f"{alphabet} most frequent characters alone take {places[alphabet - 1]}."
            )

    def needed(self, threshold):
        """The characters that a vocabulary of pieces that occur `threshold` times must hold."""
        rest = np.cumsum(list(self._counts.values())[::-1])[::-1]  # of each and all that are rarer
        number = int(np.sum(rest > _RARE * rest[0]))
        # With a low threshold there is place for all, and a few more take little.
        if threshold <= 2 or 2 * (len(rest) - number) <= self._vocab_size / 100:
            number = len(rest)
        return set(itertools.islice(self._counts, min(number, self._most)))

    def allowed(self, threshold):
        """The characters of words to learn from: rarer ones, too, if the words are frequent."""
        common = set(itertools.islice(self._counts, min(self._least, self._most)))
        return common | self.needed(threshold)

    def report(self, vocab):
        """Says which characters are not in `vocab`, if any."""
        missing = [char for char in self._counts if char not in set(vocab)]
        if missing:
            share = sum(map(self._counts.get, missing)) / sum(self._counts.values())
            say(
                f"{len(missing):,} of {len(self._counts):,} characters did not fit in, "
                f"{100 * share:.2g}% of the text; words with them are [UNK]: "
                f"{' '.join(missing[:10])}{' ...' if len(missing) > 10 else ''}"
            )


def _trainer_words(words, vocab_size):
    """`words` as the trainer is to see them, how many, and the least and the first threshold."""
    most = 4 * vocab_size  # more took longer and made no better pieces
    parts = _cut(words, _WORD_CHARS)
    # By Zipf's law there are about 1.2 times as many pieces as words that are as frequent.
    threshold = words[min(int(vocab_size / 1.2), len(words)) - 1][1]
    if sum(len(word) ** 2 / 2 for word, _ in parts[:most]) <= _PARTS_PER_WORD * most:
        return parts, most, 1, threshold
    # Few of these parts occur twice. By their checksums, a sample of them is spread evenly.
    most *= _PARTS_PER_WORD // (_PART_CHARS**2 // 2)
    parts = _cut(words, _PART_CHARS)
    parts.sort(key=lambda item: (-item[1], zlib.crc32(item[0].encode("utf-8")), item[0]))
    num_characters = sum(len(word) * count for word, count in parts[:most])
    return parts, most, 2, max(threshold, num_characters // (20 * vocab_size))


def _cut(words, longest):
    """`words` with those of over `longest` characters in parts; sorted by count, then by word."""
    parts = collections.Counter()
    for word, count in words:
        parts[word[:longest]] += count
        for start in range(longest, len(word), longest - 1):
            parts[_CONTINUED + word[start : start + longest - 1]] += count
    return sorted(parts.items(), key=lambda item: (-item[1], item[0]))


def _learn(words, most, threshold, characters):
    """The special tokens, characters, and the pieces that occur `threshold` times.

    Of `words`, the first `most` that are of allowed characters only are learned from.
    """
    allowed = characters.allowed(threshold) | {_CONTINUED}
    words = learner.filter_input_words(words, allowed, most)
    chars = characters.needed(threshold).union(*(word for word, _ in words)) - {_CONTINUED}
    params = learner.Params(
        upper_thresh=threshold,
        lower_thresh=threshold,
        num_iterations=4,
        max_input_tokens=most,
        max_token_length=_WORD_CHARS,
        max_unique_chars=None,
        vocab_size=None,  # these are for parts of the trainer that are not used here
        slack_ratio=None,
        include_joiner_token=True,
        joiner="##",
        reserved_tokens=list(SPECIAL_TOKENS),
    )
    pieces = learner.learn_with_thresh(words, threshold, params)[len(SPECIAL_TOKENS) :]
    # The trainer makes a continuation of each character; what is split off never is one.
    useless = re.compile(f"##[{_SPLIT_OFF}]|.*{_CONTINUED}.*")
    pieces = [piece for piece in pieces if piece not in chars and not useless.fullmatch(piece)]
    # Characters that occur in none of the words given to the trainer.
    inside = [f"##{char}" for char in sorted(chars)]
    known = set(pieces)
    rare = [piece for piece in inside if piece not in known and not useless.fullmatch(piece)]
    return [*SPECIAL_TOKENS, *sorted(chars), *pieces, *rare]


def _count_words(texts, normalizer):
    """Counter of the words of `texts`, as the tokenizer would split them."""
    chunks = collections.Counter()
    texts = (text.encode("utf-8", "ignore") for text in texts)
    while batch := list(itertools.islice(texts, 256)):
        chunks.update(b" ".join(normalizer.normalize(batch).numpy()).decode("utf-8").split(" "))
    words = collections.Counter()
    for chunk, count in chunks.items():
        for word in re.findall(f"[{_SPLIT_OFF}]|[^{_SPLIT_OFF}]+", chunk):
            words[word] += count
    return words


def _report_unknown(vocab, words):
    """Warns where more than MAX_UNKNOWN of the tokens of `words` (word, count) are [UNK]."""
    tokenizer = tf_text.FastWordpieceTokenizer(
        vocab, token_out_type=tf.int32, max_bytes_per_word=4 * MAX_WORD_CHARS
    )
    num_tokens, unknown, unknown_id = 0, collections.Counter(), vocab.index("[UNK]")
    for start in range(0, len(words), 65536):
        batch = words[start : start + 65536]
        ids = tokenizer.tokenize([word for word, _ in batch])
        rows = ids.value_rowids().numpy()[ids.values.numpy() == unknown_id]
        lengths = ids.row_lengths().numpy()
        wrong = np.bincount(rows, minlength=len(batch))
        for (word, count), length, unknowns in zip(batch, lengths, wrong, strict=True):
            if len(word) > MAX_WORD_CHARS:
                length = unknowns = 1
            num_tokens += count * int(length)
            if unknowns:
                unknown[word] += count * int(unknowns)
    warn_unknown(sum(unknown.values()), num_tokens, unknown, "a larger vocab_size holds more")


def warn_unknown(num_unknown, num_tokens, words, advice):
    """Says in one line that too many tokens are [UNK], if so.

    Args:
        num_unknown: how many of `num_tokens` are.
        num_tokens: of all the text.
        words: Counter of words that are [UNK], for examples.
        advice: what to do.
    """
    if num_unknown <= MAX_UNKNOWN * num_tokens:
        return
    shown = [word if len(word) <= 20 else word[:20] + "..." for word, _ in words.most_common(8)]
    long = any(len(word) > MAX_WORD_CHARS for word, _ in words.most_common(8))
    advice = f"words of over {MAX_WORD_CHARS} characters are, put blanks in" if long else advice
    say(
        f"warning: {100 * num_unknown / num_tokens:.1f}% of the text's tokens are [UNK] "
        f"({' '.join(shown)}): {advice}"
    )
