"""Files that are there whole or not at all; no TensorFlow."""

import contextlib
import os
import secrets


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


def write_bytes(path, content):
    """Writes `content` to `path`, whole or not at all."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(content)
