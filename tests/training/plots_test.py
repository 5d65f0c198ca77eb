import json

import pytest

from convbert_tf.console import UserError
from convbert_tf.training import plots


def write_run(folder, lines):
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 9, "kind": "tr')  # cut by a kill


def some_lines():
    train = [{"step": s, "kind": "train", "disc_auc": 0.5 + s / 100} for s in (10, 20, 30)]
    return [*train, {"step": 30, "kind": "eval", "disc_auc": 0.77, "disc_loss": None}]


def test_lines_are_read_without_the_one_that_was_cut(tmp_path):
    write_run(tmp_path / "run", some_lines())
    assert plots.read_metrics(str(tmp_path / "run")) == some_lines()


def test_picture_has_a_panel_a_metric_and_both_curves(tmp_path):
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "first", some_lines())
    write_run(tmp_path / "second", some_lines())
    runs = [str(tmp_path / "first"), str(tmp_path / "second")]
    plots.plot_run(runs, str(tmp_path / "curves.svg"), ["disc_auc"])
    svg = (tmp_path / "curves.svg").read_text()
    for text in ("disc_auc", "first: held out", "second: training", "step"):
        assert f"<!-- {text} -->" in svg
    plots.plot_run(runs[:1], str(tmp_path / "curves.png"), ["disc_auc"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_missing_run_metric_or_broken_line_is_one_clear_error(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="name the model_dir"):
        plots.read_metrics(str(tmp_path))
    write_run(tmp_path / "run", some_lines())
    with pytest.raises(UserError, match="no metric 'f1'"):
        plots.plot_run([str(tmp_path / "run")], str(tmp_path / "x.svg"), ["f1"])
    for path, metrics, more, message in (
        ("x.svg", [], [], "no metric is named"),
        ("x.xyz", ["disc_auc"], [], "x.xyz must end in .svg or .png"),
        ("x.svg", ["disc_auc"], [str(tmp_path / "other" / "run")], "folders of the same name"),
    ):
        with pytest.raises(UserError, match=message):
            plots.plot_run([str(tmp_path / "run"), *more], str(tmp_path / path), metrics)
    assert not (tmp_path / "x.svg").exists()
    for line in ("no json", "3", '{"step": 1}', '{"step": "1", "kind": "eval"}', "\xff"):
        (tmp_path / "run" / "metrics.jsonl").write_text(line + "\n", encoding="latin-1")
        with pytest.raises(UserError, match="damaged"):
            plots.read_metrics(str(tmp_path / "run"))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "kind": "eval", "f1": "a"}\n')
    with pytest.raises(UserError, match="line 1 is none of a run's metrics"):
        plots.read_metrics(str(tmp_path / "run"))
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="there are no metrics yet in"):
        plots.plot_run([str(tmp_path / "run")], str(tmp_path / "x.svg"))


def test_panels_are_those_of_what_the_runs_have(tmp_path):
    pytest.importorskip("matplotlib")
    train = {"step": 10, "kind": "train", "loss": 2.0, "gradient_norm": 1.0}
    write_run(tmp_path / "cola", [train, {"step": 10, "kind": "eval", "mcc": 0.1, "accuracy": 0.7}])
    write_run(tmp_path / "squad", [train, {"step": 10, "kind": "eval", "f1": 4.0, "total": 9}])
    write_run(tmp_path / "own", [{"step": 10, "kind": "eval", "bleu": 4.0, "time": 1.0}])
    for names, panels in {
        ("cola",): ["loss", "mcc", "accuracy"],
        ("squad",): ["loss", "f1", "gradient_norm"],
        ("own",): ["bleu"],
    }.items():
        runs = [str(tmp_path / name) for name in names]
        plots.plot_run(runs, str(tmp_path / "curves.svg"))
        svg = (tmp_path / "curves.svg").read_text()
        assert [name for name in panels if f"<!-- {name} -->" in svg] == panels
        assert "<!-- held out -->" in svg  # a legend of both kinds of curve
    with pytest.raises(UserError, match="no metric 'time' in .*; there are bleu"):
        plots.plot_run([str(tmp_path / "own")], str(tmp_path / "x.svg"), ["time"])
