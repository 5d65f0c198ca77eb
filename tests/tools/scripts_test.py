"""The shell scripts: bash of 2007 as macOS has it, set-up that shows life and stops cleanly."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "tools").glob("*.sh")), ROOT / ".ci" / "run"]
# What bash 3.2, or the tools of macOS, do not know.
TOO_NEW = {
    "associative array": r"\b(declare|local|typeset|readonly) -\w*[Ang]",
    "mapfile": r"\b(mapfile|readarray|coproc)\b",
    "change of case": r"\$\{\w+(\[.*?\])?[,^]",
    "transformation": r"\$\{\w+(\[.*?\])?@[A-Za-z]\}",
    "variable of newer bash": r"\b(BASHPID|EPOCHSECONDS|EPOCHREALTIME|SRANDOM)\b",
    "test of a variable": r"\[\[ (! )?-v ",
    "redirection of both": r"&>>|\|&",
    "wait -n": r"\bwait -\w",
    "fraction of a second": r"\bread -t ?\d*\.\d|\bsleep \d*\.\d",
    "negative index": r"\$\{\w+\[-\d",
    "time in printf": r"printf .*%\(",
    "option of GNU": r"\b(sed -i|sed -r|grep -P|readlink -f|date -d|stat -c|cp -t|xargs -r)\b",
    "program of Linux": r"\b(nproc|tac|realpath|sha256sum|timeout|setsid)\b",
}


def code_of(script):
    """The lines of a script without those that are comments."""
    lines = script.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_for_bash_3_2(script):
    found = [
        f"{what}: {line.strip()}"
        for line in code_of(script)
        for what, pattern in TOO_NEW.items()
        if re.search(pattern, line)
    ]
    assert found == []
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        "declare -A sizes",
        "mapfile -t lines <file",
        'echo "${name,,}" "${names[@]^^}"',
        "echo ${name@Q}",
        "make &>>log",
        "sleep 0.5",
        "sed -i s/a/b/ file",
        "[[ -v name ]]",
    ],
)
def test_what_bash_3_2_does_not_know_is_found(line):
    assert any(re.search(pattern, line) for pattern in TOO_NEW.values())


# A Python that is none: `-c` answers whether its version will do, `-m venv` copies it to .venv, and
# pip writes what pip writes, while packages appear.
PYTHON = """#!/usr/bin/env bash
version=VERSION
case $1 in
  -c) case $version in 3.11|3.12|3.13) exit 0 ;; *) exit 1 ;; esac ;;
  --version) echo "Python $version" ;;
  -m)
    case $2 in
      venv)
        [[ -z ${NO_VENV:-} ]] || { echo "ensurepip is not available"; exit 1; }
        mkdir -p .venv/bin .venv/lib/python$version/site-packages
        cp "$0" .venv/bin/python
        echo "$PWD/.venv" >.venv/bin/activate
        ;;
      pip)
        echo "$*" >pip.arguments
        echo "Collecting keras==3"
        echo "  Downloading keras-3-py3-none-any.whl.metadata (5 kB)"
        [[ -z ${PIP_FAILS:-} ]] || { echo "ERROR: No matching distribution"; exit 1; }
        echo "  Downloading keras-3-py3-none-any.whl (1.5 MB)"
        sleep ${PIP_SECONDS:-0}
        echo "Installing collected packages: absl-py, keras"
        folder=.venv/lib/python$version/site-packages/absl_py-2.dist-info
        mkdir $folder
        touch $folder/INSTALLER
        sleep ${PIP_SECONDS:-0}
        ;;
    esac
    ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    """A folder with setup.sh, and bin/ in which `pythons` come first on the path."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "tools" / "setup.sh", tmp_path / "tools")
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python"):
        add_python(tmp_path, name, "3.9")
    return tmp_path


def add_python(project, name, version):
    path = project / "bin" / name
    path.write_text(PYTHON.replace("VERSION", version, 1))
    path.chmod(0o755)


def start(project, *arguments, **environment):
    path = f"{project}/bin:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "tools/setup.sh", *arguments],
        cwd=project,
        env=os.environ | {"PATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where these tests run in the background, Ctrl-C is ignored by all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def setup(project, *arguments, **environment):
    process = start(project, *arguments, **environment)
    out, error = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), error.splitlines()


def running(group):
    """Command lines of the processes of a group that have not ended."""
    columns = ["ps", "-A", "-o", "pgid=", "-o", "stat=", "-o", "args="]
    out = subprocess.run(columns, capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    return [line[2] for line in lines if line[0] == str(group) and line[1][0] != "Z"]


def version_of(project):
    return (project / ".venv" / "bin" / "python").read_text().split("version=")[1].split("\n")[0]


@pytest.mark.parametrize(
    ("pythons", "expected"),
    [
        ({"python3": "3.12", "python3.13": "3.13"}, "3.12"),
        ({"python3": "3.14", "python3.11": "3.11", "python3.12": "3.12"}, "3.12"),
        ({"python3.11": "3.11"}, "3.11"),
        ({"python": "3.13"}, "3.13"),
    ],
)
def test_python3_comes_first_then_the_newest_that_will_do(project, pythons, expected):
    for name, version in pythons.items():
        add_python(project, name, version)
    status, out, error = setup(project)
    assert (status, error) == (0, [])
    assert version_of(project) == expected and f"Python {expected}" in out[0]


def test_without_python_or_its_venv_a_line_says_what_to_install(project):
    status, out, error = setup(project)
    assert (status, out) == (1, []) and len(error) == 1
    assert error[0].startswith("setup: error: Python 3.11, 3.12 or 3.13 is missing")
    for name, package in (("python3.12", "python3.12-venv"), ("python3", "python3-venv")):
        add_python(project, name, "3.12")
        status, _, error = setup(project, NO_VENV="1")
        assert status == 1 and len(error) == 1
        assert f"the package {package}. It said: ensurepip is not available" in error[0]


def test_what_is_installed_is_not_installed_again(project):
    add_python(project, "python3", "3.11")
    (project / "requirements.txt").write_text("keras==3\n")
    assert setup(project, "peers")[0] == 0
    assert (project / "pip.arguments").read_text().endswith("-r requirements.txt -e .[dev,peers]\n")
    add_python(project, "python3", "3.13")  # a .venv that will do stays
    for smaller in ("peers", "dev", "base"):
        assert setup(project, smaller) == (0, [], [])
    (project / "requirements.txt").write_text("keras==4\n")
    status, out, _ = setup(project)
    assert status == 0 and out[-1].startswith("setup: done in")
    assert version_of(project) == "3.11"
    assert (project / "pip.arguments").read_text().endswith("-r requirements.txt -e .\n")
    assert setup(project, "dev")[1][-1].startswith("setup: done in")


def test_an_environment_of_somebody_else_is_left_as_it_is(project):
    add_python(project, "python3", "3.12")
    other = project / "other"
    other.mkdir()
    (other / "installed").write_text("dev 1")
    (project / ".venv").symlink_to(other)
    status, _, error = setup(project)
    assert status == 1 and "a link to an environment of another folder" in error[0]
    (project / ".venv").unlink()
    (project / ".venv" / "bin").mkdir(parents=True)  # one without pip, as uv makes it
    (project / ".venv" / "bin" / "activate").write_text("")
    status, _, error = setup(project)
    assert status == 1 and "was not made by this script" in error[0]
    assert [path.name for path in other.iterdir()] == ["installed"]
    assert [path.name for path in (project / ".venv").iterdir()] == ["bin"]
    # One of this script's is made anew, even by the Python of the activated .venv itself.
    (project / ".venv" / "installed").write_text("base 1")
    add_python(project, "../.venv/bin/python3", "3.13")
    status, out, _ = setup(project, PATH=f"{project}/.venv/bin:{project}/bin:{os.environ['PATH']}")
    assert status == 0 and "making it anew" in out[0] and version_of(project) == "3.12"


@pytest.mark.parametrize("name", ["setup", "test", "quickstart", "reproduce_glue"])
def test_help_does_nothing_but_say_how_it_is_used(name, tmp_path):
    (tmp_path / "tools").mkdir()
    script = shutil.copy(ROOT / "tools" / f"{name}.sh", tmp_path / "tools")
    done = subprocess.run(["bash", script, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n    bash tools/{name}.sh" in done.stdout and "set -euo" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]


def test_pip_s_fault_is_one_line_and_leaves_nothing_running(project):
    add_python(project, "python3", "3.12")
    status, _, error = setup(project, PIP_FAILS="1")
    assert status == 1
    assert error == [
        "setup: error: pip failed: No matching distribution (all it said is in .venv/pip.log)"
    ]
    assert not (project / ".venv" / "installed").exists()


@pytest.mark.slow
def test_lines_in_a_log_say_what_pip_is_at(project):
    add_python(project, "python3", "3.12")
    status, out, error = setup(project, PIP_SECONDS="6")
    assert (status, error) == (0, [])
    said = [line.split(" s, ")[1] for line in out if " s, " in line]
    assert said == ["downloading keras (1.5 MB)", "installing keras (1 of 2 packages are there)"]
    assert re.fullmatch(r"setup: \d+ s, downloading keras \(1.5 MB\)", out[2])


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed")
def test_ctrl_c_stops_everything_and_the_next_run_starts_anew(project):
    add_python(project, "python3", "3.12")
    process = start(project, PIP_SECONDS="30")
    log = project / ".venv" / "pip.log"
    while not (log.exists() and "MB" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all processes in front
    out, error = process.communicate(timeout=20)  # before what pip pretends to need
    assert (process.returncode, error) == (130, "")
    assert running(process.pid) == []
    assert setup(project)[1][0].startswith("setup: .venv is incomplete")
