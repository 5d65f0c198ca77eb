"""Questions about contexts, with their answers' places: from files or TensorFlow Datasets.

    .json               SQuAD's form, version 1.1 or 2.0
    .jsonl              MRQA's form, where a line holds a context and its `qas`; else a question a
                        line, as in the tables below
    .csv, .tsv, .parquet, .json with a list     a question a row: question, context, answer and
                        answer_start, the answer's first character in the context, counted from 0.
                        Without answer_start the answer must stand in the context once. An empty
                        answer says that there is none (SQuAD 2.0). Also, in place of the last two,
                        `answers` as SQuAD or Hugging Face's datasets have it; `id`, `is_impossible`

All but Parquet may be packed (.gz, .xz).
"""

import bisect
import collections
import dataclasses
import functools
import json
import os
import re

from convbert_tf.console import Progress, UserError, reason, say
from convbert_tf.data import tables, tfds_sets, unpacking

_COLUMNS = ("question", "context", "answer", "answer_start", "answers", "id", "is_impossible")
_COLUMNS += ("header", "qas")  # MRQA's
# The original splits words at these alone, not at every Unicode white space.
_WORD = re.compile("[^ \t\r\n\u202f]+")
UNKNOWN = object()
# A blank, or a character of a script that has no blanks between words (Thai to Khmer, then from
# CJK's radicals to Hangul, CJK in its other blocks and in full width).
_BREAK = (
    r"\s\u0e00-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef"
    r"\U00020000-\U0003ffff"
)
_WORD_START = re.compile(rf"[^{_BREAK}]*\Z")
_WORD_END = re.compile(f"[^{_BREAK}]*")
# Longest part of a word that is labelled beside an answer: longer ones are no words.
_LONGEST_PART = 16
# Why a question is not trained on.
_EMPTY = "the answer is empty"
_ELSEWHERE = "the answer is not in the context at its answer_start"
_NO_PLACE = "the answer has no answer_start, and is not in the context exactly once"


@dataclasses.dataclass(frozen=True, slots=True)
class SquadExample:
    """One question about one context.

    Attributes:
        question_id, question, context: strings.
        answers: (text, start in characters of the context), the first to train on; start is -1
            where it is not known.
        is_impossible: whether the context does not answer the question.
    """

    question_id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    is_impossible: bool


def read_examples(path, training, version2=True, original_positions=False, delimiter=""):
    """The questions of a file, in order; of which kind, its name and content tell (see above).

    Args:
        path: the file.
        training: drops questions whose first answer is not found at its place, and says how many
            for which reason. Otherwise all are kept, and `answers` may lack.
        version2: reads `is_impossible` where there is one; False ignores it.
        original_positions: drops the questions that the original drops.
        delimiter: of a .csv file, where it is no comma.

    Returns:
        A list of `SquadExample`s.

    Raises:
        UserError: the file is missing or broken, or an answer starts outside the context; names
            the file and the question.
    """
    entries = _entries(os.fspath(path), training, delimiter)
    return _examples(entries, path, training, version2, original_positions)


def is_set(path, form):
    """Whether the file at `path`, of a format of `tables`, is in SQuAD's own or in MRQA's form."""
    if form not in ("json", "jsonl"):
        return False
    try:
        _, row = next(iter(tables.stream(path, form).rows))
    except StopIteration:
        return False
    except UserError:
        return form == "json"  # on several lines; if it is no JSON at all, its reader says so
    return bool({"data", "qas", "header"} & row.keys())


def row_example(table, number, row):
    """The SquadExample of a row of a Table, with its answers where it has some."""
    place, context, question = _from_row(table, number, row)
    return _example(context, question, place, training=False, version2=True)


def read_tfds(name, split, training, data_dir=None, version2=True, original_positions=False):
    """The questions of `name` ("squad/v1.1", "squad/v2.0") from TensorFlow Datasets.

    Args:
        name: of the set, with its config.
        split: "train" or "dev".
        training, version2, original_positions: as for `read_examples`.
        data_dir: TFDS's own folder of prepared data sets; by default what TFDS_DATA_DIR in the
            environment says, or ~/tensorflow_datasets. A set that is not there is downloaded.

    Returns:
        A list of `SquadExample`s. The order is TFDS's, fixed but not that of SQuAD's file.

    Raises:
        UserError: the data set is not on disk and cannot be downloaded.
    """
    builder, entries = _builder(name, split, data_dir), []
    split = _tfds_split(split)
    total = builder.info.splits[split].num_examples
    progress = Progress(f"{name} {split} from TensorFlow Datasets", total)
    for row in builder.as_dataset(split=split).as_numpy_iterator():
        entries.append(_from_tfds(name, row))
        progress.update(len(entries))
    return _examples(entries, name, training, version2, original_positions)


# --- TensorFlow Datasets ---


def tfds_files(name, split, data_dir=None):
    """Paths of TFDS's files of a split; see `read_tfds`."""
    return tfds_sets.files(_builder(name, split, data_dir), _tfds_split(split))


def parse_tfds(data_dir):
    """Name and folder of a `data_dir` "tfds:squad/v1.1" or "tfds:squad/v2.0@FOLDER"."""
    match = re.fullmatch(r"tfds:(squad/v1\.1|squad/v2\.0)(?:@(.+))?", data_dir)
    if not match:
        raise UserError(
            f"data_dir {data_dir!r}: write tfds:squad/v1.1 or tfds:squad/v2.0, with @FOLDER behind "
            "it for a set that is prepared there."
        )
    return match[1], match[2] and os.path.expanduser(match[2])


def _tfds_split(split):
    return {"dev": "validation"}.get(split, split)


def _builder(name, split, data_dir):
    instead = f"{name}@FOLDER, or SQuAD's JSON files"
    return tfds_sets.prepared(name, _tfds_split(split), data_dir, instead)


def _from_tfds(name, row):
    answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    question = {
        "id": row["id"].decode("utf-8"),
        "question": row["question"].decode("utf-8"),
        "answers": [{"text": text.decode("utf-8"), "answer_start": int(s)} for text, s in answers],
        "is_impossible": bool(row.get("is_impossible", False)),
    }
    return name, row["context"].decode("utf-8"), question


# --- files ---
# An entry is (where, context, the question as it stands in SQuAD's JSON); `where` names its place.
# "answer_start" is UNKNOWN where it is not told; no file can say so.


def _entries(path, training, delimiter):
    """The entries of the file at `path`."""
    if not os.path.exists(path):
        raise UserError(f"{path} is not there; SQuAD's JSON is needed, or a table of questions.")
    kind = os.path.splitext(unpacking.split_packing(path)[0])[1].lower()
    if kind != ".json" and kind in tables.FORMATS:
        return _from_table(path, training, delimiter * (kind == ".csv"))
    with unpacking.opened(path) as file:
        raw = file.read()
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        if "Extra data" in str(error):  # a line is
            return _from_table(path, training)
        raise UserError(f"{path} is not JSON: {error}.") from error
    if isinstance(content, list) and content:
        return _from_table(path, training)
    entries = []
    for article in _field(content, "data", list, path):
        for paragraph in _field(article, "paragraphs", list, path):
            context = _field(paragraph, "context", str, path)
            entries += [(path, context, qa) for qa in _field(paragraph, "qas", list, path)]
    return entries


def _from_table(path, training, delimiter=""):
    """The entries of a table, or of MRQA's JSON lines."""
    table = tables.read(path, (), _COLUMNS, delimiter)
    if "qas" in table.columns:
        return _from_mrqa(table, training)
    needed = ["question", "context"]
    needed += ["answer"] if training and "answers" not in table.columns else []
    if set(needed) - set(table.columns):
        tables.read(path, needed, delimiter=delimiter)  # tells what there is instead
    return [_from_row(table, number, row) for number, row in table.rows]


def _from_row(table, number, row):
    place = table.place(number)
    context = _field(row, "context", str, place)
    answers = _row_answers(place, context, row)
    given_id = tables.plain(row.get("id"))
    marked = row.get("is_impossible")
    if marked in ("", None):
        marked = not answers and bool({"answer", "answers"} & row.keys())
    elif not isinstance(marked, bool) and _is_text(table.path):
        marked = _BOOLEANS.get(marked.lower(), marked)
    question = {
        "id": given_id or str(number),
        "question": row["question"],
        "answers": answers,
        "is_impossible": marked,
    }
    return place, context, question


_BOOLEANS = {"true": True, "false": False}


def _is_text(path):
    """Whether values of the table at `path` are all strings, as in CSV."""
    return unpacking.split_packing(path)[0].lower().endswith((".csv", ".tsv"))


def _row_answers(place, context, row):
    """The answers of a row as SQuAD's JSON has them."""
    found = row.get("answers")
    if isinstance(found, str) and found:  # of a CSV file
        try:
            found = json.loads(found)
        except ValueError as error:
            raise UserError(f"{place}: 'answers' is no JSON ({reason(error)}).") from error
    if isinstance(found, dict):  # as Hugging Face's datasets have it
        texts, starts = (_field(found, key, list, place) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise UserError(f"{place}: 'answers' has {len(texts)} texts, {len(starts)} starts.")
        return [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    if found:
        return found
    text, start = tables.plain(row.get("answer")), tables.plain(row.get("answer_start"))
    if isinstance(row.get("answer"), list | dict):
        raise UserError(f"{place}: 'answer' is one text; several stand in 'answers'.")
    if not text or not text.strip():
        return []
    if not start:
        start = context.find(text) if context.count(text) == 1 else UNKNOWN
    elif re.fullmatch(r"-?[0-9]+", start):
        start = int(start)
    else:
        raise UserError(f"{place}: answer_start {start!r:.40} is not a whole number.")
    return [{"text": text, "answer_start": start}]


def _from_mrqa(table, training):
    """MRQA: a header line, then a context a line with its `qas`."""
    entries = []
    for number, row in table.rows:
        if row.get("header") is None:
            place = table.place(number)
            context = _field(row, "context", str, place)
            for qa in _field(row, "qas", list, place):
                entries.append((place, context, _from_mrqa_question(place, qa, training)))
    return entries


def _from_mrqa_question(place, qa, training):
    """To train on, the first place of each detected answer; to score against, `answers`."""
    found = []
    for answer in _field(qa, "detected_answers", list, place) if "detected_answers" in qa else ():
        for span in _field(answer, "char_spans", list, place)[:1]:
            if not isinstance(span, list) or len(span) != 2:
                raise UserError(f"{place}: 'char_spans' must be a list of [first, last].")
            found.append({"text": _field(answer, "text", str, place), "answer_start": span[0]})
    if "answers" in qa and not (training and found):
        starts = {answer["text"]: answer["answer_start"] for answer in reversed(found)}
        texts = _field(qa, "answers", list, place)
        found = [{"text": text, "answer_start": starts.get(str(text), UNKNOWN)} for text in texts]
    key = "qid" if "qid" in qa else "id"
    return {"id": _field(qa, key, str, place), "question": qa.get("question"), "answers": found}


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


# --- examples ---


def _examples(entries, source, training, version2, original_positions):
    examples, seen, dropped, ignored = [], set(), collections.Counter(), 0
    for where, context, qa in entries:
        example = _example(context, qa, where, training, version2)
        if example.question_id in seen:
            raise UserError(f"{where}: question id {example.question_id} is used twice.")
        seen.add(example.question_id)
        ignored += example.is_impossible and bool(example.answers)
        if training and not example.is_impossible:
            try:
                answer_place(example, original_positions)
            except LookupError as error:
                dropped[str(error.args[0])] += 1
                continue
        examples.append(example)
    if not examples:
        why = f" with a usable answer: {_reasons(dropped)}" if dropped else ""
        raise UserError(f"{source} holds no questions{why}.")
    say_dropped(dropped, len(seen), source)
    if ignored:
        say(f"{source}: questions marked is_impossible, whose answers do not count: {ignored:,}")
    return examples


def say_dropped(dropped, number, source=""):
    """A line on the `dropped` (Counter of reasons) of a `number` of questions."""
    if dropped:
        total = f"{sum(dropped.values()):,} of {number:,} questions dropped: {_reasons(dropped)}"
        say(f"{source}: {total}" if source else total)


def _reasons(dropped):
    return "; ".join(f"{why} ({count:,})" for why, count in dropped.most_common())


def _example(context, qa, where, training, version2):
    question_id = _field(qa, "id", str, where)
    where = f"{where}, question {question_id}"
    marked = "is_impossible" in qa and _field(qa, "is_impossible", bool, where)
    is_impossible = version2 and marked
    needs_answer = training and not is_impossible
    answers = []
    if needs_answer or "answers" in qa:
        answers = [_answer(a, context, where) for a in _field(qa, "answers", list, where)]
    if needs_answer and marked:
        raise UserError(f"{where} has no answer: SQuAD 2.0 wants configs/finetune_squad.py:v2.")
    if needs_answer and not answers:
        raise UserError(f"{where}: no answer, but training needs one (SQuAD v2: is_impossible).")
    question = _field(qa, "question", str, where)
    return SquadExample(question_id, question, context, tuple(answers), is_impossible)


def _answer(answer, context, where):
    text = _field(answer, "text", str, where)
    if answer.get("answer_start") is UNKNOWN:
        return text, -1
    start = _field(answer, "answer_start", int, where)
    if not 0 <= start < len(context):
        raise UserError(
            f"{where}: answer_start {start} is outside the context, which has {len(context)} "
            "characters."
        )
    return text, start


# --- where answers stand ---


def answer_place(example, original=False):
    """The first answer's place in the context: start and end, in characters.

    The text at its answer_start, whatever its white space and case; or, where another text stands
    there, the nearest place that overlaps the one that the answer would have.

    Args:
        example: SquadExample with an answer.
        original: gives the limits of the words there instead, as the original's first step.

    Raises:
        LookupError: there is none; says why.
    """
    text, start = example.answers[0]
    if not text.strip():
        raise LookupError(_EMPTY)
    if start < 0:
        raise LookupError(_NO_PLACE)
    if original:
        return _words_place(example.context, text, start)
    if example.context.startswith(text, start) and text == text.strip():
        return start, start + len(text)
    pattern = re.compile(r"\s+".join(map(re.escape, text.split())), re.IGNORECASE)
    for shift in sorted(range(1 - len(text), len(text)), key=abs):
        match = start + shift >= 0 and pattern.match(example.context, start + shift)
        if match:
            return match.span()
    raise LookupError(_ELSEWHERE)


def whole_words(context, place):
    """A place widened to the limits of the words that it cuts, where these are near.

    In text without blanks there are no such limits: it stays as it is.
    """
    start, end = place
    left = _WORD_START.search(context[max(0, start - _LONGEST_PART - 1) : start])
    right = _WORD_END.match(context[end : end + _LONGEST_PART + 1])
    before, after = (len(part.group()) for part in (left, right))
    return (
        start - before if before <= _LONGEST_PART else start,
        end + after if after <= _LONGEST_PART else end,
    )


@functools.lru_cache(maxsize=4)
def _word_spans(context):
    """Starts and ends, in characters, of the words of `context`."""
    spans = [match.span() for match in _WORD.finditer(context)]
    return [start for start, _ in spans], [end for _, end in spans]


def _words_place(context, text, start):
    """The limits of the words of an answer, which must be found in them but for case and spacing.

    White space counts to the word before.
    """
    starts, ends = _word_spans(context)
    first = bisect.bisect_right(starts, start) - 1
    last = bisect.bisect_right(starts, start + len(text) - 1) - 1
    limits = zip(starts[first : last + 1], ends[first : last + 1], strict=True)
    words = [context[s:e] for s, e in limits]
    wanted = " ".join(text.split()).lower()
    if first < 0 or start + len(text) > len(context) or wanted not in " ".join(words).lower():
        raise LookupError(_ELSEWHERE)
    return starts[first], ends[last]
