"""What can be measured: options, variants of ours and of the peers, groups of them; no TensorFlow.

What a variant computes stands in ours.py, peers.py and peers_questions.py.
"""

import dataclasses
import os

from convbert_tf.config import ModelConfig
from convbert_tf.console import UNASKED, UserError
from tools.benchmark.loads import LOADS

SECTIONS = ("forward", "step", "pretrain", "epoch", "records", "questions", "serve", "curve")
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
PEERS = ("eager", "compiled", "tensorflow", "onnx", "openvino")
FILES = {  # needed
    "epoch": ("cola_dir", "vocab_file"),
    "records": ("text", "vocab_file"),
    "questions": ("squad", "vocab_file"),
    "serve": ("texts", "squad", "vocab_file"),
}
OURS, THEIRS = "tools.benchmark.ours", "tools.benchmark.peers"
THEIR_QUESTIONS = "tools.benchmark.peers_questions"
OUR_SERVERS, THEIR_SERVERS = "tools.benchmark.servers", "tools.benchmark.peers_servers"


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
    precisions: tuple = ()  # several in one run, in place of `precision`
    peers_python: tuple = ()
    cola_dir: str = ""
    text: str = ""
    megabytes: float = 20.0  # of `text`
    vocab_file: str = ""
    squad: str = ""
    questions: int = 1000  # of `squad`
    texts: str = ""  # of section serve
    loads: tuple = tuple(LOADS)  # of section serve

    def __post_init__(self):
        _check_names("section", self.sections, SECTIONS)
        _check_names("size", self.sizes, SIZES)
        _check_names("peer", self.peers, PEERS)
        _check_names("load", self.loads, LOADS)
        _check_names("precision", (self.precision, *self.precisions), ("float32", "bfloat16"))
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
    None where they are not asked for; `bytes` of text that one run reads, `questions` that it
    answers; `seconds` after which no round begins, where they are not the options'.
    """

    section: str
    labels: dict
    work: dict
    variants: tuple
    rounds: int
    flops: float | None = None
    bytes: int = 0
    questions: int = 0
    seconds: float | None = None


# --- the variants ---


def of_ours(options, name, what, **work):
    without = ("tensorflow",) if options.backend == "jax" else UNASKED
    if what == "epoch":  # scikit-learn scores it, and asks for pandas
        without = ("jax",)
    environment = {"KERAS_BACKEND": options.backend, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return Variant(name, OURS, what, (options.backend,), work, environment, without)


def of_torch(name, what, needs=("torch", "transformers"), **work):
    return Variant(f"Hugging Face, {name}", THEIRS, what, needs, work)


_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


def peers_of(options, kind):
    """The peers' variants of `kind` "forward" or "step"."""
    known = {
        "eager": of_torch("PyTorch eager", f"torch_{kind}", compile=False),
        "compiled": of_torch("PyTorch compiled", f"torch_{kind}", compile=True),
        "tensorflow": Variant(
            "Hugging Face, TensorFlow graph",
            THEIRS,
            f"tensorflow_{kind}",
            ("tensorflow", "tf-keras", "transformers<5"),
            environment={"TF_USE_LEGACY_KERAS": "1"},
            without=UNASKED,
        ),
    }
    if kind == "forward":
        for name, label in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
            needs = ("torch", "transformers", _PACKAGES[name])
            known[name] = Variant(label, THEIR_SERVERS, "forward", needs, {"runtime": name})
        if options.precision != "float32":  # ONNX Runtime has no bfloat16 on processors
            del known["onnx"]
    on_jax = options.backend == "jax"  # for machines without TensorFlow
    left_out = {"tensorflow", "onnx", "openvino"} if on_jax else set()
    return tuple(known[n] for n in options.peers if n in known and n not in left_out)


def rulers_of(options):
    """Matrix products, by which the machine's rate is known; measured along with every group."""
    work = {"size": 2048 if options.precision == "float32" else 4096}
    return (
        of_ours(options, f"matrix product, {options.backend}", "matrix_product", **work),
        Variant("matrix product, torch", THEIRS, "torch_matrix_product", ("torch",), work),
    )


def runtime_of(options):
    """Our runtime without TensorFlow, of models with int8 matrices where others have bfloat16."""
    name = "ours, LiteRT" + (" int8" if options.precision != "float32" else "")
    return Variant(name, OUR_SERVERS, "forward", ("ai-edge-litert",), without=UNASKED)


# Of section serve: name, maker and work of each variant of ours, and of the peers by --peers.
_OUR_SERVERS = (
    ("ours, LiteRT int8", "litert", "litert-int8", {}),
    ("ours, LiteRT float32", "litert", "litert-float32", {}),
    ("ours, SavedModel", "saved_model", "saved_model", {}),
    ("ours, SavedModel, a thread an operation", "saved_model", "saved_model", {"intra": 1}),
    ("ours, SavedModel bfloat16", "saved_model", "saved_model-bfloat16", {}),
)
_RUNTIMES = (
    ("ONNX Runtime", "onnx", "onnx"),
    ("ONNX Runtime int8", "int8", "onnx"),
    ("OpenVINO", "openvino", "openvino"),
    ("OpenVINO bfloat16", "openvino-bf16", "openvino"),
)


def servers_of(options, task, folder):
    """Ours and the peers that serve `task`, "sentences" or "questions", of models in `folder`."""
    for name, what, directory, work in _OUR_SERVERS:
        needs = ("tensorflow-text",) if what == "saved_model" else ("ai-edge-litert",)
        model = {"model": os.path.join(folder, directory)}
        yield Variant(name, OUR_SERVERS, what, needs, work | model, without=UNASKED)
    for name, what, work, needs in _their_servers(options, task):
        yield Variant(f"Hugging Face, {name}", THEIR_SERVERS, what, needs, work)
    for name, runtime, peer in _RUNTIMES:
        if peer in options.peers:
            needs = ("transformers", _PACKAGES[peer])
            yield Variant(name, THEIR_SERVERS, "network", needs, {"runtime": runtime})


def _their_servers(options, task):
    """(name, maker, work, packages) of what Hugging Face has."""
    torch = ("torch", "transformers")
    if task == "questions":
        known = {
            "eager": [
                ("run_qa, PyTorch eager", "network", {"runtime": "torch"}, torch),
                ("pipeline", "question_pipeline", {}, ("torch", "transformers<5")),
            ],
            "compiled": [("run_qa, PyTorch compiled", "network", {"runtime": "compiled"}, torch)],
        }
    else:
        known = {
            "eager": [("pipeline, PyTorch eager", "pipeline", {}, torch)],
            "compiled": [("pipeline, PyTorch compiled", "pipeline", {"compile": True}, torch)],
        }
    return [each for name in options.peers for each in known.get(name, ())]
