"""How each character is normalised before words are split: BERT's cleaning and lower-casing.

TF Text's `FastBertNormalize` replaces characters one by one, driven by a table that is a constant
of the graph. Its own table folds case (ß to ss, ½ to 1⁄2); ours follows the reference: control
characters dropped, white space to a blank, `str.lower`, NFD without combining marks
(unicode_rules.py). The Python that builds the tokenizer decides which characters exist
(`UNICODE_VERSION`). The one rule that looks at neighbours, Greek final sigma, is a regular
expression before it.

One deviation is left: NFD also sorts neighbouring marks that are *not* dropped (25 characters of
category Mc: rare viramas, Hangul tone marks, musical stems). Their order matters only to a
vocabulary that holds them, which BERT's does not; elsewhere the word is [UNK] either way.
"""

import functools
import itertools
import struct

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from convbert_tf.text.unicode_rules import is_kept, replacement

_ALL_CODES = 0x110000


@functools.cache
def _kept_characters():
    """Every character but those that the reference's cleaning drops (C*, U+FFFD), in one string."""
    return "".join(filter(is_kept, map(chr, range(_ALL_CODES))))


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
def _normalizer_parameters(lower_case, strip_accents):
    """(model that only drops, model of everything, rules for Σ) for a Normalizer."""
    options = (lower_case, strip_accents)
    replacements = {char: replacement(char, *options) for char in _kept_characters()}
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


class Normalizer(tf.Module):
    """What the reference does before it splits words: strings [B] in UTF-8 to strings [B].

    Args:
        lower_case: whether characters are lower-cased.
        strip_accents: whether they are decomposed (NFD) and lose their combining marks.
    """

    def __init__(self, lower_case, strip_accents):
        super().__init__()
        parameters = _normalizer_parameters(bool(lower_case), bool(strip_accents))
        clean, full, self._sigma_rules = parameters
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
