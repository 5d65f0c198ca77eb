"""All of GLUE from one model: task by task, a table, the average, the zip of gluebenchmark.com.

model_dir/TASK/             the run of a task, or its trials, with result.json: scores and time
model_dir/TASK/test/        the predictions for its test sets
model_dir/glue.md, .json    the table
model_dir/submission.zip    the test sets' predictions as gluebenchmark.com takes them
"""

import dataclasses
import gc
import io
import math
import os
import zipfile

import keras

from convbert_tf import config, console, files
from convbert_tf.console import UserError, say
from convbert_tf.modeling import presets
from convbert_tf.tasks import glue
from convbert_tf.training import identity, scores
from convbert_tf.weights import formats
from convbert_tf.workflows import evaluation, finetuning, trials

# As ELECTRA's and ConvBERT's papers average: eight tasks, without WNLI, whose test set is built
# against what its training set suggests; MNLI counts once, by its matched set.
AVERAGED = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
TASKS = (*AVERAGED, "wnli")
# Name of a file in the zip, without .tsv -> its task and split, and its number of predictions.
SUBMISSION = {
    "CoLA": ("cola", "test", 1063),
    "SST-2": ("sst2", "test", 1821),
    "MRPC": ("mrpc", "test", 1725),
    "STS-B": ("stsb", "test", 1379),
    "QQP": ("qqp", "test", 390965),
    "MNLI-m": ("mnli", "test", 9796),
    "MNLI-mm": ("mnli", "test_mismatched", 9847),
    "QNLI": ("qnli", "test", 5463),
    "RTE": ("rte", "test", 3000),
    "WNLI": ("wnli", "test", 146),
    "AX": ("mnli", "ax", 1104),
}
_RESULT_FILE = "result.json"
_BASE_HIDDEN_SIZE = 768  # from which on the original's learning rate is 1e-4
# Averages of ConvBERT's paper (arXiv 2008.02496, table of GLUE's test set) by updates, and dev
# scores of ELECTRA's README (github.com/google-research/electra), in the order of AVERAGED.
PUBLISHED = {
    "small": (
        {"1M": 78.9, "4M": 80.1},
        "ELECTRA-Small",
        (57.0, 91.2, 88.0, 87.5, 89.0, 81.3, 88.4, 66.7),
    ),
    "medium-small": ({"1M": 79.7, "4M": 81.1}, None, None),
    "base": (
        {"1M": 84.9, "4M": 86.4},
        "ELECTRA-Base",
        (67.7, 95.1, 89.5, 91.2, 91.5, 88.8, 93.2, 82.7),
    ),
}


# --- the tasks, one by one ---


def run(
    init_from,
    data_dir,
    model_dir,
    tasks=TASKS,
    epochs=None,
    num_trials=1,
    fill_missing=False,
    **training,
):
    """Fine-tunes `init_from` on each of `tasks` that is there; returns the report.

    A task that an earlier run with the same settings and data has finished is kept. Of several
    trials the scores are the mean's, and the test sets are predicted by the best.

    Args:
        init_from: preset or Hugging Face directory, or "hf://owner/name".
        data_dir: the folder with GLUE's folders, or what else TaskConfig.data_dir takes.
        model_dir: where all goes.
        tasks: names.
        epochs: of every task; None: the original's, 3 and for RTE and STS-B 10.
        num_trials: seeds of each task, from training["seed"] on.
        fill_missing: whether the zip gets made-up predictions for test sets that are not there,
            without which gluebenchmark.com does not take it.
        **training: values of TrainingConfig; without a learning rate the original's is taken,
            3e-4, for base 1e-4.

    Raises:
        UserError: none of the tasks is there, one is broken, or model_dir holds another run of it.
    """
    names = [config.glue_task(name)[0] for name in tasks]
    sources = {name: glue.source(name, data_dir) for name in names}
    there = [name for name in names if all(map(sources[name].has, ("train", "dev")))]
    absent = [name for name in names if name not in there]
    if not there:
        raise UserError(f"{data_dir} has train and dev sets of none of {', '.join(names)}.")
    if absent:
        say(f"without train and dev sets, so left out: {', '.join(absent)}")
    if training.get("learning_rate") is None:
        hidden_size = formats.read(init_from).model_config.hidden_size
        training["learning_rate"] = 1e-4 if hidden_size >= _BASE_HIDDEN_SIZE else 3e-4
    results = {}
    for number, name in enumerate(there, 1):
        say(f"\n[{number}/{len(there)}] {_title(name)}")
        task = {"init_from": init_from, "data_dir": data_dir, "num_trials": num_trials}
        experiment = _experiment(name, epochs, model_dir, task, training)
        results[name] = _one(experiment, sources[name])
        say("\n".join(["", *table(results)]))
    report = {"preset": init_from, "data_dir": data_dir, "tasks": results}
    report |= {"average": average(results)}
    report["submission"] = _write_submission(model_dir, results, fill_missing)
    files.write_json(os.path.join(model_dir, "glue.json"), report)
    page = "\n".join(markdown(report)) + "\n"
    files.write_bytes(os.path.join(model_dir, "glue.md"), page.encode("utf-8"))
    return report


def _title(name):
    return glue.TASKS[name].folder


def _experiment(name, epochs, model_dir, task, training):
    epochs = config.glue_task(name)[1] if epochs is None else float(epochs)
    options = config.finetuning_defaults(model_dir=os.path.join(model_dir, name), **training)
    return config.FinetuningExperiment(
        config.TaskConfig(name=name, num_train_epochs=epochs, **task), options
    )


def _one(experiment, source):
    """Runs a task, or its trials, and predicts its test sets; what is finished is kept."""
    model_dir = experiment.training.model_dir
    path = os.path.join(model_dir, _RESULT_FILE)
    found = os.path.exists(path)
    before = files.read_json(path, "a result of tools/glue.py", dict) if found else {}
    directory = presets.fetch(experiment.task.init_from)
    preset = identity.hashes([os.path.join(directory, config.CONFIG_FILE)])
    if before.get("preset", preset) != preset:
        raise UserError(
            f"{model_dir} holds a run from another model that lay in {directory} before: name "
            "another model_dir, or remove it."
        )
    trials.run(experiment, allow_config_change=None)
    keras.backend.clear_session()  # of the models of earlier tasks nothing is needed
    gc.collect()
    result = _scores(model_dir, experiment.task.num_trials) | {"preset": preset}
    result["tests"] = _predict_tests(experiment, source, before.get("tests", {}))
    files.write_json(path, result)
    return result


def _scores(model_dir, num_trials):
    """Of the finished run, or trials, in `model_dir`: metrics, deviation, baseline, seconds."""
    if num_trials == 1:
        report = files.read_json(os.path.join(model_dir, scores.RESULTS_FILE), "its scores", dict)
        return {key: report[key] for key in ("metrics", "baseline", "seconds")}
    report = files.read_json(os.path.join(model_dir, scores.TRIALS_FILE), "its scores", dict)
    kept = {key: report[key] for key in ("deviation", "baseline", "seconds")}
    return {"metrics": report["mean"], **kept}


def _predict_tests(experiment, source, done):
    """Predicts the task's test sets that are there: stem -> hashes of the files they were of."""
    name, model_dir = experiment.task.name, experiment.training.model_dir
    splits = {stem: split for stem, (task, split, _) in SUBMISSION.items() if task == name}
    found = {stem: split for stem, split in splits.items() if source.has(split)}
    model = os.path.join(model_dir, finetuning.PRESET, config.CONFIG_FILE)  # has its weights' hash
    hashes = {stem: identity.hashes([model, *source.files(split)]) for stem, split in found.items()}
    wanted = [
        split
        for stem, split in found.items()
        if done.get(stem) != hashes[stem] or not os.path.exists(_predicted(model_dir, stem, split))
    ]
    if wanted:
        init_from = os.path.join(model_dir, finetuning.PRESET)
        task = dataclasses.replace(experiment.task, init_from=init_from, num_trials=1)
        experiment = dataclasses.replace(experiment, task=task)
        evaluation.evaluate(experiment, wanted, os.path.join(model_dir, "test"))
    return hashes


def _predicted(model_dir, stem, split):
    return os.path.join(model_dir, "test", "predictions", split, f"{stem}.tsv")


# --- what is shown ---


def average(results):
    """The mean of the main scores of AVERAGED, in percent, and of which tasks it is."""
    there = [name for name in AVERAGED if name in results]
    scores = [_main(name, results[name]["metrics"]) for name in there]
    mean = sum(scores) / len(scores) if scores else None
    missing = [name for name in AVERAGED if name not in there]
    return {"score": mean, "tasks": there, "missing": missing}


def _main(name, metrics):
    return 100 * metrics[glue.main_metric(glue.TASKS[name])]


def _rows(results):
    for name, result in results.items():
        metrics, baseline = result["metrics"], result["baseline"]
        deviation = result.get("deviation")
        metric = glue.main_metric(glue.TASKS[name])
        others = [f"{k} {100 * v:.1f}" for k, v in metrics.items() if k != metric]
        yield {
            "task": _title(name),
            "metric": metric,
            "score": f"{100 * metrics[metric]:.1f}"
            + (f" ± {100 * deviation[metric]:.1f}" if deviation else ""),
            "baseline": f"{100 * baseline[metric]:.1f}" if metric in baseline else "",
            "time": console.duration(result["seconds"]),
            "others": ", ".join(others),
        }


def table(results):
    """Lines of a table of the tasks so far; dev scores in percent."""
    rows = list(_rows(results))
    return scores.table([list(rows[0]), *(row.values() for row in rows)])


def average_line(report):
    """The average in a sentence that says of what it is."""
    found = report["average"]
    if found["score"] is None:
        return "no average: none of its eight tasks is there"
    what = f"average {found['score']:.1f}, dev sets, "
    if not found["missing"]:
        return f"{what}eight tasks without WNLI, MNLI by its matched set"
    return (
        f"{what}{len(found['tasks'])} of its eight tasks only; without "
        f"{', '.join(map(_title, found['missing']))}, so it compares with no other"
    )


def markdown(report):
    """Lines of a page with the table, the average and what the zip is worth."""
    rows = list(_rows(report["tasks"]))
    lines = ["# GLUE, dev sets, in percent", "", f"- preset: {report['preset']}"]
    lines += [f"- data: {report['data_dir']}", f"- {average_line(report)}", ""]
    lines += [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return [*lines, "", "## Submission", "", *(f"- {line}" for line in submission_lines(report))]


def submission_lines(report):
    """What is in the zip, and why gluebenchmark.com would not take it, if so."""
    zipped = report["submission"]
    lines = [f"predicted: {', '.join(zipped['predicted']) or 'nothing'}"]
    if zipped["filled"]:
        lines.append(f"made up, so worth nothing: {', '.join(zipped['filled'])}")
    if not zipped["problems"]:
        return [*lines, f"{zipped['path']} has all that gluebenchmark.com asks for"]
    return [*lines, "gluebenchmark.com would not take it:", *zipped["problems"]]


def beside_published(report, size):
    """Lines of the scores beside what is published of the `size`, a key of PUBLISHED."""
    averages, peer, scores = PUBLISHED[size]
    results, found = report["tasks"], report["average"]
    peers = dict(zip(AVERAGED, scores, strict=True)) if scores else {}
    lines = [f"{'':10} {'here, dev':>10} {f'{peer}, dev' if peer else '':>20}"]
    for name in AVERAGED:
        ours = f"{_main(name, results[name]['metrics']):.1f}" if name in results else "-"
        lines.append(f"{_title(name):10} {ours:>10} {peers.get(name, ''):>20}")
    theirs = f"{sum(peers.values()) / len(peers):.1f}" if peers else ""
    ours = "-" if found["missing"] else f"{found['score']:.1f}"
    lines.append(f"{'average':10} {ours:>10} {theirs:>20}")
    shown = ", ".join(f"{value} after {updates} updates" for updates, value in averages.items())
    lines = [line.rstrip() for line in lines]
    return [*lines, f"ConvBERT-{size} in its paper, average on the test sets: {shown}"]


# --- the zip ---


def _write_submission(model_dir, results, fill_missing):
    """Writes the zip of what is predicted; what is in it, and what is wrong with it."""
    path, predicted, filled = os.path.join(model_dir, "submission.zip"), [], []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for stem, (task, split, number) in SUBMISSION.items():
            if task in results and stem in results[task]["tests"]:
                source = _predicted(os.path.join(model_dir, task), stem, split)
                zipped.write(source, f"{stem}.tsv")
                predicted.append(stem)
            elif fill_missing:
                answer = (glue.TASKS[task].labels or ("0.000",))[0]
                lines = ["index\tprediction", *(f"{i}\t{answer}" for i in range(number))]
                zipped.writestr(f"{stem}.tsv", "\n".join(lines) + "\n")
                filled.append(stem)
    files.write_bytes(path, buffer.getvalue())
    found = {"path": path, "predicted": predicted, "filled": filled}
    return found | {"problems": submission_problems(path)}


def submission_problems(path):
    """Why gluebenchmark.com would not take the zip at `path`; nothing in the list if it would."""
    problems = []
    with zipfile.ZipFile(path) as zipped:
        names = set(zipped.namelist())
        for stem, (task, _, number) in SUBMISSION.items():
            if f"{stem}.tsv" in names:
                lines = zipped.read(f"{stem}.tsv").decode("utf-8").split("\n")
                problems += [f"{stem}.tsv {p}" for p in _file_problems(lines, task, number)]
    known = [f"{stem}.tsv" for stem in SUBMISSION]
    if missing := [name for name in known if name not in names]:
        problems.append(f"it lacks {', '.join(missing)}")
    return problems + [f"{name} is not asked for" for name in sorted(names.difference(known))]


def _file_problems(lines, task, number):
    """What is wrong with the lines of a file, the first of each kind."""
    if lines[-1] == "":
        lines = lines[:-1]
    if lines[:1] != ["index\tprediction"]:
        yield "does not begin with the line index, tab, prediction"
    rows = [line.split("\t") for line in lines[1:]]
    if len(rows) != number:
        yield f"has {len(rows):,} predictions, not {number:,}"
    for i, row in enumerate(rows):
        if len(row) != 2 or row[0] != str(i):
            yield f"has in line {i + 2} not {i}, tab, a prediction"
            return
        if not _is_answer(row[1], glue.TASKS[task]):
            yield f"has in line {i + 2} {row[1]!r}, which is no answer of {_title(task)}"
            return


def _is_answer(text, task):
    if not task.is_regression:
        return text in task.labels
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and 0 <= value <= task.max_score
