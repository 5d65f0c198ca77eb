"""The loads of the benchmark's section serve."""

import json
import threading

import pytest

from convbert_tf.console import UserError
from tools.benchmark import loads, peers, peers_servers, sections, tables
from tools.benchmark.variants import Options, servers_of


def put_under_load(tmp_path, load, answer, number=20, parts=3):
    (tmp_path / "rows.json").write_text(json.dumps([[f"text {i}"] for i in range(number)]))
    work = {"rows": str(tmp_path / "rows.json"), "load": load, "parts": parts}
    return loads.under_load(work, lambda: answer)


@pytest.mark.parametrize("load, sizes", [("one", {1}), ("b8", {7, 6}), ("c8", {1})])
def test_each_text_is_answered_once_in_parts(tmp_path, load, sizes):
    asked = []
    ready = put_under_load(tmp_path, load, asked.append)
    warm_up = len(asked)
    assert warm_up > 10  # texts of all lengths, the first alone
    ready.run(3)
    assert {len(rows) for rows in asked[warm_up:]} == sizes
    answered = [row for rows in asked[warm_up:] for row in rows]
    assert sorted(answered) == sorted((f"text {i}",) for i in range(20))
    details = ready.details()
    assert details["answers"] == 20 and details["first_answer_seconds"] > 0
    assert len(details["latencies"]) == len(asked) - warm_up


def test_clients_ask_at_once(tmp_path):
    together = threading.Barrier(8, timeout=10)

    def answer(rows, seen=[]):  # noqa: B006  (counts the calls)
        seen.append(rows)
        if threading.current_thread() is not threading.main_thread():
            together.wait()

    put_under_load(tmp_path, "c8", answer, number=16, parts=1).run(1)
    with pytest.raises(ValueError, match="no answer"):

        def fail(rows):
            if threading.current_thread() is not threading.main_thread():
                raise ValueError("no answer")

        put_under_load(tmp_path, "c8", fail).run(1)


def test_a_row_has_the_latencies_and_answers_a_second():
    latencies = [i / 1000 for i in range(1, 102)]
    row = tables.of_answers([2.0, 3.0], 10, latencies, 0.5)
    assert (row["median"], row["answers_per_second"]) == (0.5, 2)
    assert row["latency_50"] == pytest.approx(0.051) and row["latency_99"] == pytest.approx(0.1)
    shown = tables.table([row | {"variant": "ours", "load": "one at a time"}])
    assert "51.0" in shown and "500" not in shown  # the median is that of the latencies


def test_texts_come_from_a_table_or_a_file_of_lines(tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\nfine\t1\nbad\t0\n")
    (tmp_path / "a.txt").write_text("fine\nbad\n")
    (tmp_path / "a.csv").write_text("review\nfine\n")
    for name in ("a.tsv", "a.txt"):
        assert sections._rows_of_texts(str(tmp_path / name)) == [["fine"], ["bad"]]
    with pytest.raises(UserError, match="no column sentence or text"):
        sections._rows_of_texts(str(tmp_path / "a.csv"))


def test_peers_of_each_task_are_those_that_were_asked_for(tmp_path):
    for name in ("squad", "texts", "vocab_file"):
        (tmp_path / name).write_text("")
    files = {name: str(tmp_path / name) for name in ("squad", "texts", "vocab_file")}
    options = Options(sections=("serve",), peers=("eager", "openvino"), **files)
    names = [variant.name for variant in servers_of(options, "questions", "models")]
    assert names[0].startswith("ours") and "Hugging Face, pipeline" in names
    assert "OpenVINO" in names and not any("compiled" in name for name in names)
    alone = servers_of(Options(sections=("serve",), peers=(), **files), "sentences", "models")
    assert all(variant.name.startswith("ours") for variant in alone)
    with pytest.raises(UserError, match="there is no load 'b9'"):
        Options(sections=("serve",), loads=("b9",), **files)
    with pytest.raises(UserError, match="section serve needs --texts"):
        Options(sections=("serve",), squad=files["squad"])


@pytest.mark.peers
@pytest.mark.parametrize("task", ["sentences", "questions"])
def test_the_peers_networks_give_what_hugging_face_s_model_gives(tmp_path, task):
    """For shapes other than the traced one: `make_networks` checks them."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    config = peers._config({"config": sections.SIZES["tiny"].to_dict()})
    kind = "QuestionAnswering" if task == "questions" else "SequenceClassification"
    model = getattr(transformers, f"ConvBertFor{kind}")(config)
    model.save_pretrained(tmp_path)
    work = {"model": str(tmp_path), "task": task, "threads": 1, "precision": "float32"}
    peers_servers.make_networks(work)
    for name in ("model.onnx", "model.int8.onnx", "openvino.bin"):
        assert (tmp_path / name).stat().st_size > 100_000
    work |= {"vocab_file": str(tmp_path / "vocab.txt"), "runtime": "int8", "length": 32}
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    )
    (tmp_path / "rows.json").write_text(json.dumps([["a a", "a"][: 1 + (task == "questions")]] * 3))
    work |= {"rows": str(tmp_path / "rows.json"), "load": "b8", "parts": 1, "batch": 8}
    ready = peers_servers.network(work | {"doc_stride": 8})
    ready.run(1)
    assert len(ready.details()["latencies"]) == 1
