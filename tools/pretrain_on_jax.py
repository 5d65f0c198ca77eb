r"""Pre-trains on one device with Keras's JAX backend; needs no TensorFlow.

For a machine with a GPU and JAX, on records that tools/pack_records.py has packed elsewhere:

    python tools/pretrain_on_jax.py --config=configs/pretrain_small.py --records=train.npz \
        --heldout=heldout.npz --config.training.precision=mixed_bfloat16 \
        --config.training.num_train_steps=20000 --config.training.model_dir=runs/small

Goes on from the state in model_dir, which it saves every `checkpoint_interval` steps, when SIGTERM
or Ctrl-C ends it and, with --minutes, when time is up. Leaves the model as preset/ and its held-out
metrics as eval_results.json; fine-tuning and serving take the preset as any other.

Of the config it takes what the model, the objective, the optimizer and the length of the run are;
records come in an order of its own, and dropout and masks from random numbers of its own, so that a
run is not the same as one of tools/pretrain.py.
"""

import math
import os
import time

from absl import flags

from convbert_tf import config, console, files

FLAGS = flags.FLAGS
CONFIG = config.ConfigFlag(config.PretrainingExperiment(), "A file of configs/.")
flags.DEFINE_string("records", None, "To train on.", required=True)
flags.DEFINE_string("heldout", None, "To score the model with at the end.")
flags.DEFINE_float("minutes", None, "After so many the state is saved and the run ends.")
flags.DEFINE_bool("allow_config_change", False, "Resume a run whose config was another one.")


def main(_):
    began = time.monotonic()
    os.environ["KERAS_BACKEND"] = "jax"
    experiment = CONFIG.experiment()
    training = experiment.training
    if not training.model_dir:
        raise console.UserError("set config.training.model_dir.")
    if FLAGS.minutes is not None and not 0 < FLAGS.minutes < math.inf:
        raise console.UserError(f"--minutes={FLAGS.minutes} must be above 0.")
    try:
        import jax
    except ImportError:
        raise console.UserError("JAX is missing: pip install -e '.[jax]'.") from None
    from convbert_tf.training import on_jax

    records = on_jax.Records(FLAGS.records)
    heldout = on_jax.Records(FLAGS.heldout) if FLAGS.heldout else None
    on_jax.check(experiment, records, heldout)
    with files.only_one(training.model_dir):
        on_jax.check_run(experiment, records, FLAGS.allow_config_change)
        loop = on_jax.make_loop(experiment, records)
        device, count = jax.devices()[0], loop.task.model.count_params()
        console.say(f"{count:,} parameters, {training.precision}, on {device.device_kind}")

        def in_time():
            return FLAGS.minutes is None or time.monotonic() - began < 60 * FLAGS.minutes

        def ready():
            on_jax.save_config(experiment, records)

        results = on_jax.fit(loop, training.model_dir, in_time, ready)
        if not loop.step:
            raise console.UserError(f"--minutes={FLAGS.minutes:g} were over before the first step.")
        _leave(loop, records, heldout, results, time.monotonic() - began)


def _leave(loop, records, heldout, results, seconds):
    """Writes the preset, and what the model scores; says it."""
    from convbert_tf.text.vocabulary import VOCAB_FILE
    from convbert_tf.training.scores import RESULTS_FILE

    directory = loop.training.model_dir
    vocab_file = os.path.join(directory, VOCAB_FILE)
    with files.atomic_path(vocab_file) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write("".join(f"{piece}\n" for piece in records.vocab))
    preset = os.path.join(directory, "preset")
    loop.task.model.save_to_preset(
        preset, vocab_file, lower_case=records.lower_case, strip_accents=records.strip_accents
    )
    report = {"step": loop.step, "seconds": round(seconds, 1), "training": results}
    if heldout:
        report["metrics"] = loop.evaluate(heldout)
        console.say("  ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items()))
    files.write_json(os.path.join(directory, RESULTS_FILE), report)
    console.say(f"step {loop.step:,}; the model is in {preset}")


if __name__ == "__main__":
    console.run(main, CONFIG.help)
