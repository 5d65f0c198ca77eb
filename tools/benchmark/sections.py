"""Ours and other implementations side by side: what is measured, and its tables; no TensorFlow.

A section is a list of `Group`s: variants that do the same work and are measured in turns. How they
are stands in workers.py.
"""

import dataclasses
import itertools
import os
import statistics
import tempfile

from convbert_tf.config import PretrainingConfig
from convbert_tf.console import Progress, UserError, say
from convbert_tf.data import tables, text_files
from convbert_tf.files import read_json, write_json
from convbert_tf.modeling import flops
from tools.benchmark.loads import SHOWN
from tools.benchmark.tables import compare, of_answers, plot, table
from tools.benchmark.variants import (
    SIZES,
    THEIR_QUESTIONS,
    THEIR_SERVERS,
    THEIRS,
    Group,
    Options,
    Variant,
    of_ours,
    of_torch,
    parse_number,
    parse_shape,
    peers_of,
    rulers_of,
    runtime_of,
    servers_of,
)
from tools.benchmark.workers import (
    MIN_ROUNDS,
    Laboratory,
    Worker,
    WorkerError,
    interleave,
    spread,
)

__all__ = ["SIZES", "Group", "Options", "Variant", "measure", "parse_number", "parse_shape", "run"]

# --- the sections ---


def _work(config, shape):
    return {"config": config.to_dict(), "batch": shape[0], "length": shape[1]}


def _config(size, length):
    config = SIZES[size]
    positions = max(length, config.max_position_embeddings)
    return dataclasses.replace(config, max_position_embeddings=positions)


def _forward_flops(config, shape):
    return 2 * shape[0] * flops.encoder_macs(config, shape[1])


def _labels(size, shape):
    return {"size": size, "batch": shape[0], "length": shape[1]}


def forward_groups(options):
    ours = [of_ours(options, "ours", "forward")]
    if options.backend == "tensorflow":
        # An operation of a small batch is over before a second thread has woken up.
        ours.append(of_ours(options, "ours, a thread an operation", "forward", intra=1))
    with tempfile.TemporaryDirectory() as folder:
        for size, shape in itertools.product(options.sizes, options.shapes):
            config, labels = _config(size, shape[1]), _labels(size, shape)
            work, cost = _work(config, shape), _forward_flops(config, shape)
            runtime = []
            if shape[0] == 1 and options.backend == "tensorflow":
                work |= {"model": os.path.join(folder, f"{size}-{shape[1]}")}
                _have_made(options, of_ours(options, "", "make_runtime"), work)
                runtime.append(runtime_of(options))
            variants = (*ours, *runtime, *peers_of(options, "forward"))
            yield Group("forward", labels, work, variants, options.rounds, cost)


def step_groups(options):
    shape, variants = (
        options.step_shape,
        (of_ours(options, "ours", "step"), *peers_of(options, "step")),
    )
    for size in options.sizes:
        config, labels = _config(size, shape[1]), _labels(size, shape)
        work, cost = _work(config, shape), 3 * _forward_flops(config, shape)
        yield Group("step", labels, work, variants, options.rounds, cost)


def pretrain_groups(options):
    shape = options.step_shape
    variants = (
        of_ours(options, "ours", "pretrain", structure="ours"),
        of_ours(options, "the original's losses", "pretrain", structure="losses"),
        of_ours(options, "the original's losses and layers", "pretrain", structure="all"),
    )
    for size in options.sizes:
        config, labels = _config(size, shape[1]), _labels(size, shape)
        cost = shape[0] * flops.pretraining_flops(config, PretrainingConfig(), shape[1])
        yield Group("pretrain", labels, _work(config, shape), variants, options.rounds, cost)


def curve_groups(options):
    """Forward time and memory over length at batch 1, and over batch at length 128."""
    size = options.sizes[0]
    shapes = {(1, length): None for length in options.lengths}
    shapes |= {(batch, 128): None for batch in options.batches}
    for shape in shapes:
        config = _config(size, shape[1])
        full = dataclasses.replace(config, conv_type="noconv", head_ratio=1)
        attention = of_ours(options, "ours, full attention", "forward", config=full.to_dict())
        variants = (
            of_ours(options, "ours", "forward"),
            dataclasses.replace(attention, flops=_forward_flops(full, shape)),
            *peers_of(options, "forward"),
        )
        work, cost = _work(config, shape), _forward_flops(config, shape)
        yield Group("curve", _labels(size, shape), work, variants, options.rounds, cost)


def epoch_groups(options):
    shape = (32, 128)
    needs = ("torch", "transformers", "accelerate")
    variants = (
        of_ours(options, "ours, real lengths", "epoch"),
        of_torch("Trainer, dynamic padding", "trainer_epoch", needs, padding="longest"),
        of_torch("Trainer, padded to 128", "trainer_epoch", needs, padding="max_length"),
    )
    files = {"cola_dir": options.cola_dir, "vocab_file": options.vocab_file}
    for size in options.sizes:
        work = _work(_config(size, 128), shape) | files
        yield Group("epoch", _labels(size, shape), work, variants, options.epoch_rounds)


def records_groups(options):
    """One core, whatever `threads`; of the first `megabytes` of the text."""
    needs = ("tokenizers", "tensorflow", "tensorflow-text")
    variants = (
        of_ours(options, "ours", "records"),
        Variant(
            "Hugging Face tokenizers, our packing",
            THEIRS,
            "records",
            needs,
            environment={"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        text = os.path.join(folder, "text.txt")
        size = _copy_text(options.text, text, options.megabytes * 1e6)
        work = {"text": text, "vocab_file": options.vocab_file, "threads": 1}
        rounds = min(options.rounds, 5)
        yield Group("records", {"text": f"{size / 1e6:.1f} MB"}, work, variants, rounds, bytes=size)


def _copy_text(source, target, max_bytes):
    """Writes the first documents of `source` to `target`; returns the bytes written."""
    with open(target, "w", encoding="utf-8") as file:
        for text, _ in text_files.documents(source):
            file.write(text + "\n\n")
            if file.tell() >= max_bytes:
                break
    return os.path.getsize(target)


def questions_groups(options):
    """From questions and contexts to n-best lists, of the same random weights on both sides."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "questions.json")
        number = _copy_questions(options.squad, path, options.questions)
        variants = (of_ours(options, "ours", "questions"), *_answering_peers(options))
        for size in options.sizes:
            work = _work(_config(size, 384), (8, 384)) | {"doc_stride": 128, "squad": path}
            work |= {"vocab_file": options.vocab_file, "model": os.path.join(folder, size)}
            _have_made(options, of_ours(options, "", "make_served"), work | {"task": "questions"})
            labels = {"size": size, "text": f"{number:,} questions"}
            rounds = min(options.rounds, MIN_ROUNDS)
            yield Group("questions", labels, work, variants, rounds, questions=number)


def serve_groups(options):
    """Texts classified and questions answered, by the same random weights on all sides."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {"sentences": _rows_of_texts(options.texts), "questions": _rows_of_squad(options)}
        for size, task in itertools.product(options.sizes, rows):
            place, length = os.path.join(folder, size, task), 384 if task == "questions" else 128
            os.makedirs(place)
            path = os.path.join(place, "rows.json")
            write_json(path, rows[task])
            work = _work(_config(size, length), (8, length)) | {"task": task, "doc_stride": 128}
            work |= {"model": os.path.join(place, "huggingface"), "folder": place, "rows": path}
            work |= {"vocab_file": options.vocab_file, "parts": options.rounds}
            work["inputs"] = ["question", "context"] if task == "questions" else ["text"]
            _have_made(options, of_ours(options, "", "make_served"), work)
            _have_made(options, NETWORKS, work)
            for load in options.loads:
                labels = {"size": size, "text": f"{len(rows[task]):,} {task}", "load": SHOWN[load]}
                variants = tuple(servers_of(options, task, place))
                forever = float("inf")
                loaded = work | {"load": load}
                yield Group("serve", labels, loaded, variants, options.rounds, seconds=forever)


def _rows_of_texts(path):
    """The texts of a table, in its column `sentence` or `text`, or of a text file: rows of one."""
    names = ("sentence", "text")
    form = tables.format_of(path) or "text"
    rows = [row for _, row in tables.stream(path, form).rows]
    name = next((name for name in names if rows and name in rows[0]), None)
    if name is None:
        raise UserError(f"--texts={path} has no column {' or '.join(names)}.")
    return [[row[name]] for row in rows]


def _rows_of_squad(options):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "questions.json")
        _copy_questions(options.squad, path, options.questions)
        paragraphs = read_json(path, "questions", dict)["data"][0]["paragraphs"]
    return [[qa["question"], each["context"]] for each in paragraphs for qa in each["qas"]]


def _have_made(options, maker, work):
    """Has a process make what variants load; where it is not installed, they will say so."""
    try:
        Laboratory(options).start(maker, work).close()
    except WorkerError as error:
        say(f"{maker.what}: {error}")


NETWORKS = Variant("", THEIR_SERVERS, "make_networks", ("torch", "onnxruntime", "openvino"))


def _answering_peers(options):
    """Hugging Face's example of question answering, and its pipeline of before version 5."""

    def example(name, **work):
        needs = ("torch", "transformers")
        return Variant(f"Hugging Face, {name}", THEIR_QUESTIONS, "example", needs, work)

    pipeline = ("Hugging Face, pipeline", THEIR_QUESTIONS, "pipeline", ("torch", "transformers<5"))
    known = {
        "eager": (
            example("eager, padded to 384", padding="max_length"),
            example("eager, dynamic padding", padding="longest"),
            example("eager, sorted by length", padding="longest", sort=True),
            Variant(*pipeline),
        ),
        "compiled": (example("compiled, padded to 384", padding="max_length", compile=True),),
    }
    return tuple(each for name in options.peers for each in known.get(name, ()))


def _copy_questions(source, target, wanted):
    """Writes `wanted` questions of SQuAD's file, or all, of paragraphs evenly spread over it.

    Returns their number.
    """
    content = read_json(source, "SQuAD's questions", dict)
    try:
        paragraphs = [each for article in content["data"] for each in article["paragraphs"]]
        total = sum(len(each["qas"]) for each in paragraphs)
    except (KeyError, TypeError) as error:
        raise UserError(f"--squad={source} is not in SQuAD's form.") from error
    kept, done, seen = [], 0, 0
    for each in paragraphs:
        seen += len(each["qas"])
        if done < wanted * seen / total:
            kept.append(each | {"qas": each["qas"][: wanted - done]})
            done += len(kept[-1]["qas"])
    write_json(target, {"version": "1.1", "data": [{"title": "", "paragraphs": kept}]})
    return done


GROUPS = {
    "forward": forward_groups,
    "step": step_groups,
    "pretrain": pretrain_groups,
    "epoch": epoch_groups,
    "records": records_groups,
    "questions": questions_groups,
    "serve": serve_groups,
    "curve": curve_groups,
}


# --- measuring ---


def measure(group, lab):
    """Measures a group; returns its rows, one a variant, in the group's order.

    A row is a dict: `section`, the group's labels, `variant`, `flops`, `bytes`,
    `questions`. Where it could be measured `seconds` (of one run, a number a round), `median`,
    `spread`, `peak_bytes`, `device_peak_bytes`, `parameters`, `windows`, `set_up_seconds`, what
    `compare` adds; else `note`.
    """
    progress = Progress(" ".join(map(str, [group.section, *group.labels.values()])))
    progress.total, progress.unit = group.rounds, "rounds"
    known = {"section": group.section, **group.labels}
    known |= {"bytes": group.bytes, "questions": group.questions}
    rows, workers = {}, {}
    for variant in group.variants:
        own = {"variant": variant.name, "flops": variant.flops or group.flops}
        rows[variant.name] = known | own
    try:
        rulers = lab.rulers() if group.flops else {}
        for name, worker in lab.start_all(group):
            progress.update(0, note=f"starting: {name} is ready")
            if isinstance(worker, Worker):
                workers[name] = worker
            else:
                rows[name]["note"] = worker
        times, failed = interleave(
            rulers | workers,
            group.rounds,
            lab.options.seconds if group.seconds is None else group.seconds,
            progress.update,
        )
        for name, worker in workers.items():
            _note_results(rows[name], worker, times[name], failed.get(name))
        progress.close(note="")
    finally:
        for worker in workers.values():
            worker.kill()
    rate = max((_rate(lab.options, times[name]) for name in rulers if times[name]), default=None)
    return compare(list(rows.values()), rate)


def _note_results(row, worker, seconds, failure):
    try:
        if failure:
            raise WorkerError(failure)
        row["peak_bytes"], row["device_peak_bytes"] = worker.close()
    except WorkerError as error:
        row["note"] = str(error)
        return
    row |= {"parameters": worker.parameters, "set_up_seconds": worker.set_up_seconds}
    row["windows"] = worker.windows
    if worker.details:
        row |= of_answers(seconds, **worker.details)
    else:
        row |= {"median": statistics.median(seconds), "spread": spread(seconds)}
    row["seconds"] = seconds


def _rate(options, seconds):
    size = rulers_of(options)[0].options["size"]
    return 2 * size**3 / statistics.median(seconds)


def run(options, json_file=None, plot_file=None):
    """Measures what `options` say, prints a table a section and returns all rows.

    Args:
        json_file: for machine, options and rows, written after every section.
        plot_file: for the curves, .svg or .png.
    """
    several, rows = _by_precision(options), []
    labs = [Laboratory(each, rulers_of(each)) for each in several]
    try:
        for section in options.sections:
            own = []
            for each in labs if section in _OF_PRECISION else labs[:1]:
                label = {"precision": each.options.precision} if len(labs) > 1 else {}
                for group in GROUPS[section](each.options):
                    labelled = dataclasses.replace(group, labels=group.labels | label)
                    own += measure(labelled, each)
            rows += own
            rate = max((row.get("rate", 0) for row in own), default=0)
            note = f" (matrix rate up to {rate / 1e9:,.0f} GFLOP/s)" if rate else ""
            say(f"\n{section}{note}\n{table(own)}\n")
            report = {"machine": _describe(labs), "options": dataclasses.asdict(options)}
            if json_file:
                write_json(json_file, report | {"rows": rows})
            if plot_file and section == "curve":
                plot(own, plot_file)
        say(_describe(labs))
    finally:
        for lab in labs:
            lab.close()
    return rows


_OF_PRECISION = ("forward", "step", "pretrain", "curve")  # sections that `precision` changes


def _by_precision(options):
    """Options with one precision each."""
    precisions = options.precisions or (options.precision,)
    return [dataclasses.replace(options, precision=each) for each in precisions]


def _describe(labs):
    """The machine and the software of all laboratories, as one line."""
    for lab in labs[1:]:
        for name, versions in lab.versions.items():
            labs[0].versions.setdefault(name, set()).update(versions)
    return labs[0].describe([lab.options.precision for lab in labs])
