"""The benchmark's workers that serve with this package: a SavedModel, or a LiteRT directory.

What each needs is loaded inside of it, so that its memory and its start are its own.
"""

import os

from tools.benchmark.loads import under_load
from tools.benchmark.workers import Ready, make_batch, repeat, serve


def saved_model(work):
    """Answers of the SavedModel in `model`, by TensorFlow alone."""

    def make():
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  (its ops are in the graph)

        tf.config.threading.set_intra_op_parallelism_threads(work.get("intra", work["threads"]))
        tf.config.threading.set_inter_op_parallelism_threads(work["threads"])
        model = tf.saved_model.load(work["model"])
        signature = model.signatures["serving_default"]

        def answer(rows, model=model):  # which keeps the weights
            texts = zip(work["inputs"], zip(*rows, strict=True), strict=True)
            outputs = signature(**{name: tf.constant(values) for name, values in texts})
            return {name: values.numpy() for name, values in outputs.items()}

        return answer

    return under_load(work, make)


def forward(work):
    """The mean of the encoder's output for one text, by the LiteRT directory `model`."""
    from convbert_tf.files import read_json
    from convbert_tf.serving import litert

    settings = read_json(os.path.join(work["model"], litert.SETTINGS_FILE), "settings", dict)
    compute = litert.Compute(os.path.join(work["model"], litert.MODEL_FILE), settings)
    ids = make_batch(work["config"]["vocab_size"], 1, work["length"])["input_ids"][0]
    return Ready(repeat(lambda: compute(ids, len(ids))))


def litert(work):
    """Answers of the LiteRT directory `model`."""

    def make():
        from convbert_tf.serving import litert

        model = litert.load(work["model"], num_threads=work.get("num_threads"))

        def answer(rows):
            return model(
                **dict(zip(work["inputs"], map(list, zip(*rows, strict=True)), strict=True))
            )

        return answer

    return under_load(work, make)


if __name__ == "__main__":
    serve({"forward": forward, "saved_model": saved_model, "litert": litert})
