"""Text files to documents: plain text and JSON lines, also packed by gzip or xz."""

import codecs
import fnmatch
import glob
import itertools
import json
import os
import re

from convbert_tf.console import UserError, say
from convbert_tf.data import unpacking

_JSON_LINES = (".jsonl", ".ndjson")
_TEXT_SUFFIXES = (".txt", *_JSON_LINES)
_WHAT = ".txt, .jsonl, or .json of JSON lines, also with .gz or .xz"
_OTHER_SUFFIXES = re.compile(
    r"\.(tar|tgz|txz|tbz2?|tzst|bz2|zip|zstd?|7z|rar|lz4|lzma|parquet|arrow|feather|avro|warc"
    r"|tfrecords?|pdf|docx?|epub|h5|npy|npz|pkl|pickle|sqlite|db)"
)
_MAX_LINE_BYTES = 64_000_000
_SAMPLE_BYTES = 20_000  # of which a sample takes long documents in parts


# --- which files ---


def find_files(inputs):
    """The text files that `inputs` (a path or a list: files, globs, directories) names, sorted.

    Of a directory, everything below it that ends in .txt, .jsonl or .ndjson, or in those and .gz or
    .xz, and .json files that hold JSON lines with a field "text". Vocabularies, logs and records
    that the tools of this package wrote are left out unless they are named one by one; a line says
    what of a directory was left out.

    Raises:
        UserError: one of the inputs names nothing, or no text, or a directory cannot be read.
    """
    found = []
    for given in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        given = os.path.expanduser(os.fspath(given))
        if os.path.isdir(given):
            files, left_out = _partition(_walk(given), _is_text)
        elif os.path.lexists(given) or not glob.has_magic(given):
            files, left_out = [given] if os.path.isfile(given) else [], []
        else:
            files, left_out = _partition(_matches(given), lambda path: not _is_own(path))
        if not files:
            raise UserError(f"{given} names no text file ({_WHAT}).")
        if left_out:
            say(f"{given}: {_some(left_out)} left out")
        found += files
    if not found:
        raise UserError("no input is given: name text files, globs or directories.")
    for file in found:
        _check_suffix(file)
    return sorted({os.path.realpath(file): file for file in sorted(found)}.values())


def _partition(files, wanted):
    """Two lists: the files that are `wanted`, and the others."""
    files, parts = sorted(file for file in files if os.path.isfile(file)), ([], [])
    for file in files:
        parts[not wanted(file)].append(file)
    return parts


def _some(paths):
    names = [os.path.basename(path) for path in paths]
    shown = f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
    return f"{len(names):,} {'file' if len(names) == 1 else 'files'} ({shown})"


def _walk(root):
    """Yields the files below `root`, hidden ones left out; follows links, each directory once."""

    def fail(error):
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error

    seen = set()
    for folder, below, names in os.walk(root, onerror=fail, followlinks=True):
        status = os.stat(folder)
        place = status.st_dev, status.st_ino
        below[:] = sorted(name for name in below if name[0] != "." and place not in seen)
        if place not in seen:
            yield from (os.path.join(folder, name) for name in names if name[0] != ".")
        seen.add(place)


def _matches(pattern):
    """The files that match a glob pattern, in which ** stands for any number of directories.

    glob.glob would follow links that lead upwards.
    """
    start, stars, rest = pattern.partition("**")
    if not stars:
        return glob.glob(pattern)
    roots, parts = glob.glob(start or "."), (stars + rest).split(os.sep)
    return [
        file
        for root in filter(os.path.isdir, roots)
        for file in _walk(root)
        if _fits(os.path.relpath(file, root).split(os.sep), parts)
    ]


def _fits(names, parts):
    """Whether the names of a path fit the parts of a pattern."""
    if not parts or not names:
        return not parts and not names
    if parts[0] == "**":
        return any(_fits(names[i:], parts[1:]) for i in range(len(names))) or parts == ["**"]
    return fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _suffix(path):
    """The suffix of `path`, in lower case, below that of its packing."""
    return os.path.splitext(unpacking.split_packing(path)[0])[1].lower()


def _is_text(path):
    suffix = _suffix(path)
    if suffix == ".json":
        return _holds_json_lines(path)
    return suffix in _TEXT_SUFFIXES and not _is_own(path)


def _is_own(path):
    """Whether a file is one that this package writes: shards, their logs, a vocabulary."""
    name = os.path.basename(path)
    if name in ("build.jsonl", "metrics.jsonl", "manifest.json"):
        return not _holds_json_lines(path)
    if name.endswith(".txt"):
        with unpacking.opened(path) as file:
            return {b"[PAD]", b"[UNK]"} <= set(file.peek(4096)[:4096].split())
    return re.fullmatch(r"shard-\d+\.tfrecord.*", name) is not None


def _holds_json_lines(path):
    """Whether a file's first line is an object with text; True also for one that is damaged."""
    try:
        with unpacking.opened(path) as file:
            return _is_json_document(next(filter(bytes.strip, _lines(path, file)), b""))
    except UserError:
        return True


def _is_json_document(line):
    try:
        return isinstance(json.loads(line)["text"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _check_suffix(path):
    """Refuses what is by its name no text, and .json files that hold no lines of JSON."""
    if path.lower().endswith(unpacking.PACKINGS):
        suffix = _suffix(path)
    else:
        suffix = os.path.splitext(path)[1].lower()
    if _OTHER_SUFFIXES.fullmatch(suffix):
        raise UserError(f"{path} is no text here: it takes {_WHAT}.")
    if suffix == ".json" and not _holds_json_lines(path):
        raise UserError(
            f"{path} is no text here: of .json files it takes those of JSON lines, an object with "
            '"text" a line.'
        )


def check(path):
    """Refuses a file whose beginning shows that it is damaged, or no text, whatever its name."""
    with unpacking.opened(path) as file:
        if _is_json_lines(path):
            return
        head = file.peek(1 << 16)
        if head.lstrip()[:1] == b"{" and _is_json_document(head.lstrip().split(b"\n", 1)[0]):
            raise UserError(f"{path} holds JSON lines: name it .jsonl, so that they are read.")
        unpacking.check_line_end(path, next(_lines(path, file), b""))


def _is_json_lines(path):
    return _suffix(path) in (*_JSON_LINES, ".json")


# --- their documents ---


def size(path):
    """The bytes of text in `path`, or None where it is compressed and the size does not tell."""
    return None if unpacking.split_packing(path)[1] else os.path.getsize(path)


def documents(path, max_bytes=8_000_000):
    """Reads a file's documents, one after the other.

    Plain text has a paragraph or a sentence a line and a blank line between documents: one without
    a character to be seen, so that ideographic and no-break spaces count as blanks. A document that
    grows beyond `max_bytes` is ended at a line end. A .jsonl, .ndjson or .json file has a document
    a line, in the field "text".

    Yields:
        Tuples of the document (str, without blank lines) and the bytes of the (unpacked) file that
        were read for it.

    Raises:
        UserError: damaged compression, not UTF-8, not JSON; names the file and the place.
    """
    check(path)
    with unpacking.opened(path) as file:
        if _is_json_lines(path):
            yield from _json_documents(path, _lines(path, file))
        else:
            yield from _plain_documents(path, _lines(path, file), max_bytes)


def _lines(path, file):
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 1):
        if len(line) == _MAX_LINE_BYTES:
            raise UserError(f"{path}:{number} is a line of over 64 MB: write a paragraph a line.")
        yield line if number > 1 else line.removeprefix(codecs.BOM_UTF8)


def _is_blank(line):
    """Whether nothing is to be seen in a line: white space of any kind and control characters."""
    line = line.strip()
    if not line or 0x20 < line[0] < 0x7F:
        return not line
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not any(char.isprintable() and not char.isspace() for char in text)


def _plain_documents(path, lines, max_bytes):
    size, collected = 0, []
    for number, line in enumerate(itertools.chain(lines, [b""])):
        size += len(line)
        blank = _is_blank(line)
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


# --- a sample ---


def sample_texts(files, max_bytes):
    """Documents of all `files`, about `max_bytes` in all, spread evenly over each of them.

    Every file has an equal share; what a small one leaves of its own goes to the larger ones. A
    packed file is read twice, the first time for its size. The same files give the same sample.
    """
    sizes = sorted((_unpacked_size(file), file) for file in files)
    for left, (total, file) in zip(range(len(files), 0, -1), sizes, strict=True):
        share, place, taken = max_bytes // left, 0, 0
        for text, num_bytes in documents(file, max_bytes=_SAMPLE_BYTES):
            # Taken as soon as the sample lags behind its share of what was read.
            if taken * total <= place * share and taken < share:
                taken += num_bytes
                yield text
            place += num_bytes
        max_bytes -= min(taken, max_bytes)


def _unpacked_size(path):
    if size(path) is not None:
        return size(path)
    with unpacking.opened(path) as file:
        return sum(map(len, iter(lambda: file.read(1 << 20), b"")))
