"""tools/evidence.py: that models are made alike, that tables say what runs found, and all of it."""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

from convbert_tf import ConvBertEncoder, config, conversion
from convbert_tf.console import UserError
from convbert_tf.modeling import storing
from convbert_tf.weights import huggingface, names
from tests.goldens import error
from tests.weights.presets_test import randomize
from tools.evidence import models, runs, study, tables

ROOT = pathlib.Path(__file__).parents[2]


def experiment(**model):
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "embedding_size": 16, "max_position_embeddings": 32}
    return config.PretrainingExperiment(
        model=config.ModelConfig(**(sizes | model)),
        data=config.DataConfig(max_seq_length=32),
        training=config.TrainingConfig(batch_size=8, num_train_steps=20),
    )


def test_attention_alone_gets_as_many_parameters_as_convbert():
    whole = experiment(hidden_size=64, intermediate_size=256)
    wanted = models.parameters(whole)
    changes = models.with_parameters(whole, models.ATTENTION, wanted)
    fitted = config.with_values(whole, changes)
    assert fitted.model.conv_type == "noconv" and fitted.model.head_ratio == 1
    a_unit = 2 * (2 * 64 + 1)  # of the intermediate size, in two layers
    assert abs(models.parameters(fitted) - wanted) <= 4 * a_unit


@pytest.mark.peers
def test_attention_alone_is_the_encoder_of_electra():
    sizes = dataclasses.replace(
        experiment().model, conv_type="noconv", head_ratio=1, linear_groups=1
    )
    model = randomize(ConvBertEncoder(sizes))
    stored, inputs = storing.describe(model), conversion.probe(sizes)
    weights = names.to_theirs(huggingface.weight_names(stored), stored.arrays)
    with conversion.without("triton"):  # see conversion.transformers_outputs
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        own = {name: value for name, value in sizes.to_dict().items() if "conv" not in name}
        theirs = transformers.ElectraModel(transformers.ElectraConfig(**own)).eval()
        state = {name.removeprefix("convbert."): torch.tensor(value) for name, value in weights}
        assert set(theirs.state_dict()) - {"embeddings.position_ids"} == set(state)
        theirs.load_state_dict(state, strict=False)
        ids, mask, segments = (
            torch.tensor(inputs[name]).long() for name in ("input_ids", "input_mask", "segment_ids")
        )
        with torch.no_grad():
            expected = theirs(ids, attention_mask=mask, token_type_ids=segments)
    assert error(conversion.outputs(model)["sequence_output"], expected[0].numpy()) < 1e-5


def test_changes_are_arguments_of_the_tools():
    changes = {"model.conv_type": "noconv", "training.learning_rate": 1e-3}
    assert models.arguments(changes) == [
        "--config.model.conv_type=noconv",
        "--config.training.learning_rate=0.001",
    ]


def test_the_size_of_another_config_leaves_the_vocabulary():
    here, other = experiment(), experiment(hidden_size=64, vocab_size=99)
    other = dataclasses.replace(other, training=config.TrainingConfig(num_train_steps=3))
    assert models.size_of(here, other) == {"model.hidden_size": 64}


def test_every_ablation_is_a_possible_model():
    for changes in models.ABLATIONS.values():
        assert config.with_values(experiment(), changes).model.hidden_size == 32


def test_what_differs_from_the_file_is_given_to_the_tools(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from convbert_tf import config\n"
        "def get_config():\n"
        "    return config.to_config_dict(config.PretrainingExperiment())\n"
    )
    changed = dataclasses.replace(
        config.PretrainingExperiment(), training=config.TrainingConfig(num_train_steps=7)
    )
    assert runs.given(str(file), changed) == ("--config.training.num_train_steps=7",)


def write_metrics(folder, lines):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def lines_of(rate, loss, slow=1.0):
    """Two loops of 10 steps and an evaluation after each; `rate` examples a second.

    In the second loop the machine is slower by the factor `slow`.
    """
    train = {"kind": "train", "time": 0.0, "examples_per_second": rate}
    held_out = {"kind": "eval", "time": 0.0, "masked_lm_loss": loss, "disc_loss": 0.5}
    held_out |= {"disc_auc": 0.75}
    lines = [each | {"step": step} for step in (10, 20) for each in (train, held_out)]
    lines[2]["examples_per_second"] /= slow
    return lines


def test_a_curve_counts_tokens_and_the_undisturbed_time_of_steps(tmp_path):
    folder = write_metrics(tmp_path / "run", lines_of(rate=4.0, loss=3.0, slow=7.0))
    points = runs.curve(folder, experiment())
    assert [point["tokens"] for point in points] == [10 * 8 * 32, 20 * 8 * 32]
    assert [point["seconds"] for point in points] == [20.0, 40.0]  # 80 examples at 4 a second
    assert runs.seconds_a_step(folder, experiment()) == 2.0


def found_of(tmp_path):
    curves = [
        runs.curve(write_metrics(tmp_path / f"{loss}", lines_of(4.0, loss)), experiment())
        for loss in (3.0, 3.2)
    ]
    scored = [{"disc_auc": 0.8}, {"disc_auc": 0.9}]
    each = {"parameters": 1234, "seconds_a_step": 2.0, "curves": curves, "reference": scored}
    return {"ConvBERT": each}


def test_the_pretraining_table_has_means_and_deviations(tmp_path):
    head, _, row = tables.pretraining_table(found_of(tmp_path)).splitlines()
    shown = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert shown["masked_lm_loss"] == "3.100 ± 0.141"
    assert shown["parameters"] == "1,234" and shown["ms a step"] == "2000"
    assert shown["AUC on the reference text"] == "0.850 ± 0.071"
    assert row.endswith("| 10, 10 |")  # the first evaluation is below 5.5 already


def test_a_plateau_is_left_at_the_first_evaluation_below_it():
    curve = [{"step": step, "masked_lm_loss": loss} for step, loss in ((1, 6), (2, 5.4), (3, 5))]
    assert tables.left_plateau(curve) == "2"
    assert tables.left_plateau(curve[:1]) == "-"


def test_the_picture_has_a_panel_for_each_metric_over_both_axes(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.svg"
    tables.draw(found_of(tmp_path), str(path))
    assert path.read_text().count('<g id="axes_') == 2 * len(tables.HELD_OUT)


def trials_of(values, metric):
    return {
        "trials": [{"metrics": {metric: value}} for value in values],
        "baseline": {metric: 0.25},
    }


def test_gains_have_their_standard_error():
    found = {
        "ConvBERT": {"rte": trials_of([0.6, 0.62, 0.64], "accuracy")},
        "attention": {"rte": trials_of([0.5, 0.52, 0.54], "accuracy")},
    }
    # Both deviate by 2 points: sqrt(4/3 + 4/3).
    (line,) = tables.gains(found, "ConvBERT", "attention")
    assert "rte +10.0 ± 1.6" in line and "mean of 1 tasks +10.00 ± 1.63" in line
    text = tables.finetuning_table(found)
    assert "| rte | accuracy | 62.0 ± 2.0 | 52.0 ± 2.0 | 25.0 |" in text


def test_documents_are_held_out_by_their_text_alone():
    texts = [f"document {i}" for i in range(4000)]
    held_out = [text for text in texts if runs.is_held_out(text)]
    assert 8 <= len(held_out) <= 36 and held_out == list(filter(runs.is_held_out, held_out))


def write_text(path, documents=900):
    """Documents of sentences of a tiny language."""
    draw = random.Random(0)
    names = ["cat", "dog", "fish", "bird", "child", "queen"]
    verbs = ["sees", "likes", "hears", "finds"]
    with path.open("w") as file:
        for number in range(documents):
            for _ in range(3):
                first, second = draw.sample(names, 2)
                file.write(f"the {first} {draw.choice(verbs)} the {second} number {number} .\n")
            file.write("\n")


CONFIG = """
from convbert_tf import config


def get_config():
    model = config.ModelConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, embedding_size=16, max_position_embeddings=64,
    )
    training = config.TrainingConfig(
        batch_size=2, num_train_steps=8, warmup_steps=2, steps_per_loop=2, eval_interval=4,
        num_eval_steps=1, learning_rate=1e-3,
    )
    data = config.DataConfig(max_seq_length=32)
    experiment = config.PretrainingExperiment(model=model, data=data, training=training)
    return config.to_config_dict(experiment)
"""


def evidence(tmp_path, *arguments):
    command = [sys.executable, str(ROOT / "tools/evidence.py"), f"--config={tmp_path}/tiny.py"]
    return subprocess.run(
        [*command, f"--output_dir={tmp_path}/out", *arguments],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )


def test_tasks_that_glue_has_left_out_have_no_scores(tmp_path, monkeypatch):
    def run_tool(name, *arguments):  # of GLUE's folder that holds RTE alone
        folder = tmp_path / "finetuning" / "ConvBERT" / "glue" / "rte"
        folder.mkdir(parents=True)
        (folder / "trials.json").write_text(json.dumps({"trials": []}))

    monkeypatch.setattr(runs, "run_tool", run_tool)
    plan = runs.Plan("none.py", experiment(), str(tmp_path))
    found = runs.finetune(plan, "ConvBERT", "preset", {"glue": "glue"}, {}, 2)
    assert list(found) == ["rte"]
    with pytest.raises(UserError, match=r"--tagging_dir=none is no folder"):
        study.finetuning(plan, 0, {"glue": "tfds:glue", "tagging": "none"}, {}, 2)


def test_records_that_are_kept_are_told(tmp_path, capsys):
    for name in ("train", "heldout"):
        (tmp_path / "records" / name).mkdir(parents=True)
        (tmp_path / "records" / name / "manifest.json").touch()
    plan = runs.Plan("none.py", experiment(), str(tmp_path))
    runs.prepare(plan, [])
    assert not capsys.readouterr().out
    runs.prepare(plan, ["other.txt"])
    assert "are kept; --text is not read again" in capsys.readouterr().out


@pytest.mark.slow
def test_a_table_from_text(tmp_path):
    write_text(tmp_path / "text.txt")
    (tmp_path / "tiny.py").write_text(CONFIG)
    probed = evidence(
        tmp_path,
        "--table=probe",
        f"--text={tmp_path}/text.txt",
        "--learning_rates=1e-3",
        "--warmup_steps=4",
        "--probe_steps=8",
    )
    assert probed.returncode == 0, probed.stderr
    chosen = json.loads((tmp_path / "out/probe.json").read_text())
    assert [each["training.learning_rate"] for each in chosen.values()] == [1e-3, 1e-3]
    assert (tmp_path / "out/probe.md").read_text().count("| ConvBERT | 0.001 |") == 2
    scaled = evidence(tmp_path, "--table=scaling", f"--sizes={tmp_path}/tiny.py", "--minutes=0.01")
    assert scaled.returncode == 0, scaled.stderr
    assert "| tiny |" in (tmp_path / "out/scaling.md").read_text()
    (tmp_path / "out/same_time.json").write_text('{"model.intermediate_size": 96}')
    done = evidence(tmp_path, "--table=pretraining", "--seeds=0")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/pretraining.json").read_text())
    assert list(report) == ["ConvBERT", "attention, same parameters", "attention, same time"]
    for each in report.values():
        assert each["curves"][0][-1]["step"] == 8 and 0 <= each["reference"][0]["disc_auc"] <= 1
    assert (tmp_path / "out/pretraining.svg").stat().st_size > 1000
    assert "Masked language modelling alone" in (tmp_path / "out/pretraining.md").read_text()


def test_what_is_no_number_is_told(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    wrong = [("seeds", "x"), ("learning_rates", "1e-3,-1"), ("warmup_steps", "2.5")]
    for flag, text in (*wrong, ("seeds", "1,1"), ("learning_rates", "")):
        done = evidence(tmp_path, "--table=probe", f"--{flag}={text}")
        assert done.returncode == 1 and f"--{flag} takes" in done.stderr
        assert "Traceback" not in done.stderr


def test_without_text_and_records_it_says_so(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    done = evidence(tmp_path, "--table=pretraining")
    assert done.returncode == 1 and "name the texts by --text" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
