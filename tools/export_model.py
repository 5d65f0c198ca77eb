r"""Exports a model for serving: text in, answer out.

    python tools/export_model.py --preset=runs/cola/preset --output_dir=models/cola/1
    python tools/export_model.py --preset=runs/cola/preset --output_dir=models/cola-litert \
        --format=litert --check_data=runs/cola
    python tools/export_model.py --preset=runs/small/preset --output_dir=models/vectors/1 \
        --serve=embedding

A SavedModel runs in TensorFlow Serving and wherever TensorFlow and TF Text are; a LiteRT directory
without TensorFlow, smaller and quicker on a processor. What no flag says is as the model was
trained and scored. Of a fine-tuned preset its head is served; --serve=embedding, of any preset,
gives a vector for each text; replaced_tokens and fill_mask, of the preset of a pre-training run,
what its discriminator says of each token and what its generator puts for [MASK].
"""

import dataclasses
import os

from absl import flags

from convbert_tf import config, console, files

PRESET = flags.DEFINE_string("preset", None, "A preset directory.", required=True)
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the model goes.", required=True)
FORMAT = flags.DEFINE_enum(
    "format", "saved_model", ["saved_model", "litert"], "What is written; see above."
)
PRECISION = flags.DEFINE_enum(
    "precision",
    None,
    ["float32", "bfloat16", "int8"],
    "saved_model: float32 (by default) or bfloat16, which is quicker on a processor with units for "
    "it and slower on others. litert: int8 (by default), which with --check_data is written only "
    "if it loses no more than half a point, or float32.",
)
CHECK_DATA = flags.DEFINE_string(
    "check_data",
    None,
    "litert: data with labels to score the networks on. The run of tools/finetune.py that made the "
    "preset, for its own dev split; or, of the task of that run, a folder of its data, or a file.",
)
N_BEST_SIZE = flags.DEFINE_integer(
    "n_best_size", None, "saved_model: answers that n_best gives; 20."
)
PADDING = flags.DEFINE_enum(
    "padding",
    None,
    ["longest", "full"],
    "longest, the default: to the longest text that is computed at once; litert: as if each text "
    "were alone. full: answers as if all were padded to max_seq_length, as the model is scored; "
    "only models without mask_convolution answer otherwise, and slower.",
)
MAX_SEQ_LENGTH = flags.DEFINE_integer(
    "max_seq_length", None, "Longest input, or window of a context, in tokens.", lower_bound=8
)
SERVE = flags.DEFINE_enum(
    "serve",
    None,
    ["embedding", "replaced_tokens", "fill_mask"],
    "What is served of a model that has no fine-tuned head, or in its place.",
)
POOLING = flags.DEFINE_enum(
    "pooling", None, ["mean", "first"], "Of an embedding: mean of the tokens (default), or [CLS]."
)
NORMALIZE = flags.DEFINE_bool("normalize", None, "Whether embeddings have length 1; false.")
TOP_K = flags.DEFINE_integer("top_k", None, "Pieces that fill_mask gives for each mask; 5.")
PAIR = flags.DEFINE_bool("pair", None, "Whether a classifier takes a pair of texts.")
DOC_STRIDE = flags.DEFINE_integer("doc_stride", None, "Tokens between a context's windows.")
MAX_QUERY_LENGTH = flags.DEFINE_integer("max_query_length", None, "Longest question, in tokens.")
MAX_ANSWER_LENGTH = flags.DEFINE_integer("max_answer_length", None, "Longest answer, in tokens.")
NULL_THRESHOLD = flags.DEFINE_float(
    "null_threshold",
    None,
    'SQuAD 2.0: log-odds of "no answer" above which the answer is ""; inf to answer all.',
)


def main(_):
    given = (
        MAX_SEQ_LENGTH,
        PAIR,
        DOC_STRIDE,
        MAX_QUERY_LENGTH,
        MAX_ANSWER_LENGTH,
        NULL_THRESHOLD,
        N_BEST_SIZE,
        PADDING,
        SERVE,
        POOLING,
        NORMALIZE,
        TOP_K,
    )
    options = {flag.name: flag.value for flag in given}
    _check_flags()
    if FORMAT.value == "litert":
        _export_litert(options)
        return
    console.load_tensorflow()
    from convbert_tf import serving

    options["precision"] = PRECISION.value or "float32"
    serving.export(PRESET.value, OUTPUT_DIR.value, **options)
    if PRECISION.value == "bfloat16":
        units = "this one has" if console.has_bfloat16_units() else "this one does not have"
        console.say(
            "bfloat16 is quicker only on processors with units for it (flags avx512_bf16 or "
            f"amx_bf16), which {units}, and slower on others"
        )
    console.say(f"the SavedModel is in {OUTPUT_DIR.value}")
    _tell_threads()


def _tell_threads():
    """Says which setting makes single texts quickest, where the model has such a length."""
    from convbert_tf.serving.saved_model import SIGNATURE_FILE

    path = os.path.join(OUTPUT_DIR.value, SIGNATURE_FILE)
    if tokens := files.read_json(path, "what is served", dict)["single_thread_tokens"]:
        console.say(
            f"alone, a text of up to {tokens} tokens is quickest with one thread an operation: "
            "TF_NUM_INTRAOP_THREADS=1 (docs/serving.md, short latencies)"
        )


def _check_flags():
    """Refuses flags that the format does not have."""
    of_format = {"saved_model": ("float32", "bfloat16"), "litert": ("float32", "int8")}
    precisions = of_format[FORMAT.value]
    if PRECISION.value not in (None, *precisions):
        raise console.UserError(
            f"--precision={PRECISION.value}: with --format={FORMAT.value} it is "
            f"{' or '.join(precisions)}."
        )
    others = {"litert": N_BEST_SIZE, "saved_model": CHECK_DATA}
    if others[FORMAT.value].value is not None:
        raise console.UserError(
            f"--{others[FORMAT.value].name} does not go with --format={FORMAT.value}."
        )


def _export_litert(options):
    task = _task() if CHECK_DATA.value else None
    console.load_tensorflow()
    from convbert_tf import serving

    findings = serving.export_litert(
        PRESET.value,
        OUTPUT_DIR.value,
        PRECISION.value or "int8",
        task=task,
        **options,
    )
    console.say(findings.table())
    if not task and not SERVE.value:
        console.say("its scores were not checked: --check_data=DATA does it")
    console.say(f"the LiteRT model is in {OUTPUT_DIR.value}")


def _task():
    """The TaskConfig of --check_data: a run's, or that of the preset's run with other data."""
    given = CHECK_DATA.value
    if os.path.exists(os.path.join(given, "preset", config.CONFIG_FILE)):
        return _task_of(given)
    if not os.path.exists(given):
        raise console.UserError(f"--check_data={given} is not there.")
    task = _task_of(_run_of_the_preset())
    is_file = os.path.isfile(given)
    if is_file and task.name in config.GLUE_EPOCHS:
        raise console.UserError(f"--check_data={given}: {task.name} takes a folder with a dev.tsv.")
    if not is_file and task.name == config.OWN_TASK:
        raise console.UserError(f"--check_data={given}: a task of one's own takes a file.")
    changes = {"dev_file": given} if is_file else {"dev_file": "", "data_dir": given}
    if task.name == config.OWN_TASK and not task.dev_file:  # as in tools/evaluate.py
        changes |= {"train_file": "", "split_column": ""}
    return dataclasses.replace(task, **changes)


def _task_of(run):
    """The TaskConfig of a run, with the preset to start from."""
    path = os.path.join(run, config.CONFIG_FILE)
    values = files.read_json(path, "the config of a fine-tuning run")
    experiment = config.from_config_dict(config.FinetuningExperiment, values)
    return dataclasses.replace(experiment.task, init_from=PRESET.value)


def _run_of_the_preset():
    preset = os.path.abspath(PRESET.value)
    for run in (preset, os.path.dirname(preset)):
        paths = [os.path.join(run, *parts, config.CONFIG_FILE) for parts in ([], ["preset"])]
        if all(map(os.path.exists, paths)):
            return run
    raise console.UserError(
        f"--check_data: {PRESET.value} is not in a run of tools/finetune.py, which would tell its "
        "task; name such a run as --check_data."
    )


if __name__ == "__main__":
    console.run(main)
