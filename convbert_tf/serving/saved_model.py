"""SavedModels that take text and give answers, with the tokenizer and all else in the graph.

They load wherever `tensorflow` and `tensorflow_text` are: in TensorFlow Serving, or by
`tf.saved_model.load` in a process that has nothing of this package.
"""

import contextlib
import inspect
import os

import keras
import tensorflow as tf

from convbert_tf.config import check_length
from convbert_tf.console import UserError, reason, say
from convbert_tf.files import undone_on_error, write_json
from convbert_tf.modeling import presets
from convbert_tf.modeling.heads import QuestionAnswerer, TextClassifier, TokenClassifier
from convbert_tf.serving import inference, model_server
from convbert_tf.serving.pretrained import SERVERS
from convbert_tf.serving.questions import QuestionAnswererServer
from convbert_tf.serving.sentences import ClassifierServer
from convbert_tf.serving.tokens import TaggerServer
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.text.unicode_rules import UNICODE_VERSION

# Beside a SavedModel: its inputs, its labels, the lengths that it was exported with.
SIGNATURE_FILE = "signature.json"


def export(preset_dir, output_dir, max_seq_length=None, precision="float32", **options):
    """Writes the SavedModel of a preset to `output_dir`, and what servers read there.

    What is not given is as the model was trained and scored, if the preset tells it.

    Args:
        preset_dir: a preset of a TextClassifier, TokenClassifier or QuestionAnswerer with its
            vocabulary, or what else presets.load takes; of any class with the option `serve`.
        output_dir: for TensorFlow Serving, a number below the model's name: models/sst2/1.
        max_seq_length: longest input in tokens; without a word on it the model's positions.
        precision: that the encoder computes with: "float32" or "bfloat16".
        **options: of ClassifierServer, TaggerServer or QuestionAnswererServer; None is as not
            given. Or serve="embedding", "replaced_tokens" or "fill_mask", and those of
            EmbedderServer, ReplacedTokenServer or MaskFillerServer.

    Raises:
        UserError: the preset has no head to serve, `output_dir` is there already or cannot be
            written, or an option does not fit the model.
    """
    if os.path.exists(output_dir):
        raise UserError(f"{output_dir} is there already; serve a new version under a new number.")
    with _precision(precision):
        server = make_server(preset_dir, max_seq_length=max_seq_length, **options)
    if server.padding.matters:
        say(
            "this model sees its padding (mask_convolution=False), so its answers move a little "
            "with what a text is batched with; --padding=full serves what was scored, and is slower"
        )
    partial = f"{output_dir.rstrip('/')}.partial-{os.getpid()}"
    try:
        with undone_on_error(partial):
            tf.saved_model.save(server, partial, signatures=server.signatures())
            described = server.describe() | {
                "precision": precision,
                "unicode_version": UNICODE_VERSION,
                "single_thread_tokens": inference.single_thread_tokens(server.config),
            }
            described["signatures"] = model_server.complete(partial, server)
            write_json(os.path.join(partial, SIGNATURE_FILE), described)
            os.replace(partial, output_dir)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{output_dir} cannot be written ({reason(error)}).") from error


@contextlib.contextmanager
def _precision(precision):
    """Within it, encoders are made that have their weights in `precision`, and compute in it."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def make_server(preset_dir, serve=None, **given):
    """The server of a preset: that of its head, or of what it was pre-trained for.

    It has the model's ModelConfig as `config`. Args and errors as for `export`.
    """
    directory = presets.fetch(preset_dir)
    model = presets.load(directory)
    kind = _kind(model, serve, preset_dir)
    vocabulary = presets.vocabulary(directory)
    presets.check_vocabulary(vocabulary.path, model)
    known = inspect.signature(kind.__init__).parameters.keys()
    config = getattr(model, "encoder", model).config
    options = {"max_seq_length": config.max_position_embeddings}
    options |= _trained_with(presets.serving(directory), kind, serve)
    options |= {name: value for name, value in given.items() if value is not None}
    check_length(options["max_seq_length"], config)
    if foreign := options.keys() - known:
        what = f"serve={serve}" if serve else f"a {type(model).__name__}"
        raise UserError(f"{', '.join(sorted(foreign))}: no option of {what}.")
    server = kind(model, WordPieceTokenizer(*vocabulary), **options)
    server.config = config
    return server


def _kind(model, serve, preset_dir):
    """The class of the server."""
    if serve is not None:
        if serve not in SERVERS:
            raise UserError(f"serve must be one of {', '.join(SERVERS)}; got {serve!r:.60}.")
        return SERVERS[serve]
    kind = next((server for head, server in _SERVERS.items() if isinstance(model, head)), None)
    if kind is None:
        raise UserError(
            f"{preset_dir} holds a {type(model).__name__}; only a fine-tuned classifier of texts "
            "or of words, or a question answerer can be served as it is. Of others say what to "
            f"serve: --serve={', --serve='.join(SERVERS)}."
        )
    return kind


def _trained_with(options, kind, serve):
    """Of the options that a model was trained with, those of its server."""
    if serve:  # those of a fine-tuned head are not for its encoder
        return {name: options[name] for name in ("max_seq_length",) if name in options}
    if kind is TaggerServer and not options.get("pair"):  # as a TextPreprocessor tells it
        options.pop("pair", None)
    return options


_SERVERS = {
    TextClassifier: ClassifierServer,
    TokenClassifier: TaggerServer,
    QuestionAnswerer: QuestionAnswererServer,
}
