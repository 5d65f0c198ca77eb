"""The Python examples of README.md and docs/*.md, run as they stand there.

An example is run if `<!-- run -->` stands on the line before its ```python block, and what it must
give stands in a comment right behind it, which a reader does not see:

    <!-- check
    assert classifier.predict(inputs).shape == (2, 2)
    -->

The examples of one file run from the top, in one namespace and in an empty folder that holds small
stand-ins for what they name: the presets runs/tiny/preset and runs/sst2/preset, `preset` (the path
of the first), `texts` and `labels`, `convbert_tf`, `keras` and `np`.
"""

import pathlib
import random
import re

import keras
import numpy as np
import pytest

import convbert_tf
from tests.modeling.encoder_test import tiny

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GOOD, BAD = ["good", "fine", "great", "lovely"], ["bad", "poor", "awful", "dull"]
MARK = "<!-- run -->"
EXAMPLE = re.compile(
    rf"^{MARK}\n```python\n(?P<code>.*?)^```\n(?:<!-- check\n(?P<check>.*?)^-->$)?", re.M | re.S
)


def examples(text):
    """(line, code, check) of the marked examples of a page; check is None where there is none."""
    return [
        (text.count("\n", 0, found.start("code")) + 1, found["code"], found["check"])
        for found in EXAMPLE.finditer(text)
    ]


def run(path, text, names):
    """Runs the examples of a page and their checks; errors tell the line on it."""
    for line, code, check in examples(text):
        assert check, f"{path}, line {line}: no <!-- check ... --> behind the example"
        first_of_check = line + code.count("\n") + 2
        for start, part in ((line, code), (first_of_check, check)):
            # Our own pages, not input. With empty lines before it, errors name the page's line.
            exec(compile("\n" * (start - 1) + part, str(path), "exec"), names)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What an example may name, in a folder with small presets."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, "the", "film", "was", "."]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in vocab))
    keras.utils.set_random_seed(0)
    encoder = convbert_tf.ConvBertEncoder(tiny(vocab_size=len(vocab), max_position_embeddings=128))
    encoder.save_to_preset(tmp_path / "runs/tiny/preset", tmp_path / "vocab.txt")
    classifier = convbert_tf.TextClassifier(encoder, 2, labels=["negative", "positive"])
    classifier.save_to_preset(tmp_path / "runs/sst2/preset", tmp_path / "vocab.txt")
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    labels = [rng.randrange(2) for _ in range(256)]
    texts = [f"the film was {rng.choice((BAD, GOOD)[label])} ." for label in labels]
    names = {"convbert_tf": convbert_tf, "keras": keras, "np": np}
    return names | {"preset": "runs/tiny/preset", "texts": texts, "labels": labels}


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_the_examples_give_what_they_say(path, names):
    run(path, path.read_text(encoding="utf-8"), names)


def test_every_mark_is_before_an_example():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert len(examples(text)) == text.count(MARK), f"{path}: a mark without an example"
    assert len(examples(PAGES[0].read_text(encoding="utf-8"))) >= 2


PAGE = """Words.
<!-- run -->
```python
x = 1
```
<!-- check
assert x == VALUE
-->
"""


def test_a_wrong_example_is_found():
    run("page", PAGE.replace("VALUE", "1"), {})
    with pytest.raises(AssertionError) as caught:
        run("page", PAGE.replace("VALUE", "2"), {})
    assert caught.traceback[-1].lineno + 1 == 7
    with pytest.raises(AssertionError, match="line 4: no <!-- check"):
        run("page", PAGE.split("<!-- check")[0], {})
