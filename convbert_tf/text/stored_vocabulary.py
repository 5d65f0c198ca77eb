"""The vocabulary of a stored model, and how its texts are normalised; no TensorFlow.

A preset says in its config.json whether texts are lower-cased and accents stripped. A Hugging Face
directory has settings of its tokenizer in up to four files: each that changes ids is followed, or
the directory is refused if the tokenizer here does something else.
"""

import atexit
import os
import re
import reprlib
import shutil
import tempfile
from typing import TypedDict

from convbert_tf.console import UserError
from convbert_tf.files import check_file, fetch, read_json, sha256, write_bytes
from convbert_tf.schema import is_unicode
from convbert_tf.text.vocabulary import (
    SPECIAL_TOKENS,
    VOCAB_FILE,
    Vocabulary,
    ids_of,
    leave_unsaid,
    read_pieces,
    strips_accents,
)

# Tokenizers that split as ours, if of type WordPiece.
_TOKENIZERS = r"(ConvBert|Bert|Electra)Tokenizer(Fast)?|PreTrainedTokenizerFast|TokenizersBackend"
# Settings that change ids, and the only values of them that are known here; null is the default.
_SETTINGS = {
    "tokenize_chinese_chars": (True,),
    "do_basic_tokenize": (True,),
    "clean_text": (True,),
    "wordpieces_prefix": ("##",),
    "never_split": ([],),
    "padding_side": ("right",),
    "truncation_side": ("right",),
}
_NORMALIZER = {
    "type": ("BertNormalizer",),
    "clean_text": (True,),
    "handle_chinese_chars": (True,),
}
_PRE_TOKENIZER = {"type": ("BertPreTokenizer",)}
# The original leaves words of up to 200 characters to be looked up, transformers up to 100; the
# weights that are published were trained with 200, which is what both are read as.
_MODEL = {
    "unk_token": ("[UNK]",),
    "continuing_subword_prefix": ("##",),
    "max_input_chars_per_word": (100, 200),
}
# The templates of BERT's post_processor: names and segments of their parts.
_SINGLE = [("[CLS]", 0), ("A", 0), ("[SEP]", 0)]
_PAIR = [*_SINGLE, ("B", 1), ("[SEP]", 1)]
_LARGEST_ID = 10_000_000  # of a vocabulary that a file is written of


class NoVocabularyError(UserError):
    """There is no vocabulary, or one for a tokenizer of another kind."""


def find(source):
    """The Vocabulary that goes with `source`, with `strip_accents` a bool.

    Args:
        source: a preset or Hugging Face directory, or "hf://owner/name@revision".

    Raises:
        UserError: there is none, or the tokenizer is another than BERT's.
    """
    directory = fetch(source)
    config_file = os.path.join(directory, "config.json")
    settings = read_json(config_file, "the config of a model")
    settings = settings if isinstance(settings, dict) else {}
    if "model_type" in settings:
        return find_huggingface(directory)
    lower_case = settings.get("lower_case")
    if not isinstance(lower_case, bool):
        check_is_preset(directory, settings)
        raise UserError(f"{directory} is no preset: its config.json has no lower_case.")
    strip_accents = _bool(config_file, settings, "strip_accents")  # old presets have none
    hashes = settings.get("sha256")
    if isinstance(hashes, dict) and VOCAB_FILE in hashes:  # nor these
        check_hash(directory, VOCAB_FILE, hashes)
    path = vocab_file(directory)
    leave_unsaid(path)
    return Vocabulary(path, lower_case, strips_accents(lower_case, strip_accents))


def check_is_preset(directory, settings):
    """Refuses a directory whose config.json holds `settings` that are not a preset's."""
    if {"class", "config", "format", "weights_sha256"} <= set(settings):
        return
    preset = os.path.join(directory, "preset")
    if os.path.exists(os.path.join(preset, "config.json")):
        raise UserError(f"{directory} is a run; its preset is {preset}.")
    raise UserError(
        f"{directory} is no preset of convbert_tf; tools/convert_checkpoint.py makes one from "
        "an original or Hugging Face checkpoint."
    )


class Serving(TypedDict, total=False):
    max_seq_length: int
    pair: bool


class _Settings(TypedDict, total=False):
    """What a config.json may tell of the texts that the model was trained on (see schema.py)."""

    serving: Serving


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
    check_file(path)
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
    check_file(path)
    if not os.path.exists(path):
        raise NoVocabularyError(f"{path} is not there: the preset has no vocabulary.")
    return path


def find_huggingface(directory):
    """As `find`, for a Hugging Face directory.

    Where tokenizer.json alone holds the vocabulary, as new versions of transformers write it, a
    file is made of it, which lasts as long as the process; ids that no piece has are empty lines.
    """
    vocab_path = os.path.join(directory, "vocab.txt")
    config_path, tokenizer_path, special_path, added_path = (
        os.path.join(directory, f"{name}.json")
        for name in ("tokenizer_config", "tokenizer", "special_tokens_map", "added_tokens")
    )
    settings, tokenizer, special, added = map(
        _read_optional, (config_path, tokenizer_path, special_path, added_path)
    )
    check_file(vocab_path)
    if not tokenizer and not os.path.exists(vocab_path):
        raise NoVocabularyError(f"{directory} has neither vocab.txt nor tokenizer.json.")
    model = _object(tokenizer_path, tokenizer, "model") if tokenizer else {"type": "WordPiece"}
    kind = settings.get("tokenizer_class") or "ConvBertTokenizer"
    if not re.fullmatch(_TOKENIZERS, str(kind)) or model.get("type") != "WordPiece":
        raise NoVocabularyError(
            f"{directory}: the tokenizer ({kind!s:.60}) is not BERT's WordPiece."
        )
    normalizer = _check_tokenizer(tokenizer_path, tokenizer, model) if tokenizer else {}
    _check_values(config_path, settings, _SETTINGS)
    for path, values in ((config_path, settings), (special_path, special)):
        _check_special_tokens(path, values)

    lower_case = _agreed(config_path, settings, "do_lower_case", normalizer, "lowercase")
    strip_accents = _agreed(config_path, settings, "strip_accents", normalizer, "strip_accents")
    lower_case = True if lower_case is None else lower_case
    path, ids = _vocabulary(vocab_path, tokenizer_path, model.get("vocab"))
    _check_added_tokens(tokenizer_path, _added(tokenizer.get("added_tokens")), ids)
    _check_added_tokens(config_path, _added(settings.get("added_tokens_decoder")), ids)
    _check_added_tokens(added_path, list(added.items()), ids)
    return Vocabulary(path, lower_case, strips_accents(lower_case, strip_accents))


# ---- Settings ----


def _read_optional(path):
    """The JSON object in a file; {} where there is no such file."""
    if not os.path.lexists(path):
        return {}
    values = read_json(path, "a tokenizer of Hugging Face")
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no object.")
    return values


def _object(path, values, name):
    value = values.get(name) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: its {name} is no object.")
    return value


def _bool(path, values, name):
    value = values.get(name)
    if not isinstance(value, bool | None):
        raise UserError(
            f"{path} is damaged: {name} is {reprlib.repr(value)}, not true, false or null."
        )
    return value


def _check_tokenizer(path, tokenizer, model):
    """Refuses a tokenizer.json with parts that work unlike BERT's; returns its normalizer."""
    normalizer = _object(path, tokenizer, "normalizer")
    _check_values(path, {"type": None} | normalizer, _NORMALIZER, "normalizer.", null=False)
    pre_tokenizer = _object(path, tokenizer, "pre_tokenizer")
    _check_values(path, {"type": None} | pre_tokenizer, _PRE_TOKENIZER, "pre_tokenizer.", False)
    _check_values(path, model, _MODEL, "model.")
    for part in ("truncation", "padding"):
        values = _object(path, tokenizer, part)
        _check_values(path, values, {"direction": ("Right",)}, f"{part}.")
    vocab = model.get("vocab") if isinstance(model.get("vocab"), dict) else {}
    if not _is_berts(_object(path, tokenizer, "post_processor"), vocab):
        raise UserError(
            f"{path}: the post_processor is not BERT's, which makes [CLS] text [SEP] second text "
            "[SEP], segment 1 from the second text on."
        )
    return normalizer


def _is_berts(values, vocab):
    """Whether a post_processor makes BERT's inputs; none at all is what bare pieces have."""
    if not values:
        return True
    if values.get("type") == "BertProcessing":
        return all(
            values.get(name) in (None, [token, vocab.get(token)])
            for name, token in (("cls", "[CLS]"), ("sep", "[SEP]"))
        )
    special = values.get("special_tokens") or {}
    try:
        ids = {token: special[token]["ids"] for token in ("[CLS]", "[SEP]") if token in special}
    except (KeyError, TypeError):
        return False
    return (
        values.get("type") == "TemplateProcessing"
        and _template(values.get("single")) == _SINGLE
        and (values.get("pair") is None or _template(values["pair"]) == _PAIR)
        and all(found == [vocab.get(token)] for token, found in ids.items())
    )


def _template(items):
    """(token or sequence, segment) of the parts of a template; None where it is none."""
    try:
        parts = [part for item in items for part in item.values()]
        return [(part["id"], part["type_id"]) for part in parts]
    except (AttributeError, KeyError, TypeError):
        return None


def _check_values(path, values, known, prefix="", null=True):
    for name, allowed in known.items():
        value = values.get(name, allowed[0])
        if (value is None and null) or any(value == v and type(value) is type(v) for v in allowed):
            continue
        expected = " or ".join(map(repr, allowed))
        raise UserError(
            f"{path}: {prefix}{name} {reprlib.repr(value)} is not supported, only {expected}: the "
            "ids would be others."
        )


def _agreed(path, settings, name, normalizer, its_name):
    """The value of a setting that is in tokenizer_config.json and in tokenizer.json."""
    value, other = _bool(path, settings, name), _bool(path, normalizer, its_name)
    if value is not None and other is not None and value != other:
        raise UserError(
            f"{path}: {name} is {value}, but {its_name} in tokenizer.json {other}: which of them "
            "holds depends on the version of transformers; make them equal."
        )
    return other if value is None else value


# ---- Special and added tokens ----


def _token(value):
    return value.get("content") if isinstance(value, dict) else value


def _check_special_tokens(path, values):
    """Refuses other special tokens than BERT's, by the names that transformers has for them."""
    for token in SPECIAL_TOKENS:
        name = f"{token[1:-1].lower()}_token"
        found = _token(values.get(name))
        if found not in (None, token):
            raise UserError(
                f"{path}: {name} is {reprlib.repr(found)}; only {token!r} is supported."
            )
    more = [values.get(name) for name in ("bos_token", "eos_token") if values.get(name)]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = values.get(name) or []
        listed = list(listed.values()) if isinstance(listed, dict) else listed
        more += listed if isinstance(listed, list) else [listed]
    _check_added_tokens(path, [(_token(value), None) for value in more], {})


def _added(listed):
    """(content, id) of a list of added tokens, or of an object id -> token."""
    if isinstance(listed, dict):
        return [(_token(value), _number(number)) for number, value in listed.items()]
    listed = listed if isinstance(listed, list) else [listed] if listed else []
    return [
        (_token(value), value.get("id") if isinstance(value, dict) else None) for value in listed
    ]


def _number(text):
    return int(text) if text.isdecimal() and len(text) < 20 else text


def _check_added_tokens(path, tokens, ids):
    """Refuses tokens, (content, id or None), that are not special tokens at their places."""
    for content, number in tokens:
        expected = ids.get(content, number) if content in SPECIAL_TOKENS else None
        if content not in SPECIAL_TOKENS or number != expected:
            place = "" if number is None else f" with id {reprlib.repr(number)}"
            raise UserError(
                f"{path}: the added token {reprlib.repr(content)}{place} is not supported; only "
                "BERT's special tokens, with their ids in the vocabulary, are."
            )


# ---- Pieces ----


def _vocabulary(vocab_path, tokenizer_path, pieces):
    """Path of the vocabulary file, and piece -> id; `pieces` is that of tokenizer.json or None."""
    if pieces is not None:
        _check_ids(tokenizer_path, pieces)
    if not os.path.exists(vocab_path):
        if pieces is None:
            raise UserError(f"{tokenizer_path} is damaged: its model has no vocab.")
        return _write_vocabulary(pieces), pieces
    ids = ids_of(read_pieces(vocab_path))
    if pieces is not None:
        pieces = {piece: number for piece, number in pieces.items() if piece}
        differing = sorted(ids.items() ^ pieces.items())
        if differing:
            piece = differing[0][0]
            raise UserError(
                f"{vocab_path} and tokenizer.json are two vocabularies: {piece!r} has id "
                f"{ids.get(piece)} and {pieces.get(piece)}; delete the wrong one."
            )
    return vocab_path, ids


def _check_ids(path, pieces):
    if not isinstance(pieces, dict) or not pieces:
        raise UserError(f"{path} is damaged: model.vocab is no object of pieces and ids.")
    piece_of = {}
    for piece, number in pieces.items():
        if type(number) is not int or not 0 <= number <= _LARGEST_ID:
            fault = f"has the id {reprlib.repr(number)}"
        elif piece_of.setdefault(number, piece) != piece:
            fault = f"has the id {number}, which {piece_of[number]!r} has too"
        elif piece and piece.split() != [piece]:
            fault = "has white space, which no word holds"
        elif not is_unicode(piece):
            fault = "holds half a surrogate pair"
        else:
            continue
        raise UserError(f"{path} is damaged: {piece!r} in model.vocab {fault}.")
    missing = ", ".join(token for token in SPECIAL_TOKENS if token not in pieces)
    if missing:
        raise UserError(f"{path}: {missing} not in model.vocab; is it a BERT vocabulary?")


def _write_vocabulary(ids):
    """Path of a file of the pieces (piece -> id), each on the line of its id."""
    folder = tempfile.mkdtemp(prefix="convbert-vocab-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    lines = [""] * (max(ids.values()) + 1)
    for piece, number in ids.items():
        lines[number] = piece
    path = os.path.join(folder, VOCAB_FILE)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode("utf-8"))
    return path
