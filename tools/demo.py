r"""Opens a page in the browser to try models: ask, classify, tag, fill masks, look inside.

    python tools/demo.py --model=runs/qa --model=models/acceptability/1 --model=runs/tiny

Each --model is a tab: a preset or a run, also of pre-training, a SavedModel, a LiteRT directory, or
hf://owner/name. Of presets and runs there are pictures too, of the attention and of the
convolution's kernels for a text. The page is for this machine alone unless --host says otherwise.
Needs Gradio and matplotlib: pip install -e '.[demo,plot]'
"""

import os

from absl import flags

from convbert_tf import console

MODEL = flags.DEFINE_multi_string("model", None, "What to try; may be given again.", required=True)
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to serve at; 0.0.0.0: to all networks.")
PORT = flags.DEFINE_integer("port", 7860, "Port to serve at.", lower_bound=1, upper_bound=65535)

MOST_WORDS = 60  # of a text in a picture
EXAMPLES = {
    "text": "The bridge was opened in 1906, and it is a museum now.",
    "masked": "The bridge was [MASK] in 1906, and it is a [MASK] now.",
    "text_a": "The bridge was opened in 1906.",
    "text_b": "It was closed in 1906.",
    "question": "When was the bridge opened?",
    "context": "The old bridge, a work of Ada Lovelace's, was opened in 1906. It is a museum now.",
}


def main(_):
    import_gradio()
    console.load_tensorflow()
    page = make_page(MODEL.value)
    console.say(f"the page is at http://{HOST.value}:{PORT.value}; Ctrl-C ends it")
    try:
        page.launch(server_name=HOST.value, server_port=PORT.value, quiet=True)
    except OSError as error:
        raise console.UserError(
            f"port {PORT.value} of {HOST.value} cannot be served at; give another --port."
        ) from error


def import_gradio():
    """The module gradio, without its reports to its makers."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise console.UserError("the page needs Gradio: pip install -e '.[demo,plot]'.") from error
    return gradio


def make_page(models):
    """The page of the models in these directories, a gradio.Blocks."""
    gradio = import_gradio()
    loaded = [(source, name, panel) for source in models for name, panel in panels_of(source)]
    with gradio.Blocks(title="ConvBERT", analytics_enabled=False) as page:
        gradio.Markdown("# ConvBERT")
        for source, name, panel in loaded:
            with gradio.Tab(f"{name}: {source}"):
                panel(gradio)
    return page


def panels_of(source):
    """Yields (name, function that fills a tab) of what the model in `source` can do."""
    from convbert_tf.modeling import presets
    from convbert_tf.serving import loading
    from convbert_tf.weights import formats

    console.say(f"loading {source}")
    if loading.is_exported(source):
        yield _panel(loading.load(source))
        return
    directory = presets.fetch(presets.preset_of(source))
    for serve in _abilities(formats.read(directory)):
        yield _panel(loading.load(directory, serve=serve))
    yield "inside", _inside(directory)


def _abilities(stored):
    """What a Stored model is served for: values of the option `serve` of serving.export."""
    if stored.kind == "ConvBertEncoder":
        return ["embedding"]
    if stored.kind != "ConvBertPretrainer":
        return [None]
    lacking = set()
    if stored.pretraining.uniform_generator:
        lacking.add("fill_mask")
    if stored.pretraining.objective == "mlm":
        lacking.add("replaced_tokens")
    return [each for each in ("fill_mask", "replaced_tokens", "embedding") if each not in lacking]


def _panel(served):
    """(name, function that fills a tab) for a serving.Served, by what it answers."""
    outputs = ask(served, *[""] * len(served.inputs))
    known = {
        "answer": ("ask", _answers),
        "num_words": ("tag", _tags),
        "num_masks": ("fill in", _masks),
        "replaced_probability": ("replaced tokens", _tokens),
        "embedding": ("likeness", _likeness),
    }
    name, fill = next((known[key] for key in known if key in outputs), ("classify", _classes))
    return name, lambda gradio: fill(gradio, served)


def ask(served, *texts):
    """What a model says of one input: name -> array or value."""
    import tensorflow as tf

    inputs = {name: tf.constant([text]) for name, text in zip(served.inputs, texts, strict=True)}
    return {name: values.numpy()[0] for name, values in served.call(**inputs).items()}


# --- tabs; each shows inputs, a button, and outputs that the function below it computes ---


def _tab(gradio, boxes, outputs, function, button):
    boxes = [
        gradio.Textbox(label=name, value=EXAMPLES.get(name, value), lines=lines)
        for name, value, lines in boxes
    ]
    pressed = gradio.Button(button, variant="primary")
    for output in outputs:
        output.render()
    pressed.click(function, boxes, outputs, api_name=button.replace(" ", "_"))


def _boxes(served):
    return [(name, "", 5 if name == "context" else 1) for name in served.inputs]


def _classes(gradio, served):
    def classify(*texts):
        found = ask(served, *texts)
        if "score" in found:
            return {f"{found['score']:.3f}": 1.0}
        names = served.labels or [str(i) for i in range(len(found["probabilities"]))]
        return {k: float(v) for k, v in zip(names, found["probabilities"], strict=True)}

    outputs = [gradio.Label(label="label", render=False)]
    _tab(gradio, _boxes(served), outputs, classify, "classify")


def _answers(gradio, served):
    def answer(question, context):
        found = ask(served, question, context)
        start, end = int(found["start_char"]), int(found["end_char"])
        parts = [(context[:start], None), (context[start:end], "answer"), (context[end:], None)]
        odds = f"; log-odds of no answer {found['null_odds']:.2f}" if "null_odds" in found else ""
        said = context[start:end] or "(no answer)"
        return said, [part for part in parts if part[0]], f"{found['score']:.3f}{odds}"

    outputs = [
        gradio.Textbox(label="answer", render=False),
        gradio.HighlightedText(label="in its context", render=False),
        gradio.Textbox(label="log probability", render=False),
    ]
    _tab(gradio, _boxes(served), outputs, answer, "ask")


def _tags(gradio, served):
    def tag(text):
        found = ask(served, text)
        name, label = ("entity", "entity_label") if "num_entities" in found else ("word", "tag")
        number = int(found["num_entities" if name == "entity" else "num_words"])
        spans = zip(found[f"{name}_start"], found[f"{name}_end"], found[label], strict=True)
        return _marked(text, list(spans)[:number])

    outputs = [gradio.HighlightedText(label="tags", render=False, combine_adjacent=False)]
    _tab(gradio, _boxes(served), outputs, tag, "tag")


def _marked(text, spans):
    """(part, label or None) of a text, whose `spans` are (first byte, byte behind, label)."""
    content, parts, at = text.encode("utf-8"), [], 0
    for start, end, label in spans:
        parts.append((content[at:start].decode("utf-8", "replace"), None))
        label = label.decode("utf-8") if isinstance(label, bytes) else float(label)
        parts.append((content[start:end].decode("utf-8", "replace"), label))
        at = end
    parts.append((content[at:].decode("utf-8", "replace"), None))
    return [part for part in parts if part[0]]


def _masks(gradio, served):
    def fill_in(text):
        found = ask(served, text)
        rows = []
        for mask in range(int(found["num_masks"])):
            pieces = zip(found["fills"][mask], found["fill_probability"][mask], strict=True)
            rows += [[mask + 1, piece.decode("utf-8"), round(float(p), 4)] for piece, p in pieces]
        return found["filled"].decode("utf-8"), rows

    outputs = [
        gradio.Textbox(label="filled", render=False),
        gradio.Dataframe(headers=["mask", "piece", "probability"], render=False),
    ]
    _tab(gradio, [("text with [MASK]", EXAMPLES["masked"], 2)], outputs, fill_in, "fill in")


def _tokens(gradio, served):
    def detect(text):
        found = ask(served, text)
        names = ("token_start", "token_end", "replaced_probability")
        spans = zip(*(found[name] for name in names), strict=True)
        return _marked(text, list(spans)[: int(found["num_tokens"])])

    label = "how probable it is that another token stood there"
    outputs = [gradio.HighlightedText(label=label, render=False)]
    _tab(gradio, [("text", "", 2)], outputs, detect, "detect")


def _likeness(gradio, served):
    def compare(first, second):
        import numpy as np

        a, b = (ask(served, text)["embedding"].astype(float) for text in (first, second))
        return f"{a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12):.4f}"

    outputs = [gradio.Textbox(label="cosine of the two embeddings", render=False)]
    _tab(gradio, [("text_a", "", 1), ("text_b", "", 1)], outputs, compare, "compare")


def _inside(directory):
    """A tab of pictures of what the encoder in `directory` looks at."""
    from convbert_tf.modeling import presets
    from convbert_tf.text.tokenization import WordPieceTokenizer
    from convbert_tf.workflows import inspection

    encoder = presets.load_encoder(directory)
    tokenizer = WordPieceTokenizer(*presets.vocabulary(directory))

    def look(text, layer):
        inside = inspection.inspect(encoder, tokenizer, " ".join(text.split()[:MOST_WORDS]))
        kernels = None
        if inside.kernels is not None:
            kernels = inspection.draw_kernels(inside, int(layer) - 1)
        return kernels, inspection.draw_attention(inside, int(layer) - 1)

    def fill(gradio):
        text = gradio.Textbox(label="text", value=EXAMPLES["text"])
        layers = [*range(1, encoder.config.num_hidden_layers + 1)]
        layer = gradio.Dropdown(layers, value=1, label="layer")
        pressed = gradio.Button("look", variant="primary")
        pictures = [
            gradio.Plot(label="kernels", show_label=False),
            gradio.Plot(label="attention", show_label=False),
        ]
        pressed.click(look, [text, layer], pictures, api_name="look")

    return fill


if __name__ == "__main__":
    console.run(main)
