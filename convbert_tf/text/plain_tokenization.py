"""Text to WordPiece ids in plain Python, for processes without TensorFlow.

The ids and offsets are those of tokenization.WordPieceTokenizer, whose rules these are; what stands
between two blanks is looked at once and remembered, so that a text costs a look-up a word.
"""

import re
from typing import NamedTuple

from convbert_tf.console import UserError
from convbert_tf.text import unicode_rules
from convbert_tf.text.requests import as_str
from convbert_tf.text.vocabulary import SPECIAL_TOKENS, ids_of, read_pieces, strips_accents

MAX_WORD_CHARS = 200  # a longer word is [UNK], as in the reference
_MOST_REMEMBERED = 20_000  # units, the longer ones of which are not remembered
_LONGEST_REMEMBERED = 64
# What stands between blanks: white space that the cleaning keeps; of control characters \t \n \r.
_BLANKS = [c for c in map(chr, range(0x3001)) if c.isspace() and unicode_rules.is_kept(c)]
_UNIT = re.compile(f"[^{''.join(_BLANKS)}]+")


class Pieces(NamedTuple):
    """Of a text: ids, and the bytes from `starts` to `ends` that each stands for; tuples or lists.

    `starts` and `ends` are as WordPieceTokenizer.tokenize_with_offsets gives them.
    """

    ids: list
    starts: list
    ends: list


class PlainTokenizer:
    """A WordPiece tokenizer without TensorFlow.

    Args:
        vocab_file, lower_case, strip_accents: as for tokenization.WordPieceTokenizer.

    Raises:
        UserError: as `vocabulary.read_pieces`, or a special token is missing.

    Example:
        >>> PlainTokenizer("vocab.txt").tokenize(["The cafés"])
        [[1996, 23729]]
    """

    def __init__(self, vocab_file, lower_case=True, strip_accents=None):
        self.lower_case = bool(lower_case)
        self.strip_accents = strips_accents(lower_case, strip_accents)
        self.vocab = read_pieces(vocab_file)
        ids = ids_of(self.vocab)
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise UserError(f"{vocab_file}: {', '.join(missing)} not on any of its lines.")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            ids[token] for token in SPECIAL_TOKENS
        )
        self._first = {p: i for p, i in ids.items() if not p.startswith("##")}
        self._later = {p[2:]: i for p, i in ids.items() if p.startswith("##") and p != "##"}
        self._longest = max(map(len, ids))
        self._characters = _Characters(self.lower_case, self.strip_accents)
        self._remembered = {}

    def tokenize(self, texts, limit=None):
        """Ids of each of `texts` (str, or bytes of UTF-8), the first `limit`: a list of lists."""
        return [self._ids(as_str(text), limit) for text in texts]

    def tokenize_with_offsets(self, texts):
        """The Pieces of each of `texts` (str, or bytes of UTF-8), in a list."""
        return [self._pieces(as_str(text)) for text in texts]

    def _ids(self, text, limit):
        ids = []
        for unit in _UNIT.finditer(text):
            ids += self._of_unit(unit[0]).ids
            if limit is not None and len(ids) >= limit:
                return ids[:limit]
        return ids

    def _pieces(self, text):
        ids, starts, ends = [], [], []
        at = byte = 0
        for found in _UNIT.finditer(text):
            byte += _num_bytes(text[at : found.start()])
            of_unit, at = self._of_unit(found[0]), found.start()
            ids += of_unit.ids
            starts += [byte + start for start in of_unit.starts]
            ends += [byte + end for end in of_unit.ends]
        return Pieces(ids, starts, ends)

    def _of_unit(self, unit):
        """The Pieces of what stands between two blanks."""
        found = self._remembered.get(unit)
        if found is None:
            found = self._split(unit)
            if len(unit) <= _LONGEST_REMEMBERED:
                if len(self._remembered) >= _MOST_REMEMBERED:
                    self._remembered = {}
                self._remembered[unit] = found
        return found

    def _split(self, unit):
        text, origins, firsts, lasts = self._normalize(unit)
        ids, starts, ends = [], [], []
        for word in _words(text):
            for piece, first, last in self._match(text, *word):
                ids.append(piece)
                starts.append(firsts[origins[first]])
                # Up to what follows: stripped accents before it belong to the piece.
                after = last
                while origins[after] == origins[last - 1]:
                    after += 1
                ends.append(lasts[origins[after] - 1])
        return Pieces(tuple(ids), tuple(starts), tuple(ends))

    def _normalize(self, unit):
        """The normalised text of `unit`, and where its characters come from.

        Returns:
            The text; for each character of it, and for its end, the number of the kept character of
            `unit` that it comes from; first byte and byte behind the last of each kept character.
        """
        kept, firsts, lasts, byte = [], [], [], 0
        for char in unit:
            size = _num_bytes(char)
            if self._characters[char] is not None:
                kept.append(char)
                firsts.append(byte)
                lasts.append(byte + size)
            byte += size
        parts = [self._characters[char] for char in kept]
        if self.lower_case and "Σ" in kept:
            _set_sigmas(kept, parts)
        origins = [i for i, part in enumerate(parts) for _ in part]
        return "".join(parts), [*origins, len(parts)], firsts, lasts

    def _match(self, text, start, end):
        """Yields (id, start, end) of the longest pieces of a word, or of [UNK]."""
        found, at, pieces = [], start, self._first
        if end - start > MAX_WORD_CHARS:
            return [(self.unk_id, start, end)]
        while at < end:
            for stop in range(min(end, at + self._longest), at, -1):
                piece = pieces.get(text[at:stop])
                if piece is not None:
                    break
            else:
                return [(self.unk_id, start, end)]
            found.append((piece, at, stop))
            at, pieces = stop, self._later
        return found


class _Characters(dict):
    """Character -> what is made of it, None if it is dropped; filled as characters come."""

    def __init__(self, lower_case, strip_accents):
        super().__init__()
        self._options = (lower_case, strip_accents)

    def __missing__(self, char):
        kept = unicode_rules.is_kept(char)
        self[char] = unicode_rules.replacement(char, *self._options) if kept else None
        return self[char]


def _set_sigmas(kept, parts):
    """Sets Σ as `str.lower` does, to ς at a word's end; only that looks at its neighbours."""
    lowered, at = "".join(kept).lower(), 0
    for i, char in enumerate(kept):
        if char == "Σ":
            parts[i] = lowered[at]
        at += len(char.lower())


def _words(text):
    """Yields (start, end) of the words of a normalised unit."""
    start = 0
    for i, char in enumerate(text):
        if not char.isalnum() or char > "\u2e7f":
            if char == " ":
                alone = 0
            elif unicode_rules.stands_alone(char):
                alone = 1
            else:
                continue
            if start < i:
                yield start, i
            if alone:
                yield i, i + 1
            start = i + 1
    if start < len(text):
        yield start, len(text)


def _num_bytes(text):
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
