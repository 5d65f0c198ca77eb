"""Questions about contexts as a family of tasks: SQuAD 1.1 and 2.0.

Their files are read in squad_data.py, windows made in squad.py, answers and scores in
squad_decoding.py.
"""

import os

from convbert_tf.console import UserError, say
from convbert_tf.data import records, tables, unpacking
from convbert_tf.modeling import presets
from convbert_tf.modeling.heads import QuestionAnswerer
from convbert_tf.tasks import reports, squad, squad_data, squad_decoding
from convbert_tf.training import plots

# Endings of the files of a data_dir; a .tsv there is a task's of GLUE.
_ENDINGS = tuple(
    f"{kind}{packing}"
    for kind in (".json", ".jsonl", ".csv", ".parquet")
    for packing in ("", *unpacking.PACKINGS)
)
TASKS = {"squad_v1": False, "squad_v2": True}  # name -> has unanswerable questions


class Questions:
    """A family of tasks for `finetuning.run` (see families.py): questions about contexts.

    Args:
        config: TaskConfig. A split is its `train_file`, `dev_file` or `test_file`; else of its
            `data_dir`, a folder (train.json and so on; see squad_data.py) or "tfds:squad/v1.1".
            With a train_file alone, a part of its contexts is held out as the dev set.
        tokenizer: WordPieceTokenizer.
    """

    schema, main_metric = records.SQUAD, "f1"

    def __init__(self, config, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.version2 = TASKS[config.name]
        self.metric_names = squad_decoding.METRICS_V2 if self.version2 else squad_decoding.METRICS
        self.loss_options = {"answerable_weight": config.answerable_weight} if self.version2 else {}

    def files(self, split):
        config = self.config
        if self._is_held_out(split):
            return [config.train_file]
        if path := getattr(config, f"{split}_file", ""):
            return [path]
        if config.data_dir.startswith("tfds:"):
            name, folder = squad_data.parse_tfds(config.data_dir)
            return squad_data.tfds_files(name, split, folder)
        stem = os.path.join(config.data_dir, split)
        found = [stem + ending for ending in _ENDINGS if os.path.isfile(stem + ending)]
        if len(found) > 1:
            raise UserError(f"{' and '.join(found)}: name one by --config.task.{split}_file.")
        if not found:
            raise UserError(
                f"{stem}.json is not there; SQuAD's JSON is needed, or {split}.jsonl, .csv or "
                f".parquet, or a file that --config.task.{split}_file names."
            )
        return found

    def _is_held_out(self, split):
        """Whether `split` is a part of the train_file."""
        config = self.config
        return split == "dev" and not config.dev_file and not config.data_dir

    def evaluation_splits(self):
        return ["dev"]

    def check(self, batch_size):
        """Refuses files that cannot be read; how many records they make is not known yet."""
        train, dev = (self._examples(split, training=False) for split in ("train", "dev"))
        if self._is_held_out("dev"):
            share = f"{self.config.held_out:g} of the contexts"
            if not train or not dev:
                raise UserError(
                    f"{self.config.train_file}: held_out {share} leaves no questions to train on "
                    "or none to score: set config.task.dev_file, or another held_out."
                )
            say(f"{len(train):,} questions to train on, {len(dev):,} to score (held out: {share})")

    def make_model(self, model):
        """A question answerer on the encoder of `model`; with its head if it is of this kind."""
        options = self._kind() | {"beam_size": self.config.beam_size}
        options |= {} if self.config.joint_prediction else {"mask_logits": True}
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
        config = self.config
        # To score, questions without an answer are what they are for both versions.
        options = {
            "version2": self.version2 or not training,
            "original_positions": config.answer_positions == "original",
        }
        paths = self.files(split)
        if config.data_dir.startswith("tfds:") and not getattr(config, f"{split}_file"):
            name, folder = squad_data.parse_tfds(config.data_dir)
            return squad_data.read_tfds(name, split, training, folder, **options)
        options["delimiter"] = config.delimiter
        examples = squad_data.read_examples(paths[0], training, **options)
        if split == "test" or not self._is_held_out("dev"):
            return examples
        # By their contexts, so that a context is trained on or scored.
        share, seed = config.held_out, config.held_out_seed
        dev = {c: tables.held_out([c], share, seed) for c in {e.context for e in examples}}
        return [example for example in examples if dev[example.context] == (split == "dev")]

    def _windows(self, examples, training):
        config = self.config
        lengths = (config.max_seq_length, config.doc_stride, config.max_query_length)
        original = config.answer_positions == "original"
        return squad.make_windows(examples, self.tokenizer, *lengths, training, original)

    def write_training_records(self, path):
        return squad.write_records(path, self._windows(self._examples("train", True), True))

    def evaluation(self, split, work_dir):
        examples = self._examples(split, training=False)
        windows = self._windows(examples, training=False)
        path = os.path.join(work_dir, f"{split}.tfrecord")
        squad.write_records(path, windows)
        serialized = records.read(path)
        return QuestionsEvaluation(self.config, self.version2, examples, windows, serialized)

    def baseline(self, split):
        """Official metrics of random spans of the usual length, or, if better, of no answers."""
        examples = self._examples(split, training=False)
        spans = squad_decoding.span_baseline(examples, seed=0)
        found = [squad_decoding.evaluate(examples, spans)]
        if self.version2:
            found.append(squad_decoding.evaluate(examples, dict.fromkeys(spans, "")))
        return max(found, key=lambda scores: scores["f1"])


class QuestionsEvaluation:
    """Questions to predict.

    It has no `ensemble`: each model gives ends for the starts of its own beam, so that theirs are
    not of the same spans.

    Attributes:
        serialized: the records of its windows.
        labelled: whether its questions have answers to score against.
    """

    def __init__(self, config, version2, examples, windows, serialized):
        self.config, self.version2, self.examples = config, version2, examples
        self.windows, self.serialized = windows, serialized
        self._decoded = None, None  # the last outputs, and what they were decoded to
        self.labelled = any(each.answers or each.is_impossible for each in examples)

    @property
    def num_examples(self):
        return len(self.examples)

    def predictions(self, outputs):
        """`squad_decoding.decode` of the model's `outputs`: an answer to every question."""
        if self._decoded[0] is not outputs:
            sizes = (self.config.max_answer_length, self.config.n_best_size)
            decoded = squad_decoding.decode(self.windows, outputs, *sizes, self.version2)
            self._decoded = outputs, decoded
        return self._decoded[1]

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
