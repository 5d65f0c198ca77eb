"""Exports a fine-tuned preset as a SavedModel: text in, answer out.

python tools/export_saved_model.py --preset=runs/small-cola/preset --output_dir=models/cola/1
"""

from absl import flags

from convbert_tf import console

PRESET = flags.DEFINE_string("preset", None, "A fine-tuned preset directory.", required=True)
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the SavedModel goes.", required=True)
MAX_SEQ_LENGTH = flags.DEFINE_integer(
    "max_seq_length", None, "Longest input, or window of a context, in tokens.", lower_bound=8
)
PAIR = flags.DEFINE_bool("pair", False, "Whether a classifier takes a pair of texts.")
NULL_THRESHOLD = flags.DEFINE_float(
    "null_threshold", None, 'SQuAD 2.0: log-odds of "no answer" above which the answer is "".'
)


def main(_):
    console.load_tensorflow()
    from convbert_tf import serving

    options = {} if NULL_THRESHOLD.value is None else {"null_threshold": NULL_THRESHOLD.value}
    serving.export(PRESET.value, OUTPUT_DIR.value, MAX_SEQ_LENGTH.value, PAIR.value, **options)
    console.say(f"the SavedModel is in {OUTPUT_DIR.value}")


if __name__ == "__main__":
    console.run(main)
