"""SQuAD: windows of the questions' contexts, and records of them.

A context is cut into overlapping windows that fit the model: [CLS] question [SEP] window [SEP].
The windows are those of the original ConvBERT code, which follows BERT's. `squad_data` reads the
questions, whose names are here too; `squad_decoding` makes answers of a model's outputs.
"""

import collections
import dataclasses

import numpy as np

from convbert_tf.console import Progress, UserError, say
from convbert_tf.data import records
from convbert_tf.tasks.squad_data import (
    SquadExample,
    answer_place,
    read_examples,
    read_tfds,
    say_dropped,
    whole_words,
)

__all__ = [
    "SquadExample",
    "Window",
    "make_windows",
    "read_examples",
    "read_tfds",
    "window_spans",
    "write_records",
]

# Texts tokenised at once: large enough that TF Text's time a call does not matter.
_BATCH = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """How a text of `num_pieces` is cut: at most `room` pieces a window, one every `doc_stride`.

    The last window reaches the end, and may be shorter.
    """

    num_pieces: int
    room: int
    doc_stride: int

    @property
    def stride(self):
        return min(self.room, self.doc_stride)

    def __len__(self):
        """The number of windows: one at least."""
        return 1 - min(self.room - self.num_pieces, 0) // self.stride

    def span(self, number):
        """The first piece of window `number`, and the one after its last."""
        start = number * self.stride
        return start, min(start + self.room, self.num_pieces)

    def most_context(self, pieces):
        """The window that shows most context around each of `pieces` (an int array).

        The context is the smaller of what stands left and right of the piece, plus a hundredth of
        the window's length; of equals the first window has it (BERT's rule). All windows but the
        last have one length; of these it is one of the two in whose middle the piece is nearly.
        """
        last = len(self) - 1
        before = (2 * pieces - self.room + 1) // (2 * self.stride)
        numbers = [np.clip(before + i, 0, max(last - 1, 0)) for i in (0, 1)]
        numbers = np.stack([*numbers, np.full_like(before, last)])
        starts = numbers * self.stride
        ends = np.minimum(starts + self.room, self.num_pieces)
        scores = np.minimum(pieces - starts, ends - 1 - pieces) + 0.01 * (ends - starts)
        scores[(pieces < starts) | (pieces >= ends)] = -np.inf
        return np.take_along_axis(numbers, scores.argmax(axis=0)[None], axis=0)[0]


@dataclasses.dataclass(eq=False, slots=True)
class _Pieces:
    """A tokenised text: ids int32, starts and ends int64 in bytes, all [pieces]."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclasses.dataclass(eq=False, slots=True)
class Window:
    """One model input, and what its answer positions mean in the context.

    Windows share the pieces of their context and their question, so that they take little memory
    however many there are of a long context.

    Attributes:
        question_id, context, is_impossible: of the question.
        query: int32, [CLS] question [SEP].
        pieces: of the whole context.
        cut: Cut of the context.
        number: the window's place in it.
        start_position, end_position: the answer's first and last token in `input_ids`; 0, 0 if
            there is none, or it is not wholly inside.
    """

    question_id: str
    context: str
    is_impossible: bool
    query: np.ndarray
    pieces: _Pieces
    cut: Cut
    number: int
    start_position: int = 0
    end_position: int = 0

    @property
    def input_ids(self):
        """int32 [T], [CLS] question [SEP] window [SEP], without padding."""
        return np.concatenate([self.query, self.pieces.ids[self._slice], self.query[-1:]])

    @property
    def segment_ids(self):
        """int32 [T]: 0 for [CLS] question [SEP], 1 for window [SEP]."""
        start, end = self.cut.span(self.number)
        return np.repeat(np.int32([0, 1]), [self.context_position, end - start + 1])

    @property
    def context_position(self):
        """Where the window's first piece stands in `input_ids`: position p is piece p - this."""
        return len(self.query)

    @property
    def starts(self):
        """int64 [pieces], where in the context, in bytes of UTF-8, each piece begins."""
        return self.pieces.starts[self._slice]

    @property
    def ends(self):
        """int64 [pieces], where in the context, in bytes of UTF-8, each piece ends."""
        return self.pieces.ends[self._slice]

    @property
    def max_context(self):
        """bool [pieces], whether no other window shows more context around the piece."""
        return self.cut.most_context(np.arange(*self.cut.span(self.number))) == self.number

    @property
    def _slice(self):
        return slice(*self.cut.span(self.number))


# Windows


def make_windows(
    examples,
    tokenizer,
    max_seq_length,
    doc_stride=128,
    max_query_length=64,
    training=False,
    original_positions=False,
    quiet=False,
):
    """Cuts the contexts of `examples` into model inputs, each context tokenised once.

    Args:
        examples: `SquadExample`s.
        tokenizer: a `WordPieceTokenizer`.
        max_seq_length: most tokens an input may have.
        doc_stride: tokens from the start of one window to that of the next.
        max_query_length: most tokens of a question; the rest is cut.
        training: fills in the answer's positions, from the first answer. Questions whose answer has
            no token are dropped, and their number is said.
        original_positions: labels what the original labels: of the answer's words, the first
            tokens that are those of the answer, wherever it starts.
        quiet: shows no progress.

    Returns:
        A list of `Window`s, those of a question one after the other. A context without any token
        gives one window without pieces, for prediction, and none in training.
    """
    if max_seq_length < max_query_length + 4 or doc_stride < 1:
        raise UserError(
            f"max_seq_length={max_seq_length} must exceed max_query_length={max_query_length} by "
            f"at least 4, and doc_stride={doc_stride} be at least 1."
        )
    contexts = list(dict.fromkeys(example.context for example in examples))
    pieces = dict(zip(contexts, _tokenize(contexts, tokenizer), strict=True))
    questions = _tokenize([example.question for example in examples], tokenizer)
    if training:
        texts = [example.answers[0][0] if example.answers else "" for example in examples]
        answers = _tokenize(texts, tokenizer)
    windows, dropped, num_cut = [], collections.Counter(), 0
    progress = None if quiet else Progress("windows", len(examples), "questions")
    for number, example in enumerate(examples):
        context = pieces[example.context]
        span = None
        if training and not example.is_impossible:
            span = _answer_span(example, context, answers[number].ids, original_positions)
            if span is None:
                dropped["the answer has no token"] += 1
                continue
        question = questions[number].ids[:max_query_length]
        query = np.array([tokenizer.cls_id, *question, tokenizer.sep_id], np.int32)
        cut = Cut(len(context.ids), max_seq_length - len(query) - 1, doc_stride)
        made = _windows_of_question(example, query, context, span, cut)
        num_cut += bool(span) and not any(window.end_position for window in made)
        windows += made if len(context.ids) or not training else []
        if progress:
            progress.update(number + 1)
    if progress:
        progress.close(f"{len(windows):,} windows")
    say_dropped(dropped, len(examples))
    if num_cut:
        say(f"answers that no window holds whole, trained as if there were none: {num_cut:,}")
    return windows


def _tokenize(texts, tokenizer):
    """`_Pieces` of each of `texts`."""
    pieces = []
    for start in range(0, len(texts), _BATCH):
        ragged = tokenizer.tokenize_with_offsets(texts[start : start + _BATCH])
        splits = ragged[0].row_splits.numpy()
        flat = [part.values.numpy() for part in ragged]
        pieces += [
            _Pieces(*(part[a:b] for part in flat))
            for a, b in zip(splits[:-1], splits[1:], strict=True)
        ]
    return pieces


def _answer_span(example, pieces, answer_ids, original):
    """First and last piece of the answer in the context; None if it has no piece.

    The pieces at its place, if they are the answer's own tokens, else those of the words there:
    so for "65" in "(1965)". The `original` looks for the tokens anywhere in these words.
    """
    place = answer_place(example, original)
    start, end = _pieces_at(place, example.context, pieces)
    if not original:
        if np.array_equal(pieces.ids[start : end + 1], answer_ids):
            return (start, end) if start <= end else None
        start, end = _pieces_at(whole_words(example.context, place), example.context, pieces)
        return (start, end) if start <= end else None
    for new_start in range(start, end + 2 - len(answer_ids)):
        new_end = new_start + len(answer_ids)
        if len(answer_ids) and np.array_equal(pieces.ids[new_start:new_end], answer_ids):
            return new_start, new_end - 1
    return (start, end) if start <= end else None


def _pieces_at(place, context, pieces):
    """First and last of the pieces that share a byte with a place (start, end in characters)."""
    start, end = (len(context[:at].encode("utf-8")) for at in place)
    first = np.searchsorted(pieces.ends, start, side="right")
    return int(first), int(np.searchsorted(pieces.starts, end)) - 1


def window_spans(num_pieces, room, doc_stride):
    """(start, end) of each window of at most `room` pieces; the last one reaches the end."""
    cut = Cut(num_pieces, room, doc_stride)
    return [cut.span(number) for number in range(len(cut))]


def _windows_of_question(example, query, pieces, answer_span, cut):
    windows = []
    for number in range(len(cut)):
        window = Window(
            example.question_id, example.context, example.is_impossible, query, pieces, cut, number
        )
        start, end = cut.span(number)
        if answer_span and start <= answer_span[0] and answer_span[1] < end:
            window.start_position = answer_span[0] - start + len(query)
            window.end_position = answer_span[1] - start + len(query)
        windows.append(window)
    return windows


def write_records(path, windows):
    """Writes `windows` as SQuAD records, in order; returns their number.

    `example_id` is the window's running number: row `example_id` of the model's outputs belongs to
    `windows[example_id]`.
    """
    return records.write(path, map(_encode, range(len(windows)), windows))


def serialize(windows):
    """The records that `write_records` writes, as a list of bytes."""
    return list(map(_encode, range(len(windows)), windows))


def _encode(number, window):
    return records.encode(
        {
            "example_id": number,
            "input_ids": window.input_ids.tolist(),
            "segment_ids": window.segment_ids.tolist(),
            "start_positions": int(window.start_position),
            "end_positions": int(window.end_position),
            "is_impossible": int(window.is_impossible),
        }
    )
