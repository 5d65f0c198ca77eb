"""Questions about contexts as a family of tasks: SQuAD 1.1 and 2.0.

Their files are read in squad_data.py, windows made in squad.py, answers and scores in
squad_decoding.py.
"""

import dataclasses
import itertools
import os

from convbert_tf.console import UserError, counted, say
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
            say(
                f"{counted(len(train), 'question')} to train on, {len(dev):,} to score "
                f"(held out: {share})"
            )

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

    def views(self, outputs):
        """A View of each question, with the answers that `score` scores."""
        predictions, nbest, null_odds = self.predictions(outputs)
        threshold = self._null_threshold(predictions, null_odds)
        return views(self.examples, nbest, null_odds, threshold)

    def report(self, outputs):
        """The wrong answers that the model was surest of, and the right ones that it was least.

        To questions that have an answer; in part right ones are neither.
        """
        found = [
            (number, view)
            for number, view in enumerate(self.views(outputs))
            if view.example.answers and view.answer
        ]
        found.sort(key=lambda each: -each[1].best["probability"])
        wrong = [each for each in found if each[1].f1 == 0]
        right = [each for each in reversed(found) if each[1].exact == 1]
        return {
            name: [_shown(*each) for each in chosen[: reports.NUM_MISTAKES]]
            for name, chosen in (("mistakes", wrong), ("right", right))
        }

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


def _shown(number, view):
    best, second = (view.nbest + [{"text": "", "probability": 0.0}])[:2]
    return {
        "example": number,
        "question": view.example.question,
        "answers": " / ".join(view.right_answers),
        "prediction": view.answer,
        "probability": round(best["probability"], 6),
        "second": second["text"],
        "second_probability": round(second["probability"], 6),
        "context": "".join(
            f"**{part}**" if kinds else part or " ... "
            for part, kinds in view.marked(60, ("best",))
        ),
    }


# --- answers to look at ---


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A question with what the model answers.

    Attributes:
        example: SquadExample.
        nbest: its n-best list, the best first; see squad_decoding.decode.
        answer: the best one's text, or "" where it is withheld.
        null_odds: log-odds of "no answer"; None of a model that always answers.
        exact, f1: of `answer`, from 0 to 1; None where there is nothing to score against.
    """

    example: squad.SquadExample
    nbest: list
    answer: str
    null_odds: float | None = None
    exact: float | None = None
    f1: float | None = None

    @property
    def best(self):
        return self.nbest[0]

    @property
    def right_answers(self):
        """The texts to score against, each once; [""] is that there is none."""
        if self.example.is_impossible:
            return [""]
        return list(dict.fromkeys(text for text, _ in self.example.answers))

    def marked(self, around, wanted=("best", "second", "right")):
        """The context in parts: (text, kinds of answer that it belongs to).

        Args:
            around: characters that are shown before and behind an answer; what is further away is
                left out, for which (None, ()) stands.
            wanted: of these kinds.
        """
        spans = [span for span in self._spans() if span[2] in wanted]
        return list(_marked(self.example.context, spans, around))

    def _spans(self):
        """(start, end, kind) of the answers that stand in the context, in characters."""
        names = ("best", "second") if self.answer else ("second",)
        for kind, entry in zip(names, self.nbest, strict=False):
            if entry["text"]:
                yield entry["start_char"], entry["end_char"], kind
        for text, start in () if self.example.is_impossible else self.example.answers:
            if self.example.context.startswith(text, max(start, 0)) and start >= 0:
                yield start, start + len(text), "right"


def _marked(context, spans, around):
    """Yields the parts of `View.marked`, neighbours of the same kinds as one."""
    limits = {0, len(context)}
    for start, end, _ in spans:
        limits |= {start, end, max(0, start - around), min(len(context), end + around)}
    if not spans:
        limits.add(min(len(context), 2 * around))
        spans = [(0, 0, None)]
        around *= 2

    def kinds_of(part):
        start, end = part
        if not any(s - around < end and start < e + around for s, e, _ in spans):
            return None
        return tuple(dict.fromkeys(kind for s, e, kind in spans if s <= start and end <= e))

    parts = itertools.pairwise(sorted(limits))
    for kinds, group in itertools.groupby(parts, kinds_of):
        group = list(group)
        yield (None, ()) if kinds is None else (context[group[0][0] : group[-1][1]], kinds)


def views(examples, nbest, null_odds=None, threshold=None):
    """A View of each of `examples`, whose answers are withheld above the threshold.

    Args:
        nbest, null_odds: by question id, as `squad_decoding.decode` gives them.
        threshold: of the null odds; None is above all.
    """
    null_odds = null_odds or {}
    best = {key: found[0]["text"] for key, found in nbest.items()}
    answers = squad_decoding.withhold(best, null_odds, threshold)
    labelled = [each for each in examples if each.answers or each.is_impossible]
    exact, f1 = squad_decoding.question_scores(labelled, answers) if labelled else ({}, {})
    return [
        View(
            example,
            nbest[key],
            answers[key],
            null_odds.get(key),
            *(scores.get(key) for scores in (exact, f1)),
        )
        for example in examples
        for key in [example.question_id]
    ]
