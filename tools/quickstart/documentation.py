"""Training data from the documentation that every Python installation carries.

`tools/quickstart.sh` runs on a machine that has no dataset and perhaps no network. `write_data`
gives it real English, the docstrings of the installed packages and of the standard library, as
a corpus for pre-training, and two labelled tasks made of it: acceptability in CoLA's format and
question answering in SQuAD v1.1's. The result depends on the installed packages and the
settings alone, not on the number of workers.
"""

import ast
import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import re
import sysconfig
import warnings
from typing import NamedTuple

from convbert_tf.console import Progress, UserError, say
from tools.quickstart import docstrings, documentation_tasks

FORMAT = 1  # to be raised when the same settings come to give other data
HELD_OUT = 20  # one document in so many is held out
SMALLEST = 200_000  # bytes of text below which there is nothing to learn
FEWEST_ROWS = 100  # of acceptability data, in either part
ROWS = {"train": 12_000, "dev": 1_500}  # acceptability sentences at the most
QUESTIONS = {"train": 16_000, "dev": 1_200}  # about so many at the most
CORPUS_FILES = {"train": "corpus/train.txt", "dev": "corpus/heldout.txt"}
SKIPPED_FOLDERS = {
    "__pycache__", "_vendor", "_vendored", "dist-packages", "extern", "externals", "site-packages",
    "test", "tests", "third_party", "vendor", "vendored",
}  # fmt: skip
SKIPPED_FILES = re.compile(
    r"(test_.*|.*_tests?|conftest"
    r"|.*_pb2(_grpc)?|gen_.*_ops|.*_(ops|enum)_gen)\.py"  # generated: long, and all alike
)
LARGEST_SOURCE = 2_000_000  # bytes; larger ones are tables of numbers


class Document(NamedTuple):
    """What one source file says: sentences for the corpus and entries for question answering."""

    name: str
    sentences: list
    entries: list


def write_data(output_dir, seed=0, corpus_file=None, max_bytes=12_000_000, workers=2):
    """Writes corpus/, acceptability/, qa/ and manifest.json to `output_dir`.

    Where the manifest there tells of the same settings and its files are in place, they stay.

    Args:
        seed: of the damage done to sentences and of the choice of words in the questions.
        corpus_file: UTF-8 text of one's own, a paragraph or a sentence a line, blank lines
            between documents. The corpus and the acceptability data are then made of it;
            question answering is made of documentation all the same.
        max_bytes: of corpus/train.txt; whole documents are left out beyond it.
        workers: processes that read source files.

    Returns:
        The manifest, {"settings": ..., "files": {name: {"bytes": ..., counts}}}.

    Raises:
        UserError: `corpus_file` is missing, not UTF-8, or holds too little English text;
            `max_bytes` is too small.
    """
    if max_bytes < SMALLEST:
        raise UserError(f"max_bytes is {max_bytes:,}; it must be {SMALLEST:,} or more.")
    text = _read_text(corpus_file) if corpus_file else None
    settings = {
        "format": FORMAT,
        "seed": seed,
        "max_bytes": max_bytes,
        "corpus_sha256": hashlib.sha256(text.encode()).hexdigest() if corpus_file else None,
    }
    manifest = _manifest_in_place(output_dir, settings)
    if manifest:
        say(f"{output_dir}: made before with the same settings, kept as it is.")
        return manifest
    documents = None if corpus_file else read_documentation(workers)
    texts = cut_text(text) if corpus_file else [(d.name, d.sentences) for d in documents]
    train, heldout = split_corpus(texts, max_bytes)
    files = {}
    _add_corpus(files, train=train, dev=heldout)
    _add_acceptability(files, seed, train=train, dev=heldout)
    _add_question_answering(files, seed, documents or read_documentation(workers))
    return _write_files(output_dir, settings, files)


# --- Reading --------------------------------------------------------------------------------------


def read_documentation(workers=2):
    """The Documents of all source files that say anything, sorted by name."""
    sources = find_sources()
    documents, progress = [], Progress("reading documentation", len(sources), "files")
    with _processes(workers) as over:
        for done, document in enumerate(over(read_document, sources), 1):
            if document.sentences:
                documents.append(document)
            progress.update(done)
    progress.close(f"{len(documents):,} documents")
    return documents


@contextlib.contextmanager
def _processes(workers):
    """Gives a `map` over processes, or the built-in one for a single worker."""
    if workers == 1:
        yield map
        return
    # Spawned, for the caller may hold TensorFlow's threads, which a fork does not survive.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context)
    try:
        yield functools.partial(pool.map, chunksize=32)
    finally:
        pool.shutdown(cancel_futures=True)


def find_sources():
    """All (document name, path) of the environment's packages and of the standard library.

    Sorted by name; a document's name is its module's.
    """
    paths = sysconfig.get_paths()
    found = {}
    for root in dict.fromkeys(paths[key] for key in ("stdlib", "purelib", "platlib")):
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
            for file in files:
                if file.endswith(".py") and not SKIPPED_FILES.fullmatch(file):
                    path = os.path.join(folder, file)
                    parts = os.path.relpath(path, root)[: -len(".py")].split(os.sep)
                    found.setdefault(".".join(parts).removesuffix(".__init__"), path)
    return sorted(found.items())


def read_docstrings(path):
    """(qualified name, is a class, text) of each docstring in a source file, in its order.

    Also what modules say in other ways: `add_newdoc(...)` calls, where NumPy and SciPy document
    compiled functions; strings named ..._DESCRIPTION, as in tensorflow_datasets; and the
    dictionary `topics` of pydoc_data. A file that Python 3 cannot read says nothing.
    """
    if os.path.getsize(path) > LARGEST_SOURCE:
        return []
    with open(path, "rb") as file:
        source = file.read()
    if b'"""' not in source and b"'''" not in source and b"topics = {" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return list(_docstrings_of(tree, ()))


def _docstrings_of(node, names):
    if not isinstance(node, (ast.If, ast.Try, ast.With)):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield ".".join(names), isinstance(node, ast.ClassDef), text
    inner = list(node.body)
    for handler in getattr(node, "handlers", []):
        inner += handler.body
    inner += getattr(node, "orelse", []) + getattr(node, "finalbody", [])
    for child in inner:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings_of(child, (*names, child.name))
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _docstrings_of(child, names)
        elif isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name):
            yield from _assigned_texts(child)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added_docstring(child.value)


def _assigned_texts(node):
    name = node.targets[0].id
    if name == "topics" and isinstance(node.value, ast.Dict):
        texts = node.value.values
    elif name.endswith("DESCRIPTION"):
        texts = [node.value]
    else:
        return
    for text in texts:
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield "", False, text.value


def _added_docstring(call):
    if not isinstance(call.func, ast.Name) or call.func.id not in ("add_newdoc", "add_docstring"):
        return
    strings = []
    for argument in call.args:
        parts = argument.elts if isinstance(argument, ast.Tuple) else [argument]
        strings += [p.value for p in parts if isinstance(getattr(p, "value", None), str)]
    if len(strings) > 1:
        yield strings[-2], False, strings[-1]


def read_document(source):
    """The Document of one (name, path)."""
    name, path = source
    document = Document(name, [], [])
    for qualified, is_class, text in read_docstrings(path):
        sentences, entry = docstrings.read_docstring(qualified, is_class, text)
        document.sentences.extend(sentences)
        if entry.fields and entry.summary and qualified:
            document.entries.append(entry)
    return document


# --- Corpus ---------------------------------------------------------------------------------------


def is_held_out(name):
    """Whether a document belongs to the held-out part.

    Decided by the last part of its name, so that keras.layers.dense and tf_keras.layers.dense,
    which say nearly the same, are on the same side.
    """
    return _number(name.split(".")[-1]) % HELD_OUT == 0


def _number(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_corpus(texts, max_bytes):
    """(training, held-out) documents of [(name, sentences)], each sentence once in all.

    Sentences count as the same where they differ in case, digits and punctuation only; the
    held-out part keeps them. The order of documents is random but fixed.
    """
    texts = sorted(texts, key=lambda text: _number(text[0]))
    seen, parts = set(), []
    for held_out, limit in ((True, max_bytes // 10), (False, max_bytes)):
        part, size = [], 0
        for name, sentences in texts:
            if is_held_out(name) != held_out or size >= limit:
                continue
            fresh = []
            for sentence in sentences:
                key = re.sub(r"[\W\d_]+", " ", sentence.lower())
                if key not in seen:
                    seen.add(key)
                    fresh.append(sentence)
            size += sum(len(sentence.encode()) + 1 for sentence in fresh) + 1
            if fresh and size <= limit:
                part.append((name, fresh))
        parts.append(part)
    return parts[1], parts[0]


def _read_text(path):
    if not os.path.isfile(path):
        raise UserError(f"corpus file {path} does not exist.")
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < SMALLEST:
        raise UserError(
            f"corpus file {path} holds {len(data):,} bytes; {SMALLEST:,} or more are needed."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"corpus file {path}, line {line}: not UTF-8; convert it first.") from None


def cut_text(text):
    """[(name, sentences)] of plain text, a document a name; few long ones are cut into runs."""
    documents = [[]]
    for line in text.splitlines():
        if line.strip():
            documents[-1] += docstrings.split_sentences(" ".join(line.split()))
        elif documents[-1]:
            documents.append([])
    if len(documents) < 10 * HELD_OUT:
        sentences, run = sum(documents, []), 50
        documents = [sentences[i : i + run] for i in range(0, len(sentences), run)]
    return [(f"text.{i}", sentences) for i, sentences in enumerate(documents)]


# --- Files ----------------------------------------------------------------------------------------


def _add_corpus(files, **parts):
    for part, documents in parts.items():
        text = "\n".join("".join(f"{s}\n" for s in sentences) for _, sentences in documents)
        count = sum(len(sentences) for _, sentences in documents)
        files[CORPUS_FILES[part]] = text, {"documents": len(documents), "sentences": count}


def _add_acceptability(files, seed, **parts):
    for part, documents in parts.items():
        sentences = [sentence for _, sentences in documents for sentence in sentences]
        rows = documentation_tasks.acceptability_rows(sentences, ROWS[part], seed)
        if len(rows) < FEWEST_ROWS:
            raise UserError(
                f"the {part} part of the text gives only {len(rows)} sentences for the "
                "acceptability task; more plain English sentences of 5 to 30 words are needed."
            )
        counts = dict(sorted(collections.Counter(row[0] for row in rows).items()))
        text = "".join("\t".join(row) + "\n" for row in rows)
        files[f"acceptability/{part}.tsv"] = text, {"rows": len(rows), **counts}


def _add_question_answering(files, seed, documents):
    documents = sorted(documents, key=lambda document: _number(document.name))
    taken = set()  # of the held-out part first, which keeps what both could say
    for part in ("dev", "train"):
        chosen = [(d.name, d.entries) for d in documents if is_held_out(d.name) == (part == "dev")]
        squad = documentation_tasks.question_answering(chosen, QUESTIONS[part], seed, taken)
        paragraphs = [p for article in squad["data"] for p in article["paragraphs"]]
        questions = sum(len(p["qas"]) for p in paragraphs)
        counts = {"paragraphs": len(paragraphs), "questions": questions}
        files[f"qa/{part}.json"] = json.dumps(squad, ensure_ascii=False) + "\n", counts


def _manifest_in_place(output_dir, settings):
    try:
        with open(os.path.join(output_dir, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        found = {name: os.path.getsize(os.path.join(output_dir, name)) for name in sizes}
        return manifest if manifest["settings"] == settings and sizes == found else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none, or not one of ours, or a file is missing


def _write_files(output_dir, settings, files):
    """Writes the files between the old manifest's removal and the new one's writing."""
    manifest = {"settings": settings, "files": {}}
    manifest_file = os.path.join(output_dir, "manifest.json")
    with contextlib.suppress(FileNotFoundError):
        os.remove(manifest_file)
    for name, (text, counts) in sorted(files.items()):
        size = _write(os.path.join(output_dir, name), text)
        manifest["files"][name] = {"bytes": size, **counts}
        shown = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        say(f"{os.path.join(output_dir, name)}: {size / 1e6:.1f} MB, {shown}")
    _write(manifest_file, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    data = text.encode("utf-8", errors="replace")
    with open(path + ".part", "wb") as file:
        file.write(data)
    os.replace(path + ".part", path)
    return len(data)
