"""The benchmark's workers that serve with others: Hugging Face's pipeline, ONNX Runtime, OpenVINO.

The networks of ONNX Runtime and OpenVINO are made of Hugging Face's model by `make_networks`; what
is before and after them is Hugging Face's tokenizer and, for questions, the search of its example
(peers_questions.py).
"""

import os
import tempfile

import numpy as np

from tools.benchmark import peers_questions
from tools.benchmark.loads import under_load
from tools.benchmark.peers import _config, _inputs, _num_weights, _set_up_torch
from tools.benchmark.workers import Ready, repeat, serve

NAMES = ("input_ids", "attention_mask", "token_type_ids")
ONNX, ONNX_INT8, OPENVINO = "model.onnx", "model.int8.onnx", "openvino.xml"


def _logits_of(work):
    return ("start_logits", "end_logits") if work["task"] == "questions" else ("logits",)


def pipeline(work):
    """Classes by `pipeline("text-classification")`; `compile`: under torch.compile."""

    def make():
        import torch
        import transformers

        model, device = peers_questions.load_model(work)
        if work.get("compile"):
            model.forward = torch.compile(model.forward)
        classify = transformers.pipeline(
            "text-classification",
            model=model,
            tokenizer=peers_questions._tokenizer(work),
            device=device,
        )
        options = {"truncation": True, "max_length": work["length"], "top_k": None}

        def answer(rows):
            return classify([text for (text,) in rows], batch_size=len(rows), **options)

        return answer

    return under_load(work, make)


def question_pipeline(work):
    """Answers by `pipeline("question-answering")` of transformers 4."""

    def make():
        answer, _ = peers_questions.pipeline_of(work)
        return lambda rows: answer(rows, batch_size=len(rows))

    return under_load(work, make)


def network(work):
    """Answers by a network alone, in `runtime`: "torch", "compiled", "onnx", "int8", "openvino"."""

    def make():
        compute, tokenizer = _RUNTIMES[work["runtime"]](work), peers_questions._tokenizer(work)
        if work["task"] == "questions":
            return lambda rows: _answer(rows, compute, tokenizer, work)

        def classify(rows):
            texts = [text for (text,) in rows]
            encoded = tokenizer(
                texts, truncation=True, max_length=work["length"], padding=True, return_tensors="np"
            )
            logits = compute({name: encoded[name] for name in NAMES})[0]
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return weights / weights.sum(axis=-1, keepdims=True)

        return classify

    return under_load(work, make)


def _answer(rows, compute, tokenizer, work):
    features, inputs = peers_questions._windows(rows, tokenizer, work | {"padding": "longest"})
    starts, ends = [], []
    for first in range(0, len(inputs), work["batch"]):
        part = inputs[first : first + work["batch"]]
        batch = tokenizer.pad(part, padding=True, return_tensors="np")
        logits = compute({name: batch[name] for name in NAMES})
        starts += list(logits[0])
        ends += list(logits[1])
    return peers_questions._best_spans(rows, features, starts, ends)


def _with_torch(work, compiled=False):
    import torch

    model, device = peers_questions.load_model(work)
    function = torch.compile(model) if compiled else model

    def compute(inputs):
        with torch.inference_mode():
            tensors = {k: torch.from_numpy(values).to(device) for k, values in inputs.items()}
            outputs = function(**tensors)
        return [outputs[name].cpu().numpy() for name in _logits_of(work)]

    return compute


def _with_onnx(work, file=ONNX):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work["threads"]
    session = onnxruntime.InferenceSession(
        os.path.join(work["model"], file), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(None, inputs)


def _with_openvino(work):
    import openvino

    path = os.path.join(work["model"], work.get("file", OPENVINO))
    settings = {
        "INFERENCE_NUM_THREADS": work["threads"],
        "INFERENCE_PRECISION_HINT": work.get("hint", "f32"),
    }
    compiled = openvino.compile_model(path, "CPU", settings)
    outputs = list(compiled.outputs)

    def compute(inputs):
        request = compiled.create_infer_request()
        found = request.infer(inputs)
        return [found[output] for output in outputs]

    return compute


_RUNTIMES = {
    "torch": _with_torch,
    "compiled": lambda work: _with_torch(work, compiled=True),
    "onnx": _with_onnx,
    "int8": lambda work: _with_onnx(work, ONNX_INT8),
    "openvino": _with_openvino,
    "openvino-bf16": lambda work: _with_openvino(work | {"hint": "bf16"}),
}


def make_networks(work):
    """Writes the network of `model` beside it, for ONNX Runtime (float32, int8) and OpenVINO."""
    import openvino
    from onnxruntime import quantization

    model, _ = peers_questions.load_model(work)
    path = os.path.join(work["model"], ONNX)
    _export(model, _logits_of(work), path)
    quantization.quantize_dynamic(path, os.path.join(work["model"], ONNX_INT8))
    converted = openvino.convert_model(path)
    openvino.save_model(converted, os.path.join(work["model"], OPENVINO), compress_to_fp16=False)
    _check_networks(work, model)
    return Ready(lambda n: None, warm_up=0)


def _export(model, names, path):
    """Writes the network of Hugging Face's `model`, with these outputs, as ONNX."""
    import torch

    ids = torch.randint(5, 100, (2, 24))
    example = {NAMES[0]: ids, NAMES[1]: torch.ones_like(ids), NAMES[2]: torch.zeros_like(ids)}
    dynamic = {name: {0: "batch", 1: "length"} for name in NAMES}
    dynamic |= {name: {0: "batch"} for name in names}

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *inputs):
            outputs = self.model(**dict(zip(NAMES, inputs, strict=True)))
            return tuple(outputs[name] for name in names)

    torch.onnx.export(
        Network().eval(),
        tuple(example.values()),
        path,
        input_names=list(NAMES),
        output_names=list(names),
        dynamic_axes=dynamic,
        opset_version=18,
        dynamo=False,
    )


def forward(work):
    """The encoder's output by `runtime`, of a network made of Hugging Face's model here."""
    import transformers

    _set_up_torch(work)
    model = transformers.ConvBertModel(_config(work)).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, ONNX)
        _export(model, ("last_hidden_state",), path)
        number = _num_weights(model)
        del model
        hint = "bf16" if work["precision"] == "bfloat16" else "f32"
        run = _RUNTIMES[work["runtime"]](work | {"model": folder, "hint": hint, "file": ONNX})
        inputs = _inputs(work, lambda values: values.astype("int64"))
        run(inputs)
    return Ready(repeat(lambda: run(inputs)), number)


def _check_networks(work, model):
    """Refuses networks that do not give what the model gives for other shapes than the traced."""
    import torch

    ids = torch.randint(5, 100, (3, 57))
    mask = (torch.arange(57)[None] < torch.tensor([[57], [40], [9]])).long()
    inputs = dict(zip(NAMES, (ids, mask, torch.zeros_like(ids)), strict=True))
    with torch.inference_mode():
        outputs = model(**inputs)
    expected = [outputs[name].numpy() for name in _logits_of(work)]
    for make in (_with_onnx, _with_openvino):
        found = make(work)({name: values.numpy() for name, values in inputs.items()})
        for values, right in zip(found, expected, strict=True):
            error = np.abs(values - right).max() / np.abs(right).max()
            if error > 1e-3:
                raise ValueError(f"the network of {make.__name__} differs by {error:.1e}")


if __name__ == "__main__":
    serve(
        {
            "pipeline": pipeline,
            "question_pipeline": question_pipeline,
            "network": network,
            "make_networks": make_networks,
            "forward": forward,
        }
    )
