"""Vocabulary files: what is read, with which ids, and what is refused."""

import json
import os

import pytest

from convbert_tf import ConvBertEncoder, TextPreprocessor
from convbert_tf.console import UserError
from convbert_tf.modeling import masking
from convbert_tf.text import tokenization, vocabulary
from tests import goldens
from tests.modeling.encoder_test import tiny

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_save_and_load_vocab(tmp_path):
    path, vocab = tmp_path / "vocab.txt", [*SPECIAL, "é", "##\u00ad", "日"]
    vocabulary.save_vocab(path, vocab)
    assert vocabulary.load_vocab(path) == vocab and os.listdir(tmp_path) == ["vocab.txt"]
    for content in (b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n", b""):
        path.write_bytes(content or path.read_bytes().replace(b"\r\n", b" \n", 3))
        assert vocabulary.load_vocab(path) == vocab
    for more, message in (("日", "line 9: '日' stands on line 8"), ("", "line 9: empty")):
        with pytest.raises(UserError, match=message):
            vocabulary.save_vocab(path, [*vocab, more])
    assert vocabulary.load_vocab(path) == vocab


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\] not on any of its 0 lines"),
        (b"[PAD]\n[UNK]\n[CLS]\n[MASK]\na\n", r"\[SEP\] not on any of its 5 lines"),
        (b"[PAD]\n[UN K] \n", "line 2: white space"),
        (b"[PAD]\n[UNK]\n##a\xe2\x80\xa8b\n", "line 3: white space"),
        (b"[PAD]\n[UNK]\nan \xe9\n", "line 3: not UTF-8"),
        (b"[PAD]\n[UNK]\r[CLS]\n", "line 2: a CR that no LF follows"),
        (b"[PAD]\r\n[UNK]\r\r\n[CLS]\r\n", "line 2: a CR that no LF follows"),
        (b"[PAD]\ncat\ncat \n", "line 3: white space around 'cat', which is on another line"),
        (b"[PAD]\n" + b"x" * 257 + b"\n", "line 2: a piece of more than 256 bytes"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", "No valid vocab"),
        (None, "cannot read the vocabulary"),
    ],
)
def test_damaged_vocabularies_are_refused(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        tokenization.WordPieceTokenizer(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# Line:     0-4       5      6      7     8        9   10     11    12   13     14
REPEATED = [*SPECIAL, "cat", "##s", "cat", "[MASK]", "", "the", "##s", "a", "cat", "##a"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_last_line_of_a_repeated_piece_has_its_id(tmp_path, capsys, monkeypatch, end):
    """As for the original and Hugging Face; the other lines keep their places."""
    monkeypatch.setattr(vocabulary, "_announced", set())
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{piece}{end}" for piece in REPEATED).encode())
    tokenizer = tokenization.WordPieceTokenizer(path)
    texts = ["The cats", "cat a", "acat", "as dog"]
    ids = [[10, 13, 11], [13, 12], [1], [12, 11, 1]]
    assert tokenizer.tokenize(texts).to_list() == ids
    assert tokenizer.tokenize_with_offsets(texts)[0].to_list() == ids
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.pad_id) == (15, 8, 0)
    assert masking.special_tokens(tokenizer.vocab)[:3] == (2, 3, 8)
    # No text gets the ids of unused lines: neither their pieces nor what stands in their place.
    every = [chr(code) for code in (*range(0xE000, 0xE010), *range(128))]
    odd = [f"{char} {i}" for char in every for i in (4, 5, 6, 7, 9)]
    assert not {4, 5, 6, 7, 9} & set(tokenizer.tokenize(odd).flat_values.numpy().tolist())
    # Back to text, each stands for the piece on its line.
    assert tokenizer.detokenize([[10, 5, 6, 7, 11, 13]]).numpy().tolist() == [b"the cats cats cat"]

    vocabulary.copy(path, tmp_path / "copy.txt")
    assert (tmp_path / "copy.txt").read_bytes() == "".join(f"{p}\n" for p in REPEATED).encode()
    for each in (path, tmp_path / "copy.txt"):
        assert vocabulary.load_vocab(each) == REPEATED
    said = capsys.readouterr().out
    assert said == (
        f"{path}, 15 lines: 3 pieces are repeated, the last line of each has the id (4 earlier "
        "lines are unused); 1 line is empty\n"
    )


def test_the_vocabulary_of_a_preset_is_not_told_of_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vocabulary, "_announced", set())
    (tmp_path / "foreign.txt").write_text("".join(f"{piece}\n" for piece in REPEATED))
    ConvBertEncoder(tiny()).save_to_preset(tmp_path / "preset", tmp_path / "foreign.txt")
    assert "3 pieces are repeated" in capsys.readouterr().out  # where it is written, and only there
    monkeypatch.setattr(vocabulary, "_announced", set())  # as in a new process
    preprocessor = TextPreprocessor.from_preset(tmp_path / "preset", 16)
    ConvBertEncoder.from_preset(tmp_path / "preset").save_to_preset(tmp_path / "two", preprocessor)
    TextPreprocessor.from_preset(tmp_path / "two")
    assert not capsys.readouterr().out


@goldens.needs_shared
def test_golden_ids_of_the_vocabulary_that_the_original_ships(capsys, monkeypatch):
    monkeypatch.setattr(vocabulary, "_announced", set())
    path = goldens.SHARED / "data" / "vocab-original.txt"
    tokenizer = tokenization.WordPieceTokenizer(path)
    lines = (goldens.WHOLE / "tokenization_original_vocab.jsonl").read_bytes().splitlines()
    golden = [json.loads(line) for line in lines]
    found = tokenizer.tokenize([line["text"] for line in golden]).to_list()
    assert len(golden) == 753 and tokenizer.vocab_size == 30522
    assert found == [line["ids"] for line in golden]
    assert "188 pieces are repeated" in (said := capsys.readouterr().out) and "1,008" in said
