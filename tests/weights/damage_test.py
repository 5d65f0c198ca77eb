"""Damaged presets and Hugging Face directories: refused in one line and at once, or loaded."""

import json
import random
import shutil
import signal

import pytest

from convbert_tf import ConvBertEncoder, TextClassifier, TextPreprocessor, conversion
from convbert_tf.console import UserError
from convbert_tf.modeling import huggingface, presets
from tests.modeling.encoder_test import tiny
from tests.weights.presets_test import VOCABULARY

SECONDS = 60  # that a case may take, on a busy machine
VALUES = [None, True, -1, 1.5, 2**31, 10**12, 10**400, float("nan"), "", "x", "\ud800", "a/b"]
VALUES += [[], [1], {}, {"a": None}, ["a"] * 9]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "words.txt").write_text(VOCABULARY)
    model = TextClassifier(ConvBertEncoder(tiny(head_ratio=2)), 2, labels=["bad", "good"])
    model.save_to_preset(folder / "preset", folder / "words.txt", max_seq_length=16, pair=False)
    huggingface.save(model, folder / "huggingface", folder / "words.txt")
    return folder


def places(value, path=()):
    """Paths of all values inside a JSON value."""
    yield path
    keys = list(value) if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        keys = [0]
    for key in keys:
        yield from places(value[key], (*path, key))


def changed(value, path, new):
    if not path:
        return new
    value = value.copy()
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


def damage_json(directory, rng):
    path = rng.choice(sorted(directory.glob("*.json")))
    content = json.loads(path.read_text())
    place, value = rng.choice(list(places(content))), rng.choice(VALUES)
    path.write_text(json.dumps(changed(content, place, value)))
    return f"{path.name}: {place} = {str(value)[:20]}"


def damage_file(directory, rng):
    path = rng.choice(sorted(directory.iterdir()))
    content, how = path.read_bytes(), rng.choice(["flip", "cut", "empty", "missing", "folder"])
    place = rng.randrange(len(content))
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        flipped = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)])
        end = {"flip": flipped + content[place + 1 :], "cut": content[:place], "empty": b""}[how]
        path.write_bytes(end)
    return f"{path.name}: {how} at {place}"


def too_long(*_):
    raise TimeoutError


@pytest.mark.parametrize("kind", ["preset", "huggingface"])
@pytest.mark.parametrize("damage", [damage_json, damage_file])
def test_damage_is_refused_or_harmless(sources, tmp_path, kind, damage):
    rng, refused = random.Random(f"{kind} {damage.__name__}"), 0
    signal.signal(signal.SIGALRM, too_long)
    for _ in range(25):
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(sources / kind, tmp_path / "case")
        what = damage(tmp_path / "case", rng)
        signal.alarm(SECONDS)
        try:
            presets.load(tmp_path / "case")
            TextPreprocessor.from_preset(tmp_path / "case")(["word"])
            if rng.random() < 0.3:
                conversion.convert(tmp_path / "case", tmp_path / "out" / "target")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 900, what
            assert not (tmp_path / "out").exists(), what
        except BaseException as error:
            raise AssertionError(f"{kind}, {what}: {error!r}") from error
        finally:
            signal.alarm(0)
    assert refused >= 5
