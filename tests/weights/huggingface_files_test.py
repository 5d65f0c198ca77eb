"""Vocabularies of Hugging Face's directories, and its hub with no network but a cache."""

import json

import pytest

from convbert_tf import ConvBertEncoder, TextClassifier, WordPieceTokenizer, files
from convbert_tf.console import UserError
from convbert_tf.modeling import huggingface, presets
from convbert_tf.text import vocabulary
from tests.modeling.encoder_test import tiny
from tests.weights.presets_test import make, same

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, "hello", "w", "##or", "##ld", "world", ",", "!", "caf", "##e", "Hello", "é"]
TEXT = "Hello world, Hello café!"


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    return path


@pytest.mark.peers
@pytest.mark.parametrize("lower_case", [True, False])
def test_our_tokenizer_and_theirs_agree_on_a_directory(tmp_path, vocab_file, lower_case):
    transformers = pytest.importorskip("transformers")
    encoder = ConvBertEncoder(tiny(head_ratio=2))
    huggingface.save(encoder, tmp_path / "model", vocab_file, lower_case)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ours = WordPieceTokenizer(vocab_file, lower_case)
    ids = ours.tokenize([TEXT]).to_list()[0]
    assert theirs(TEXT)["input_ids"] == [2, *ids, 3]
    assert theirs.pad_token_id == 0 and theirs.model_max_length == 64
    assert (5 in ids) is lower_case

    # As new versions of transformers write it: tokenizer.json without vocab.txt.
    theirs.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "vocab.txt").exists()
    for directory in ("model", "new"):
        path, said = vocabulary.find_huggingface(tmp_path / directory)
        assert said is lower_case
        with open(path, encoding="utf-8") as file:
            assert file.read().split() == PIECES


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, True),
        ({"tokenizer_config": {"do_lower_case": False}}, False),
        ({"tokenizer": {"normalizer": {"lowercase": False}}}, False),
        ({"tokenizer": {"normalizer": None}}, True),
        ({"tokenizer_config": {"tokenizer_class": "BertTokenizerFast"}}, True),
    ],
)
def test_whether_texts_are_lower_cased(tmp_path, vocab_file, files, expected):
    vocab_file.rename(tmp_path / "vocab.txt")
    for name, values in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    path, lower_case = vocabulary.find_huggingface(tmp_path)
    assert path == str(tmp_path / "vocab.txt") and lower_case is expected


def test_a_tokenizer_that_is_not_ours_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="neither vocab.txt nor tokenizer.json"):
        vocabulary.find_huggingface(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(UserError, match="BertJapaneseTokenizer.*is not BERT's WordPiece"):
        vocabulary.find_huggingface(tmp_path)
    settings.write_text('{"strip_accents": false}')
    vocabulary.find_huggingface(tmp_path)
    assert "strip_accents False, ours True" in capsys.readouterr().out
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(UserError, match="not BERT's WordPiece"):
        vocabulary.find_huggingface(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def snapshot(name, revision):
        """The folder that a download of this revision would have filled."""
        commit = {"main": "a", "v1": "b"}[revision] * 40
        repo = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        return repo / "snapshots" / commit

    return snapshot


def test_models_and_presets_on_the_hub(hub, vocab_file):
    model, other = make("classifier"), make("encoder")
    model.save_to_preset(hub("me/model", "main"), vocab_file, lower_case=False)
    huggingface.save(other, hub("me/model", "v1"), vocab_file)
    same(TextClassifier.from_preset("hf://me/model"), model)
    same(TextClassifier.from_preset("hf://me/model@main"), model)
    same(ConvBertEncoder.from_preset("hf://me/model"), model.encoder)
    same(ConvBertEncoder.from_preset("hf://me/model@v1"), other)
    path, lower_case = presets.vocabulary("hf://me/model")
    assert path == str(hub("me/model", "main") / "vocab.txt") and lower_case is False


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://me/other", "hub cannot be reached: set HF_HUB_OFFLINE=0"),
        ("hf://me/model@v2", "hub cannot be reached: set HF_HUB_OFFLINE=0"),
        ("hf://model", "is no address like hf://owner/name"),
        ("hf://me/model/config.json", "is no address like hf://owner/name"),
        ("hf://../x", "is no address like hf://owner/name"),
    ],
)
def test_what_is_not_to_be_had_is_told(hub, address, message):
    make("encoder").save_to_preset(hub("me/model", "main"))
    with pytest.raises(UserError, match=message):
        ConvBertEncoder.from_preset(address)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "me/model is not on the hub, or private"),
        ("GatedRepoError", "me/model is not on the hub, or private"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_told(monkeypatch, error, message):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*_, **__):
        kind = getattr(hub.errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=message):
        files.download("hf://me/model@v9")


def test_one_file_of_weights_is_enough(monkeypatch, tmp_path):
    """Only what is needed is asked for: the second and third choice when the first is not there."""
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repo, revision, allow_patterns):
        assert (repo, revision) == ("me/model", None)
        asked.append(allow_patterns[2:])
        if "pytorch_model*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").write_text("")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert files.download("hf://me/model") == str(tmp_path)
    assert [patterns[0] for patterns in asked] == [
        "model.weights.h5",
        "tf_model.h5",
        "pytorch_model*.bin",
    ]
    asked.clear()
    (tmp_path / "model.safetensors").write_text("")
    files.download("hf://me/model")
    assert len(asked) == 1
