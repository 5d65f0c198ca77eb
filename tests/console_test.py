"""Error lines and exit codes of the binaries, progress lines, quiet logs."""

import io
import logging
import os
import pathlib
import subprocess
import sys
import warnings

import pytest

from convbert_tf import console

ROOT = pathlib.Path(__file__).parents[1]
BINARY = '''
"""Does as it is told."""

from absl import flags
from ml_collections import config_flags

from convbert_tf import console

DO = flags.DEFINE_string("do", "nothing", "What to do.")
STEPS = flags.DEFINE_integer("steps", 1, "Steps.")
RATE = flags.DEFINE_float("rate", 0.5, "Above 0.", lower_bound=1e-9)
CONFIG = config_flags.DEFINE_config_file("config", None, "Its file.")


def main(_):
    console.say(f"batches of {CONFIG.value.training.batch_size}")
    if DO.value == "user_error":
        raise console.UserError("vocab.txt, line 3: twice 'the'.\\n  Remove one.")
    if DO.value == "missing_file":
        open("no/such/file")
    if DO.value == "defect":
        raise KeyError("ours")
    if DO.value == "interrupt":
        raise KeyboardInterrupt


console.run(main)
'''
CONFIG = """
from ml_collections import config_dict


def get_config():
    return config_dict.ConfigDict({"training": {"batch_size": 8}})
"""


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    path = tmp_path_factory.mktemp("tools") / "act.py"
    path.write_text(BINARY)
    config = path.with_name("eight.py")
    config.write_text(CONFIG)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(path), f"--config={config}", *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=60,
        )

    return run


def test_a_run_without_faults_ends_with_zero_and_says_what_it_says(binary):
    result = binary("--config.training.batch_size=16")
    assert (result.returncode, result.stdout, result.stderr) == (0, "batches of 16\n", "")


def test_a_tilde_in_a_flag_is_the_home_folder(binary, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "eight.py").write_text(CONFIG)
    result = binary("--config=~/eight.py")
    assert (result.returncode, result.stdout) == (0, "batches of 8\n")


@pytest.mark.parametrize(
    ("argument", "status", "message"),
    [
        ("--do=user_error", 1, "vocab.txt, line 3: twice 'the'. Remove one."),
        ("--do=missing_file", 1, "[Errno 2] No such file or directory: 'no/such/file'"),
        ("steps=4", 1, "unexpected argument 'steps=4'; flags look like --name=value."),
        ("--step=4", 2, "Unknown command line flag 'step'. Did you mean: steps ?"),
        ("--steps=many", 2, "flag --steps=many: 'many' is no whole number"),
        ("--rate=nan", 2, "flag --rate=nan: 'nan' is no number"),
        ("--config.training.batchsize=4", 2, "batchsize"),
        ("--config.training.batch_size=many", 2, "many"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_a_status(binary, argument, status, message):
    result = binary(argument)
    assert result.returncode == status
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("act.py: error: ") and message in lines[0]


def test_what_was_said_before_the_error_is_not_lost(binary):
    assert binary("--do=user_error").stdout == "batches of 8\n"


def test_a_defect_of_ours_keeps_its_traceback(binary):
    result = binary("--do=defect")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "KeyError: 'ours'" in result.stderr


def test_an_interrupt_ends_quietly_with_130(binary):
    result = binary("--do=interrupt")
    assert (result.returncode, result.stderr) == (130, "")


@pytest.mark.parametrize("argument", ["--help", "-h", "-?", "--helpshort", "--helpfull"])
def test_help_names_the_flags(binary, argument):
    result = binary(argument, "--no_such_flag")
    assert (result.returncode, result.stderr) == (0, "")
    usage, empty, doc, *_ = result.stdout.splitlines()
    assert usage.startswith("Usage: python ") and not empty and doc == "Does as it is told."
    assert "  --steps  (default: 1)\n      Steps.\n" in result.stdout
    assert ("--[no]logtostderr" in result.stdout) == (argument == "--helpfull")


def test_help_in_xml_names_the_flags(binary):
    result = binary("--helpxml")
    assert result.returncode == 0 and "<name>steps</name>" in result.stdout


@pytest.fixture
def loggers():
    """Loggers of absl and TensorFlow, put back afterwards."""
    found = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.INFO)
    yield found
    for logger, level in zip(found, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [(None, "3", logging.ERROR), ("1", "1", logging.ERROR), ("0", "0", logging.INFO)],
)
def test_logs_are_quiet_unless_they_are_asked_for(monkeypatch, loggers, before, after, level):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", before or "")
    if before is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        console.quiet_logs()
        warnings.warn("old", FutureWarning, stacklevel=1)
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == after
    assert [logger.level for logger in loggers] == [level, level]
    assert len(caught) == (before == "0")


LOADED = """
import sys
from convbert_tf import console
assert console.call("math", "hypot", 3, 4) == 5
print(*(name for name in ("tensorflow", "keras", *console.UNASKED) if name in sys.modules))
import pandas, sklearn.metrics
print(pandas.Series([3]).sum(), sklearn.metrics.accuracy_score([1], [1]))
"""


@pytest.mark.parametrize(("backend", "loaded"), [("tensorflow", "tensorflow keras"), ("jax", "")])
def test_tensorflow_is_loaded_without_what_it_loads_unasked(backend, loaded):
    command = [sys.executable, "-c", LOADED]
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [loaded, "3 1.0"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86399.9, "1 d 0 h"),
        (4 * 86400 + 3 * 3600 + 59, "4 d 3 h"),
    ],
)
def test_durations_are_as_people_write_them(seconds, expected):
    assert console.duration(seconds) == expected


@pytest.fixture
def clock(monkeypatch):
    """Sets what time.monotonic says."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_tells_share_rate_and_time_left(clock):
    stream = io.StringIO()
    progress = console.Progress("train", total=1000, unit="steps", stream=stream)
    clock(110.0)
    progress.update(250, note="loss 1.5")
    assert stream.getvalue() == (
        "train: 250 of 1,000 steps (25%)  25 steps/s  30 s left  loss 1.5\n"
    )


def test_progress_of_a_resumed_run_counts_only_what_it_did(clock):
    progress = console.Progress("train", total=1000, start=900, stream=io.StringIO())
    clock(104.0)
    progress.update(920)
    assert progress.rate == pytest.approx(20 / 4)


def test_progress_is_silent_until_a_line_is_due(clock):
    stream = io.StringIO()
    progress = console.Progress("read", unit="files", stream=stream, every=5)
    clock(104.9)
    progress.update(490)
    assert stream.getvalue() == ""
    clock(105.0)
    progress.update(500)
    progress.update(501)
    assert stream.getvalue() == "read: 500 files  100 files/s\n"


def test_closing_prints_the_last_state_and_what_it_took(clock):
    stream = io.StringIO()
    progress = console.Progress("records", total=4_000_000, unit="B", stream=stream, every=60)
    clock(104.0)
    progress.update(3_200_000, note="120 records")
    progress.close()
    assert stream.getvalue() == "records: 3.2 of 4.0 MB (80%)  0.8 MB/s  took 4 s  120 records\n"
    progress.close("all of them")
    assert stream.getvalue().endswith("took 4 s  all of them\n")


def test_a_terminal_line_is_rewritten_in_place(clock):
    stream = Terminal()
    progress = console.Progress("train", total=10, stream=stream)
    clock(100.4)
    progress.update(1)  # not yet due
    clock(100.5)
    progress.update(2)
    clock(101.0)
    progress.update(3)
    progress.close()
    written = stream.getvalue()
    assert written.count("\r\x1b[K") == 3
    assert written.count("\n") == 1 and written.endswith("\n")


def test_a_total_of_nothing_and_no_time_divide_by_no_zero(clock):
    stream = io.StringIO()
    console.Progress("none", total=0, stream=stream).close()
    assert stream.getvalue() == "none: 0  0/s  took 0 s\n"


def test_say_writes_at_once(capsys):
    console.say("half")
    assert capsys.readouterr().out == "half\n"


def test_the_reason_is_one_line_without_the_names_of_nodes():
    error = RuntimeError("not this")
    error.message = "{{function_node __wrapped__SaveV2_device_/job:a}} run/x;\nNo space [Op:SaveV2]"
    assert console.reason(error) == "run/x; No space"
    assert console.reason(OSError(28, "No space")) == "[Errno 28] No space"


def test_a_reader_that_has_enough_is_no_error():
    code = (
        "from convbert_tf import console\n"
        "def main(_):\n    for _ in range(100_000):\n        console.say('a line of text')\n"
        "console.run(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "a line of text\n"
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, "")
    process.stderr.close()
