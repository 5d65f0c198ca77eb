"""Vocabularies of Hugging Face's directories, and its hub with no network but a cache."""

import pytest

from convbert_tf import ConvBertEncoder, TextClassifier, WordPieceTokenizer, files
from convbert_tf.console import UserError
from convbert_tf.modeling import huggingface, presets
from convbert_tf.text import stored_vocabulary
from convbert_tf.text.vocabulary import ids_of, read_pieces
from tests.modeling.encoder_test import tiny
from tests.weights.presets_test import make, same

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# With repeated pieces, of which the last counts, and an empty line.
PIECES = [*SPECIAL, "caf", "w", "##or", "hello", "##ld", "world", "", ",", "!", "caf", "##e"]
PIECES += ["Hello", "##é", "world"]
TEXT = "Hello world, Hello café!"


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    return path


@pytest.mark.peers
@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_our_tokenizer_and_theirs_agree_on_a_directory(
    tmp_path, vocab_file, lower_case, strip_accents
):
    transformers = pytest.importorskip("transformers")
    encoder, directory = ConvBertEncoder(tiny(head_ratio=2)), tmp_path / "model"
    huggingface.save(encoder, directory, vocab_file, lower_case, strip_accents=strip_accents)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = WordPieceTokenizer(vocab_file, lower_case, strip_accents)
    ids = ours.tokenize([TEXT]).to_list()[0]
    assert theirs(TEXT)["input_ids"] == [2, *ids, 3]
    assert theirs.pad_token_id == 0 and theirs.model_max_length == 64
    assert (8 in ids) is lower_case and (17 in ids) is not ours.strip_accents

    # As new versions of transformers write it: tokenizer.json without vocab.txt.
    theirs.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "vocab.txt").exists()
    for directory in ("model", "new"):
        found = stored_vocabulary.find_huggingface(tmp_path / directory)
        stripped = lower_case if strip_accents is None else strip_accents
        assert (found.lower_case, found.strip_accents) == (lower_case, stripped)
        assert WordPieceTokenizer(*found).tokenize([TEXT]).to_list()[0] == ids
        assert ids_of(read_pieces(found.path)) == ids_of(PIECES)


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
    path = str(hub("me/model", "main") / "vocab.txt")
    assert presets.vocabulary("hf://me/model") == (path, False, False)


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
