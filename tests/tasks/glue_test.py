"""GLUE: the official TSV layouts, broken files, records, metrics, submissions, TFDS."""

import pathlib
import runpy

import numpy as np
import pytest
import tensorflow as tf

from convbert_tf import config
from convbert_tf.console import UserError
from convbert_tf.data import records
from convbert_tf.tasks import glue
from convbert_tf.tasks.sentences import Sentences
from convbert_tf.text.tokenization import WordPieceTokenizer

ROOT = pathlib.Path(__file__).parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return WordPieceTokenizer(str(path))


def _tsv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row.split("|")) + "\n" for row in rows), encoding="utf-8")
    return path


# One line of each file as GLUE lays it out: task, split, file, header, line, what is read of it.
MNLI_DEV_HEADER = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|"
    "sentence2_parse|sentence1|sentence2|label1|label2|label3|label4|label5|gold_label"
)
LAYOUTS = [
    ("cola", "train", "CoLA/train.tsv", None, "gj04|0|*|He go.", ("He go.", None, 0)),
    ("cola", "test", "CoLA/test.tsv", "index|sentence", "0|He goes.", ("He goes.", None, None)),
    ("SST-2", "dev", "SST-2/dev.tsv", "sentence|label", "a treat |1", ("a treat ", None, 1)),
    ("sst2", "test", "test.tsv", "index|sentence", "0|dull", ("dull", None, None)),
    (
        "mrpc",
        "train",
        "MRPC/train.tsv",
        "\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String",
        '1|7|8|" One|Two"',
        ('" One', 'Two"', 1),
    ),
    (
        "sts",
        "train",
        "STS-B/train.tsv",
        "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
        "0|news|x|2012|1|none|none|One.|Two.|3.800",
        ("One.", "Two.", 3.8),
    ),
    (
        "rte",
        "dev",
        "RTE/dev.tsv",
        "index|sentence1|sentence2|label",
        "0|A.|B.|not_entailment",
        ("A.", "B.", 1),
    ),
    (
        "qnli",
        "train",
        "QNLI/train.tsv",
        "index|question|sentence|label",
        "0|Who?|She.|entailment",
        ("Who?", "She.", 0),
    ),
    (
        "qqp",
        "train",
        "QQP/train.tsv",
        "id|qid1|qid2|question1|question2|is_duplicate",
        "5|6|7|Why?|How?|0",
        ("Why?", "How?", 0),
    ),
    ("wnli", "dev", "wnli/dev.tsv", "index|sentence1|sentence2|label", "0|A|B|1", ("A", "B", 1)),
    (
        "mnli",
        "dev_mismatched",
        "MNLI/dev_mismatched.tsv",
        MNLI_DEV_HEADER,
        "0|1|1n|x|p|p|p|p|One.|Two.|neutral|neutral|neutral|neutral|neutral|neutral",
        ("One.", "Two.", 2),
    ),
    ("ax", "test", "AX/AX.tsv", "index|sentence1|sentence2", "0|A|B", ("A", "B", None)),
]


@pytest.mark.parametrize("name, split, file, header, line, expected", LAYOUTS)
def test_reads_the_official_layout(tmp_path, name, split, file, header, line, expected):
    _tsv(tmp_path / file, *([header] if header else []), line, line)
    examples = glue.read_examples(glue.find_task(name), tmp_path, split)
    assert [example.example_id for example in examples] == [0, 1]
    assert (examples[1].text_a, examples[1].text_b, examples[1].label) == expected


def test_only_line_feeds_end_a_line_and_quotes_mean_nothing(tmp_path):
    text = 'sentence\tlabel\r\n"open \u2028 quote\t1\r\n\r\nplain \x0b tab\t0\r\n'
    (tmp_path / "dev.tsv").write_bytes(text.encode())
    examples = glue.read_examples(glue.TASKS["sst2"], tmp_path, "dev")
    assert [(example.text_a, example.label) for example in examples] == [
        ('"open \u2028 quote', 1),
        ("plain \x0b tab", 0),
    ]


@pytest.mark.parametrize(
    "name, rows, message",
    [
        ("sst2", ["sentence|label", "fine|1", "broken"], "dev.tsv:3: 1 columns, not 2"),
        ("sst2", ["sentence|label", "fine|2"], "dev.tsv:2: label '2' is none of 0, 1"),
        ("stsb", ["sentence1|sentence2|score", "a|b|5.5"], "dev.tsv:2: score 5.5 is not between"),
        ("stsb", ["sentence1|sentence2|score", "a|b|nan"], "dev.tsv:2: score nan is not between"),
        ("stsb", ["sentence1|sentence2|score", "a|b|x"], "dev.tsv:2: score 'x' is not a number"),
        ("sst2", ["text|label", "fine|1"], "needs a column 'sentence'.*'text', 'label'"),
        ("rte", ["sentence1|sentence2", "a|b"], "needs a column 'label'"),
        ("rte", [], "is empty"),
        ("sst2", ["sentence|label"], "holds no examples"),
        ("cola", [], "holds no examples"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, name, rows, message):
    _tsv(tmp_path / "dev.tsv", *rows)
    with pytest.raises(UserError, match=message):
        glue.read_examples(glue.TASKS[name], tmp_path, "dev")


def test_other_user_errors(tmp_path):
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\nna\xefve\t1\n")
    with pytest.raises(UserError, match=r"dev\.tsv:2: not UTF-8"):
        glue.read_examples(glue.TASKS["sst2"], tmp_path, "dev")
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\rnaive\t1\r")
    with pytest.raises(UserError, match=r"dev\.tsv has carriage returns for line ends"):
        glue.read_examples(glue.TASKS["sst2"], tmp_path, "dev")
    with pytest.raises(UserError, match=r"neither .*train\.tsv nor .*SST-2.train\.tsv"):
        glue.read_examples(glue.TASKS["sst2"], tmp_path, "train")
    with pytest.raises(UserError, match="no split 'valid'; it has train, dev, test"):
        glue.read_examples(glue.TASKS["sst2"], tmp_path, "valid")
    with pytest.raises(UserError, match="no task is called 'snli'"):
        glue.find_task("snli")


def test_qqp_skips_and_counts_broken_lines(tmp_path, capsys):
    header = "id|qid1|qid2|question1|question2|is_duplicate"
    _tsv(tmp_path / "train.tsv", header, "1|2|3|a|half a", "line|0", "4|5|6|b|c|1")
    examples = glue.read_examples(glue.TASKS["qqp"], tmp_path, "train")
    assert [(e.example_id, e.text_a, e.label) for e in examples] == [(0, "b", 1)]
    assert "2 broken lines skipped of 3" in capsys.readouterr().out


def test_a_task_of_ones_own(tmp_path, tokenizer):
    task = glue.Task(
        name="mine", text_a="left", text_b="right", label="mood", labels=("bad", "so-so", "good")
    )
    _tsv(tmp_path / "mine" / "train.tsv", "mood|right|left", "good|b|a", "so-so|d|c")
    examples = glue.read_examples(task, tmp_path, "train")
    assert [(e.text_a, e.text_b, e.label) for e in examples] == [("a", "b", 2), ("c", "d", 1)]
    path = str(tmp_path / "mine.tfrecord")
    assert glue.write_records(path, task, examples, tokenizer, 16) == 2
    headless = glue.Task(name="mine", columns=("label", "sentence"))
    _tsv(tmp_path / "dev.tsv", "0|a", "1|b")
    assert [e.text_a for e in glue.read_examples(headless, tmp_path, "dev")] == ["a", "b"]


def _parsed(path, task, length):
    batch = records.parse(tf.constant(records.read(path)), task.schema, length)
    return {name: value.numpy() for name, value in batch.items()}


def _ids(text):
    return [WORDS.index(word) for word in text.split()]


def test_records_of_single_sentences(tmp_path, tokenizer):
    path, task = str(tmp_path / "x.tfrecord"), glue.TASKS["sst2"]
    examples = [glue.Example(0, "A b c d e f", None, 1), glue.Example(1, "", None, None)]
    assert glue.write_records(path, task, examples, tokenizer, 6, double_unordered=True) == 2
    batch = _parsed(path, task, 6)
    assert batch["input_ids"].tolist() == [
        _ids("[CLS] a b c d [SEP]"),
        _ids("[CLS] [SEP] [PAD] [PAD] [PAD] [PAD]"),
    ]
    assert not batch["segment_ids"].any()
    assert batch["label_ids"].tolist() == [1, 0]


def test_records_of_pairs_are_cut_and_doubled(tmp_path, tokenizer):
    path, task = str(tmp_path / "x.tfrecord"), glue.TASKS["stsb"]
    examples = [glue.Example(0, "a b c d", "e f g h", 2.5), glue.Example(1, "a", "b", 5.0)]
    assert glue.write_records(path, task, examples, tokenizer, 8, double_unordered=True) == 4
    batch = _parsed(path, task, 8)
    assert batch["input_ids"].tolist() == [
        _ids("[CLS] a b c [SEP] e f [SEP]"),
        _ids("[CLS] a [SEP] b [SEP] [PAD] [PAD] [PAD]"),
        _ids("[CLS] e f g [SEP] a b [SEP]"),
        _ids("[CLS] b [SEP] a [SEP] [PAD] [PAD] [PAD]"),
    ]
    assert (
        batch["segment_ids"].tolist()
        == [
            [0, 0, 0, 0, 0, 1, 1, 1],
            [0, 0, 0, 1, 1, 0, 0, 0],
        ]
        * 2
    )
    assert batch["example_id"].tolist() == [0, 1, 2, 3]
    assert batch["label_ids"].tolist() == [0.5, 1.0, 0.5, 1.0]
    with pytest.raises(UserError, match="max_seq_length=4"):
        glue.write_records(path, task, examples, tokenizer, 4)


@pytest.mark.parametrize(
    "lengths, limit, kept", [((3, 9), 6, (3, 3)), ((9, 1), 6, (5, 1)), ((4, 4), 5, (3, 2))]
)
def test_truncate_pair(lengths, limit, kept):
    a, b = list(range(lengths[0])), list(range(lengths[1]))
    glue.truncate_pair(a, b, limit)
    assert (a, b) == (list(range(kept[0])), list(range(kept[1])))


def test_metrics_by_hand():
    labels, answers = [1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 1, 1]  # tp 3, tn 1, fp 1, fn 1
    found = glue.metrics(glue.TASKS["mrpc"], answers, labels)
    assert found == pytest.approx({"accuracy": 4 / 6, "f1": 3 / 4})
    found = glue.metrics(glue.TASKS["cola"], answers, labels)
    assert found["mcc"] == pytest.approx((3 * 1 - 1 * 1) / np.sqrt(4 * 4 * 2 * 2))
    found = glue.metrics(glue.TASKS["stsb"], [0.0, 0.2, 0.1, 0.9], [0, 1, 2, 3])
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert found["pearson"] == pytest.approx(1.3 / np.sqrt(5 * 0.5))
    assert glue.main_metric(glue.TASKS["stsb"]) == "spearman"
    with pytest.raises(ValueError):
        glue.metrics(glue.TASKS["sst2"], [1, 0], [1])


def test_majority_baseline():
    def examples(labels):
        return [glue.Example(i, "a", "b", label) for i, label in enumerate(labels)]

    found = glue.majority_baseline(glue.TASKS["mrpc"], examples([1, 1, 0]), examples([1, 0, 0, 0]))
    assert found == pytest.approx({"accuracy": 0.25, "f1": 0.4})
    found = glue.majority_baseline(glue.TASKS["stsb"], examples([1.0, 3.0]), examples([2.0, 4.0]))
    assert found == {"spearman": 0.0, "pearson": 0.0}


def test_submissions(tmp_path):
    path = tmp_path / "out" / "RTE.tsv"
    glue.write_submission(path, glue.TASKS["rte"], np.array([1, 0]))
    assert path.read_text() == "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    glue.write_submission(path, glue.TASKS["stsb"], [0.5, 1.2, -0.1])
    assert path.read_text() == "index\tprediction\n0\t2.500\n1\t5.000\n2\t0.000\n"
    assert [file.name for file in path.parent.iterdir()] == ["RTE.tsv"]


def _store_tfds(data_dir, config, **splits):
    """Writes `splits` to disk as the prepared data set glue/`config`."""
    pytest.importorskip("importlib_resources")  # TFDS needs it without saying so
    import tensorflow_datasets as tfds

    builder = tfds.builder(f"glue/{config}", data_dir=data_dir)
    tfds.dataset_builders.store_as_tfds_dataset(
        "glue",
        builder.version,
        builder.info.features,
        {name: list(enumerate(rows)) for name, rows in splits.items()},
        config=tfds.core.BuilderConfig(name=config, version=builder.version),
        data_dir=data_dir,
    )


def test_read_tfds_classes(tmp_path):
    rows = [
        {"premise": f"One {i}.", "hypothesis": "Two é.", "label": label, "idx": i}
        for i, label in enumerate(["entailment", "neutral", "contradiction", "neutral"])
    ]
    unlabelled = [dict(row, label=-1) for row in rows]
    _store_tfds(tmp_path, "mnli", validation_matched=rows, test_mismatched=unlabelled)
    task = glue.TASKS["mnli"]
    examples = glue.read_tfds(task, "dev", tmp_path)
    names = [task.labels[example.label] for example in examples]
    assert names == ["entailment", "neutral", "contradiction", "neutral"]
    assert [example.text_a for example in examples] == [row["premise"] for row in rows]
    assert examples[3] == glue.Example(3, "One 3.", "Two é.", 2)
    examples = glue.read_tfds(task, "test_mismatched", tmp_path)
    assert [example.label for example in examples] == [None] * 4
    with pytest.raises(UserError, match="cannot give glue/mnli, split 'train'"):
        glue.read_tfds(task, "train", tmp_path)


def test_read_tfds_scores_and_renamed_classes(tmp_path):
    pair = {"sentence1": "One.", "sentence2": "Two."}
    _store_tfds(tmp_path, "stsb", train=[pair | {"label": np.float32(2.5), "idx": 0}])
    _store_tfds(tmp_path, "mrpc", train=[pair | {"label": "equivalent", "idx": 0}])
    for name, label in ("stsb", 2.5), ("mrpc", 1):
        found = glue.read_tfds(glue.TASKS[name], "train", tmp_path)
        assert found == [glue.Example(0, "One.", "Two.", label)]


def test_the_config_file_trains_every_task():
    get_config = runpy.run_path(str(ROOT / "configs" / "finetune_glue.py"))["get_config"]
    trained = {name for name, task in glue.TASKS.items() if "train" in task.splits}
    assert {get_config(name).task.name for name in config.GLUE_EPOCHS} == trained
    for folder in [glue.TASKS[name].folder for name in trained]:  # as GLUE spells it
        assert get_config(folder).task.name in trained
    with pytest.raises(UserError, match="AX has no training data: fine-tune on mnli, and predict"):
        get_config("AX")


def test_tfds_as_the_source_of_a_task(tmp_path, monkeypatch):
    pair = {"premise": "One.", "hypothesis": "Two."}
    rows = [pair | {"label": "neutral", "idx": i} for i in range(3)]
    unlabelled = [pair | {"label": -1, "idx": i} for i in range(2)]
    _store_tfds(tmp_path, "mnli", train=rows, validation_matched=rows[:2])
    _store_tfds(tmp_path, "ax", test=unlabelled)
    source = glue.source("MNLI", f"tfds:glue@{tmp_path}")
    assert len(source.examples("train")) == 3 and source.has("dev")
    assert not source.has("dev_mismatched")
    assert [example.label for example in source.examples("ax")] == [None, None]
    (path,) = source.files("ax")
    assert str(tmp_path) in path and "tfrecord" in path and pathlib.Path(path).is_file()
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(glue.source("mnli", f"tfds:glue@~/{tmp_path.name}").examples("train")) == 3
    with pytest.raises(UserError, match="write tfds:glue or tfds:glue@FOLDER"):
        glue.source("mnli", "tfds:squad")
    with pytest.raises(UserError, match="AX has no training data"):
        glue.source("ax", f"tfds:glue@{tmp_path}").examples("train")


@pytest.mark.parametrize("folder", ["AX/AX.tsv", "MNLI/AX.tsv", "diagnostic/diagnostic.tsv"])
def test_ax_is_a_split_of_mnli(tmp_path, folder):
    (tmp_path / "MNLI").mkdir()
    path = _tsv(tmp_path / folder, "index|sentence1|sentence2", "0|A|B")
    for data_dir in (tmp_path, tmp_path / "MNLI"):
        source = glue.source("mnli", str(data_dir))
        assert source.examples("ax") == [glue.Example(0, "A", "B", None)]
        assert pathlib.Path(source.files("ax")[0]).samefile(path)
    assert not source.has("dev_mismatched") and source.task.stems["ax"] == "AX"


MRPC_HEADER = "\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String"
MRPC_LINES = [f"{i % 2}|{i}|{i + 500}|first {i}|second {i}" for i in range(200)]


def _ids_of(folder, split):
    examples = glue.read_examples(glue.TASKS["mrpc"], folder, split)
    assert [example.example_id for example in examples] == list(range(len(examples)))
    assert all(e.label == int(e.text_a.split()[1]) % 2 for e in examples)
    return [int(example.text_a.split()[1]) for example in examples]


def test_mrpc_as_microsoft_ships_it(tmp_path, capsys):
    _tsv(tmp_path / "msr_paraphrase_train.txt", MRPC_HEADER, *MRPC_LINES)
    _tsv(tmp_path / "msr_paraphrase_test.txt", MRPC_HEADER, "1|7|8|first 7|b")
    _tsv(tmp_path / "test.tsv", "index|#1 ID|#2 ID|#1 String|#2 String", "0|7|8|first 7|b")
    assert _ids_of(tmp_path, "test") == [7]  # with labels, where there are any
    # Without GLUE's list of the dev set a fixed part takes its place, and that is said.
    train = _ids_of(tmp_path, "train")
    assert capsys.readouterr().out == ""
    dev = _ids_of(tmp_path, "dev")
    assert "a fixed tenth of msr_paraphrase_train.txt takes its place" in capsys.readouterr().out
    assert sorted(train + dev) == list(range(200)) and 10 < len(dev) < 35
    # The list, or either of the two files that GLUE makes, tells it.
    header = MRPC_HEADER.removeprefix("\ufeff")
    for name, lines in {
        "dev_ids.tsv": ["9|509", "3|503"],
        "dev.tsv": [header, MRPC_LINES[3], MRPC_LINES[9]],
        "train.tsv": [header, *(line for i, line in enumerate(MRPC_LINES) if i not in (3, 9))],
    }.items():
        path = _tsv(tmp_path / name, *lines)
        assert _ids_of(tmp_path, "dev") == [3, 9], name
        assert _ids_of(tmp_path, "train") == [i for i in range(200) if i not in (3, 9)], name
        files = glue.Files(glue.TASKS["mrpc"], str(tmp_path)).files("dev")
        assert str(path) in files
        path.unlink()
    assert capsys.readouterr().out == ""


def test_a_split_that_is_not_there_is_not_scored(tmp_path, capsys):
    for name in ("train", "dev_matched", "dev_mismatched"):
        header, line = MNLI_DEV_HEADER, LAYOUTS[10][4]
        _tsv(tmp_path / f"{name}.tsv", header, *[line] * 2)
    source = glue.source("mnli", str(tmp_path))
    splits = Sentences(config.TaskConfig(), source, None).evaluation_splits()
    assert splits == ["dev", "dev_mismatched"] and capsys.readouterr().out == ""
    (tmp_path / "dev_mismatched.tsv").unlink()
    family = Sentences(config.TaskConfig(), source, None)
    assert family.evaluation_splits() == family.evaluation_splits() == ["dev"]
    assert capsys.readouterr().out.count("mnli has no dev_mismatched there") == 1
