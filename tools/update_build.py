"""Rewrites BUILD, the Bazel targets, from the imports of the sources.

    python tools/update_build.py           writes the file
    python tools/update_build.py --check   fails where the file is not what would be written

Every .py file of convbert_tf/, configs/, tools/ and tests/ becomes one target; its deps are what it
imports anywhere, inside functions too. Names that are imported from strings are not seen.
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
# Where a package's name on the index is not the name it is imported by.
DISTRIBUTIONS = {
    "absl": "absl_py",
    "official": "tf_models_official",
    "orbit": "tf_models_official",
    "sklearn": "scikit_learn",
}
HEADER = '''\
"""ConvBERT for TensorFlow 2: Bazel targets, written by tools/update_build.py; do not edit.

A module of convbert_tf/ is the target of its own name, any other file that of its path without
.py: //:layers, //:tools/pretrain, //:tests/layers_test. //:convbert_tf is the package as its users
import it, with all its public modules. @pypi is the hub of rules_python's pip.parse over
requirements.txt and the extras of pyproject.toml. main_module needs rules_python 1.3 or later.
"""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])

licenses(["notice"])
'''


def main(_):
    root = pathlib.Path(ROOT.value)
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
        path.relative_to(root) for folder in FOLDERS for path in (root / folder).glob("*.py")
    ]
    targets = sorted((FOLDERS.index(path.parts[0]), target(path), path) for path in sources)
    return HEADER + "".join(rule_text(root, name, path) for _, name, path in targets)


def target(path):
    """Name of the target of the source at `path`, relative to the root."""
    if path.parts[0] != PACKAGE:
        return path.with_suffix("").as_posix()
    return PACKAGE if path.stem == "__init__" else path.stem


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
    elif path.parts[0] == "tools":
        rule = "py_binary"
        attributes["main"] = path.as_posix()
    if deps:
        attributes["deps"] = deps
    lines = "".join(f"    {key} = {_literal(value)},\n" for key, value in attributes.items())
    return f"\n{rule}(\n{lines})\n"


def dependencies(root, path):
    """Sorted labels of what the source at `path` imports, ours first; the package itself for
    its public modules, which it loads when they are first used."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"), str(path))
    if target(path) == PACKAGE:
        return sorted(f":{module}" for module in public_modules(tree))
    labels = {_label(root, name) for name in imported_names(tree, path)}
    return sorted(labels - {None}, key=_ours_first)


def _ours_first(label):
    return label.startswith("@"), label


def public_modules(tree):
    """Modules that the tables `_PUBLIC` and `_MODULES` of the package's __init__.py name."""
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("_PUBLIC", "_MODULES")
    }
    return {*tables["_PUBLIC"].values(), *tables["_MODULES"]}


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
    source = pathlib.Path(*parts[:2]).with_suffix(".py")
    if not (root / source).exists():
        source = pathlib.Path(parts[0], "__init__.py")
    return f":{target(source)}"


def _literal(value):
    if not isinstance(value, list):
        return f'"{value}"' if isinstance(value, str) else str(value)
    if len(value) == 1:
        return f'["{value[0]}"]'
    return "[\n" + "".join(f'        "{item}",\n' for item in value) + "    ]"


if __name__ == "__main__":
    console.run(main)
