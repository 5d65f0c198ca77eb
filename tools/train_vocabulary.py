"""Trains a WordPiece vocabulary on plain text.

    python tools/train_vocabulary.py --input='data/*.txt' --vocab_size=30522 --output_file=vocab.txt

Input as for build_pretraining_data.py. Of much text a sample is taken, spread evenly over every
file: what a vocabulary holds hardly changes after some hundred megabytes.
"""

from absl import flags

from convbert_tf import console

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "input", None, "File, glob or directory of text; may be given again.", required=True
)
flags.DEFINE_string("output_file", None, "Vocabulary to write.", required=True)
flags.DEFINE_integer("vocab_size", 30522, "Pieces, with the special ones.", lower_bound=100)
flags.DEFINE_bool("lower_case", True, "For an uncased vocabulary: lower-case and strip accents.")
flags.DEFINE_bool("strip_accents", None, "Default: as lower_case; no: lower-case alone.")
flags.DEFINE_integer(
    "max_megabytes", 200, "Text to learn from, in MB, in equal shares of all files.", lower_bound=1
)


def main(_):
    console.load_tensorflow()
    from convbert_tf.data import text_files  # TensorFlow: not for --help and bad flags
    from convbert_tf.text import vocabulary, vocabulary_training

    texts = text_files.sample_texts(
        text_files.find_files(FLAGS.input), FLAGS.max_megabytes * 1_000_000
    )
    vocab = vocabulary_training.train_vocab(
        texts, FLAGS.vocab_size, FLAGS.lower_case, FLAGS.strip_accents
    )
    vocabulary.save_vocab(FLAGS.output_file, vocab)
    console.say(f"{FLAGS.output_file}: {len(vocab):,} pieces.")


if __name__ == "__main__":
    console.run(main)
