"""Scores of sentence tasks, what a model must beat, and weights of classes."""

import collections
import functools

import numpy as np

from convbert_tf.console import UserError


def label_value(task, label):
    """A label as a record holds it."""
    if task.multi_label:
        return [int(i in (label or ())) for i in range(len(task.labels))]
    if not task.is_regression:
        return int(label or 0)
    label = task.min_score if label is None else label
    return (float(label) - task.min_score) / (task.max_score - task.min_score)


def _correlation(measure):
    def score(labels, predictions):
        # Undefined for a constant; 0 then, which is what a model that predicts one is worth.
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return measure(labels, predictions).statistic

    return score


def _measures(task):
    """Name of a metric -> function of labels and predictions."""
    # Here, since importing them takes a second that only scoring need wait.
    import scipy.stats
    import sklearn.metrics

    f1 = functools.partial(sklearn.metrics.f1_score, zero_division=0.0)

    def squared_error(labels, scores):  # of scores as they are served
        return np.mean((np.clip(scores, task.min_score, task.max_score) - labels) ** 2)

    return {
        "accuracy": sklearn.metrics.accuracy_score,
        "subset_accuracy": sklearn.metrics.accuracy_score,
        "f1": f1,
        "micro_f1": functools.partial(f1, average="micro"),
        "macro_f1": functools.partial(f1, average="macro"),
        "mean_squared_error": squared_error,
        "mcc": sklearn.metrics.matthews_corrcoef,
        "pearson": _correlation(scipy.stats.pearsonr),
        "spearman": _correlation(scipy.stats.spearmanr),
    }


def metrics(task, predictions, labels):
    """Scores `predictions` against `labels`.

    Args:
        task: names the metrics.
        predictions: [n] class ids; or bool [n, C], whether a text has a label; or for regression
            numbers on the labels' scale (for correlations, on any linear scale).
        labels: as `predictions`.

    Returns:
        name -> value, in the order of `task.metrics`:

        accuracy, mcc: of classes. f1: of class 1.
        macro_f1: mean of the F1 of each class or label.
        micro_f1: of several labels: F1 over all texts and labels together.
        subset_accuracy: of several labels: the share of texts that have just the right ones.
        pearson, spearman: of scores; 0 with a constant. mean_squared_error: of scores that are
            cut to the labels' range.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    rank = 2 if task.multi_label else 1
    if predictions.shape != labels.shape or predictions.ndim != rank or not len(labels):
        raise ValueError(f"{predictions.shape} predictions for {labels.shape} labels")
    measures = _measures(task)
    return {name: float(measures[name](labels, predictions)) for name in task.metrics}


def main_metric(task):
    """The name of the metric that models are compared by."""
    return task.metrics[0]


def label_array(task, examples):
    """The labels of `examples` as `metrics` takes them."""
    labels = [example.label for example in examples]
    if task.multi_label:
        return np.array([label_value(task, label) for label in labels], bool)
    return np.array(labels)


def majority_baseline(task, train, dev):
    """`metrics` on `dev` of always answering the most frequent of `train`: class, set of labels.

    Of scores, the mean.

    What a model must beat to have learned anything; on correlations it scores 0.
    """
    labels = [example.label for example in train]
    if task.is_regression:
        answer = float(np.mean(labels))
    else:
        answer = collections.Counter(labels).most_common(1)[0][0]
        answer = np.array(label_value(task, answer), bool) if task.multi_label else answer
    return metrics(task, np.array([answer] * len(dev)), label_array(task, dev))


def class_weights(given, task, examples):
    """What an example of each class counts for in the loss, in the order of `task.labels`.

    Args:
        given: "balanced": in inverse proportion to the classes' numbers, so that each counts for
            the same in all, and an example for 1 on average; or numbers, "1,3" in the order of the
            labels or "0:1,1:3".
        task: gives the labels.
        examples: to train on.
    """
    labels = task.labels
    if not labels:
        raise UserError(f"class_weights are for classes; the labels of {task.name} are numbers.")
    if task.multi_label:
        raise UserError("class_weights are for one class a text, not for several labels.")
    if given == "balanced":
        counts = collections.Counter(example.label for example in examples)
        mean = len(examples) / len(counts)
        return [mean / counts[i] if counts[i] else 1.0 for i in range(len(labels))]
    parts = [part.rpartition(":") for part in given.split(",")]
    names = [name.strip() for name, colon, _ in parts if colon] or list(labels)
    try:
        weights = [float(number) for *_, number in parts]
    except ValueError:
        weights = []
    right = len(weights) == len(labels) and sorted(names) == sorted(labels)
    if not right or not all(0 <= weight < np.inf for weight in weights) or not any(weights):
        raise UserError(
            f"class_weights must be balanced or a number for each of the labels "
            f"{', '.join(labels)}, as {','.join(f'{label}:1' for label in labels)}; got {given!r}."
        )
    return [dict(zip(names, weights, strict=True))[label] for label in labels]


def softmax(logits):
    """Probabilities of logits [..., C], in double precision."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf), dtype=float)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def mean_of_classifiers(logits):
    """Logits of the mean of several models' probabilities; `logits`: a list of arrays [..., C]."""
    mean = np.mean([softmax(each) for each in logits], axis=0)
    return np.log(np.maximum(mean, 1e-300))
