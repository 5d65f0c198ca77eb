"""Prints the scores of runs, one line a run.

python tools/compare_runs.py --run=runs/cola --run=runs/cola-scratch

Of fine-tuning runs they are those of the dev set beside the task's baseline, of pre-training runs
those of the last evaluation.
"""

from absl import flags

from convbert_tf import console
from convbert_tf.training import scores

RUNS = flags.DEFINE_multi_string("run", None, "model_dir of a run; repeat for more.", required=True)


def main(_):
    for line in [scores.summary(run) for run in RUNS.value]:
        console.say(line)


if __name__ == "__main__":
    console.run(main)
