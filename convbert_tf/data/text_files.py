"""Text files to documents: plain text and JSON lines, also packed by gzip or xz."""

import codecs
import glob
import gzip
import itertools
import json
import lzma
import os
import zlib

from convbert_tf.console import UserError

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
_TEXT_SUFFIXES = (".txt", ".jsonl")
_OTHER_SUFFIXES = (".json", ".bz2", ".zip", ".zst", ".tar", ".parquet", ".tfrecord")
_MAX_LINE_BYTES = 64_000_000


def find_files(inputs):
    """The text files that `inputs` (a path or a list: files, globs, directories) names, sorted.

    Of a directory, everything below it that ends in .txt or .jsonl, or in those and .gz or .xz.

    Raises:
        UserError: one of the inputs names nothing.
    """
    found = []
    for given in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        given = os.path.expanduser(os.fspath(given))
        if os.path.isdir(given):
            below = glob.glob("**", root_dir=given, recursive=True)
            files = [os.path.join(given, name) for name in below if _kind(name)[0]]
        else:
            files = [given] if os.path.isfile(given) else glob.glob(given, recursive=True)
        files = [file for file in files if os.path.isfile(file)]
        if not files:
            raise UserError(f"{given} names no text file (.txt, .jsonl, also with .gz or .xz).")
        found += files
    if not found:
        raise UserError("no input is given: name text files, globs or directories.")
    for file in found:
        if file.lower().endswith(_OTHER_SUFFIXES):
            raise UserError(f"{file} is no text here: it takes .txt and .jsonl, also .gz or .xz.")
    return sorted({os.path.realpath(file): file for file in sorted(found)}.values())


def _kind(path):
    """The suffixes of `path` that are known here: (".txt" | ".jsonl" | "", ".gz" | ".xz" | "")."""
    stem, packing = os.path.splitext(path.lower())
    if packing not in _OPENERS:
        stem, packing = path.lower(), ""
    suffix = os.path.splitext(stem)[1]
    return (suffix if suffix in _TEXT_SUFFIXES else ""), packing


def size(path):
    """The bytes of text in `path`, or None where it is compressed and the size does not tell."""
    return None if _kind(path)[1] else os.path.getsize(path)


def documents(path, max_bytes=8_000_000):
    """Reads a file's documents, one after the other.

    Plain text has a paragraph or a sentence a line and a blank line between documents; a document
    that grows beyond `max_bytes` is ended at a line end. A .jsonl file has a document a line, in
    the field "text".

    Yields:
        Tuples of the document (str, without blank lines) and the bytes of the (unpacked) file that
        were read for it.

    Raises:
        UserError: damaged compression, not UTF-8, not JSON; names the file and the place.
    """
    suffix, packing = _kind(path)
    try:
        with _OPENERS.get(packing, open)(path, "rb") as file:
            if suffix == ".jsonl":
                yield from _json_documents(path, _lines(path, file))
            else:
                yield from _plain_documents(path, _lines(path, file), max_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path} is damaged ({error}): unpack it again from its source, or leave it out."
        ) from error


def _lines(path, file):
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 1):
        if len(line) == _MAX_LINE_BYTES:
            raise UserError(f"{path}:{number} is a line of over 64 MB: write a paragraph a line.")
        yield line if number > 1 else line.removeprefix(codecs.BOM_UTF8)


def _plain_documents(path, lines, max_bytes):
    size, collected = 0, []
    for number, line in enumerate(itertools.chain(lines, [b""])):
        size += len(line)
        blank = not line or line.isspace()
        if not blank:
            collected.append(line)
        if collected and (blank or size >= max_bytes):
            try:
                yield b"".join(collected).decode("utf-8").rstrip("\r\n"), size
            except UnicodeDecodeError as error:
                first = number + (not blank) - len(collected)  # lines before the document
                wrong = first + 1 + error.object.count(b"\n", 0, error.start)
                raise UserError(
                    f"{path}:{wrong} is not UTF-8: convert the file, say with iconv."
                ) from error
            size, collected = 0, []


def _json_documents(path, lines):
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            text = json.loads(line)["text"]
            # A lone surrogate, which JSON can hold, is no text.
            text = text.encode("utf-8", "replace").decode("utf-8")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f'{path}:{number} is not a JSON object, in UTF-8, with text in its field "text".'
            ) from error
        yield "\n".join(part for part in text.split("\n") if part and not part.isspace()), len(line)


def sample_texts(files, max_bytes):
    """The first documents of every one of `files`, `max_bytes` in all in about equal shares."""
    for left, file in zip(range(len(files), 0, -1), files, strict=True):
        share = max_bytes // left
        for text, size in documents(file):
            if share <= 0:
                break
            yield text
            share, max_bytes = share - size, max_bytes - size
