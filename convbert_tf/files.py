"""Files that are there whole or not at all, and directories on the hub; no TensorFlow."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil

from convbert_tf import schema
from convbert_tf.console import UserError, reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_POINTER = b"version https://git-lfs.github.com/spec/"  # how a pointer begins


@contextlib.contextmanager
def atomic_path(path):
    """A path beside `path` to write to; on leaving, what was written there takes its place.

    Folders above it are made. After an error nothing is left and an old file stays as it was; a
    process that is killed leaves the file named `path` + ".partial-...". Of a device or a pipe it
    is `path` itself: a file in its place would be its end for all other programs.

    Example: `with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:`
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if os.path.exists(path) and not os.path.isfile(path):
        yield path
        return
    if os.path.abspath(path).startswith("/dev/"):
        path = os.path.realpath(path)  # /dev/stdout is a link, here to a file
    make_folder(os.path.dirname(os.path.abspath(path)))
    # Not the process id alone: on a cluster, two machines may write the same file.
    partial = f"{path}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename == partial:  # a name that nobody has given
            raise type(error)(error.errno, error.strerror, path) from error
        raise
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def make_folder(folder):
    """Makes a folder and those above it, where they are not there."""
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:  # "File exists" would not say what is wrong
        what = os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, what, error.filename) from None


_locked = set()  # folders that this process is the only one in


@contextlib.contextmanager
def only_one(folder):
    """Within it, no other process is: a second one is refused. Does nothing for no folder ("").

    A process may enter the same folder again. A second process goes unnoticed where the system or
    the file system has no such locks.
    """
    place = os.path.realpath(folder) if folder else ""
    if not folder or place in _locked:
        yield
        return
    with _lock(folder):
        _locked.add(place)
        try:
            yield
        finally:
            _locked.discard(place)


@contextlib.contextmanager
def _lock(folder):
    make_folder(folder)
    with open(os.path.join(folder, ".lock"), "w") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work in {folder}: end it first.") from None
        except OSError:  # a file system without locks
            pass
        yield


def write_bytes(path, content):
    """Writes `content` to `path`, whole or not at all."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(content)


def write_json(path, value):
    """Writes `value` to `path` as JSON, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=_unwrapped) + "\n"
    write_bytes(path, text.encode("utf-8"))


def _unwrapped(value):
    """The dict inside TensorFlow's proxy of one, which Python 3.13 does not take for a dict."""
    if isinstance(value, dict):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def read_json(path, what, kind=None):
    """The JSON of the file at `path`.

    Args:
        path: of the file.
        what: names the content in the error when the file cannot be read.
        kind: the type that the content must have (see schema.py); None for any.

    Raises:
        UserError: the file is not there, is no JSON, or its content is of another type.
    """
    try:
        check_file(path)
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is not there: {what} is expected.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {what} is expected.") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply: {what} is expected.") from error
    except UserError:
        raise
    except ValueError as error:  # JSON, UTF-8, or a number of thousands of digits
        raise UserError(f"{path} is no JSON ({reason(error)}): {what} is expected.") from error
    if kind is not None:
        schema.check(value, kind, path)
    return value


def check_file(path):
    """Refuses what stands at `path` in place of a file: a broken link, a pointer of Git LFS.

    Where there is nothing at all, nothing is said.
    """
    if not os.path.exists(path) and os.path.lexists(path):
        raise UserError(f"{path} is a broken link: the file that it names is not there.")
    if os.path.isfile(path):
        with open(path, "rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise UserError(f"{path} is a Git LFS pointer, not the file: run git lfs pull.")


def sha256(path):
    """SHA-256 of the file at `path`, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def undone_on_error(directory):
    """Makes `directory`; after an error within, nothing is left of it if it was new or empty.

    Folders above it that were made go as well. A directory with files is left as it is.
    """
    directory = os.path.abspath(directory)
    is_new, missing = not os.path.lexists(directory), []
    while not os.path.lexists(path := os.path.dirname((missing or [directory])[-1])):
        missing.append(path)
    os.makedirs(directory, exist_ok=True)
    was_empty = not os.listdir(directory)
    try:
        yield
    except BaseException:
        if was_empty:
            shutil.rmtree(directory, ignore_errors=True)
        if was_empty and not is_new:
            os.makedirs(directory, exist_ok=True)
        with contextlib.suppress(OSError):  # somebody else has written there meanwhile
            for path in missing:
                os.rmdir(path)
        raise


def fetch(source):
    """Path of a local directory: `source`, or where "hf://owner/name@revision" is downloaded to."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise UserError(f"name a directory or hf://owner/name to load from, not {source!r}.")
    return download(source) if is_address(source) else source


def is_address(source):
    """Whether `source` is on Hugging Face's hub."""
    return str(source).startswith("hf://")


def download(address):
    """Local path of a model on the hub, downloaded to huggingface_hub's cache if it is not there.

    Args:
        address: "hf://owner/name" or "hf://owner/name@revision": a branch, tag or commit. With
            HF_HUB_OFFLINE=1 only the cache is looked at.

    Raises:
        UserError: it is not there, or cannot be reached.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?", address)
    if not match or ".." in address:
        raise UserError(f"{address!r} is no address like hf://owner/name or hf://owner/name@tag.")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise UserError(f"{address} needs huggingface_hub: {how_to_install(error)}.") from error
    repo, revision = match.groups()
    # Of the weights one file is enough; those of a preset, and safetensors, come first.
    files = ["*.json", "vocab.txt"]
    choices = (["model.weights.h5", "model*.safetensors"], ["tf_model.h5"], ["pytorch_model*.bin"])
    try:
        for weights in choices:
            path = snapshot_download(repo, revision=revision, allow_patterns=files + weights)
            if any(name.endswith((".h5", ".safetensors", ".bin")) for name in os.listdir(path)):
                break
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{address} is not (or not wholly) in the cache, and the hub cannot be reached: set "
            "HF_HUB_OFFLINE=0, or give a local directory."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision!r} on the hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{repo} is not on the hub, or private: then set HF_TOKEN.") from error
    except errors.HFValidationError as error:
        raise UserError(f"{address} is no name of a model on the hub: {reason(error)}") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"{address} cannot be downloaded: {reason(error)}") from error
    return path


def how_to_install(error):
    """What to do about the ImportError of an optional library."""
    own = error.name in ("huggingface_hub", "safetensors")
    extra = "pip install -e '.[huggingface]' or " if own else ""
    return f"{extra}pip install {error.name}"
