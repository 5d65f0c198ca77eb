"""A file is replaced whole, or stays as it was."""

import os
import pathlib
import stat
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import files
from convbert_tf.console import UserError
from convbert_tf.files import atomic_path, only_one


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    for text in ("one", "two"):
        with atomic_path(path) as partial, open(partial, "w") as file:
            file.write(text)
            file.flush()
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(str(path)) as partial, open(partial, "w") as file:
        file.write("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_told_by_the_name_that_was_given(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    for name, error in (("folder", IsADirectoryError), ("a.txt/b/c", NotADirectoryError)):
        with pytest.raises(error) as raised:
            files.write_bytes(tmp_path / name, b"")
        assert "partial" not in str(raised.value)
        assert str(raised.value).endswith(("folder'", "a.txt/b'"))
    with pytest.raises(NotADirectoryError, match="Not a directory: .*a.txt'"):
        files.write_bytes(tmp_path / "a.txt" / "b", b"")
    with pytest.raises(FileNotFoundError) as raised:
        files.write_bytes("/proc/none.txt", b"")
    assert str(raised.value).endswith(": '/proc/none.txt'")
    with pytest.raises(NotADirectoryError), only_one(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    files.write_bytes(pipe, b"text")
    assert reader.communicate(timeout=60)[0] == b"text" and pipe.is_fifo()
    code = "from convbert_tf import files; files.write_bytes('/dev/stdout', b'text')"
    for out in (subprocess.PIPE, open(tmp_path / "out", "wb")):  # noqa: SIM115
        run = subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
        assert (run.stdout or (tmp_path / "out").read_bytes()) == b"text"
    assert os.path.islink("/dev/stdout")
    files.write_bytes(os.devnull, b"text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first != second
        for partial, text in ((first, "first"), (second, "second")):
            with open(partial, "w") as file:
                file.write(text)
    assert path.read_text() == "first"  # whose block ends last


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    code = (
        "import sys; from convbert_tf.files import only_one\n"
        "with only_one(sys.argv[1]): print(1, flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    first.stdout.readline()
    with (
        pytest.raises(UserError, match="another process is at work in"),
        only_one(tmp_path / "run"),
    ):
        pass
    first.kill()
    first.communicate()
    with only_one(tmp_path / "run"), only_one(""), only_one(tmp_path / "run"):
        pass


def test_without_file_locks_the_work_goes_on(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = None  # as on Windows\n"
        "from convbert_tf.files import only_one, write_json\n"
        "with only_one(sys.argv[1]): write_json(sys.argv[1] + '/a.json', [1])"
    )
    root = pathlib.Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=True)
    assert (tmp_path / "a.json").exists()


def test_dicts_that_tensorflow_has_wrapped_are_written(tmp_path):
    module = tf.Module()
    module.scores = {"metrics": {"mcc": 0.5}}
    files.write_json(tmp_path / "scores.json", {"all": module.scores})
    assert files.read_json(tmp_path / "scores.json", "scores") == {"all": {"metrics": {"mcc": 0.5}}}
    with pytest.raises(TypeError, match="ndarray is no JSON value"):
        files.write_json(tmp_path / "scores.json", {"all": np.zeros(2)})
