"""Vocabularies of Hugging Face's directories, and its hub with no network but a cache."""

import json
import os
import sys

import pytest

from convbert_tf import ConvBertEncoder, TextClassifier, WordPieceTokenizer, conversion, files
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
        ("hf://own/-x", "is no name of a model on the hub: Repo id must"),
        ("hf://own/a--b", "is no name of a model on the hub"),
        ("hf://own/x.git", "is no name of a model on the hub"),
        (f"hf://own/{'x' * 97}", "is no name of a model on the hub"),
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
        ("HfHubHTTPError", "hf://me/model@v9 cannot be downloaded: "),
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


@pytest.mark.parametrize("library", ["huggingface_hub", "safetensors"])
def test_a_library_that_is_not_there_is_named(monkeypatch, tmp_path, library):
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"{library}: pip install -e '\.\[huggingface\]' or pip install {library}"
    with pytest.raises(UserError, match=message.replace(": ", ".*: ", 1)):
        if library == "safetensors":
            huggingface.save(ConvBertEncoder(tiny(head_ratio=2)), tmp_path / "new")
        else:
            files.download("hf://me/model")
    assert not os.listdir(tmp_path)


@pytest.fixture
def written(tmp_path, vocab_file):
    model = TextClassifier(ConvBertEncoder(tiny(head_ratio=2)), 2)
    huggingface.save(model, tmp_path / "theirs", vocab_file)
    return model, tmp_path / "theirs"


def test_all_files_have_the_mode_of_the_umask(written):
    modes = {path.name: path.stat().st_mode for path in written[1].iterdir()}
    assert len(modes) == 4 and len(set(modes.values())) == 1, modes


def test_saving_again_replaces_their_files_and_nothing_else(written, vocab_file):
    model, directory = written
    huggingface.save(model.encoder, directory)
    assert sorted(os.listdir(directory)) == ["config.json", "model.safetensors"]
    same(huggingface.load(directory), model.encoder)
    huggingface.save(model, directory, vocab_file)
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"no earlier model of this format \(tokenizer.json\)"):
        huggingface.save(model.encoder, directory)
    same(huggingface.load(directory), model)
    (directory / "other").mkdir()
    (directory / "other" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"no earlier model of this format \(README.md\)"):
        huggingface.save(model, directory / "other")


def test_one_file_is_taken_before_an_index(written):
    """As in transformers, whose order is that."""
    index = written[1] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    same(huggingface.load(written[1]), written[0])
    (written[1] / "model.safetensors").unlink()
    with pytest.raises(UserError, match="gone.safetensors is not there: a shard"):
        huggingface.load(written[1])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool"])
@pytest.mark.parametrize("library", ["safetensors.numpy", "torch"])
def test_weights_are_of_floating_point(written, dtype, library):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = written[1] / "model.safetensors"
    tensors = {name: value.astype(dtype) for name, value in safetensors.load_file(path).items()}
    if library == "torch":
        torch = pytest.importorskip("torch")
        path.unlink()
        tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
        torch.save(tensors, written[1] / "pytorch_model.bin")
    else:
        safetensors.save_file(tensors, path)
    with pytest.raises(UserError, match=f"is of type {dtype}, not of 16, 32 or 64 bits"):
        huggingface.load(written[1])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tf_model.h5", "pytorch_model.bin"])
def test_pointers_and_broken_links_are_said(written, name):
    path = written[1] / name
    (written[1] / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has none of .*: it is incomplete"):
        huggingface.load(written[1])
    path.write_text(POINTER)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*run git lfs pull"):
        huggingface.load(written[1])
    path.unlink()
    path.symlink_to("../../blobs/gone")
    with pytest.raises(UserError, match=f"{name} is a broken link"):
        huggingface.load(written[1])


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_said(written, tmp_path, name):
    path = written[1] / name
    path.write_text("")
    with pytest.raises(UserError, match=r"on any of its 0 lines|is no JSON"):
        conversion.convert(str(written[1]), str(tmp_path / "new"))
    path.write_text(POINTER)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer"):
        conversion.convert(str(written[1]), str(tmp_path / "new"))
    path.unlink()
    path.symlink_to("gone")
    with pytest.raises(UserError, match=f"{name} is a broken link"):
        conversion.convert(str(written[1]), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("number", "problem", "head"),
    [
        (2, "regression", "a regression of 2 numbers"),
        (2, "ranking", "problem_type ranking"),
        (1, "single_label_classification", "one of several labels with only one"),
        (1, "regression", None),
        (2, None, None),
    ],
)
def test_a_head_for_another_problem_is_left_out(tmp_path, capsys, number, problem, head):
    model = TextClassifier(ConvBertEncoder(tiny(head_ratio=2)), number)
    huggingface.save(model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": problem}))
    same(huggingface.load(tmp_path), model.encoder if head else model)
    assert (head or "") in capsys.readouterr().out


def test_quantised_weights_are_refused(written):
    path = written[1] / "config.json"
    content = json.loads(path.read_text()) | {"quantization_config": {"load_in_8bit": True}}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="quantization_config: quantised weights are not"):
        huggingface.load(written[1])
