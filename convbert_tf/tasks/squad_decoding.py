"""SQuAD answers from a model's outputs for windows, official scores, prediction files.

The original ConvBERT code's choice of answers, but for two things: the text is cut from the
context at the byte offsets of its tokens, where the original searched for the tokens' text in the
words around them (and gave whole words where it did not find it); and a question without any
candidate gets "", not "empty".
"""

import json
import os
import random

import numpy as np
from official.nlp.tools import squad_evaluate_v1_1, squad_evaluate_v2_0

from convbert_tf.console import UserError
from convbert_tf.files import atomic_path
from convbert_tf.tasks import squad

OUTPUT_NAMES = (
    "start_top_log_probs",
    "start_top_index",
    "end_top_log_probs",
    "end_top_index",
    "answerable_logit",
)
NO_SPAN = -1e9  # score of a served answer where no span is one


def decode(
    windows, outputs, max_answer_length=30, n_best_size=20, version2=False, null_threshold=None
):
    """Turns the model's beams over windows into answers.

    A candidate is a start and an end of one window's beam, in order, at most `max_answer_length`
    tokens apart, both in the window's context, the start where this window has the most context.
    Its score is the sum of the two log probabilities.

    Args:
        windows: W `Window`s.
        outputs: name -> array, for the windows in the same order, K the beam:
            start_top_log_probs [W, K], start_top_index [W, K], end_top_log_probs [W, K, K] and
            end_top_index [W, K, K] (indices of tokens in the input; [w, i] belongs to start i),
            and for version 2 answerable_logit [W], high where the question has no answer.
        max_answer_length: most tokens of an answer.
        n_best_size: the most answers in the n-best list; no text is repeated.
        version2: also gives the scores of "no answer".
        null_threshold: with version 2, a question whose null odds are above it gets "" for its
            prediction; by default every question gets its best text, and the official script
            looks for the best threshold (`evaluate`).

    Returns:
        predictions: question id -> text; "" where there is no candidate.
        nbest: question id -> list, best first, of {"text", "probability" (softmax over the list),
            "start_log_prob", "end_log_prob"} and of where the text stands: the first and the one
            behind the last character of a Python str, context[start_char:end_char], and the same
            in bytes of UTF-8, "start_byte" and "end_byte".
        null_odds: question id -> lowest answerable_logit of its windows; empty for version 1.
    """
    needed = OUTPUT_NAMES if version2 else OUTPUT_NAMES[:-1]
    outputs = {name: np.asarray(outputs[name]) for name in needed}
    for name, values in outputs.items():
        if len(values) != len(windows):
            raise ValueError(f"{name} has {len(values)} rows for {len(windows)} windows")
    rows_of_question = {}
    for row, window in enumerate(windows):
        rows_of_question.setdefault(window.question_id, []).append(row)
    predictions, nbest, null_odds = {}, {}, {}
    for question_id, rows in rows_of_question.items():
        candidates = [_candidates(windows[row], row, outputs, max_answer_length) for row in rows]
        nbest[question_id] = _n_best([windows[row] for row in rows], candidates, n_best_size)
        predictions[question_id] = nbest[question_id][0]["text"]
        if version2:
            null_odds[question_id] = float(outputs["answerable_logit"][rows].min())
    return withhold(predictions, null_odds, null_threshold), nbest, null_odds


def withhold(predictions, null_odds, null_threshold):
    """`predictions`, but "" where the null odds are above the threshold; None is above all."""
    if null_threshold is None:
        return predictions
    return {
        key: "" if null_odds[key] > null_threshold else text for key, text in predictions.items()
    }


def _candidates(window, row, outputs, max_answer_length):
    """Start and end pieces and their log probabilities, each [candidates]."""
    num_pieces = len(window.starts)
    starts = outputs["start_top_index"][row][:, None] - window.context_position  # [K, 1]
    ends = outputs["end_top_index"][row] - window.context_position  # [K, K]
    startable = (starts >= 0) & (starts < num_pieces)
    startable[startable] = window.max_context[starts[startable]]
    lengths = ends - starts + 1
    kept = startable & (ends < num_pieces) & (lengths >= 1) & (lengths <= max_answer_length)
    start_log_probs = outputs["start_top_log_probs"][row][:, None]
    return (
        np.broadcast_to(starts, kept.shape)[kept],
        ends[kept],
        np.broadcast_to(start_log_probs, kept.shape)[kept],
        outputs["end_top_log_probs"][row][kept],
    )


def _n_best(windows, candidates, n_best_size):
    """The n-best list of one question from the candidates of its windows."""
    of_window = np.repeat(np.arange(len(windows)), [len(found[0]) for found in candidates])
    starts, ends, start_log_probs, end_log_probs = map(
        np.concatenate, zip(*candidates, strict=True)
    )
    scores = start_log_probs + end_log_probs
    context = windows[0].context.encode("utf-8")
    best = {}  # text -> the highest candidate that gives it
    for i in np.argsort(-scores, kind="stable"):
        window = windows[of_window[i]]
        place = (window.starts[starts[i]], window.ends[ends[i]])
        best.setdefault(context[slice(*place)].decode("utf-8"), (i, place))
        if len(best) == n_best_size:
            break
    if not best:
        return [_entry("", 1.0, 0.0, 0.0, (0, 0), (0, 0))]
    chosen, places = map(list, zip(*best.values(), strict=True))
    weights = np.exp((scores[chosen] - scores[chosen[0]]).astype(float))
    values = (weights / weights.sum(), start_log_probs[chosen], end_log_probs[chosen])
    values += (places, _in_characters(context, np.array(places)).tolist())
    return [_entry(*entry) for entry in zip(best, *values, strict=True)]


def _in_characters(context, places):
    """The numbers of characters before these bytes of `context`, which begin a character."""
    begins = np.frombuffer(context, np.uint8) & 0xC0 != 0x80
    return places if begins.all() else np.append(0, np.cumsum(begins))[places]


def _entry(text, probability, start_log_prob, end_log_prob, in_bytes, in_characters):
    places = {
        "start_char": in_characters[0],
        "end_char": in_characters[1],
        "start_byte": in_bytes[0],
        "end_byte": in_bytes[1],
    }
    return {
        "text": text,
        "probability": float(probability),
        "start_log_prob": float(start_log_prob),
        "end_log_prob": float(end_log_prob),
    } | {name: int(place) for name, place in places.items()}


def evaluate(source, predictions, null_odds=None, null_threshold=None):
    """Scores `predictions` by the official scripts, in percent.

    Args:
        source: path of the SQuAD JSON, or its examples as `squad.read_examples` gives them. With
            questions that have no answer, or with `null_odds`, the v2.0 script scores, else v1.1.
        predictions: question id -> text, an answer to every question.
        null_odds: question id -> score, high where there is no answer.
        null_threshold: of the null odds; see `best_null_threshold`.

    Returns:
        `exact_match`, `f1` and `total` of the predictions, "" where the null odds are above
        `null_threshold`. For v2.0 also `HasAns_f1`, `NoAns_f1` and so on, and, given `null_odds`,
        what the official script makes of them: `best_exact` and `best_f1`, with the thresholds
        `best_exact_thresh` and `best_f1_thresh` (0.0 where none is better than to answer nothing,
        even if all odds are below that); `pr_exact_ap`, `pr_f1_ap` and `pr_oracle_ap`, average
        precisions, where some questions have answers.

    Raises:
        UserError: a question has no prediction.
    """
    source, dataset = _dataset(source, predictions)
    if null_odds is None and not any(example.is_impossible for example in source):
        if not all(example.answers for example in source):
            raise UserError("some questions have no answers to score against: is this a test set?")
        scores = squad_evaluate_v1_1.evaluate(dataset, predictions)
        return {
            "exact_match": 100 * scores["exact_match"],
            "f1": 100 * scores["final_f1"],
            "total": len(source),
        }
    answers = withhold(predictions, null_odds, null_threshold)
    scores = dict(squad_evaluate_v2_0.evaluate(dataset, answers))
    result = {"exact_match": scores["exact"]} | {
        name: score for name, score in scores.items() if name in _PLAIN_V2_SCORES
    }
    if null_odds is not None:
        best = squad_evaluate_v2_0.evaluate(dataset, predictions, null_odds)
        for name in ("exact", "exact_thresh", "f1", "f1_thresh"):
            result[f"best_{name}"] = best[f"final_{name}"]
        result |= {name: best[name] for name in _AVERAGE_PRECISIONS if name in best}
    return result


def _dataset(source, predictions):
    """The examples of `source`, as for `evaluate`, and the same as the official scripts take it."""
    if isinstance(source, str | os.PathLike):
        source = squad.read_examples(source, training=False)
    missing = [e.question_id for e in source if e.question_id not in predictions]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(source)} questions have no prediction, the first is "
            f"{missing[0]}: predict the whole of the data that is scored."
        )
    return source, [{"paragraphs": [{"qas": [_official(example) for example in source]}]}]


def question_scores(source, predictions):
    """Exact match and F1 of each question, as the official v2.0 script: two dicts, from 0 to 1.

    Args: as for `evaluate`. What has no answer to score against counts as answered by "".
    """
    _, dataset = _dataset(source, predictions)
    return squad_evaluate_v2_0._get_raw_scores(dataset, predictions)


def _ranked(source, predictions, null_odds):
    """Questions by rising null odds: their odds, whether they have an answer, exact match and F1.

    Each an array [questions]; the scores are those of `predictions` as they are, from 0 to 1.
    """
    source, _ = _dataset(source, predictions)
    raw = question_scores(source, predictions)
    ids = sorted((e.question_id for e in source), key=lambda key: null_odds[key])
    answered = {e.question_id: bool(_official(e)["answers"]) for e in source}
    columns = [null_odds, answered, *raw]
    return [np.array([column[key] for key in ids], float) for column in columns]


def best_null_threshold(source, predictions, null_odds, metric="f1"):
    """The threshold of the null odds with the best score, if answers above it are withheld.

    It lies in the middle between two odds, so that odds that are computed again, in other batches
    or by another program, fall on the same side; the official script names the lower of the two.
    Where it is best to answer nothing or everything, it lies 1 below or above all odds. Of equally
    good thresholds it is the lowest. It is a number of float32, as the odds are.

    Args:
        source, predictions, null_odds: as for `evaluate`.
        metric: "f1" or "exact".

    Returns:
        A float: `evaluate` with it gives the best score that a threshold can give.
    """
    odds, has_answer, exact, f1 = _ranked(source, predictions, null_odds)
    gains = {"exact": exact, "f1": f1}[metric] - (1 - has_answer)
    scores = np.append(0, np.cumsum(gains))  # if so many of them are answered
    possible = np.append(np.append(True, odds[1:] > odds[:-1]), True)
    number = int(np.argmax(np.where(possible, scores, -np.inf)))
    if number == 0:
        return float(odds[0] - 1)
    below = float(odds[number - 1])
    if number == len(odds):
        return below + 1
    middle = float(np.float32((below + odds[number]) / 2))
    return middle if below <= middle < odds[number] else below


def precision_recall(source, predictions, null_odds):
    """Precision and recall as more and more questions are answered, as the official v2.0 script.

    Args: as for `evaluate`.

    Returns:
        "exact", "f1" and "oracle" -> (recalls, precisions), two arrays that begin with 0 and 1;
        empty where no question has an answer. The oracle knows the answers, but not which
        questions have none.
    """
    odds, has_answer, exact, f1 = _ranked(source, predictions, null_odds)
    if not has_answer.any():
        return {}
    at_end = np.append(odds[1:] > odds[:-1], True)  # of questions with equal odds
    curves = {}
    for name, scores in (("exact", exact), ("f1", f1), ("oracle", has_answer)):
        right = np.cumsum(scores * has_answer)
        precisions, recalls = right / np.arange(1, len(right) + 1), right / has_answer.sum()
        curves[name] = (np.append(0, recalls[at_end]), np.append(1, precisions[at_end]))
    return curves


# Of v1.1 and of v2.0, the scores that are higher the better the answers are.
METRICS = ("exact_match", "f1")
METRICS_V2 = (
    *METRICS,
    "best_exact",
    "best_f1",
    "HasAns_exact",
    "HasAns_f1",
    "NoAns_exact",
    "NoAns_f1",
)
_AVERAGE_PRECISIONS = ("pr_exact_ap", "pr_f1_ap", "pr_oracle_ap")
_PLAIN_V2_SCORES = ("f1", "total") + tuple(
    f"{kind}_{name}" for kind in ("HasAns", "NoAns") for name in ("exact", "f1", "total")
)


def _official(example):
    """The question as the official scripts take it."""
    answers = [] if example.is_impossible else [{"text": text} for text, _ in example.answers]
    return {"id": example.question_id, "answers": answers}


def span_baseline(examples, num_words=2, seed=None):
    """Predictions that need no model, to compare with: `num_words` words of each context.

    The first ones, or, given a `seed`, those at a random place. Two words are the median
    length of SQuAD's answers.
    """
    place = random.Random(seed)
    predictions = {}
    for example in examples:
        words = example.context.split()
        start = 0 if seed is None else place.randint(0, max(0, len(words) - num_words))
        predictions[example.question_id] = " ".join(words[start : start + num_words])
    return predictions


def write_predictions(output_dir, predictions, nbest, null_odds=None):
    """Writes predictions.json, nbest_predictions.json and, if not empty, null_odds.json.

    Each file is whole or not there; they are what `decode` returns, and the first and the last
    are what the official scripts take as predictions and as --na-prob-file. Returns their paths.
    """
    contents = {"predictions.json": predictions, "nbest_predictions.json": nbest}
    if null_odds:
        contents["null_odds.json"] = null_odds
    for name, content in contents.items():
        path = os.path.join(output_dir, name)
        with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
    return [os.path.join(output_dir, name) for name in contents]
