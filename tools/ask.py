"""Asks an exported SavedModel: a text to classify or to tag, or a question about a context.

    python tools/ask.py --saved_model=models/cola/1 --text="The cat sat on the mat."
    python tools/ask.py --saved_model=models/squad/1 --question="Who?" --context="It was Ada."

Needs only tensorflow and tensorflow_text, as any server of the model does.
"""

import json
import os

from absl import flags

from convbert_tf import console

SAVED_MODEL = flags.DEFINE_string("saved_model", None, "A SavedModel directory.", required=True)
TEXT = flags.DEFINE_string("text", None, "Text to classify or to tag.")
TEXT_A = flags.DEFINE_string("text_a", None, "First text of a pair.")
TEXT_B = flags.DEFINE_string("text_b", None, "Second text of a pair.")
QUESTION = flags.DEFINE_string("question", None, "Question.")
CONTEXT = flags.DEFINE_string("context", None, "Text that answers the question.")


def main(_):
    console.load_tensorflow()
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (its ops are in the graph)

    given = {
        flag.name: tf.constant([os.fsencode(flag.value)])  # as it came, UTF-8 or not
        for flag in (TEXT, TEXT_A, TEXT_B, QUESTION, CONTEXT)
        if flag.value is not None
    }
    try:
        serve = tf.saved_model.load(SAVED_MODEL.value).signatures["serving_default"]
    except OSError as error:
        raise console.UserError(f"{SAVED_MODEL.value} holds no SavedModel.") from error
    except (IndexError, KeyError, ValueError, tf.errors.OpError) as error:
        raise console.UserError(
            f"the SavedModel in {SAVED_MODEL.value} is damaged or of another kind; export it again."
        ) from error
    wanted = serve.structured_input_signature[1]
    if set(given) != set(wanted):
        raise console.UserError(f"this model takes {', '.join('--' + name for name in wanted)}.")
    answer = {name: _plain(value[0].numpy()) for name, value in serve(**given).items()}
    if "num_words" in answer:
        _say_tags(answer)
    else:
        console.say(json.dumps(answer, ensure_ascii=False, indent=1))


def _say_tags(answer):
    """The words of a tagged text, and the entities where there are any, a line each."""
    for name, label, plural in (("word", "tag", "words"), ("entity", "entity_label", "entities")):
        if name in answer:
            score = f"{label.removesuffix('_label')}_score"
            keys = (name, f"{name}_start", f"{name}_end", label, score)
            rows = [{key: answer[key][i] for key in keys} for i in range(answer[f"num_{plural}"])]
            lines = [f" {json.dumps(row, ensure_ascii=False)}" for row in rows]
            console.say("\n".join([f"{plural}:", *lines]))


def _plain(value):
    """A value as JSON can hold it; bytes of an answer that are not UTF-8 are shown as \\\\xff."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


if __name__ == "__main__":
    console.run(main)
