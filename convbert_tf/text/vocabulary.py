"""Vocabulary files: one piece a line, its id the number of the line; no TensorFlow."""

import collections
import multiprocessing
import os
import re
from typing import NamedTuple

from convbert_tf.console import UserError, say
from convbert_tf.files import atomic_path, check_file, write_bytes

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_FILE = "vocab.txt"
_MAX_PIECE_BYTES = 256  # TF Text packs a piece's length into eight bits
# Vocabularies with unused lines that nothing more is said about: hashes, and paths of presets'.
_announced = set()


class Vocabulary(NamedTuple):
    """A vocabulary file and how texts are normalised for it: arguments of WordPieceTokenizer.

    `path` is None where a model has no vocabulary. `strip_accents` None is the same as
    `lower_case`.
    """

    path: str | None = None
    lower_case: bool = True
    strip_accents: bool | None = None

    @property
    def strips_accents(self):
        """Whether accents are stripped, a bool."""
        return strips_accents(self.lower_case, self.strip_accents)


def strips_accents(lower_case, strip_accents):
    """The value of an option `strip_accents` whose default, None, is that of `lower_case`."""
    return bool(lower_case if strip_accents is None else strip_accents)


def load_vocab(path):
    """The pieces of a vocabulary file, one a line, in order; see `read_pieces`.

    A piece may be on several lines: its id is that of the last one (see `ids_of`), as for the
    original and for Hugging Face. The other lines and empty ones keep their numbers, but no text
    gets these ids. A line is printed about such a vocabulary, once in a process and not about that
    of a preset (see `leave_unsaid`).

    Raises:
        UserError: as `read_pieces`, or a special token is missing.
    """
    vocab = read_pieces(path)
    _check_special_tokens(path, vocab)
    _announce_unused_lines(path, vocab)
    return vocab


def leave_unsaid(path):
    """No line about unused lines of the file at `path`: one was printed when it was made."""
    _announced.add(os.path.abspath(path))


def ids_of(vocab):
    """Piece -> id, for the pieces that `load_vocab` gives: of a repeated piece the last place."""
    return {piece: index for index, piece in enumerate(vocab) if piece}


def read_pieces(path):
    """The content of each line of a vocabulary, "" for an empty one; special tokens or not.

    Lines end in LF or CRLF. White space around a piece and empty lines at the end of the file are
    left out.

    Raises:
        UserError: the file is not UTF-8, has white space inside a piece or a piece that is too
            long; or readers differ on ids: a CR is inside a line, or white space is around a piece
            that is on another line without it.
    """
    try:
        check_file(path)
        with open(path, "rb") as file:
            raw = file.read()
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; convert the file to UTF-8.") from error
    if alone := re.search(r"\r(?!\n|\Z)", text):
        line = text.count("\n", 0, alone.start()) + 1
        raise UserError(
            f"{path}, line {line}: a CR that no LF follows; end every line in LF or CRLF."
        )
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    vocab = [line.strip() for line in lines]
    while vocab and not vocab[-1]:
        vocab.pop()
    counts = collections.Counter(vocab)
    for number, (line, piece) in enumerate(zip(lines, vocab, strict=False), 1):
        fault = _fault(piece)
        if piece and line != piece and counts[piece] > 1:
            fault = f"white space around {piece!r}, which is on another line too; delete one."
        if fault:
            raise UserError(f"{path}, line {number}: {fault}")
    return vocab


def save_vocab(path, vocab):
    """Writes `vocab`, one piece a line, atomically.

    Raises:
        UserError: `load_vocab` would refuse it, or it has an empty or a repeated piece.
    """
    line_of = {}
    for number, piece in enumerate(vocab, 1):
        fault = _fault(piece) if piece else "empty."
        if line_of.setdefault(piece, number) != number:
            fault = f"{piece!r} stands on line {line_of[piece]} already."
        if fault:
            raise UserError(f"{path}, line {number}: {fault}")
    _check_special_tokens(path, vocab)
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(piece + "\n" for piece in vocab)


def copy(source, target):
    """Copies the vocabulary at `source` to `target`, with LF and without white space around pieces.

    Raises:
        UserError: as `load_vocab`.
    """
    vocab = read_pieces(source)
    _check_special_tokens(source, vocab)
    _announce_unused_lines(source, vocab)
    write_bytes(target, _content(vocab))


def file_content(path):
    """The vocabulary at `path` as it lies beside records, with a line feed after every piece."""
    return _content(load_vocab(path))


def _content(vocab):
    return "".join(f"{piece}\n" for piece in vocab).encode("utf-8")


def _fault(piece):
    """Why a piece cannot be used, or ""."""
    if piece and piece.split() != [piece]:
        return f"white space in {piece!r}, which no word holds; remove it."
    if len(piece.encode("utf-8")) > _MAX_PIECE_BYTES:
        return f"a piece of more than {_MAX_PIECE_BYTES} bytes; remove it."
    return ""


def _check_special_tokens(path, vocab):
    missing = ", ".join(token for token in SPECIAL_TOKENS if token not in vocab)
    if missing:
        raise UserError(
            f"{path}: {missing} not on any of its {len(vocab)} lines; is it a BERT vocabulary?"
        )


def _announce_unused_lines(path, vocab):
    """Prints a line about repeated pieces and empty lines, in the main process only."""
    ids, empty = ids_of(vocab), vocab.count("")
    earlier = len(vocab) - empty - len(ids)
    content = hash(tuple(vocab))
    if not earlier + empty or multiprocessing.parent_process():
        return
    if {content, os.path.abspath(path)} & _announced:
        return
    _announced.add(content)
    repeated = {piece for index, piece in enumerate(vocab) if piece and ids[piece] != index}
    kinds = []
    if earlier:
        times = "piece is" if len(repeated) == 1 else "pieces are"
        kinds.append(
            f"{len(repeated):,} {times} repeated, the last line of each has the id ({earlier:,} "
            f"earlier {'line is' if earlier == 1 else 'lines are'} unused)"
        )
    if empty:
        kinds.append(f"{empty:,} {'line is' if empty == 1 else 'lines are'} empty")
    say(f"{os.fspath(path)}, {len(vocab):,} lines: {'; '.join(kinds)}")
