"""The wheel: what is in it, what it asks for, and that it runs away from the repository."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import convbert_tf

ROOT = pathlib.Path(__file__).parents[1]
# They work on the repository or measure it, and stay in it.
NOT_PACKAGED = {"benchmark.py", "evidence.py", "make_documentation_data.py", "update_build.py"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def by_name(lines):
    requirements = [Requirement(line) for line in lines]
    found = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(found) == len(requirements), "a package is named twice"
    return found


def pinned_version(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, str(requirement)
    return specifier.version


def read_pins():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return by_name(line for line in lines if line and not line.startswith("#"))


def test_what_is_public_is_shown():
    assert {name for name in dir(convbert_tf) if not name.startswith("_")} == set(
        convbert_tf.__all__
    )
    assert "__version__" in dir(convbert_tf)


def test_each_exact_pin_lies_in_the_range_of_the_package(project):
    pins, ranges = read_pins(), by_name(project["dependencies"])
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        assert pinned_version(pin) in ranges[name].specifier, name


def test_each_exact_pin_of_an_extra_lies_in_the_extra_s_range(project):
    extras = project["optional-dependencies"]
    dev = by_name(extras["dev"])
    own = dev.pop("convbert-tf")
    assert own.extras == {"beam", "demo", "huggingface", "jax", "litert", "plot", "serving"}
    ranges = by_name(line for extra in own.extras for line in extras[extra])
    for name, pin in (dev | by_name(extras["peers"])).items():
        version = pinned_version(pin)
        if name in ranges:
            assert version in ranges.pop(name).specifier, name
    assert not ranges, "dev has no pin of these"


def test_ranges_are_bounded_on_both_sides(project):
    lines = project["dependencies"]
    lines = lines + sum(
        (project["optional-dependencies"][name] for name in ("beam", "huggingface", "jax", "plot")),
        [],
    )
    for requirement in by_name(lines).values():
        operators = sorted(specifier.operator for specifier in requirement.specifier)
        assert operators == ["<", ">="], str(requirement)


def test_setup_and_the_package_take_the_same_pythons(project):
    allowed = SpecifierSet(project["requires-python"])
    pythons = [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}.1" in allowed]
    assert pythons == ["3.11", "3.12", "3.13"]
    setup = (ROOT / "tools" / "setup.sh").read_text(encoding="utf-8")
    assert "not (3, 11) <= sys.version_info[:2] <= (3, 13)" in setup
    named = re.search(r"for candidate in (.*); do", setup)[1].split()
    assert set(named) == {"python3", "python", *(f"python{version}" for version in pythons)}
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert re.findall(r'python: "([\d.]+)"', workflow) == pythons


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the sources, unpacked as pip does it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for folder in ("convbert_tf", "configs", "tools"):
        shutil.copytree(ROOT / folder, source / folder, ignore=lambda *_: {"__pycache__"})
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, f"--wheel-dir={source}", source]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (path,) = source.glob("*.whl")
    zipfile.ZipFile(path).extractall(out)
    return out


def test_all_sources_are_in_the_wheel_and_nothing_else(wheel):
    found = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*.py")}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "convbert_tf").rglob("*.py")}
    ours |= {f"convbert_tf/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    tools = {path.name for path in (ROOT / "tools").glob("*.py")}
    assert tools > NOT_PACKAGED
    assert found == ours | {f"convbert_tf/tools/{name}" for name in tools - NOT_PACKAGED}


def run(wheel, folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        timeout=120,
    )


PRETRAIN = ["-m", "convbert_tf.tools.pretrain", "--config=configs/pretrain_tiny.py"]


def test_a_binary_of_the_wheel_finds_its_config_from_anywhere(wheel, tmp_path):
    result = run(wheel, tmp_path, "-c", "import convbert_tf; print(convbert_tf.__file__)")
    assert result.stdout == f"{wheel}/convbert_tf/__init__.py\n"
    result = run(wheel, tmp_path, *PRETRAIN)
    assert (result.returncode, result.stderr) == (
        1,
        "pretrain.py: error: set --config.data.train_dir and --config.training.model_dir.\n",
    )
    arguments = ["-m", "convbert_tf.tools.finetune", "--config", "configs/finetune_glue.py:cola"]
    assert "set config.task.init_from" in run(wheel, tmp_path, *arguments).stderr


def test_a_config_of_one_s_own_comes_before_the_wheel_s(wheel, tmp_path):
    (tmp_path / "configs").mkdir()
    text = (ROOT / "configs" / "pretrain_tiny.py").read_text(encoding="utf-8")
    own = text.replace("from convbert_tf import config", "raise ValueError('my own')", 1)
    (tmp_path / "configs" / "pretrain_tiny.py").write_text(own)
    result = run(wheel, tmp_path, *PRETRAIN)
    assert result.returncode == 2 and "my own" in result.stderr
