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
        n_best_size: most answers of the n-best list; no text stands there twice.
        version2: also gives the scores of "no answer".
        null_threshold: with version 2, a question whose null odds are above it gets "" for its
            prediction; by default every question gets its best text, and the official script
            looks for the best threshold (`evaluate`).

    Returns:
        predictions: question id -> text; "" where there is no candidate.
        nbest: question id -> list, best first, of {"text", "probability" (softmax over the list),
            "start_log_prob", "end_log_prob"}.
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
            if null_threshold is not None and null_odds[question_id] > null_threshold:
                predictions[question_id] = ""
    return predictions, nbest, null_odds


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
        text = context[window.starts[starts[i]] : window.ends[ends[i]]].decode("utf-8")
        best.setdefault(text, i)
        if len(best) == n_best_size:
            break
    if not best:
        return [_entry("", 1.0, 0.0, 0.0)]
    chosen = list(best.values())
    weights = np.exp((scores[chosen] - scores[chosen[0]]).astype(float))
    values = (weights / weights.sum(), start_log_probs[chosen], end_log_probs[chosen])
    return [_entry(*entry) for entry in zip(best, *values, strict=True)]


def _entry(text, probability, start_log_prob, end_log_prob):
    return {
        "text": text,
        "probability": float(probability),
        "start_log_prob": float(start_log_prob),
        "end_log_prob": float(end_log_prob),
    }


def evaluate(source, predictions, null_odds=None):
    """Scores `predictions` by the official scripts, in percent.

    Args:
        source: path of the SQuAD JSON, or its examples as `squad.read_examples` gives them. With
            questions that have no answer, or with `null_odds`, the v2.0 script scores, else v1.1.
        predictions: question id -> text.
        null_odds: question id -> score, high where there is no answer.

    Returns:
        `exact_match`, `f1` and `total` of the predictions as they are. For v2.0 also
        `HasAns_f1`, `NoAns_f1` and so on, and, given `null_odds`, `best_exact` and `best_f1` if
        questions above the thresholds `best_exact_thresh` and `best_f1_thresh` are answered "".
        (These thresholds are chosen on the very data that is scored, as is usual for SQuAD 2.0.)

    Raises:
        UserError: a question has no prediction.
    """
    if isinstance(source, str | os.PathLike):
        source = squad.read_examples(source, training=False)
    missing = [e.question_id for e in source if e.question_id not in predictions]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(source)} questions have no prediction, the first is "
            f"{missing[0]}: predict the whole of the data that is scored."
        )
    dataset = [{"paragraphs": [{"qas": [_official(example) for example in source]}]}]
    if null_odds is None and not any(example.is_impossible for example in source):
        if not all(example.answers for example in source):
            raise UserError("some questions have no answers to score against: is this a test set?")
        scores = squad_evaluate_v1_1.evaluate(dataset, predictions)
        return {
            "exact_match": 100 * scores["exact_match"],
            "f1": 100 * scores["final_f1"],
            "total": len(source),
        }
    scores = dict(squad_evaluate_v2_0.evaluate(dataset, predictions))
    result = {"exact_match": scores["exact"]} | {
        name: score for name, score in scores.items() if name in _PLAIN_V2_SCORES
    }
    if null_odds is not None:
        best = squad_evaluate_v2_0.evaluate(dataset, predictions, null_odds)
        for name in ("exact", "exact_thresh", "f1", "f1_thresh"):
            result[f"best_{name}"] = best[f"final_{name}"]
    return result


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
    are what the official scripts take. Returns their paths.
    """
    contents = {"predictions.json": predictions, "nbest_predictions.json": nbest}
    if null_odds:
        contents["null_odds.json"] = null_odds
    for name, content in contents.items():
        path = os.path.join(output_dir, name)
        with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
    return [os.path.join(output_dir, name) for name in contents]
