"""Questions about contexts as a family of tasks: SQuAD 1.1 and 2.0.

Examples and their windows stand in squad.py, answers and scores in squad_decoding.py.
"""

import os

from convbert_tf.console import UserError, say
from convbert_tf.data import records
from convbert_tf.modeling import presets
from convbert_tf.modeling.heads import QuestionAnswerer
from convbert_tf.tasks import reports, squad, squad_decoding
from convbert_tf.training import plots

TASKS = {"squad_v1": False, "squad_v2": True}  # name -> has unanswerable questions


class Questions:
    """A family of tasks for `finetuning.run` (see families.py): SQuAD's JSON files.

    Args:
        config: TaskConfig; `data_dir` holds train.json and dev.json.
        tokenizer: WordPieceTokenizer.
    """

    schema, main_metric = records.SQUAD, "f1"

    def __init__(self, config, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.version2 = TASKS[config.name]
        self.metric_names = squad_decoding.METRICS_V2 if self.version2 else squad_decoding.METRICS
        self.loss_options = {"answerable_weight": config.answerable_weight} if self.version2 else {}

    def files(self, split):
        path = os.path.join(self.config.data_dir, f"{split}.json")
        if not os.path.isfile(path):
            raise UserError(f"{path} is not there; SQuAD's JSON is needed.")
        return [path]

    def evaluation_splits(self):
        return ["dev"]

    def check(self, batch_size):
        """Refuses files that cannot be read; how many records they make is not known yet."""
        for split in ("train", *self.evaluation_splits()):
            self._examples(split, training=False)

    def make_model(self, model):
        """A question answerer on the encoder of `model`; with its head if it is of this kind."""
        options = self._kind() | {"beam_size": self.config.beam_size}
        return QuestionAnswerer.start_from(model, self.config.init_from, **options)

    def misfit(self, model):
        return presets.misfit(model, QuestionAnswerer, **self._kind())

    def _kind(self):
        kind = {"answerable": self.version2}
        return kind if self.config.joint_prediction else kind | {"joint": False}

    def serving(self, metrics):
        names = ("max_seq_length", "doc_stride", "max_query_length", "max_answer_length")
        options = {name: getattr(self.config, name) for name in names}
        return options | {k: metrics[k] for k in ("null_threshold",) if k in metrics}

    def _examples(self, split, training):
        return squad.read_examples(self.files(split)[0], training, self.version2)

    def _windows(self, examples, training):
        config = self.config
        lengths = (config.max_seq_length, config.doc_stride, config.max_query_length)
        return squad.make_windows(examples, self.tokenizer, *lengths, training)

    def write_training_records(self, path):
        return squad.write_records(path, self._windows(self._examples("train", True), True))

    def evaluation(self, split, work_dir):
        examples = self._examples(split, training=False)
        windows = self._windows(examples, training=False)
        path = os.path.join(work_dir, f"{split}.tfrecord")
        squad.write_records(path, windows)
        # With what the file says of questions without an answer, whichever version this is.
        examples = squad.read_examples(self.files(split)[0], training=False)
        serialized = records.read(path)
        return QuestionsEvaluation(self.config, self.version2, examples, windows, serialized)

    def baseline(self, split):
        """Official metrics of random spans of the usual length, or, if better, of no answers."""
        path, examples = self.files(split)[0], self._examples(split, training=False)
        spans = squad_decoding.span_baseline(examples, seed=0)
        found = [squad_decoding.evaluate(path, spans)]
        if self.version2:
            found.append(squad_decoding.evaluate(path, dict.fromkeys(spans, "")))
        return max(found, key=lambda scores: scores["f1"])


class QuestionsEvaluation:
    """A SQuAD file to predict.

    It has no `ensemble`: each model gives ends for the starts of its own beam, so that theirs are
    not of the same spans.

    Attributes:
        serialized: the records of its windows.
        labelled: whether its questions have answers to score against.
    """

    def __init__(self, config, version2, examples, windows, serialized):
        self.config, self.version2, self.examples = config, version2, examples
        self.windows, self.serialized = windows, serialized
        self.labelled = any(each.answers or each.is_impossible for each in examples)

    @property
    def num_examples(self):
        return len(self.examples)

    def predictions(self, outputs):
        """`squad_decoding.decode` of the model's `outputs`: an answer to every question."""
        config = self.config
        sizes = (config.max_answer_length, config.n_best_size)
        return squad_decoding.decode(self.windows, outputs, *sizes, self.version2)

    def _null_threshold(self, predictions, null_odds):
        """What the setting `null_threshold` means for these; None for none."""
        setting = self.config.null_threshold
        if not self.version2 or setting == "none":
            return None
        if setting not in ("f1", "exact"):
            return float(setting)
        if not self.labelled:
            return None
        return squad_decoding.best_null_threshold(self.examples, predictions, null_odds, setting)

    def score(self, outputs):
        """Official metrics, in percent; for version 2 with the threshold that they are of."""
        predictions, _, null_odds = self.predictions(outputs)
        threshold = self._null_threshold(predictions, null_odds)
        scores = squad_decoding.evaluate(self.examples, predictions, null_odds or None, threshold)
        return scores if threshold is None else scores | {"null_threshold": threshold}

    def report(self, outputs):
        """The wrong answers that the model was surest of, to questions that have one."""
        _, nbest, _ = self.predictions(outputs)
        asked = {e.question_id: (i, e) for i, e in enumerate(self.examples) if e.answers}
        best = {key: nbest[key][0] for key in asked}
        mistakes = []
        for key in sorted(asked, key=lambda key: -best[key]["probability"]):
            number, example = asked[key]
            one = {key: best[key]["text"]}
            if squad_decoding.evaluate([example], one)["f1"] == 0:
                mistakes.append(_mistake(number, example, best[key]))
            if len(mistakes) == reports.NUM_MISTAKES:
                break
        return {"mistakes": mistakes}

    def write(self, outputs, directory):
        """Writes the predictions that `score` scores, and how precision goes with recall."""
        predictions, nbest, null_odds = self.predictions(outputs)
        answers = squad_decoding.withhold(
            predictions, null_odds, self._null_threshold(predictions, null_odds)
        )
        squad_decoding.write_predictions(directory, answers, nbest, null_odds)
        if not self.version2:
            return
        curves = squad_decoding.precision_recall(self.examples, predictions, null_odds)
        try:
            plots.plot_precision_recall(curves, os.path.join(directory, "precision_recall.png"))
        except UserError as error:
            say(f"no picture of precision and recall: {error}")


def _mistake(number, example, answer):
    return {
        "example": number,
        "question": example.question,
        "answers": " / ".join(dict.fromkeys(text for text, _ in example.answers)),
        "prediction": answer["text"],
        "probability": round(answer["probability"], 6),
    }
