"""Questions about contexts answered in bulk, from a preset."""

import dataclasses
import itertools
import math
import os

import numpy as np
import tensorflow as tf

from convbert_tf.config import TaskConfig, check_length
from convbert_tf.console import UserError
from convbert_tf.data import tables
from convbert_tf.files import is_address
from convbert_tf.modeling import presets
from convbert_tf.modeling.heads import QuestionAnswerer
from convbert_tf.tasks import questions, squad, squad_data, squad_decoding
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.training import sharing
from convbert_tf.weights import formats
from convbert_tf.workflows import prediction

# What is answered at once: so that windows of like lengths are found, and their outputs are held.
_QUESTIONS, _CHARACTERS = 4096, 8_000_000
# Of windows that are computed at once on a processor, with padding: more are not quicker there.
_TOKENS = 2048
_MULTIPLE = 4  # of a batch's length, so that there are fewer lengths


class Answerer:
    """A model that answers questions about contexts of any length, many at once.

    A context is tokenised once for all its questions, and windows of like lengths are computed
    together. The answers are those that the task is scored with, and that a SavedModel gives.

    Args:
        source: a fine-tuned preset, the run that has made one, a Hugging Face directory, or
            "hf://owner/name".
        batch_size: most windows computed at once; without a GPU fewer if they are long.
        max_seq_length: longest window in tokens; by default as trained.

    Raises:
        UserError: the model is no QuestionAnswerer, or cannot be read.

    Example:
        >>> example = squad.SquadExample("1", "Who wrote it?", "Ada wrote it.", (), False)
        >>> Answerer("runs/qa").answer([example])[0].answer
    """

    inputs = ("question", "context")

    def __init__(self, source, batch_size=32, max_seq_length=None):
        directory = presets.fetch(presets.preset_of(source))
        model = presets.load(directory)
        if misfit := presets.misfit(model, QuestionAnswerer):
            raise UserError(f"the model in {source} answers no questions: {misfit}.")
        vocabulary = presets.vocabulary(directory)
        presets.check_vocabulary(vocabulary.path, model)
        positions = model.encoder.config.max_position_embeddings
        settings = {"max_seq_length": positions} | presets.serving(directory)
        self.max_seq_length = max_seq_length or settings["max_seq_length"]
        check_length(self.max_seq_length, model.encoder.config)
        self._lengths = [settings.get(n, getattr(TaskConfig, n)) for n in _LENGTHS]
        self._max_answer_length = settings.get("max_answer_length", TaskConfig.max_answer_length)
        self.null_threshold = settings.get("null_threshold")
        self.answerable, self.batch_size = model.answerable, batch_size
        self.tokenizer = WordPieceTokenizer(*vocabulary)
        self._model = model
        spec = tf.TensorSpec([None, None], tf.int32)
        signature = [dict.fromkeys(("input_ids", "input_mask", "segment_ids"), spec)]
        self._compute = tf.function(self._beams, input_signature=signature, autograph=False)
        self._tokens_at_once = math.inf if tf.config.list_logical_devices("GPU") else _TOKENS

    def answer(self, examples, n_best_size=20, watch=None):
        """A View of each of `examples` (SquadExamples with ids of their own), in their order.

        Args:
            n_best_size: most answers of the n-best list.
            watch: is called after each batch with the share of the work that is done.
        """
        if not examples:
            return []
        windows = squad.make_windows(
            examples, self.tokenizer, self.max_seq_length, *self._lengths, quiet=True
        )
        outputs = self._outputs(windows, watch)
        _, nbest, null_odds = squad_decoding.decode(
            windows, outputs, self._max_answer_length, n_best_size, self.answerable
        )
        return questions.views(examples, nbest, null_odds, self.null_threshold)

    def _beams(self, batch):
        with sharing.shared_blocks(self._model):
            outputs = self._model(batch, training=False)
        return {name: outputs[name] for name in squad_decoding.OUTPUT_NAMES if name in outputs}

    def _outputs(self, windows, watch):
        """What `squad_decoding.decode` takes, computed in batches of windows of like lengths."""
        lengths = np.array([window.length for window in windows])
        order, found, done = np.argsort(-lengths, kind="stable"), {}, 0
        while done < len(order):
            padded = -(-lengths[order[done]] // _MULTIPLE) * _MULTIPLE
            number = int(max(1, min(self.batch_size, self._tokens_at_once // padded)))
            rows = order[done : done + number]
            for name, values in self._compute(_batch([windows[i] for i in rows], padded)).items():
                if name not in found:
                    found[name] = np.empty([len(order), *values.shape[1:]], values.numpy().dtype)
                found[name][rows] = values.numpy()
            done += len(rows)
            if watch:
                watch(done / len(order))
        return found

    def answer_all(self, examples, watch=None):
        """Yields the View of each of any number of `examples`, some thousands at a time.

        Args:
            examples: an iterable; their ids may repeat.
            watch: is called with the number of questions that are done since the last call.
        """
        for chunk in _chunks(examples):
            done = 0

            def tell(share, chunk=chunk):
                nonlocal done
                now = round(share * len(chunk))
                watch(now - done)
                done = now

            numbered = [
                dataclasses.replace(example, question_id=str(number))
                for number, example in enumerate(chunk)
            ]
            found = self.answer(numbered, watch=watch and tell)
            for example, view in zip(chunk, found, strict=True):
                yield dataclasses.replace(view, example=example)


def _batch(windows, length):
    """The model's inputs of `windows`, int32 [B, length], filled up with 0 as records are."""
    names = ("input_ids", "input_mask", "segment_ids")
    batch = {name: np.zeros([len(windows), length], np.int32) for name in names}
    for row, window in enumerate(windows):
        batch["input_ids"][row, : window.length] = window.input_ids
        batch["input_mask"][row, : window.length] = 1
        batch["segment_ids"][row, window.context_position : window.length] = 1
    return batch


def is_answerer(source):
    """Whether `source`, as for Answerer or `serving.load`, is no SavedModel and answers questions.

    What cannot be read at all does not: `serving.load` tells why.
    """
    if not is_address(source) and os.path.exists(os.path.join(source, "saved_model.pb")):
        return False
    try:
        directory = presets.fetch(presets.preset_of(source))
        if presets.is_huggingface(directory):
            return formats.read(directory).kind == QuestionAnswerer.__name__
        return presets.describe(directory)["class"] == QuestionAnswerer.__name__
    except UserError:
        return False


_LENGTHS = ("doc_stride", "max_query_length")


def _chunks(examples):
    """Lists of consecutive `examples`, of as many as are answered at once."""
    chunk, size = [], 0
    for example in examples:
        chunk.append(example)
        size += len(example.context)
        if len(chunk) == _QUESTIONS or size >= _CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


# --- tables of questions ---


def answer_table(
    answerer, source, target, columns=None, keep=(), header=True, delimiter="", show=None
):
    """Answers the questions of a file, and writes the answers in the same order; returns how many.

    Args:
        answerer: Answerer.
        source: (path, or "-" for standard input; format): a table as for
            `prediction.label_table`, or a file in SQuAD's or MRQA's form.
        target, columns, keep, header, delimiter: as for `prediction.label_table`.
        show: is called with the View of each question; right answers that the file has are then
            read too.
    """
    path, form = source
    chosen = prediction.chosen_columns(answerer.inputs, columns)
    if form == "text":
        raise UserError(
            "this model takes question and context: give SQuAD's JSON, or CSV, TSV, JSON lines or "
            "Parquet with columns of these names, or others that --columns names."
        )
    whole = prediction.is_set(path, form, columns)

    def table():
        if whole:
            return prediction.rows_of_set(path)
        found = tables.stream(path, form, header, delimiter)
        return _rows_of_table(found, chosen, with_answers=show is not None)

    def answer(table, watch):
        answerer.answer([squad.SquadExample("", "", "", (), False)])  # traces the model
        return _answered(answerer, table, watch, show)

    return prediction.write_table(table, answer, path, target, keep)


def _answered(answerer, table, watch, show):
    """Yields (row, prediction) for the (SquadExample, row) of a table."""
    rows, examples = itertools.tee(table)
    views = answerer.answer_all((example for example, _ in examples), watch)
    for (_, row), view in zip(rows, views, strict=True):
        if show:
            show(view)
        yield row, as_served(view)


def _rows_of_table(table, columns, with_answers):
    names = dict(zip(Answerer.inputs, columns, strict=True))
    numbers, rows = itertools.tee(table.rows)
    found = prediction.texts_of(dataclasses.replace(table, rows=rows), columns)
    for (number, _), ((question, context), row) in zip(numbers, found, strict=True):
        example = squad.SquadExample(str(number), question, context, (), False)
        if with_answers:
            renamed = {name: row[column] for name, column in names.items()}
            example = squad_data.row_example(table, number, row | renamed)
        yield example, row


def as_served(view):
    """The outputs that a served model has for the question of a View."""
    best = view.best
    found = bool(best["text"])
    start = best["start_byte"]
    end, end_char = (best[f"end_{u}"] if view.answer else best[f"start_{u}"] for u in _UNITS)
    score = best["start_log_prob"] + best["end_log_prob"] if found else squad_decoding.NO_SPAN
    served = {"answer": view.answer, "start": start, "end": end}
    served |= {"start_char": best["start_char"], "end_char": end_char, "score": round(score, 6)}
    if view.null_odds is None:
        return served
    probability = 1 / (1 + math.exp(-view.null_odds))
    odds = {"no_answer_probability": probability, "null_odds": view.null_odds}
    return served | {name: round(value, 6) for name, value in odds.items()}


_UNITS = ("byte", "char")
