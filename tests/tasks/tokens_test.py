"""Tagging: schemes and scores, windows without a word lost, files in and predictions out."""

import dataclasses
import json
import pathlib
import random

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf.config import FinetuningExperiment, TaskConfig, TrainingConfig
from convbert_tf.console import UserError
from convbert_tf.data import input_pipeline, records, word_files
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import TokenClassifier
from convbert_tf.tasks import squad, tokens
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.workflows import finetuning
from convbert_tf.workflows.outputs import Predictor
from tests import runs, small_tasks

NAMES = ["ada", "bob", "cleo", "dan", "eve", "finn", "gus", "hal"]
VERBS = ["sees", "likes", "hears", "meets"]
VOCAB = [*runs.VOCAB, *NAMES, *VERBS, "mr"]
MODEL = dataclasses.replace(small_tasks.MODEL, vocab_size=len(VOCAB), mask_convolution=True)
NOTHING = "\u200d"  # a word without a piece


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(vocab_file):
    return WordPieceTokenizer(vocab_file)


@pytest.fixture
def family(tokenizer, tmp_path):
    """A function: the family of files with these contents, by their names."""

    def make(files, **settings):
        for name, content in files.items():
            (tmp_path / name).write_text(content, encoding="utf-8")
        settings = {"max_seq_length": 12, "doc_stride": 5} | settings
        return tokens.Tokens(TaskConfig("tokens", str(tmp_path), **settings), tokenizer)

    return make


# --- tags ---

# The same entities: person of two words and one of one word, a place, a person right behind.
TAGS = {
    "BIO": "O B-PER I-PER O B-PER B-LOC B-PER I-PER",
    "BIOES": "O B-PER E-PER O S-PER S-LOC B-PER E-PER",
    "BILOU": "O B-PER L-PER O U-PER U-LOC B-PER L-PER",
}
IOB1 = "O I-PER I-PER O I-PER I-LOC I-PER I-PER"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        *((tags, name) for name, tags in TAGS.items()),
        (IOB1, "BIO"),
        ("B-NAME M-NAME E-NAME O", "BMES"),
        ("B I O", "BIO"),
        ("O B-creative-work", "BIO"),
        ("NOUN VERB X", ""),
        ("O", ""),
        ("O B-PER NOUN", ""),
        ("-LRB- B", ""),
    ],
)
def test_the_scheme_is_found_from_the_tags(tags, expected):
    assert tokens.scheme(set(tags.split())) == expected


@pytest.mark.parametrize("gold", [*TAGS.values(), IOB1])
@pytest.mark.parametrize("scheme", [*TAGS])
def test_entities_are_the_same_in_every_scheme(gold, scheme):
    predicted = TAGS[scheme].split()
    scores = tokens.metrics([gold.split()], [predicted], True)
    assert scores["f1"] == scores["precision"] == scores["recall"] == 1
    predicted[1] = "O"  # the first person loses its first word
    scores = tokens.metrics([gold.split()], [predicted], True)
    assert scores["precision"] == scores["recall"] == pytest.approx(3 / 4)


def test_scores_are_those_of_whole_entities_and_of_words():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "O"]]
    scores = tokens.metrics(gold, predicted, True)
    assert list(scores) == ["f1", "precision", "recall", "accuracy"]
    expected = {"f1": 0.4, "precision": 1 / 3, "recall": 1 / 2, "accuracy": 4 / 6}
    assert scores == pytest.approx(expected)
    assert tokens.metrics(gold, predicted, False) == pytest.approx({"accuracy": 4 / 6})
    nothing = [["O"] * 4, ["O"] * 2]
    assert tokens.metrics(gold, nothing, True)["f1"] == 0


# --- windows and records ---


def some_sentences():
    rng = random.Random(0)
    word = lambda: "".join(rng.choices(runs.LETTERS, k=rng.randint(1, 6)))  # noqa: E731
    sentences = [[word() for _ in range(n)] for n in (1, 2, 3, 7, 40)]
    return [*sentences, [NOTHING], [NOTHING, "a", NOTHING, "b" * 30, "c"]]


@pytest.mark.parametrize("doc_stride", [1, 3, 5, 9, 100])
def test_each_word_belongs_to_the_window_that_shows_most_around_it(tokenizer, doc_stride):
    sentences, room = some_sentences(), 10
    windows = tokens.make_windows(sentences, tokenizer, room + 2, doc_stride)
    found = [
        (window.sentence, word, position - 1, window)
        for window in windows
        for word, position in zip(window.words, window.positions, strict=True)
    ]
    expected = [(i, j) for i, s in enumerate(sentences) for j, w in enumerate(s) if w != NOTHING]
    assert [pair[:2] for pair in found] == expected
    for sentence, word, position, window in found:
        ids = [tokenizer.tokenize([w]).to_list()[0] for w in sentences[sentence]]
        first, total = sum(map(len, ids[:word])), sum(map(len, ids))
        assert len(window.input_ids) <= room + 2
        assert window.input_ids[position + 1] == ids[word][0]
        spans = squad.window_spans(total, room, doc_stride)
        start = first - position
        # How far the next place is where a window is cut; the ends of a sentence are none.
        seen = {
            a: min([first - a] * (a > 0) + [b - 1 - first] * (b < total), default=total)
            for a, b in spans
            if a <= first < b
        }
        assert seen[start] == max(seen.values())


def test_a_very_long_sentence_takes_no_square_of_memory(tokenizer):
    words = ["ab"] * 60_000
    windows = tokens.make_windows([words], tokenizer, 32, 15)
    assert sum(len(window.words) for window in windows) == len(words)


def test_labels_stand_on_first_pieces_alone_and_padding_has_none(tokenizer, tmp_path):
    sentences = [["abc", NOTHING, "d"], ["ef"] * 3]
    windows = tokens.make_windows(sentences, tokenizer, 12, 5)
    path = str(tmp_path / "labels.tfrecord")
    assert tokens.write_records(path, windows, [np.array([4, 3, 2]), np.array([1, 0, 1])]) == 2
    batch = records.parse(tf.constant(records.read(path)), records.TOKENS, 9)
    expected = [[-1, 4, -1, -1, 2, -1, -1, -1, -1], [-1, 1, -1, 0, -1, 1, -1, -1, -1]]
    assert batch["label_ids"].numpy().tolist() == expected
    assert batch["input_mask"].numpy().sum(axis=1).tolist() == [6, 8]
    options = {"batch_size": 1, "max_seq_length": 12}
    for dataset in (
        input_pipeline.finetuning_dataset(path, records.TOKENS, seed=0, num_epochs=1, **options),
        input_pipeline.prediction_dataset(path, records.TOKENS, **options),
    ):
        shapes = [(b["label_ids"].shape, b["input_ids"].shape) for b in dataset]
        assert {shape for shape, _ in shapes} == {(1, 8)}
        assert all(left == right for left, right in shapes)


def test_a_record_without_a_label_for_each_token_is_refused():
    one = {"input_ids": [2, 5, 3], "segment_ids": [0, 0, 0], "example_id": 0}
    whole = records.encode(one | {"label_ids": [-1, 1, -1]})
    short = records.encode(one | {"label_ids": [-1, 1]})
    with pytest.raises(UserError, match=r"record 2: .*not have one of label_ids for each token"):
        input_pipeline.prediction_dataset(
            [whole, short], records.TOKENS, batch_size=2, max_seq_length=8
        )


def test_outputs_of_all_lengths_come_in_the_records_order(tokenizer, tmp_path):
    windows = tokens.make_windows(some_sentences(), tokenizer, 12, 5)
    path = str(tmp_path / "all.tfrecord")
    tokens.write_records(path, windows)
    model = TokenClassifier(ConvBertEncoder(MODEL), 3)
    outputs = Predictor(model, tf.distribute.get_strategy())(
        records.read(path), records.TOKENS, 2, 12
    )
    assert outputs["logits"].shape == (len(windows), 12, 3)
    for window, logits in zip(windows, outputs["logits"], strict=True):
        ids = np.array([window.input_ids])
        inputs = {"input_ids": ids, "input_mask": ids * 0 + 1, "segment_ids": ids * 0}
        np.testing.assert_allclose(model(inputs)[0], logits[: ids.size], atol=1e-5)


# --- files ---

TRAIN = "ada N\nsees V\nbob N\n. .\n\nbob N\n. .\n"


def test_tags_are_sorted_said_and_those_of_held_out_data_alone_counted(family, capsys):
    made = family({"train.txt": TRAIN, "dev.txt": f"ada N\nab X\n\n{NOTHING} V\n"})
    made.check(2)
    assert made.labels == [".", "N", "V"] and made.metric_names == ("accuracy",)
    said = capsys.readouterr().out
    assert "train.txt: 2 sentences, 6 words, words in column 1, tags in column 2" in said
    assert "3 tags: . N V" in said
    assert "2 sentences, 3 words; not in the training data, so always wrong: X (1)" in said
    # "ada" is N most often, "ab" and the last word are unknown: N is the most frequent tag.
    assert made.baseline("dev") == {"accuracy": pytest.approx(1 / 3)}


def logits_of(windows, tag):
    """Outputs by which all words of `windows` have the label `tag`."""
    logits = np.zeros([len(windows), 12, 3])
    logits[:, :, tag] = 1
    return {"logits": logits}


def test_predictions_are_written_word_for_word_in_the_form_of_the_input(family, tmp_path, capsys):
    files = {
        "train.txt": TRAIN,
        "dev.conll": f"# id 1\n{'ab N' + chr(10)}{NOTHING} V\n" + "abc N\n" * 9,
        "test.txt": "-DOCSTART-\n\nada\nsees\n",
    }
    made = family(files)
    for split, name in (("dev", "dev.conll"), ("test", "test.txt")):
        evaluation = made.evaluation(split, str(tmp_path / "work"))
        evaluation.write(logits_of(evaluation.windows, 2), str(tmp_path / "out"))
        written = (tmp_path / "out" / name).read_text(encoding="utf-8")
        if split == "dev":
            assert len(evaluation.windows) > 2
            assert written == files[name].replace(" N", " V").replace("\u200d V", "\u200d N")
            assert evaluation.score(logits_of(evaluation.windows, 1)) == {"accuracy": 10 / 11}
        else:
            assert written == "-DOCSTART-\n\nada V\nsees V\n" and not evaluation.labelled
            with pytest.raises(UserError, match="has no tags"):
                evaluation.score(logits_of(evaluation.windows, 1))
    said = capsys.readouterr().out
    assert "1 words without a piece of the vocabulary are tagged N" in said
    assert "1 of 1 sentences are read in windows" in said


def test_reports_count_words_and_ensembles_average_probabilities(family, tmp_path):
    made = family({"train.txt": TRAIN, "dev.txt": f"ada N\nab X\n\n{NOTHING} V\nsees V\n"})
    evaluation = made.evaluation("dev", str(tmp_path))
    found = evaluation.report(logits_of(evaluation.windows, 2))  # V; the word without a piece: N
    assert evaluation.num_examples == 2
    assert found["confusion"] == {
        "labels": [".", "N", "V", "X"],
        "matrix": [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]],
    }
    worst = [(each["word"], each["label"], each["prediction"]) for each in found["mistakes"]]
    assert [each["example"] for each in found["mistakes"]] == [1, 2, 4]  # lines of the file
    assert worst == [("ada", "N", "V"), ("ab", "X", "V"), (NOTHING, "V", "N")]
    one, two = np.array([[[0.0, 0.0]]]), np.array([[[0.0, np.log(3)]]])
    mean = np.exp(evaluation.ensemble([{"logits": one}, {"logits": two}])["logits"])
    np.testing.assert_allclose(mean, [[[3 / 8, 5 / 8]]])


def test_a_head_of_other_tags_is_a_misfit(family):
    made = family({"train.txt": TRAIN})
    model = TokenClassifier(ConvBertEncoder(MODEL), 3, labels=[".", "N", "V"])
    assert made.misfit(model) == "" and made.main_metric == "accuracy"
    other = TokenClassifier(ConvBertEncoder(MODEL), 3, labels=["a", "b", "c"])
    assert "labels" in made.misfit(other)
    assert "ConvBertEncoder, not a TokenClassifier" in made.misfit(ConvBertEncoder(MODEL))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [["B-PER", "O"]]),
        ({"tag_column": "2"}, [["NNP", "VBZ"]]),
        ({"word_column": "2", "tag_column": "-2"}, "in the same column 2, of 3"),
        ({"tag_column": "4"}, "no column 4: it has 3"),
        ({"tag_column": "ner"}, "no column called 'ner'; there are ada, NNP, B-PER"),
    ],
)
def test_columns_are_chosen(family, settings, expected):
    made = family({"train.txt": "ada NNP B-PER\nsees VBZ O\n"}, **settings)
    if isinstance(expected, list):
        assert made.split("train").tags == expected
    else:
        with pytest.raises(UserError, match=expected):
            made.split("train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"dev.txt": TRAIN}, r"must hold one file train\.txt .*set config\.task\.train_file"),
        ({"train.txt": TRAIN, "a-train.conll": TRAIN}, r"there are a-train\.conll, train\.txt"),
        ({"train.txt": TRAIN}, r"must hold one file dev\.txt"),
        ({"train.txt": "ada N\nbob N\n", "dev.txt": TRAIN}, "all words have the tag 'N'"),
        ({"train.txt": "ada\nbob\n", "dev.txt": TRAIN}, "in the same column 1, of 1"),
        ({"train.txt": TRAIN, "dev.txt": "ada\n"}, r"dev\.txt has 1 column, and .*train\.txt 2"),
        ({"train.txt": TRAIN, "dev.txt": "N ada\n"}, r"dev\.txt has no tag that .*only ada \(1\)"),
        ({"train.txt": TRAIN, "dev.txt": TRAIN}, "holds 2 records, fewer than one batch of 3"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(family, files, message):
    with pytest.raises(UserError, match=message):
        family(files).check(3)


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("train", "en_ewt-ud-train.conllu"),
        ("train", "wnut17train.conll"),
        ("dev", "valid.txt"),
        ("dev", "eng.testa.iob"),
        ("test", "TEST.TXT"),
    ],
)
def test_files_are_found_by_their_usual_names(family, tmp_path, split, name):
    made = family({name: TRAIN, "README.md": "", "constraint.txt": ""})
    if name.startswith("wnut"):  # as long as the name says it by a mark of its own
        with pytest.raises(UserError, match="must hold one file"):
            made.files(split)
    else:
        assert made.files(split) == [str(tmp_path / name)]
    given = family({name: TRAIN}, **{f"{split}_file": str(tmp_path / name)})
    assert given.files(split) == [str(tmp_path / name)]


# --- a run ---


def write_entities(path, count, rng):
    """Sentences in which names are persons, of two words behind "mr"."""
    lines = []
    for _ in range(count):
        for _ in range(rng.randint(1, 12)):
            name = rng.choice(NAMES)
            person = [f"{name}\tB-PER"]
            titled = ["mr\tB-PER", f"{name}\tI-PER"]
            lines += rng.choice([person, titled, [f"{rng.choice(VERBS)}\tO"]])
        lines += [".\tO", ""]
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def start(vocab_file, tmp_path_factory):
    """A folder with data/ and an encoder to start from."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("start")
    (folder / "data").mkdir()
    write_entities(folder / "data" / "train.txt", 160, rng)
    write_entities(folder / "data" / "dev.txt", 40, rng)
    ConvBertEncoder(MODEL).save_to_preset(str(folder / "encoder"), vocab_file)
    return folder


def make_experiment(start, model_dir, dropout=0.1, **training):
    start = pathlib.Path(start)
    task = TaskConfig(
        "tokens",
        str(start / "data"),
        str(start / "encoder"),
        max_seq_length=12,  # shorter than many of the sentences
        doc_stride=5,
        num_train_epochs=10.0,
        classifier_dropout=dropout,
    )
    options = {"batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 10, "steps_per_loop": 20}
    return FinetuningExperiment(task, TrainingConfig(str(model_dir), **options | training))


@pytest.mark.slow
def test_a_tagger_learns_and_is_left_as_a_preset(start, tmp_path):
    results = finetuning.run(make_experiment(start, tmp_path, best_metric="f1"))
    assert results["f1"] > 0.95 and results["accuracy"] > 0.95
    report = json.loads((tmp_path / "eval_results.json").read_text())
    # Names are persons of one word or inside of one: that needs the words around them.
    assert report["metrics"] == pytest.approx(results) and report["baseline"]["f1"] < 0.7
    gold, predicted = (
        word_files.read(str(folder / "dev.txt")).column(1)
        for folder in (start / "data", tmp_path / "predictions")
    )
    assert tokens.metrics(gold, predicted, True) == pytest.approx(results)
    model = presets.load(str(tmp_path / "preset"))
    assert isinstance(model, TokenClassifier) and model.labels == ["B-PER", "I-PER", "O"]
    assert presets.serving(str(tmp_path / "preset")) == {"max_seq_length": 12, "doc_stride": 5}


def tag_for_four_steps(start, model_dir, strategy="mirrored"):
    if strategy == "mirrored":
        runs.logical_cpus(2)
    finetuning.run(make_experiment(start, model_dir, 0.0, num_train_steps=4, strategy=strategy))


@pytest.mark.slow
def test_two_replicas_tag_and_learn_as_one(start, tmp_path):
    runs.in_process("tasks.tokens_test", tag_for_four_steps, start, tmp_path / "two")
    tag_for_four_steps(start, tmp_path / "one", "one_device")
    one, two = (
        {w.path.partition("/")[2]: w.numpy() for w in presets.load(str(path / "preset")).weights}
        for path in (tmp_path / "one", tmp_path / "two")
    )
    runs.assert_close(one, two, 2e-3)
    one, two = ((tmp_path / n / "predictions" / "dev.txt").read_text() for n in ("one", "two"))
    assert one == two and len({line[-5:] for line in one.splitlines()}) > 1
