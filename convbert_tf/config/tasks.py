"""The names of the tasks and their usual lengths, for the files of configs/ too; no TensorFlow."""

import csv
import io

from convbert_tf.console import UserError

# Task of GLUE -> epochs that the original trains it for.
GLUE_EPOCHS = {
    "cola": 3.0,
    "sst2": 3.0,
    "mrpc": 3.0,
    "stsb": 10.0,
    "rte": 10.0,
    "wnli": 3.0,
    "qnli": 3.0,
    "qqp": 3.0,
    "mnli": 3.0,
}
OWN_TASK = "own"
_NAMES = {*GLUE_EPOCHS, "ax", "squad_v1", "squad_v2", OWN_TASK}
_ALIASES = {"sst-2": "sst2", "sst": "sst2", "sts-b": "stsb", "sts": "stsb", "diagnostic": "ax"}


def task_name(name):
    """The name by which a task goes here, for one in any case or a usual alias ("SST-2", "sts").

    A name that is not known stays as it is.
    """
    key = name.lower()
    key = _ALIASES.get(key, key)
    return key if key in _NAMES else name


def join_list(values):
    """`values` as a setting that is a list: commas between them, quotes around one with a comma."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def split_list(setting):
    """The values of a setting that is a list; see `join_list`."""
    try:
        rows = list(csv.reader([setting], skipinitialspace=True)) if setting else []
    except csv.Error as error:
        raise UserError(f"{setting!r:.60} is no list with commas ({error}).") from error
    return [value.strip() for row in rows for value in row]


def glue_task(name):
    """Name and epochs of the GLUE task called `name` (see `task_name`), which can be trained.

    Raises:
        UserError: there is no such task, or it has no training data.
    """
    if not name:
        raise UserError(f"name the task after a colon: one of {', '.join(GLUE_EPOCHS)}.")
    found = task_name(name)
    if found == "ax":
        raise UserError(
            "AX has no training data: fine-tune on mnli, and predict the split ax of that task "
            "with its model (tools/evaluate.py --split=ax)."
        )
    if found not in GLUE_EPOCHS:
        raise UserError(f"no task {name!r}; there are {', '.join(GLUE_EPOCHS)}.")
    return found, GLUE_EPOCHS[found]
