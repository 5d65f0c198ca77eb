"""Asks an exported model: texts, or questions about contexts.

    python tools/ask.py --saved_model=models/cola/1 --text="The cat sat on the mat."
    python tools/ask.py --saved_model=models/squad/1 --question="Who?" --context="It was Ada."

A flag that is repeated asks several things at once, which are answered in a list; for files and
standard input there is tools/predict.py. Of a SavedModel it needs only tensorflow and
tensorflow_text, as any server of the model does; of a LiteRT directory neither.
"""

import json
import os

from absl import flags

from convbert_tf import console, files
from convbert_tf.serving import litert
from convbert_tf.tasks import answers

SAVED_MODEL = flags.DEFINE_string(
    "saved_model", None, "A SavedModel directory, or a LiteRT one.", required=True
)
TEXT = flags.DEFINE_multi_string(
    "text", None, "Text, of which the model says what it was exported for; repeat for more."
)
TEXT_A = flags.DEFINE_multi_string("text_a", None, "First text of a pair.")
TEXT_B = flags.DEFINE_multi_string("text_b", None, "Second text of a pair.")
QUESTION = flags.DEFINE_multi_string("question", None, "Question.")
CONTEXT = flags.DEFINE_multi_string("context", None, "Text that answers the question.")


def main(_):
    given = {
        flag.name: [os.fsencode(value) for value in flag.value]  # as it came, UTF-8 or not
        for flag in (TEXT, TEXT_A, TEXT_B, QUESTION, CONTEXT)
        if flag.value is not None
    }
    _check(given)

    ask = _ask_litert if litert.holds_model(SAVED_MODEL.value) else _ask_saved_model
    outputs = ask(given)
    # As the text has them, UTF-8 or not.
    exact = {name: outputs.get(f"{name}_bytes", values) for name, values in outputs.items()}
    names = sorted((n for n in exact if not n.endswith("_bytes")), key=answers.place)
    outputs = {name: exact[name] for name in names}
    columns = [[_plain(value) for value in values] for values in outputs.values()]
    found = [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]
    if found and answers.listed(found[0]):
        for answer in found:
            _say_lists(answer)
        return
    said = found if len(found) > 1 else found[0]
    console.say(json.dumps(said, ensure_ascii=False, indent=1))


def _ask_litert(given):
    """What a LiteRT model answers, name -> array."""
    with console.without_stderr():
        model = litert.load(SAVED_MODEL.value)
    _check_inputs(given, model.inputs)
    return model(**given)


def _ask_saved_model(given):
    """What a SavedModel answers, name -> array."""
    console.load_tensorflow()
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (its ops are in the graph)

    if _are_short(given, SAVED_MODEL.value):
        tf.config.threading.set_intra_op_parallelism_threads(1)
    try:
        model = tf.saved_model.load(SAVED_MODEL.value)
        serve = model.signatures["serving_default"]
    except OSError as error:
        raise console.UserError(f"{SAVED_MODEL.value} holds no SavedModel.") from error
    except (IndexError, KeyError, ValueError, tf.errors.OpError) as error:
        raise console.UserError(
            f"the SavedModel in {SAVED_MODEL.value} is damaged or of another kind; export it again."
        ) from error
    _check_inputs(given, serve.structured_input_signature[1])
    outputs = serve(**{name: tf.constant(values) for name, values in given.items()})
    return {name: values.numpy() for name, values in outputs.items()}


def _are_short(given, directory):
    """Whether the texts together are so short that the model is quickest with one thread each."""
    path = os.path.join(directory, "signature.json")
    described = (
        files.read_json(path, "what a SavedModel takes", dict) if os.path.exists(path) else {}
    )
    tokens = sum(len(value) for values in given.values() for value in values) / 4  # about
    return tokens <= described.get("single_thread_tokens", 0)


def _check_inputs(given, wanted):
    if set(given) != set(wanted):
        raise console.UserError(f"this model takes {', '.join('--' + name for name in wanted)}.")


def _say_lists(answer):
    """The words and entities of a tagged text, its tokens or its filled masks, a line each."""
    if "filled" in answer:
        console.say(answer["filled"])
    for plural, rows in answers.listed(answer).items():
        lines = [f" {json.dumps(row, ensure_ascii=False)}" for row in rows]
        console.say("\n".join([f"{plural}:", *lines]))


def _check(given):
    """Refuses flags that are not given equally often, and - for standard input."""
    numbers = {len(values) for values in given.values()}
    if len(numbers) > 1:
        counts = [f"--{name} {len(values)} times" for name, values in given.items()]
        raise console.UserError(f"there is {' and '.join(counts)}: each asks with one of each.")
    if any(b"-" in values for values in given.values()):
        raise console.UserError(
            "- is not read here; for standard input: python tools/predict.py "
            f"--model={SAVED_MODEL.value} < FILE."
        )


def _plain(value):
    """A value as JSON can hold it; bytes of an answer that are not UTF-8 are shown as \\\\xff."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):  # an empty one fills a row of several labels up
        return [_plain(each) for each in value if each != b""]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


if __name__ == "__main__":
    console.run(main)
