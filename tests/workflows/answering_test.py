"""Questions answered in bulk: as served, each context tokenised once, from files of any form."""

import gzip
import json

import keras
import numpy as np
import pytest

from convbert_tf import serving
from convbert_tf.console import UserError
from convbert_tf.modeling import presets
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer
from convbert_tf.tasks.squad import SquadExample
from convbert_tf.text.tokenization import WordPieceTokenizer
from convbert_tf.workflows import answering, prediction
from tests.tasks.squad_data_test import question, write
from tests.workflows.evaluation_test import LETTERS, MODEL, VOCAB

SERVING = {
    "max_seq_length": 24,
    "doc_stride": 6,
    "max_query_length": 6,
    "max_answer_length": 5,
    "null_threshold": 99.0,
}
CONTEXTS = ["a b \u00fc c", "", *(" ".join(LETTERS[i:] * 3) for i in (0, 9, 17))]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    (folder / "pieces.txt").write_text("\n".join(VOCAB) + "\n")
    keras.utils.set_random_seed(1)
    config = MODEL.from_dict(MODEL.to_dict() | {"mask_convolution": True})
    model = QuestionAnswerer(ConvBertEncoder(config), answerable=True, beam_size=6)
    model.answerable_logit.kernel.assign(9 * model.answerable_logit.kernel)
    presets.save(model, str(folder / "preset"), str(folder / "pieces.txt"), serving=SERVING)
    return str(folder / "preset")


@pytest.fixture(scope="module")
def answerer(preset):
    return answering.Answerer(preset, batch_size=4)


@pytest.fixture(scope="module")
def asked():
    """Questions whose contexts come again, and are short, empty and of several windows."""
    rng = np.random.default_rng(0)
    texts = [("x y z a b c d", CONTEXTS[0]), ("", CONTEXTS[2])]
    texts += [(" ".join(rng.choice(LETTERS, 3)), CONTEXTS[i % 5]) for i in range(20)]
    return [SquadExample("same id", *text, (), False) for text in texts]


def test_answers_are_those_of_the_served_model(preset, answerer, asked, monkeypatch):
    odds = sorted({view.null_odds for view in answerer.answer_all(asked)})
    middle = sum(odds[len(odds) // 2 - 1 :][:2]) / 2
    monkeypatch.setattr(answerer, "null_threshold", middle)
    served = serving.load(preset, null_threshold=middle)
    table = (([each.question, each.context], each) for each in asked)
    expected = [answer for _, answer in prediction.label(served, table)]
    found = [answering.as_served(view) for view in answerer.answer_all(asked)]
    assert len({answer["answer"] for answer in found}) > 5
    withheld = [answer for answer in found if answer["null_odds"] > middle]
    assert 0 < len(withheld) < len(found) and {each["answer"] for each in withheld} == {""}
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        numbers = {name: value for name, value in one.items() if isinstance(value, float)}
        assert numbers == pytest.approx({name: other[name] for name in numbers}, abs=2e-5)
        assert one | {name: other[name] for name in numbers} == other


def test_a_context_is_tokenized_once_and_parts_give_the_same(answerer, asked, monkeypatch):
    whole = list(answerer.answer_all(asked))
    seen, tokenize = [], WordPieceTokenizer.tokenize_with_offsets

    def noted(self, strings):
        seen.extend(strings)
        return tokenize(self, strings)

    monkeypatch.setattr(WordPieceTokenizer, "tokenize_with_offsets", noted)
    done = []
    monkeypatch.setattr(answering, "_QUESTIONS", 15)
    parts = list(answerer.answer_all(iter(asked), done.append))
    assert [seen.count(context) for context in CONTEXTS[2:]] == [2, 2, 2]  # once a part
    assert sum(done) == len(asked) and len(done) > 2 and min(done) >= 0
    assert [view.answer for view in parts] == [view.answer for view in whole]
    assert [view.example for view in parts] == asked
    monkeypatch.setattr(answering, "_CHARACTERS", 100)
    assert max(map(len, answering._chunks(asked))) < 15


ROWS = [{"id": f"q{i}", "question": f"a {x}", "context": CONTEXTS[2]} for i, x in enumerate("bcd")]


def make_file(folder, name):
    path = folder / name
    if name == "a.json":
        qas = [question(row["id"], [("b", 2)], None, row["question"]) for row in ROWS]
        return write(path, CONTEXTS[2], *qas)
    lines = [json.dumps(row) + "\n" for row in ROWS]
    if name == "a.jsonl.gz":
        path.write_bytes(gzip.compress("".join(lines).encode()))
    elif name == "a.parquet":
        import pandas as pd

        pd.DataFrame(ROWS).to_parquet(path)
    elif name == "mrqa.jsonl":
        qas = [{"qid": row["id"], "question": row["question"], "answers": ["b"]} for row in ROWS]
        context = {"context": CONTEXTS[2], "qas": qas}
        path.write_text('{"header": {}}\n' + json.dumps(context) + "\n")
    else:
        path.write_text("[" + ",".join(lines) + "]" if name == "list.json" else "".join(lines))
    return path


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl.gz", "a.parquet", "mrqa.jsonl", "list.json", "lines.json"]
)
def test_files_of_any_form_give_the_same_answers(answerer, tmp_path, name):
    path, target = make_file(tmp_path, name), tmp_path / "out.jsonl"
    form = {"jsonl": "jsonl", "parquet": "parquet"}.get(name.split(".")[1], "json")
    shown = []
    number = answering.answer_table(
        answerer, (str(path), form), (str(target), "jsonl"), keep=["id"], show=shown.append
    )
    rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert number == 3 and [row["id"] for row in rows] == ["q0", "q1", "q2"]
    examples = [SquadExample("", r["question"], r["context"], (), False) for r in ROWS]
    expected = [answering.as_served(view) for view in answerer.answer_all(examples)]
    assert [{k: row[k] for k in expected[0]} for row in rows] == expected
    scored = name in ("a.json", "mrqa.jsonl")
    assert all((view.f1 is not None) == scored for view in shown)


def test_right_answers_of_a_table_are_read_to_be_shown(answerer, tmp_path):
    (tmp_path / "a.csv").write_text("q,context,answer,answer_start\na b,c d e,d,2\na,b,,\n")
    source, target = (str(tmp_path / "a.csv"), "csv"), (str(tmp_path / "out.csv"), "csv")
    views = []
    answering.answer_table(answerer, source, target, ["q", "context"], show=views.append)
    assert views[0].example.answers == (("d", 2),) and views[1].example.is_impossible
    assert all(view.f1 is not None for view in views)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "question,text\na,b\n", r"a\.csv:2: no text in the column 'context'"),
        ("a.jsonl", '{"question": "a", "context": 3}\n', r"a\.jsonl:1: .*3 is no text"),
        ("a.json", "{", r"a\.json is not JSON"),
        ("a.json", '{"data": 3}', r"'data' is missing, or not a JSON array"),
        ("a.txt", "a\n", "takes question and context: give SQuAD's JSON, or CSV"),
    ],
)
def test_what_cannot_be_read_leaves_nothing(answerer, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    form = {"txt": "text"}.get(name[2:], name[2:])
    with pytest.raises(UserError, match=message):
        answering.answer_table(
            answerer, (str(tmp_path / name), form), (str(tmp_path / "out.csv"), "csv")
        )
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_which_models_answer_questions(preset, answerer, tmp_path):
    assert answering.is_answerer(preset) and not answering.is_answerer(str(tmp_path / "none"))
    model = presets.load(preset)
    model.encoder.save_to_preset(str(tmp_path / "encoder"))
    assert not answering.is_answerer(str(tmp_path / "encoder"))
    with pytest.raises(UserError, match="answers no questions: it is a ConvBertEncoder"):
        answering.Answerer(str(tmp_path / "encoder"))
    with pytest.raises(UserError, match="33 must be between 8 and"):
        answering.Answerer(preset, max_seq_length=33)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert not answering.is_answerer(str(tmp_path))
