"""From a preset and a task's files to its metric, on tasks that one word decides."""

import dataclasses
import json
import pathlib
import random
import shutil

import pytest

from convbert_tf.config import FinetuningExperiment, ModelConfig, TaskConfig, TrainingConfig
from convbert_tf.console import UserError
from convbert_tf.modeling import huggingface, presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier
from convbert_tf.tasks import finetuning
from convbert_tf.training import checkpoints
from tests import runs
from tests.tasks import glue_test

WORDS = [
    "cat",
    "dog",
    "hen",
    "cow",
    "pig",
    "fox",
    "owl",
    "bee",
    "ant",
    "rat",
    "sees",
    "likes",
    "hears",
    "meets",
    "finds",
    "keeps",
]
NAMES = ["ada", "bob", "cleo", "dan", "eve", "finn", "gus", "hal", "ivy", "jon", "kim", "leo"]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "good", "bad", "who", "winner", "is"]
VOCAB += [*WORDS, *NAMES, ".", "?"]
MODEL = ModelConfig(
    vocab_size=len(VOCAB),
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    embedding_size=32,
    max_position_embeddings=32,
    conv_kernel_size=3,
    initializer_range=0.1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    (folder / "pieces.txt").write_text("\n".join(VOCAB) + "\n")
    encoder = ConvBertEncoder(MODEL)
    encoder.save_to_preset(str(folder / "encoder"), str(folder / "pieces.txt"))
    return str(folder / "encoder")


@pytest.fixture(scope="module")
def cola(tmp_path_factory):
    """Sentences that are acceptable if the word "good" is in them."""
    folder, rng = tmp_path_factory.mktemp("cola"), random.Random(0)
    for name, count in (("train", 128), ("dev", 40)):
        rows = []
        for _ in range(count):
            label = int(rng.random() < 0.4)
            words = rng.choices(WORDS, k=5)
            words.insert(rng.randrange(6), "good" if label else "bad")
            rows.append(f"me\t{label}\t\t{' '.join(words)}\n")
        (folder / f"{name}.tsv").write_text("".join(rows))
    return str(folder)


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    """Contexts in which "winner is" stands before the answer."""
    folder, rng = tmp_path_factory.mktemp("squad"), random.Random(0)
    for split, count in (("train", 192), ("dev", 32)):
        paragraphs = []
        for i in range(count):
            answer = rng.choice(NAMES)
            before = " ".join(rng.choices(WORDS + NAMES, k=rng.randint(1, 6)))
            context = f"{before} winner is {answer} {' '.join(rng.choices(WORDS + NAMES, k=3))}."
            start = len(before) + len(" winner is ")
            qa = {"id": f"{split}{i}", "question": "who is the winner?"}
            qa["answers"] = [{"text": answer, "answer_start": start}]
            paragraphs.append({"context": context, "qas": [qa]})
        content = {"version": "1.1", "data": [{"paragraphs": paragraphs}]}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return str(folder)


def make_experiment(preset, data_dir, model_dir, name="cola", epochs=6.0, **task):
    return FinetuningExperiment(
        TaskConfig(
            name=name,
            data_dir=data_dir,
            init_from=preset,
            max_seq_length=32,
            max_query_length=8,
            num_train_epochs=epochs,
            beam_size=4,
            **task,
        ),
        TrainingConfig(
            model_dir=str(model_dir),
            batch_size=16,
            learning_rate=3e-3,
            warmup_steps=0,
            warmup_proportion=0.1,
            layerwise_lr_decay=0.9,
            steps_per_loop=20,
        ),
    )


@pytest.mark.slow
def test_classifier_learns_and_is_left_as_a_preset(preset, cola, tmp_path):
    experiment = make_experiment(preset, cola, tmp_path)
    results = finetuning.run(experiment)
    assert results["accuracy"] > 0.9 and results["mcc"] > 0.8
    report = json.loads((tmp_path / "eval_results.json").read_text())
    assert report["metrics"] == pytest.approx(results)
    assert report["baseline"]["mcc"] == 0 and 0.4 < report["baseline"]["accuracy"] < 0.8
    lines = (tmp_path / "predictions" / "CoLA.tsv").read_text().splitlines()
    labels = [
        line.split("\t")[1] for line in pathlib.Path(cola, "dev.tsv").read_text().splitlines()
    ]
    right = sum(line.split("\t")[1] == label for line, label in zip(lines[1:], labels, strict=True))
    assert right / len(labels) == pytest.approx(results["accuracy"])
    model = TextClassifier.from_preset(str(tmp_path / "preset"))
    assert model.labels == ["0", "1"]
    assert presets.vocab_file(str(tmp_path / "preset"))
    (train, _), (dev, _) = (runs.read_events(tmp_path / part) for part in ("train", "eval"))
    assert set(dev) == {"metrics/mcc", "metrics/accuracy"}
    assert {"loss/loss", "optimizer/learning_rate"} < set(train)
    # A finished run that is started again trains no further, and gives what it gave.
    assert finetuning.run(experiment) == pytest.approx(results)


@pytest.mark.slow
@pytest.mark.parametrize("joint", [True, False])
def test_question_answerer_learns(preset, squad, tmp_path, joint):
    options = {"epochs": 12.0, "joint_prediction": joint}
    experiment = make_experiment(preset, squad, tmp_path, "squad_v1", **options)
    results = finetuning.run(experiment)
    assert results["exact_match"] > 80
    report = json.loads((tmp_path / "eval_results.json").read_text())
    assert report["metrics"] == pytest.approx(results)
    assert report["baseline"]["exact_match"] < 50
    predictions = [
        path for path in (tmp_path / "predictions").iterdir() if "dev0" in path.read_text()
    ]
    assert len(predictions) == 2  # the answers, and the n-best lists
    model = QuestionAnswerer.from_preset(str(tmp_path / "preset"))
    assert not model.answerable and model.beam_size == 4 and model.joint is joint


@pytest.mark.slow
def test_several_labels_of_rows_in_memory(preset, tmp_path):
    """From a list to a preset that answers in its labels."""
    rng, rows = random.Random(0), []
    for _ in range(160):
        words, labels = rng.choices(WORDS, k=4), [w for w in ("good", "bad") if rng.random() < 0.5]
        words += labels
        rng.shuffle(words)
        rows.append((" ".join(words), labels))
    settings = {"kind": "labels", "max_seq_length": 32, "num_train_epochs": 40, "batch_size": 16}
    settings |= {"learning_rate": 3e-3, "layerwise_lr_decay": 0.9, "held_out": 0.2}
    results = finetuning.finetune(rows, preset, str(tmp_path / "run"), **settings)
    assert results["micro_f1"] > 0.9 and results["subset_accuracy"] > 0.8
    model = TextClassifier.from_preset(str(tmp_path / "run" / "preset"))
    assert model.multi_label and model.labels == ["bad", "good"]
    # The same call gives what it gave; with other rows it is another run, of which nothing stays.
    files = sorted((tmp_path / "run").rglob("data/*/*"))
    assert finetuning.finetune(rows, preset, str(tmp_path / "run"), **settings) == results
    with pytest.raises(UserError, match=r"another config \(task\.train_file"):
        finetuning.finetune(rows[1:], preset, str(tmp_path / "run"), **settings)
    assert sorted((tmp_path / "run").rglob("data/*/*")) == files and len(files) == 1


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("x", "a"), ("", "b")], {}, r"^row 2 of train: the column 'text' is empty; mend or drop"),
        ([("x", "a")] * 9, {}, "^train: there must be at least two different labels; there is 'a'"),
        ([{"text": "x"}], {}, "train has no column 'label'; it has 'text'"),
        ([], {}, "train has no column 'text'; it has no rows"),
        ([("x", "y", "a"), ("x", "b")], {}, r"train\[1\] must be a dict or a tuple \(text, text_b"),
        ([("x", "a")], {"epochs": 3}, "no setting 'epochs'; did you mean num_train_epochs?"),
        ([("x", "a")], {"batch_size": "many"}, "batch_size must be a whole number, got 'many'"),
        (
            [("x", "a"), ("y", "b")],
            {"labels": ["a", "c"]},
            "^row 2 of train: the label 'b' is none",
        ),
        ("rows.xls", {}, "rows.xls is not there"),
    ],
)
def test_rows_in_memory_that_are_wrong_leave_nothing(preset, tmp_path, rows, settings, message):
    with pytest.raises(UserError, match=message):
        finetuning.finetune(rows, preset, str(tmp_path / "a" / "run"), **settings)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_mnli_from_tfds_is_scored_on_both_dev_sets(preset, tmp_path, monkeypatch):
    rng = random.Random(0)

    def rows(count):
        words = ["good", "bad", "the"]  # of the labels in this order
        pairs = [(rng.randrange(3), " ".join(rng.choices(WORDS, k=3))) for _ in range(count)]
        names = ["entailment", "neutral", "contradiction"]
        return [
            {"premise": f"{text} {words[k]}", "hypothesis": text, "label": names[k], "idx": i}
            for i, (k, text) in enumerate(pairs)
        ]

    splits = {"train": rows(160), "validation_matched": rows(30)}
    glue_test._store_tfds(tmp_path / "tfds", "mnli", **splits, validation_mismatched=rows(20))
    data_dir = f"tfds:glue@{tmp_path / 'tfds'}"
    run = tmp_path / "run"
    experiment = make_experiment(preset, data_dir, run, "mnli", epochs=8.0)
    results = finetuning.run(experiment)
    assert list(results) == ["accuracy", "accuracy_mismatched"] and min(results.values()) > 0.9
    for name, count in ("MNLI-m", 30), ("MNLI-mm", 20):
        lines = (run / "predictions" / f"{name}.tsv").read_text().splitlines()
        assert len(lines) == count + 1 and lines[0] == "index\tprediction"
    inputs = json.loads((run / "inputs.json").read_text())["task.data_dir"]
    assert inputs["place"] == data_dir and len(inputs["files"]) == 3
    # From any folder it is the same run.
    monkeypatch.chdir(tmp_path)
    assert finetuning.run(experiment) == results


@pytest.fixture
def model_at_start(monkeypatch):
    """A function: the model of an experiment where training would begin."""
    started = []

    def fit(task, *args, **kwargs):
        started.append(task.model)
        raise UserError("stop")

    def start(experiment):
        with pytest.raises(UserError, match="stop"):
            finetuning.run(experiment)
        return started.pop()

    monkeypatch.setattr(finetuning.loop, "fit", fit)
    return start


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [(0, 1.5, 12), (5, 1.5, 5), (30, 1.5, 30), (0, 0.01, 1)],  # 128 sentences in batches of 16
)
def test_a_run_is_as_long_as_its_steps_or_else_its_epochs_say(
    preset, cola, tmp_path, monkeypatch, steps, epochs, expected
):
    lengths = []
    monkeypatch.setattr(
        finetuning.loop, "fit", lambda task, options, steps, *_, **__: lengths.append(steps) or {}
    )
    experiment = make_experiment(preset, cola, tmp_path, epochs=epochs)
    training = dataclasses.replace(experiment.training, num_train_steps=steps)
    finetuning.run(dataclasses.replace(experiment, training=training))
    assert lengths == [expected]


@pytest.mark.parametrize(
    ("task", "training", "message"),
    [
        (
            {"max_seq_length": 33},
            {},
            "33 must be between 8 and the model's max_position_embeddings 32",
        ),
        ({"name": "colla"}, {}, "no task is called 'colla'"),
        ({"name": "squad_v1"}, {}, r"train\.json is not there"),
        ({"data_dir": "no/dir"}, {}, "cola needs a file train.tsv"),
        ({"data_dir": ""}, {}, "set config.task.init_from .a preset., config.task.data_dir and"),
        ({}, {"batch_size": 129}, r"train\.tsv holds 128 records, fewer than one batch of 129"),
        ({}, {"best_metric": "auc"}, "best_metric 'auc' is none of accuracy, mcc"),
        ({}, {"strategy": "mirrored", "num_devices": 9}, "num_devices is 9, but this machine has"),
    ],
)
def test_what_is_impossible_is_refused_before_anything_is_made(
    preset, cola, tmp_path, task, training, message
):
    experiment = make_experiment(preset, cola, tmp_path / "run")
    changed = [
        dataclasses.replace(section, **values)
        for section, values in ((experiment.task, task), (experiment.training, training))
    ]
    with pytest.raises(UserError, match=message):
        finetuning.run(FinetuningExperiment(*changed))
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_read_is_refused_before_anything_is_made(
    preset, squad, cola, tmp_path
):
    for source, name, task, message in (
        (cola, "dev.tsv", "cola", r"dev\.tsv:1"),
        (squad, "dev.json", "squad_v1", r"dev\.json is not JSON"),
    ):
        folder = tmp_path / task
        shutil.copytree(source, folder)
        (folder / name).write_text("no data")
        with pytest.raises(UserError, match=message):
            finetuning.run(make_experiment(preset, str(folder), tmp_path / "run", task))
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_larger_than_the_model_is_refused_before_anything_is_made(
    preset, cola, tmp_path
):
    large = tmp_path / "large"
    shutil.copytree(preset, large)
    with open(large / "vocab.txt", "a", encoding="utf-8") as file:
        file.write("more\nwords\n")
    with pytest.raises(UserError, match=r"vocab\.txt.*(pieces|hash)"):
        finetuning.run(make_experiment(str(large), cola, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_of_steps_ends_goes_on_and_is_told_beyond_its_end(
    preset, cola, tmp_path, monkeypatch
):
    def run(model_dir, steps, **changes):
        experiment = make_experiment(preset, cola, model_dir, **changes)
        training = dataclasses.replace(experiment.training, num_train_steps=steps)
        finetuning.run(dataclasses.replace(experiment, training=training), steps != 4)

    run(tmp_path / "run", 4)
    assert checkpoints.latest_step(str(tmp_path / "run")) == 4
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    run("moved/", 4)
    run("moved", 6)
    assert checkpoints.latest_step("moved") == 6
    with pytest.raises(UserError, match="at step 6, beyond num_train_steps 5: set more"):
        run("moved", 5)
    with pytest.raises(UserError, match=r"another model .task.name: 'cola' -> 'sst2'"):
        run("moved", 6, name="sst2")


def test_from_scratch_takes_no_weights_of_the_preset(preset, cola, tmp_path, model_at_start):
    started = []
    for number, from_scratch in enumerate((False, True)):
        experiment = make_experiment(
            preset, cola, tmp_path / str(number), from_scratch=from_scratch
        )
        model = model_at_start(experiment)
        started.append(model.encoder.embeddings.word_embeddings.numpy())
    given = presets.load_encoder(preset).embeddings.word_embeddings.numpy()
    assert (started[0] == given).all()
    assert started[1].shape == given.shape and (started[1] != given).mean() > 0.99


@pytest.mark.parametrize(
    ("labels", "said"),
    [(["0", "1"], "its head is kept"), (["x", "y"], "its head is dropped (labels ['x', 'y'] -> [")],
)
def test_a_hugging_face_directory_and_its_head(
    preset, cola, tmp_path, model_at_start, capsys, labels, said
):
    encoder, directory = presets.load_encoder(preset), tmp_path / "theirs"
    theirs = TextClassifier(encoder, 2, labels=labels, hidden_layer=True)
    huggingface.save(theirs, directory, presets.vocab_file(preset))
    model = model_at_start(make_experiment(str(directory), cola, tmp_path / "run"))
    assert f"{directory}: {said}" in capsys.readouterr().out
    assert model.hidden_layer and model.labels == ["0", "1"]
    kept = (model.hidden.kernel.numpy() == theirs.hidden.kernel.numpy()).all()
    assert kept == (labels == ["0", "1"])
    words = (each.encoder.embeddings.word_embeddings.numpy() for each in (model, theirs))
    assert (next(words) == next(words)).all()


def test_an_independent_question_answerer_stays_one(preset, squad, tmp_path, model_at_start):
    theirs = QuestionAnswerer(presets.load_encoder(preset), joint=False)
    theirs.save_to_preset(tmp_path / "theirs", presets.vocab_file(preset))
    experiment = make_experiment(str(tmp_path / "theirs"), squad, tmp_path / "run", "squad_v1")
    model = model_at_start(experiment)
    assert not model.joint and model.beam_size == 4
    assert (model.logits.kernel.numpy() == theirs.logits.kernel.numpy()).all()


@pytest.mark.slow
def test_mistakes_leave_room_for_the_right_config(preset, cola, tmp_path):
    """A run without a checkpoint does not occupy model_dir; a changed one's records are new."""
    run = tmp_path / "run"
    for message, changes in {
        "no task is called 'colla'": {"name": "colla"},
        "needs a file train.tsv": {"data_dir": str(tmp_path)},
    }.items():
        settings = {"data_dir": cola} | changes
        with pytest.raises(UserError, match=message):
            finetuning.run(make_experiment(preset, model_dir=run, **settings))
    with pytest.raises(UserError, match="is expected"):
        finetuning.run(make_experiment(str(tmp_path / "none"), cola, run))
    with pytest.raises(UserError, match=r"set config\.task\.init_from"):
        finetuning.run(make_experiment("", cola, run))
    with pytest.raises(UserError, match=r"dev\.json|train\.json"):
        finetuning.run(make_experiment(preset, cola, run, name="squad_v2"))
    small = tmp_path / "small"
    small.mkdir()
    for name in ("train", "dev"):
        (small / f"{name}.tsv").write_text("me\t1\t\tgood cat\nme\t0\t\tbad cat\n" * 8)
    finetuning.run(make_experiment(preset, str(small), run, epochs=1.0))
    records = (run / "records" / "train.tfrecord").stat().st_size
    with pytest.raises(UserError, match=r"task\.data_dir: .*allow_config_change"):
        finetuning.run(make_experiment(preset, cola, run, epochs=1.0))
    changed = make_experiment(preset, cola, run, epochs=1.0)
    finetuning.run(changed, allow_config_change=True)
    assert (run / "records" / "train.tfrecord").stat().st_size > 4 * records
