"""The tokenizer in plain Python against the graph's: ids and offsets, on texts of any bytes."""

import json
import random
import unicodedata

import pytest

from convbert_tf.console import UserError
from convbert_tf.text.plain_tokenization import PlainTokenizer
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests import goldens
from tests.text.tokenization_test import CHARACTERS, EVERYTHING, SPECIAL

MODES = [(True, None), (False, None), (True, False), (False, True)]
# What is no UTF-8: overlong, a surrogate, above U+10FFFF, lead bytes alone, U+FFFD's own bytes.
BROKEN = [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\xaf", b"\xff", b"\xe6\x97"]
BROKEN += [b"\xef\xbf\xbd", b"\x80", b"\xf8\x88\x80\x80\x80"]


def of_categories(*kinds):
    return [char for char in EVERYTHING if unicodedata.category(char) in kinds]


POOLS = [
    CHARACTERS,
    EVERYTHING[:0x250],  # with all control characters
    EVERYTHING[0x370:0x400],  # Greek
    EVERYTHING[0x590:0x700],  # from right to left
    EVERYTHING[0xAC00:0xD7A4],  # Hangul
    of_categories("Mn", "Mc", "Me"),
    of_categories("Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps"),
    of_categories("Cf", "Zs", "Zl", "Zp", "Cc"),
    of_categories("Co", "Cn"),
    list("ΣΣΣσςαA'.:\u0301\u0345 \u200b\u00adİıßẞǅﬁ½日\x01\ufffd\x00"),
    list(" \t\n\r\x0b\x85\u2028\u2029\u00a0\u3000.,!abcABC"),
    ["the", "cat", "running", "don't", "日本", "x1", "[UNK]", "##s", "a.b", "un-"],
]


def random_texts(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        chosen = rng.sample(POOLS, rng.randint(1, 4))
        length = rng.choice([0, 1, 3, 8, 20, 60, 250])
        parts = [rng.choice(rng.choice(chosen)).encode() for _ in range(length)]
        if rng.random() < 0.25:
            for _ in range(rng.randint(1, 4)):
                parts.insert(rng.randint(0, len(parts)), rng.choice(BROKEN))
        text = b"".join(part + b" " * (rng.random() < 0.1) for part in parts)
        cut = rng.random() < 0.1  # in the middle of a character perhaps
        yield text[1:-1] if cut else text


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    """A vocabulary whose pieces are mostly single characters: no fault hides in an [UNK]."""
    chars = {c for c in CHARACTERS if unicodedata.category(c) != "Lo"} | set(CHARACTERS[::9])
    chars |= {c for char in chars for c in char.lower()}
    chars |= {c for char in chars for c in unicodedata.normalize("NFD", char)}
    pieces = [piece for char in sorted(chars) for piece in (char, f"##{char}")]
    more = ["the", "cat", "##ing", "run", "##ni", "a.b", "##.", "日本", "##日本", "##", "##ab"]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(f"{p}\n" for p in dict.fromkeys([*SPECIAL, *pieces, *more])))
    return path


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_ids_and_offsets_are_the_graphs(vocab_file, mode):
    texts = list(random_texts(1000, seed=MODES.index(mode)))
    graph, plain = WordPieceTokenizer(vocab_file, *mode), PlainTokenizer(vocab_file, *mode)
    expected = (each.to_list() for each in graph.tokenize_with_offsets(texts))
    expected = zip(*expected, strict=True)
    found = plain.tokenize_with_offsets(texts)
    for text, pieces, row in zip(texts, found, expected, strict=True):
        assert (pieces.ids, pieces.starts, pieces.ends) == row, (mode, text)
    assert plain.tokenize(texts) == graph.tokenize(texts).to_list()
    assert sum(len(pieces.ids) for pieces in found) > 20_000
    assert sum(pieces.ids.count(plain.unk_id) for pieces in found) > 100


def test_long_words_and_long_texts(vocab_file):
    words = ["ก" * 200, "ก" * 201, "a" * 200, "a" * 201, "é" * 150, "日" * 500, "." * 500]
    texts = [*words, " ".join(words * 30), "x" * 100_000]
    graph, plain = WordPieceTokenizer(vocab_file), PlainTokenizer(vocab_file)
    assert plain.tokenize(texts) == graph.tokenize(texts).to_list()


@pytest.mark.parametrize(
    ("golden", "vocabulary"),
    [
        pytest.param("tokenization.jsonl", "vocab.txt", marks=goldens.needs_shared),
        pytest.param(
            "tokenization_original_vocab.jsonl", "vocab-original.txt", marks=goldens.needs_shared
        ),
    ],
)
def test_ids_are_the_originals_on_every_golden_line(golden, vocabulary):
    tokenizer = PlainTokenizer(goldens.SHARED / "data" / vocabulary)
    lines = list(map(json.loads, (goldens.WHOLE / golden).read_bytes().splitlines()))
    assert tokenizer.tokenize([line["text"] for line in lines]) == [line["ids"] for line in lines]
    assert len(lines) == 753


def test_words_are_remembered_without_end(vocab_file):
    tokenizer = PlainTokenizer(vocab_file)
    expected = tokenizer.tokenize(["the 7 cats"])
    tokenizer.tokenize([" ".join(map(str, range(50_000)))])
    assert len(tokenizer._remembered) <= 20_000
    assert tokenizer.tokenize(["the 7 cats", b"the 7 cats"]) == expected * 2


def test_what_is_no_text_or_no_vocabulary_is_refused(vocab_file, tmp_path):
    tokenizer = PlainTokenizer(vocab_file)
    with pytest.raises(UserError, match="must be a string, got 3"):
        tokenizer.tokenize([3])
    with pytest.raises(UserError, match="half a surrogate pair"):
        tokenizer.tokenize(["a\ud800"])
    (tmp_path / "vocab.txt").write_text("[PAD]\na\n")
    with pytest.raises(UserError, match=r"\[UNK\], \[CLS\], \[SEP\], \[MASK\] not on any"):
        PlainTokenizer(tmp_path / "vocab.txt")
