"""Files that are there whole or not at all, and directories on the hub; no TensorFlow."""

import contextlib
import json
import os
import re
import secrets

from convbert_tf.console import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def atomic_path(path):
    """A path beside `path` to write to; on leaving, what was written there takes its place.

    Folders above it are made. After an error nothing is left and an old file stays as it was; a
    process that is killed leaves the file named `path` + ".partial-...".

    Example: `with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:`
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    # Not the process id alone: on a cluster, two machines may write the same file.
    partial = f"{path}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


@contextlib.contextmanager
def only_one(folder):
    """Within it, no other process is: a second one is refused. Does nothing for no folder ("").

    Nor is a second one noticed where the system or the file system has no such locks.
    """
    if not folder:
        yield
        return
    os.makedirs(folder, exist_ok=True)
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
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def read_json(path, what):
    """The JSON of the file at `path`; `what` names it in the error when it is not to be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is not there: {what} is expected.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON ({error}): {what} is expected.") from error


def fetch(source):
    """Path of a local directory: `source`, or where "hf://owner/name@revision" is downloaded to."""
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
        raise UserError(f"{address} needs it: pip install huggingface_hub.") from error
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
    return path
