r"""Labels the texts of a file, or of standard input, with a fine-tuned model.

    python tools/predict.py --model=runs/sst2 --input=reviews.txt --output=labels.tsv
    python tools/predict.py --model=runs/mrpc --input=pairs.csv --columns=first,second \
        --keep=id --output=labels.jsonl
    echo "A fine film." | python tools/predict.py --model=models/sst2/1
    python tools/predict.py --model=runs/qa --input=dev.json --keep=id --output=answers.jsonl \
        --html=answers.html
    python tools/predict.py --model=runs/small --serve=embedding --input=texts.txt \
        --output=vectors.jsonl

The predictions are in the order of the input: label and probabilities; the score of a regression;
the answer to a question and its bytes in the context; words and entities with their tags, best as
JSON lines. Files of any size are read in parts, also packed ones (.gz, .xz), and nothing is left of
an output that could not be finished.

Questions come as rows with a question and a context, or in SQuAD's or MRQA's form. --html shows
them with the answer and the second best marked in the context; where the input has right answers,
right and wrong ones are told apart.
"""

import contextlib
import os
import shutil
import sys
import tempfile

from absl import flags

from convbert_tf import console
from convbert_tf.data import tables

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
    ["text", *dict.fromkeys(tables.FORMATS.values())],
    "text is a text a line, jsonl a JSON object a line, json also a list of them or SQuAD's own "
    "form, tsv has no quotes. By default as the file's name ends, text for standard input.",
)
COLUMNS = flags.DEFINE_list(
    "columns",
    None,
    "Columns with the model's inputs, in order; by default those called as the inputs are: text, "
    "or text_a,text_b, or question,context.",
)
DELIMITER = flags.DEFINE_string("delimiter", "", "Of CSV, where it is no comma.")
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
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Texts, or windows of questions' contexts, computed at once.", lower_bound=1
)
MAX_SEQ_LENGTH = flags.DEFINE_integer(
    "max_seq_length", None, "Longest input in tokens; by default as trained.", lower_bound=8
)
PAIR = flags.DEFINE_bool(
    "pair", None, "Whether a classifier takes a pair of texts; by default as trained."
)
SERVE = flags.DEFINE_enum(
    "serve",
    None,
    ["embedding", "replaced_tokens", "fill_mask"],
    "What is asked of a model that has no fine-tuned head, or in its place; see "
    "tools/export_model.py. An exported model tells it itself.",
)
HTML = flags.DEFINE_string(
    "html", None, "Of questions: a page of the answers in their contexts, which is replaced."
)


def main(_):
    for flag in (INPUT, OUTPUT, HTML):
        if flag.value and os.path.isdir(flag.value):
            raise console.UserError(f"--{flag.name}={flag.value} is a folder: name a file in it.")
    source = (INPUT.value, _input_format())
    target = (OUTPUT.value, _output_format())
    if source[0] != "-" and not os.path.exists(source[0]):
        raise console.UserError(f"{source[0]} is not there; --input takes a file, or - for stdin.")
    for flag in (OUTPUT, HTML):
        if _is_input(flag.value):
            raise console.UserError(f"--{flag.name}={flag.value} is the input: name another file.")
    if HTML.value and os.path.abspath(HTML.value) == os.path.abspath(target[0]):
        raise console.UserError("--html and --output name the same file.")

    console.load_tensorflow()
    if source[0] == "-" and sys.stdin.isatty():
        print("reading from the terminal, a text a line; Ctrl-D ends it", file=sys.stderr)
    chosen = (COLUMNS.value, KEEP.value, HEADER.value, DELIMITER.value)
    with _on_disk(source) as source:
        _label(source, target, *chosen)


@contextlib.contextmanager
def _on_disk(source):
    """Gives `source`, or a file of what standard input has in one piece: a JSON value."""
    if source != ("-", "json"):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "standard-input.json")
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path, "json"


def _label(source, target, *chosen):
    from convbert_tf import serving
    from convbert_tf.workflows import answer_pages, answering, prediction

    if SERVE.value is None and answering.is_answerer(MODEL.value):
        if PAIR.value is not None:
            raise console.UserError("--pair is for classifiers; this model answers questions.")
        model = answering.Answerer(MODEL.value, BATCH_SIZE.value, MAX_SEQ_LENGTH.value)
        page = answer_pages.Page(f"{MODEL.value}: {INPUT.value}") if HTML.value else None
        answering.answer_table(model, source, target, *chosen, show=page and page.add)
        if page:
            page.write(HTML.value)
        return
    if HTML.value:
        raise console.UserError("--html is for questions, of a preset or a run that answers them.")
    served = serving.load(
        MODEL.value, max_seq_length=MAX_SEQ_LENGTH.value, pair=PAIR.value, serve=SERVE.value
    )
    prediction.label_table(served, source, target, *chosen, BATCH_SIZE.value)


def _is_input(path):
    """Whether the file that is written to `path` would take the place of the input."""
    there = path and os.path.isfile(path) and INPUT.value != "-"
    return there and os.path.samefile(INPUT.value, path)


def _input_format():
    """The value of --input_format, or what the name of the input ends in."""
    text = INPUT.value == "-" or INPUT.value.lower().endswith((".txt", ".txt.gz", ".txt.xz"))
    found = INPUT_FORMAT.value or ("text" if text else tables.format_of(INPUT.value))
    if found is None:
        raise console.UserError(f"{INPUT.value}: set --input_format; its name does not tell it.")
    return found


def _output_format():
    """The value of --output_format, or what the name of the output ends in."""
    found = (
        "tsv" if OUTPUT.value == "-" else _OUTPUTS.get(os.path.splitext(OUTPUT.value)[1].lower())
    )
    found = OUTPUT_FORMAT.value or found
    if found is None:
        raise console.UserError(f"{OUTPUT.value}: set --output_format; its name does not tell it.")
    return found


_OUTPUTS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl"}


if __name__ == "__main__":
    console.run(main)
