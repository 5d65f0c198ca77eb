"""Rewrites BUILD, the Bazel targets, from the imports of the sources.

    python tools/update_build.py           writes the file
    python tools/update_build.py --check   fails where the file is not what would be written

Every .py file below convbert_tf/, configs/, tools/ and tests/ becomes one target; its deps are what
it imports anywhere, inside functions too. Of the names that are imported from strings only those in
the tables of a package's __init__.py are seen.
"""

import ast
import os
import pathlib
import sys

from absl import flags

from convbert_tf import console

ROOT = flags.DEFINE_string(
    "root", str(pathlib.Path(__file__).resolve().parents[1]), "Folder of BUILD and the sources."
)
CHECK = flags.DEFINE_bool("check", False, "Change nothing, but fail if BUILD is not up to date.")

PACKAGE = "convbert_tf"
FOLDERS = (PACKAGE, "configs", "tools", "tests")
# In a package's __init__.py: public name -> the module that it is in, loaded on first use.
TABLES = ("_PUBLIC", "_MODULES")
# Where a package's name on the index is not the name it is imported by.
DISTRIBUTIONS = {
    "absl": "absl_py",
    "official": "tf_models_official",
    "orbit": "tf_models_official",
    "sklearn": "scikit_learn",
    "grpc": "grpcio",
    "tensorflow_serving": "tensorflow_serving_api",
}
HEADER = '''\
"""ConvBERT for TensorFlow 2: Bazel targets, written by tools/update_build.py; do not edit.

Each source is a target of its own, named by its path without .py, and in convbert_tf/ without that
folder as well: //:console, //:modeling/layers, //:tools/pretrain, //:tests/modeling/layers_test.
Three things are otherwise:
- //:convbert_tf is convbert_tf/__init__.py, the package as its users import it, and needs all its
  public modules; so does //:serving/__init__ for those of serving. No module of the package needs
  them: where they are absent Bazel puts an empty file.
- An __init__.py without code, such as //:modeling/__init__, is needed by all modules below it.
- A binary beside a folder of its own name ends in _main, as in //:tools/benchmark_main: it would be
  built where that folder has to be.
@pypi is the hub of rules_python's pip.parse over requirements.txt and the extras of pyproject.toml.
main_module needs rules_python 1.3 or later.
"""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])

licenses(["notice"])
'''


def main(_):
    root = pathlib.Path(ROOT.value)
    if not (root / PACKAGE).is_dir():
        raise console.UserError(f"{root} has no folder {PACKAGE}.")
    path, text = root / "BUILD", build_text(root)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if CHECK.value:
        raise console.UserError("BUILD is not up to date: run tools/update_build.py.")
    partial = root / f"BUILD.partial-{os.getpid()}"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    console.say(f"wrote {path}")


def build_text(root):
    """Content of BUILD for the sources below `root`."""
    sources = [
        path.relative_to(root) for folder in FOLDERS for path in (root / folder).rglob("*.py")
    ]
    targets = sorted((FOLDERS.index(path.parts[0]), target(root, path), path) for path in sources)
    return HEADER + "".join(rule_text(root, name, path) for _, name, path in targets)


def target(root, path):
    """Name of the target of the source at `path`, relative to `root`."""
    if path == pathlib.Path(PACKAGE, "__init__.py"):
        return PACKAGE
    place = path.with_suffix("")
    name = place.relative_to(PACKAGE) if place.parts[0] == PACKAGE else place
    return name.as_posix() + "_main" * (root / place).is_dir()


def rule_text(root, name, path):
    """The rule of one source. pytest runs the tests: as a script a test file would run none."""
    attributes = {"name": name, "srcs": [path.as_posix()]}
    rule, deps = "py_library", dependencies(root, path)
    if path.stem.endswith("_test"):
        rule, deps = "py_test", sorted({*deps, "@pypi//pytest"}, key=_ours_first)
        attributes["args"] = [f"$(rootpath {path.as_posix()})"]
        attributes["main_module"] = "pytest"
    elif path.parts[0] == "tests":
        attributes["testonly"] = True
    elif path.parent.as_posix() == "tools":
        rule = "py_binary"
        attributes["main"] = path.as_posix()
    if deps:
        attributes["deps"] = deps
    lines = "".join(f"    {key} = {_literal(value)},\n" for key, value in attributes.items())
    return f"\n{rule}(\n{lines})\n"


def dependencies(root, path):
    """Sorted labels of what the source at `path` needs, ours first."""
    tree = _parse(root, path)
    names = {*imported_names(tree, path), *public_modules(tree, path)}
    labels = {_label(root, name) for name in names} | {
        f":{target(root, init)}" for init in plain_packages(root, path)
    }
    return sorted(labels - {None}, key=_ours_first)


def plain_packages(root, path):
    """The __init__.py files above `path` that hold no code: their modules do not load them back."""
    for init in (folder / "__init__.py" for folder in path.parents):
        if init != path and (root / init).exists():
            body = _parse(root, init).body
            if all(isinstance(node, ast.Expr) for node in body):
                yield init


def _parse(root, path):
    return ast.parse((root / path).read_text(encoding="utf-8"), str(path))


def _ours_first(label):
    return label.startswith("@"), label


def public_modules(tree, path):
    """Dotted names of the modules in the tables of a package, if `path` is one."""
    if path.stem == "__init__":
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in TABLES:
                for place in ast.literal_eval(node.value).values():
                    yield ".".join([*path.parent.parts, place])


def imported_names(tree, path):
    """Dotted names of all imports; `from a import b` gives a.b, a module or something in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise console.UserError(
                    f"{path}:{node.lineno}: a relative import; write it from {PACKAGE}."
                )
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _label(root, name):
    """Label of the target that the dotted `name` lies in; None in the standard library."""
    parts = name.split(".")
    if parts[0] in sys.stdlib_module_names:
        return None
    if parts[0] not in FOLDERS:
        return f"@pypi//{DISTRIBUTIONS.get(parts[0], parts[0])}"
    for length in range(len(parts), 0, -1):
        place = pathlib.Path(*parts[:length])
        for source in (place / "__init__.py", place.with_suffix(".py")):
            if (root / source).exists():
                return f":{target(root, source)}"
    raise console.UserError(f"{name} is imported, but no file holds it.")


def _literal(value):
    if not isinstance(value, list):
        return f'"{value}"' if isinstance(value, str) else str(value)
    if len(value) == 1:
        return f'["{value[0]}"]'
    return "[\n" + "".join(f'        "{item}",\n' for item in value) + "    ]"


if __name__ == "__main__":
    console.run(main)
