"""Questions as a family of tasks: which files are read, what is held out, which head is made."""

import numpy as np
import pytest

from convbert_tf import ConvBertEncoder, QuestionAnswerer
from convbert_tf.config import TaskConfig
from convbert_tf.console import UserError
from convbert_tf.tasks import questions, squad
from convbert_tf.text.tokenization import WordPieceTokenizer
from tests.modeling.encoder_test import tiny
from tests.tasks.squad_data_test import BORN, question, store_tfds, tfds_row, write

HEADER = "question,context,answer,answer_start\n"


def family(tmp_path, name="squad_v1", **task):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nwhere\na\nb\nc\n")
    task = {"data_dir": str(tmp_path)} | task
    config = TaskConfig(name=name, max_seq_length=24, max_query_length=8, **task)
    return questions.Questions(config, WordPieceTokenizer(str(tmp_path / "vocab.txt")))


def ids(examples):
    return [example.question_id for example in examples]


def test_a_split_is_the_file_of_its_name_or_the_one_that_is_named(tmp_path):
    made = family(tmp_path)
    with pytest.raises(UserError, match=r"train\.json is not there; SQuAD's JSON is needed"):
        made.files("train")
    path = write(tmp_path / "train.json", "a b", question("1", [("b", 2)]))
    assert made.files("train") == [str(path)]
    (tmp_path / "train.csv").write_text(HEADER + "where,a b,b,2\n")
    with pytest.raises(UserError, match=r"train\.json and .*train\.csv: name one by .*train_file"):
        made.files("train")
    named = family(tmp_path, train_file=str(tmp_path / "train.csv"))
    assert ids(named._examples("train", True)) == ["2"]
    with pytest.raises(UserError, match=r"dev\.json is not there"):
        named.check(1)  # what is in data_dir is not held out
    (tmp_path / "test.jsonl").write_text('{"question": "where", "context": "a"}\n')
    assert ids(named._examples("test", False)) == ["1"]


def test_of_one_file_contexts_are_held_out(tmp_path, capsys):
    rows = [f"where {i},a {i % 20},a,0" for i in range(60)]
    (tmp_path / "mine.csv").write_text(HEADER + "\n".join(rows))
    made = family(tmp_path, data_dir="", train_file=str(tmp_path / "mine.csv"), held_out=0.3)
    made.check(1)
    train, dev = (made._examples(split, split == "train") for split in ("train", "dev"))
    assert len(train) + len(dev) == 60 and 6 <= len(dev) <= 30
    assert not {e.context for e in train} & {e.context for e in dev}
    said = f"{len(train)} questions to train on, {len(dev)} to score (held out: 0.3 of the context"
    assert said in capsys.readouterr().out
    alone = family(tmp_path, data_dir="", train_file=str(tmp_path / "mine.csv"), held_out=1e-6)
    with pytest.raises(UserError, match="leaves no questions to train on or none to score"):
        alone.check(1)


@pytest.mark.parametrize("name", ["squad/v1.1", "squad/v2.0"])
def test_tensorflow_datasets_are_trained_on_and_scored(tmp_path, name):
    rows = [tfds_row(name, str(i), [BORN]) for i in range(3)]
    rows += [tfds_row(name, "none", [])] if name == "squad/v2.0" else []
    store_tfds(tmp_path / "sets", name, rows)
    task = "squad_v2" if name == "squad/v2.0" else "squad_v1"
    made = family(tmp_path, task, data_dir=f"tfds:{name}@{tmp_path / 'sets'}")
    (path,) = made.files("dev")
    assert path.startswith(str(tmp_path / "sets"))
    evaluation = made.evaluation("dev", str(tmp_path))
    assert {w.question_id for w in evaluation.windows} == {row["id"] for row in rows}
    assert made.baseline("dev")["total"] == len(rows)


def test_the_switch_restores_the_originals_positions(tmp_path):
    write(tmp_path / "train.json", "a-b,a-b", question("1", [("b", 6)]))
    places = {}
    for positions in ("answer_start", "original"):
        made = family(tmp_path, answer_positions=positions)
        (window,) = made._windows(made._examples("train", True), True)
        places[positions] = window.start_position - window.context_position
    assert places == {"answer_start": 6, "original": 2}
    with pytest.raises(UserError, match="answer_positions"):
        family(tmp_path, answer_positions="elsewhere")


def test_independent_starts_and_ends_are_masked_as_the_originals(tmp_path, capsys):
    theirs = QuestionAnswerer(ConvBertEncoder(tiny()), joint=False, mask_logits=False)
    made = family(tmp_path, joint_prediction=False).make_model(theirs)
    assert not made.joint and made.mask_logits and "its head is kept" in capsys.readouterr().out
    assert not family(tmp_path).make_model(theirs).mask_logits  # the head that is there
    assert family(tmp_path).make_model(theirs.encoder).joint


# --- answers to look at ---


def entry(context, text, probability=0.5):
    start = context.index(text)
    return {
        "text": text,
        "probability": probability,
        "start_char": start,
        "end_char": start + len(text),
    }


def view_of(context, best, second, answer=None, **example):
    """The View of a question with these answers, and what else an example has."""
    values = {"question_id": "1", "question": "?", "answers": (), "is_impossible": False}
    nbest = [entry(context, best), entry(context, second, 0.25)]
    example = squad.SquadExample(context=context, **values | example)
    return questions.View(example, nbest, best if answer is None else answer)


def test_answers_are_marked_in_their_context():
    context = "the old town of Bonn on the Rhine"
    view = view_of(context, "old town", "town of Bonn", answers=(("Bonn", 16), ("Rhine", -1)))
    assert view.marked(99) == [
        ("the ", ()),
        ("old ", ("best",)),
        ("town", ("best", "second")),
        (" of ", ("second",)),
        ("Bonn", ("second", "right")),
        (" on the Rhine", ()),
    ]
    assert view.marked(2, ("best",)) == [(None, ()), ("e ", ()), ("old town", ("best",))] + [
        (" o", ()),
        (None, ()),
    ]
    # What is withheld is the second best answer, behind "no answer".
    withheld = view_of(context, "old town", "Bonn", "", is_impossible=True)
    assert ("old town", ("second",)) in withheld.marked(9) and withheld.right_answers == [""]


@pytest.mark.parametrize("around", [1, 7, 40])
def test_what_is_shown_of_a_context_is_its_text(around):
    context = "".join(chr(0x100 + i) for i in range(200))
    view = view_of(context, context[90:95], context[93:120], answers=((context[150:151], 150),))
    shown = [text for text, _ in view.marked(around)]
    at = 0
    for text in filter(None, shown):
        at = context.index(text, at) + len(text)
    assert shown[0] is None and context[90 - around] in shown[1]
    empty = questions.View(view.example, [{"text": ""}], "")
    assert empty.marked(around, ("best",)) == [(context[: 2 * around], ()), (None, ())]


def test_views_are_scored_as_the_official_script_does():
    context = "the old town of Bonn"
    asked = [
        squad.SquadExample("1", "?", context, (("old town", 4), ("town", 8)), False),
        squad.SquadExample("2", "?", context, (), True),
        squad.SquadExample("3", "?", context, (), False),
    ]
    nbest = {each.question_id: [entry(context, "the old town of")] for each in asked}
    odds = {"1": -1.0, "2": 2.0, "3": 0.0}
    first, second, third = questions.views(asked, nbest, odds, threshold=1.0)
    assert (first.exact, first.f1) == (0, pytest.approx(0.8)) and first.null_odds == -1
    assert (second.answer, second.exact, second.f1) == ("", 1, 1)
    assert third.answer == "the old town of" and third.f1 is None
    assert questions.views(asked[1:2], nbest)[0].f1 == 0


def test_a_report_has_the_surest_mistakes_and_the_least_sure_right_answers(tmp_path):
    qas = [question(str(i), [("b", 2)]) for i in range(3)]
    write(tmp_path / "dev.json", "a b c", *qas)
    evaluation = family(tmp_path).evaluation("dev", str(tmp_path / "records"))
    position = {"a": 3, "b": 4, "c": 5}
    outputs = {
        "start_top_index": np.array([[position[x]] for x in "abc"]),
        "end_top_index": np.array([[[position[x]]] for x in "abc"]),
        "start_top_log_probs": np.zeros([3, 1], np.float32),
        "end_top_log_probs": np.zeros([3, 1, 1], np.float32),
    }
    first = evaluation.windows[0].context_position
    outputs |= {n: outputs[n] - 3 + first for n in ("start_top_index", "end_top_index")}
    report = evaluation.report(outputs)
    assert [each["prediction"] for each in report["mistakes"]] == ["a", "c"]
    assert report["mistakes"][1]["context"] == "a b **c**"
    assert [each["example"] for each in report["right"]] == [1]
    assert report["right"][0]["answers"] == "b" and report["right"][0]["second"] == ""
