"""Word-a-line files: what is a word, a comment, a column; written back byte for byte."""

import pytest

from convbert_tf.console import UserError
from convbert_tf.data import word_files

CONLL = "-DOCSTART- -X- O\n\nAda NNP B-PER\nruns VBZ O\n\n\n. . O\n"
CONLLU = (
    "# global.columns = ID FORM UPOS\n# text = Don't go\n"
    "1-2\tDon't\t_\n1\tDo\tAUX\n2\tn't\tPART\n2.1\tplease\tINTJ\n3\tgo\tVERB\n\n"
    "# text = #1\n1\t#1\tNUM\n"
)


def write(tmp_path, content, name="train.txt"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def columns(file, *chosen):
    return [file.column(file.find(column)) for column in chosen]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("last", ["", "\n\n \t\n"])
def test_words_sentences_and_what_is_none(tmp_path, end, bom, last):
    content = bom + CONLL.replace("\n", end) + last
    file = word_files.read(write(tmp_path, content))
    words, tags = columns(file, "1", "-1")
    assert words == [["Ada", "runs"], ["."]] and tags == [["B-PER", "O"], ["O"]]
    assert (file.num_columns, file.by_tabs, file.names) == (3, False, ())
    file.write(str(tmp_path / "same"), 2, tags)
    assert (tmp_path / "same").read_bytes() == content.encode()


def test_a_predicted_column_takes_the_place_of_its_own_or_is_appended(tmp_path):
    file = word_files.read(write(tmp_path, CONLL.replace("\n", "\r\n")))
    tags = [["B-LOC", "O"], ["X"]]
    file.write(str(tmp_path / "in"), 2, tags)
    assert (tmp_path / "in").read_bytes() == (
        b"-DOCSTART- -X- O\r\n\r\nAda NNP B-LOC\r\nruns VBZ O\r\n\r\n\r\n. . X\r\n"
    )
    file.write(str(tmp_path / "behind"), 3, tags)
    assert b"Ada NNP B-PER B-LOC\r\nruns VBZ O O\r\n" in (tmp_path / "behind").read_bytes()


def test_tabs_leave_blanks_in_words(tmp_path):
    file = word_files.read(write(tmp_path, "New York\tB-LOC\n\u00a0\tO\n\u2028\tO\n\t\n#x\tO\n"))
    words, tags = columns(file, "1", "2")
    assert words == [["New York", "\u00a0", "\u2028"], ["#x"]]
    file.write(str(tmp_path / "out"), 1, [["1", "2", "3"], ["4"]])
    expected = "New York\t1\n\u00a0\t2\n\u2028\t3\n\t\n#x\t4\n"
    assert (tmp_path / "out").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("name", ["train.conllup", "train.txt", "train.conllu"])
def test_names_of_columns_and_words_that_are_others(tmp_path, name):
    content = CONLLU
    if name == "train.conllu":  # its ten columns need no names
        rows = [line.split("\t") for line in CONLLU.splitlines()[1:]]
        rows = [r if len(r) < 3 else [*r[:2], "_", r[2], *["_"] * 6] for r in rows]
        content = "".join("\t".join(row) + "\n" for row in rows)
    file = word_files.read(write(tmp_path, content, name))
    words, tags = columns(file, "FORM", "UPOS")
    assert words == [["Do", "n't", "go"], ["#1"]]
    assert tags == [["AUX", "PART", "VERB"], ["NUM"]]
    file.write(str(tmp_path / "out"), file.find("UPOS"), [["AUX", "PART", "NOUN"], ["NUM"]])
    assert (tmp_path / "out").read_text() == content.replace("VERB", "NOUN")


def test_a_header_line_names_columns(tmp_path):
    path = write(tmp_path, "\nid word pos\n1 Ada NNP\n\n1 . .\n")
    file = word_files.read(path, header=True)
    assert columns(file, "word", "pos") == [[["Ada"], ["."]], [["NNP"], ["."]]]
    assert word_files.read(path).column(1) == [["word", "Ada"], ["."]]
    twice = word_files.read(write(tmp_path, "word tag tag\nAda O NNP\n"), header=True)
    with pytest.raises(UserError, match=r"two columns are called 'tag'; choose one by its number"):
        twice.find("tag")
    assert (twice.find("word"), twice.find("3")) == (0, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb\n", r"train\.txt:2 has 1 column, and the first word 2; mend the line"),
        ("a\tO\n# gone\n", r"train\.txt:2 has 1 column,"),
        ("a\tO\nb\tx\tO\n", r"train\.txt:2 has 3 columns"),
        (b"a O\n\xff O\n", r"train\.txt:2: not UTF-8"),
        ("a O\rb O\r", "has carriage returns for line ends, and no line feeds"),
        ("", "holds no words"),
        ("\n-DOCSTART-\n# only\n", "holds no words"),
        ("# global.columns = A B\na\tb\tc\n", "names 2 columns, but its words have 3"),
    ],
)
def test_a_broken_file_is_told_by_its_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        word_files.read(write(tmp_path, content))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("3", "has no column 3: it has 2"),
        ("0", "has no column 0"),
        ("-3", "has no column -3"),
        ("pos", "no column called 'pos'; its columns have none"),
    ],
)
def test_a_column_that_is_not_there(tmp_path, column, message):
    file = word_files.read(write(tmp_path, "a\tO\nb\t\n"))
    with pytest.raises(UserError, match=message):
        file.find(column)
    with pytest.raises(UserError, match=r"train\.txt:2: column 2 is empty"):
        file.column(1)
