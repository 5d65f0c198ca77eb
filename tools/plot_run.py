"""Draws the curves of a run, or of several in one picture, from their metrics.jsonl.

    python tools/plot_run.py --run=runs/small --output_file=curves.svg

Needs matplotlib: pip install -e '.[plot]'
"""

from absl import flags

from convbert_tf import console
from convbert_tf.training import plots

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("run", None, "The model_dir of a run; may be given again.", required=True)
flags.DEFINE_string("output_file", None, ".svg or .png.", required=True)
flags.DEFINE_list(
    "metrics",
    None,
    "A panel each; names as in metrics.jsonl. Default: the losses and scores there.",
)


def main(_):
    plots.plot_run(FLAGS.run, FLAGS.output_file, FLAGS.metrics)
    console.say(f"{FLAGS.output_file} is drawn")


if __name__ == "__main__":
    console.run(main)
