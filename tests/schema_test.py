"""JSON values against types: what is wrong is named by file, key and expectation, on one line."""

import dataclasses
from typing import Required, TypedDict

import pytest

from convbert_tf import schema
from convbert_tf.console import UserError
from convbert_tf.files import read_json


@dataclasses.dataclass
class Size:
    width: int = 1
    share: float = 0.5


class Model(TypedDict, total=False):
    name: Required[str]
    size: Size
    labels: list[str] | None
    files: dict[str, str]
    ready: bool


GOOD = {"name": "a", "size": {"width": 2.0, "share": 1}, "labels": None, "ready": True, "x": []}


def test_what_is_right_passes():
    schema.check(GOOD, Model, "f")
    schema.check({"name": "é", "labels": [], "files": {"a": "b"}}, Model, "f", closed=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "name must be text, not 3."),
        ({"name": "\ud800"}, r"name must be text, not .*ud800"),
        ({"name": ["a"]}, "name must be text, not a list."),
        ({"size": []}, "size must be an object, not a list."),
        ({"size": None}, "size must be an object, not null."),
        ({"size": {"width": 1.5}}, r"size.width must be a whole number, not 1.5\."),
        ({"size": {"width": True}}, "size.width must be a whole number, not true."),
        ({"size": {"width": 10**400}}, r"size.width must be a whole number, not 1000*\.\.\."),
        ({"size": {"share": 10**400}}, r"size.share must be a finite number, not 1000*\.\.\."),
        ({"size": {"share": "0.5"}}, 'size.share must be a finite number, not "0.5".'),
        ({"size": {"share": float("nan")}}, "size.share must be a finite number, not NaN."),
        ({"size": {"share": 1e999}}, "size.share must be a finite number, not Infinity."),
        ({"labels": ["a", 1]}, r"labels\[1\] must be text, not 1."),
        ({"files": {"a": {}}}, r"files\.a must be text, not an object."),
        ({"ready": 1}, "ready must be true or false, not 1."),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        schema.check(GOOD | changes, Model, "folder/f.json")
    assert str(caught.value).startswith("folder/f.json: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 120


def test_keys_that_are_missing_or_too_many():
    with pytest.raises(UserError, match="f: name is missing."):
        schema.check({}, Model, "f")
    with pytest.raises(UserError, match="f: at.x is unknown; there are files, labels, name"):
        schema.check(GOOD, Model, "f", "at", closed=True)
    with pytest.raises(UserError, match="f must hold an object, not a list."):
        schema.check([], Model, "f")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"name": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b'{"name": "a"', "is no JSON"),
        (b'{"name": "\xff"}', "is no JSON"),
        (b"", "is no JSON"),
        (b"{}", "name is missing"),
    ],
)
def test_a_file_that_is_none_of_it(tmp_path, content, message):
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path, "a model", Model)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name, message in ((".", "cannot be read"), ("loop", "a broken link"), ("x", "not there")):
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / name, "a model")
