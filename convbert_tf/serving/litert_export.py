"""Fine-tuned presets as LiteRT directories: model.tflite, vocab.txt, settings.json, README.md.

The converter takes the frozen network of one input of any length, with LiteRT's own operators
alone. The texts' way to it and from it is litert.py's.
"""

import copy
import dataclasses
import os
import tempfile

import tensorflow as tf

from convbert_tf.console import UserError, reason, say, without_stderr
from convbert_tf.files import sha256, undone_on_error, write_bytes, write_json
from convbert_tf.modeling import presets
from convbert_tf.serving import litert, litert_check
from convbert_tf.serving.inference import Padding, freeze, signature
from convbert_tf.serving.pretrained import (
    EmbedderServer,
    MaskFillerServer,
    ReplacedTokenServer,
)
from convbert_tf.serving.questions import QuestionAnswererServer
from convbert_tf.serving.saved_model import make_server
from convbert_tf.serving.tokens import TaggerServer
from convbert_tf.tasks import tokens
from convbert_tf.text import vocabulary
from convbert_tf.text.unicode_rules import UNICODE_VERSION
from convbert_tf.weights import formats

_MOST_LOST = 0.5  # points of the score that int8 may cost


def export_litert(preset_dir, output_dir, precision="int8", padding=None, task=None, **options):
    """Writes the LiteRT directory of a fine-tuned preset to `output_dir`.

    The int8 network has weights of eight bits, a scale for each column, and computes with inputs
    that are rounded to eight bits a token. Where it loses more than half a point on the dev split
    of `task`, the float32 network is written instead, and a line says so.

    Args:
        preset_dir: as for saved_model.export.
        output_dir: a directory that is not there.
        precision: "int8" or "float32".
        padding: "longest" (or None): each input gets what it gets alone, without padding; "full":
            what it gets padded to max_seq_length, as a model whose convolution sees padding was
            scored.
        task: config.TaskConfig of the data to score the networks on, or None.
        **options: as for saved_model.export.

    Returns:
        The litert_check.Findings.

    Raises:
        UserError: as saved_model.export; `task` does not fit the model.
    """
    if os.path.lexists(output_dir):
        raise UserError(f"{output_dir} is there already; name a new directory.")
    directory = presets.fetch(presets.preset_of(preset_dir))
    server = make_server(directory, **options)
    if task and options.get("serve"):
        raise UserError("there are no scores to check of what was not fine-tuned.")
    model, spare = _model(formats.read(directory), padding or "longest", server)
    settings = _settings(server) | {"spare": spare}
    check = litert_check.Check(model, server.tokenizer, settings, task)
    partial = f"{output_dir.rstrip('/')}.partial-{os.getpid()}"
    try:
        with undone_on_error(partial), tempfile.TemporaryDirectory() as work_dir:
            networks = _convert(model, work_dir, precision)
            say("checking it")
            findings = check(networks)
            chosen = _choose(findings, precision)
            _write(partial, networks[chosen], settings | {"precision": chosen}, server.tokenizer)
            card = _card(os.path.basename(output_dir.rstrip("/")), settings, chosen, findings)
            write_bytes(os.path.join(partial, "README.md"), card.encode("utf-8"))
            os.replace(partial, output_dir)
    except OSError as error:
        raise UserError(f"{output_dir} cannot be written ({reason(error)}).") from error
    return findings


def _choose(findings, precision):
    """The precision that is written."""
    lost = findings.lost
    if precision == "int8" and lost is not None and lost > _MOST_LOST:
        say(
            f"int8 loses {lost:.2f} points of {findings.metric}, more than {_MOST_LOST}: the model "
            "is written as float32"
        )
        return "float32"
    return precision


# --- the network ---


def _model(stored, padding, server):
    """The network of `server`, and how many tokens of padding it needs behind an input.

    With padding="longest" its convolution does not see padding, so that an input gets what it gets
    alone, whatever it is padded to.
    """
    network = getattr(server, "network", lambda model: model)
    model = network(presets.build(stored))
    kept = Padding(padding, model, server.max_seq_length)
    if not kept.matters:
        return model, kept.spare
    say(
        "this model sees its padding (mask_convolution=False); here each text is answered as if it "
        "were alone, without any. --padding=full answers as the model is scored, and is slower"
    )
    config = copy.deepcopy(stored.config)
    of_encoder = config["encoder"]["config"] if "encoder" in config else config
    of_encoder["config"]["mask_convolution"] = True
    return network(presets.build(dataclasses.replace(stored, config=config))), 0


def _convert(model, work_dir, precision):
    """Precision -> path of the .tflite file: of float32, and of int8 if that is `precision`."""
    compute = freeze(model)

    def serve(input_ids, input_mask, segment_ids):
        inputs = {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": segment_ids}
        outputs = compute(inputs)
        if not isinstance(outputs, dict):
            return {getattr(model, "output_name", "logits"): outputs}
        return {k: v for k, v in outputs.items() if k not in ("start_logits", "end_logits")}

    one = tf.TensorSpec([1, None], tf.int32)
    module = tf.Module()
    module.serve = signature(serve, input_ids=one, input_mask=one, segment_ids=one)
    saved, paths = os.path.join(work_dir, "saved_model"), {}
    with without_stderr():
        tf.saved_model.save(module, saved, signatures={litert.SIGNATURE: module.serve})
    for name in dict.fromkeys(("float32", precision)):
        say(f"converting to {name}")
        with without_stderr():
            converter = tf.lite.TFLiteConverter.from_saved_model(saved)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            if name == "int8":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            content = converter.convert()
        paths[name] = os.path.join(work_dir, f"{name}.tflite")
        write_bytes(paths[name], content)
    return paths


# --- the directory ---


def _settings(server):
    """settings.json of a server, without what depends on the files."""
    described = server.describe()
    settings = {
        "format": 1,
        "kind": "classifier",
        "inputs": described["inputs"],
        "max_seq_length": server.max_seq_length,
        "lower_case": server.tokenizer.lower_case,
        "strip_accents": server.tokenizer.strip_accents,
        "unicode_version": UNICODE_VERSION,
    }
    if isinstance(server, QuestionAnswererServer):
        names = "doc_stride max_query_length max_answer_length answerable null_threshold"
        return settings | {"kind": "answerer"} | _attributes(server, names)
    if isinstance(server, TaggerServer):
        entities = _entities(server.labels) if server.scheme else None
        more = {"kind": "tagger", "labels": server.labels, "entities": entities}
        return settings | more | {"doc_stride": described["doc_stride"]}
    if type(server) in _PRETRAINED:
        kind, names = _PRETRAINED[type(server)]
        return settings | {"kind": kind} | {name: described[name] for name in names}
    names = "labels num_classes pair multi_label min_score max_score"
    return settings | _attributes(server, names)


# The kind of a LiteRT model, and what it needs to know of its server.
_PRETRAINED = {
    EmbedderServer: ("embedder", ("pooling", "normalize", "hidden_size")),
    ReplacedTokenServer: ("detector", ("doc_stride",)),
    MaskFillerServer: ("filler", ("doc_stride", "top_k")),
}


def _attributes(server, names):
    return {name: getattr(server, name) for name in names.split()}


def _entities(labels):
    """For each tag None, or the litert.Entity that it says; limits are as in `tokens.metrics`."""
    parts = [tokens.entity_part(label) for label in labels]
    return [
        {"kind": part[1], "begins": part[0] in "BS", "closes": part[0] in "ES"} if part else None
        for part in parts
    ]


def _write(directory, network, settings, tokenizer):
    model_file = os.path.join(directory, litert.MODEL_FILE)
    vocab_file = os.path.join(directory, vocabulary.VOCAB_FILE)
    with open(network, "rb") as file:
        write_bytes(model_file, file.read())
    write_bytes(vocab_file, vocabulary.file_content(tokenizer.vocab_file))
    hashes = {os.path.basename(path): sha256(path) for path in (model_file, vocab_file)}
    write_json(os.path.join(directory, litert.SETTINGS_FILE), settings | {"sha256": hashes})


def _card(name, settings, precision, findings):
    """README.md of the directory."""
    arguments = ", ".join(f'{each}=["..."]' for each in settings["inputs"])
    padding = (
        "padded to its longest input, as the model was scored" if settings["spare"] else "alone"
    )
    return f"""# {name}

A {settings["kind"]} of convbert_tf for LiteRT, {precision}: `model.tflite` is the network, \
`vocab.txt` and
`settings.json` are what texts need before and after it. Inputs of up to \
{settings["max_seq_length"]} tokens.
Each text gets what it gets {padding}.

In a clone of convbert_tf, without TensorFlow:

```bash
pip install ai-edge-litert && pip install --no-deps .
```
```python
from convbert_tf.serving import litert

model = litert.load("{name}")
print(model({arguments}))
```

{findings.table()}
"""
