"""Questions as a family of tasks: which files are read, what is held out, which head is made."""

import pytest

from convbert_tf import ConvBertEncoder, QuestionAnswerer
from convbert_tf.config import TaskConfig
from convbert_tf.console import UserError
from convbert_tf.tasks import questions
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
