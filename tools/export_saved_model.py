"""Exports a fine-tuned preset as a SavedModel: text in, answer out.

What no flag says is as the model was trained and scored.

python tools/export_saved_model.py --preset=runs/small-cola/preset --output_dir=models/cola/1
"""

from absl import flags

from convbert_tf import console

PRESET = flags.DEFINE_string("preset", None, "A fine-tuned preset directory.", required=True)
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the SavedModel goes.", required=True)
MAX_SEQ_LENGTH = flags.DEFINE_integer(
    "max_seq_length", None, "Longest input, or window of a context, in tokens.", lower_bound=8
)
PAIR = flags.DEFINE_bool("pair", None, "Whether a classifier takes a pair of texts.")
DOC_STRIDE = flags.DEFINE_integer("doc_stride", None, "Tokens between a context's windows.")
MAX_QUERY_LENGTH = flags.DEFINE_integer("max_query_length", None, "Longest question, in tokens.")
MAX_ANSWER_LENGTH = flags.DEFINE_integer("max_answer_length", None, "Longest answer, in tokens.")
NULL_THRESHOLD = flags.DEFINE_float(
    "null_threshold",
    None,
    'SQuAD 2.0: log-odds of "no answer" above which the answer is ""; inf to answer all.',
)
N_BEST_SIZE = flags.DEFINE_integer("n_best_size", None, "Answers that n_best gives; 20.")
PADDING = flags.DEFINE_enum(
    "padding",
    None,
    ["longest", "full"],
    "longest, the default: to the longest text that is computed at once. full: answers as if all "
    "were padded to max_seq_length, as the model is scored; only models without mask_convolution "
    "answer otherwise, and slower.",
)


def main(_):
    console.load_tensorflow()
    from convbert_tf import serving

    given = (
        MAX_SEQ_LENGTH,
        PAIR,
        DOC_STRIDE,
        MAX_QUERY_LENGTH,
        MAX_ANSWER_LENGTH,
        NULL_THRESHOLD,
        N_BEST_SIZE,
        PADDING,
    )
    options = {flag.name: flag.value for flag in given}
    serving.export(PRESET.value, OUTPUT_DIR.value, **options)
    console.say(f"the SavedModel is in {OUTPUT_DIR.value}")


if __name__ == "__main__":
    console.run(main)
