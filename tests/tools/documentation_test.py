"""The data as a whole: what is read from source files, what is written, and what is refused."""

import json
import os
import pathlib
import random
import subprocess
import sys
import sysconfig

import pytest

from convbert_tf.console import UserError
from tools.quickstart import documentation

ROOT = pathlib.Path(__file__).parents[2]

MODULE = '''"""What this module says of itself."""

_DESCRIPTION = """What the data set says of itself."""

class Box:
    """What the class says of itself."""

    def open(self):
        """What the method says of itself."""
        text = """No docstring, this one."""

        def inner():
            """What the inner one says of itself."""

try:
    async def run():
        """What the coroutine says of itself."""
except ImportError:
    def run():
        """What the other one says of itself."""

add_newdoc("here", "array", ("sort", """
What the compiled one says of itself.
"""))
'''


def test_read_docstrings_finds_all_of_them(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(MODULE)
    found = [
        (name, is_class, text.strip().removeprefix("What the "))
        for name, is_class, text in documentation.read_docstrings(path)
    ]
    assert found == [
        ("", False, "What this module says of itself."),
        ("", False, "data set says of itself."),
        ("Box", True, "class says of itself."),
        ("Box.open", False, "method says of itself."),
        ("Box.open.inner", False, "inner one says of itself."),
        ("run", False, "coroutine says of itself."),
        ("run", False, "other one says of itself."),
        ("sort", False, "compiled one says of itself."),
    ]


@pytest.mark.parametrize(
    "content", [b'"""open', b'"""\xff"""', b'print "old" """x"""', b"x = 1", b""]
)
def test_unreadable_sources_say_nothing(tmp_path, content):
    path = tmp_path / "m.py"
    path.write_bytes(content)
    assert documentation.read_docstrings(path) == []


def test_sources_are_not_run(tmp_path):
    path = tmp_path / "m.py"
    path.write_text('"""This module stops whoever imports it."""\nraise SystemExit\n')
    document = documentation.read_document(("m", path))
    assert document.sentences == ["This module stops whoever imports it."]


def test_find_sources_skips_tests_and_vendored_copies(tmp_path, monkeypatch):
    for name in ("a/__init__.py", "a/b.py", "a/tests/c.py", "a/_vendor/d.py", "a/test_e.py",
                 "a/e_test.py", "a/f_pb2.py", "a/gen_f_ops.py",
                 "a/f_ops_gen.py", "a/g.txt", "h.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root = str(tmp_path)
    monkeypatch.setattr(
        sysconfig, "get_paths", lambda: {"stdlib": root, "purelib": root, "platlib": root}
    )
    assert [name for name, _ in documentation.find_sources()] == ["a", "a.b", "h"]
    assert documentation.find_sources()[0][1] == os.path.join(root, "a", "__init__.py")


def test_held_out_is_the_same_for_copies_in_two_packages():
    names = [f"one.layers.m{i}" for i in range(2000)]
    held_out = [documentation.is_held_out(name) for name in names]
    copies = [name.replace("one.layers", "two.src.layers.more") for name in names]
    assert held_out == [documentation.is_held_out(name) for name in copies]
    assert 60 < sum(held_out) < 140


def test_split_corpus_keeps_a_sentence_once_and_in_the_held_out_part():
    held = next(f"m{i}" for i in range(1000) if documentation.is_held_out(f"m{i}"))
    trained = next(f"m{i}" for i in range(1000) if not documentation.is_held_out(f"m{i}"))
    texts = [
        (trained, ["It is known in both.", "It is 1 of 2.", "It is 3 of 4.", "IT IS NEW!"]),
        (held, ["It is known, in both!", "Only here."]),
        ("other." + trained, ["It is new."]),
    ]
    train, heldout = documentation.split_corpus(texts, 1000)
    assert heldout == [(held, ["It is known, in both!", "Only here."])]
    assert sorted(s.lower() for _, sentences in train for s in sentences) in (
        ["it is 1 of 2.", "it is new!"],
        ["it is 1 of 2.", "it is new."],
    )


def test_split_corpus_stops_at_max_bytes():
    texts = [
        (f"m{i}", [f"{'abcdefghij'[i % 10]} {chr(97 + i // 10)} {'x' * 90}."]) for i in range(200)
    ]
    train, _ = documentation.split_corpus(texts, 5000)
    size = sum(len(s) + 1 for _, sentences in train for s in sentences) + len(train)
    assert 4800 < size <= 5000


def make_text(documents=300):
    rng = random.Random(5)
    words = ["house", "street", "station", "market", "forest", "harbour", "library", "kitchen"]
    lines = []
    for _ in range(documents):
        for _ in range(12):
            a, b, c, d, e = (rng.choice(words) for _ in range(5))
            lines.append(f"The {a} of a {b} is near to the {c} by the {d} and not in the {e}. ")
        lines.append("")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def documents():
    """What the standard library's own top-level modules say, read once, in one process."""
    sources = [(n, p) for n, p in documentation.find_sources() if "." not in n and "site-" not in p]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documentation, "find_sources", lambda: sources)
        return documentation.read_documentation(workers=1)


@pytest.fixture
def small_library(documents, monkeypatch):
    monkeypatch.setattr(documentation, "read_documentation", lambda workers: documents)


def test_write_data_from_documentation(tmp_path, small_library, capsys):
    out = tmp_path / "data"
    manifest = documentation.write_data(str(out), seed=4, max_bytes=400_000)
    assert json.loads((out / "manifest.json").read_text()) == manifest
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {*manifest["files"], "manifest.json"}
    for name, entry in manifest["files"].items():
        assert (out / name).stat().st_size == entry["bytes"] > 0
    train, heldout = (
        (out / f"corpus/{part}.txt").read_text().splitlines() for part in ("train", "heldout")
    )
    assert 300_000 < manifest["files"]["corpus/train.txt"]["bytes"] <= 400_000
    assert not set(filter(None, train)) & set(filter(None, heldout))
    assert train.count("") + 1 == manifest["files"]["corpus/train.txt"]["documents"]
    sources = {"train": set(train), "dev": set(heldout)}
    for part, lines in sources.items():
        rows = [row.split("\t") for row in (out / f"acceptability/{part}.tsv").open(newline="")]
        assert {len(row) for row in rows} == {4}
        assert len(rows) == manifest["files"][f"acceptability/{part}.tsv"]["rows"]
        assert all(row[3].rstrip("\n") in lines for row in rows if row[1] == "1")
    capsys.readouterr()

    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert documentation.write_data(str(out), seed=4, max_bytes=400_000) == manifest
    assert capsys.readouterr().out.count("\n") == 1
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_data_is_made_anew_when_a_file_or_a_setting_changed(tmp_path, small_library):
    def write(seed):
        documentation.write_data(str(tmp_path), seed, max_bytes=200_000)
        return {p.name: p.read_bytes() for p in (tmp_path / "acceptability").iterdir()}

    first = write(1)
    (tmp_path / "acceptability/dev.tsv").unlink()
    assert write(1) == first
    assert write(2) != first


def test_own_text_makes_corpus_and_acceptability(tmp_path, small_library):
    text = tmp_path / "own.txt"
    text.write_text(make_text())
    manifest = documentation.write_data(str(tmp_path / "out"), 0, str(text))
    lines = (tmp_path / "out/corpus/train.txt").read_text().splitlines()
    assert lines[0].startswith("The ") and lines[0].endswith(".")
    assert manifest["files"]["acceptability/train.tsv"]["rows"] > 1000
    assert manifest["files"]["qa/train.json"]["questions"] > 50
    text.write_text(make_text() + "One more line of it.\n")
    changed = documentation.write_data(str(tmp_path / "out"), 0, str(text))
    assert changed["settings"] != manifest["settings"]


def test_cut_text():
    text = "One. Two!\nThree\n\n\nFour.\n" + "\nx y.\n" * 300
    documents = documentation.cut_text(text)
    assert documents[0] == ("text.0", ["One.", "Two!", "Three"])
    assert documents[1] == ("text.1", ["Four."])
    runs = documentation.cut_text("A line.\n" * 120)
    assert [len(sentences) for _, sentences in runs] == [50, 50, 20]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"Too little of it.\n", "18 bytes; 200,000 or more are needed"),
        (b"A line.\n" * 30_000 + b"caf\xe9\n", "line 30001: not UTF-8"),
        (b"nothing but the same\n" * 20_000, "only 0 sentences"),
    ],
)
def test_bad_text_is_refused_in_one_line(tmp_path, small_library, content, message):
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        documentation.write_data(str(tmp_path / "out"), 0, str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_too_small_a_limit_is_refused(tmp_path):
    with pytest.raises(UserError, match="max_bytes is 1,000"):
        documentation.write_data(str(tmp_path), max_bytes=1000)


def test_two_workers_read_what_one_reads(documents, monkeypatch):
    names = {document.name for document in documents[:60]}
    sources = [source for source in documentation.find_sources() if source[0] in names]
    monkeypatch.setattr(documentation, "find_sources", lambda: sources)
    assert documentation.read_documentation(2) == documents[:60]


def test_the_tool_tells_a_mistake_in_one_line_and_loads_no_tensorflow():
    command = (
        "import runpy, sys; sys.argv = ['make_documentation_data.py', '--output_dir=x', "
        "'--corpus_file=missing.txt']\n"
        "import tools.quickstart.documentation\n"
        "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules), 'loaded'\n"
        "runpy.run_path('tools/make_documentation_data.py', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr == (
        "make_documentation_data.py: error: corpus file missing.txt does not exist.\n"
    )
