"""Text to WordPiece ids inside the TensorFlow graph, exactly as BERT's reference tokenizer does it.

Two C++ ops of TF Text do the work, each driven by a table that is a constant of the graph, so a
SavedModel needs no vocabulary file:

1. `FastBertNormalize` replaces characters one by one. TF Text's own table folds case (ß to ss,
   ½ to 1⁄2); ours follows the reference: control characters dropped, white space to a blank,
   `str.lower`, NFD without combining marks. It is computed from Python's `unicodedata`, so the
   Python that builds the tokenizer decides which characters exist (3.11: Unicode 14); the rest is
   dropped like all of category C*. The one rule that looks at neighbours, Greek final sigma, is a
   regular expression before it.
2. `FastWordpieceTokenize` splits at blanks, punctuation and CJK ideographs and matches the longest
   pieces of the vocabulary. Its ICU and Python agree on what is punctuation; a test asks for all.

One deviation is left: NFD also sorts neighbouring marks that are *not* dropped (25 characters of
category Mc: rare viramas, Hangul tone marks, musical stems). Their order matters only to a
vocabulary that holds them, which BERT's does not; elsewhere the word is [UNK] either way.
"""

import collections
import functools
import itertools
import os
import re
import struct
import unicodedata

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

from convbert_tf.console import UserError
from convbert_tf.files import atomic_path

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_CHARS = 200  # a longer word is [UNK], as in the reference
_MAX_PIECE_BYTES = 256  # TF Text packs a piece's length into eight bits
_ALL_CODES = 0x110000
# What FastWordpieceTokenize splits off by itself, as the inside of a class of `re`.
_SPLIT_OFF = (
    r"!-/:-@\[-`{-~\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
    r"\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f"
)


# ---- Vocabulary files ----


def load_vocab(path):
    """The pieces of a vocabulary file, one a line, in order.

    A file whose every line ends in CRLF is read like one in LF, and empty lines at its end are
    ignored. Raises UserError for what could shift an id: the file is not UTF-8, mixes line ends,
    has an empty line, white space in a piece or a piece twice, or lacks a special token.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read()
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; convert the file to UTF-8.") from error
    *lines, last = text.split("\n")
    crlf = bool(lines) and lines[0].endswith("\r")
    for number, line in enumerate(lines, 1):
        if line.endswith("\r") != crlf:
            raise UserError(
                f"{path}, line {number}: ends in {'LF' if crlf else 'CRLF'} unlike the lines "
                "before it; give every line the same end."
            )
    vocab = [*(line[:-1] if crlf else line for line in lines), last]
    while vocab and not vocab[-1]:
        vocab.pop()
    _check_pieces(path, vocab)
    return vocab


def save_vocab(path, vocab):
    """Writes `vocab`, one piece a line, atomically. Raises UserError where load_vocab would."""
    _check_pieces(path, vocab)
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(piece + "\n" for piece in vocab)


def _check_pieces(path, vocab):
    line_of = {}
    for number, piece in enumerate(vocab, 1):
        if not piece:
            fault = "empty; delete the line or restore its piece."
        elif not set(piece).isdisjoint(" \t\r\n"):
            fault = f"white space in {piece!r}, which no word holds; remove it."
        elif len(piece.encode("utf-8")) > _MAX_PIECE_BYTES:
            fault = f"a piece of more than {_MAX_PIECE_BYTES} bytes; remove it."
        elif line_of.setdefault(piece, number) != number:
            fault = f"{piece!r} stands on line {line_of[piece]} already; a piece has one id only."
        else:
            continue
        raise UserError(f"{path}, line {number}: {fault}")
    missing = ", ".join(token for token in SPECIAL_TOKENS if token not in line_of)
    if missing:
        raise UserError(
            f"{path}: {missing} not on any of its {len(vocab)} lines; is it a BERT vocabulary?"
        )


# ---- Normalisation: what becomes of each character ----


@functools.cache
def _kept_characters():
    """Every character but those that the reference's cleaning drops (C*, U+FFFD), in one string."""
    return "".join(
        char
        for char in map(chr, range(_ALL_CODES))
        # To the reference \t \n \r are white space, not control characters.
        if (unicodedata.category(char)[0] != "C" or char in "\t\n\r") and char != "\ufffd"
    )


def _replacement(char, lower_case):
    """What the reference makes of one kept character; blanks in it split words."""
    if char.isspace():
        return " "
    if not lower_case:
        return char
    parts = unicodedata.normalize("NFD", char.lower())
    return "".join(c for c in parts if unicodedata.category(c) != "Mn")


def _sigma_rules():
    """(RE2 pattern, rewrite) pairs that lower-case Σ as `str.lower` does, to ς at a word's end.

    Σ is final after a cased character and not before one, where case-ignorable characters
    (apostrophes, accents...) between them do not count. Which those are is asked of `str.lower`.
    """
    cased, ignorable = [], []
    for char in _kept_characters():
        if f"AΣ{char}".lower()[1] == "σ":
            cased.append(ord(char))
        elif f"AΣ{char}A".lower()[1] == "σ":
            ignorable.append(ord(char))
    cased, ignorable = _character_class(cased), _character_class(ignorable)
    not_final = (f"Σ({ignorable}*{cased})", r"σ\1")
    # Twice: of ΣΣΣ the first match takes two.
    return [not_final, not_final, (f"({cased}{ignorable}*)Σ", r"\1ς"), ("Σ", "σ")]


def _character_class(codes):
    runs = itertools.groupby(enumerate(codes), key=lambda pair: pair[1] - pair[0])
    runs = [[code for _, code in run] for _, run in runs]
    return "[" + "".join(rf"\x{{{run[0]:x}}}-\x{{{run[-1]:x}}}" for run in runs) + "]"


@functools.cache
def _normalizer_parameters(lower_case):
    """(model that only drops, model of everything, rules for Σ) for a _Normalizer."""
    replacements = {char: _replacement(char, lower_case) for char in _kept_characters()}
    changed = {char: text for char, text in replacements.items() if text != char}
    return _normalizer_model({}), _normalizer_model(changed), _sigma_rules() if lower_case else []


# ---- FastBertNormalize's model: a flatbuffer with a double array over the bytes of UTF-8 ----

_CHANGED = 0x40000000  # data of a character: this | offset in the pool << 6 | length in bytes


def _normalizer_model(replacements):
    """The model (uint8 array) that drops all but the kept characters and applies `replacements`."""
    pool, values, known = bytearray(), [0, _CHANGED], {"": 1}  # stays; becomes the empty string
    kinds = np.ones(_ALL_CODES, np.int64)  # of each character: the index of its data in `values`
    kinds[list(map(ord, _kept_characters()))] = 0
    for char, text in replacements.items():
        if text not in known:
            known[text] = len(values)
            encoded = text.encode("utf-8")
            values.append(_CHANGED | len(pool) << 6 | len(encoded))
            pool += encoded
        kinds[ord(char)] = known[text]
    pool += bytes(-len(pool) % 4)
    cells = _double_array(np.array(values), kinds)
    # Root offset; vtable (sizes, four fields, the first left at its default); table; two vectors.
    header = struct.pack("<I6H", 16, 12, 16, 0, 4, 8, 12)
    table = struct.pack("<iIiI", 12, 16 + len(pool), values[kinds[0]], 4)
    vectors = struct.pack("<I", len(pool)) + pool + struct.pack("<I", len(cells)) + cells.tobytes()
    return np.frombuffer(header + table + vectors, np.uint8)


def _double_array(values, kinds):
    """A darts-clone trie (uint32 array): UTF-8 of each character to values[kind], 0 for none.

    A node's cell holds its byte, the flag "has data" and, XOR its own address, the address of the
    data; the child by byte c has its cell at that address XOR c. Continuation bytes are 0x80-0xBF,
    so the children fill one aligned block of 64 cells, and nodes with equal children share one.
    Of each 256 cells the lower half holds data, the upper two blocks. Bytes that are not UTF-8 end
    at the root or at an inner node: all of these hold values[1], a dropped character's.
    """
    cells = np.zeros(1 << 20, np.uint32)

    def link(addresses, labels, targets):
        cells[addresses] = np.where(targets, (addresses ^ targets) << 10 | 0x100 | labels, 0)

    chunk, place = np.divmod(np.arange(len(values)), 126)
    targets = 512 + 256 * chunk + 1 + place + (place >= 63)  # of each kind: where its data stands
    cells[targets] = values
    dropped, targets[0] = targets[1], 0  # no node for what stays
    root = [targets[kinds[:0x80]], np.full(0xC0 - 0x80, dropped)]
    used, trailing = 0, np.arange(0x80, 0xC0)
    for leads in (32, 16, 5):  # numbers of lead bytes of characters of two, three and four bytes
        kinds = np.append(kinds, np.zeros(-len(kinds) % 64, kinds.dtype)).reshape(-1, 64)
        rows = kinds.view(f"V{kinds[0].nbytes}").ravel()  # found and sorted much faster so
        _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        blocks, kinds = kinds[first], inverse
        chunk, place = np.divmod(used + np.arange(len(blocks)), 2)
        bases = 512 + 256 * chunk + 64 * place
        link(bases[:, None] + trailing, trailing, targets[blocks])
        cells[bases] = values[1]
        used, kinds, targets = used + len(blocks), kinds.ravel(), bases
        root.append(targets[kinds[:leads]])
    root.append(np.full(0x100 - 0xF5, dropped))
    cells[0] = 256 << 10
    link(np.arange(256, 512), np.arange(256), np.concatenate(root))
    return cells[: (cells.nonzero()[0][-1] // 256 + 1) * 256]


class _Normalizer(tf.Module):
    """What the reference does before it splits words: strings [B] in UTF-8 to strings [B]."""

    def __init__(self, lower_case):
        super().__init__()
        clean, full, self._sigma_rules = _normalizer_parameters(lower_case)
        self._clean = tf_text.FastBertNormalizer(model_buffer=tf.constant(clean))
        self._full = tf_text.FastBertNormalizer(model_buffer=tf.constant(full))

    def normalize(self, strings):
        strings = tf.convert_to_tensor(strings, tf.string)
        return self._full.normalize(self._lower_sigma(strings, self._clean.normalize))

    def normalize_with_offsets(self, strings):
        """`normalize`, and a function that maps spans of its results back to spans of `strings`.

        spans(rows, starts, ends): all [tokens]; the last two in bytes, at the edges of characters
        and not equal. Returns starts and ends in bytes of the input.
        """
        strings = tf.convert_to_tensor(strings, tf.string)
        cleaned, to_input = self._clean.normalize_with_offsets(strings)
        text, to_cleaned = self._full.normalize_with_offsets(self._lower_sigma(cleaned))
        origins = to_cleaned.values  # of each byte of `text`: where its character stands

        def spans(rows, starts, ends):
            at = tf.gather(to_cleaned.row_starts(), rows)
            first = tf.gather(origins, at + starts)
            last = tf.gather(origins, at + ends - 1)
            # Up to the origin of what follows: stripped accents before it belong to the piece.
            after = tf.gather(origins, at + ends)
            inside = tf.where(after == last)  # ... unless that comes from the same character
            farther = _next_value(origins, tf.gather_nd(at + ends, inside))
            after = tf.tensor_scatter_nd_update(after, inside, farther)
            at = tf.gather(to_input.row_starts(), rows)
            # Cleaning only drops, so the byte before `after` stands in the input as it is.
            ends = tf.gather(to_input.values, at + after - 1) + 1
            return tf.gather(to_input.values, at + first), ends

        return text, spans

    def _lower_sigma(self, strings, clean=tf.identity):
        """`strings` with Σ as σ or ς; where there is one, they go through `clean` first."""

        def lower():
            text = clean(strings)
            for pattern, rewrite in self._sigma_rules:
                text = tf.strings.regex_replace(text, pattern, rewrite)
            return text

        if not self._sigma_rules:
            return strings
        # \C is any byte: the strings may not be UTF-8.
        found = tf.strings.regex_full_match(strings, r"\C*Σ\C*")
        return tf.cond(tf.reduce_any(found), lower, lambda: strings)


def _next_value(values, at):
    """The first of `values` after each of the positions `at` that differs from the one there."""
    present = tf.gather(values, at)

    def step(at):
        return at + tf.cast(tf.gather(values, at) == present, at.dtype)

    (at,) = tf.while_loop(lambda at: tf.reduce_any(step(at) > at), lambda at: [step(at)], [at])
    return tf.gather(values, at)


# ---- The tokenizer ----


class WordPieceTokenizer(tf.Module):
    """BERT's WordPiece tokenizer as a part of the graph, without [CLS] and [SEP].

    It works eagerly, in `tf.function`, in `tf.data` and in a SavedModel, which then needs only
    `import tensorflow_text` to run. `vocab_file` is the path of a vocabulary (see `load_vocab` for
    its errors); `lower_case` is True for uncased models: lower-case and strip accents.
    """

    def __init__(self, vocab_file, lower_case=True):
        super().__init__()
        self.vocab_file, self.lower_case = os.fspath(vocab_file), bool(lower_case)
        self.vocab = vocab = load_vocab(vocab_file)  # list of str; a piece's place is its id
        self.vocab_size = len(vocab)
        ids = map(vocab.index, SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        self._pieces = tf.constant(vocab)
        self._normalizer = _Normalizer(self.lower_case)
        op = functools.partial(tf_text.FastWordpieceTokenizer, vocab, token_out_type=tf.int32)
        # The reference counts a word's characters, TF Text its bytes. The first op is right but
        # for words over 200 bytes, and those of them not over 200 characters go to the second.
        try:
            self._wordpiece = op(max_bytes_per_word=MAX_WORD_CHARS)
            self._long_wordpiece = op(max_bytes_per_word=4 * MAX_WORD_CHARS)
        except RuntimeError as error:  # no piece but special tokens
            raise UserError(f"{vocab_file}: {error}") from error

    def tokenize(self, strings):
        """Ids of `strings` [B] (UTF-8; other bytes are ignored): a RaggedTensor [B, None] int32."""
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
        text, spans = self._normalizer.normalize_with_offsets(strings)
        ids, starts, ends = self._split(text)
        starts, ends = spans(ids.value_rowids(), starts.values, ends.values)
        return ids, ids.with_values(starts), ids.with_values(ends)

    def detokenize(self, ids):
        """Text of `ids` [B, None], ragged or dense: strings [B], words separated by a blank.

        "##" pieces are joined to the piece before; [PAD], [CLS] and [SEP] are left out.
        """
        if not isinstance(ids, tf.RaggedTensor):
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
        words = tf.strings.substr(tf.gather(text, ids.value_rowids()), first, length)
        chars = tf.strings.length(words, unit="UTF8_CHAR")
        again = (length > MAX_WORD_CHARS) & (chars <= MAX_WORD_CHARS)
        long = self._long_wordpiece.tokenize_with_offsets(tf.where(again, words, ""))

        def splice(tokens, pieces):
            kept = tf.ragged.boolean_mask(tokens.values[:, None], ~again[:, None])
            both = tf.concat([kept, pieces], axis=1)  # [tokens, 1 or the number of its pieces]
            row_splits = tf.gather(both.row_splits, tokens.row_splits)
            return tf.RaggedTensor.from_row_splits(both.values, row_splits, validate=False)

        first = first[:, None]
        return splice(ids, long[0]), splice(starts, long[1] + first), splice(ends, long[2] + first)


# ---- Training a vocabulary ----


def train_vocab(texts, vocab_size, lower_case=True):
    """Learns a WordPiece vocabulary with TF Text's trainer on words split as the tokenizer does.

    The trainer keeps the pieces that occur at least so often; a threshold is sought that gives
    slightly more than `vocab_size`, and the rarest pieces are cut: the size is met exactly, unless
    `texts` (iterable of str) have fewer pieces to offer. The result depends only on their words'
    counts. 5 MB of English take some seconds, the trainer most of them.

    Returns: list of str: [PAD] [UNK] [CLS] [SEP] [MASK], single characters, the rest by frequency.
    Raises UserError: the texts hold no word, or `vocab_size` does not even hold their alphabet.
    """
    words = sorted(_count_words(texts, lower_case).items(), key=lambda item: (-item[1], item[0]))
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


def _count_words(texts, lower_case):
    """Counter of the words of `texts`, as the tokenizer would split them."""
    normalizer, chunks = _Normalizer(lower_case), collections.Counter()
    texts = (text.encode("utf-8", "ignore") for text in texts)
    while batch := list(itertools.islice(texts, 256)):
        chunks.update(b" ".join(normalizer.normalize(batch).numpy()).decode("utf-8").split(" "))
    words = collections.Counter()
    for chunk, count in chunks.items():
        for word in re.findall(f"[{_SPLIT_OFF}]|[^{_SPLIT_OFF}]+", chunk):
            words[word] += count
    return words
