r"""Compares ConvBERT with self-attention, from text to scores: a table a command.

    python tools/evidence.py --config=configs/pretrain_mini.py --output_dir=runs/evidence \
        --table=pretraining --text=wiki.txt
    python tools/evidence.py --config=configs/pretrain_mini.py --output_dir=runs/evidence \
        --table=finetuning --glue_dir=glue --tagging_dir=EWT-POS --squad_dir=squad

Tables:
    scaling      the models of the configs in --sizes, each trained for --minutes: which is the
                 largest that so much time trains well
    probe        a short run of ConvBERT and of attention alone at each of --learning_rates, then
                 with each of --warmup_steps at the best; the best of each is what the other tables
                 train with
    pretraining  ConvBERT; attention alone with as many parameters, and with as much time a step;
                 and both objectives once: held-out losses and AUC, on one text as well, into which
                 one reference generator put its samples; with a picture over tokens and time
    finetuning   each of these, and random weights, on GLUE's CoLA, SST-2, MRPC, STS-B and RTE, on
                 tagging and on SQuAD v1.1, over --trials seeds
    ablations    kernel sizes, head ratios, groups, kernels from the token alone, padding

The texts of --text become vocabulary and records; one document of 200 is held out, by the hash of
its text. Whatever is finished is kept, and what was interrupted goes on, when the command is given
again. Values of the config can be set as for tools/pretrain.py, for all runs alike.
"""

import math
import pathlib
import signal
import sys

from absl import flags
from ml_collections import config_flags

from convbert_tf import config, console

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "table",
    None,
    ["scaling", "probe", "pretraining", "finetuning", "ablations"],
    "See above.",
    required=True,
)
flags.DEFINE_string("output_dir", None, "Folder of all runs and tables.", required=True)
flags.DEFINE_list("text", [], "Files of text, as tools/build_pretraining_data.py reads them.")
CONFIG = config.ConfigFlag(config.PretrainingExperiment(), "Of pre-training: a file of configs/.")
flags.DEFINE_list("seeds", ["0", "1"], "Of pre-training.")
flags.DEFINE_list("learning_rates", ["5e-4", "1e-3", "2e-3"], "Of the probe.")
flags.DEFINE_list("warmup_steps", [], "Of the probe, beside the config's.")
flags.DEFINE_integer("probe_steps", 800, "Of each run of the probe.", lower_bound=1)
flags.DEFINE_list("sizes", [], "Of the table scaling: pre-training configs.")
flags.DEFINE_float("minutes", 10.0, "Of steps, for each size.", lower_bound=0.01)
flags.DEFINE_string("glue_dir", None, "Folder of GLUE's folders.")
flags.DEFINE_string("tagging_dir", None, "Folder of a tagging task.")
flags.DEFINE_string("squad_dir", None, "Folder of SQuAD v1.1.")
flags.DEFINE_integer("trials", 3, "Seeds of fine-tuning.", lower_bound=1)
flags.DEFINE_float("finetuning_rate", 5e-4, "Learning rate of fine-tuning.", lower_bound=1e-12)
flags.DEFINE_enum(
    "finetuning_precision", "float32", ["float32", "mixed_bfloat16", "mixed_float16"], "Of it."
)


def main(_):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seeds, warmup_steps = _numbers("seeds", int), _numbers("warmup_steps", int)
    learning_rates = _numbers("learning_rates", float)
    for name, values in (("seeds", seeds), ("learning_rates", learning_rates)):
        if not values or len(set(values)) < len(values):  # one run twice would look like two
            raise console.UserError(f"--{name} takes different numbers, at least one.")
    experiment, file = CONFIG.experiment(), config_flags.get_config_filename(FLAGS["config"])
    console.load_tensorflow("orbit")
    from tools.evidence import runs, study

    sizes = {pathlib.Path(size).stem: runs.experiment_of(size) for size in FLAGS.sizes}
    plan = runs.Plan(file, experiment, FLAGS.output_dir, runs.given(file, experiment))
    if FLAGS.table == "scaling" and not sizes:
        raise console.UserError("set --sizes to the configs whose models are to be compared.")
    runs.prepare(plan, FLAGS.text)
    if FLAGS.table == "scaling":
        study.scaling(plan, sizes, FLAGS.minutes)
    elif FLAGS.table == "probe":
        study.probe(plan, learning_rates, warmup_steps, FLAGS.probe_steps)
    elif FLAGS.table == "pretraining":
        study.pretraining(plan, seeds)
    elif FLAGS.table == "ablations":
        study.ablations(plan, seeds)
    else:
        places = {name: FLAGS[f"{name}_dir"].value for name in ("glue", "tagging", "squad")}
        training = {"learning_rate": FLAGS.finetuning_rate, "precision": FLAGS.finetuning_precision}
        study.finetuning(plan, seeds[0], places, training, FLAGS.trials)


def _numbers(name, kind):
    """The numbers of a list flag: whole ones from 0 on, or others above it."""
    what = "whole numbers from 0 on" if kind is int else "numbers above 0"
    try:
        values = [kind(text) for text in FLAGS[name].value]
        if not all(value >= 0 if kind is int else 0 < value < math.inf for value in values):
            raise ValueError
    except ValueError:
        raise console.UserError(f"--{name} takes {what}, not {FLAGS[name].value}.") from None
    return values


if __name__ == "__main__":
    console.run(main, CONFIG.help)
