"""BUILD against the imports: as tools/update_build.py writes it, and read here in another way."""

import ast
import collections
import dis
import importlib
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("convbert_tf", "configs", "tools", "tests")
# Packages with public names of their own, which they load on first use.
PUBLIC = {
    "convbert_tf/__init__.py": "convbert_tf",
    "convbert_tf/serving/__init__.py": "convbert_tf.serving",
}
# Packages whose distribution has another name.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "official": "tf-models-official",
    "orbit": "tf-models-official",
    "grpc": "grpcio",
    "sklearn": "scikit-learn",
    "tensorflow_serving": "tensorflow-serving-api",
}


def update_build(root, *flags):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "update_build.py"), f"--root={root}", *flags],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        timeout=60,
    )


def read_rules(text):
    """The py_... rules of a BUILD file, which is Python to read: [(kind, attributes)]."""
    calls = [node.value for node in ast.parse(text).body if isinstance(node.value, ast.Call)]
    return [
        (call.func.id, {word.arg: ast.literal_eval(word.value) for word in call.keywords})
        for call in calls
        if call.func.id.startswith("py_")
    ]


def imports_of(code):
    """(module, names) of each import that the byte code `code` carries out, functions' too."""
    found, names = [], None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            names = []
            found.append((instruction.argval, names))
        elif instruction.opname == "IMPORT_FROM":
            names.append(instruction.argval)
    inner = [const for const in code.co_consts if isinstance(const, type(code))]
    return found + [one for const in inner for one in imports_of(const)]


def label_of(source):
    """Label of the target of `source`, a path relative to the root."""
    if source == "convbert_tf/__init__.py":
        return ":convbert_tf"
    label = ":" + source.removeprefix("convbert_tf/").removesuffix(".py")
    beside = ("tools/benchmark.py", "tools/evidence.py")  # folders of their names
    return f"{label}_main" if source in beside else label


def source_of(name):
    """The file that `name`, dotted, is or is taken from; a package is its __init__.py."""
    place = name.replace(".", "/")
    found = [path for path in (f"{place}/__init__.py", f"{place}.py") if (ROOT / path).is_file()]
    return found[0] if found else source_of(name.rpartition(".")[0])


def labels_of_import(module, names):
    """Labels of the targets that `import module` or `from module import names` needs."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return set()
    if top not in FOLDERS:
        return {"@pypi//" + DISTRIBUTIONS.get(top, top).replace("-", "_")}
    dotted = [f"{module}.{name}" for name in names] or [module]
    return {label_of(source_of(name)) for name in dotted}


def compiled(source):
    return compile((ROOT / source).read_text(encoding="utf-8"), source, "exec")


def packages_without_code(source):
    """The __init__.py files beside and above `source` that at most have a docstring."""
    parts = source.split("/")
    inits = ["/".join([*parts[:depth], "__init__.py"]) for depth in range(1, len(parts))]
    inits = [init for init in inits if init != source and (ROOT / init).exists()]
    return [init for init in inits if set(compiled(init).co_names) <= {"__doc__"}]


@pytest.fixture(scope="module")
def rules():
    return read_rules((ROOT / "BUILD").read_text(encoding="utf-8"))


def test_build_is_what_the_imports_say():
    result = update_build(ROOT, "--check")
    assert (result.returncode, result.stderr) == (0, "")


def test_each_source_is_in_one_rule_of_the_right_kind(rules):
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    sources = [path.relative_to(ROOT).as_posix() for path in paths]
    assert sorted(source for _, rule in rules for source in rule["srcs"]) == sorted(sources)
    for kind, rule in rules:
        (source,) = rule["srcs"]
        if re.fullmatch(r"tools/\w+\.py", source):
            assert (kind, rule["main"]) == ("py_binary", source)
        elif source.endswith("_test.py"):
            assert (kind, rule["main_module"]) == ("py_test", "pytest")
            assert rule["args"] == [f"$(rootpath {source})"]
        else:
            assert kind == "py_library"
            assert rule.get("testonly", False) == source.startswith("tests/")


def test_names_are_those_of_the_sources_and_differ(rules):
    names = [rule["name"] for _, rule in rules]
    assert max(collections.Counter(names).values()) == 1
    for _, rule in rules:
        assert f":{rule['name']}" == label_of(rule["srcs"][0])


def test_no_program_is_built_where_a_folder_of_sources_lies(rules):
    for kind, rule in rules:
        assert kind == "py_library" or not (ROOT / rule["name"]).is_dir(), rule["name"]


def test_deps_are_what_the_compiled_sources_import(rules):
    for kind, rule in rules:
        (source,) = rule["srcs"]
        if source in PUBLIC:
            continue  # it loads its modules by name, see below
        labels = [labels_of_import(*one) for one in imports_of(compiled(source))]
        expected = set().union(*labels) | ({"@pypi//pytest"} if kind == "py_test" else set())
        expected |= {label_of(init) for init in packages_without_code(source)}
        deps = rule.get("deps", [])
        assert len(deps) == len(set(deps)), source
        assert set(deps) == expected, source


@pytest.mark.parametrize("source", PUBLIC)
def test_a_package_needs_its_public_modules(rules, source):
    package = importlib.import_module(PUBLIC[source])
    owners = {getattr(package, name).__module__ for name in package._PUBLIC}
    owners |= {getattr(package, name).__name__ for name in getattr(package, "_MODULES", ())}
    deps = next(rule["deps"] for _, rule in rules if rule["srcs"] == [source])
    assert sorted(deps) == sorted(label_of(source_of(owner)) for owner in owners)


def test_deps_are_libraries_without_cycles(rules):
    libraries = {f":{rule['name']}": rule for kind, rule in rules if kind == "py_library"}
    tests = {f":{rule['name']}" for kind, rule in rules if kind == "py_test"}
    for _, rule in rules:
        ours = {dep for dep in rule.get("deps", []) if dep.startswith(":")}
        if rule["srcs"][0].startswith("tests/"):
            assert ours <= libraries.keys() | tests, rule["name"]
        else:
            assert ours <= libraries.keys(), rule["name"]
            assert not any(libraries[dep].get("testonly") for dep in ours), rule["name"]
    remaining = {name: set(rule.get("deps", [])) for name, rule in libraries.items()}
    while ready := {name for name, deps in remaining.items() if not deps & remaining.keys()}:
        remaining = {name: deps for name, deps in remaining.items() if name not in ready}
    assert not remaining, "these depend on each other"


def test_foreign_deps_are_pinned(rules):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines += [line for extra in project["optional-dependencies"].values() for line in extra]
    pinned = {re.match(r"[\w-]*", line)[0].lower().replace("-", "_") for line in lines}
    foreign = {dep for _, rule in rules for dep in rule.get("deps", []) if dep[0] == "@"}
    assert {dep.removeprefix("@pypi//") for dep in foreign} <= pinned


@pytest.fixture
def tree(tmp_path):
    """A copy of BUILD and all sources."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=lambda *_: {"__pycache__"})
    update_build(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('deps = ["@pypi//absl_py"]', 'deps = ["@pypi//tensorflow"]'),
        ('        ":console",\n', ""),
        ('        ":console",\n', '        ":console",\n        ":modeling/masking",\n'),
        ('        ":modeling/__init__",\n', ""),
        ('        ":serving/__init__",\n', ""),
        ('srcs = ["convbert_tf/modeling/layers.py"]', 'srcs = ["convbert_tf/layers.py"]'),
        ('\npy_library(\n    name = "console"', '\npy_binary(\n    name = "console"'),
    ],
)
def test_a_planted_fault_in_build_is_noticed_and_mended(tree, old, new):
    path = tree / "BUILD"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    result = update_build(tree, "--check")
    assert result.returncode == 1
    assert result.stderr == (
        "update_build.py: error: BUILD is not up to date: run tools/update_build.py.\n"
    )
    assert path.read_text(encoding="utf-8") == text.replace(old, new, 1)
    assert update_build(tree).returncode == 0
    assert path.read_text(encoding="utf-8") == text
    assert list(tree.glob("BUILD.*")) == []


@pytest.mark.parametrize(
    ("file", "line", "dep"),
    [
        ("convbert_tf/config.py", "def late():\n    import scipy.stats", "@pypi//scipy"),
        ("convbert_tf/config.py", "from convbert_tf.data import records", ":data/records"),
        ("convbert_tf/config.py", "from convbert_tf.data.records import encode", ":data/records"),
        ("convbert_tf/config.py", "from convbert_tf import serving", ":serving/__init__"),
        ("convbert_tf/modeling/new.py", "import os", ":modeling/__init__"),
        ("tools/new.py", "import orbit", "@pypi//tf_models_official"),
        ("tools/new.py", "from convbert_tf import layers", ":convbert_tf"),
        ("tools/benchmark/new.py", "from tools.benchmark import ours", ":tools/benchmark/ours"),
        ("tests/text/new_test.py", "from tests import goldens", ":tests/goldens"),
    ],
)
def test_a_planted_import_is_noticed(tree, file, line, dep):
    with open(tree / file, "a", encoding="utf-8") as source:
        source.write(f"\n\n{line}\n")
    assert update_build(tree, "--check").returncode == 1
    assert update_build(tree).returncode == 0
    rules = read_rules((tree / "BUILD").read_text(encoding="utf-8"))
    assert dep in next(rule["deps"] for _, rule in rules if rule["srcs"] == [file])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from . import ask", "tools/new.py:2: a relative import"),
        ("from tools import gone", "tools.gone is imported, but no file holds it"),
    ],
)
def test_what_no_label_can_say_is_refused_in_one_line(tree, line, message):
    (tree / "tools" / "new.py").write_text(f"import os\n{line}\n")
    result = update_build(tree)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
