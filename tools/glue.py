r"""Fine-tunes a model on all of GLUE that is there, task by task, and shows the table.

    python tools/glue.py --preset=runs/small/preset --data_dir=glue --model_dir=runs/glue

Settings are the original's: 3 epochs, 10 for RTE and STS-B; learning rate 3e-4, for base 1e-4. Ends
with the average of eight tasks (without WNLI). Leaves in model_dir: glue.md and glue.json, the
table; submission.zip, the test sets predicted as gluebenchmark.com takes them; a run a task. The
same command goes on where it was interrupted, and keeps the tasks that are done.
"""

import os

from absl import flags

from convbert_tf import config, console

PRESET = flags.DEFINE_string(
    "preset", None, "Preset or Hugging Face directory, or hf://owner/name.", required=True
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of GLUE's folders, or tfds:glue.", required=True
)
MODEL_DIR = flags.DEFINE_string("model_dir", None, "Where all goes.", required=True)
TASKS = flags.DEFINE_list("tasks", None, "Only these: cola,rte. By default all nine.")
EPOCHS = flags.DEFINE_float("epochs", None, "Of every task.", lower_bound=1e-6)
LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "Of every task.", lower_bound=1e-12)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples in a step.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the data's order and the new heads.", lower_bound=0)
NUM_TRIALS = flags.DEFINE_integer(
    "num_trials", 1, "Seeds of every task, from --seed on; the table has their mean.", lower_bound=1
)
STRATEGY = flags.DEFINE_enum(
    "strategy", "one_device", ["one_device", "mirrored", "tpu"], "Devices to train on."
)
PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["float32", "mixed_bfloat16", "mixed_float16"], "Of the computation."
)
FILL_MISSING = flags.DEFINE_bool(
    "fill_missing", False, "Make up predictions for test sets that are not there, for a full zip."
)
PUBLISHED = flags.DEFINE_enum(
    "published", None, ["small", "medium-small", "base"], "Show what is published of this size."
)


def main(_):
    training = {
        flag.name: flag.value for flag in (LEARNING_RATE, BATCH_SIZE, SEED, STRATEGY, PRECISION)
    }
    if TASKS.value == []:
        raise console.UserError("--tasks names none; leave it out for all nine.")
    for name in TASKS.value or ():
        config.glue_task(name)
    config.TrainingConfig(**{name: value for name, value in training.items() if value is not None})

    console.load_tensorflow("orbit")
    from convbert_tf.workflows import leaderboard

    report = leaderboard.run(
        PRESET.value,
        DATA_DIR.value,
        MODEL_DIR.value,
        TASKS.value or leaderboard.TASKS,
        EPOCHS.value,
        NUM_TRIALS.value,
        FILL_MISSING.value,
        **training,
    )
    lines = [leaderboard.average_line(report)]
    if PUBLISHED.value:
        lines += ["", *leaderboard.beside_published(report, PUBLISHED.value)]
    lines += ["", *leaderboard.submission_lines(report)]
    for line in lines:
        console.say(line)
    console.say(f"the report is {os.path.join(MODEL_DIR.value, 'glue.md')}")


if __name__ == "__main__":
    console.run(main)
