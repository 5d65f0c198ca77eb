"""Served taggers against the same model offline: same words, same tags, entities as scored."""

import json
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import serving
from convbert_tf.console import UserError
from convbert_tf.data import records
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import TokenClassifier
from convbert_tf.serving import loading
from convbert_tf.serving.tokens import TaggerServer
from convbert_tf.tasks import tokens
from convbert_tf.text.preprocessing import TextPreprocessor
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.workflows import prediction
from convbert_tf.workflows.outputs import Predictor
from tests.serving.saved_model_test import CLIENT, MODEL, VOCAB, long_context
from tests.tools_test import run_tool

LABELS = {
    "bio": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "bioes": ["B-x-y", "I-x-y", "E-x-y", "S-x-y", "O", "S-z"],
    "plain": ["NOUN", "VERB", "X"],
}
TEXTS = [long_context(1), "Ada was in 東京.", "", " \u200d ", "n", long_context(2), "don't"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taggers")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    tf.keras.utils.set_random_seed(5)
    for name, labels in LABELS.items():
        model = TokenClassifier(ConvBertEncoder(MODEL), len(labels), labels=labels)
        model.save_to_preset(
            str(folder / name),
            vocab_file=str(folder / "vocab.txt"),
            **({} if name == "plain" else {"max_seq_length": 16, "doc_stride": 5}),
        )
    return folder


@pytest.fixture(scope="module")
def served(folder):
    """name -> what a process with TensorFlow alone gets of each SavedModel."""
    calls = []
    for name in LABELS:
        serving.export(str(folder / name), str(folder / "models" / name / "1"))
        calls.append((str(folder / "models" / name / "1"), {"text": TEXTS}))
    code = CLIENT.replace(
        "values[:] = [x.decode() if isinstance(x, bytes) else x for x in values]",
        "values[:] = [[y.decode() if isinstance(y, bytes) else y for y in x]"
        " if isinstance(x, list) else x for x in values]",
    )
    client = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert client.returncode == 0, client.stderr
    return dict(zip(LABELS, json.loads(client.stdout), strict=True))


def basic_words(text):
    """(word, start, end in bytes) by a plain reading of BERT's rules."""
    words, at = [], 0
    for char in text:
        size = len(char.encode())
        category = unicodedata.category(char)
        alone = category.startswith("P") or "\u4e00" <= char <= "\u9fff"
        if not char.isspace() and category[0] != "C":
            joined = words and words[-1][2] == at and not alone and not words[-1][3]
            if joined:
                words[-1][0] += char
                words[-1][2] += size
            else:
                words.append([char, at, at + size, alone])
        at += size
    return [tuple(word[:3]) for word in words]


def offline(folder, name, max_seq_length, doc_stride):
    """Tags and their probabilities of the texts' words, by the code of fine-tuning."""
    tokenizer = WordPieceTokenizer(str(folder / "vocab.txt"))
    sentences = [[word for word, _, _ in basic_words(text)] for text in TEXTS]
    windows = tokens.make_windows(sentences, tokenizer, max_seq_length, doc_stride)
    path = str(folder / f"{name}.tfrecord")
    tokens.write_records(path, windows)
    predict = Predictor(presets.load(str(folder / name)), tf.distribute.get_strategy())
    logits = predict(records.read(path), records.TOKENS, 4, max_seq_length)["logits"]
    tags, scores = ([[None] * len(words) for words in sentences] for _ in range(2))
    for window, of_window in zip(windows, tf.nn.softmax(logits).numpy(), strict=True):
        for word, position in zip(window.words, window.positions, strict=True):
            best = of_window[position].argmax()
            tags[window.sentence][word] = LABELS[name][best]
            scores[window.sentence][word] = of_window[position][best]
    return tags, scores, len(windows)


@pytest.mark.parametrize("name", [*LABELS])
def test_words_and_tags_are_those_of_the_offline_code(folder, served, name):
    lengths = (64, 31) if name == "plain" else (16, 5)
    tags, scores, num_windows = offline(folder, name, *lengths)
    assert num_windows > (12 if name == "plain" else 60)
    given = served[name]
    for i, text in enumerate(TEXTS):
        words = basic_words(text)
        count = given["num_words"][i]
        names = ("word", "word_start", "word_end")
        found = zip(*(given[key][i][:count] for key in names), strict=True)
        assert list(found) == words
        assert given["tag"][i][:count] == tags[i]
        np.testing.assert_allclose(given["tag_score"][i][:count], scores[i], atol=1e-5)
        rest = [given[key][i][count:] for key in (*names, "tag", "tag_score")]
        assert {x for values in rest for x in values} <= {"", 0}
    assert len({tag for row in tags for tag in row}) > 1
    assert given["num_words"][2:4] == [0, 0] and given["num_words"][4] == 1


@pytest.mark.parametrize("name", ["bio", "bioes"])
def test_entities_are_those_that_are_scored(served, name):
    from seqeval.metrics.sequence_labeling import get_entities

    given, total = served[name], 0
    for i, text in enumerate(TEXTS):
        count = given["num_words"][i]
        spans = get_entities(given["tag"][i][:count])
        number = given["num_entities"][i]
        total += number
        assert given["entity_label"][i][:number] == [kind for kind, _, _ in spans]
        for j, (_, first, last) in enumerate(spans):
            start, end = given["word_start"][i][first], given["word_end"][i][last]
            assert (given["entity_start"][i][j], given["entity_end"][i][j]) == (start, end)
            assert text.encode()[start:end].decode() == given["entity"][i][j]
            mean = np.mean(given["tag_score"][i][first : last + 1])
            assert given["entity_score"][i][j] == pytest.approx(mean, abs=1e-5)
        assert not any(given["entity"][i][number:])
    assert total > 20
    assert "entity" not in served["plain"]


def test_entities_of_any_tags_are_those_of_seqeval(folder):
    """Tags in every order, also impossible ones, and texts that end inside an entity."""
    from seqeval.metrics.sequence_labeling import get_entities

    labels = ["O", "B-a", "I-a", "E-a", "S-a", "B-b", "I-b", "E-b", "S-b"]
    model = TokenClassifier(ConvBertEncoder(MODEL), len(labels), labels=labels)
    server = TaggerServer(model, WordPieceTokenizer(str(folder / "vocab.txt")), 16)
    rng, rows, expected = random.Random(2), [], []
    drawn = [rng.choices(range(len(labels)), k=rng.randint(1, 9)) for _ in range(200)]
    for i, ids in enumerate(drawn):
        rows += [i] * len(ids)
        expected += [(i, *entity) for entity in get_entities([labels[j] for j in ids])]
    places = [j for ids in drawn for j in range(len(ids))]
    words = {
        "word_start": tf.constant(places, tf.int64),
        "word_end": tf.constant(places, tf.int64),
        "tag_score": tf.ones(len(rows)),
    }
    flat = tf.constant([j for ids in drawn for j in ids])
    rows, found = server._entities(tf.constant(rows, tf.int64), flat, words)
    names = ("entity_label", "entity_start", "entity_end")
    columns = [found[name].numpy().tolist() for name in names]
    columns[0] = [label.decode() for label in columns[0]]
    assert list(zip(rows.numpy().tolist(), *columns, strict=True)) == expected


@pytest.mark.parametrize("name", ["bio", "plain"])
def test_rows_are_labelled_with_lists_of_words_and_entities(folder, served, name):
    model = loading.load(str(folder / "models" / name / "1"))
    table = [((text,), {}) for text in TEXTS]
    found = [said for _, said in prediction.label(model, table, batch_size=3)]
    given = served[name]
    for i, said in enumerate(found):
        assert list(said) == ["words"] + ["entities"] * (name == "bio")
        words = [(w["word"], w["word_start"], w["word_end"]) for w in said["words"]]
        assert words == basic_words(TEXTS[i])
        assert [w["tag"] for w in said["words"]] == given["tag"][i][: len(words)]
        if name == "bio":
            labels = [each["entity_label"] for each in said["entities"]]
            assert labels == given["entity_label"][i][: given["num_entities"][i]]


def test_a_tagger_of_keras_alone_is_served_and_options_of_others_are_refused(folder, tmp_path):
    tokenizer = WordPieceTokenizer(str(folder / "vocab.txt"))
    preprocessor = TextPreprocessor(tokenizer, 24)
    preprocessor(["a"])  # which tells that texts come alone
    model = TokenClassifier(ConvBertEncoder(MODEL), 2)
    model.save_to_preset(str(tmp_path / "preset"), preprocessor)
    assert presets.serving(str(tmp_path / "preset")) == {"max_seq_length": 24, "pair": False}
    serving.export(str(tmp_path / "preset"), str(tmp_path / "model"))
    described = json.loads((tmp_path / "model" / "signature.json").read_text())
    assert described["max_seq_length"] == 24 and described["doc_stride"] == 11
    assert described["labels"] == ["0", "1"] and described["scheme"] == ""
    for options in ({"pair": True}, {"max_query_length": 8}):
        with pytest.raises(UserError, match="no option of a TokenClassifier"):
            serving.export(str(folder / "bio"), str(tmp_path / "other"), **options)
    with pytest.raises(UserError, match="doc_stride must be at least 1, got 0"):
        serving.export(str(folder / "bio"), str(tmp_path / "other"), doc_stride=0)


@pytest.mark.slow
def test_ask_prints_words_and_entities_a_line_each(folder, served):
    text = "Ada wás in 東京"
    output = run_tool("ask", f"--saved_model={folder / 'models/bio/1'}", f"--text={text}").stdout
    words, entities = output.split("entities:\n")
    rows = [json.loads(line) for line in words.splitlines()[1:]]
    assert [row["word"] for row in rows] == ["Ada", "wás", "in", "東", "京"]
    assert list(rows[0]) == ["word", "word_start", "word_end", "tag", "tag_score"]
    for line in entities.splitlines():
        row = json.loads(line)
        span = text.encode()[row["entity_start"] : row["entity_end"]]
        assert span.decode() == row["entity"] and row["entity_label"] in ("PER", "LOC")
