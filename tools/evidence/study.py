"""The tables of tools/evidence.py: which runs each needs, and what is read from them."""

import os

from convbert_tf import files
from convbert_tf.config import with_values
from convbert_tf.console import UserError, say
from tools.evidence import models, reference, runs, tables

CONVBERT, ATTENTION = "ConvBERT", "attention"
SAME_PARAMETERS, SAME_TIME = "attention, same parameters", "attention, same time"
MLM = {"pretraining.objective": "mlm"}
_CHOSEN = "probe.json"  # model -> changes that the probe found best
_RATE, _WARMUP = "training.learning_rate", "training.warmup_steps"
_TIMED_STEPS = 150


def scaling(plan, sizes, minutes):
    """Trains models of several sizes for the same time; writes scaling.md.

    Args:
        plan: runs.Plan.
        sizes: name -> PretrainingExperiment, whose model is taken.
        minutes: of steps, for each size.
    """
    rows = [["model", "parameters", "steps", "tokens", "minutes", *tables.HELD_OUT]]
    for name, other in sizes.items():
        changes = models.size_of(plan.experiment, other)
        seconds = _timed(plan, name, changes)
        steps = max(int(60 * minutes / seconds), 1)
        own = changes | _budget(steps)
        folder = runs.pretrain(plan, f"scaling {name}", own, plan.experiment.training.seed)
        last = runs.curve(folder, plan.experiment)[-1]
        size = models.parameters(with_values(plan.experiment, changes))
        rows.append([name, f"{size:,}", f"{steps:,}", f"{last['tokens'] / 1e6:.1f} M"])
        rows[-1] += [f"{last['seconds'] / 60:.1f}", *_shown(last)]
    tables.write(plan.path("scaling.md"), tables.markdown(rows))


def _budget(steps):
    """Changes by which a run takes `steps` steps, and is scored after the last."""
    return {"training.num_train_steps": steps, "training.eval_interval": steps}


def probe(plan, learning_rates, warmup_steps, steps):
    """Short runs of ConvBERT and attention with each learning rate; keeps the best of each.

    With the best learning rate, other lengths of the warm-up are tried as well.

    Args:
        plan: runs.Plan.
        learning_rates: texts of numbers.
        warmup_steps: texts of numbers, beside the config's own.
        steps: of each run.
    """
    rows, best = [["model", "learning rate", "warm-up", "steps", *tables.HELD_OUT]], {}
    for model, changes in _two(plan).items():
        tried = {}
        for rate in learning_rates:
            own = {_RATE: float(rate)}
            tried[_probed(plan, model, changes, own, steps, rows)] = own
        fastest = tried[min(tried)]
        for warmup in warmup_steps:
            own = fastest | {_WARMUP: int(warmup)}
            tried[_probed(plan, model, changes, own, steps, rows)] = own
        best[model] = tried[min(tried)]
    files.write_json(plan.path(_CHOSEN), best)
    tables.write(plan.path("probe.md"), tables.markdown(rows))
    for model, changes in best.items():
        chosen = ", ".join(f"{name} {value:g}" for name, value in changes.items())
        say(f"{model} trains best with {chosen}")


def _probed(plan, model, changes, own, steps, rows):
    """The last held-out loss of a short run of `changes` and `own`; adds its line to `rows`."""
    options = plan.experiment.training
    name = " ".join(["probe", model, *(f"{value:g}" for value in own.values())])
    folder = runs.pretrain(plan, name, changes | own | _budget(steps), options.seed)
    last = runs.curve(folder, plan.experiment)[-1]
    warmup = own.get(_WARMUP, options.warmup_steps)
    rows.append([model, f"{own[_RATE]:g}", f"{warmup}", f"{last['step']:,}", *_shown(last)])
    return last["masked_lm_loss"] + _weighted(plan, last)


def _shown(metrics):
    return [f"{metrics[metric]:.3f}" for metric in tables.HELD_OUT]


def _weighted(plan, metrics):
    """The discriminator's share of the loss that a step minimises."""
    return plan.experiment.pretraining.disc_weight * metrics["disc_loss"]


def _two(plan):
    """ConvBERT, and attention alone with as many parameters: name -> changes."""
    wanted = models.parameters(plan.experiment)
    attention = models.with_parameters(plan.experiment, models.ATTENTION, wanted)
    return {CONVBERT: {}, ATTENTION: attention}


def _chosen(plan):
    """What the probe has found best: model -> changes; none, and said, without a probe."""
    path = plan.path(_CHOSEN)
    if os.path.exists(path):
        return files.read_json(path, "what the probe found", dict)
    say("there was no probe: all models train with the config's learning rate")
    return {CONVBERT: {}, ATTENTION: {}}


def _compared(plan):
    """The models of the tables: name -> changes."""
    two, best = _two(plan), _chosen(plan)
    attention = two[ATTENTION] | best[ATTENTION]
    return {
        CONVBERT: best[CONVBERT],
        SAME_PARAMETERS: attention,
        SAME_TIME: attention | _same_time(plan, two[ATTENTION]),
    }


def _same_time(plan, attention):
    """The intermediate size by which a step of attention alone takes as long as ConvBERT's.

    From short runs of ConvBERT, of attention, and of attention with twice the intermediate size; a
    step's time is linear in it.
    """
    path, name = plan.path("same_time.json"), "model.intermediate_size"
    if os.path.exists(path):
        return files.read_json(path, "the size for the same time", dict)
    size = attention[name]
    timed = {"ConvBERT": {}, "once": attention, "twice": attention | {name: 2 * size}}
    seconds = {each: _timed(plan, each, changes) for each, changes in timed.items()}
    slope = (seconds["twice"] - seconds["once"]) / size
    if slope <= 0:
        raise UserError(
            f"a larger model's step was no slower ({seconds}): the machine was busy; remove "
            f"{plan.path('pretraining')}/timed_* and try again on a quiet one."
        )
    fitting = size + 8 * round((seconds["ConvBERT"] - seconds["once"]) / slope / 8)
    found = {name: max(fitting, 8)}
    files.write_json(path, found)
    say(f"seconds a step {seconds}: as long as ConvBERT with an intermediate size of {found[name]}")
    return found


def _timed(plan, name, changes):
    """Seconds a step of a short run with `changes`."""
    folder = runs.pretrain(plan, f"timed {name}", changes | _budget(_TIMED_STEPS), 0)
    return runs.seconds_a_step(folder, plan.experiment)


def pretraining(plan, seeds):
    """Trains what is compared with each of `seeds`; writes pretraining.md, .json and .svg."""
    compared = _compared(plan)
    trained = {
        name: [runs.pretrain(plan, name, c, s) for s in seeds] for name, c in compared.items()
    }
    found = _found(plan, compared, trained, trained[SAME_PARAMETERS][0])
    files.write_json(plan.path("pretraining.json"), found)
    tables.draw(found, plan.path("pretraining.svg"))
    text = tables.pretraining_table(found)
    alone = {name: compared[name] | MLM for name in (CONVBERT, SAME_PARAMETERS)}
    masked = {n: [runs.pretrain(plan, f"{n} mlm", c, seeds[0])] for n, c in alone.items()}
    text += "\nMasked language modelling alone:\n\n"
    text += tables.pretraining_table(_found(plan, alone, masked, None))
    tables.write(plan.path("pretraining.md"), text)


def _found(plan, changes, trained, referee):
    """What tables.pretraining_table takes, of runs: name -> their folders.

    Args:
        referee: folder of the run whose generator corrupts the text that all discriminators are
            scored on; None for no such scores.
    """
    found, scored = {}, {}
    if referee is not None:
        presets = [os.path.join(run, "preset") for each in trained.values() for run in each]
        options, records = plan.experiment.training, plan.path("records", "heldout")
        scored = reference.score(
            os.path.join(referee, "preset"),
            presets,
            records,
            batch_size=options.batch_size,
            num_batches=options.num_eval_steps or None,
        )
    for name, folders in trained.items():
        experiment = with_values(plan.experiment, changes[name])
        found[name] = {
            "parameters": models.parameters(experiment),
            "seconds_a_step": min(runs.seconds_a_step(run, experiment) for run in folders),
            "curves": [runs.curve(run, experiment) for run in folders],
            "reference": [scored.get(os.path.join(run, "preset")) for run in folders],
            "changes": changes[name],
        }
    return found


def finetuning(plan, seed, places, training, trials):
    """Fine-tunes the pre-trained models and random weights; writes finetuning.md and .json.

    Args:
        seed: of the pre-training runs that are taken.
        places, training, trials: see runs.finetune.
    """
    if not any(places.values()):
        raise UserError("set --glue_dir, --tagging_dir or --squad_dir: there is nothing to score.")
    for name, place in places.items():  # now, and not after the pre-training
        if place and not place.startswith("tfds:") and not os.path.isdir(place):
            raise UserError(f"--{name}_dir={place} is no folder.")
    presets = {}
    for name, changes in _compared(plan).items():
        presets[name] = os.path.join(runs.pretrain(plan, name, changes, seed), "preset")
    presets["random weights"] = runs.random_preset(plan)
    found = {
        name: runs.finetune(plan, name, preset, places, training, trials)
        for name, preset in presets.items()
    }
    files.write_json(plan.path("finetuning.json"), found)
    lines = [
        line
        for other in (SAME_PARAMETERS, SAME_TIME, "random weights")
        for line in tables.gains(found, CONVBERT, other)
    ]
    text = "\n".join([tables.finetuning_table(found), *lines, ""])
    tables.write(plan.path("finetuning.md"), text)


def ablations(plan, seeds):
    """Trains each ablation with each of `seeds`; writes ablations.md and .json."""
    best = _chosen(plan)
    changes = {
        name: best[ATTENTION if own == models.ATTENTION else CONVBERT] | own
        for name, own in models.ABLATIONS.items()
    }
    trained = {
        name: [runs.pretrain(plan, f"ablation {name}", own, seed) for seed in seeds]
        for name, own in changes.items()
    }
    found = _found(plan, changes, trained, trained["attention alone"][0])
    files.write_json(plan.path("ablations.json"), found)
    tables.write(plan.path("ablations.md"), tables.pretraining_table(found))
