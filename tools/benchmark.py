r"""Measures this package and other implementations side by side and prints a table a section.

    python tools/benchmark.py --sections=forward,step --json=benchmark.json

Every variant is a process of its own; they compute in turns, so all see the same machine, and only
one computes at a time. Shown are medians, their quartiles' distance ("spread"), the ratio to ours,
the share of the rate that products of large matrices reach in the same minutes, and the process's
peak memory (libraries and, where there is one, compilation included). Weights are random, the
model is the same on both sides, dropout is on in training steps.

Sections:
    forward   the encoder at --shapes
    step      a fine-tuning step at --step_shape: forward, backward, clipping, AdamW
    pretrain  a pre-training step at --step_shape, ours and composed as the original's
    epoch     an epoch of a CoLA-format task with its dev score, from files to a saved model:
              --cola_dir, --vocab_file
    records   pre-training records of --text on one core: --vocab_file
    questions answers to --questions of SQuAD's file --squad, evenly spread over it, the models
              loaded: --vocab_file. The peers are Hugging Face's example of question answering
              (run_qa: batches of 8, windows of 384 tokens) and the pipeline of transformers 4
    serve     the texts of --texts classified (a table with a column "sentence" or "text", or a text
              a line) and --questions of --squad answered, under --loads: one at a time (one), in
              batches of 8 and 32 (b8, b32), by 8 clients at once (c8); each text once, in --rounds
              parts. Ours are the exports; beside them Hugging Face's pipelines, ONNX Runtime and
              OpenVINO: --vocab_file
    curve     forward time and memory over length and over batch, also with full attention; of the
              first of --sizes; --plot draws it

What is not installed is left out and shown so. The peers of this machine's tables:

    .venv/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 matplotlib \
        onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1
    python3.11 -m venv peers && peers/bin/pip install tensorflow==2.20.0 tf-keras==2.20.1 \
        torch==2.13.0 transformers==4.57.6
    .venv/bin/python tools/benchmark.py --peers_python=peers/bin/python

(Hugging Face's TensorFlow models are gone since transformers 5, so they need the second one;
torch compiles by g++.) A variant runs in the first interpreter that has its packages. Compiling
takes most of a first run; torch keeps what it compiled, so another run is quicker.

On a machine with a GPU and no TensorFlow, ours on JAX in bfloat16 against PyTorch:

    python tools/benchmark.py --backend=jax --sections=forward,step,pretrain
"""

import pathlib
import sys

from absl import flags

from convbert_tf import console

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from tools.benchmark import sections

DEFAULTS = sections.Options()
FLAGS = flags.FLAGS
flags.DEFINE_list("sections", list(DEFAULTS.sections), "Some of the sections above.")
flags.DEFINE_list(
    "sizes", list(DEFAULTS.sizes), "Of small, medium_small, base; tiny to try it out."
)
flags.DEFINE_list("shapes", ["8x128", "1x128", "4x512"], "Batch x length, of section forward.")
flags.DEFINE_string("step_shape", "8x128", "Batch x length, of sections step and pretrain.")
flags.DEFINE_list("lengths", list(map(str, DEFAULTS.lengths)), "Of section curve, at batch 1.")
flags.DEFINE_list("batches", list(map(str, DEFAULTS.batches)), "Of section curve, at length 128.")
flags.DEFINE_list("peers", list(DEFAULTS.peers), "Of forward, step and curve.")
flags.DEFINE_integer("rounds", DEFAULTS.rounds, "Turns of each variant.", lower_bound=1)
flags.DEFINE_integer("epoch_rounds", 1, "Turns in section epoch.", lower_bound=1)
flags.DEFINE_float("seconds", DEFAULTS.seconds, "No further round of the same variants after this.")
flags.DEFINE_integer("threads", 0, "Cores to use; 0: all.", lower_bound=0)
flags.DEFINE_enum("backend", "tensorflow", ["tensorflow", "jax"], "Of ours.")
flags.DEFINE_list(
    "precision",
    None,
    "float32 (the default), bfloat16 (that of --backend=jax), or both: float32,bfloat16.",
)
flags.DEFINE_multi_string("peers_python", [], "Another interpreter with peers; may be given again.")
flags.DEFINE_string("cola_dir", "", "Folder of train.tsv and dev.tsv, for section epoch.")
flags.DEFINE_string("text", "", "Text file (.txt, .jsonl, also .gz, .xz), for section records.")
flags.DEFINE_float("megabytes", DEFAULTS.megabytes, "Of --text that are read.")
flags.DEFINE_string("squad", "", "SQuAD's JSON, say dev-v1.1.json, for section questions.")
flags.DEFINE_integer("questions", DEFAULTS.questions, "Of --squad.", lower_bound=1)
flags.DEFINE_string("texts", "", "File of texts, say SST-2's dev.tsv, for section serve.")
flags.DEFINE_list("loads", list(DEFAULTS.loads), "Of section serve.")
flags.DEFINE_string("vocab_file", "", "Vocabulary, for sections epoch, records, questions, serve.")
flags.DEFINE_string("json", None, "File for all figures.")
flags.DEFINE_string("plot", None, "File for the plot of section curve, .svg or .png.")

_LISTS = ("sections", "sizes", "peers", "peers_python", "loads")
_PLAIN = ("rounds", "epoch_rounds", "seconds", "threads", "backend", "cola_dir", "text")
_PLAIN += ("megabytes", "vocab_file", "squad", "questions", "texts")


def main(_):
    values = {name: tuple(FLAGS[name].value) for name in _LISTS}
    values |= {name: FLAGS[name].value for name in _PLAIN}
    options = sections.Options(
        **values,
        shapes=tuple(map(sections.parse_shape, FLAGS.shapes)),
        step_shape=sections.parse_shape(FLAGS.step_shape),
        lengths=tuple(map(sections.parse_number, FLAGS.lengths)),
        batches=tuple(map(sections.parse_number, FLAGS.batches)),
        precisions=tuple(
            FLAGS.precision or (["bfloat16"] if FLAGS.backend == "jax" else ["float32"])
        ),
    )
    sections.run(options, FLAGS.json, FLAGS.plot)


if __name__ == "__main__":
    console.run(main)
