"""Models to and from Hugging Face's directories; public as `convbert_tf.huggingface`."""

from convbert_tf.modeling import presets, storing
from convbert_tf.weights import huggingface
from convbert_tf.weights.stored import Vocabulary


def load(directory):
    """Returns the model of a Hugging Face ConvBERT directory, with its head.

    Which classes become which stands in weights/huggingface.py. Of a head that is not there, and of
    weights that have no place here, a line says that they are left out; the encoder is loaded all
    the same.

    Raises:
        UserError: a file is missing or damaged, the weights do not fit the config, or the config
            computes something else there than in the original.
    """
    return presets.build(huggingface.read(directory))


def save(model, directory, vocab_file=None, lower_case=True, generator=False, strip_accents=None):
    """Writes `model` as a directory that `transformers` loads.

    Args:
        model: any model of this package; see weights/huggingface.py for what is written of it.
        directory: made if it is not there.
        vocab_file: path of the vocabulary; vocab.txt and tokenizer_config.json are made of it.
        lower_case: whether texts are lower-cased before they are tokenised.
        generator: whether a pretrainer's generator is written, as a masked LM.
        strip_accents: whether their accents are stripped; None is as `lower_case`.

    Raises:
        UserError: `transformers` has no such head, or computes something else.
    """
    vocabulary = Vocabulary(vocab_file, lower_case, strip_accents)
    stored = storing.describe(model, vocabulary=vocabulary)
    huggingface.write(stored, directory, generator)
