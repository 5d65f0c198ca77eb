"""Files of a word a line, as the shared tasks of CoNLL have them; no TensorFlow.

Each line holds a word and what is said of it, in columns separated by tabs, or by blanks where the
first word's line has no tab. A line without text ends a sentence. Kept as they are, and no words:

    comments            begin with #, before a sentence, with fewer or more columns than words
    -DOCSTART- lines    begin a document
    a header line       the first line, where columns are chosen by name
    in CoNLL-U files    words that are made of others (1-2) or left out in the text (1.1)

Columns have names in a header line, in a comment "# global.columns = ..." (CoNLL-U Plus), and in
files called *.conllu.
"""

import dataclasses
import os
import re

from convbert_tf.console import UserError
from convbert_tf.data import unpacking
from convbert_tf.files import write_bytes

_CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_GLOBAL_COLUMNS = re.compile(r"#\s*global\.columns\s*=\s*(.+)")
_DOCUMENT = re.compile(r"-DOCSTART-(?=[ \t\r\n]|$)")
_BLANK = " \t\r\n"
_BOM = "\ufeff"
# A folder's file of a split is called by one of these, alone or behind -, _ or a dot.
_NAMES = {"train": "train", "dev": "dev|devel|valid|validation|testa", "test": "test|testb"}
_SUFFIXES = "txt|conll|conllu|conllup|tsv|iob|iob2|bio|bioes"


@dataclasses.dataclass(frozen=True)
class WordFile:
    """A file that has been read.

    Attributes:
        path: of the file.
        lines: all lines with their ends, without a byte order mark.
        has_bom: whether it begins with one.
        by_tabs: whether tabs separate the columns, or any blanks.
        num_columns: of each word's line.
        names: of the columns; () if they have none.
        sentences: for each sentence, the indices in `lines` of its words.
    """

    path: str
    lines: list[str]
    has_bom: bool
    by_tabs: bool
    num_columns: int
    names: tuple[str, ...]
    sentences: list[list[int]]

    def find(self, column):
        """The index of a column by its name, or by its number from 1 (from the end: -1).

        Raises:
            UserError: there is no such column, or two are called so.
        """
        if column in self.names:
            if self.names.count(column) > 1:
                raise UserError(
                    f"{self.path}: two columns are called {column!r}; choose one by its number, "
                    "from 1."
                )
            return self.names.index(column)
        if not is_number(column):
            names = f"there are {', '.join(self.names)}" if self.names else "its columns have none"
            raise UserError(f"{self.path} has no column called {column!r}; {names}.")
        number = int(column)
        if not 1 <= abs(number) <= self.num_columns:
            raise UserError(
                f"{self.path} has no column {number}: it has {self.num_columns}, the first is 1, "
                "the last -1."
            )
        return number - 1 if number > 0 else self.num_columns + number

    def column(self, index):
        """The values of a column, a list for each sentence.

        Raises:
            UserError: a word has none; names the line.
        """
        values = [
            [_split(self.lines[i], self.by_tabs)[index] for i in sentence]
            for sentence in self.sentences
        ]
        for numbers, of_sentence in zip(self.sentences, values, strict=True):
            if "" in of_sentence:
                line = numbers[of_sentence.index("")] + 1
                raise UserError(f"{self.path}:{line}: column {index + 1} is empty.")
        return values

    def write(self, path, index, values):
        """Writes the file with other values in a column, all else as it is.

        Args:
            path: the file to write.
            index: of the column; that of a column behind the last appends one.
            values: a list of strings for each sentence.
        """
        lines = list(self.lines)
        for numbers, of_sentence in zip(self.sentences, values, strict=True):
            for number, value in zip(numbers, of_sentence, strict=True):
                lines[number] = self._replaced(lines[number], index, value)
        bom = _BOM if self.has_bom else ""
        write_bytes(path, (bom + "".join(lines)).encode("utf-8"))

    def _replaced(self, line, index, value):
        text = line.rstrip("\r\n")
        end = line[len(text) :]
        if index == self.num_columns:
            blank = "\t" if self.by_tabs or "\t" in text else " "
            return f"{text.rstrip(' ')}{blank}{value}{end}"
        pattern = r"(?:^|(?<=\t))[^\t]*" if self.by_tabs else f"[^{_BLANK}]+"
        start, stop = [match.span() for match in re.finditer(pattern, text)][index]
        return f"{text[:start]}{value}{text[stop:]}{end}"


def find(folder, split):
    """Path of the one file in `folder` that is named as those of `split` (train, dev, test) are.

    Raises:
        UserError: there is none, or more than one.
    """
    pattern = re.compile(rf"(.*[-_.])?({_NAMES[split]})\.({_SUFFIXES})", re.IGNORECASE)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = sorted(name for name in names if pattern.fullmatch(name))
    if len(found) != 1:
        several = f": there are {', '.join(found)}" if found else ""
        raise UserError(
            f"{folder or 'data_dir'} must hold one file {split}.txt (or .conll, .tsv, .conllu, "
            f".iob2){several}; or set config.task.{split}_file."
        )
    return os.path.join(folder, found[0])


def is_number(column):
    """Whether a column is chosen by its number, not by its name."""
    return re.fullmatch(r"-?\d{1,9}", column) is not None


def read(path, header=False):
    """The WordFile at `path`: UTF-8, with any of the usual line ends.

    Args:
        path: the file.
        header: whether the first line names the columns, if nothing else does.

    Raises:
        UserError: it is not UTF-8, holds no words, or a line has more or fewer columns than the
            first; names the line.
    """
    lines, has_bom = _lines(path)
    names = _names(path, lines)
    skipped = 0
    if header and not names:
        skipped = 1 + next((i for i, line in enumerate(lines) if line.strip(_BLANK)), -1)
        names = tuple(_split(lines[skipped - 1], "\t" in lines[skipped - 1])) if skipped else ()
    by_tabs, num_columns = _layout(path, lines[skipped:])
    if names and len(names) != num_columns:
        raise UserError(f"{path} names {len(names)} columns, but its words have {num_columns}.")
    sentences, sentence = [], []
    for number, line in enumerate(lines[skipped:], skipped):
        fields = _split(line, by_tabs)
        if _is_text(line, fields, num_columns, bool(sentence)):
            if len(fields) != num_columns:
                columns = f"{len(fields)} column{'s' * (len(fields) != 1)}"
                raise UserError(
                    f"{path}:{number + 1} has {columns}, and the first word {num_columns}; mend "
                    "the line."
                )
            if not (names[:1] == ("ID",) and re.fullmatch(r"\d+[-.]\d+", fields[0])):
                sentence.append(number)
        elif sentence:
            sentences.append(sentence)
            sentence = []
    sentences += [sentence] if sentence else []
    return WordFile(path, lines, has_bom, by_tabs, num_columns, names, sentences)


def _lines(path):
    with open(path, "rb") as file:
        # Only \n ends a line: words may be other characters that Python splits lines at.
        raw = list(file)
    unpacking.check_line_end(path, raw[0] if raw else b"")
    lines = []
    for number, line in enumerate(raw, 1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}).") from error
    has_bom = bool(lines) and lines[0].startswith(_BOM)
    if has_bom:
        lines[0] = lines[0].removeprefix(_BOM)
    return lines, has_bom


def _names(path, lines):
    """Names of the columns by a comment at the beginning or by the kind of the file, or ()."""
    for line in lines:
        if line.strip(_BLANK) and not line.startswith("#"):
            break
        if found := _GLOBAL_COLUMNS.match(line):
            return tuple(found[1].split())
    return _CONLLU if path.lower().endswith(".conllu") else ()


def _layout(path, lines):
    """Whether tabs separate columns, and how many there are, by the first word's line."""
    for line in lines:
        if line.strip(_BLANK) and not line.startswith("#") and not _DOCUMENT.match(line):
            return "\t" in line, len(_split(line, "\t" in line))
    raise UserError(f"{path} holds no words.")


def _split(line, by_tabs):
    """The columns of a line."""
    if by_tabs:
        return [field.strip(" ") for field in line.rstrip("\r\n").split("\t")]
    return [field for field in re.split(f"[{_BLANK}]+", line) if field]


def _is_text(line, fields, num_columns, inside):
    """Whether a line, with its columns `fields`, holds a word; `inside` a sentence or not."""
    if not line.strip(_BLANK) or _DOCUMENT.match(line):
        return False
    return inside or not line.startswith("#") or len(fields) == num_columns
