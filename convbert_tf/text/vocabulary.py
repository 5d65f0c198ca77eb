"""Vocabularies: one piece a line, its id the number of the line; no TensorFlow.

Where a model is stored, its vocabulary lies beside it, and its files tell how texts are normalised
before pieces are looked up: `find` reads that from a preset or a Hugging Face directory.
"""

import atexit
import os
import re
import shutil
import tempfile
from typing import TypedDict

from convbert_tf.console import UserError, say
from convbert_tf.files import atomic_path, fetch, read_json, sha256

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_FILE = "vocab.txt"
_MAX_PIECE_BYTES = 256  # TF Text packs a piece's length into eight bits
# Tokenizers that split as ours, if of type WordPiece.
_TOKENIZERS = r"(ConvBert|Bert|Electra)Tokenizer(Fast)?|PreTrainedTokenizerFast|TokenizersBackend"


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


def file_content(path):
    """The vocabulary at `path` as it lies beside records, with a line feed after every piece."""
    return "".join(f"{piece}\n" for piece in load_vocab(path)).encode("utf-8")


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


# ---- The vocabulary of a stored model ----


def find(source):
    """Path of the vocabulary that goes with `source`, and whether its texts are lower-cased.

    Args:
        source: a preset or Hugging Face directory, or "hf://owner/name@revision".

    Raises:
        UserError: there is none, or the tokenizer is another than BERT's.
    """
    directory = fetch(source)
    settings = read_json(os.path.join(directory, "config.json"), "the config of a model")
    settings = settings if isinstance(settings, dict) else {}
    if "model_type" in settings:
        return find_huggingface(directory)
    lower_case = settings.get("lower_case")
    if not isinstance(lower_case, bool):
        raise UserError(f"{directory} is no preset: its config.json has no lower_case.")
    path, hashes = vocab_file(directory), settings.get("sha256")
    if isinstance(hashes, dict) and VOCAB_FILE in hashes:  # presets of before have none
        check_hash(directory, VOCAB_FILE, hashes)
    return path, lower_case


class _Serving(TypedDict, total=False):
    max_seq_length: int
    pair: bool


class _Settings(TypedDict, total=False):
    """What a config.json may tell of the texts that the model was trained on (see schema.py)."""

    serving: _Serving


def find_serving(directory):
    """The `max_seq_length` and `pair` that a preset was trained with; None for what is not told."""
    path = os.path.join(directory, "config.json")
    serving = read_json(path, "the config of a model", _Settings).get("serving", {})
    return serving.get("max_seq_length"), serving.get("pair")


def check_hash(directory, name, hashes):
    """Refuses a preset whose file `name` is not the one that its config.json was written for.

    Args:
        directory: of the preset.
        name: of the file.
        hashes: SHA-256 by name, as in the config.json.
    """
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
        raise UserError(f"{path} is not there: the preset is incomplete.")
    if sha256(path) != hashes[name]:
        raise UserError(
            f"{path} is not the file that config.json was written for (its hash differs): the "
            "preset is damaged or was edited; copy or make it again."
        )


def vocab_file(directory):
    """Path of a preset's vocabulary.

    Raises:
        UserError: it has none.
    """
    path = os.path.join(directory, VOCAB_FILE)
    if not os.path.exists(path):
        raise UserError(f"{path} is not there: the preset has no vocabulary.")
    return path


def find_huggingface(directory):
    """As `find`, for a Hugging Face directory.

    Where tokenizer.json alone holds the vocabulary, as new versions of transformers write it, a
    file is made of it, which lasts as long as the process.
    """
    path = os.path.join(directory, "vocab.txt")
    settings, tokenizer = (
        _read_optional(os.path.join(directory, name))
        for name in ("tokenizer_config.json", "tokenizer.json")
    )
    kind = settings.get("tokenizer_class") or "ConvBertTokenizer"
    model = tokenizer.get("model", {"type": "WordPiece"})
    if not isinstance(model, dict):
        raise UserError(f"{directory}/tokenizer.json is damaged: its model is no object.")
    if not re.fullmatch(_TOKENIZERS, kind) or model.get("type") != "WordPiece":
        raise UserError(f"{directory}: the tokenizer ({kind}) is not BERT's WordPiece.")
    normalizer = tokenizer.get("normalizer") or {}
    lower_case = settings.get("do_lower_case", normalizer.get("lowercase", True))
    strip_accents = settings.get("strip_accents", normalizer.get("strip_accents"))
    if strip_accents is not None and strip_accents != lower_case:
        say(f"{directory}: its tokenizer has strip_accents {strip_accents}, ours {lower_case}")
    if not os.path.exists(path):
        if "vocab" not in model:
            raise UserError(f"{directory} has neither vocab.txt nor tokenizer.json.")
        path = _write_vocabulary(model["vocab"])
    return path, lower_case


def _read_optional(path):
    return read_json(path, "a tokenizer of Hugging Face") if os.path.exists(path) else {}


def _write_vocabulary(ids):
    """Path of a file of the pieces in the order of their ids (piece -> id)."""
    folder = tempfile.mkdtemp(prefix="convbert-vocab-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, VOCAB_FILE)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{piece}\n" for piece in sorted(ids, key=ids.get))
    return path
