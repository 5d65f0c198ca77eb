"""The tokenizer against BERT's rules in plain Python, and against the original's ids."""

import json
import os
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.console import UserError
from convbert_tf.text import strings, tokenization, vocabulary, vocabulary_training
from tests import goldens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
EVERYTHING = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
CHARACTERS = [char for char in EVERYTHING if unicodedata.category(char)[0] not in "CZ"]


# ---- The reference's rules, independent of the library ----


def is_punctuation(char):
    ascii_symbol = char in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    return ascii_symbol or unicodedata.category(char).startswith("P")


def is_ideograph(char):
    blocks = "3400 4DBF 4E00 9FFF F900 FAFF 20000 2A6DF 2A700 2B73F 2B740 2B81F 2B820 2CEAF"
    bounds = [int(bound, 16) for bound in (blocks + " 2F800 2FA1F").split()]
    return any(a <= ord(char) <= b for a, b in zip(bounds[::2], bounds[1::2], strict=True))


def clean(text):
    kept = ""
    for char in text:
        if char in "\t\n\r" or unicodedata.category(char) == "Zs":
            kept += " "
        elif char != "\ufffd" and not unicodedata.category(char).startswith("C"):
            kept += f" {char} " if is_ideograph(char) else char
    return kept


def basic_words(text, lower_case, strip_accents):
    spaced = []
    for token in clean(text).split():
        token = token.lower() if lower_case else token
        if strip_accents:
            token = unicodedata.normalize("NFD", token)
            token = "".join(c for c in token if unicodedata.category(c) != "Mn")
        spaced.append("".join(f" {c} " if is_punctuation(c) else c for c in token))
    return " ".join(spaced).split()


def word_pieces(word, vocab):
    if len(word) > 200:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocab), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def assert_agrees(tokenizer, texts):
    ids_of = {piece: index for index, piece in enumerate(tokenizer.vocab)}
    found = tokenizer.tokenize(texts).to_list()
    for text, ids in zip(texts, found, strict=True):
        words = basic_words(text, tokenizer.lower_case, tokenizer.strip_accents)
        expected = [ids_of[piece] for word in words for piece in word_pieces(word, ids_of)]
        assert ids == expected, ascii(text)
    return found


# ---- Tokenizers and texts ----


def make_tokenizer(folder, pieces, lower_case=True, strip_accents=None):
    path = folder / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in [*SPECIAL, *pieces]), encoding="utf-8")
    return tokenization.WordPieceTokenizer(path, lower_case, strip_accents)


@pytest.fixture(
    scope="module",
    params=[(True, None), (False, None), (True, False), (False, True)],
    ids=["uncased", "cased", "lower with accents", "cased without accents"],
)
def every_character(request, tmp_path_factory):
    """A tokenizer whose pieces are single characters: no fault hides in an [UNK].

    All characters but most of the Hangul and CJK blocks, for speed.
    """
    sample = {c for i, c in enumerate(CHARACTERS) if i % 9 == 0} | set("ก日中한")
    chars = {c for c in CHARACTERS if unicodedata.category(c) != "Lo"} | sample
    lower_case, strip_accents = request.param
    if lower_case:
        chars = {c for char in chars for c in char.lower()}
    if lower_case if strip_accents is None else strip_accents:
        chars = {c for char in chars for c in unicodedata.normalize("NFD", char)}
    pieces = [piece for char in sorted(chars) for piece in (char, "##" + char)]
    return make_tokenizer(tmp_path_factory.mktemp("vocab"), pieces, *request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    pieces = "the cafe run ##ning ##s don t a ##a b ##b ’ . , ! σ ##σ ##ς 日 本 ᄒ ##ᅡ ##ᆫ ก ##ก"
    return make_tokenizer(tmp_path_factory.mktemp("vocab"), pieces.split())


def random_texts(count, seed):
    kinds = (("Mn", "Mc", "Me"), ("Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps"), ("Cf", "Zs"))
    pools = [
        CHARACTERS,
        *([char for char in EVERYTHING if unicodedata.category(char) in kind] for kind in kinds),
        EVERYTHING[:0x250],  # with all control characters
        EVERYTHING[0xAC00:0xD7A4],  # Hangul
        EVERYTHING[0x590:0x700],  # from right to left
        list("ΣΣΣσςαA'.:\u0301\u0345 \u200b\u00adİıßẞǅﬁ½日\x01\ufffd\x00"),
        list(" \t\n\r\x0b\x85\u2028\u2029\u00a0\u3000.,!abcABC"),
    ]
    rng = random.Random(seed)
    for _ in range(count):
        chosen = rng.sample(pools, rng.randint(1, 4))
        length = rng.choice([0, 1, 3, 8, 20, 60])
        text = "".join(rng.choice(rng.choice(chosen)) for _ in range(length))
        # The documented deviation: several marks that NFD keeps, but may sort.
        if sum(unicodedata.combining(c) > 0 and unicodedata.category(c) == "Mc" for c in text) < 2:
            yield text


# ---- Ids ----


def test_random_unicode(every_character):
    assert_agrees(every_character, list(random_texts(5000, seed=1)))


@pytest.mark.slow
def test_each_character_of_unicode(every_character):
    chars = CHARACTERS + [char for char in EVERYTHING[::15] if char not in CHARACTERS[:128]]
    assert_agrees(every_character, [f"a{char}b {char}" for char in chars])


def test_final_sigma(every_character):
    rng = random.Random(2)
    alphabet = "ΣΣΣΑα'.\u0301 \u200b!日1\u00ad\u0345ʰⅠ\x01"
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(4000)]
    assert_agrees(every_character, texts)


def test_words_around_200_characters(every_character):
    rng = random.Random(3)
    texts = [
        rng.choice("aéก한𐐀") * rng.randint(60, 260)
        + rng.choice(["", " ", ".", "日"])
        + rng.choice("abก𐐀") * rng.randint(60, 260)
        + " end"
        for _ in range(200)
    ]
    found = assert_agrees(every_character, [*texts, "a" * 200, "a" * 201, "ก" * 200, "ก" * 201])
    assert [len(ids) for ids in found[-4:]] == [200, 1, 200, 1]


def test_a_long_text_of_long_words_takes_memory_for_its_words(every_character):
    """A copy of the text for each of its words would be 2 TB."""
    word = "\u0e01" * 100  # of 300 bytes
    text = f"{word} \u00fc, " * 8000
    ids, starts, ends = every_character.tokenize_with_offsets([text, "a"])
    (once,) = every_character.tokenize([f"{word} \u00fc, "]).to_list()
    np.testing.assert_array_equal(ids[0], once * 8000)
    assert ids[1].shape == (1,) and len(once) > 100
    raw, first, last = text.encode(), starts[0].numpy(), ends[0].numpy()
    assert (first[1:] >= last[:-1]).all() and raw[first[-2] : last[-2]].decode() == "\u00fc"


def test_bytes_that_are_not_utf8_are_ignored(every_character):
    rng = random.Random(4)
    parts = [bytes([code]) for code in range(256)] + ["é Σ😀中한".encode()] * 99
    texts = [b"".join(rng.choices(parts, k=rng.randint(0, 12))) for _ in range(2000)]
    texts = [text[rng.randint(0, 3) : len(text) - rng.randint(0, 3)] for text in texts]
    readable = [text.decode("utf-8", "ignore") for text in texts]
    ids, _, ends = every_character.tokenize_with_offsets(texts)
    assert ids.to_list() == assert_agrees(every_character, readable)
    for text, row in zip(texts, ends.to_list(), strict=True):
        assert all(end <= len(text) for end in row)
    alone = every_character.tokenize(["AΣ".encode() + b"\xff"]).to_list()
    assert alone == assert_agrees(every_character, ["AΣ"])


def test_in_tf_data_and_with_empty_batches(small):
    texts = ["The cafés running!", "", "ΣΣ 日本", "ก" * 100, "xyz"]
    expected = assert_agrees(small, texts)
    dataset = tf.data.Dataset.from_tensor_slices(texts).batch(2).map(small.tokenize)
    assert [ids for batch in dataset for ids in batch.to_list()] == expected
    ids, starts, ends = small.tokenize_with_offsets([])
    assert ids.to_list() == starts.to_list() == ends.to_list() == []
    assert (ids.dtype, starts.dtype, ends.dtype) == (tf.int32, tf.int64, tf.int64)


# ---- Offsets ----


def assert_offsets_hold(tokenizer, texts):
    """Spans hold the text of their pieces, whole characters, and all that is not dropped."""
    ids, starts, ends = tokenizer.tokenize_with_offsets(texts)
    assert ids.to_list() == tokenizer.tokenize(texts).to_list()
    for text, *row in zip(texts, ids.to_list(), starts.to_list(), ends.to_list(), strict=True):
        raw, covered = text.encode("utf-8"), set()
        for piece, start, end in zip(*row, strict=True):
            covered.update(range(start, end))
            span = raw[start:end].decode("utf-8")
            assert clean(span[0]).strip() and clean(span[-1]).strip(), ascii(text)
            piece = tokenizer.vocab[piece].removeprefix("##").replace("ς", "σ")
            options = (tokenizer.lower_case, tokenizer.strip_accents)
            shown = "".join(basic_words(span, *options)).replace("ς", "σ")
            several = any(len(unicodedata.normalize("NFD", c.lower())) > 1 for c in span)
            assert piece in (shown, "[UNK]") or (several and piece in shown), ascii(text)
        position = 0
        for char in text:
            place = range(position, position := position + len(char.encode("utf-8")))
            if basic_words(char, tokenizer.lower_case, tokenizer.strip_accents):
                assert covered.issuperset(place), ascii(text)


def test_offsets_of_random_unicode(every_character):
    assert_offsets_hold(every_character, list(random_texts(1500, seed=5)))


def golden_lines(directory):
    return list(map(json.loads, (directory / "tokenization.jsonl").read_bytes().splitlines()))


def assert_golden_ids(tokenizer, golden):
    assert tokenizer.vocab_size == 30522 and tokenizer.mask_id == 103
    found = tokenizer.tokenize([line["text"] for line in golden]).to_list()
    for line, ids in zip(golden, found, strict=True):
        assert ids == line["ids"], line["text"]


def test_golden_ids_and_offsets_of_hard_unicode(tmp_path):
    """On BERT's vocabulary, where pieces that no line has a place for are replaced by fillers."""
    pieces = json.loads((goldens.TESTDATA / "tokenization_vocab.json").read_bytes())
    lines = {index: piece for piece, index in pieces.items()}
    lines = [lines.get(index, f"[unused{index}]") for index in range(30522)]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = tokenization.WordPieceTokenizer(tmp_path / "vocab.txt")
    golden = golden_lines(goldens.TESTDATA)
    assert len(golden) == 33
    assert_golden_ids(tokenizer, golden)
    assert_offsets_hold(tokenizer, [line["text"] for line in golden])


@goldens.needs_shared
def test_golden_ids_and_offsets_of_real_text():
    tokenizer = tokenization.WordPieceTokenizer(goldens.SHARED / "data" / "vocab.txt")
    golden = golden_lines(goldens.WHOLE)
    assert len(golden) == 753
    assert_golden_ids(tokenizer, golden)
    assert_offsets_hold(tokenizer, [line["text"] for line in golden[::5] + golden[-40:]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x01 The\x02  RUNnings. ", ["the=The", "run=RUN", "##ning=ning", "##s=s", ".=."]),
        ("ca\u200bfe\u0301\u200b, Cafés", ["cafe=ca\u200bfe\u0301", ",=,", "cafe=Café", "##s=s"]),
        ("日本don’t½", ["日=日", "本=本", "don=don", "’=’", "[UNK]=t½"]),
        ("한 ΣΣ", ["ᄒ=한", "##ᅡ=한", "##ᆫ=한", "σ=Σ", "##ς=Σ"]),
        ("a " + "ก" * 100, ["a=a", "ก=ก"] + 99 * ["##ก=ก"]),
        ("a " + "ก" * 201 + " b", ["a=a", "[UNK]=" + "ก" * 201, "b=b"]),
    ],
)
def test_offsets_of_known_texts(small, text, expected):
    raw, rows = text.encode("utf-8"), small.tokenize_with_offsets([text])
    spans = zip(*(row.to_list()[0] for row in rows), strict=True)
    assert [f"{small.vocab[i]}={raw[start:end].decode()}" for i, start, end in spans] == expected


# ---- Back to text, and into a SavedModel ----


def test_detokenize(small):
    text = small.detokenize(small.tokenize(["The cafés, running", "", "x"]))
    assert text.numpy().tolist() == [b"the cafes , running", b"", b"[UNK]"]
    dense = [[small.cls_id, small.vocab.index("run"), small.vocab.index("##s"), small.sep_id, 0]]
    assert small.detokenize(dense).numpy().tolist() == [b"runs"]
    assert small.detokenize(tf.constant(dense, tf.int64)).numpy().tolist() == [b"runs"]


class Served(tf.Module):
    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(self, texts):
        ids, starts, ends = self.tokenizer.tokenize_with_offsets(texts)
        return [ids, starts, ends, self.tokenizer.detokenize(ids)]


PROGRAM = """
import json, sys
import tensorflow as tf, tensorflow_text
results = tf.saved_model.load(sys.argv[1]).serve(tf.constant(json.loads(sys.argv[2])))
assert not any(name.startswith("convbert_tf") for name in sys.modules)
print(json.dumps([r.to_list() for r in results[:3]] + [[t.decode() for t in results[3].numpy()]]))
"""


def test_saved_model_needs_only_tensorflow_text(small, tmp_path):
    served, texts = Served(small), ["The cafés, running", "ΣΣ 한", "ก" * 100 + " a"]
    tf.saved_model.save(served, tmp_path / "saved")
    os.rename(tmp_path / "saved", tmp_path / "moved")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "moved"), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *tensors, text = json.loads(done.stdout)
    assert tensors == [tensor.to_list() for tensor in small.tokenize_with_offsets(texts)]
    assert text == ["the cafes , running", "σς \u1112\u1161\u11ab", "ก" * 100 + " a"]


# ---- Learning vocabularies ----


@pytest.fixture(scope="module")
def training_texts():
    rng = random.Random(6)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "É", "an")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(3000)]
    weights = [1 / rank for rank in range(1, 3001)]
    return [" ".join(rng.choices(words, weights, k=20)).title() + "!" for _ in range(1500)]


@pytest.mark.parametrize("lower_case", [True, False])
def test_train_vocab(training_texts, tmp_path, lower_case):
    vocab = vocabulary_training.train_vocab(iter(training_texts), 600, lower_case)
    assert vocab[:5] == SPECIAL and len(set(vocab)) == len(vocab) == 600
    assert "##!" not in vocab and any(piece.startswith("##") for piece in vocab)
    assert vocab == vocabulary_training.train_vocab(training_texts[::-1], 600, lower_case)
    assert all(piece == piece.lower() for piece in vocab[5:]) == lower_case
    vocabulary.save_vocab(tmp_path / "vocab.txt", vocab)
    tokenizer = tokenization.WordPieceTokenizer(tmp_path / "vocab.txt", lower_case)
    found = assert_agrees(tokenizer, training_texts)
    assert not any(tokenizer.unk_id in ids for ids in found)
    # Trained pieces are worth it: the texts take far fewer of them than characters.
    assert sum(map(len, found)) < 0.5 * sum(len(t) - t.count(" ") for t in training_texts)


def test_train_vocab_with_and_without_accents():
    texts = ["Café CAFÉ café cafe\u0301 olé"] * 9
    kept = vocabulary_training.train_vocab(texts, 100, strip_accents=False)
    assert {"café", "é"} <= set(kept) and "E" not in kept
    assert "cafe" in vocabulary_training.train_vocab(texts, 100)
    assert "CAFE" in vocabulary_training.train_vocab(texts, 100, False, strip_accents=True)


def test_train_vocab_limits(training_texts):
    few = vocabulary_training.train_vocab(["some few words, some more"], 1000)
    assert 5 < len(few) < 1000 and "some" in few
    with pytest.raises(UserError, match="a vocabulary of 20 is too small"):
        vocabulary_training.train_vocab(training_texts, 20)
    with pytest.raises(UserError, match="no words"):
        vocabulary_training.train_vocab(["", " \x01"], 100)


def unknown_share(folder, vocab, texts, lower_case=True):
    vocabulary.save_vocab(folder / "vocab.txt", vocab)
    tokenizer = tokenization.WordPieceTokenizer(folder / "vocab.txt", lower_case)
    ids = tokenizer.tokenize(texts).flat_values.numpy()
    return np.mean(ids == tokenizer.unk_id), len(ids)


@pytest.mark.parametrize(("first", "number", "longest"), [(0x4E00, 1500, 1), (0xAC00, 1000, 3)])
def test_all_characters_that_fit_are_in_a_vocabulary(tmp_path, capsys, first, number, longest):
    """Ideographs, each a word; and syllables of Hangul in words, cased, so that they stay whole."""
    rng = random.Random(1)
    chars = [chr(first + 7 * i) for i in range(number)]
    words = ["".join(rng.choices(chars, k=rng.randint(1, longest))) for _ in range(4000)]
    texts = [" ".join(rng.choices(words + chars, k=20)) for _ in range(1500)]
    vocab = vocabulary_training.train_vocab(texts, 4000, lower_case=False)
    used = set("".join(texts)) - {" "}
    assert used <= set(vocab) and len(vocab) <= 4000
    assert unknown_share(tmp_path, vocab, texts, False)[0] == 0
    assert capsys.readouterr().out == ""
    vocab = vocabulary_training.train_vocab(texts, 900, lower_case=False)
    assert len(vocab) in (899, 900) and unknown_share(tmp_path, vocab, texts, False)[0] > 0.05
    left, many = capsys.readouterr().out.splitlines()
    places = 895 if longest == 1 else 447
    assert left.startswith(f"{len(used) - places:,} of {len(used):,} characters did not fit in")
    assert "% of the text's tokens are [UNK]" in many and "vocab_size" in many


def test_words_of_any_length_are_learned_from(tmp_path, capsys):
    """Text without blanks, as Thai has it: a line is a word."""
    rng = random.Random(2)
    words = ["".join(rng.choices("กขคงจชซญดต", k=rng.randint(2, 5))) for _ in range(100)]
    texts = ["".join(rng.choices(words, k=25)) for _ in range(300)]
    vocab = vocabulary_training.train_vocab(texts, 400)
    share, num_tokens = unknown_share(tmp_path, vocab, texts)
    assert len(vocab) == 400 and share == 0
    assert num_tokens < 0.5 * sum(map(len, texts))
    texts = ["".join(rng.choices(words, k=100)) for _ in range(20)]
    vocabulary_training.train_vocab(texts, 400)
    assert "words of over 200 characters are" in capsys.readouterr().out


def test_pieces_of_texts_are_cut_at_their_bytes():
    texts, rng = ["Zoë 東京".encode() * 40, b"", b"\xff\x00ab"], random.Random(0)
    drawn = [(i, *sorted(rng.choices(range(len(texts[i]) + 1), k=2))) for i in [0, 1, 2, 0] * 20]
    rows, starts, ends = (tf.constant(x, tf.int64) for x in zip(*drawn, strict=True))
    expected = [texts[i][a:b] for i, a, b in drawn]
    assert max(map(len, expected)) > 64 > min(map(len, expected))
    assert strings.cut(tf.constant(texts), rows, starts, ends).numpy().tolist() == expected
    assert strings.cut(tf.constant(texts), rows[:0], starts[:0], ends[:0]).shape == (0,)
