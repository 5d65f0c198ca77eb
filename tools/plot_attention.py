r"""Draws what a model looks at on average: attention by layer and head, and its dynamic kernels.

    python tools/plot_attention.py --preset=runs/small/preset --text=heldout.txt \
        --output_file=attention.png

Each row is a layer. A panel of a head shows how much the token in a row looks at those in the
columns, as the mean of windows of the text: what does not hang on the words. [CLS] and [SEP] are
left out, and each panel has its own scale. The last panel has the mean weights of the convolution's
kernels. --preset is of any kind: pre-trained, fine-tuned, from Hugging Face.

Needs matplotlib: pip install -e '.[plot]'
"""

import os

from absl import flags

from convbert_tf import console

FLAGS = flags.FLAGS
flags.DEFINE_string("preset", None, "A preset, or what else can be fine-tuned.", required=True)
flags.DEFINE_string(
    "text", None, "A file, as tools/build_pretraining_data.py takes.", required=True
)
flags.DEFINE_string("output_file", None, ".png, .svg or .pdf.", required=True)
flags.DEFINE_integer("length", 64, "Of a window, in tokens.", lower_bound=3)
flags.DEFINE_integer("num_windows", 256, "At most.", lower_bound=1, upper_bound=10**9)


def main(_):
    console.load_tensorflow("tensorflow_text")
    from convbert_tf.data import text_files
    from convbert_tf.files import atomic_path
    from convbert_tf.modeling import presets
    from convbert_tf.text.tokenization import WordPieceTokenizer
    from convbert_tf.workflows import inspection

    path = FLAGS.output_file
    kind = os.path.splitext(path)[1][1:]
    if kind not in ("png", "svg", "pdf"):
        raise console.UserError(f"--output_file={path} must end in .png, .svg or .pdf.")
    preset = presets.fetch(presets.preset_of(FLAGS.preset))
    tokenizer = WordPieceTokenizer(*presets.vocabulary(preset))
    model = presets.load(preset)
    texts = (text for text, _ in text_files.documents(FLAGS.text))
    averages = inspection.average(
        getattr(model, "encoder", model), tokenizer, texts, FLAGS.length, FLAGS.num_windows
    )
    with atomic_path(path) as partial:
        inspection.draw_averages(averages).savefig(partial, format=kind)
    console.say(f"{path} is drawn, the mean of {console.counted(averages.number, 'window')}")


if __name__ == "__main__":
    console.run(main)
