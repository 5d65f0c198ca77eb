"""All of GLUE: what is trained and kept, the average, and what gluebenchmark.com would take."""

import os
import shutil
import zipfile

import keras
import pytest

from convbert_tf.config import ModelConfig
from convbert_tf.console import UserError
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import TextClassifier
from convbert_tf.workflows import leaderboard

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "."]
MODEL = ModelConfig(
    vocab_size=len(VOCAB),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    embedding_size=16,
    max_position_embeddings=128,
    conv_kernel_size=3,
)
MNLI = ("index\tsentence1\tsentence2\tgold_label\n", "0\tcat .\tdog .\tneutral\n")
RTE = ("index\tsentence1\tsentence2\tlabel\n", "0\tcat .\tdog .\tentailment\n")
TEST = ("index\tsentence1\tsentence2\n", "0\tcat .\tdog .\n")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    (folder / "pieces.txt").write_text("\n".join(VOCAB) + "\n")
    model = ConvBertEncoder(MODEL)
    model.save_to_preset(str(folder / "preset"), str(folder / "pieces.txt"))
    return str(folder / "preset")


@pytest.fixture
def data(tmp_path):
    """MNLI and RTE, with two of their test sets."""
    contents = {
        "MNLI/train.tsv": MNLI,
        "MNLI/dev_matched.tsv": MNLI,
        "MNLI/dev_mismatched.tsv": MNLI,
        "MNLI/test_mismatched.tsv": TEST,
        "RTE/train.tsv": RTE,
        "RTE/dev.tsv": RTE,
        "RTE/test.tsv": (TEST[0], TEST[1] * 3000),
        "QNLI/dev.tsv": RTE,
    }
    for name, (header, line) in contents.items():
        path = tmp_path / "glue" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(header + line)
    return tmp_path / "glue"


@pytest.fixture
def trained(monkeypatch, encoder):
    """Tasks that would have been trained; each leaves a preset with random weights."""
    names = []

    def run(experiment, allow_config_change):
        name, model_dir = experiment.task.name, experiment.training.model_dir
        path = f"{model_dir}/eval_results.json"
        if os.path.exists(path):
            return
        names.append((name, experiment.task.num_train_epochs, experiment.training.learning_rate))
        labels = leaderboard.glue.TASKS[name].labels
        model = TextClassifier.from_preset(encoder, num_classes=len(labels), labels=labels)
        model.save_to_preset(f"{model_dir}/preset", vocab_file=f"{encoder}/vocab.txt")
        metrics = {"accuracy": 0.8 if name == "rte" else 0.6}
        report = {"metrics": metrics, "baseline": {"accuracy": 0.5}, "seconds": 7.0}
        leaderboard.files.write_json(path, report)

    monkeypatch.setattr(leaderboard.trials, "run", run)
    return names


def test_what_is_there_is_trained_once_and_its_test_sets_predicted(
    data, encoder, trained, tmp_path, capsys
):
    def run(**options):
        return leaderboard.run(encoder, str(data), str(tmp_path / "runs"), **options)

    report = run()
    assert trained == [("mnli", 3.0, 3e-4), ("rte", 10.0, 3e-4)]
    found = report["average"]
    assert found["score"] == pytest.approx(70) and found["tasks"] == ["mnli", "rte"]
    assert "2 of its eight tasks only; without CoLA" in leaderboard.average_line(report)
    zipped = report["submission"]
    assert zipped["predicted"] == ["MNLI-mm", "RTE"] and not zipped["filled"]
    assert "MNLI-mm.tsv has 1 predictions, not 9,847" in zipped["problems"]
    assert not any(problem.startswith("RTE.tsv ") for problem in zipped["problems"])
    with zipfile.ZipFile(zipped["path"]) as file:
        assert sorted(file.namelist()) == ["MNLI-mm.tsv", "RTE.tsv"]
    said = capsys.readouterr().out
    assert "left out: cola, sst2, mrpc, stsb, qqp, qnli, wnli" in said
    assert "RTE   accuracy  80.0   50.0      7 s" in said
    assert "| RTE | accuracy | 80.0 | 50.0 | 7 s |" in (tmp_path / "runs" / "glue.md").read_text()

    (data / "MNLI" / "test_matched.tsv").write_text("".join(TEST))
    assert run()["submission"]["predicted"] == ["MNLI-m", "MNLI-mm", "RTE"]
    assert "predicting" not in capsys.readouterr().out.partition("RTE")[2]
    # The test sets are predicted again where the model is another one.
    changed = TextClassifier.from_preset(str(tmp_path / "runs" / "rte" / "preset"))
    changed.set_weights([-weight for weight in changed.get_weights()])
    shutil.rmtree(tmp_path / "runs" / "rte" / "preset")
    changed.save_to_preset(str(tmp_path / "runs" / "rte" / "preset"), f"{encoder}/vocab.txt")
    path = tmp_path / "runs" / "rte" / "test" / "predictions" / "test" / "RTE.tsv"
    before = path.read_text()
    run()
    assert path.read_text() != before and len(trained) == 2


@pytest.mark.slow
def test_finished_trials_are_kept_and_others_refused(data, encoder, tmp_path, capsys):
    def run(**options):
        options = {"tasks": ["rte"], "epochs": 1, "batch_size": 1, "num_trials": 2} | options
        return leaderboard.run(encoder, str(data), str(tmp_path / "runs"), **options)

    found = run()["tasks"]["rte"]
    assert found["deviation"].keys() == found["metrics"].keys() and found["seconds"] > 0
    assert " ± " in capsys.readouterr().out
    assert run()["tasks"]["rte"] == found
    assert capsys.readouterr().out.count("is finished: its scores are those of step") == 2
    with pytest.raises(UserError, match="num_train_epochs: 1.0 -> 2.0"):
        run(epochs=2)
    with pytest.raises(UserError, match="holds trials, not a single run"):
        run(num_trials=1)
    (data / "RTE" / "train.tsv").write_text(RTE[0] + RTE[1] * 2)
    with pytest.raises(UserError, match=r"train\.tsv in .* has changed"):
        run()
    keras.utils.set_random_seed(7)
    ConvBertEncoder(MODEL).save_to_preset(str(tmp_path / "other"), f"{encoder}/vocab.txt")
    with pytest.raises(UserError, match="runs/rte holds a run from another model"):
        leaderboard.run(
            str(tmp_path / "other"), str(data), str(tmp_path / "runs"), ["rte"], num_trials=2
        )


def test_tasks_that_are_not_there_or_unknown_are_refused(data, encoder, tmp_path):
    for tasks, message in ((["cola"], "has train and dev sets of none of"), (["x"], "no task 'x'")):
        with pytest.raises(UserError, match=message):
            leaderboard.run(encoder, str(data), str(tmp_path / "runs"), tasks=tasks)
    assert not (tmp_path / "runs").exists()


def test_the_average_is_of_eight_tasks_by_their_main_scores():
    main = {"cola": "mcc", "stsb": "spearman"}
    results = {
        name: {"metrics": {main.get(name, "accuracy"): number / 10, "f1": 1.0}}
        for number, name in enumerate(leaderboard.TASKS)
    }
    found = leaderboard.average(results)
    assert found["score"] == pytest.approx(35) and not found["missing"]
    line = leaderboard.average_line({"average": found})
    assert line == "average 35.0, dev sets, eight tasks without WNLI, MNLI by its matched set"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Name -> content of a whole submission, all of it made up."""
    folder = tmp_path_factory.mktemp("full")
    found = leaderboard._write_submission(str(folder), {}, fill_missing=True)
    assert found["problems"] == [] and len(found["filled"]) == 11
    with zipfile.ZipFile(found["path"]) as zipped:
        return {name: zipped.read(name).decode() for name in zipped.namelist()}


def test_a_submission_is_as_gluebenchmark_com_takes_it(full):
    lines = {name: content.count("\n") - 1 for name, content in full.items()}
    assert lines == {
        "CoLA.tsv": 1063,
        "SST-2.tsv": 1821,
        "MRPC.tsv": 1725,
        "STS-B.tsv": 1379,
        "QQP.tsv": 390965,
        "MNLI-m.tsv": 9796,
        "MNLI-mm.tsv": 9847,
        "QNLI.tsv": 5463,
        "RTE.tsv": 3000,
        "WNLI.tsv": 146,
        "AX.tsv": 1104,
    }
    assert full["QNLI.tsv"].startswith("index\tprediction\n0\tentailment\n1\t")


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("RTE.tsv", "index\tprediction\n", "", "RTE.tsv does not begin with the line index"),
        ("RTE.tsv", "\n2999\tentailment", "", "RTE.tsv has 2,999 predictions, not 3,000"),
        ("RTE.tsv", "\n7\t", "\n8\t", "RTE.tsv has in line 9 not 7, tab, a prediction"),
        ("RTE.tsv", "\n7\tent", "\n7\tEnt", "RTE.tsv has in line 9 'Entailment', which is no"),
        ("WNLI.tsv", "\n0\t0", "\n0\tentailment", "WNLI.tsv has in line 2 'entailment', which"),
        ("STS-B.tsv", "\n0\t0.000", "\n0\t5.1", "STS-B.tsv has in line 2 '5.1', which is no"),
        ("STS-B.tsv", "\n0\t0.000", "\n0\tnan", "STS-B.tsv has in line 2 'nan', which is no"),
        ("AX.tsv", None, None, "it lacks AX.tsv"),
        ("more.tsv", None, "x", "more.tsv is not asked for"),
    ],
)
def test_what_it_would_not_take_is_named(full, tmp_path, name, old, new, problem):
    content = {k: v for k, v in full.items() if k != "QQP.tsv"}  # long, and not what is broken
    if old is not None:
        content[name] = full[name].replace(old, new, 1)
    elif new is None:
        del content[name]
    else:
        content[name] = new
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for each, text in content.items():
            zipped.writestr(each, text)
    found = leaderboard.submission_problems(tmp_path / "a.zip")
    assert any(each.replace("QQP.tsv, ", "").startswith(problem) for each in found)
    assert len(found) <= 4  # the one, QQP, and what a line too few does to the rest


def test_what_is_published_stands_beside():
    results = {"cola": {"metrics": {"mcc": 0.5}}, "rte": {"metrics": {"accuracy": 0.7}}}
    report = {"tasks": results, "average": leaderboard.average(results)}
    lines = [line.split() for line in leaderboard.beside_published(report, "small")]
    assert ["CoLA", "50.0", "57.0"] in lines and ["average", "-", "81.1"] in lines
    assert "78.9 after 1M updates, 80.1 after 4M updates" in " ".join(lines[-1])
    medium = leaderboard.beside_published(report, "medium-small")
    assert "79.7" in medium[-1] and medium[1].split() == ["CoLA", "50.0"]
