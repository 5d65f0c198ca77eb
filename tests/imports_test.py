"""Which wing may import which, and which of them do without TensorFlow.

A wing is a folder of convbert_tf/; each module beside them is a wing of its own.
"""

import ast
import collections
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("convbert_tf", "configs", "tools", "tests")

BASE = {"config", "console", "files", "schema"}
# Wing -> the wings that its modules may import, besides each other; in the order of the data.
WINGS = {
    "console": set(),
    "schema": {"console"},
    "files": {"console", "schema"},
    "config": {"console", "files", "schema"},
    "text": BASE,
    "data": BASE | {"text"},
    "weights": BASE | {"text"},
    "modeling": BASE | {"weights"},
    "training": BASE | {"weights", "modeling"},
    "tasks": BASE | {"text", "data", "weights", "modeling", "training"},
    "workflows": BASE | {"text", "data", "weights", "modeling", "training", "tasks"},
    "serving": BASE | {"text", "weights", "modeling", "tasks"},
    "conversion": BASE | {"text", "weights", "modeling", "training"},
}
# "__init__" are the __init__.py of convbert_tf/ and of its wings. They load their public names on
# first use, so they import nothing of ours, and no wing imports from them; but that of config/ is
# a part of its wing, since its names are imported from it by everyone.
LIBRARY = {*WINGS, "__init__"}
MAY_IMPORT = WINGS | {
    "__init__": set(),
    "configs": {"config"},
    "tools/*.py": LIBRARY,
    "tools/benchmark.py": LIBRARY | {"tools/benchmark"},
    "tools/evidence.py": LIBRARY | {"tools/evidence"},
    "tools/make_documentation_data.py": LIBRARY | {"tools/quickstart"},
    "tools/benchmark": LIBRARY,
    "tools/evidence": LIBRARY,
    "tools/quickstart": LIBRARY,
    "tests": LIBRARY | {"tools/benchmark", "tools/evidence", "tools/quickstart"},
}
NOT_EACH_OTHER = {"__init__", "configs", "tools/*.py"}

TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "official", "orbit"}
# These run on every backend of Keras. Those of TENSORFLOW_LATE may import TensorFlow inside
# functions, since nothing else reads its checkpoints; the others nowhere.
WITHOUT_TENSORFLOW = {*BASE, "__init__", "weights", "modeling"}
TENSORFLOW_LATE = {"weights"}
# Modules that do without TensorFlow and Keras in wings that do not.
RUNTIME = {
    "convbert_tf/serving/litert.py",
    "convbert_tf/serving/litert_decoding.py",
    "convbert_tf/text/plain_tokenization.py",
    "convbert_tf/text/requests.py",
    "convbert_tf/text/unicode_rules.py",
    "convbert_tf/text/vocabulary.py",
}

# What imports a module by its name in a string. Any function of an __init__.py may, for the public
# names, and these, which are given packages of other people or the caller's own module.
LOADERS = {"__import__", "import_module", "exec_module", "run_module", "run_path"}
MAY_LOAD = {
    "convbert_tf/console.py": {"load_tensorflow", "call"},
    "convbert_tf/config/flags.py": {"_module"},
}

MOST_MODULES, MOST_LINES = 12, 450


def read_sources():
    """Path -> text of all that is ours."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def wing(path):
    """The key in MAY_IMPORT of the module at `path`, or what it would be."""
    top, *inner = path.removesuffix(".py").split("/")
    if top == "convbert_tf":
        public = inner[-1] == "__init__" and inner[0] != "config"
        return "__init__" if public else inner[0]
    if top == "tools" and len(inner) == 1:
        return path if path in MAY_IMPORT else "tools/*.py"
    return f"tools/{inner[0]}" if top == "tools" else top


def nodes_in_functions(tree, names=None):
    """ids of the nodes of `tree` inside functions, all functions or those of these names."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    functions = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    if names is not None:
        functions = [node for node in functions if getattr(node, "name", None) in names]
    return {id(node) for function in functions for node in ast.walk(function)}


def imported(path, tree, sources, skipped=()):
    """What the module at `path` imports: paths of ours and top names of other packages."""
    names = set()
    for node in ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif id(node) not in skipped and isinstance(node, ast.ImportFrom):
            folder = path.split("/")[: -node.level] if node.level else []
            base = ".".join([*folder, *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {file_or_package(name, path, sources) for name in names} - {path}


def file_or_package(name, importer, sources):
    """The file of ours that holds `name`, or the top name of somebody else's package."""
    top = name.split(".")[0]
    if top not in FOLDERS:
        # Beside a binary its folder is on the path.
        beside = {f"tools/{top}.py", f"tools/{top}/__init__.py"} & sources.keys()
        if not beside or not re.fullmatch(r"tools/\w+\.py", importer):
            return top
        name = f"tools.{name}"
    place = name.replace(".", "/")
    while "/" in place:
        for path in (f"{place}/__init__.py", f"{place}.py"):
            if path in sources:
                return path
        place = place.rpartition("/")[0]
    return f"{top}/__init__.py"


def reachable(start, graph):
    """`start` and all that it imports, directly or not."""
    seen, waiting = set(), [start]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += graph.get(one, ())
    return seen


def violations(sources):
    """What in `sources` (path -> text) breaks the rules, a line each."""
    trees = {path: ast.parse(text, path) for path, text in sources.items()}
    graph = {path: imported(path, tree, sources) for path, tree in trees.items()}
    at_top = {
        path: imported(path, tree, sources, nodes_in_functions(tree))
        for path, tree in trees.items()
    }
    return sorted(
        {
            *wrong_imports(graph),
            *circles(graph),
            *loads_of_tensorflow(graph, at_top),
            *late_imports(trees),
            *wrong_places(sources),
        }
    )


def wrong_imports(graph):
    for path, targets in graph.items():
        row = wing(path)
        if row not in MAY_IMPORT:
            yield f"{path} is in no row of MAY_IMPORT"
            continue
        allowed = MAY_IMPORT[row] | ({row} - NOT_EACH_OTHER)
        for target in targets:
            if target.endswith(".py") and wing(target) not in allowed:
                yield f"{path} imports {target}"


def circles(graph):
    reached = {path: reachable(path, graph) for path in graph}
    for path in graph:
        circle = [other for other in reached[path] & graph.keys() if path in reached[other]]
        if len(circle) > 1:
            yield f"these import each other: {', '.join(sorted(circle))}"


def loads_of_tensorflow(graph, at_top):
    for path in graph:
        if wing(path) in WITHOUT_TENSORFLOW or path in RUNTIME:
            missing = TENSORFLOW | ({"keras"} if path in RUNTIME else set())
            for through in reachable(path, at_top):
                for name in at_top.get(through, set()) & missing:
                    yield f"{path} loads {name} through {through}"
            if wing(path) not in TENSORFLOW_LATE:
                for name in (graph[path] - at_top[path]) & missing:
                    yield f"{path} imports {name} in a function"


def late_imports(trees):
    """Imports by a string, which go round the table; in tests there is nothing to go round."""
    for path, tree in trees.items():
        if wing(path) == "tests":
            continue
        functions = None if wing(path) == "__init__" else MAY_LOAD.get(path, ())
        allowed = nodes_in_functions(tree, functions)
        for node in ast.walk(tree):
            # The name of a variable, an attribute or an import.
            names = {getattr(node, field, None) for field in ("id", "attr", "name")} & LOADERS
            if id(node) not in allowed:
                yield from (f"{path} imports by {name}" for name in names)
            text = getattr(node, "value", None)  # of a constant, also inside an f-string
            if isinstance(text, str) and re.fullmatch(r"convbert_tf\.[\w.]*", text):
                yield f"{path} names {text} in a string"


def wrong_places(sources):
    """Wings and modules that are too large, rows of nothing, tests that mirror no wing."""
    sizes = collections.Counter(wing(path) for path in sources if path.startswith("convbert_tf/"))
    yield from (f"no module is in {row}" for row in WINGS.keys() - sizes.keys())
    for row in sizes.keys() - {"__init__"}:
        if sizes[row] > MOST_MODULES:
            yield f"{row} has {sizes[row]} modules"
    folders = {path.split("/")[1] for path in sources if re.match("convbert_tf/.*/", path)}
    for path, text in sources.items():
        if len(text.splitlines()) > MOST_LINES:
            yield f"{path} has {len(text.splitlines())} lines"
        if re.match("tests/.*/", path) and path.split("/")[1] not in {*folders, "tools"}:
            yield f"{path} mirrors no wing"


def test_the_tree_keeps_the_rules():
    assert violations(read_sources()) == []


LOAD = "importlib.import_module(name)"
PUBLIC, SERVING = "convbert_tf/__init__.py", "convbert_tf/serving/__init__.py"
CONSOLE, FILES = "convbert_tf/console.py", "convbert_tf/files.py"
CONFIG, MODEL = "convbert_tf/config/__init__.py", "convbert_tf/config/model.py"
CONVERSION, EXPORT = "convbert_tf/conversion.py", "convbert_tf/serving/export.py"
VOCABULARY, WORDS = "convbert_tf/text/vocabulary.py", "convbert_tf/text/words.py"
CORPUS, GLUE = "convbert_tf/data/corpus.py", "convbert_tf/tasks/glue.py"
TRIALS = "convbert_tf/workflows/trials.py"
PRESETS, ORIGINAL = "convbert_tf/weights/presets.py", "convbert_tf/weights/original.py"
LAYERS, HEADS = "convbert_tf/modeling/layers.py", "convbert_tf/modeling/heads.py"
LOOP = "convbert_tf/training/loop.py"
LITERT = "convbert_tf/serving/litert.py"
# A small tree that keeps the rules, with each kind of import that is allowed.
TREE = {
    PUBLIC: f"import importlib\n_MODULES = {{}}\ndef f(name):\n    {LOAD}\n",
    CONSOLE: f"def load_tensorflow():\n    {LOAD}\ndef call(name):\n    {LOAD}\n",
    "convbert_tf/schema.py": "from convbert_tf import console\n",
    FILES: "from convbert_tf import schema\n",
    CONFIG: "from convbert_tf.config.model import ModelConfig\n",
    MODEL: "from convbert_tf.files import read\n",
    VOCABULARY: "import convbert_tf.console\n",
    WORDS: "import tensorflow\nfrom convbert_tf.text import vocabulary\n",
    CORPUS: "from convbert_tf.text import words\nimport orbit\n",
    "convbert_tf/weights/__init__.py": '"""Formats."""\n',
    PRESETS: "from convbert_tf.text import vocabulary\n",
    ORIGINAL: "def read():\n    import tensorflow as tf\n",
    LAYERS: "import keras\n",
    HEADS: "from convbert_tf.modeling import layers\n",
    LOOP: "from convbert_tf.modeling import heads\n",
    GLUE: "from convbert_tf.data import corpus\n",
    TRIALS: "from convbert_tf.tasks import glue\n",
    SERVING: f"import importlib\ndef f(name):\n    {LOAD}\n",
    EXPORT: "from convbert_tf.tasks import glue\n",
    LITERT: "import numpy\n",
    CONVERSION: "import importlib.util\nfrom convbert_tf.training import loop\n",
    "configs/tiny.py": "from convbert_tf import config\n",
    "configs/small.py": "",
    "tools/ask.py": "from convbert_tf import serving, layers\n",
    "tools/pretrain.py": "",
    "tools/benchmark.py": "from tools.benchmark import ours\n",
    "tools/benchmark/__init__.py": "",
    "tools/benchmark/ours.py": "from convbert_tf.training import loop\n",
    "tests/__init__.py": "",
    "tests/goldens.py": "",
    "tests/tools/ours_test.py": "from tools.benchmark import ours\n",
    "tests/text/words_test.py": "importlib.import_module('tools.ask')\nfrom tests import goldens\n",
}


def test_a_small_tree_keeps_the_rules():
    assert violations(TREE) == []


@pytest.mark.parametrize(
    ("path", "line", "target"),
    [
        (FILES, "from convbert_tf import config", CONFIG),
        (MODEL, "from convbert_tf.text import vocabulary", VOCABULARY),
        (CONSOLE, "import convbert_tf.conversion", CONVERSION),
        (PRESETS, "def f():\n    from convbert_tf.modeling.heads import Head", HEADS),
        (LAYERS, "from convbert_tf.text import vocabulary", VOCABULARY),
        (LAYERS, "from ..training.loop import fit", LOOP),
        (LOOP, "if True:\n    import convbert_tf.tasks.glue as glue", GLUE),
        (GLUE, "from convbert_tf.workflows import trials", TRIALS),
        (EXPORT, "from convbert_tf.workflows.trials import run", TRIALS),
        (CONVERSION, "import convbert_tf.data.corpus", CORPUS),
        # The public names, which lead to every wing.
        (WORDS, "import convbert_tf", PUBLIC),
        (CORPUS, "from convbert_tf import ConvBertEncoder", PUBLIC),
        (CORPUS, "from convbert_tf import layers", PUBLIC),
        (GLUE, "from convbert_tf import serving", SERVING),
        (SERVING, "from . import export", EXPORT),
        (LOOP, "import tools.pretrain", "tools/pretrain.py"),
        (WORDS, "from tests import goldens", "tests/goldens.py"),
        (CONFIG, "import configs", "configs/__init__.py"),
        ("configs/small.py", "from configs import tiny", "configs/tiny.py"),
        ("configs/small.py", "from convbert_tf import console", CONSOLE),
        ("tools/ask.py", "from tools import pretrain", "tools/pretrain.py"),
        ("tools/ask.py", "import pretrain", "tools/pretrain.py"),
        ("tools/ask.py", "from benchmark import ours", "tools/benchmark/ours.py"),
        ("tools/benchmark.py", "from tools import ask", "tools/ask.py"),
        ("tools/benchmark/ours.py", "from tools import ask", "tools/ask.py"),
        ("tests/goldens.py", "import tools.ask", "tools/ask.py"),
    ],
)
def test_a_planted_import_is_found(path, line, target):
    assert f"{path} imports {target}" in violations(TREE | {path: f"{TREE[path]}{line}\n"})


@pytest.mark.parametrize(
    ("path", "line", "found"),
    [
        (
            VOCABULARY,
            "def f():\n    from convbert_tf.text import words",
            [f"these import each other: {VOCABULARY}, {WORDS}"],
        ),
        (
            MODEL,
            "from convbert_tf import config",
            [f"these import each other: {CONFIG}, {MODEL}"],
        ),
        (
            "tests/goldens.py",
            "from tests.text import words_test",
            ["these import each other: tests/goldens.py, tests/text/words_test.py"],
        ),
        (ORIGINAL, "import tensorflow", [f"{ORIGINAL} loads tensorflow through {ORIGINAL}"]),
        (
            PRESETS,
            "try:\n    from convbert_tf.text import words\nfinally:\n    pass",
            [f"{PRESETS} loads tensorflow through {WORDS}"],
        ),
        (PRESETS, "def f():\n    from convbert_tf.text import words", []),
        (LAYERS, "def f():\n    import orbit", [f"{LAYERS} imports orbit in a function"]),
        (CONFIG, "def f():\n    import official.a", [f"{CONFIG} imports official in a function"]),
        (LITERT, "import keras", [f"{LITERT} loads keras through {LITERT}"]),
        (
            LITERT,
            "from convbert_tf.text import words",
            [f"{LITERT} loads tensorflow through {WORDS}"],
        ),
        (LITERT, "def f():\n    import keras", [f"{LITERT} imports keras in a function"]),
        (WORDS, LOAD, [f"{WORDS} imports by import_module"]),
        (WORDS, "from importlib import import_module as f", [f"{WORDS} imports by import_module"]),
        (WORDS, "__import__('os')", [f"{WORDS} imports by __import__"]),
        (CONSOLE, f"def say(name):\n    {LOAD}", [f"{CONSOLE} imports by import_module"]),
        (SERVING, LOAD, [f"{SERVING} imports by import_module"]),
        (SERVING, "NAME = 'convbert_tf.text'", [f"{SERVING} names convbert_tf.text in a string"]),
        (WORDS, "call('convbert_tf.glue')", [f"{WORDS} names convbert_tf.glue in a string"]),
        (WORDS, "f'convbert_tf.{name}'", [f"{WORDS} names convbert_tf. in a string"]),
        ("tools/ask.py", "runpy.run_module('pretrain')", ["tools/ask.py imports by run_module"]),
        ("convbert_tf/utils.py", "", ["convbert_tf/utils.py is in no row of MAY_IMPORT"]),
        ("tools/words/count.py", "", ["tools/words/count.py is in no row of MAY_IMPORT"]),
        ("tests/layers/layers_test.py", "", ["tests/layers/layers_test.py mirrors no wing"]),
        (WORDS, "\n" * 448, [f"{WORDS} has 451 lines"]),
    ],
)
def test_another_planted_fault_is_found(path, line, found):
    assert violations(TREE | {path: f"{TREE.get(path, '')}{line}\n"}) == found


def test_a_wing_that_is_too_large_or_gone_is_found():
    many = {f"convbert_tf/text/part_{i}.py": "" for i in range(11)}
    assert violations(TREE | many) == ["text has 13 modules"]
    gone = {path: text for path, text in TREE.items() if path != CONVERSION}
    assert violations(gone) == ["no module is in conversion"]
