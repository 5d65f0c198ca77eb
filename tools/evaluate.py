r"""Scores a fine-tuned model on splits of a task: metrics, classes, confusion, worst mistakes.

Of a run of tools/finetune.py, on the task that it was trained on:

    python tools/evaluate.py --run=runs/sst2 --split=dev

Of any preset, Hugging Face directory or hf://owner/name whose head fits the task:

    python tools/evaluate.py --config=configs/finetune_glue.py:sst2 \
        --config.task.init_from=models/sst2 --config.task.data_dir=glue/SST-2 \
        --split=dev,test --output_dir=reports/sst2

A split without labels, as GLUE's test sets, is predicted and not scored. Leaves in output_dir, for
each split: SPLIT.md and SPLIT.json, the report; predictions/SPLIT/, in the form that the task's
benchmark takes; event files for TensorBoard; and of questions SPLIT.html, a page with the answers,
right and wrong, in their contexts.
"""

import dataclasses
import os

from absl import flags

from convbert_tf import config, console, files

CONFIG = config.ConfigFlag(
    config.FinetuningExperiment(training=config.finetuning_defaults()),
    "A file of configs/, with :TASK; or give --run.",
    required=False,
)
RUN = flags.DEFINE_string("run", None, "model_dir of a run, whose task and preset are taken.")
SPLIT = flags.DEFINE_list("split", ["dev"], "Splits of the task's data: dev,test for two.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Of --run: other data than it was trained on.")
DEV_FILE = flags.DEFINE_string(
    "dev_file",
    None,
    "Of --run: another file to score as its split dev, of questions, tags or rows of one's own.",
)
TEST_FILE = flags.DEFINE_string(
    "test_file", None, "As dev_file, to predict as --split=test, with or without labels or tags."
)
OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the reports go; with --run by default reports/ in it."
)

# Tasks whose config can name their files.
_WITH_FILES = ("squad_v1", "squad_v2", "tokens", config.OWN_TASK)


def main(_):
    experiment, output_dir = CONFIG.experiment(), OUTPUT_DIR.value
    if (experiment is None) == (RUN.value is None):
        raise console.UserError("set either --run, or --config and values of it.")
    if RUN.value is not None:
        experiment = _of_run(RUN.value)
        output_dir = output_dir or os.path.join(RUN.value, "reports")
    for flag in (DATA_DIR, DEV_FILE, TEST_FILE) if RUN.value is None else ():
        if flag.value is not None:
            raise console.UserError(
                f"--{flag.name} goes with --run; here it is --config.task.{flag.name}."
            )
    if not output_dir:
        raise console.UserError("set --output_dir.")
    if not any(SPLIT.value):
        raise console.UserError("--split names no split: --split=dev, or dev,test for two.")

    console.load_tensorflow("orbit")
    from convbert_tf.tasks import reports
    from convbert_tf.workflows import evaluation

    for report in evaluation.evaluate(experiment, SPLIT.value, output_dir).values():
        for line in reports.brief(report):
            console.say(line)
    console.say(f"the reports are in {output_dir}")


def _of_run(model_dir):
    """The experiment of the run in `model_dir`, with its own preset to start from."""
    for name, kind in (("trials.json", "trials"), ("grid.json", "a grid")):
        if os.path.exists(os.path.join(model_dir, name)):
            best = files.read_json(os.path.join(model_dir, name), f"the scores of {kind}", dict)
            raise console.UserError(
                f"{model_dir} holds {kind}: name one of the runs in it, as "
                f"--run={os.path.join(model_dir, str(best.get('best', 'RUN')))}, the best."
            )
    path = os.path.join(model_dir, config.CONFIG_FILE)
    values = files.read_json(path, "the config of a fine-tuning run")
    try:
        experiment = config.from_config_dict(config.FinetuningExperiment, values)
    except console.UserError as error:
        raise console.UserError(f"{path} is of no fine-tuning run: {error}") from None
    if not os.path.exists(os.path.join(model_dir, "preset", config.CONFIG_FILE)):
        raise console.UserError(f"the run in {model_dir} has made no preset yet: let it end.")
    changes = {"init_from": os.path.join(model_dir, "preset")}
    if DATA_DIR.value is not None:  # and not the run's own files
        if experiment.task.name == config.OWN_TASK:
            raise console.UserError("a run on texts of one's own takes --dev_file, no --data_dir.")
        changes |= dict.fromkeys(("train_file", "dev_file", "test_file"), "")
        changes["data_dir"] = DATA_DIR.value
    for flag in (DEV_FILE, TEST_FILE):
        if flag.value is None:
            continue
        if experiment.task.name not in _WITH_FILES:
            raise console.UserError(
                f"{experiment.task.name} takes --data_dir, and no --{flag.name}."
            )
        changes[flag.name] = flag.value
    if DEV_FILE.value and experiment.task.name == config.OWN_TASK and not experiment.task.dev_file:
        # A part of this file was held out and not trained on: no row of it is a training row.
        changes |= {"train_file": "", "split_column": ""}
    return dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, **changes))


if __name__ == "__main__":
    console.run(main, CONFIG.help)
