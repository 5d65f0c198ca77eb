"""From a preset and a task's files to its metric, on tasks that one word decides."""

import dataclasses
import json
import pathlib
import random
import shutil

import pytest
import tensorflow as tf

from convbert_tf.config import FinetuningExperiment
from convbert_tf.console import UserError
from convbert_tf.modeling import huggingface, presets
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier
from convbert_tf.training import checkpoints
from convbert_tf.workflows import finetuning
from tests import runs
from tests.small_tasks import WORDS, make_experiment
from tests.tasks import glue_test


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
    (train, _), (dev, shown) = (runs.read_events(tmp_path / part) for part in ("train", "eval"))
    assert set(dev) == {"metrics/mcc", "metrics/accuracy"}
    assert {"confusion/dev", "classes/dev"} <= shown
    report = json.loads((tmp_path / "reports" / "dev.json").read_text())
    assert report["metrics"] == pytest.approx(results)
    assert sum(each["support"] for each in report["classes"]) == report["examples"] == 40
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
    page = (tmp_path / "reports" / "dev.html").read_text()
    assert f"exact match {results['exact_match']:.2f}; F1 {results['f1']:.2f};" in page
    assert "## Right, the least sure" in (tmp_path / "reports" / "dev.md").read_text()
    model = QuestionAnswerer.from_preset(str(tmp_path / "preset"))
    assert not model.answerable and model.beam_size == 4 and model.joint is joint


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
    def fit(task, options, num_train_steps, *_, **__):
        raise UserError(f"{num_train_steps} steps")

    monkeypatch.setattr(finetuning.loop, "fit", fit)
    experiment = make_experiment(preset, cola, tmp_path, epochs=epochs)
    training = dataclasses.replace(experiment.training, num_train_steps=steps)
    with pytest.raises(UserError, match=f"^{expected} steps$"):
        finetuning.run(dataclasses.replace(experiment, training=training))


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
        ({"class_weights": "1,2,3"}, {}, "number for each of the labels 0, 1, as 0:1,1:1; got"),
        ({"num_trials": 2}, {}, "num_trials is above 1"),
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


@pytest.mark.slow
def test_a_run_ends_with_its_best_step_and_stops_when_nothing_is_better(
    preset, cola, tmp_path, capsys
):
    options = {"eval_interval": 8, "patience": 2}
    experiment = make_experiment(preset, cola, tmp_path, epochs=20.0, training=options)
    results = finetuning.run(experiment)
    evaluations = [
        (line["step"], line["mcc"])
        for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        if line["kind"] == "eval"
    ]
    step, best = max(evaluations, key=lambda each: each[1])  # the first of the best
    assert [last for last, _ in evaluations[-2:]] == [step + 8, step + 16] and step + 16 < 160
    said = f"stopped at step {step + 16}: 2 evaluations without a better mcc than {best:.4g} at"
    assert said in capsys.readouterr().out
    report = json.loads((tmp_path / "eval_results.json").read_text())
    assert (report["step"], report["best_metric"]) == (step, "mcc")
    assert report["metrics"] == results and results["mcc"] == pytest.approx(best)
    model = TextClassifier.from_preset(str(tmp_path / "preset"))
    kept = tf.train.load_checkpoint(str(tmp_path / "best" / f"ckpt-{step}"))
    last = tf.train.load_checkpoint(checkpoints.latest(str(tmp_path)))
    key = checkpoints._key("model", model.logits.kernel.path)
    assert (model.logits.kernel.numpy() == kept.get_tensor(key)).all()
    assert (model.logits.kernel.numpy() != last.get_tensor(key)).any()
    # A finished run is not computed again; without its results it is, and stops again.
    assert finetuning.run(experiment) == results
    assert "is finished: its scores are those of step" in capsys.readouterr().out
    predictions = (tmp_path / "predictions" / "CoLA.tsv").read_bytes()
    (tmp_path / "eval_results.json").unlink()
    assert finetuning.run(experiment) == pytest.approx(results)
    assert said in capsys.readouterr().out
    assert checkpoints.latest_step(str(tmp_path)) == step + 16
    assert (tmp_path / "predictions" / "CoLA.tsv").read_bytes() == predictions


def test_a_second_process_changes_nothing_of_a_run(preset, cola, tmp_path):
    with (
        runs.another_process_in(tmp_path / "run"),
        pytest.raises(UserError, match="another process is at work"),
    ):
        finetuning.run(make_experiment(preset, cola, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.slow
def test_changed_training_data_are_told_and_learned_of(preset, cola, tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(cola, data)

    def train(epochs=1.0, allow=False):
        return finetuning.run(make_experiment(preset, str(data), run, epochs=epochs), allow)

    def add(rows):
        with open(data / "train.tsv", "a") as file:
            file.write("me\t1\t\tgood cat\n" * rows)

    results = train()
    add(1)
    for _ in range(2):  # the second time too: what was refused has left nothing
        with pytest.raises(UserError, match=r"train\.tsv in .* has changed.*allow_config_change"):
            train()
        with pytest.raises(UserError, match=r"at its end \(step 8 of 8\) and would not learn of"):
            train(allow=True)
    shutil.copy(pathlib.Path(cola, "train.tsv"), data)
    assert train() == results
    add(32)
    capsys.readouterr()
    train(allow=True)
    said = capsys.readouterr().out
    assert "train.tsv has changed: the run goes on with it from step 8 of 10" in said
    assert "160 training records" in said and checkpoints.latest_step(str(run)) == 10
    capsys.readouterr()
    train()
    assert "is finished" in capsys.readouterr().out


def train_on_devices(preset, cola, model_dir, number):
    runs.logical_cpus(int(number))
    options = {"strategy": "mirrored", "num_train_steps": 4}
    task = {"classifier_dropout": 0.0}  # each replica draws its own
    finetuning.run(make_experiment(preset, cola, model_dir, training=options, **task))


@pytest.mark.slow
def test_several_devices_take_the_steps_of_one(preset, cola, tmp_path):
    weights = []
    for number in (1, 2):
        run = tmp_path / str(number)
        runs.in_process("workflows.finetuning_test", train_on_devices, preset, cola, run, number)
        weights.append(runs.weights(TextClassifier.from_preset(str(run / "preset"))))
    runs.assert_close(*weights, 1e-4)
