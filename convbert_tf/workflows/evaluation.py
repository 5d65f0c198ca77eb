"""A fine-tuned model scored on splits of its task."""

import dataclasses
import os
import tempfile

import tensorflow as tf

from convbert_tf.config import OWN_TASK, check_length
from convbert_tf.console import Progress, UserError
from convbert_tf.files import make_folder
from convbert_tf.modeling import presets
from convbert_tf.tasks import reports
from convbert_tf.workflows import answer_pages, finetuning
from convbert_tf.workflows.outputs import Predictor


def evaluate(experiment, splits, output_dir):
    """Predicts splits of a task with a fine-tuned model, and scores those that have labels.

    Leaves in `output_dir`: a report on each split (see reports.py), predictions/SPLIT/ in the form
    that the task's benchmark takes, event files with the same for TensorBoard, and of questions
    SPLIT.html, their answers in their contexts.

    Args:
        experiment: FinetuningExperiment; `task.init_from` is the fine-tuned model.
        splits: names of splits, which the task's data must have.
        output_dir: where the reports go.

    Returns:
        split -> report.

    Raises:
        UserError: the model's head is not the task's, or a split cannot be read.
    """
    task, options = experiment.task, experiment.training
    data = task.data_dir or task.train_file or task.dev_file or task.test_file
    if not task.init_from or (not data and task.name != OWN_TASK):
        raise UserError("set config.task.init_from, a fine-tuned model, and config.task.data_dir.")
    start = finetuning.read_start(_with_its_threshold(experiment))
    family = start.family
    check_length(task.max_seq_length, start.stored.model_config)
    for split in splits:
        family.files(split)
    with start.strategy.scope():
        model = presets.build(start.stored)
        if misfit := family.misfit(model):
            raise UserError(
                f"the model in {start.init_from} cannot be scored on {task.name}: {misfit}; "
                "fine-tune it on the task first."
            )
        model = family.make_model(model)
    predict, found = Predictor(model, start.strategy), {}
    finetuning.tell_precision(options)
    make_folder(output_dir)  # TensorFlow would tell what stands in the way as an error of its own
    with tf.summary.create_file_writer(output_dir).as_default(step=0):
        for split in splits:
            with tempfile.TemporaryDirectory() as work_dir:
                evaluation = family.evaluation(split, work_dir)
            progress = Progress(f"predicting {split}", evaluation.num_examples, "examples")
            outputs = predict(
                evaluation.serialized,
                family.schema,
                options.batch_size,
                task.max_seq_length,
                watch=lambda share, p=progress: p.update(round(share * p.total)),
            )
            progress.close()
            evaluation.write(outputs, os.path.join(output_dir, "predictions", split))
            baseline = _baseline(family, split) if evaluation.labelled else {}
            made = reports.make(task.name, split, evaluation, outputs, baseline)
            found[split] = made | {"model": task.init_from, "files": family.files(split)}
            reports.write(found[split], output_dir)
            answer_pages.write_page(evaluation, outputs, task.name, split, output_dir)
    return found


def _with_its_threshold(experiment):
    """`experiment` with the threshold of SQuAD 2.0 that the model has, instead of one anew."""
    task = experiment.task
    kept = presets.serving(presets.preset_of(task.init_from)).get("null_threshold")
    if kept is None or task.null_threshold not in ("f1", "exact"):
        return experiment
    return dataclasses.replace(
        experiment, task=dataclasses.replace(task, null_threshold=repr(kept))
    )


def _baseline(family, split):
    """Metrics without a model, where the task's training data is there to find them by."""
    try:
        return family.baseline(split)
    except UserError:
        return {}
