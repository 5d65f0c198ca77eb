"""Several runs of one task: trials, which differ in their seeds, and grids, in their settings.

    model_dir/trial-1 ...            a run each, as finetuning.run leaves it
    model_dir/trials.json            their scores: each, mean, median, deviation, best, ensemble
    model_dir/learning_rate=0.0001   of a grid a run each, or its trials
    model_dir/grid.json              their scores
    model_dir/preset                 that of the best trial, or of the best run of a grid
    model_dir/predictions            those of the trials' ensemble

Runs that are finished are kept when the same command is given again; see finetuning.finished.
"""

import dataclasses
import gc
import os
import shutil
import statistics

import keras
import numpy as np

from convbert_tf import files
from convbert_tf.config import CONFIG_FILE
from convbert_tf.config.grid import combinations
from convbert_tf.console import UserError, say
from convbert_tf.training import checkpoints, monitoring, scores
from convbert_tf.workflows import finetuning


def run(experiment, grid=None, allow_config_change=False):
    """Fine-tunes as many times as `experiment` and `grid` say, and prints the scores.

    Args:
        experiment: FinetuningExperiment; with task.num_trials above 1 each setting is trained
            with as many seeds, from training.seed on.
        grid: "section.key" of the config -> list of values; each combination is trained.
        allow_config_change: as for finetuning.run.

    Returns:
        The content of grid.json or trials.json, or the metrics of a single run.

    Raises:
        UserError: a setting is impossible, told before anything is trained; a run ends with an
            error; or model_dir holds runs of another kind.
    """
    kind = scores.GRID_FILE if grid else scores.TRIALS_FILE
    kind = kind if grid or experiment.task.num_trials > 1 else CONFIG_FILE
    _check_kind(experiment.training.model_dir, kind)
    if grid:
        return _run_grid(experiment, grid, allow_config_change)
    if experiment.task.num_trials > 1:
        _check([experiment])
        return _run_trials(experiment, allow_config_change)
    results = finetuning.run(experiment, allow_config_change)
    for name, value in results.items():
        say(f"{name}: {value:.4f}")
    return results


def _check_kind(model_dir, kind):
    """Refuses a model_dir that holds runs of another kind than those that are asked for."""
    kinds = {
        CONFIG_FILE: "a single run",
        scores.TRIALS_FILE: "trials",
        scores.GRID_FILE: "a grid",
    }
    for file, name in kinds.items():
        if file != kind and model_dir and os.path.exists(os.path.join(model_dir, file)):
            raise UserError(
                f"{model_dir} holds {name}, not {kinds[kind]}: choose another model_dir."
            )


def _check(experiments):
    """Refuses what is known to be impossible in one of `experiments`; returns the last's Start."""
    checked, start = [], None
    for experiment in experiments:
        task, options = dataclasses.asdict(experiment.task), experiment.training
        # What decides of the data, which take long to check.
        key = task | {"num_trials": 1, "num_train_epochs": 1.0}
        key |= {name: getattr(options, name) for name in ("batch_size", "best_metric", "strategy")}
        if key not in checked:
            single = _changed(experiment, "task", num_trials=1)
            start = finetuning.prepare(single)
            finetuning.check(single, start)
            checked.append(key)
    return start


def _changed(experiment, section, **values):
    changed = dataclasses.replace(getattr(experiment, section), **values)
    return dataclasses.replace(experiment, **{section: changed})


def _metric(experiment, start):
    """The name of the metric by which runs are compared."""
    options = finetuning.with_best_metric(experiment.training, start.family)
    return options.best_metric or start.family.main_metric


def _best(metric, scored):
    """The first of `scored`, dicts with `metrics`, with the best value of `metric`."""
    return max(scored, key=lambda each: checkpoints.sign(metric) * each["metrics"][metric])


def _run(experiment, allow_config_change, work_dir):
    """finetuning.run; what the model took of memory is free again after it."""
    try:
        return finetuning.run(experiment, allow_config_change, work_dir)
    finally:
        keras.utils.clear_session()
        gc.collect()


def _take_preset(source, model_dir):
    """Leaves a copy of the preset of the run in `source` as that of `model_dir`."""
    target = os.path.join(model_dir, finetuning.PRESET)
    partial = f"{target}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(os.path.join(source, finetuning.PRESET), partial)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(partial, target)


# --- trials ---


def _members(experiment):
    """The experiments of all trials of `experiment`."""
    options = experiment.training
    single = _changed(experiment, "task", num_trials=1)
    return [
        _changed(
            single,
            "training",
            seed=options.seed + number,
            model_dir=os.path.join(options.model_dir, f"trial-{number + 1}"),
        )
        for number in range(experiment.task.num_trials)
    ]


def _run_trials(experiment, allow_config_change, work_dir=None):
    """Runs all trials of `experiment`; returns the content of trials.json."""
    model_dir, members = experiment.training.model_dir, _members(experiment)
    of_grid, work_dir = work_dir is not None, work_dir or os.path.join(model_dir, "records")
    done = []
    with files.only_one(model_dir):
        path = os.path.join(model_dir, scores.TRIALS_FILE)
        if not os.path.exists(path):  # a mark of what is in model_dir
            files.write_json(path, {"num_trials": len(members), "trials": []})
        for number, member in enumerate(members, 1):
            say(f"trial {number} of {len(members)}, seed {member.training.seed}")
            _run(member, allow_config_change, work_dir)
            done.append(_result(member))
        start = finetuning.prepare(members[0])
        report = summarize(done, _metric(experiment, start))
        _take_preset(os.path.join(model_dir, report["best"]), model_dir)
        report["ensemble"] = _ensemble(start, members, model_dir, work_dir)
        files.write_json(path, report)
        if not of_grid:
            seeds = {"training.seed": [each["seed"] for each in done]}
            monitoring.write_comparison(model_dir, seeds, report["mean"])
    for line in scores.trials_table(report):
        say(line)
    preset = os.path.join(model_dir, finetuning.PRESET)
    say(f"the best is {report['best']}; its model is in {preset}")
    return report


def _result(experiment):
    """What a run has reached, of its eval_results.json."""
    options = experiment.training
    report = files.read_json(os.path.join(options.model_dir, scores.RESULTS_FILE), "results")
    name = os.path.basename(options.model_dir)
    kept = {key: report[key] for key in ("step", "metrics", "baseline", "seconds")}
    return {"name": name, "seed": options.seed} | kept


def summarize(trials, metric):
    """The content of trials.json without the ensemble.

    Args:
        trials: dicts with name, metrics (dict), baseline (dict) and seconds.
        metric: the name of the metric that decides which is best.
    """
    names = list(trials[0]["metrics"])
    columns = {name: [trial["metrics"][name] for trial in trials] for name in names}
    deviation = statistics.stdev if len(trials) > 1 else lambda values: 0.0
    return {
        "metric": metric,
        "num_trials": len(trials),
        "trials": [{k: v for k, v in trial.items() if k != "baseline"} for trial in trials],
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "median": {name: statistics.median(values) for name, values in columns.items()},
        "deviation": {name: deviation(values) for name, values in columns.items()},
        "best": _best(metric, trials)["name"],
        "baseline": trials[0]["baseline"],
        "seconds": sum(trial["seconds"] for trial in trials),
    }


def _ensemble(start, members, model_dir, work_dir):
    """Metrics of the trials' ensemble, whose predictions are written; None where it has none."""
    family, results = start.family, {}
    for split in family.evaluation_splits():
        paths = [finetuning.outputs_file(each.training.model_dir, split) for each in members]
        if not all(map(os.path.exists, paths)):
            say("no ensemble: the outputs of these models have no mean")
            return None
        evaluation, outputs = family.evaluation(split, work_dir), []
        for path in paths:
            with np.load(path) as file:
                outputs.append(dict(file))
        mean = evaluation.ensemble(outputs)
        results[split] = evaluation.score(mean)
        evaluation.write(mean, os.path.join(model_dir, finetuning.PREDICTIONS))
    return finetuning.by_split(results)


# --- grids ---


def _run_grid(experiment, grid, allow_config_change):
    """Runs all combinations; returns the content of grid.json. A run with an error ends alone."""
    root = experiment.training.model_dir
    made = combinations(grid, experiment)
    start = _check([each.experiment for each in made])
    metric = _metric(experiment, start)
    path, runs = os.path.join(root, scores.GRID_FILE), []
    with files.only_one(root):
        if not os.path.exists(path):  # a mark of what is in model_dir
            files.write_json(path, {"metric": metric, "grid": grid, "runs": []})
        for number, each in enumerate(made, 1):
            say(f"{each.name}, {number} of {len(made)}")
            result = {"name": each.name, "values": each.values}
            try:
                result |= _combination(each, root, allow_config_change)
            except UserError as error:
                say(f"{each.name} ended with an error: {error}")
                result["error"] = str(error)
            runs.append(result)
            files.write_json(path, {"metric": metric, "grid": grid, "runs": runs})
        good = [each for each in runs if "metrics" in each]
        if good:
            best = _best(metric, good)
            _take_preset(os.path.join(root, best["name"]), root)
            files.write_json(
                path, {"metric": metric, "grid": grid, "runs": runs, "best": best["name"]}
            )
            seeds = [each.training.seed for each in _members(experiment)]
            columns = grid | ({"training.seed": seeds} if len(seeds) > 1 else {})
            monitoring.write_comparison(root, columns, best["metrics"])
    report = files.read_json(path, "the scores of a grid", scores.Grid)
    for line in scores.grid_table(report):
        say(line)
    if len(good) < len(runs):
        raise UserError(f"{len(runs) - len(good)} of {len(runs)} runs ended with an error.")
    say(f"the best is {best['name']}; its model is in {os.path.join(root, finetuning.PRESET)}")
    return report


def _combination(combination, root, allow_config_change):
    """Runs a combination of a grid; what of grid.json is about it."""
    work_dir = os.path.join(root, "records")
    model_dir = os.path.join(root, combination.name)
    experiment = _changed(combination.experiment, "training", model_dir=model_dir)
    several = experiment.task.num_trials > 1
    _check_kind(model_dir, scores.TRIALS_FILE if several else CONFIG_FILE)
    if several:
        report = _run_trials(experiment, allow_config_change, work_dir)
        return {"metrics": report["mean"]} | {
            key: report[key]
            for key in ("num_trials", "deviation", "ensemble", "baseline", "seconds")
        }
    _run(experiment, allow_config_change, work_dir)
    result = _result(experiment)
    return {key: result[key] for key in ("step", "metrics", "baseline", "seconds")}
