"""The runs that tables are made of, each by a tool of tools/ in a process of its own.

A run that is done is kept; one that was interrupted goes on.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys

from convbert_tf import config, files
from convbert_tf.config import PretrainingExperiment, flags
from convbert_tf.console import UserError, say
from convbert_tf.data import shards, text_files
from convbert_tf.text.vocabulary import VOCAB_FILE
from convbert_tf.training import plots, scores
from convbert_tf.workflows import trials
from tools.evidence import models

TOOLS = pathlib.Path(__file__).parents[1]
GLUE = ("cola", "sst2", "mrpc", "stsb", "rte")
_HELD_OUT = 200  # one document of so many, by the hash of its text


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs of a table have in common.

    Attributes:
        config: path of a pre-training config.
        experiment: PretrainingExperiment in it, with the changes in `arguments`.
        output_dir: folder of all runs.
        arguments: of tools/pretrain.py, on top of the config.
    """

    config: str
    experiment: PretrainingExperiment
    output_dir: str
    arguments: tuple = ()

    def path(self, *parts):
        return os.path.join(self.output_dir, *parts)


def experiment_of(file):
    """The PretrainingExperiment of a config file.

    Raises:
        UserError: there is no such config.
    """
    try:
        return config.from_config_dict(
            PretrainingExperiment, flags.load(file, PretrainingExperiment)
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def given(file, experiment):
    """Arguments of tools/pretrain.py that make of the config in `file` the one of `experiment`."""
    changes = config.changed_values(experiment_of(file), experiment).items()
    return tuple(models.arguments({name: value for name, (_, value) in changes}))


def run_tool(name, *arguments):
    """Runs tools/NAME.py to its end; what it prints is seen.

    Raises:
        UserError: it ended with an error, which it has told.
    """
    process = subprocess.Popen([sys.executable, str(TOOLS / f"{name}.py"), *arguments])
    try:
        status = process.wait()
    except BaseException:  # a signal: the run saves what it has
        process.terminate()
        process.wait()
        raise
    if status:
        raise UserError(
            f"tools/{name}.py ended with status {status}; it says why above. What is done is kept."
        )


# --- data ---


def is_held_out(text):
    """Whether a document is held out: by its text alone, so that it always is."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) % _HELD_OUT == 0


def prepare(plan, sources):
    """Text, vocabulary and records in `plan.output_dir`, of text files; what is there is kept.

    Raises:
        UserError: there is nothing yet and no source is named; a source cannot be read.
    """
    names = ("train", "heldout")
    records = {name: plan.path("records", name) for name in names}
    if all(os.path.exists(os.path.join(folder, shards.MANIFEST)) for folder in records.values()):
        if sources:
            say(f"the records in {plan.output_dir} are kept; --text is not read again")
        return
    if not sources:
        raise UserError(f"{plan.output_dir} holds no records yet: name the texts by --text.")
    texts = {name: plan.path("text", f"{name}.txt") for name in names}
    if not all(map(os.path.exists, texts.values())):
        _split(sources, texts)
    vocab_file = plan.path(VOCAB_FILE)
    if not os.path.exists(vocab_file):
        size = f"--vocab_size={plan.experiment.model.vocab_size}"
        run_tool(
            "train_vocabulary", f"--input={texts['train']}", f"--output_file={vocab_file}", size
        )
    length = f"--max_seq_length={plan.experiment.data.max_seq_length}"
    for name in names:
        given = (f"--input={texts[name]}", f"--vocab_file={vocab_file}", length)
        run_tool("build_pretraining_data", *given, f"--output_dir={records[name]}")


def _split(sources, texts):
    """Writes the documents of `sources` to the files of `texts`."""
    counts = dict.fromkeys(texts, 0)
    with contextlib.ExitStack() as stack:
        outputs = {}
        for name, path in texts.items():
            partial = stack.enter_context(files.atomic_path(path))
            outputs[name] = stack.enter_context(open(partial, "w", encoding="utf-8"))
        for source in sources:
            for text, _ in text_files.documents(source):
                name = "heldout" if is_held_out(text) else "train"
                outputs[name].write(text + "\n\n")
                counts[name] += 1
        if not counts["heldout"]:
            raise UserError(
                f"of {counts['train']:,} documents none is held out: more text is needed."
            )
    say(f"{counts['train']:,} documents to train on, {counts['heldout']:,} held out")


# --- pre-training ---


def pretrain(plan, name, changes, seed):
    """Pre-trains with `changes`; returns the run's folder, by `name` and `seed`."""
    folder = plan.path("pretraining", f"{name.replace(' ', '_')}-{seed}")
    say(f"\n=== pre-training: {name}, seed {seed}")
    run_tool(
        "pretrain",
        f"--config={plan.config}",
        f"--config.data.train_dir={plan.path('records', 'train')}",
        f"--config.data.eval_dir={plan.path('records', 'heldout')}",
        f"--config.training.model_dir={folder}",
        f"--config.training.seed={seed}",
        *plan.arguments,
        *models.arguments(changes),
    )
    return folder


def curve(folder, experiment):
    """The evaluations of a run: dicts of metrics, with `tokens` and `seconds` of training before.

    Seconds are those of its steps at their undisturbed speed (see seconds_a_step), without
    evaluations and starts; tokens count padding.
    """
    tokens = experiment.training.batch_size * experiment.data.max_seq_length
    seconds = seconds_a_step(folder, experiment)
    return [
        line | {"tokens": line["step"] * tokens, "seconds": line["step"] * seconds}
        for line in plots.read_metrics(folder)
        if line["kind"] == "eval"
    ]


def seconds_a_step(folder, experiment):
    """The time of a step of the run in `folder`: what the fastest tenth of its loops takes.

    Runs take hours, and the machine does other things beside them; its slow hours say nothing of a
    model.
    """
    rates = [x["examples_per_second"] for x in plots.read_metrics(folder) if x["kind"] == "train"]
    rates = sorted(rates, reverse=True)
    return experiment.training.batch_size / rates[len(rates) // 10]


def random_preset(plan):
    """The preset of a model that was not trained; as good a start as none."""
    folder = plan.path("pretraining", "random")
    if not os.path.exists(os.path.join(folder, config.CONFIG_FILE)):
        import keras

        from convbert_tf.modeling.pretraining import ConvBertPretrainer

        keras.utils.set_random_seed(plan.experiment.training.seed)
        model = ConvBertPretrainer(plan.experiment.model)
        model.save_to_preset(folder, plan.path("records", "train", VOCAB_FILE))
    return folder


# --- fine-tuning ---


def finetune(plan, name, preset, places, arguments, num_trials):
    """Fine-tunes `preset` on what `places` has; task -> its results over the trials.

    Args:
        name: of the model, and of the folder of its runs.
        preset: directory.
        places: folders by "glue", "tagging", "squad"; None where there is none.
        arguments: learning_rate and precision of tools/glue.py, name -> value.
        num_trials: number of seeds.
    """
    folder, found = plan.path("finetuning", name.replace(" ", "_")), {}
    say(f"\n=== fine-tuning: {name}")
    if places.get("glue"):
        glue = [f"--{key}={value}" for key, value in arguments.items()]
        target = os.path.join(folder, "glue")
        run_tool(
            "glue",
            f"--preset={preset}",
            f"--data_dir={places['glue']}",
            f"--tasks={','.join(GLUE)}",
            f"--num_trials={num_trials}",
            f"--model_dir={target}",
            *glue,
        )
        folders = {task: os.path.join(target, task) for task in GLUE}
        found |= {task: each for task, each in folders.items() if os.path.isdir(each)}
    training = [f"--config.training.{key}={value}" for key, value in arguments.items()]
    for task, file in (("tagging", "finetune_tokens.py"), ("squad", "finetune_squad.py:v1")):
        if not places.get(task):
            continue
        target = os.path.join(folder, task)
        run_tool(
            "finetune",
            f"--config={TOOLS.parent / 'configs' / file}",
            f"--config.task.data_dir={places[task]}",
            f"--config.task.init_from={preset}",
            f"--config.task.num_trials={num_trials}",
            f"--config.training.model_dir={target}",
            *training,
        )
        found[task] = target
    return {task: results(target) for task, target in found.items()}


def results(folder):
    """metric, mean, deviation, baseline, seconds and trials of fine-tuning in `folder`."""
    path = os.path.join(folder, scores.TRIALS_FILE)
    if os.path.exists(path):
        return files.read_json(path, "the scores of trials", scores.Trials)
    report = files.read_json(os.path.join(folder, scores.RESULTS_FILE), "the scores of a run")
    metric = next(name for name in report["metrics"] if name in report["baseline"])
    kept = {key: report[key] for key in ("metrics", "baseline", "seconds")}
    return trials.summarize([kept | {"name": os.path.basename(folder)}], metric)
