"""Reports on a split that was predicted: scores, classes, the confusion matrix, the worst mistakes.

A report is a dict as JSON holds it. What it has:

    task, split, examples   what was predicted
    metrics, baseline       name -> score of the model, and without a model; empty without labels
    classes                 a dict a class: label, precision, recall, f1, support (examples of the
                            class), predicted (examples that were taken for it); one a label
                            where a text has several
    confusion               {"labels": names, "matrix": rows of true classes, columns of predicted}
    mistakes                a dict each, the worst first: example (its number in the file, from 0;
                            of one's own texts and of words their line, row or id, as predictions
                            have it), its texts, label, prediction, and how sure or how far off
                            the model was
    right                   of questions, the same of the right answers, the least sure first

A family's evaluation gives the last four by `report(outputs)`; `of_...` make them. Without
classes there is no confusion, and without labels none of the four.
"""

import os

import numpy as np
import tensorflow as tf

from convbert_tf.console import UserError, counted
from convbert_tf.files import write_bytes, write_json
from convbert_tf.training import plots, scores

NUM_MISTAKES = 20  # in a report
_LARGEST_TABLE = 12  # classes whose confusion matrix is shown as text
_LONGEST_TEXT = 300  # characters of a text in a table


# --- what is in a report ---


def of_sentences(task, examples, labels, logits):
    """What a report has beside the metrics, of a task of sentences.Task.

    Args:
        task: says what the labels are.
        examples: n of sentences.Example.
        labels: [n] class ids or scores, or bool [n, C] where a text has several.
        logits: [n, C] of the model.
    """
    pairs = task.text_b is not None
    texts = [
        ({} if each.key is None else {"example": each.key})
        | ({"text_a": each.text_a, "text_b": each.text_b} if pairs else {"text": each.text_a})
        for each in examples
    ]
    if task.is_regression:
        return of_scores(labels, task.scores(np.clip(logits[:, 0], 0, 1)), texts)
    if task.multi_label:
        return of_several_labels(labels, tf.sigmoid(logits).numpy(), task.labels, texts)
    return of_classes(labels, tf.nn.softmax(logits).numpy(), task.labels, texts)


def of_classes(labels, probabilities, names, texts):
    """`classes`, `confusion` and `mistakes` of a classification.

    Args:
        labels: [n] class ids.
        probabilities: [n, C].
        names: of the C classes.
        texts: n dicts of an example's texts by their names, and its number, "example", where that
            is not its place among the n.
    """
    from sklearn import metrics  # it takes a second to import

    labels, predictions = np.asarray(labels), np.argmax(probabilities, axis=1)
    matrix = metrics.confusion_matrix(labels, predictions, labels=range(len(names)))
    sure = np.max(probabilities, axis=1)
    wrong = np.flatnonzero(labels != predictions)
    mistakes = [
        _mistake(i, texts[i], names[labels[i]], names[predictions[i]], probability=sure[i])
        for i in wrong[np.argsort(-sure[wrong], kind="stable")][:NUM_MISTAKES]
    ]
    return {
        "classes": _classes(labels, predictions, names, matrix.sum(axis=0)),
        "confusion": {"labels": list(names), "matrix": matrix.tolist()},
        "mistakes": mistakes,
    }


def of_several_labels(labels, probabilities, names, texts):
    """`classes` and `mistakes` where a text has any number of labels; as `of_classes`.

    `labels` are bool [n, C]. A mistake's probability is that of its surest wrong yes or no.
    """
    labels, predictions = np.asarray(labels, bool), probabilities > 0.5
    sure = np.maximum(probabilities, 1 - probabilities) * (labels != predictions)
    sure = sure.max(axis=1)
    mistakes = [
        _mistake(i, texts[i], *(_joined(names, x[i]) for x in (labels, predictions)), sure=sure[i])
        for i in np.argsort(-sure, kind="stable")[:NUM_MISTAKES]
        if sure[i] > 0
    ]
    classes = _classes(labels, predictions, names, predictions.sum(axis=0))
    return {"classes": classes, "mistakes": mistakes}


def _joined(names, chosen):
    return ", ".join(names[i] for i in np.flatnonzero(chosen))


def of_scores(labels, predictions, texts):
    """`mistakes` of a regression: the predictions that are furthest off.

    Args:
        labels, predictions: [n] numbers on one scale.
        texts: n dicts of an example's texts by their names.
    """
    labels, predictions = np.asarray(labels, float), np.asarray(predictions, float)
    errors = np.abs(predictions - labels)
    mistakes = [
        _mistake(i, texts[i], _rounded(labels[i]), _rounded(predictions[i]), error=errors[i])
        for i in np.argsort(-errors, kind="stable")[:NUM_MISTAKES]
    ]
    return {"mistakes": mistakes}


def _mistake(number, texts, label, prediction, **measure):
    said = {"label": label, "prediction": prediction}
    measure = {name: _rounded(value) for name, value in measure.items()}
    return {"example": int(number)} | texts | said | measure


def _rounded(value):
    return round(float(value), 6)


def _classes(labels, predictions, names, predicted):
    """A dict a class; labels and predictions as scikit-learn takes them."""
    from sklearn import metrics

    scores = metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(len(names)), zero_division=0.0
    )
    return [
        {
            "label": name,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
            "predicted": int(number),
        }
        for name, precision, recall, f1, support, number in zip(
            names, *scores, predicted, strict=True
        )
    ]


def make(task_name, split, evaluation, outputs, baseline=None):
    """The report on an evaluation of a family (see families.py).

    Args:
        task_name, split: what was predicted.
        evaluation: of the split.
        outputs: of the model for its records.
        baseline: metrics without a model.
    """
    report = {"task": task_name, "split": split, "examples": evaluation.num_examples}
    if not evaluation.labelled:
        return report | {"metrics": {}, "baseline": {}}
    scores = {"metrics": evaluation.score(outputs), "baseline": baseline or {}}
    return report | scores | evaluation.report(outputs)


# --- how it is shown ---


def write(report, directory):
    """Writes SPLIT.json and SPLIT.md to `directory`, and to TensorBoard what `show` does."""
    path = os.path.join(directory, report["split"])
    write_json(f"{path}.json", report)
    write_bytes(f"{path}.md", (markdown(report) + "\n").encode("utf-8"))
    show(report)


def show(report):
    """Scores, confusion matrix and mistakes for TensorBoard, in the summary writer of now."""
    split = report["split"]
    for table in ("classes", "mistakes", "right"):
        if report.get(table):
            tf.summary.text(f"{table}/{split}", _table(report[table]))
    if "confusion" in report:
        try:
            image = plots.confusion_image(**report["confusion"])
        except UserError:  # matplotlib is missing; the matrix is in the report all the same
            return
        tf.summary.image(f"confusion/{split}", image[None])


def markdown(report):
    """The report as a page."""
    lines = [f"# {report['task']}, {report['split']}: {counted(report['examples'], 'example')}", ""]
    lines += [f"- {name}: {report[name]}" for name in ("model", "files") if name in report]
    if not report["metrics"]:
        return "\n".join([*lines, "", "No scores: this split has no labels."])
    baseline = report["baseline"]
    scores = [
        {"metric": name, "score": value, "baseline": baseline.get(name, "")}
        for name, value in report["metrics"].items()
    ]
    lines += ["", _table(scores)]
    if report.get("classes"):
        lines += ["", "## Classes", "", _table(report["classes"])]
    if "confusion" in report:
        lines += ["", "## Confusion", "", *_confusion(**report["confusion"])]
    if report.get("mistakes"):
        lines += ["", "## Worst mistakes", "", _table(report["mistakes"])]
    if report.get("right"):
        lines += ["", "## Right, the least sure", "", _table(report["right"])]
    return "\n".join(lines)


def brief(report, num_mistakes=3):
    """A few lines of the report for the terminal."""
    head = f"{report['task']} {report['split']}, {counted(report['examples'], 'example')}"
    if not report["metrics"]:
        return [f"{head}: predicted; the split has no labels, so there are no scores."]
    baseline = report["baseline"]
    known = {k: f" (baseline {v:.4g})" for k, v in baseline.items() if k != "total"}
    scores = [f"{k} {v:.4g}{known.get(k, '')}" for k, v in report["metrics"].items()]
    lines = [f"{head}: {'  '.join(scores)}"]
    if report.get("classes"):
        lines += _columns([_shown(row) for row in report["classes"]])
    if "confusion" in report and len(report["confusion"]["labels"]) <= _LARGEST_TABLE:
        lines += _columns(_confusion_rows(**report["confusion"]))
    for mistake in report.get("mistakes", ())[:num_mistakes]:
        lines.append("wrong: " + "  ".join(f"{k}: {v}" for k, v in _shown(mistake, 100).items()))
    return lines


def _confusion(labels, matrix):
    if len(labels) <= _LARGEST_TABLE:
        return [_table(_confusion_rows(labels, matrix))]
    pairs = [
        {"true": labels[i], "predicted": labels[j], "examples": number}
        for i, row in enumerate(matrix)
        for j, number in enumerate(row)
        if number and i != j
    ]
    pairs.sort(key=lambda pair: -pair["examples"])
    return ["The most frequent ones; the JSON file has the matrix.", "", _table(pairs[:20])]


def _confusion_rows(labels, matrix):
    return [
        {"true \\ predicted": label} | dict(zip(labels, row, strict=True))
        for label, row in zip(labels, matrix, strict=True)
    ]


def _shown(row, longest=_LONGEST_TEXT):
    """The values of a dict as short strings on one line."""
    shown = {}
    for name, value in row.items():
        text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
        shown[name] = text if len(text) <= longest else text[: longest - 3] + "..."
    return shown


def _table(rows):
    """Dicts with the same keys as a table of Markdown."""
    if not rows:
        return "None."
    cells = [[str(name) for name in rows[0]], ["---"] * len(rows[0])]
    cells += [list(_shown(row).values()) for row in rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _columns(rows):
    """Dicts with the same keys as aligned lines, indented."""
    return [f"  {line}" for line in scores.table([rows[0], *(r.values() for r in rows)], ">")]
