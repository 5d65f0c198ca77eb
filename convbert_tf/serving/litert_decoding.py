"""A model's outputs to answers, tags and entities in NumPy; no TensorFlow.

The same rules as in the graphs of questions.py, tokens.py and windows.py.
"""

from typing import NamedTuple

import numpy as np

MASK = b"[MASK]"
_IMPOSSIBLE = np.float32(-1e9)  # score of what is no answer


def softmax(logits):
    """Over the last axis, float32."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def padded(rows, dtype):
    """Rows of different lengths as an array [B, longest], filled up with b"" or 0."""
    longest = max(map(len, rows), default=0)
    array = np.full([len(rows), longest], b"" if dtype is object else 0, dtype)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def readable(text):
    """Bytes with U+FFFD for what is no UTF-8."""
    return text.decode("utf-8", "replace").encode("utf-8")


# --- windows ---


class Window(NamedTuple):
    """Pieces `start` to `end` of a text of `num_pieces`; `number` is its place among the windows.

    `room` and `stride` are those of all windows of the text.
    """

    number: int
    start: int
    end: int
    num_pieces: int
    room: int
    stride: int


def windows(num_pieces, room, stride):
    """Yields the Windows of at most `room` pieces every `stride`, as text.windows.cut.

    A text without pieces has one window without any.
    """
    stride = min(room, stride)
    more = max(num_pieces - room, 0)
    for number in range(1 + -(-more // stride)):
        start = number * stride
        yield Window(number, start, min(start + room, num_pieces), num_pieces, room, stride)


def owned_windows(num_pieces, room, stride):
    """Yields (start, end, first, last): windows, and the pieces that each answers for.

    Where two windows overlap, the earlier one has the first half.
    """
    stride = min(room, stride)
    half = (room - stride + 1) // 2
    for window in windows(num_pieces, room, stride):
        first = window.start + half if window.number else 0
        is_last = window.end == num_pieces
        yield (
            window.start,
            window.end,
            first,
            num_pieces if is_last else window.start + stride + half,
        )


def _most_context(positions, window):
    """The window with most context around each of `positions` [n]: windows.most_context."""
    room, stride, num_pieces = window.room, window.stride, window.num_pieces
    last = max(num_pieces - room + stride - 1, 0) // stride
    before = (2 * positions - room + 1) // (2 * stride)
    numbers = [np.clip(before + i, 0, max(last - 1, 0)) for i in (0, 1)]
    numbers = np.stack([*numbers, np.full_like(before, last)], axis=-1)  # [n, 3]
    starts = numbers * stride
    ends = np.minimum(starts + room, num_pieces)
    context = np.minimum(positions[:, None] - starts, ends - 1 - positions[:, None])
    scores = np.where(context < 0, -1.0, context + 0.01 * (ends - starts))
    return np.take_along_axis(numbers, scores.argmax(axis=-1)[:, None], axis=-1)[:, 0]


# --- answers ---


class Answers:
    """Makes answers of the outputs for a context's windows; see serving.QuestionAnswererServer.

    Args:
        settings: `max_answer_length`, `answerable`, `null_threshold`.
    """

    def __init__(self, settings):
        self._longest = settings["max_answer_length"]
        self._answerable = settings.get("answerable", False)
        self._threshold = settings.get("null_threshold")

    def __call__(self, context, pieces, outputs):
        """The answer, name -> value.

        Args:
            context: bytes.
            pieces: plain_tokenization.Pieces of it.
            outputs: pairs of a Window and the model's outputs for it, and the `offset` of its
                pieces in the input.
        """
        best, odds = (_IMPOSSIBLE, 0, 0), np.float32(np.inf)
        for window, of_window in outputs:
            found = self._best(window, of_window)
            best = found if found[0] > best[0] else best
            if self._answerable:
                odds = min(odds, of_window["answerable_logit"][0])
        score, first, last = best
        exists = score > _IMPOSSIBLE
        start, end = (pieces.starts[first], pieces.ends[last]) if exists else (0, 0)
        answer = {"score": score}
        if self._answerable:
            answer["null_odds"] = odds
            answer["no_answer_probability"] = 1 / (1 + np.exp(-odds, dtype=np.float32))
            if self._threshold is not None and odds > self._threshold:
                end = start
        chars = [len(context[:at].decode("utf-8", "replace")) for at in (start, end)]
        places = {"start": start, "end": end, "start_char": chars[0], "end_char": chars[1]}
        answered = context[start:end]
        return answer | {"answer": readable(answered), "answer_bytes": answered} | places

    def _best(self, window, outputs):
        """(score, first piece, last piece) of the best span of a window."""
        start = outputs["start_top_index"][0].astype(np.int64) - outputs["offset"]  # [J]
        end = outputs["end_top_index"][0].astype(np.int64) - outputs["offset"]  # [J, J]
        length = window.end - window.start
        own = _most_context(start + window.start, window) == window.number
        startable = (start >= 0) & (start < length) & own
        spans = end - start[:, None] + 1
        allowed = startable[:, None] & (end < length) & (spans >= 1) & (spans <= self._longest)
        scores = outputs["start_top_log_probs"][0][:, None] + outputs["end_top_log_probs"][0]
        scores = np.where(allowed, scores, _IMPOSSIBLE)
        best = int(scores.argmax())
        first, last = start[best // end.shape[1]], end.flat[best]
        return scores.flat[best], int(window.start + first), int(window.start + last)

    def joined(self, answers):
        """The answers [B] as arrays by the names of the outputs."""
        integers = dict.fromkeys(("start", "end", "start_char", "end_char"), np.int64)
        dtypes = {"score": np.float32, "answer": object, "answer_bytes": object, **integers}
        if self._answerable:
            dtypes |= dict.fromkeys(("null_odds", "no_answer_probability"), np.float32)
        return {
            name: np.array([answer[name] for answer in answers], dtype)
            for name, dtype in dtypes.items()
        }


# --- tags ---


class Tags:
    """Makes words and entities of the tags' probabilities; see serving.TaggerServer.

    Args:
        labels: names of the tags.
        entities: for each tag None, or what it says of an entity: a dict of its `kind`, and whether
            it `begins` one and `closes` it. None if the tags mark none.
    """

    def __init__(self, labels, entities):
        self._labels = [label.encode("utf-8") for label in labels]
        self._entities = entities

    def __call__(self, text, pieces, begins, probabilities):
        """name -> list of the words' values, and of the entities'.

        Args:
            text: bytes.
            pieces: plain_tokenization.Pieces of it.
            begins: whether each piece begins a word.
            probabilities: of the tags of each piece [pieces, tags].
        """
        firsts = np.flatnonzero(begins)
        if not len(firsts):
            return {}
        tags = probabilities[firsts].argmax(axis=-1)
        words = {
            "word_start": np.array(pieces.starts)[firsts],
            "word_end": np.maximum.reduceat(pieces.ends, firsts),
            "tag": [self._labels[tag] for tag in tags],
            "tag_score": probabilities[firsts].max(axis=-1),
        }
        found = words | _cut(text, words["word_start"], words["word_end"], "word")
        if self._entities:
            found |= self._find_entities(text, tags, words)
        return found

    def _find_entities(self, text, tags, words):
        """An entity also begins where a tag goes on with another kind, or with none before it."""
        parts = [self._entities[tag] for tag in tags]
        groups, before = [], None
        for i, part in enumerate(parts):
            if part:
                goes_on = before and before["kind"] == part["kind"] and not before["closes"]
                if not goes_on or part["begins"]:
                    groups.append([])
                groups[-1].append(i)
            before = part
        starts = [words["word_start"][group[0]] for group in groups]
        ends = [words["word_end"][group].max() for group in groups]
        return _cut(text, starts, ends, "entity") | {
            "entity_start": starts,
            "entity_end": ends,
            "entity_label": [parts[group[0]]["kind"].encode("utf-8") for group in groups],
            "entity_score": [words["tag_score"][group].mean() for group in groups],
        }

    def joined(self, found):
        """The words and entities of B texts as arrays by the names of the outputs."""
        outputs = {}
        tables = {"words": ("word", "tag", "tag_score")}
        if self._entities:
            tables["entities"] = ("entity", "entity_label", "entity_score")
        for plural, (name, label, score) in tables.items():
            outputs[f"num_{plural}"] = np.array([len(each.get(name, ())) for each in found], int)
            dtypes = {
                name: object,
                f"{name}_bytes": object,
                f"{name}_start": np.int64,
                f"{name}_end": np.int64,
            }
            dtypes |= {label: object, score: np.float32}
            for key, dtype in dtypes.items():
                outputs[key] = padded([each.get(key, ()) for each in found], dtype)
        return outputs


def _cut(text, starts, ends, name):
    """What stands in `text` at these bytes, readable as `name` and as it is as `name`_bytes."""
    parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return {name: list(map(readable, parts)), f"{name}_bytes": parts}


# --- what is pre-trained ---


def detected(text, pieces, logits):
    """name -> list of the values of a text's tokens, whose `logits` [n] say they are replaced."""
    return _cut(text, pieces.starts, pieces.ends, "token") | {
        "token_start": pieces.starts,
        "token_end": pieces.ends,
        "replaced_probability": 1 / (1 + np.exp(-logits, dtype=np.float32)),
    }


def joined_tokens(found):
    """The tokens of B texts, each as `detected` gives them, as arrays by the names of outputs."""
    dtypes = {"token": object, "token_bytes": object, "token_start": np.int64}
    dtypes |= {"token_end": np.int64, "replaced_probability": np.float32}
    outputs = {
        name: padded([each[name] for each in found], dtype) for name, dtype in dtypes.items()
    }
    return {"num_tokens": np.array([len(each["token"]) for each in found], np.int64)} | outputs


class Fills:
    """Chooses the `top_k` pieces of a vocabulary for masks; see serving.MaskFillerServer."""

    def __init__(self, vocab, top_k):
        self._pieces = [piece.encode("utf-8") for piece in vocab]
        self._top_k = top_k

    def __call__(self, parts, logits):
        """(the text with its masks filled, pieces of each mask, their probabilities).

        Args:
            parts: what stands between the masks, bytes.
            logits: of the vocabulary for each mask, arrays [V].
        """
        fills, probabilities = [], []
        for row in logits:
            near = np.sort(np.argpartition(-row, self._top_k - 1)[: self._top_k])
            best = near[np.argsort(-row[near], kind="stable")]
            powers = np.exp(row - row.max())
            fills.append([self._pieces[i] for i in best])
            probabilities.append(powers[best] / powers.sum())
        filled = parts[0]
        for part, (first, *_) in zip(parts[1:], fills, strict=True):
            goes_on = first.startswith(b"##") and len(first) > 2
            filled = filled.rstrip(b"\t\n\f\r ") + first[2:] if goes_on else filled + first
            filled += part
        return filled, fills, probabilities

    def joined(self, found):
        """What was found for B texts as arrays by the names of the outputs."""
        most = max((len(fills) for _, fills, _ in found), default=0)
        pieces = np.full([len(found), most, self._top_k], b"", object)
        probabilities = np.zeros(pieces.shape, np.float32)
        for i, (_, of_text, values) in enumerate(found):
            if of_text:
                pieces[i, : len(of_text)] = of_text
                probabilities[i, : len(of_text)] = values
        return {
            "filled": np.array([readable(text) for text, _, _ in found], object),
            "filled_bytes": np.array([text for text, _, _ in found], object),
            "num_masks": np.array([len(fills) for _, fills, _ in found], np.int64),
            "fills": pieces,
            "fill_probability": probabilities,
        }
