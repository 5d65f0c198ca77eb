"""SQuAD: questions from JSON or TensorFlow Datasets, windows of their contexts, records.

A context is cut into overlapping windows that fit the model: [CLS] question [SEP] window [SEP].
Windows, training positions and which training questions are dropped are those of the original
ConvBERT code, which follows BERT's; `squad_decoding` makes answers of a model's outputs for them.
"""

import bisect
import dataclasses
import functools
import json
import re

import numpy as np

from convbert_tf.console import Progress, UserError, say
from convbert_tf.data import records

# The original splits words at these alone, not at every Unicode white space.
_WORD = re.compile("[^ \t\r\n\u202f]+")
# Texts tokenised at once: large enough that TF Text's time a call does not matter.
_BATCH = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class SquadExample:
    """One question about one context; `answers`: (text, start in characters of the context)."""

    question_id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    is_impossible: bool


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


# Reading


def read_examples(json_path, training, version2=True):
    """The questions of a SQuAD JSON file, v1.1 or v2.0, in order.

    Args:
        json_path: the file.
        training: drops questions whose first answer is not found in the words at its place, as
            the original does, and says how many. Otherwise all are kept, and `answers` may lack.
        version2: reads `is_impossible` where there is one; False ignores it.

    Returns:
        A list of `SquadExample`s.

    Raises:
        UserError: the file is missing or broken, or an answer starts outside the context; names
            the file and the question.
    """
    try:
        with open(json_path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{json_path} is not there; SQuAD's JSON is needed.") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{json_path} is not JSON: {error}.") from error
    pairs = []
    for article in _field(content, "data", list, json_path):
        for paragraph in _field(article, "paragraphs", list, json_path):
            context = _field(paragraph, "context", str, json_path)
            pairs += [(context, qa) for qa in _field(paragraph, "qas", list, json_path)]
    return _examples(pairs, json_path, training, version2)


def read_tfds(name, split, training, data_dir=None):
    """The questions of `name` ("squad/v1.1", "squad/v2.0") from TensorFlow Datasets.

    `split` is "train" or "dev"; the rest as for `read_examples`. Downloads what is not in
    `data_dir` (by default ~/tensorflow_datasets). The order is TFDS's, fixed but not the file's.
    """
    # Here, since importing it takes seconds that users of JSON files need not wait.
    import tensorflow_datasets as tfds

    try:
        dataset = tfds.load(name, split=split.replace("dev", "validation"), data_dir=data_dir)
    except (OSError, ValueError) as error:
        raise UserError(
            f"TensorFlow Datasets cannot give {name}, split {split!r}: {error}; where there is no "
            "network, read SQuAD's JSON files."
        ) from error
    pairs = [_from_tfds(row) for row in dataset.as_numpy_iterator()]
    return _examples(pairs, name, training, version2=True)


def _from_tfds(row):
    """(context, the question as it stands in SQuAD's JSON)."""
    answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    question = {
        "id": row["id"].decode("utf-8"),
        "question": row["question"].decode("utf-8"),
        "answers": [{"text": text.decode("utf-8"), "answer_start": int(s)} for text, s in answers],
        "is_impossible": bool(row.get("is_impossible", False)),
    }
    return row["context"].decode("utf-8"), question


def _field(record, key, kind, where):
    """`record[key]`, which must be there and of type `kind`."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where}: {key!r} is missing, or not a JSON {_JSON_NAMES[kind]}.")
    if kind is str and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: {key!r} holds half a surrogate pair.") from error
    return value


_JSON_NAMES = {str: "string", list: "array", int: "integer", bool: "boolean"}


def _examples(pairs, where, training, version2):
    examples, seen, dropped = [], set(), 0
    for context, qa in pairs:
        example = _example(context, qa, where, training, version2)
        if example.question_id in seen:
            raise UserError(f"{where}: question {example.question_id} stands there twice.")
        seen.add(example.question_id)
        if training and not example.is_impossible and not _is_recoverable(example):
            dropped += 1
            continue
        examples.append(example)
    if not examples:
        raise UserError(f"{where} holds no questions{' with a usable answer' * (dropped > 0)}.")
    if dropped:
        say(f"{where}: {dropped} of {len(seen)} questions dropped: answer not found in the text.")
    return examples


def _example(context, qa, where, training, version2):
    question_id = _field(qa, "id", str, where)
    where = f"{where}, question {question_id}"
    marked = "is_impossible" in qa and _field(qa, "is_impossible", bool, where)
    is_impossible = version2 and marked
    answers = []
    needs_answer = training and not is_impossible
    if needs_answer or "answers" in qa:
        for answer in _field(qa, "answers", list, where):
            text = _field(answer, "text", str, where)
            start = _field(answer, "answer_start", int, where)
            if not 0 <= start < len(context):
                raise UserError(
                    f"{where}: answer_start {start} is outside the context, which has "
                    f"{len(context)} characters."
                )
            answers.append((text, start))
    if needs_answer and marked:
        raise UserError(f"{where} has no answer: SQuAD 2.0 wants configs/finetune_squad.py:v2.")
    if needs_answer and not answers:
        raise UserError(f"{where}: no answer, but training needs one (SQuAD v2: is_impossible).")
    question = _field(qa, "question", str, where)
    return SquadExample(question_id, question, context, tuple(answers), is_impossible)


@functools.lru_cache(maxsize=4)
def _word_spans(context):
    """Starts and ends, in characters, of the words of `context`."""
    spans = [match.span() for match in _WORD.finditer(context)]
    return [start for start, _ in spans], [end for _, end in spans]


def _answer_words(example):
    """Indices of the first and last word of the answer; white space counts to the word before."""
    text, start = example.answers[0]
    word_starts, _ = _word_spans(example.context)
    first = bisect.bisect_right(word_starts, start) - 1
    return first, bisect.bisect_right(word_starts, start + len(text) - 1) - 1


def _is_recoverable(example):
    """Whether the answer's text is found, but for case and spacing, in the words at its place."""
    text, start = example.answers[0]
    first, last = _answer_words(example)
    wanted = " ".join(text.split()).lower()
    if not wanted or first < 0 or start + len(text) > len(example.context):
        return False
    word_starts, word_ends = _word_spans(example.context)
    words = [
        example.context[s:e]
        for s, e in zip(word_starts[first : last + 1], word_ends[first : last + 1], strict=True)
    ]
    return wanted in " ".join(words).lower()


# Windows


def make_windows(
    examples, tokenizer, max_seq_length, doc_stride=128, max_query_length=64, training=False
):
    """Cuts the contexts of `examples` into model inputs, each context tokenised once.

    Args:
        examples: `SquadExample`s.
        tokenizer: a `WordPieceTokenizer`.
        max_seq_length: most tokens an input may have.
        doc_stride: tokens from the start of one window to that of the next.
        max_query_length: most tokens of a question; the rest is cut.
        training: fills in the answer's positions, from the first answer.

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
    windows = []
    progress = Progress("windows", len(examples), "questions")
    for number, example in enumerate(examples):
        context = pieces[example.context]
        span = None
        if training and not example.is_impossible:
            span = _answer_span(example, context, answers[number].ids)
        question = questions[number].ids[:max_query_length]
        query = np.array([tokenizer.cls_id, *question, tokenizer.sep_id], np.int32)
        cut = Cut(len(context.ids), max_seq_length - len(query) - 1, doc_stride)
        made = _windows_of_question(example, query, context, span, cut)
        windows += made if len(context.ids) or not training else []
        progress.update(number + 1)
    progress.close(f"{len(windows):,} windows")
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


def _answer_span(example, pieces, answer_ids):
    """First and last piece of the answer in the context.

    The pieces of the answer's words, then, if the answer's own tokens are found among them, just
    those: "1895" out of "(1895-1943).".
    """
    context = example.context
    first, last = _answer_words(example)
    word_starts, word_ends = _word_spans(context)
    # Tokens never cross a word's limits, so that the context may be tokenised as a whole.
    word_bytes = [len(context[:at].encode("utf-8")) for at in (word_starts[first], word_ends[last])]
    start, end = np.searchsorted(pieces.starts, word_bytes) - [0, 1]
    for new_start in range(start, end + 2 - len(answer_ids)):
        new_end = new_start + len(answer_ids)
        if len(answer_ids) and np.array_equal(pieces.ids[new_start:new_end], answer_ids):
            return new_start, new_end - 1
    return (int(start), int(end)) if start <= end else None  # words without any token


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
