"""The settings of stored tokenizers: followed, or refused in one line."""

import json

import pytest

from convbert_tf.console import UserError
from convbert_tf.text import stored_vocabulary, tokenization
from convbert_tf.text.vocabulary import Vocabulary, load_vocab

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, "cat", "dog", "sat", "mat", "##s", "the", "on"]
NORMALIZER = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
MODEL = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
    "vocab": {piece: index for index, piece in enumerate(PIECES)},
}
TOKENIZER = {
    "added_tokens": [{"id": i, "content": SPECIAL[i], "special": True} for i in range(5)],
    "normalizer": NORMALIZER,
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
    },
    "model": MODEL,
}


def write(folder, pieces=PIECES, **files):
    """A Hugging Face directory's tokenizer: vocab.txt unless `pieces` is None, and JSON files."""
    if pieces is not None:
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def pair(second, end):
    """A template of pairs with the segments of the second text and of the [SEP] after it."""
    more = [{"Sequence": {"id": "B", "type_id": second}}]
    more.append({"SpecialToken": {"id": "[SEP]", "type_id": end}})
    return TOKENIZER["post_processor"]["single"] + more


BERT = {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}
IDS = {token: {"id": token, "ids": [i], "tokens": [token]} for i, token in enumerate(SPECIAL)}
POST = TOKENIZER["post_processor"] | {"pair": pair(1, 1)}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (True, True)),
        ({"tokenizer_config": {"do_lower_case": False}}, (False, False)),
        ({"tokenizer_config": {"strip_accents": False}}, (True, False)),
        ({"tokenizer_config": {"do_lower_case": False, "strip_accents": True}}, (False, True)),
        ({"tokenizer": TOKENIZER}, (True, True)),
        (
            {"tokenizer": TOKENIZER | {"post_processor": POST | {"special_tokens": IDS}}},
            (True, True),
        ),
        ({"tokenizer": TOKENIZER | {"post_processor": BERT}}, (True, True)),
        (
            {"tokenizer": TOKENIZER | {"normalizer": NORMALIZER | {"lowercase": False}}},
            (False,) * 2,
        ),
        (
            {"tokenizer": TOKENIZER | {"normalizer": NORMALIZER | {"strip_accents": False}}},
            (True, False),
        ),
        (
            {
                "tokenizer_config": {
                    "tokenizer_class": "BertTokenizerFast",
                    "tokenize_chinese_chars": True,
                    "never_split": None,
                    "mask_token": {"content": "[MASK]", "lstrip": False},
                    "additional_special_tokens": [],
                    "added_tokens_decoder": {"3": {"content": "[SEP]"}},
                },
                "special_tokens_map": {"unk_token": "[UNK]", "bos_token": "[CLS]"},
                "added_tokens": {"[MASK]": 4},
            },
            (True, True),
        ),
    ],
)
def test_how_texts_are_normalised(tmp_path, files, expected):
    found = stored_vocabulary.find_huggingface(write(tmp_path, **files))
    assert found == Vocabulary(str(tmp_path / "vocab.txt"), *expected)


def changed(where, **values):
    """A tokenizer.json with other values in one of its parts."""
    return {"tokenizer": TOKENIZER | {where: TOKENIZER[where] | values}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer": TOKENIZER | {"normalizer": None}}, r"normalizer\.type None is not"),
        (changed("normalizer", type="Sequence"), r"normalizer\.type 'Sequence' is not"),
        (changed("normalizer", clean_text=False), r"normalizer\.clean_text False"),
        (changed("normalizer", handle_chinese_chars=False), "handle_chinese_chars False"),
        (changed("normalizer", lowercase="yes"), "lowercase is 'yes', not true"),
        ({"tokenizer": TOKENIZER | {"normalizer": [1]}}, "its normalizer is no object"),
        ({"tokenizer": TOKENIZER | {"pre_tokenizer": None}}, r"pre_tokenizer\.type None"),
        (changed("pre_tokenizer", type="Whitespace"), r"pre_tokenizer\.type 'Whitespace'"),
        (changed("model", continuing_subword_prefix=""), "continuing_subword_prefix ''"),
        (changed("model", unk_token="<unk>"), "unk_token '<unk>'"),
        (changed("model", max_input_chars_per_word=50), "max_input_chars_per_word 50 .*100 or 200"),
        (changed("model", type="BPE"), "not BERT's WordPiece"),
        (changed("model", vocab={"[PAD]": 0}), r"\[UNK\], .* not in model\.vocab"),
        (changed("model", vocab={"[PAD]": "0"}), r"'\[PAD\]' in model\.vocab has the id '0'"),
        (changed("model", vocab={"a": 1, "b": 1}), "'b' in model.vocab has the id 1, which 'a'"),
        (changed("model", vocab={"a": 10**12}), "has the id 1000000000000"),
        (changed("model", vocab={"a\nb": 1}), "has white space"),
        (changed("model", vocab=MODEL["vocab"] | {"dog": 5, "cat": 6}), "two vocabularies: 'cat'"),
        (
            {"tokenizer": TOKENIZER | {"post_processor": {"type": "RobertaProcessing"}}},
            "the post_processor is not BERT's",
        ),
        (changed("post_processor", single=[{"Sequence": {"id": "A"}}]), "makes .CLS. text .SEP."),
        (changed("post_processor", pair=pair(1, 0)), "segment 1 from the second text on"),
        (changed("post_processor", pair=pair(0, 1)), "segment 1 from the second text on"),
        (
            changed("post_processor", special_tokens={"[CLS]": {"id": "[CLS]", "ids": [3]}}),
            "the post_processor is not BERT's",
        ),
        (
            {"tokenizer": TOKENIZER | {"post_processor": BERT | {"cls": ["[SEP]", 3]}}},
            "the post_processor is not BERT's",
        ),
        (
            {"tokenizer": TOKENIZER | {"padding": {"direction": "Left"}}},
            r"padding\.direction 'Left'",
        ),
        (
            {"tokenizer": TOKENIZER | {"truncation": {"direction": "Left"}}},
            r"truncation\.direction",
        ),
        ({"tokenizer_config": {"padding_side": "left"}}, "padding_side 'left' is not supported"),
        ({"tokenizer": [1]}, "tokenizer.json is damaged: it holds no object"),
        ({"tokenizer": TOKENIZER | {"added_tokens": [{"id": 9, "content": "[E1]"}]}}, "'\\[E1\\]'"),
        ({"tokenizer": TOKENIZER | {"added_tokens": [{"id": 6, "content": "[SEP]"}]}}, "with id 6"),
        ({"added_tokens": {"[E1]": 18}}, r"the added token '\[E1\]' with id 18 is not"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9": {"content": "x"}}}}, "'x' with id 9"),
        ({"tokenizer_config": {"added_tokens_decoder": 7}}, "the added token 7"),
        ({"tokenizer_config": {"additional_special_tokens": ["<e>"]}}, "'<e>' is not supported"),
        ({"special_tokens_map": {"additional_special_tokens": 7}}, "the added token 7 is not"),
        ({"special_tokens_map": {"unk_token": "<unk>"}}, r"unk_token is '<unk>'; only '\[UNK\]'"),
        ({"tokenizer_config": {"bos_token": "<s>"}}, "the added token '<s>'"),
        ({"tokenizer_config": {"tokenize_chinese_chars": False}}, "tokenize_chinese_chars False"),
        ({"tokenizer_config": {"do_basic_tokenize": False}}, "do_basic_tokenize False"),
        ({"tokenizer_config": {"do_lower_case": "false"}}, "do_lower_case is 'false', not true"),
        ({"tokenizer_config": {"strip_accents": 0}}, "strip_accents is 0, not true"),
        ({"tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer"}}, "BertJapanese"),
        (
            {"tokenizer_config": {"do_lower_case": False}, "tokenizer": TOKENIZER},
            "do_lower_case is False, but lowercase in tokenizer.json True",
        ),
    ],
)
def test_what_would_change_ids_is_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as error:
        stored_vocabulary.find_huggingface(write(tmp_path, **files))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_there_is_no_vocabulary(tmp_path):
    with pytest.raises(stored_vocabulary.NoVocabularyError, match="neither vocab.txt nor"):
        stored_vocabulary.find_huggingface(tmp_path)
    write(tmp_path, None, config={"lower_case": True})
    with pytest.raises(stored_vocabulary.NoVocabularyError, match="the preset has no vocabulary"):
        stored_vocabulary.find(tmp_path)
    write(tmp_path, None, tokenizer=TOKENIZER | {"model": {"type": "WordPiece"}})
    with pytest.raises(UserError, match="its model has no vocab"):
        stored_vocabulary.find_huggingface(tmp_path)


def test_a_run_is_told_from_a_preset(tmp_path):
    write(tmp_path, config={"model": {}, "training": {}})
    with pytest.raises(UserError, match="is no preset of convbert_tf; tools/convert_checkpoint"):
        stored_vocabulary.find(tmp_path)
    (tmp_path / "preset").mkdir()
    write(tmp_path / "preset", config={"lower_case": True})
    with pytest.raises(UserError, match="is a run; its preset is .*preset"):
        stored_vocabulary.find(tmp_path)
    # A conversion with the optimizer's state leaves checkpoints beside a preset.
    (tmp_path / "preset" / "checkpoints").mkdir()
    assert stored_vocabulary.find(tmp_path / "preset").lower_case


def test_ids_with_holes_are_kept(tmp_path, capsys):
    ids = {piece: index + (index > 5) + 2 * (index > 8) for index, piece in enumerate(PIECES)}
    assert ids["dog"] == 7 and ids["on"] == 14
    files = changed("model", vocab=ids)
    found = stored_vocabulary.find_huggingface(write(tmp_path, None, **files))
    vocab = load_vocab(found.path)
    assert {piece: index for index, piece in enumerate(vocab) if piece} == ids
    tokenizer = tokenization.WordPieceTokenizer(*found)
    assert tokenizer.tokenize(["The dog sat on mats"]).to_list() == [[13, 7, 8, 14, 9, 12]]
    assert tokenizer.vocab_size == 15 and "3 lines are empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lower_case": True}, (True, True)),  # of a preset from before there was strip_accents
        ({"lower_case": False}, (False, False)),
        ({"lower_case": True, "strip_accents": False}, (True, False)),
    ],
)
def test_the_vocabulary_of_a_preset(tmp_path, values, expected):
    found = stored_vocabulary.find(write(tmp_path, config=values))
    assert found == Vocabulary(str(tmp_path / "vocab.txt"), *expected)
    write(tmp_path, config=values | {"strip_accents": "no"})
    with pytest.raises(UserError, match="strip_accents is 'no'"):
        stored_vocabulary.find(tmp_path)
