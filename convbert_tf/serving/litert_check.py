"""What a converted network costs and gives, beside float32 and the model that it was made of."""

import dataclasses
import os
import tempfile
import time

import numpy as np
import tensorflow as tf

from convbert_tf.console import Progress, UserError, without_stderr
from convbert_tf.serving.litert import Compute
from convbert_tf.tasks import families, questions

_PROBES = (16, 32, 33, 128)  # tokens of the inputs that outputs are compared on
_TIMED = (32, 128)
_OF_ANSWERS = "start_top_log_probs"
_CALLS = 15  # that a latency is the median of
_MOST_DIFFERENT = 1e-3  # of float32 from the model, as a share of the largest value


@dataclasses.dataclass
class Findings:
    """What `Check` finds; dicts are by precision, "float32" and perhaps "int8".

    Attributes:
        megabytes: of the file.
        difference: the largest of `output` from the model's on the probe.
        largest: the largest value there.
        output: which output that is.
        milliseconds: length -> median time of an input of so many tokens.
        data, metric: what the networks were scored on, and the metric that counts; None.
        scores: name -> value, in points.
    """

    megabytes: dict
    difference: dict
    largest: float
    output: str
    milliseconds: dict
    data: str | None = None
    metric: str | None = None
    scores: dict = dataclasses.field(default_factory=dict)

    @property
    def lost(self):
        """Points of the metric that int8 loses, or None if that is not known."""
        if set(self.scores) < {"float32", "int8"}:
            return None
        lost = self.scores["float32"][self.metric] - self.scores["int8"][self.metric]
        return -lost if self.metric.endswith("error") else lost

    def table(self):
        """A table in Markdown, a precision a column."""
        names = list(self.megabytes)
        rows = [("", names), ("---", ["---"] * len(names))]
        rows.append(("size", [f"{self.megabytes[name]:.1f} MB" for name in names]))
        what = f"largest difference of {self.output} (up to {self.largest:.2f}) from the model's"
        rows.append((what, [f"{self.difference[name]:.1e}" for name in names]))
        for length in next(iter(self.milliseconds.values())):
            times = [f"{self.milliseconds[name][length]:.1f} ms" for name in names]
            rows.append((f"time of an input of {length} tokens, here", times))
        for metric in next(iter(self.scores.values()), ()):
            what = f"{metric}, {self.data}"
            rows.append((what, [f"{self.scores[name][metric]:.2f}" for name in names]))
        return "\n".join(f"| {what} | {' | '.join(values)} |" for what, values in rows)


class Check:
    """Compares networks with the model that they were made of.

    Args:
        model: the Keras model.
        tokenizer: WordPieceTokenizer.
        settings: litert.Settings.
        task: config.TaskConfig to score on the dev split of, or None.

    Call:
        networks: precision -> path of a .tflite file.
        Returns Findings.

    Raises:
        UserError: float32 does not give what the model gives; the task's data cannot be read, or
            the task is not the model's.
    """

    def __init__(self, model, tokenizer, settings, task=None):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self._family = self._make_family(task) if task else None

    def __call__(self, networks):
        with without_stderr():
            networks_of = {name: Compute(path, self.settings) for name, path in networks.items()}
        output, expected = self._expected()
        largest = max(float(np.abs(values).max()) for values in expected.values())
        findings = Findings({}, {}, largest, output, {})
        for name, compute in networks_of.items():
            findings.megabytes[name] = os.path.getsize(networks[name]) / 1e6
            findings.difference[name] = self._difference(compute, output, expected)
            findings.milliseconds[name] = self._times(compute)
        if findings.difference["float32"] > _MOST_DIFFERENT * max(1.0, largest):
            raise UserError(
                f"the converted network differs from the model by {findings.difference['float32']} "
                f"({output}): export a SavedModel instead."
            )
        if self._family:
            self._score(findings, networks_of, self._family)
        return findings

    def _expected(self):
        """The name of the output to compare, and length -> values of the model for the probe."""
        expected, name = {}, getattr(self.model, "output_name", "logits")
        for length in self._lengths(_PROBES):
            ids, first = self._probe(length)
            inputs = {
                "input_ids": tf.constant([ids], tf.int32),
                "input_mask": tf.ones([1, length], tf.int32),
                "segment_ids": tf.constant([[0] * first + [1] * (length - first)], tf.int32),
            }
            outputs = self.model(self._padded(inputs), training=False)
            name = _OF_ANSWERS if isinstance(outputs, dict) else name
            values = outputs[name] if isinstance(outputs, dict) else outputs
            expected[length] = _comparable(values.numpy()[0], name, length)
        return name, expected

    def _padded(self, inputs):
        """`inputs` padded to the longest, where padding matters."""
        if not self.settings["spare"]:
            return inputs
        longest = self.settings["max_seq_length"]
        return {k: tf.pad(x, [[0, 0], [0, longest - x.shape[1]]]) for k, x in inputs.items()}

    def _difference(self, compute, output, expected):
        found = {
            length: _comparable(compute(*self._probe(length))[output][0], output, length)
            for length in expected
        }
        return max(float(np.abs(found[n] - values).max()) for n, values in expected.items())

    def _probe(self, length):
        """(ids, how many are of the first segment) of an input of random pieces."""
        tokenizer = self.tokenizer
        rng = np.random.default_rng(length)
        ids = rng.integers(0, tokenizer.vocab_size, length)
        ids[0], ids[length // 3], ids[-1] = tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id
        ids[ids == tokenizer.mask_id] = tokenizer.sep_id
        ids[2] = tokenizer.mask_id  # one, for those that fill masks
        return ids.tolist(), length // 3 + 1

    def _lengths(self, lengths):
        longest = self.settings["max_seq_length"]
        return [n for n in lengths if n <= longest] or [longest]

    def _times(self, compute):
        """Length -> median milliseconds."""
        found = {}
        for length in self._lengths(_TIMED):
            probe, times = self._probe(length), []
            compute(*probe)  # sets an interpreter of this length up
            for _ in range(_CALLS):
                began = time.perf_counter()
                compute(*probe)
                times.append(time.perf_counter() - began)
            found[length] = 1e3 * float(np.median(times))
        return found

    # --- scores ---

    def _make_family(self, task):
        """The family of `task`, with lengths and threshold as the model is served."""
        names = ("max_seq_length", "doc_stride", "max_query_length", "max_answer_length")
        changes = {name: self.settings[name] for name in names if name in self.settings}
        if self.settings.get("null_threshold") is not None:
            changes["null_threshold"] = repr(self.settings["null_threshold"])
        task = dataclasses.replace(task, **changes)
        family = families.make(task, self.tokenizer)
        if misfit := family.misfit(self.model):
            raise UserError(f"--check_data: the model is not of the task {task.name}: {misfit}.")
        return family

    def _score(self, findings, networks, family):
        with tempfile.TemporaryDirectory() as work_dir:
            evaluation = family.evaluation("dev", work_dir)
        if not evaluation.labelled:
            raise UserError("--check_data: the dev split has no labels to score against.")
        points = 1 if isinstance(family, questions.Questions) else 100
        findings.data = f"{evaluation.num_examples:,} examples"
        findings.metric = family.main_metric
        for name, compute in networks.items():
            scores = evaluation.score(_outputs(compute, evaluation.serialized, name))
            names = [metric for metric in family.metric_names if metric in scores]
            findings.scores[name] = {metric: points * scores[metric] for metric in names}


def _comparable(values, name, length):
    """What of an output is compared: a classifier's logits, tags of `length` tokens, best start."""
    if name == _OF_ANSWERS:
        return values[:1]
    return values[:length] if values.ndim > 1 or name == "token_logits" else values


def _outputs(compute, serialized, name):
    """A network's outputs for records, in their order: name -> array [N, ...]."""
    progress, rows = Progress(f"scoring {name}", len(serialized), "inputs"), []
    for done, record in enumerate(serialized, 1):
        features = tf.train.Example.FromString(record).features.feature
        ids = list(features["input_ids"].int64_list.value)
        rows.append(compute(ids, len(ids) - sum(features["segment_ids"].int64_list.value)))
        progress.update(done)
    progress.close()
    return {key: _joined([row[key][0] for row in rows]) for key in rows[0]}


def _joined(rows):
    """Rows as one array; a first axis of tokens is filled up with zeros."""
    longest = max(row.shape[0] for row in rows) if rows[0].ndim else 0
    if all(row.ndim == 0 or row.shape[0] == longest for row in rows):
        return np.stack(rows)
    return np.stack([np.pad(row, [(0, longest - len(row)), (0, 0)]) for row in rows])
