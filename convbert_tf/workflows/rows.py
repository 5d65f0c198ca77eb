"""Fine-tuning from Python on rows in memory: a DataFrame, or a list of dicts or tuples."""

import contextlib
import dataclasses
import difflib
import hashlib
import os
import re

from convbert_tf.config import (
    OWN_TASK,
    FinetuningExperiment,
    TaskConfig,
    finetuning_defaults,
    join_list,
)
from convbert_tf.console import UserError
from convbert_tf.data import tables
from convbert_tf.files import undone_on_error, write_bytes
from convbert_tf.tasks import own
from convbert_tf.workflows.finetuning import run


def finetune(train, init_from, model_dir, dev=None, **settings):
    """Fine-tunes on rows of one's own, as tools/finetune.py with configs/finetune_own.py does.

    Args:
        train: a pandas or polars DataFrame, a dict of columns, a list of dicts or of tuples (text,
            label) or (text, second text, label); or the path of a table (data/tables.py).
        init_from: a preset or Hugging Face directory, or "hf://owner/name".
        model_dir: folder of the run; that of an earlier run with the same rows and settings goes
            on, or gives what it gave. Rows in memory are kept there, in data/.
        dev: rows to score, as `train`; without, a part of `train` is held out.
        **settings: of config.TaskConfig and config.TrainingConfig, by name. `labels` and `metrics`
            may be lists.

    Returns:
        Metric -> value on the rows to score. The model is in `model_dir`/preset, for
        `TextClassifier.from_preset` and `serving.export`.

    Raises:
        UserError: a row or a setting cannot be meant.

    Example:
        >>> rows = [("a fine film", "good"), ("a dull one", "bad")] * 100
        >>> convbert_tf.finetune(rows, "runs/tiny/preset", "runs/films", num_train_epochs=2)
    """
    settings = {"init_from": init_from, "model_dir": model_dir} | settings
    if not tables.is_path(train) and tables.width(train) == 3:
        settings = {"text_b_column": "text_b"} | settings
    experiment = _own_experiment(settings)
    task, given = experiment.task, {"train": train, "dev": dev}
    in_memory = {
        split: own.as_json_lines(task, data, split)
        for split, data in given.items()
        if data is not None and not tables.is_path(data)
    }
    # Called by their content, so that other rows never take the place of a run's.
    digest = hashlib.sha256(b"".join(in_memory.values())).hexdigest()[:12]
    folder = os.path.join(experiment.training.model_dir, "data", digest)
    paths = {split: os.path.join(folder, f"{split}.jsonl") for split in in_memory}
    files = {f"{split}_file": data for split, data in (given | paths).items() if data is not None}
    experiment = dataclasses.replace(experiment, task=dataclasses.replace(task, **files))
    with undone_on_error(folder) if in_memory else contextlib.nullcontext():
        for split, content in in_memory.items():
            write_bytes(paths[split], content)
        try:
            return run(experiment)
        except UserError as error:
            raise UserError(_with_rows(str(error), paths)) from error


def _own_experiment(settings):
    """The FinetuningExperiment of one's own task with these settings of either section."""
    sections = {
        "task": TaskConfig(name=OWN_TASK),
        "training": finetuning_defaults(model_dir=settings["model_dir"]),
    }
    fields = {name: {f.name for f in dataclasses.fields(sections[name])} for name in sections}
    fields["training"].discard("init_from")  # which is pre-training's
    unknown = sorted(settings.keys() - fields["task"] - fields["training"])
    if unknown:
        names = sorted(fields["task"] | fields["training"])
        near = [name for name in names if unknown[0] in name]
        near = near or difflib.get_close_matches(unknown[0], names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}."
        raise UserError(f"there is no setting {unknown[0]!r}; {hint}")
    values = {name: _joined(value) for name, value in settings.items()}
    return FinetuningExperiment(
        *(
            dataclasses.replace(
                section, **{key: values[key] for key in fields[name] & values.keys()}
            )
            for name, section in sections.items()
        )
    )


def _with_rows(message, paths):
    """`message` with the numbers of rows in memory for the lines of the files `paths` of them."""
    for split, path in paths.items():
        message = re.sub(re.escape(path) + r":(\d+)", rf"row \1 of {split}", message)
        message = message.replace(path, split)
    return message


def _joined(value):
    """A setting that may be a list, as the command line has it."""
    return join_list(value) if isinstance(value, list | tuple) else value
