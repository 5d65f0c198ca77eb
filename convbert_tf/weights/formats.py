"""Which format a stored model has: `read` gives its Stored, whatever it is."""

from convbert_tf.files import fetch
from convbert_tf.text import stored_vocabulary
from convbert_tf.weights import presets


def read(source):
    """The Stored of `source`; its arrays are read when they are needed.

    Args:
        source: a preset or Hugging Face directory, or one of these on the hub:
            "hf://owner/name@revision".

    Raises:
        UserError: the directory is missing, foreign, damaged, or of a newer format; or a weight
            of the model is not in the file, or one in the file is not in the model.
    """
    directory = fetch(source)
    if presets.is_huggingface(directory):
        from convbert_tf.weights import huggingface  # most runs never need it

        return huggingface.read(directory)
    return presets.read(directory)


# The Vocabulary that goes with a source, and the path of a preset's.
vocabulary, vocab_file = stored_vocabulary.find, stored_vocabulary.vocab_file


def serving(source):
    """The arguments of `serving.export` that the model in `source` was trained with."""
    directory = fetch(source)
    if presets.is_huggingface(directory):
        return {}
    return presets.describe(directory).get("serving", {})
