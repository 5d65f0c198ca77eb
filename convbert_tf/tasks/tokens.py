"""Labels of words as a family of tasks: parts of speech, named entities, chunks.

A model is trained on the first piece of each word, and says there which tag the word has. A
sentence that is longer than the model is read in overlapping windows; each word belongs to the one
that shows most around it.
"""

import collections
import dataclasses
import functools
import os
import re

import numpy as np

from convbert_tf.console import Progress, UserError, counted, say
from convbert_tf.data import input_pipeline, records, word_files
from convbert_tf.modeling import presets
from convbert_tf.modeling.heads import TokenClassifier
from convbert_tf.tasks import reports
from convbert_tf.tasks.measures import mean_of_classifiers, softmax
from convbert_tf.tasks.squad import window_spans

TASKS = ("tokens",)

# Beside O, what a tag of an entity begins with, and what that is in BIOES: BILOU says L and U for
# the last and the only word, BMES says M inside.
_ROLES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I"}
_ENTITY_TAG = re.compile(rf"([{''.join(_ROLES)}])(?:-(.+))?")
_SCHEMES = {"BILOU": "LU", "BMES": "M", "BIOES": "ES"}  # by the letters that others have not
# Words tokenised at once.
_BATCH = 16_384


# --- tags ---


def entity_part(tag):
    """What `tag` says of an entity: its role out of B, I, E and S, and the entity's type ("" if it
    has none); None for O, and for tags that are not of entities."""
    found = _ENTITY_TAG.fullmatch(tag)
    return found and (_ROLES[found[1]], found[2] or "")


def scheme(tags):
    """How a set of tags marks entities: BIO, BIOES, BILOU or BMES; "" if it does not."""
    entities = [tag for tag in tags if tag != "O"]
    if not entities or not all(map(entity_part, entities)):
        return ""
    letters = {tag[0] for tag in entities}
    return next((name for name, own in _SCHEMES.items() if letters & set(own)), "BIO")


def metrics(gold, predicted, of_entities):
    """Scores of tags, both a list for each sentence, from 0 to 1.

    Returns:
        `accuracy` of all words; `of_entities` first `f1`, `precision` and `recall` of entities,
        which are right if their words and their type are. As in CoNLL's conlleval, an entity also
        begins where a tag goes on with another type, or with none before it.
    """
    pairs = [pair for both in zip(gold, predicted, strict=True) for pair in zip(*both, strict=True)]
    scores = {"accuracy": sum(a == b for a, b in pairs) / len(pairs)}
    if not of_entities:
        return scores
    # Here, since importing it takes a second that only scoring need wait.
    from seqeval.metrics import f1_score, precision_score, recall_score

    both = [[[_bioes(tag) for tag in tags] for tags in part] for part in (gold, predicted)]
    measures = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    found = {name: float(f(*both, zero_division=0)) for name, f in measures.items()}
    return found | scores


def _bioes(tag):
    role, kind = entity_part(tag) or ("O", "")
    return f"{role}-{kind}" if kind else role


# --- windows ---


@dataclasses.dataclass(eq=False, slots=True)
class Window:
    """One model input.

    Attributes:
        sentence: the number of its sentence.
        input_ids: [CLS] pieces [SEP], without padding.
        words: int [n], numbers in the sentence of the words that belong to the window.
        positions: int [n], where their first pieces stand in `input_ids`.
    """

    sentence: int
    input_ids: list[int]
    words: np.ndarray
    positions: np.ndarray


def make_windows(sentences, tokenizer, max_seq_length, doc_stride):
    """The Windows of `sentences`, lists of words, in order.

    Each word belongs to one window: where two overlap, the earlier one has the first half. Words
    that have no piece, such as a control character alone, belong to none.

    Args:
        sentences: lists of str.
        tokenizer: WordPieceTokenizer.
        max_seq_length: most tokens of an input.
        doc_stride: pieces from the start of one window to that of the next.
    """
    pieces = _pieces(sentences, tokenizer)
    room, windows = max_seq_length - 2, []
    for number, sentence in enumerate(sentences):
        of_words = [pieces[word] for word in sentence]
        lengths = np.array([len(ids) for ids in of_words])
        words = np.flatnonzero(lengths)
        firsts = (np.cumsum(lengths) - lengths)[words]  # where each word begins
        ids = [i for ids in of_words for i in ids]
        spans = window_spans(len(ids), room, doc_stride)
        for (start, end), own in zip(spans, _owned(spans), strict=True):
            first, last = np.searchsorted(firsts, own)
            if first < last:
                inputs = [tokenizer.cls_id, *ids[start:end], tokenizer.sep_id]
                places = firsts[first:last] - start + 1
                windows.append(Window(number, inputs, words[first:last], places))
    return windows


def _owned(spans):
    """For each of the windows (start, end): from where to where pieces belong to it."""
    between = [(end + start + 1) // 2 for (_, end), (start, _) in zip(spans, spans[1:])]  # noqa: B905
    return list(zip([0, *between], [*between, spans[-1][1]], strict=True))


def _pieces(sentences, tokenizer):
    """Word -> ids of its pieces, of all words."""
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence))
    pieces, progress = {}, Progress("tokenizing", len(words), "different words")
    for start in range(0, len(words), _BATCH):
        batch = words[start : start + _BATCH]
        pieces |= zip(batch, tokenizer.tokenize(batch).to_list(), strict=True)
        progress.update(len(pieces))
    return pieces


def write_records(path, windows, labels=None):
    """Writes records of `windows`, numbered in order by their `example_id`; returns their number.

    Args:
        path: the TFRecord file to write.
        windows: Windows.
        labels: for each sentence the class ids of its words, int [n]; None if there are none.
    """
    return records.write(path, (_encode(i, w, labels) for i, w in enumerate(windows)))


def _encode(number, window, labels):
    label_ids = np.full(len(window.input_ids), -1)
    if labels is not None:
        label_ids[window.positions] = labels[window.sentence][window.words]
    return records.encode(
        {
            "example_id": number,
            "input_ids": window.input_ids,
            "segment_ids": [0] * len(window.input_ids),
            "label_ids": label_ids.tolist(),
        }
    )


# --- the family ---


@dataclasses.dataclass(frozen=True)
class Split:
    """The words and tags of a file, lists for each sentence; `tags` is None if it has none.

    `tag_column` is the index of the column that predicted tags are written to.
    """

    file: word_files.WordFile
    words: list[list[str]]
    tags: list[list[str]] | None
    tag_column: int

    @property
    def counts(self):
        """How often there is each tag."""
        return collections.Counter(tag for tags in self.tags for tag in tags)


class Tokens:
    """A family of tasks for `finetuning.run` (see families.py): files of a word a line.

    Args:
        config: TaskConfig; `data_dir` holds the files, of which word_files.py says the form.
        tokenizer: WordPieceTokenizer.
    """

    schema = records.TOKENS
    loss_options = {}

    def __init__(self, config, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self._splits = {}

    def files(self, split):
        given = getattr(self.config, f"{split}_file")
        if given and not os.path.isfile(given):
            raise UserError(f"config.task.{split}_file: there is no file {given}.")
        return [given or word_files.find(self.config.data_dir, split)]

    def evaluation_splits(self):
        return ["dev"]

    def split(self, split):
        """The Split of this name, which is read once."""
        if split not in self._splits:
            read = self._read_training if split == "train" else self._read
            self._splits[split] = read(split)
        return self._splits[split]

    @functools.cached_property
    def labels(self):
        """The tags of the training data, in alphabetical order."""
        return sorted(self.split("train").counts)

    @property
    def metric_names(self):
        entities = ("f1", "precision", "recall") if scheme(self.labels) else ()
        return (*entities, "accuracy")

    @property
    def main_metric(self):
        return self.metric_names[0]

    @functools.cached_property
    def usual_tag(self):
        """What words are tagged with that have no piece: O, or the most frequent tag."""
        return "O" if scheme(self.labels) else self.split("train").counts.most_common(1)[0][0]

    def check(self, batch_size):
        path = self.files("train")[0]
        if len(self.labels) < 2:
            raise UserError(f"{path}: all words have the tag {self.labels[0]!r}.")
        for split in self.evaluation_splits():
            self.split(split)
        input_pipeline.full_batches(len(self._training_windows), batch_size, path)

    def make_model(self, model):
        """A tagger on the encoder of `model`; with its head if that has these tags."""
        options = self._classes() | {"dropout": self.config.classifier_dropout}
        return TokenClassifier.start_from(model, self.config.init_from, **options)

    def misfit(self, model):
        return presets.misfit(model, TokenClassifier, **self._classes())

    def _classes(self):
        return {"num_classes": len(self.labels), "labels": self.labels}

    def serving(self, metrics):
        return {name: getattr(self.config, name) for name in ("max_seq_length", "doc_stride")}

    def write_training_records(self, path):
        numbers = {label: i for i, label in enumerate(self.labels)}
        labels = [np.array([numbers[tag] for tag in tags]) for tags in self.split("train").tags]
        return write_records(path, self._training_windows, labels)

    def evaluation(self, split, work_dir):
        path = os.path.join(work_dir, f"{split}.tfrecord")
        windows = self._windows(split, f"are tagged {self.usual_tag}")
        write_records(path, windows)
        return TokensEvaluation(
            self.split(split), windows, records.read(path), self.labels, self.usual_tag
        )

    def baseline(self, split):
        """Metrics of the tag that each word has most often in the training data."""
        train, counts = self.split("train"), collections.defaultdict(collections.Counter)
        for words, tags in zip(train.words, train.tags, strict=True):
            for word, tag in zip(words, tags, strict=True):
                counts[word][tag] += 1
        usual = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
        held_out = self.split(split)
        guesses = [[usual.get(word, self.usual_tag) for word in words] for words in held_out.words]
        return metrics(held_out.tags, guesses, bool(scheme(self.labels)))

    @functools.cached_property
    def _training_windows(self):
        return self._windows("train", "are not trained on")

    def _windows(self, split, fate):
        """Windows of a split; `fate`: what becomes of words without pieces."""
        words = self.split(split).words
        lengths = (self.config.max_seq_length, self.config.doc_stride)
        windows = make_windows(words, self.tokenizer, *lengths)
        per_sentence = collections.Counter(window.sentence for window in windows)
        path, several = self.files(split)[0], sum(n > 1 for n in per_sentence.values())
        if several:
            say(f"{path}: {several:,} of {len(words):,} sentences are read in windows")
        missing = sum(map(len, words)) - sum(len(window.words) for window in windows)
        if missing:
            say(f"{path}: {missing:,} words without a piece of the vocabulary {fate}")
        return windows

    def _read_file(self, split):
        chosen = (self.config.word_column, self.config.tag_column)
        header = any(column and not word_files.is_number(column) for column in chosen)
        return word_files.read(self.files(split)[0], header)

    def _find_columns(self, file, names):
        """Indices in `file` of words and tags, by the config or by `names` of the training file."""
        word = self.config.word_column or ("FORM" if "FORM" in names else "1")
        tag = self.config.tag_column or ("UPOS" if "UPOS" in names else "-1")
        return file.find(word), file.find(tag)

    def _read_training(self, split):
        file = self._read_file(split)
        word, tag = self._find_columns(file, file.names)
        if word == tag:
            raise UserError(
                f"{file.path} has words and tags in the same column {word + 1}, of "
                f"{file.num_columns}; set config.task.word_column and config.task.tag_column."
            )
        split = Split(file, file.column(word), file.column(tag), tag)
        tags = sorted(split.counts)
        entities = sorted({part[1] for part in map(entity_part, tags) if part})
        kind = f"entities in {scheme(tags)}: {' '.join(filter(None, entities))}"
        kind = kind if scheme(tags) else f"{len(tags)} tags: {' '.join(tags)}"
        say(f"{_counts(split)}, words in column {word + 1}, tags in column {tag + 1}")
        say(_shortened(kind))
        return split

    def _read(self, split):
        """A split that is not trained on; a test split may lack the tags, if they stand last."""
        train, file = self.split("train"), self._read_file(split)
        if file.num_columns == train.file.num_columns:
            word, tag = self._find_columns(file, train.file.names)
            found = Split(file, file.column(word), file.column(tag), tag)
            self._check_tags(found)
            return found
        is_last = train.tag_column == file.num_columns == train.file.num_columns - 1
        if split == "test" and is_last:
            word = self._find_columns(train.file, train.file.names)[0]
            return Split(file, file.column(word), None, train.tag_column)
        raise UserError(
            f"{file.path} has {counted(file.num_columns, 'column')}, and {train.file.path} "
            f"{train.file.num_columns}."
        )

    def _check_tags(self, split):
        """Counts the tags that are not in the training data; refuses a file that has no others."""
        unknown = {tag: n for tag, n in split.counts.items() if tag not in self.labels}
        shown = _shortened(", ".join(f"{tag} ({n:,})" for tag, n in sorted(unknown.items())))
        if len(unknown) == len(split.counts):
            raise UserError(
                f"{split.file.path} has no tag that {self.files('train')[0]} has, only {shown}; is "
                f"column {split.tag_column + 1} the right one?"
            )
        remark = f"; not in the training data, so always wrong: {shown}" if unknown else ""
        say(f"{_counts(split)}{remark}")


def _counts(split):
    words = sum(map(len, split.words))
    return f"{split.file.path}: {counted(len(split.words), 'sentence')}, {counted(words, 'word')}"


def _shortened(text):
    return text if len(text) <= 400 else f"{text[:400]}..."


class TokensEvaluation:
    """A file to tag.

    Attributes:
        serialized: the records of its windows.
        num_examples: how many sentences it has.
        labelled: whether its words have tags.
    """

    def __init__(self, split, windows, serialized, labels, usual_tag):
        self.split, self.windows, self.serialized = split, windows, serialized
        self.labels, self.usual_tag = labels, usual_tag
        self.num_examples, self.labelled = len(split.words), split.tags is not None

    def predictions(self, outputs):
        """Tags of all words, a list for each sentence, by the model's `outputs` for the records."""
        tags = [[self.usual_tag] * len(words) for words in self.split.words]
        best = np.argmax(outputs["logits"], axis=-1)
        for window, ids in zip(self.windows, best, strict=True):
            for word, position in zip(window.words, window.positions, strict=True):
                tags[window.sentence][word] = self.labels[ids[position]]
        return tags

    def score(self, outputs):
        if not self.labelled:
            raise UserError(f"{self.split.file.path} has no tags to score against.")
        of_entities = bool(scheme(self.labels))
        return metrics(self.split.tags, self.predictions(outputs), of_entities)

    def report(self, outputs):
        """Classes, confusion and mistakes of words."""
        known = dict.fromkeys([*self.labels, self.usual_tag, *sorted(self.split.counts)])
        numbers = {tag: i for i, tag in enumerate(known)}
        # A word without a piece has the usual tag, of which nothing is sure.
        unsure = np.eye(len(numbers))[numbers[self.usual_tag]] * 1e-9
        rows = [[unsure] * len(words) for words in self.split.words]
        more = ((0, 0), (0, len(numbers) - len(self.labels)))
        for window, logits in zip(self.windows, outputs["logits"], strict=True):
            of_words = np.pad(softmax(logits[window.positions]), more)
            for word, probabilities in zip(window.words, of_words, strict=True):
                rows[window.sentence][word] = probabilities
        texts = [
            {"example": line + 1, "word": word, "sentence": " ".join(words)}
            for words, lines in zip(self.split.words, self.split.file.sentences, strict=True)
            for word, line in zip(words, lines, strict=True)
        ]
        labels = [numbers[tag] for tags in self.split.tags for tag in tags]
        flat = np.array([row for of_sentence in rows for row in of_sentence])
        return reports.of_classes(labels, flat, list(numbers), texts)

    def ensemble(self, outputs):
        """The logarithm of the mean of the models' probabilities."""
        return {"logits": mean_of_classifiers([each["logits"] for each in outputs])}

    def write(self, outputs, directory):
        """The file with the predicted tags in the place of its own, or behind the last column."""
        file = self.split.file
        path = os.path.join(directory, os.path.basename(file.path))
        file.write(path, self.split.tag_column, self.predictions(outputs))
