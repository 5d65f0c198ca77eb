"""Models that answer texts without TensorFlow: LiteRT's interpreter, NumPy, a tokenizer in Python.

`load` takes a directory that `tools/export_model.py --format=litert` has written. This module and
what it imports need the packages numpy and ai-edge-litert alone; neither TensorFlow nor Keras is
loaded.
"""

import collections
import os
import sys
import threading
from concurrent import futures
from typing import Required, TypedDict

import numpy as np

from convbert_tf.console import UserError, reason, usable_cores
from convbert_tf.files import read_json, sha256
from convbert_tf.serving import litert_decoding
from convbert_tf.text import requests
from convbert_tf.text.plain_tokenization import PlainTokenizer
from convbert_tf.text.unicode_rules import UNICODE_VERSION
from convbert_tf.text.vocabulary import VOCAB_FILE

MODEL_FILE, SETTINGS_FILE, SIGNATURE = "model.tflite", "settings.json", "serving_default"
# Lengths that inputs are padded to. An interpreter of each is kept, since one of another length
# takes 10 ms (small, int8) to be set up, of which 32 tokens take 3.5 to compute.
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SPARE = 48  # tokens of padding that cost about as much as to set an interpreter up
# Tokens times bytes of the model. Threads wait for each other in every operator: small in int8
# takes 5.8 ms for 64 tokens with one thread and 7.0 with two, and 8.7 and 6.9 for 96; in float32
# 5.5 and 5.4 for 16, and 6.7 and 4.2 for 24.
_WORTH_A_THREAD = 600_000_000
# Of all interpreters together: their repacked weights, and the lengths of their inputs. Of small in
# float32 four are kept (with two, SST-2's sentences take 11 ms instead of 6 and 190 MB for 270).
_WEIGHTS_MB, _MOST_TOKENS = 220, 512


class Entity(TypedDict):
    """What a tag says of an entity: its type, and whether it always begins or ends one."""

    kind: str
    begins: bool
    closes: bool


class Settings(TypedDict, total=False):
    """What settings.json holds (see schema.py); `spare`: tokens of padding behind each input."""

    kind: Required[str]
    inputs: Required[list[str]]
    max_seq_length: Required[int]
    spare: Required[int]
    lower_case: Required[bool]
    strip_accents: Required[bool]
    sha256: Required[dict[str, str]]
    unicode_version: str
    precision: str
    labels: list[str] | None
    num_classes: int
    pair: bool
    multi_label: bool
    min_score: float
    max_score: float | None
    doc_stride: int
    max_query_length: int
    max_answer_length: int
    answerable: bool
    null_threshold: float | None
    entities: list[Entity | None] | None
    hidden_size: int
    pooling: str
    normalize: bool
    top_k: int


def load(directory, num_threads=None):
    """The model in `directory`: a Classifier, Tagger, QuestionAnswerer, or one that is pre-trained.

    Args:
        directory: that tools/export_model.py --format=litert has written.
        num_threads: threads that compute a text; None: as many as its length and the model are
            worth, at most 4 and as many as there are processors.

    Raises:
        UserError: there is no such model or it is damaged; ai-edge-litert is not installed.
    """
    settings = read_json(
        os.path.join(directory, SETTINGS_FILE), "what a LiteRT model takes", Settings
    )
    missing = [name for name in _NEEDED.get(settings["kind"], ()) if settings.get(name) is None]
    if missing:
        raise UserError(f"{directory}: {SETTINGS_FILE} lacks {missing[0]}; export the model again.")
    for name in (MODEL_FILE, VOCAB_FILE):
        path = os.path.join(directory, name)
        if not os.path.isfile(path) or sha256(path) != settings["sha256"].get(name):
            raise UserError(
                f"{path} is not the file that {SETTINGS_FILE} was written for: the model is "
                "damaged or was edited; copy or export it again."
            )
    if settings.get("unicode_version", UNICODE_VERSION) != UNICODE_VERSION:
        print(
            f"{directory}: exported with Unicode {settings['unicode_version']}, this Python has "
            f"{UNICODE_VERSION}; characters that only one of them knows may get other ids",
            file=sys.stderr,
        )
    normalization = (settings["lower_case"], settings["strip_accents"])
    tokenizer = PlainTokenizer(os.path.join(directory, VOCAB_FILE), *normalization)
    compute = Compute(os.path.join(directory, MODEL_FILE), settings, num_threads)
    kind = _KINDS.get(settings["kind"])
    if kind is None:
        raise UserError(f"{directory}: {settings['kind']!r} is no kind of model that is known.")
    sizes = {settings.get("num_classes"), len(settings.get("labels") or "") or None} - {None}
    if "logits" in compute.widths and sizes - {compute.widths["logits"]}:
        raise UserError(f"{directory}: {SETTINGS_FILE} is of another model; export it again.")
    return kind(compute, tokenizer, settings)


def holds_model(directory):
    """Whether `directory` looks like one that `load` takes."""
    return os.path.exists(os.path.join(directory, SETTINGS_FILE))


class Compute:
    """The network of a directory, for one input at a time; threads that call it take turns.

    Args:
        path: of the .tflite file.
        settings: see Settings.
        num_threads: see `load`.

    Attributes:
        widths: name of an output -> its last size.

    Call:
        ids: of an input, [CLS] to [SEP], a list of T.
        first: how many of them are of the first segment.
        Returns a dict of arrays [1, ...]; those of tokens are as long as the input was padded to.
    """

    def __init__(self, path, settings, num_threads=None):
        with open(path, "rb") as file:
            self._content = file.read()  # all interpreters share it
        self._num_threads = num_threads
        longest = settings["max_seq_length"]
        self.lengths = [*(n for n in LENGTHS if n < longest), longest]
        self._spare = settings["spare"]
        self._most_slots = max(1, _WEIGHTS_MB * 1_000_000 // len(self._content))
        self._slots = collections.OrderedDict()  # length -> runner, the last used at the end
        self._owner, self._lock = None, threading.Lock()
        outputs = self([0], 1)  # fails now if it must
        self.widths = {name: value.shape[-1] for name, value in outputs.items()}

    def __call__(self, ids, first):
        # In one thread whoever asks: memory that threads take and free in turns is kept for each.
        with self._lock:
            if self._owner != os.getpid():  # also in the child of a fork, which has no such thread
                self._owner, self._worker = os.getpid(), futures.ThreadPoolExecutor(1)
        return self._worker.submit(self._run, ids, first).result()

    def _run(self, ids, first):
        length, runner = self._slot(len(ids))
        padded = np.zeros([3, 1, length], np.int32)
        padded[0, 0, : len(ids)] = ids
        padded[1, 0, : len(ids)] = 1
        padded[2, 0, first : len(ids)] = 1
        return runner(input_ids=padded[0], input_mask=padded[1], segment_ids=padded[2])

    def _slot(self, size):
        """A length that `size` tokens fit in, and what computes inputs of it."""
        least = min(size + self._spare, self.lengths[-1])
        length = next(n for n in self.lengths if n >= least)
        if length not in self._slots:
            runner = None
            while not self._has_room(length):
                if near := [n for n in self._slots if length < n <= length + _SPARE]:
                    length = min(near)
                    break
                _, runner = self._slots.popitem(last=False)
            self._slots.setdefault(length, runner)
        if self._slots[length] is None:
            self._slots[length] = self._new(length)
        self._slots.move_to_end(length)
        return length, self._slots[length]

    def _has_room(self, length):
        """Whether one more interpreter, of this length, may be kept."""
        tokens = sum(self._slots) + length
        return not self._slots or (len(self._slots) < self._most_slots and tokens <= _MOST_TOKENS)

    def _new(self, length):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UserError(
                "a LiteRT model needs its interpreter: pip install ai-edge-litert."
            ) from error
        worth = length * len(self._content) // _WORTH_A_THREAD
        threads = self._num_threads or max(1, min(worth, 4, usable_cores()))
        try:
            interpreter = Interpreter(model_content=self._content, num_threads=threads)
            return interpreter.get_signature_runner(SIGNATURE)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"this ai-edge-litert cannot run the model ({reason(error)}): install a newer one, "
                "or export the model again."
            ) from error


class _Server:
    """What the models below share.

    Attributes:
        inputs: names of the inputs: ["text"], ["text_a", "text_b"] or ["question", "context"].
        labels: names of the classes or tags, or None.
        settings: see Settings.

    Call:
        The inputs by their names, each a list of B texts (str, or bytes of UTF-8) of any length.
        Returns a dict of arrays [B, ...] by the names of the SavedModel's outputs; strings are
        bytes, as TensorFlow gives them.
    """

    def __init__(self, compute, tokenizer, settings):
        self._compute, self.tokenizer, self.settings = compute, tokenizer, settings
        self.inputs, self.labels = settings["inputs"], settings.get("labels")

    def __call__(self, **texts):
        return self._answer(*requests.checked(texts, self.inputs))

    def token_counts(self, texts):
        """How many tokens each of `texts` has, [B]."""
        return np.array(
            [len(ids) for ids in self.tokenizer.tokenize(requests.as_list("texts", texts))]
        )

    def _packed(self, first, second=None):
        """The outputs for [CLS] first [SEP] (second [SEP])."""
        cls, sep = self.tokenizer.cls_id, self.tokenizer.sep_id
        more = [] if second is None else [*second, sep]
        return self._compute([cls, *first, sep, *more], len(first) + 2)

    def _windows_of(self, ids):
        """Yields (start, end, first, last): windows of `ids`, and for which of them they answer."""
        settings = self.settings
        room = settings["max_seq_length"] - 2
        return litert_decoding.owned_windows(len(ids), room, settings["doc_stride"])


class Classifier(_Server):
    """Texts or pairs -> label and probabilities, several labels, or the score of a regression.

    Outputs: as serving.ClassifierServer.
    """

    def _answer(self, first, second=None):
        rows = self._inputs(first, second)
        logits = [self._packed(*row)["logits"][0] for row in rows]
        return self._outputs(np.array(logits, np.float32).reshape(-1, self.settings["num_classes"]))

    def _inputs(self, first, second):
        """Yields the ids of each text, cut to what fits, or of each pair."""
        limit = self.settings["max_seq_length"] - 2
        first = self.tokenizer.tokenize(first, limit)
        if second is None:
            yield from ([ids] for ids in first)
            return
        for a, b in zip(first, self.tokenizer.tokenize(second, limit), strict=True):
            yield _truncate_pair(a, b, limit - 1)

    def _outputs(self, logits):
        settings, num_classes = self.settings, self.settings["num_classes"]
        if num_classes == 1:
            score, largest = logits[:, 0], settings.get("max_score")
            if largest is not None:
                smallest = settings.get("min_score") or 0.0
                score = np.clip(score, 0, 1) * np.float32(largest - smallest) + smallest
            return {"score": score.astype(np.float32)}
        names = self.labels or [str(i) for i in range(num_classes)]
        names = np.array([name.encode("utf-8") for name in names], object)
        if settings.get("multi_label"):
            chosen = [names[row > 0] for row in logits]
            return {
                "logits": logits,
                "probabilities": (1 / (1 + np.exp(-logits))).astype(np.float32),
                "labels": litert_decoding.padded(chosen, object),
            }
        return {
            "logits": logits,
            "probabilities": litert_decoding.softmax(logits),
            "label": names[logits.argmax(axis=-1)] if len(logits) else np.array([], object),
        }


def _truncate_pair(first, second, limit):
    """Cuts to `limit` ids together, as text.preprocessing.truncate_pair."""
    a, b = len(first), len(second)
    if a + b > limit:
        a = min(a, max(limit - b, (limit + 1) // 2))
    return first[:a], second[: limit - a]


class Tagger(_Server):
    """Texts -> their words with a tag each, and entities if the tags mark any.

    Outputs: as serving.TaggerServer.
    """

    def _answer(self, texts):
        decode = litert_decoding.Tags(self.labels, self.settings.get("entities"))
        begins = [not piece.startswith("##") for piece in self.tokenizer.vocab]
        found = []
        for text, pieces in zip(texts, self.tokenizer.tokenize_with_offsets(texts), strict=True):
            probabilities = self._probabilities(pieces.ids)
            found.append(decode(text, pieces, [begins[i] for i in pieces.ids], probabilities))
        return decode.joined(found)

    def _probabilities(self, ids):
        """Of the tags of each piece, [pieces, tags], from the window that answers for it."""
        parts = [np.zeros([0, len(self.labels)], np.float32)]
        for start, end, first, last in self._windows_of(ids):
            logits = self._packed(ids[start:end])["logits"][0]
            # The first token is [CLS].
            parts.append(litert_decoding.softmax(logits[1 + first - start : 1 + last - start]))
        return np.concatenate(parts)


class QuestionAnswerer(_Server):
    """Questions and contexts of any length -> answers, cut from the contexts.

    Outputs: as serving.QuestionAnswererServer.
    """

    def _answer(self, questions, contexts):
        decode = litert_decoding.Answers(self.settings)
        queries = self.tokenizer.tokenize(questions, self.settings["max_query_length"])
        found = []
        pieces = self.tokenizer.tokenize_with_offsets(contexts)
        for query, of_context, context in zip(queries, pieces, contexts, strict=True):
            found.append(decode(context, of_context, self._windows(query, of_context.ids)))
        return decode.joined(found)

    def _windows(self, query, ids):
        """Yields (litert_decoding.Window, outputs) for the windows of a context."""
        room = self.settings["max_seq_length"] - 3 - len(query)
        for window in litert_decoding.windows(len(ids), room, self.settings["doc_stride"]):
            outputs = self._packed(query, ids[window.start : window.end])
            yield window, {**outputs, "offset": len(query) + 2}


class Embedder(_Server):
    """Texts -> a vector each.

    Outputs: as serving.EmbedderServer.
    """

    def _answer(self, texts):
        rows = self.tokenizer.tokenize(texts, self.settings["max_seq_length"] - 2)
        vectors = [self._packed(ids)["embedding"][0] for ids in rows]
        return {
            "embedding": np.array(vectors, np.float32).reshape(-1, self.settings["hidden_size"])
        }


class Detector(_Server):
    """Texts -> for each token, how probable it is that another one stood there.

    Outputs: as serving.ReplacedTokenServer.
    """

    def _answer(self, texts):
        found = []
        for text, pieces in zip(texts, self.tokenizer.tokenize_with_offsets(texts), strict=True):
            logits = [np.zeros([0], np.float32)]
            for start, end, first, last in self._windows_of(pieces.ids):
                of_window = self._packed(pieces.ids[start:end])["token_logits"][0]
                logits.append(of_window[1 + first - start : 1 + last - start])
            found.append(litert_decoding.detected(text, pieces, np.concatenate(logits)))
        return litert_decoding.joined_tokens(found)


class Filler(_Server):
    """Texts with "[MASK]" in them -> the most probable pieces for each.

    Outputs: as serving.MaskFillerServer.
    """

    def _answer(self, texts):
        decode = litert_decoding.Fills(self.tokenizer.vocab, self.settings["top_k"])
        found = []
        for text in texts:
            parts, ids = text.split(litert_decoding.MASK), []
            for i, of_part in enumerate(self.tokenizer.tokenize(parts)):
                ids += [self.tokenizer.mask_id] * (i > 0) + list(of_part)
            found.append(decode(parts, self._logits(ids)))
        return decode.joined(found)

    def _logits(self, ids):
        """Yields the logits of the vocabulary for each mask among `ids`."""
        masks = [i for i, each in enumerate(ids) if each == self.tokenizer.mask_id]
        for start, end, first, last in self._windows_of(ids):
            there = [i for i in masks if start <= i < end]
            if any(first <= i < last for i in there):
                logits = self._packed(ids[start:end])["mask_logits"]
                yield from (logits[k] for k, i in enumerate(there) if first <= i < last)


# Kind -> the settings without which it does not answer.
_NEEDED = {
    "classifier": ("num_classes",),
    "tagger": ("labels", "doc_stride"),
    "answerer": ("doc_stride", "max_query_length", "max_answer_length"),
    "embedder": ("hidden_size",),
    "detector": ("doc_stride",),
    "filler": ("doc_stride", "top_k"),
}
_KINDS = {
    "classifier": Classifier,
    "tagger": Tagger,
    "answerer": QuestionAnswerer,
    "embedder": Embedder,
    "detector": Detector,
    "filler": Filler,
}
