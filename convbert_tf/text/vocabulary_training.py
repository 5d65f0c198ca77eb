"""Learning a WordPiece vocabulary from text."""

import collections
import itertools
import re

from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

from convbert_tf.console import UserError
from convbert_tf.text.characters import Normalizer
from convbert_tf.text.vocabulary import SPECIAL_TOKENS, strips_accents

# What FastWordpieceTokenize splits off by itself, as the inside of a class of `re`.
_SPLIT_OFF = (
    r"!-/:-@\[-`{-~\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
    r"\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f"
)


def train_vocab(texts, vocab_size, lower_case=True, strip_accents=None):
    """Learns a WordPiece vocabulary with TF Text's trainer on words split as the tokenizer does.

    The trainer keeps the pieces that occur at least so often; a threshold is sought that gives
    slightly more than `vocab_size`, and the rarest pieces are cut: the size is met exactly, unless
    `texts` (iterable of str) have fewer pieces to offer. The result depends only on their words'
    counts. 5 MB of English take some seconds, the trainer most of them. `lower_case` and
    `strip_accents` as for WordPieceTokenizer.

    Returns: list of str: [PAD] [UNK] [CLS] [SEP] [MASK], single characters, the rest by frequency.
    Raises UserError: the texts hold no word, or `vocab_size` does not even hold their alphabet.
    """
    normalizer = Normalizer(lower_case, strips_accents(lower_case, strip_accents))
    words = sorted(_count_words(texts, normalizer).items(), key=lambda item: (-item[1], item[0]))
    if not words:
        raise UserError("no words to learn a vocabulary from: the texts are empty.")
    # By Zipf's law there are about 1.2 times as many pieces as words that are as frequent, and
    # the number of pieces falls as threshold^-0.65.
    threshold = words[min(int(vocab_size / 1.2), len(words)) - 1][1]
    low, high, excess, vocabs = 1, words[0][1], 0.0, []
    while low <= high and not 1 <= excess <= 1.1:
        threshold = min(max(threshold, low), high)
        vocabs.append(_learn(words, threshold, vocab_size))
        excess = len(vocabs[-1]) / vocab_size
        low, high = (threshold + 1, high) if excess > 1 else (low, threshold - 1)
        threshold = round(threshold * (excess / 1.05) ** (1 / 0.65))
    vocabs.sort(key=len)
    vocab = next((vocab for vocab in vocabs if len(vocab) >= vocab_size), vocabs[-1])
    longer = [piece for piece in vocab if len(piece.removeprefix("##")) > 1]
    surplus = max(len(vocab) - vocab_size, 0)
    if surplus > len(longer) - len(SPECIAL_TOKENS):
        raise UserError(
            f"a vocabulary of {vocab_size} is too small: the special tokens and the texts' "
            f"characters alone take {len(vocab) - len(longer) + len(SPECIAL_TOKENS)}."
        )
    rarest = set(longer[len(longer) - surplus :])
    return [piece for piece in vocab if piece not in rarest]


def _learn(words, threshold, vocab_size):
    """The special tokens, all characters and the pieces that occur `threshold` times."""
    vocab = learner.learn(
        words,
        vocab_size,
        list(SPECIAL_TOKENS),
        upper_thresh=threshold,
        lower_thresh=threshold,
        max_input_tokens=4 * vocab_size,  # more took longer and made no better pieces
        max_unique_chars=min(1000, max(100, vocab_size // 16)),
    )
    # The trainer makes a continuation of each character; what is split off never is one.
    useless = re.compile(f"##[{_SPLIT_OFF}]")
    return [piece for piece in vocab if not useless.fullmatch(piece)]


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
