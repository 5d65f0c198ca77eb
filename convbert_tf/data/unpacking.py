"""The bytes of files, also packed by gzip or xz, and their kind by what they hold."""

import contextlib
import gzip
import io
import lzma
import os
import zlib

from convbert_tf.console import UserError

PACKINGS = (".gz", ".xz")
_NAMES = {".gz": "gzip", ".xz": "xz"}
_BLOCK = 1 << 20
# How files begin that are no text, whatever their names.
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\xff\x06\0\0sNaPpY": "Snappy",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"Obj\x01": "Avro",
    b"WARC/1": "WARC",
    b"%PDF-": "PDF",
    b"{\\rtf": "RTF",
    b"\xd0\xcf\x11\xe0": "Office",
    b"\x89HDF\r\n": "HDF5",
    b"\x93NUMPY": "NumPy",
    b"SQLite format 3\0": "SQLite",
    b"\x89PNG\r\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\x7fELF": "program",
}
_TAR_AT = 257  # where a tar archive has its mark


def split_packing(path):
    """The path without the suffix of a packing, and that suffix (".gz", ".xz" or "")."""
    stem, packing = os.path.splitext(path)
    return (stem, packing.lower()) if packing.lower() in PACKINGS else (path, "")


def check_line_end(name, first):
    """Refuses a file, of which `first` is the first line, whose lines end by carriage returns."""
    if not first.endswith(b"\n") and b"\r" in first.rstrip(b"\r"):
        raise UserError(
            f"{name} has carriage returns for line ends, and no line feeds: convert it, say with "
            r"tr '\r' '\n'."
        )


@contextlib.contextmanager
def opened(path):
    """A binary reader of the whole unpacked content of `path`: all streams of a packed file.

    Raises:
        UserError: the file cannot be read or is damaged, is empty though it should be packed, or
            its content, unpacked, is another kind of file than text.
    """
    packing = split_packing(path)[1]
    try:
        with open(path, "rb") as file:
            _check_packing(path, packing, file.peek(512)[:512])
            with _unpacked(file, packing) as content:
                kind = _kind(content.peek(512)[:512])
                if kind:
                    raise UserError(
                        f"{path} is no text: by its content it is a {kind} file"
                        f"{' inside' if packing else ''}; unpack it to text."
                    )
                yield content
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path} is damaged ({error}): unpack it again from its source, or leave it out."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _check_packing(path, packing, head):
    kind = _kind(head)
    if packing and not head:
        raise UserError(f"{path} is empty, so it is no {_NAMES[packing]} file: get it again.")
    if packing and kind and kind != _NAMES[packing]:
        raise UserError(f"{path} is no {_NAMES[packing]} file: by its content it is {kind}.")


def _kind(head):
    """The name of the kind of file that begins with the bytes `head`; None where it may be text."""
    if head[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return "tar"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _unpacked(file, packing):
    if packing == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file), _BLOCK)
    return io.BufferedReader(_Blocks(_xz_blocks(file)), _BLOCK) if packing else file


class _Blocks(io.RawIOBase):
    """A file that consists of the blocks (bytes) of an iterator."""

    def __init__(self, blocks):
        self._blocks, self._left = blocks, b""

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _xz_blocks(file):
    """Yields what is in an xz file, all its streams, as the xz program does.

    Python's own reader ends in silence at stream padding and at a damaged second stream.
    """
    data, form = file.read(_BLOCK), lzma.FORMAT_AUTO
    while data:
        stream = lzma.LZMADecompressor(form)
        while not stream.eof:
            if stream.needs_input and not data:
                data = file.read(_BLOCK)
                if not data:
                    raise EOFError("it ends inside a stream")
            yield stream.decompress(data, _BLOCK)
            data = b""
        data, form = _skip_padding(stream.unused_data, file), lzma.FORMAT_XZ


def _skip_padding(data, file):
    """What comes after the zeros in `data` and the rest of `file`."""
    zeros = 0
    while data := data or file.read(_BLOCK):
        rest = data.lstrip(b"\0")
        zeros, data = zeros + len(data) - len(rest), rest
        if rest:
            break
    if zeros % 4:
        raise lzma.LZMAError(f"{zeros} bytes of padding, no multiple of four")
    return data
