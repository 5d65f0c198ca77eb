"""Which files are text, by name and by content, and all that is in them."""

import collections
import functools
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile

import pytest

from convbert_tf.console import UserError
from convbert_tf.data import corpus, text_files

LINE = json.dumps({"text": "a line", "url": "x"}) + "\n"
# Without the time, so that parametrized tests have the same names in all of pytest's processes.
PACK = functools.partial(gzip.compress, mtime=0)


def texts(path):
    return [text for text, _ in text_files.documents(str(path))]


def test_all_streams_of_a_packed_file_are_read(tmp_path):
    streams = lzma.compress(b"one\n\n"), lzma.compress(b"two\n\n" * 1000)
    for name, content in (
        ("padded.txt.xz", streams[0] + bytes(8) + streams[1] + bytes(4)),
        ("joined.txt.xz", streams[0] + streams[1]),
        ("joined.txt.gz", gzip.compress(b"one\n\n") + gzip.compress(b"two\n\n" * 1000)),
    ):
        (tmp_path / name).write_bytes(content)
        assert texts(tmp_path / name) == ["one"] + ["two"] * 1000


@pytest.mark.parametrize("cut", [-1, -10, -40])
def test_a_damaged_later_stream_is_an_error(tmp_path, cut):
    for suffix, pack in ((".xz", lzma.compress), (".gz", gzip.compress)):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(pack(b"one\n\n") + pack(bytes(range(97, 123)) * 30)[:cut])
        with pytest.raises(UserError, match="is damaged"):
            texts(path)


def test_what_follows_or_is_missing_in_a_packed_file_is_an_error(tmp_path):
    for name, content, message in (
        ("a.txt.xz", lzma.compress(b"one") + b"garbage", "is damaged"),
        ("a.txt.xz", lzma.compress(b"one") + bytes(3), "3 bytes of padding"),
        ("a.txt.gz", PACK(b"one") + b"garbage", "is damaged"),
        ("a.txt.gz", b"", "is empty, so it is no gzip file"),
        ("a.txt.xz", b"", "is empty, so it is no xz file"),
        ("a.txt.gz", lzma.compress(b"one"), "is no gzip file: by its content it is xz"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            texts(tmp_path / name)


def archive(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=file, mode="w") as packed:
            packed.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PACK(b"text"), "gzip"),
        (lzma.compress(b"text"), "xz"),
        (b"\x28\xb5\x2f\xfd text", "Zstandard"),
        (b"BZh91AY&SY", "bzip2"),
        (archive("zip"), "zip"),
        (archive("tar"), "tar"),
        (b"PAR1\x15\x04", "Parquet"),
    ],
    # Named, for what is packed here holds the time of packing.
    ids=["gzip", "xz", "zstandard", "bzip2", "zip", "tar", "parquet"],
)
def test_what_is_no_text_is_refused_by_its_content(tmp_path, content, kind):
    for name, pack in (("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.txt.xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(content))
        with pytest.raises(UserError, match=f"{name} is no text: by its content it is a {kind}"):
            texts(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["a.tar.gz", "a.tar.xz", "a.tgz", "a.zip", "a.txt.zst", "a.parquet.gz", "a.json.bz2"]
)
def test_archives_are_refused_by_their_names(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{name} is no text here"):
        text_files.find_files(str(tmp_path / name))


def test_json_files_of_lines_are_read_and_others_refused(tmp_path):
    (tmp_path / "a.json").write_text(LINE * 2)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(LINE.encode() * 3))
    (tmp_path / "c.ndjson").write_text(LINE)
    found = text_files.find_files(str(tmp_path))
    assert [len(texts(path)) for path in found] == [2, 3, 1]
    for content in ("", "[" + LINE.strip() + "]", json.dumps({"text": "a"}, indent=1), '{"a": 1}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(UserError, match="other.json is no text here: of .json files it takes"):
            text_files.find_files(str(tmp_path / "other.json"))
        assert text_files.find_files(str(tmp_path)) == found
    (tmp_path / "lines.txt").write_text(LINE)
    with pytest.raises(UserError, match="lines.txt holds JSON lines: name it .jsonl"):
        texts(tmp_path / "lines.txt")


@pytest.mark.parametrize(
    "blank", ["", " \t", "\u3000", "\xa0", "\u2003\u2028", "\x1c", "\ufeff", "\u200b", "\0"]
)
def test_a_line_in_which_nothing_is_seen_separates_documents(tmp_path, blank):
    (tmp_path / "a.txt").write_text(f"one\n{blank}\n\u3000two é\n{blank}\r\n日本\n")
    assert texts(tmp_path / "a.txt") == ["one", "\u3000two é", "日本"]
    size = (tmp_path / "a.txt").stat().st_size
    assert sum(n for _, n in text_files.documents(str(tmp_path / "a.txt"))) == size


def test_own_files_beside_text_are_left_out(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("one two\n\n" * 9)
    vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\none\ntwo\n"
    (tmp_path / "vocab.txt").write_text(vocab)
    corpus.build(
        str(tmp_path / "text.txt"),
        str(tmp_path / "out"),
        str(tmp_path / "vocab.txt"),
        num_workers=1,
    )
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    only = [str(tmp_path / "text.txt")]
    assert text_files.find_files(str(tmp_path)) == only
    assert (
        "6 files (metrics.jsonl, build.jsonl, manifest.json ...) left out"
        in capsys.readouterr().out
    )
    assert text_files.find_files(str(tmp_path / "**")) == only
    assert text_files.find_files(str(tmp_path / "*.txt")) == only
    named = text_files.find_files(str(tmp_path / "vocab.txt"))
    assert texts(named[0]) == [vocab.strip()]
    with pytest.raises(UserError, match="names no text file"):
        text_files.find_files(str(tmp_path / "out"))


def test_links_that_lead_upwards_end(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.txt").write_text("x")
    for name in ("one", "two"):
        os.symlink(tmp_path, tmp_path / "a" / name)
        os.symlink(tmp_path / "a", tmp_path / "a" / "b" / name)
    assert [os.path.basename(path) for path in text_files.find_files(str(tmp_path))] == ["x.txt"]
    for pattern, number in (("**/*.txt", 1), ("**", 1), ("a/**/x.txt", 1), ("**/b/*", 1)):
        assert len(text_files.find_files(str(tmp_path / pattern))) == number
    with pytest.raises(UserError, match="names no text file"):
        text_files.find_files(str(tmp_path / "**" / "c" / "*.txt"))


def test_a_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: Permission denied"):
        text_files.find_files(str(tmp_path))


def test_a_sample_is_spread_over_every_file_and_shares_are_handed_on(tmp_path):
    for name, count in (("a", 1000), ("b", 1000), ("c", 3)):
        text = "".join(f"{name}{i:03}\n\n" for i in range(count))
        path = tmp_path / f"{name}.txt{'.gz' if name == 'b' else ''}"
        path.write_bytes(gzip.compress(text.encode()) if name == "b" else text.encode())
    files = text_files.find_files(str(tmp_path))
    found = list(text_files.sample_texts(files, 618))
    assert found == list(text_files.sample_texts(files, 618))
    numbers = {name: [int(t[1:]) for t in found if t[0] == name] for name in "abc"}
    assert numbers["c"] == [0, 1, 2]
    for name in "ab":
        assert len(numbers[name]) == 50 and numbers[name][0] == 0 and numbers[name][-1] >= 980
        gaps = [b - a for a, b in zip(numbers[name], numbers[name][1:], strict=False)]
        assert set(gaps) == {20}
    assert len(list(text_files.sample_texts(files, 10**6))) == 2003


def test_plain_documents_and_their_sizes(tmp_path):
    path = tmp_path / "a.txt"
    content = "\ufeff\n \r\none é\r\ntwo\n\n\t\nthree\n".encode()
    path.write_bytes(content)
    found = list(text_files.documents(str(path)))
    assert [text for text, _ in found] == ["one é\r\ntwo", "three"]
    assert sum(size for _, size in found) == len(content) - 3  # the byte order mark


def test_lines_that_end_by_carriage_returns_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\rtwo\r\rthree\r")
    with pytest.raises(
        UserError, match=r"a\.txt has carriage returns for line ends, and no line f"
    ):
        text_files.check(str(path))
    for content in (b"one\rtwo\n", b"one\r\n", b"one\r"):  # other lines hold them as blanks
        path.write_bytes(content)
        assert [text for text, _ in text_files.documents(str(path))] == [
            content.decode().rstrip("\r\n")
        ]


def test_json_documents(tmp_path):
    lines = [json.dumps({"text": "one\n\ntwo", "id": 1}), "", json.dumps({"text": "a\ud800b"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert texts(tmp_path / "a.jsonl") == ["one\ntwo", "a?b"]


def test_find_files(tmp_path):
    for name in ("b/x.txt", "a.jsonl.gz", "b/c/y.txt.xz", "b/notes.md", "raw"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = lambda *given: [  # noqa: E731
        path.removeprefix(f"{tmp_path}/")
        for path in text_files.find_files([str(tmp_path / each) for each in given])
    ]
    assert names("") == ["a.jsonl.gz", "b/c/y.txt.xz", "b/x.txt"]
    assert names("raw", "b/*.txt", "b/x.txt", "b/c/../x.txt") == ["b/x.txt", "raw"]
    for given in ("none.txt", "none*", "b/c/d"):
        with pytest.raises(UserError, match="names no text file"):
            names(given)
    for other in ("rows.json", "x.txt.BZ2"):
        (tmp_path / other).touch()
        with pytest.raises(UserError, match=f"{other} is no text here"):
            names(other)


def test_sample_takes_from_every_file(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name * 9}\n\n" * (2 if name == "a" else 100))
    found = list(text_files.sample_texts(text_files.find_files(str(tmp_path)), 110))
    assert collections.Counter(text[0] for text in found) == {"a": 2, "b": 4, "c": 4}
