"""Fine-tuning on rows in memory."""

import random

import pytest

from convbert_tf.console import UserError
from convbert_tf.modeling.heads import TextClassifier
from convbert_tf.workflows.rows import finetune
from tests.small_tasks import WORDS


@pytest.mark.slow
def test_several_labels_of_rows_in_memory(preset, tmp_path):
    """From a list to a preset that answers in its labels."""
    rng, rows = random.Random(0), []
    for _ in range(400):
        words, labels = rng.choices(WORDS, k=4), [w for w in ("good", "bad") if rng.random() < 0.5]
        words += labels
        rng.shuffle(words)
        rows.append((" ".join(words), labels))
    settings = {"kind": "labels", "max_seq_length": 32, "num_train_epochs": 30, "batch_size": 16}
    settings |= {"learning_rate": 3e-3, "layerwise_lr_decay": 0.9, "held_out": 0.2}
    results = finetune(rows, preset, str(tmp_path / "run"), **settings)
    assert results["micro_f1"] > 0.9 and results["subset_accuracy"] > 0.8
    model = TextClassifier.from_preset(str(tmp_path / "run" / "preset"))
    assert model.multi_label and model.labels == ["bad", "good"]
    # The same call gives what it gave; with other rows it is another run, of which nothing stays.
    files = sorted((tmp_path / "run").rglob("data/*/*"))
    assert finetune(rows, preset, str(tmp_path / "run"), **settings) == results
    with pytest.raises(UserError, match=r"another config \(task\.train_file"):
        finetune(rows[1:], preset, str(tmp_path / "run"), **settings)
    assert sorted((tmp_path / "run").rglob("data/*/*")) == files and len(files) == 1


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("x", "a"), ("", "b")], {}, r"^row 2 of train: the column 'text' is empty; mend or drop"),
        ([("x", "a")] * 9, {}, "^train: there must be at least two different labels; there is 'a'"),
        ([{"text": "x"}], {}, "train has no column 'label'; it has 'text'"),
        ([], {}, "train has no column 'text'; it has no rows"),
        ([("x", "y", "a"), ("x", "b")], {}, r"train\[1\] must be a dict or a tuple \(text, text_b"),
        ([("x", "a")], {"epochs": 3}, "no setting 'epochs'; did you mean num_train_epochs?"),
        ([("x", "a")], {"batch_size": "many"}, "batch_size must be a whole number, got 'many'"),
        (
            [("x", "a"), ("y", "b")],
            {"labels": ["a", "c"]},
            "^row 2 of train: the label 'b' is none",
        ),
        ("rows.xls", {}, "rows.xls is not there"),
    ],
)
def test_rows_in_memory_that_are_wrong_leave_nothing(preset, tmp_path, rows, settings, message):
    with pytest.raises(UserError, match=message):
        finetune(rows, preset, str(tmp_path / "a" / "run"), **settings)
    assert not (tmp_path / "a").exists()
