"""Questions from files and from TensorFlow Datasets; what of them is dropped, and why."""

import gzip
import json

import pytest

from convbert_tf.console import UserError
from convbert_tf.tasks import squad_data
from convbert_tf.tasks.squad_data import SquadExample
from tests import goldens

CONTEXT = "He was born in Krak\u00f3w (1895-1943).\u202fThe  painter"
BORN = ("Krak\u00f3w", 15)


def question(question_id, answers=(), is_impossible=None, question="Where was he born?"):
    """A question as it stands in SQuAD's JSON."""
    qa = {"id": question_id, "question": question}
    qa["answers"] = [{"text": text, "answer_start": start} for text, start in answers]
    return qa if is_impossible is None else qa | {"is_impossible": is_impossible}


def write(path, context, *questions):
    """Writes a file in SQuAD's form; returns its path."""
    data = [{"title": "x", "paragraphs": [{"context": context, "qas": list(questions)}]}]
    path.write_text(json.dumps({"version": "x", "data": data}), encoding="utf-8")
    return path


def json_lines(path, *rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def test_read_examples(tmp_path):
    path = write(
        tmp_path / "a.json",
        CONTEXT,
        question("1", [("Krak\u00f3w", 15)]),
        question("2", [], True),
    )
    examples = squad_data.read_examples(path, training=True)
    assert examples[0] == SquadExample(
        "1", "Where was he born?", CONTEXT, (("Krak\u00f3w", 15),), False
    )
    assert examples[1].is_impossible and not examples[1].answers
    with pytest.raises(UserError, match="question 2 has no answer: SQuAD 2.0 wants"):
        squad_data.read_examples(path, training=True, version2=False)
    assert not squad_data.read_examples(path, training=False, version2=False)[1].is_impossible


def test_answers_that_are_not_in_the_text_are_dropped_and_counted(tmp_path, capsys):
    path = write(
        tmp_path / "a.json",
        CONTEXT,
        question("found but for case and spacing", [("THE painter", 35)]),
        question("part of a word", [("1895", 23)]),
        question("where it starts is a little off", [("Krak\u00f3w", 13)]),
        question("elsewhere", [("Krak\u00f3w", 3)]),
        question("beyond the end", [("painter in Krak\u00f3w", 40)]),
        question("empty", [(" ", 2)]),
    )
    kept = squad_data.read_examples(path, training=True)
    assert [e.question_id[:5] for e in kept] == ["found", "part ", "where"]
    assert [CONTEXT[slice(*squad_data.answer_place(e))] for e in kept] == [
        "The  painter",
        "1895",
        "Krak\u00f3w",
    ]
    assert capsys.readouterr().out == (
        f"{path}: 3 of 6 questions dropped: the answer is not in the context at its answer_start "
        "(2); the answer is empty (1)\n"
    )
    assert len(squad_data.read_examples(path, training=False)) == 6
    assert not capsys.readouterr().out


@goldens.needs_shared
def test_answers_with_any_white_space_are_kept(capsys):
    path = goldens.SHARED / "faults" / "squad_nbsp_train.json"
    assert len(squad_data.read_examples(path, training=True)) == 5
    assert not capsys.readouterr().out
    # The original takes other white space than ASCII's for letters.
    assert len(squad_data.read_examples(path, True, original_positions=True)) == 1
    assert "4 of 5 questions dropped" in capsys.readouterr().out


def test_the_nearest_place_is_taken():
    def place(text, start, context="a cat, a cat, a cat"):
        example = SquadExample("1", "?", context, ((text, start),), False)
        return squad_data.answer_place(example)

    assert place("cat", 9) == (9, 12)  # not the first
    assert place("CAT", 10) == place("cat", 8) == (9, 12)
    assert place("a\u00a0 cat", 7) == (7, 12)
    with pytest.raises(LookupError, match="not in the context at its answer_start"):
        place("cat", 5)


@pytest.mark.parametrize(
    "context, place, expected",
    [
        ("in (1895-1943), he", (4, 8), "(1895-1943),"),
        ("\u6771\u4eac1895\u5e74he", (3, 5), "1895"),
        ("\u30c8\u30e8\u30bf\u306f", (1, 3), "\u30e8\u30bf"),
        ("x" * 16 + "ab", (16, 17), "x" * 16 + "ab"),
        ("x" * 17 + "ab", (17, 18), "ab"),  # so long a part is none of a word
        ("a\nb", (2, 3), "b"),
    ],
)
def test_whole_words(context, place, expected):
    start, end = squad_data.whole_words(context, place)
    assert context[start:end] == expected


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "a.json is not JSON"),
        ("[]", "a.json: 'data' is missing"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "'context' is missing, or not a JSON string"),
        ('{"data": []}', "holds no questions"),
        (question("7", [("He", 99)]), "a.json, question 7: answer_start 99 is outside"),
        (question("7", [("He", -1)]), "question 7: answer_start -1 is outside"),
        (
            question("7", [("He", True)]),
            "question 7: 'answer_start' is missing, or not a JSON int",
        ),
        (question("7", [("He", 0)], "false"), "question 7: 'is_impossible' is missing, or not a "),
        (question("7", [("He", 0)], 0), "'is_impossible' is missing, or not a JSON boolean"),
        (question("7", [("He", "0")]), "question 7: 'answer_start' is missing, or not a JSON int"),
        (question("7", [(None, 0)]), "question 7: 'text' is missing"),
        (question(7, [("He", 0)]), "a.json: 'id' is missing"),
        ({"id": "7", "question": "Who?"}, "question 7: 'answers' is missing"),
        ({"id": "7", "answers": [{"text": "He", "answer_start": 0}]}, "question 7: 'question' is"),
        (question("7", [("He", 0)], question="\ud800"), "half a surrogate pair"),
    ],
)
def test_broken_json_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "a.json"
    if isinstance(content, str):
        path.write_text(content)
    else:
        write(path, CONTEXT, content)
    with pytest.raises(UserError, match=message):
        squad_data.read_examples(path, training=True)


def test_missing_file_and_questions_twice(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        squad_data.read_examples(tmp_path / "no.json", training=False)
    path = write(tmp_path / "a.json", CONTEXT, question("1"), question("1"))
    with pytest.raises(UserError, match="question id 1 is used twice"):
        squad_data.read_examples(path, training=False)


MRQA = {"header": {"dataset": "x", "split": "train"}}
DETECTED = {"text": "Krak\u00f3w", "char_spans": [[15, 20], [0, 5]], "token_spans": [[4, 4]]}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_mrqa(tmp_path, name, capsys):
    qas = [
        {"qid": "1", "question": "Where?", "answers": ["Cracow", "Krak\u00f3w"]},
        {"qid": "2", "question": "When?", "answers": ["1895"]},
        {"qid": "3", "question": "Why?", "answers": ["no idea"]},
    ]
    qas[0]["detected_answers"] = [DETECTED]
    qas[1]["detected_answers"] = [{"text": "1895", "char_spans": [[23, 26]]}]
    path = json_lines(tmp_path / name, MRQA, {"id": "", "context": CONTEXT, "qas": qas})
    trained = squad_data.read_examples(path, training=True)
    assert trained == [
        SquadExample("1", "Where?", CONTEXT, (BORN,), False),
        SquadExample("2", "When?", CONTEXT, (("1895", 23),), False),
    ]
    out = capsys.readouterr().out
    assert "1 of 3 questions dropped: the answer has no answer_start" in out
    scored = squad_data.read_examples(path, training=False)
    assert scored[0].answers == (("Cracow", -1), BORN)
    assert [example.question_id for example in scored] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"detected_answers": [{"text": "He", "char_spans": [3]}]}, ":2: 'char_spans' must be"),
        ({"detected_answers": [{"text": "He"}]}, "'char_spans' is missing"),
        ({"detected_answers": [DETECTED | {"char_spans": [[99, 100]]}]}, "99 is outside"),
        ({"answers": [3]}, "'text' is missing, or not a JSON string"),
        ({"qid": 3}, "'qid' is missing, or not a JSON string"),
        ({"question": None}, "question 1: 'question' is missing"),
    ],
)
def test_broken_mrqa_is_refused_by_its_line(tmp_path, changes, message):
    qa = {"qid": "1", "question": "Where?", "answers": ["He"]} | changes
    path = json_lines(tmp_path / "a.jsonl", MRQA, {"context": CONTEXT, "qas": [qa]})
    with pytest.raises(UserError, match=message):
        squad_data.read_examples(path, training=True)


def test_a_table_of_questions(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text(
        "question,context,answer,answer_start\n"
        f"Where?,{CONTEXT},Krak\u00f3w,15\nWhen?,{CONTEXT},1895,\nOnce?,to be or to be,be,\n"
        f"Why?,{CONTEXT},,\n"
    )
    examples = squad_data.read_examples(path, training=True)
    assert examples == [
        SquadExample("2", "Where?", CONTEXT, (BORN,), False),
        SquadExample("3", "When?", CONTEXT, (("1895", 23),), False),
        SquadExample("5", "Why?", CONTEXT, (), True),
    ]
    out = capsys.readouterr().out
    assert "1 of 4 questions dropped: the answer has no answer_start, and is not in the" in out
    with pytest.raises(UserError, match=r"a\.csv:5, question 5 has no answer: SQuAD 2.0 wants"):
        squad_data.read_examples(path, training=True, version2=False)


ROW = {"question": "Where?", "context": CONTEXT}
SQUAD_ANSWERS = [{"text": "Krak\u00f3w", "answer_start": 15}]
ANSWERS_OF_DATASETS = {"text": ["Krak\u00f3w"], "answer_start": [15]}


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"answer": "Krak\u00f3w", "answer_start": 15}, (BORN,)),
        ({"answer": "Krak\u00f3w"}, (BORN,)),
        ({"answer": 1895, "answer_start": 23.0}, (("1895", 23),)),
        ({"answers": SQUAD_ANSWERS, "id": "x7"}, (BORN,)),
        ({"answers": ANSWERS_OF_DATASETS, "id": 7}, (BORN,)),
        ({"answers": ANSWERS_OF_DATASETS, "is_impossible": False}, (BORN,)),
        ({"answers": {"text": [], "answer_start": []}}, ()),
        ({"answer": ""}, ()),
        ({"answer": None, "is_impossible": True}, ()),
    ],
)
def test_rows_of_json(tmp_path, row, expected):
    paths = [json_lines(tmp_path / "a.jsonl", ROW | row), tmp_path / "a.json"]
    paths[1].write_text(json.dumps([ROW | row]))
    lines = [ROW | row, ROW | {"id": "another", "answer": "He", "answer_start": 0}]
    json_lines(tmp_path / "lines.json", *lines)
    assert len(squad_data.read_examples(tmp_path / "lines.json", training=True)) == 2
    for path in paths:
        (example,) = squad_data.read_examples(path, training=True)
        assert example.answers == expected and example.is_impossible == (not expected)
        assert example.question_id == str(row.get("id", 1))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"answer": "He", "answer_start": -1}, ":1, question 1: answer_start -1 is outside"),
        ({"answer": "He", "answer_start": "two"}, ":1: answer_start 'two' is not a whole number"),
        ({"answer": "He", "answer_start": 99}, "answer_start 99 is outside"),
        ({"answer": "He", "answer_start": 0, "is_impossible": "false"}, "'is_impossible' is miss"),
        ({"answer": "", "is_impossible": False}, "no answer, but training needs one"),
        ({"answers": {"text": ["He"]}}, ":1: 'answer_start' is missing"),
        ({"answer": ["He"], "answer_start": [0]}, ":1: 'answer' is one text; several stand in"),
        ({"answer": "She"}, r"usable answer: the answer has no answer_start.*once \(1\)\.$"),
        ({"answers": {"text": ["He"], "answer_start": []}}, "has 1 texts, 0 starts"),
        ({"answer": "He", "question": 7}, "'question' is missing, or not a JSON string"),
        ({"answer": "He", "context": None}, ":1: 'context' is missing, or not a JSON string"),
        ({}, "has no column 'answer'; it has 'question', 'context'"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused_by_its_line(tmp_path, row, message):
    path = json_lines(tmp_path / "a.jsonl", ROW | row)
    with pytest.raises(UserError, match=message):
        squad_data.read_examples(path, training=True)


def test_only_a_table_of_texts_writes_booleans_as_texts(tmp_path):
    path = tmp_path / "a.csv"
    for value, expected in ("False", False), ("true", True), ("", True), ("no", None):
        path.write_text(f"question,context,answer,is_impossible\nWho?,I,,{value}\n")
        if expected is None:
            with pytest.raises(UserError, match="'is_impossible' is missing, or not a JSON bool"):
                squad_data.read_examples(path, training=False)
        else:
            (example,) = squad_data.read_examples(path, training=False)
            assert example.is_impossible is expected
    path.write_text("question;context\nWho?;I\n")
    assert squad_data.read_examples(path, training=False, delimiter=";")[0].question == "Who?"
    with pytest.raises(UserError, match="Is ';' its delimiter"):
        squad_data.read_examples(path, training=False)
    path.write_text("query,context\nWho?,I\n")
    with pytest.raises(UserError, match=r"has no column 'question'; it has 'query', 'context'"):
        squad_data.read_examples(path, training=False)


def test_answers_of_impossible_questions_are_not_used_and_that_is_said(tmp_path, capsys):
    path = write(tmp_path / "a.json", CONTEXT, question("1", [BORN], True), question("2", [BORN]))
    assert len(squad_data.read_examples(path, training=True)) == 2
    assert "marked is_impossible, whose answers do not count: 1" in capsys.readouterr().out


def store_tfds(folder, name, rows, split="validation"):
    """Writes `rows` to `folder` as the split of a prepared data set, as TFDS does."""
    pytest.importorskip("importlib_resources")  # TFDS needs it without saying so
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder)
    tfds.dataset_builders.store_as_tfds_dataset(
        "squad",
        builder.version,
        builder.info.features,
        {split: [(row["id"], row) for row in rows]},
        config=tfds.core.BuilderConfig(name=name.partition("/")[2], version=builder.version),
        data_dir=folder,
    )


def tfds_row(name, question_id, answers):
    texts, starts = ([answer[i] for answer in answers] for i in (0, 1))
    row = {"id": question_id, "title": "x", "context": CONTEXT, "question": "Where?"}
    row["answers"] = {"text": texts, "answer_start": starts}
    if name.endswith("v2.0"):
        row |= {"is_impossible": not answers}
        row |= {"plausible_answers": {"text": [], "answer_start": []}}
    return row


@pytest.mark.parametrize("name", ["squad/v1.1", "squad/v2.0"])
def test_read_tfds(tmp_path, name):
    rows = [tfds_row(name, "1", [BORN])]
    expected = [SquadExample("1", "Where?", CONTEXT, (BORN,), False)]
    if name == "squad/v2.0":
        rows.append(tfds_row(name, "2", []))
        expected.append(SquadExample("2", "Where?", CONTEXT, (), True))
    store_tfds(tmp_path, name, rows)
    assert squad_data.parse_tfds(f"tfds:{name}@{tmp_path}") == (name, str(tmp_path))
    examples = squad_data.read_tfds(name, "dev", training=True, data_dir=tmp_path)
    assert sorted(examples, key=lambda example: example.question_id) == expected
    (path,) = squad_data.tfds_files(name, "dev", str(tmp_path))
    assert path.startswith(f"{tmp_path}/squad/{name[6:]}/") and "validation" in path
    with pytest.raises(UserError, match=f"cannot give {name}, split 'train': there are valid"):
        squad_data.read_tfds(name, "train", training=True, data_dir=tmp_path)
    with pytest.raises(UserError, match=f"no is not there: the folder of a prepared {name}"):
        squad_data.read_tfds(name, "dev", training=True, data_dir=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_other_names_of_tfds_are_refused():
    for name in ("tfds:squad", "tfds:glue", "tfds:squad/v1.1@", "tfds:squad/v3"):
        with pytest.raises(UserError, match=r"write tfds:squad/v1\.1 or tfds:squad/v2\.0, with @"):
            squad_data.parse_tfds(name)
