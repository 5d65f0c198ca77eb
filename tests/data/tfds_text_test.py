"""Text sets of TensorFlow Datasets, written to disk in TFDS's own format."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from convbert_tf.console import UserError
from convbert_tf.data import corpus, tfds_text

TEXTS = [f"document {i}\n\n \nwith wörds {'a b ' * (i % 7)}\n" for i in range(50)]
LINES = [[line for line in text.split("\n") if line.strip()] for text in TEXTS]


def write_set(data_dir, name="my_text", texts=TEXTS, num_shards=3, **more):
    """A set with the split "train" in `num_shards` files; returns its directory."""
    features = {"text": tfds.features.Text(), "id": np.int64} | more
    builder = tfds.core.dataset_builders.AdhocBuilder(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            "train": [
                (i, {"text": text, "id": i} | dict.fromkeys(more, "other"))
                for i, text in enumerate(texts)
            ]
        },
        data_dir=data_dir,
        disable_shuffling=True,
    )
    config = tfds.download.DownloadConfig(num_shards=num_shards)
    builder.download_and_prepare(download_config=config)
    return str(builder.data_path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("tfds"))


def texts_of(*specs):
    splits = tfds_text.find_splits(specs)
    return [text for split in splits for text, _ in tfds_text.documents(split)]


def test_documents_come_in_order_without_blank_lines(directory):
    splits = tfds_text.find_splits([f"{directory}:train"])
    assert [split.split for split in splits] == [f"train[{i}shard:{i + 1}shard]" for i in range(3)]
    found = [pair for split in splits for pair in tfds_text.documents(split)]
    assert [text.split("\n") for text, _ in found] == LINES
    assert [size for _, size in found] == [len(text.encode()) for text in TEXTS]


def test_slices_and_fields(directory, tmp_path):
    assert texts_of(f"{directory}:train[:4]+train[48:]") == [
        "\n".join(lines) for lines in [*LINES[:4], *LINES[48:]]
    ]
    two = write_set(tmp_path, texts=["a", "b"], num_shards=1, title=tfds.features.Text())
    assert texts_of(f"{two}:train") == ["a", "b"]
    assert texts_of(f"{two}:train:title", f"{directory}:train[:1]")[:2] == ["other", "other"]


def test_a_set_is_found_by_its_name(directory):
    tfds.core.add_data_dir(directory.split("/my_text")[0])
    assert len(texts_of("my_text:train")) == len(texts_of("my_text:1.0.0:train")) == 50


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wikipedia", "'wikipedia' is no TFDS set: write name:split"),
        ("{0}:test", r"no split 'test' \(.*\); there are train"),
        ("{0}:train[90:95]", r"no split .*; there are train"),
        ("{0}:train:title", "no text in a field 'title': write name:split:field with one of text"),
        ("{0}:train:id", "no text in a field 'id'"),
        ("no_such_set_of_text:train", "TFDS has no set 'no_such_set_of_text' here"),
    ],
)
def test_mistakes_are_told_in_one_line(directory, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        tfds_text.find_splits([spec.format(directory)])
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf_8_is_named(tmp_path):
    broken = write_set(tmp_path, texts=["fine", b"\xff\xfe"], num_shards=1)
    with pytest.raises(UserError, match="train: example 2 is not UTF-8"):
        texts_of(f"{broken}:train")


def test_records_are_those_of_the_same_text_in_json(directory, tmp_path):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "text.jsonl").write_text(lines)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, "a", "b", "document", "words"]))

    def build(name, inputs=(), **options):
        out, vocab = tmp_path / name, str(tmp_path / "vocab.txt")
        options = {"max_seq_length": 16, "num_workers": 1} | options
        manifest = corpus.build(inputs, str(out), vocab, **options)
        return manifest, [path.read_bytes() for path in sorted(out.glob("shard-*"))]

    manifest, shards = build("tfds", tfds=[f"{directory}:train"])
    assert manifest["num_documents"] == 50 and len(shards) == 1
    assert shards == build("json", str(tmp_path / "text.jsonl"))[1]
    # Beside files; another split is other input.
    both, _ = build("both", str(tmp_path / "text.jsonl"), tfds=[f"{directory}:train[:9]"])
    assert both["num_documents"] == 59
    with pytest.raises(UserError, match="other input"):
        build("tfds", tfds=[f"{directory}:train[:9]"])
