"""Makes training data from the documentation of the installed packages; needs no network.

    python tools/make_documentation_data.py --output_dir=data

writes corpus/{train,heldout}.txt (one sentence a line), acceptability/{train,dev}.tsv (CoLA's
format), qa/{train,dev}.json (SQuAD v1.1's format) and manifest.json. TensorFlow is not loaded.
"""

import os
import pathlib
import sys

from absl import flags

from convbert_tf import console

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from tools.quickstart import documentation

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder to write to.", required=True)
flags.DEFINE_integer("seed", 0, "Seed of the two labelled tasks.")
flags.DEFINE_string(
    "corpus_file",
    None,
    "Your own UTF-8 text for the corpus and the acceptability task: a paragraph or a sentence a "
    "line, blank lines between documents.",
)
flags.DEFINE_integer("max_bytes", 12_000_000, "Largest size of corpus/train.txt.")
flags.DEFINE_integer("workers", 2, "Processes that read source files.", lower_bound=1)


def main(_):
    if os.path.exists(FLAGS.output_dir) and not os.path.isdir(FLAGS.output_dir):
        raise console.UserError(f"output_dir {FLAGS.output_dir} is no folder.")
    documentation.write_data(
        FLAGS.output_dir, FLAGS.seed, FLAGS.corpus_file, FLAGS.max_bytes, FLAGS.workers
    )


if __name__ == "__main__":
    console.run(main)
