r"""Converts a model between presets, Hugging Face's directories and the original's checkpoints.

    python tools/convert_checkpoint.py --from=model.ckpt-1000000 --config=small \
        --vocab_file=vocab.txt --to=convbert-small
    python tools/convert_checkpoint.py --from=hf://owner/name --to=convbert
    python tools/convert_checkpoint.py --from=runs/small-cola/preset --to=cola-for-transformers

The format of --from is seen from what is there. Prints a summary, with how far apart the outputs
for a probe input are: of the model that was read and the one that was written, and of
`transformers` where that is installed.
"""

from absl import flags

from convbert_tf import console

FROM = flags.DEFINE_string(
    "from", None, "A directory, hf://owner/name@revision, or a checkpoint's prefix.", required=True
)
TO = flags.DEFINE_string("to", None, "Directory to write to.", required=True)
TO_FORMAT = flags.DEFINE_enum(
    "to_format",
    None,
    ["preset", "huggingface", "original"],
    "Default: preset, but of a preset huggingface.",
)
CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Of an original checkpoint: JSON file of its hyper-parameters, or small, medium_small or base "
    "for a pre-trained one of that size. Default: config.json beside it.",
)
VOCAB_FILE = flags.DEFINE_string("vocab_file", None, "Default: the one that is with the model.")
LOWER_CASE = flags.DEFINE_bool(
    "lower_case", None, "Whether texts are lower-cased. Default: what the model says, or true."
)
STRIP_ACCENTS = flags.DEFINE_bool(
    "strip_accents",
    None,
    "Whether accents are stripped. Default: what the model says, or as --lower_case if given.",
)
TASK = flags.DEFINE_string("task", None, "To write a head as the original: its task, say mnli.")
GENERATOR = flags.DEFINE_bool(
    "generator", False, "Write a pretrainer's generator, as Hugging Face's masked LM."
)
PRETRAINER = flags.DEFINE_bool(
    "pretrainer", False, "Write a pretrainer around an encoder, with a new generator, to train on."
)
OPTIMIZER = flags.DEFINE_bool(
    "optimizer",
    False,
    "From an original checkpoint: Adam's moments too, for --config.training.init_optimizer.",
)


def main(_):
    console.load_tensorflow()
    from convbert_tf import conversion

    rows = conversion.convert(
        FROM.value,
        TO.value,
        to_format=TO_FORMAT.value,
        config=CONFIG.value,
        vocab_file=VOCAB_FILE.value,
        lower_case=LOWER_CASE.value,
        strip_accents=STRIP_ACCENTS.value,
        task=TASK.value,
        generator=GENERATOR.value,
        pretrainer=PRETRAINER.value,
        optimizer=OPTIMIZER.value,
    )
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        console.say(f"{what:<{width}}  {value}")


if __name__ == "__main__":
    console.run(main)
