"""Ours and other implementations side by side: what is measured, and its tables; no TensorFlow.

A section is a list of `Group`s: variants that do the same work and are measured in turns. How they
are stands in benchmark_workers.py; what they compute in benchmark_ours.py and benchmark_peers.py.
"""

import dataclasses
import itertools
import os
import statistics
import tempfile

from convbert_tf.config import ModelConfig, PretrainingConfig
from convbert_tf.console import UNASKED, Progress, UserError, say
from convbert_tf.data import text_files
from convbert_tf.files import write_json
from convbert_tf.modeling import flops
from tools.benchmark.tables import compare, plot, table
from tools.benchmark.workers import Laboratory, Worker, WorkerError, interleave, spread

SECTIONS = ("forward", "step", "pretrain", "epoch", "records", "curve")
SIZES = {
    "small": ModelConfig.small(),
    "medium_small": ModelConfig.medium_small(),
    "base": ModelConfig.base(),
    # To try the machinery; its figures say nothing.
    "tiny": ModelConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        embedding_size=16,
        linear_groups=2,
    ),
}
PEERS = ("eager", "compiled", "tensorflow")
FILES = {"epoch": ("cola_dir", "vocab_file"), "records": ("text", "vocab_file")}  # needed
OURS, THEIRS = "tools.benchmark.ours", "tools.benchmark.peers"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured, and how; the flags of tools/benchmark.py."""

    sections: tuple = ("forward", "step")
    sizes: tuple = ("small", "medium_small", "base")
    shapes: tuple = ((8, 128), (1, 128), (4, 512))  # forward: (batch, length)
    step_shape: tuple = (8, 128)  # step and pretrain
    lengths: tuple = (64, 128, 256, 512, 1024, 2048)  # curve, at batch 1
    batches: tuple = (1, 2, 4, 8, 16, 32)  # curve, at length 128
    peers: tuple = PEERS
    rounds: int = 15
    epoch_rounds: int = 1
    seconds: float = 30.0  # a group takes no further round after so long
    threads: int = 0  # 0: all cores
    backend: str = "tensorflow"  # of ours: "jax" too
    precision: str = "float32"
    peers_python: tuple = ()
    cola_dir: str = ""
    text: str = ""
    megabytes: float = 20.0  # of `text`
    vocab_file: str = ""

    def __post_init__(self):
        _check_names("section", self.sections, SECTIONS)
        _check_names("size", self.sizes, SIZES)
        _check_names("peer", self.peers, PEERS)
        for section, needed in FILES.items():
            if section in self.sections:
                if self.backend == "jax":
                    raise UserError(f"section {section} is TensorFlow's: not with --backend=jax.")
                for name in needed:
                    self._check_file(section, name)

    def _check_file(self, section, name):
        path = getattr(self, name)
        if not path:
            raise UserError(f"section {section} needs --{name}.")
        if not os.path.exists(path):
            raise UserError(f"--{name}={path} is not there.")


def parse_number(text):
    """A whole number above 0 of a flag."""
    if not str(text).strip().isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is no whole number above 0.")
    return int(text)


def parse_shape(text):
    """(batch, length) of a flag like "8x128"."""
    parts = text.split("x")
    if len(parts) != 2:
        raise UserError(f"{text!r} is no shape: write batch x length, as 8x128.")
    return tuple(map(parse_number, parts))


def _check_names(what, names, known):
    for name in names:
        if name not in known:
            raise UserError(f"there is no {what} {name!r}: choose of {', '.join(known)}.")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do a group's work.

    Attributes:
        name: in the tables.
        module, what: the worker's module, and the maker there.
        needs: packages; "transformers<5" is a transformers of before version 5.
        options: on top of the group's work.
        environment, without: see Worker.
        flops: model FLOPs of one run, where they are not the group's.
    """

    name: str
    module: str
    what: str
    needs: tuple = ()
    options: dict = dataclasses.field(default_factory=dict)
    environment: dict = dataclasses.field(default_factory=dict)
    without: tuple = ()
    flops: float | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Variants that do the same `work`; the first is ours, which the others are compared with.

    `labels` (column -> value) tell the group in the tables; `flops` are the model's, of one run,
    None where they are not asked for; `bytes` of text that one run reads.
    """

    section: str
    labels: dict
    work: dict
    variants: tuple
    rounds: int
    flops: float | None = None
    bytes: int = 0


# --- the variants ---


def _ours(options, name, what, **work):
    without = ("tensorflow",) if options.backend == "jax" else UNASKED
    if what == "epoch":  # scikit-learn scores it, and asks for pandas
        without = ("jax",)
    environment = {"KERAS_BACKEND": options.backend, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return Variant(name, OURS, what, (options.backend,), work, environment, without)


def _torch(name, what, needs=("torch", "transformers"), **work):
    return Variant(f"Hugging Face, {name}", THEIRS, what, needs, work)


def _peers(options, kind):
    """Hugging Face's variants of `kind` "forward" or "step"."""
    known = {
        "eager": _torch("PyTorch eager", f"torch_{kind}", compile=False),
        "compiled": _torch("PyTorch compiled", f"torch_{kind}", compile=True),
        "tensorflow": Variant(
            "Hugging Face, TensorFlow graph",
            THEIRS,
            f"tensorflow_{kind}",
            ("tensorflow", "tf-keras", "transformers<5"),
            environment={"TF_USE_LEGACY_KERAS": "1"},
            without=UNASKED,
        ),
    }
    on_jax = options.backend == "jax"  # for machines without TensorFlow
    return tuple(known[name] for name in options.peers if not (on_jax and name == "tensorflow"))


def _rulers(options):
    """Matrix products, by which the machine's rate is known; measured along with every group."""
    work = {"size": 2048 if options.precision == "float32" else 4096}
    return (
        _ours(options, f"matrix product, {options.backend}", "matrix_product", **work),
        Variant("matrix product, torch", THEIRS, "torch_matrix_product", ("torch",), work),
    )


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
    ours = [_ours(options, "ours", "forward")]
    if options.backend == "tensorflow":
        # An operation of a small batch is over before a second thread has woken up.
        ours.append(_ours(options, "ours, a thread an operation", "forward", intra=1))
    variants = (*ours, *_peers(options, "forward"))
    for size, shape in itertools.product(options.sizes, options.shapes):
        config, labels = _config(size, shape[1]), _labels(size, shape)
        work, cost = _work(config, shape), _forward_flops(config, shape)
        yield Group("forward", labels, work, variants, options.rounds, cost)


def step_groups(options):
    shape, variants = options.step_shape, (_ours(options, "ours", "step"), *_peers(options, "step"))
    for size in options.sizes:
        config, labels = _config(size, shape[1]), _labels(size, shape)
        work, cost = _work(config, shape), 3 * _forward_flops(config, shape)
        yield Group("step", labels, work, variants, options.rounds, cost)


def pretrain_groups(options):
    shape = options.step_shape
    variants = (
        _ours(options, "ours", "pretrain", structure="ours"),
        _ours(options, "the original's losses", "pretrain", structure="losses"),
        _ours(options, "the original's losses and layers", "pretrain", structure="all"),
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
        attention = _ours(options, "ours, full attention", "forward", config=full.to_dict())
        variants = (
            _ours(options, "ours", "forward"),
            dataclasses.replace(attention, flops=_forward_flops(full, shape)),
            *_peers(options, "forward"),
        )
        work, cost = _work(config, shape), _forward_flops(config, shape)
        yield Group("curve", _labels(size, shape), work, variants, options.rounds, cost)


def epoch_groups(options):
    shape = (32, 128)
    needs = ("torch", "transformers", "accelerate")
    variants = (
        _ours(options, "ours, real lengths", "epoch"),
        _torch("Trainer, dynamic padding", "trainer_epoch", needs, padding="longest"),
        _torch("Trainer, padded to 128", "trainer_epoch", needs, padding="max_length"),
    )
    files = {"cola_dir": options.cola_dir, "vocab_file": options.vocab_file}
    for size in options.sizes:
        work = _work(_config(size, 128), shape) | files
        yield Group("epoch", _labels(size, shape), work, variants, options.epoch_rounds)


def records_groups(options):
    """One core, whatever `threads`; of the first `megabytes` of the text."""
    needs = ("tokenizers", "tensorflow", "tensorflow-text")
    variants = (
        _ours(options, "ours", "records"),
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


GROUPS = {
    "forward": forward_groups,
    "step": step_groups,
    "pretrain": pretrain_groups,
    "epoch": epoch_groups,
    "records": records_groups,
    "curve": curve_groups,
}


# --- measuring ---


def measure(group, lab):
    """Measures a group; returns its rows, one a variant, in the group's order.

    A row is a dict: `section`, the group's labels, `variant`, `flops`, `bytes`. Where it could be
    measured `seconds` (of one run, a number a round), `median`, `spread`, `peak_bytes`,
    `device_peak_bytes`, `parameters`, `set_up_seconds`, what `compare` adds; else `note`.
    """
    progress = Progress(" ".join(map(str, [group.section, *group.labels.values()])))
    progress.total, progress.unit = group.rounds, "rounds"
    known = {"section": group.section, **group.labels, "bytes": group.bytes}
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
            rulers | workers, group.rounds, lab.options.seconds, progress.update
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
    row |= {"seconds": seconds, "median": statistics.median(seconds), "spread": spread(seconds)}


def _rate(options, seconds):
    size = _rulers(options)[0].options["size"]
    return 2 * size**3 / statistics.median(seconds)


def run(options, json_file=None, plot_file=None):
    """Measures what `options` say, prints a table a section and returns all rows.

    Args:
        json_file: for machine, options and rows, written after every section.
        plot_file: for the curves, .svg or .png.
    """
    lab, rows = Laboratory(options, _rulers(options)), []
    try:
        for section in options.sections:
            own = [row for group in GROUPS[section](options) for row in measure(group, lab)]
            rows += own
            rate = max((row.get("rate", 0) for row in own), default=0)
            note = f" (matrix rate up to {rate / 1e9:,.0f} GFLOP/s)" if rate else ""
            say(f"\n{section}{note}\n{table(own)}\n")
            report = {"machine": lab.describe(), "options": dataclasses.asdict(options)}
            if json_file:
                write_json(json_file, report | {"rows": rows})
            if plot_file and section == "curve":
                plot(own, plot_file)
        say(lab.describe())
    finally:
        lab.close()
    return rows
