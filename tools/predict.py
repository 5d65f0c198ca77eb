r"""Labels the texts of a file, or of standard input, with a fine-tuned model.

    python tools/predict.py --model=runs/sst2 --input=reviews.txt --output=labels.tsv
    python tools/predict.py --model=runs/mrpc --input=pairs.csv --columns=first,second \
        --keep=id --output=labels.jsonl
    echo "A fine film." | python tools/predict.py --model=models/sst2/1

The predictions are in the order of the input: label and probabilities; the score of a regression;
the answer to a question and its bytes in the context; words and entities with their tags, best as
JSON lines. Files of any size are read in parts, and nothing is left of an output that could not be
finished.
"""

import os
import sys

from absl import flags

from convbert_tf import console

MODEL = flags.DEFINE_string(
    "model",
    None,
    "A fine-tuned preset, the run that made it, hf://owner/name, or an exported model.",
    required=True,
)
INPUT = flags.DEFINE_string("input", "-", "A file; - is standard input.")
INPUT_FORMAT = flags.DEFINE_enum(
    "input_format",
    None,
    ["text", "csv", "tsv", "jsonl"],
    "text is a text a line, jsonl a JSON object a line, tsv has no quotes. By default as the "
    "file's name ends, text for standard input.",
)
COLUMNS = flags.DEFINE_list(
    "columns",
    None,
    "Columns with the model's inputs, in order; by default those called as the inputs are: text, "
    "or text_a,text_b, or question,context.",
)
HEADER = flags.DEFINE_bool(
    "header", True, "Whether the first line of CSV or TSV names the columns; if not: 1,2,..."
)
OUTPUT = flags.DEFINE_string("output", "-", "A file, which is replaced; - is standard output.")
OUTPUT_FORMAT = flags.DEFINE_enum(
    "output_format",
    None,
    ["csv", "tsv", "jsonl"],
    "By default as the file's name ends, tsv for standard output.",
)
KEEP = flags.DEFINE_list(
    "keep", [], "Columns of the input to write before the predictions; * for all."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts computed at once.", lower_bound=1)
MAX_SEQ_LENGTH = flags.DEFINE_integer(
    "max_seq_length", None, "Longest input in tokens; by default as trained.", lower_bound=8
)
PAIR = flags.DEFINE_bool(
    "pair", None, "Whether a classifier takes a pair of texts; by default as trained."
)

_ENDINGS = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl"}


def main(_):
    source = (INPUT.value, _format(INPUT, INPUT_FORMAT, "text"))
    target = (OUTPUT.value, _format(OUTPUT, OUTPUT_FORMAT, "tsv"))
    if source[0] != "-" and not os.path.exists(source[0]):
        raise console.UserError(f"{source[0]} is not there; --input takes a file, or - for stdin.")
    if os.path.exists(target[0]) and os.path.samefile(source[0], target[0]):
        raise console.UserError(f"--output={target[0]} is the input itself: name another file.")

    console.load_tensorflow()
    from convbert_tf import serving
    from convbert_tf.workflows import prediction

    served = serving.load(MODEL.value, max_seq_length=MAX_SEQ_LENGTH.value, pair=PAIR.value)
    if source[0] == "-" and sys.stdin.isatty():
        print("reading from the terminal, a text a line; Ctrl-D ends it", file=sys.stderr)
    try:
        prediction.label_table(
            served, source, target, COLUMNS.value, KEEP.value, HEADER.value, BATCH_SIZE.value
        )
    except BrokenPipeError:  # what reads the output has enough
        os._exit(0)


def _format(path, format, of_pipes):
    """The value of the flag `format`, or what the name in the flag `path` ends in."""
    if format.value or path.value == "-":
        return format.value or of_pipes
    found = _ENDINGS.get(os.path.splitext(path.value)[1].lower())
    if found is None or (found == "text" and of_pipes != "text"):
        raise console.UserError(f"{path.value}: set --{format.name}; its name does not tell it.")
    return found


if __name__ == "__main__":
    console.run(main)
