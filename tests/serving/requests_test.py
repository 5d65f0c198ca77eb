"""Served models get anything, empty batches, no UTF-8, megabytes: each answer is defined."""

import dataclasses
import math
import random
import re
import resource
import time

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import serving
from convbert_tf.console import UserError
from convbert_tf.data import records
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.modeling.pretraining import ConvBertPretrainer
from convbert_tf.serving import pretrained, tokens
from convbert_tf.tasks import squad, squad_decoding
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.workflows import finetuning
from tests.serving import saved_model_test
from tests.serving.saved_model_test import QUESTIONS, VOCAB, WINDOWS, long_context

N = 6  # answers of n_best
MODEL = dataclasses.replace(saved_model_test.MODEL, num_hidden_layers=1)
LEAKING = {"mask_convolution": False}
ALPHABET = [
    "a",
    "Z",
    "é",
    "Σ",
    "ß",
    "東",
    "🙂",
    "\u0301",
    "\u200d",
    "\x00",
    " ",
    "\n",
    "\ufffd",
    ".",
]
PIECES = {piece.encode() for piece in VOCAB}
BYTES = [b"\xff", b"\x80", b"\xc3", b"\xe6\x9d", b"\xed\xa0\x80", b"\xf0\x9f\x99", b"\xc0\xaf"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n")
    return WordPieceTokenizer(str(path))


@pytest.fixture(scope="module")
def servers(tokenizer):
    encoder = ConvBertEncoder(MODEL)
    answerer = QuestionAnswerer(encoder, answerable=True, beam_size=5)
    pretrainer = ConvBertPretrainer(MODEL)
    return {
        "classes": serving.ClassifierServer(TextClassifier(encoder, 3), tokenizer, 24),
        "pairs": serving.ClassifierServer(TextClassifier(encoder, 1), tokenizer, 24, pair=True),
        "answers": serving.QuestionAnswererServer(answerer, tokenizer, **WINDOWS, n_best_size=N),
        "tags": serving.TaggerServer(
            TokenClassifier(encoder, 3, labels=["O", "B-X", "I-X"]), tokenizer, 24
        ),
        "vectors": pretrained.EmbedderServer(pretrainer, tokenizer, 24, normalize=True),
        "tokens": pretrained.ReplacedTokenServer(pretrainer, tokenizer, 24),
        "masks": pretrained.MaskFillerServer(pretrainer, tokenizer, 24, top_k=3),
    }


@pytest.fixture(scope="module")
def ask(servers):
    """A function of a server's name, a signature and texts -> arrays by the outputs' names."""
    functions = {name: server.signatures() for name, server in servers.items()}

    def ask(name, signature, *texts):
        inputs = servers[name].describe()["inputs"]
        given = {
            key: tf.constant(values, tf.string) for key, values in zip(inputs, texts, strict=True)
        }
        return {k: x.numpy() for k, x in functions[name][signature](**given).items()}

    return ask


# --- empty batches ---


def test_an_empty_batch_gives_empty_outputs(servers):
    for server in servers.values():
        for name, function in server.signatures().items():
            specs = function.input_signature
            shapes = [[size or 0 for size in spec.shape] for spec in specs]
            # Pre-tokenised rows have a length, even if there are none of them.
            shapes = [[0, 7] if len(shape) == 2 else shape for shape in shapes]
            inputs = [
                tf.zeros(shape, spec.dtype) for shape, spec in zip(shapes, specs, strict=True)
            ]
            outputs = function(*inputs)
            expected = function.get_concrete_function().structured_outputs
            assert outputs.keys() == expected.keys() and len(outputs) > 0, name
            for key, values in outputs.items():
                assert values.shape[0] == 0 and values.dtype == expected[key].dtype
                assert values.shape.rank == expected[key].shape.rank


# --- any text ---


def draw(rng):
    """A text as bytes: mostly short, of hard characters, often no UTF-8."""
    kind = rng.random()
    if kind < 0.1:
        return b""
    if kind < 0.25:
        return rng.randbytes(rng.randint(1, 60))
    size = rng.choice([3, 20, 20, 20, 300])
    if kind < 0.5:
        drawn = [chr(rng.choice([rng.randint(1, 0x2FF), rng.randint(0xE000, 0x10FFFF)]))]
        drawn += rng.choices(ALPHABET, k=size)
    else:
        drawn = rng.choices(ALPHABET + VOCAB[5:], k=size)
    parts = [part.encode() for part in drawn]
    if kind > 0.8:
        parts[rng.randrange(len(parts))] = rng.choice(BYTES)
    if kind > 0.97:
        parts.append(b"x" * rng.choice([199, 201, 5000]))
    return rng.choice([b"", b" "]).join(parts)


def is_utf_8(text):
    return text.decode(errors="ignore").encode() == text


def check_classes(ask, texts, others):
    outputs = ask("classes", "serving_default", texts)
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, atol=1e-5)
    labels = [int(label) for label in outputs["label"]]
    assert labels == outputs["logits"].argmax(axis=1).tolist()
    assert np.isfinite(ask("pairs", "serving_default", texts, others)["score"]).all()
    return outputs["logits"]


def check_answers(ask, questions, contexts):
    outputs = ask("answers", "serving_default", questions, contexts)
    lists = ask("answers", "n_best", questions, contexts)
    for i, context in enumerate(contexts):
        start, end = outputs["start"][i], outputs["end"][i]
        assert 0 <= start <= end <= len(context)
        assert outputs["answer_bytes"][i] == context[start:end]
        characters = context.decode(errors="replace")
        place = slice(outputs["start_char"][i], outputs["end_char"][i])
        assert outputs["answer"][i].decode() == characters[place]
        number = lists["num_answers"][i]
        assert number <= N and (number > 0) == (outputs["score"][i] > -1e9)
        found = [lists[key][i, :number] for key in ("starts", "ends", "answers_bytes", "scores")]
        assert [context[a:b] for a, b in zip(*found[:2], strict=True)] == found[2].tolist()
        assert len(set(found[2])) == number and (np.diff(found[3]) <= 0).all()
        places = zip(lists["start_chars"][i], lists["end_chars"][i], strict=True)
        texts = [answer.decode() for answer in lists["answers"][i]]
        assert [characters[a:b] for a, b in places][:number] == texts[:number]
        assert set(texts[number:]) <= {""} and not lists["ends"][i, number:].any()
        if number:
            assert (found[0][0], found[1][0]) == (start, end)
            assert lists["probabilities"][i].sum() == pytest.approx(1, abs=1e-5)
    assert np.isfinite(outputs["null_odds"]).all()
    return outputs["score"]


def check_spans(outputs, i, text, name):
    """Spans of row i are in order and of its text, and behind the last of them is nothing."""
    number, after = outputs["num_entities" if name == "entity" else f"num_{name}s"][i], 0
    for j in range(number):
        start, end = outputs[f"{name}_start"][i, j], outputs[f"{name}_end"][i, j]
        assert after <= start < end <= len(text)
        assert outputs[f"{name}_bytes"][i, j] == text[start:end]
        assert outputs[name][i, j].decode() == text[start:end].decode(errors="replace")
        # Ideographs and Hangul are taken apart: words of one character share its bytes.
        after = start
    assert not any(outputs[name][i, number:]) and not outputs[f"{name}_end"][i, number:].any()


def check_tags(ask, texts):
    outputs = ask("tags", "serving_default", texts)
    for i, text in enumerate(texts):
        check_spans(outputs, i, text, "word")
        check_spans(outputs, i, text, "entity")
    return outputs["tag_score"]


def check_tokens(ask, texts):
    outputs = ask("tokens", "serving_default", texts)
    for i, text in enumerate(texts):
        check_spans(outputs, i, text, "token")
        there = outputs["replaced_probability"][i] > 0
        assert there.sum() == outputs["num_tokens"][i] and (np.diff(there.astype(int)) <= 0).all()
    return outputs["replaced_probability"]


def check_vectors(ask, texts):
    vectors = ask("vectors", "serving_default", texts)["embedding"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    return vectors


def check_fills(ask, texts):
    outputs = ask("masks", "serving_default", texts)
    for i, text in enumerate(texts):
        parts = text.split(b"[MASK]")
        number = outputs["num_masks"][i]
        assert number == len(parts) - 1
        fills, probabilities = outputs["fills"][i], outputs["fill_probability"][i]
        assert (np.diff(probabilities[:number]) <= 1e-6).all() and probabilities.max(initial=0) <= 1
        assert not probabilities[number:].any() and set(fills[number:].flat) <= {b""}
        assert all(len(set(row)) == 3 and set(row) <= PIECES for row in fills[:number])
        filled = parts[0]
        for piece, part in zip(fills[:number, 0], parts[1:], strict=True):
            if piece.startswith(b"##") and piece != b"##":
                filled, piece = re.sub(rb"[ \t\n\f\r]+$", b"", filled), piece[2:]
            filled += piece + part
        assert outputs["filled_bytes"][i] == filled
        assert outputs["filled"][i].decode() == filled.decode(errors="replace")
    return outputs["fill_probability"]


def masked(rng, text):
    """The text with some "[MASK]" in it, at times cut from it."""
    for _ in range(rng.choice([0, 1, 1, 2, 9])):
        place = rng.randint(0, len(text))
        text = text[:place] + rng.choice([b"[MASK]", b" [MASK] ", b"[MASK"]) + text[place:]
    return text


def check_many(ask, count, seconds, seed):
    """Random requests until there are `count` or processor time is up; how many, and of what."""
    rng, until = random.Random(seed), time.process_time() + seconds
    seen = {"requests": 0, "texts": 0, "not UTF-8": 0}
    checks = [check_tags, check_tokens, check_vectors, check_fills]
    while seen["requests"] < count and time.process_time() < until:
        texts, others = ([draw(rng) for _ in range(size)] for size in [rng.randint(1, 6)] * 2)
        texts[0] = masked(rng, texts[0])
        together = [check_classes(ask, texts, others), check_answers(ask, others, texts)]
        together += [check(ask, texts) for check in checks]
        if rng.random() < 0.2:  # a row alone is that row in any batch
            i = rng.randrange(len(texts))
            text, other = texts[i : i + 1], others[i : i + 1]
            alone = [check_classes(ask, text, other), check_answers(ask, other, text)]
            alone += [check(ask, text) for check in checks]
            for values, one in zip(together, alone, strict=True):
                of_row = values[i : i + 1][tuple(map(slice, one.shape))]
                np.testing.assert_allclose(of_row, one, rtol=1e-4, atol=1e-4)
        seen["requests"] += 8
        seen["texts"] += 2 * len(texts)
        seen["not UTF-8"] += sum(not is_utf_8(text) for text in texts)
    return seen


def test_any_request_has_a_defined_answer(ask):
    assert check_many(ask, 150, 60, seed=0)["requests"] >= 20


@pytest.mark.slow
def test_thousands_of_requests_have_defined_answers(ask):
    seen = check_many(ask, 5000, 300, seed=1)
    print(seen)
    assert seen["requests"] >= 500 and seen["not UTF-8"] > 50


# --- large requests ---


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [b"a " * 500_000, b"x" * 1_000_000, b"\x00\xff" * 500_000, "e\u0301".encode() * 333_000]
)
def test_a_megabyte_of_text_takes_bounded_memory(ask, text):
    before = memory()
    check_classes(ask, [text, b"a"], [b"a", text])
    check_vectors(ask, [b"a", text])
    check_fills(ask, [text + b" [MASK]", b"a"])
    if len(text.split()) < 10:  # the spans of a text are checked one by one
        check_tags(ask, [text])
        check_tokens(ask, [text])
        check_answers(ask, [text[:1000]], [text])
    else:
        outputs = ask("tags", "serving_default", [text])
        assert outputs["num_words"].tolist() == [500_000]
        assert set(outputs["word"][0]) == {b"a"}
    assert memory() - before < 2


def test_a_thousand_rows_take_bounded_memory(ask):
    before, rng = memory(), random.Random(2)
    texts = [draw(rng) for _ in range(1000)]
    assert ask("classes", "serving_default", texts)["label"].shape == (1000,)
    assert ask("answers", "serving_default", texts[::-1], texts)["answer"].shape == (1000,)
    assert ask("tags", "serving_default", texts)["num_words"].shape == (1000,)
    assert ask("vectors", "serving_default", texts)["embedding"].shape == (1000, 16)
    assert ask("tokens", "serving_default", texts)["num_tokens"].shape == (1000,)
    assert ask("masks", "serving_default", texts)["num_masks"].shape == (1000,)
    assert memory() - before < 1


def test_a_table_of_words_that_is_too_large_is_refused(ask, servers, monkeypatch):
    monkeypatch.setattr(tokens, "MOST_PLACES", 10)
    serve = servers["tags"]._serve  # not as it was traced
    assert serve(tf.constant(["a a", "a a a a a"]))["num_words"].numpy().tolist() == [2, 5]
    with pytest.raises(tf.errors.InvalidArgumentError, match="send it alone"):
        serve(tf.constant(["a", "a", "a a a a"]))


# --- options ---


def test_nonsense_is_refused(tokenizer):
    encoder = ConvBertEncoder(MODEL)
    for options, message in (
        ({"max_query_length": 0}, "max_query_length must be at least 1, got 0"),
        ({"max_query_length": -3}, "max_query_length must be at least 1, got -3"),
        ({"max_answer_length": 0}, "max_answer_length must be at least 1, got 0"),
        ({"doc_stride": -1}, "doc_stride must be at least 1, got -1"),
        ({"doc_stride": 1.5}, "doc_stride must be a whole number, got 1.5"),
        ({"n_best_size": 0}, "n_best_size must be at least 1"),
        ({"padding": "most"}, "padding must be longest or full, got 'most'"),
        ({"null_threshold": -math.inf}, "null_threshold must be a number"),
    ):
        with pytest.raises(UserError, match=message):
            model = QuestionAnswerer(encoder, answerable=True)
            serving.QuestionAnswererServer(model, tokenizer, **WINDOWS | options)
    with pytest.raises(UserError, match="padding must be longest or full"):
        serving.ClassifierServer(TextClassifier(encoder, 2), tokenizer, 24, padding=None)


# --- n-best lists and padding, against the code that scores ---


def scored(model, tokenizer, folder):
    """What squad_decoding makes of QUESTIONS: predictions and n-best lists."""
    examples = [
        squad.SquadExample(str(i), question, context, (), False)
        for i, (question, context) in enumerate(QUESTIONS)
    ]
    windows = squad.make_windows(examples, tokenizer, **WINDOWS)
    squad.write_records(str(folder / "questions.tfrecord"), windows)
    predict = finetuning.Predictor(model, tf.distribute.get_strategy())
    outputs = predict(records.read(str(folder / "questions.tfrecord")), records.SQUAD, 2, 32)
    predictions, nbest, _ = squad_decoding.decode(windows, outputs, n_best_size=N)
    return list(predictions.values()), list(nbest.values())


@pytest.mark.parametrize("options", [{}, LEAKING])
def test_lists_of_answers_are_those_that_are_scored(tokenizer, tmp_path, options):
    """Also of a model that sees its padding, if it is padded in full."""
    config = dataclasses.replace(MODEL, **options)
    model = QuestionAnswerer(ConvBertEncoder(config), beam_size=5)
    padding = "full" if options else "longest"
    server = serving.QuestionAnswererServer(
        model, tokenizer, **WINDOWS, n_best_size=N, padding=padding
    )
    _, lists = scored(model, tokenizer, tmp_path)
    questions, contexts = zip(*QUESTIONS, strict=True)
    found = server.signatures()["n_best"](tf.constant(questions), tf.constant(contexts))
    found = {name: values.numpy() for name, values in found.items()}
    for i, expected in enumerate(lists):
        expected = [] if expected[0]["text"] == "" else expected
        assert found["num_answers"][i] == len(expected)
        for j, entry in enumerate(expected):
            assert found["answers"][i, j].decode() == entry["text"]
            for name in ("start_char", "end_char"):
                assert found[f"{name}s"][i, j] == entry[name]
            assert (found["starts"][i, j], found["ends"][i, j]) == (
                entry["start_byte"],
                entry["end_byte"],
            )
            assert found["probabilities"][i, j] == pytest.approx(entry["probability"], abs=1e-4)


def test_padding_in_full_makes_a_row_alone_a_row_in_any_batch(tokenizer):
    """Of models whose convolution sees padding; without, answers move with the batch."""
    # In one layer padding reaches the end of a text, in two the first token of a short one.
    config = dataclasses.replace(MODEL, num_hidden_layers=2, **LEAKING)
    model = TextClassifier(ConvBertEncoder(config), 3)
    texts = ["a", long_context(1), "the cat was in", ""]
    found = {}
    for padding in ("longest", "full"):
        server = serving.ClassifierServer(model, tokenizer, 48, padding=padding)
        together = server.serve(tf.constant(texts))["logits"]
        alone = [server.serve(tf.constant([text]))["logits"][0] for text in texts]
        found[padding] = np.abs(together - np.array(alone)).max()
    assert found["full"] < 1e-5 and found["longest"] > 1e-3
    assert server.describe()["padding"] == "full" and not server.padding.matters
    full = server._preprocess(tf.constant(texts))
    full = {name: tf.pad(x, [[0, 0], [0, 48 - x.shape[1]]]) for name, x in full.items()}
    np.testing.assert_allclose(together, model(full, training=False), atol=1e-5)
    masked = serving.ClassifierServer(TextClassifier(ConvBertEncoder(MODEL), 3), tokenizer, 48)
    assert not masked.padding.matters


def test_a_tagger_with_padding_in_full_tags_a_text_as_alone(tokenizer):
    config = dataclasses.replace(MODEL, num_hidden_layers=2, **LEAKING)
    model = TokenClassifier(ConvBertEncoder(config), 3, labels=["a", "b", "c"])
    texts = ["a", long_context(1), "the cat was in"]
    found = {}
    for padding in ("longest", "full"):
        server = serving.TaggerServer(model, tokenizer, 16, padding=padding)
        together = server.serve(tf.constant(texts))
        alone = [server.serve(tf.constant([text]))["tag_score"][0] for text in texts]
        found[padding] = max(
            np.abs(together["tag_score"][i][: len(row)] - row).max() for i, row in enumerate(alone)
        )
    assert found["full"] < 1e-5 and found["longest"] > 1e-3


def test_an_export_says_that_the_model_sees_its_padding(tokenizer, tmp_path, capsys):
    for name, options, says in (("leaks", LEAKING, True), ("masked", {}, False)):
        config = dataclasses.replace(MODEL, num_hidden_layers=1, **options)
        preset = str(tmp_path / name)
        TextClassifier(ConvBertEncoder(config), 2).save_to_preset(
            preset, vocab_file=tokenizer.vocab_file, max_seq_length=24
        )
        capsys.readouterr()
        serving.export(preset, f"{preset}-model")
        assert ("this model sees its padding" in capsys.readouterr().out) == says
    serving.export(str(tmp_path / "leaks"), str(tmp_path / "full"), padding="full")
    assert "sees its padding" not in capsys.readouterr().out
