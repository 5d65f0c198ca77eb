"""The benchmark: workers in turns, ratios, tables, what is not installed; and its models."""

import json
import sys

import numpy as np
import pytest

from convbert_tf.console import UserError
from tools.benchmark import peers, peers_questions, sections, tables, workers
from tools.benchmark.sections import Group, Options, Variant
from tools.benchmark.workers import Laboratory, Worker, WorkerError

FAKE = """
import os, sys, time
from tools.benchmark.workers import Ready, repeat, serve

def sleep(work):
    print("a library's chatter")
    return Ready(repeat(lambda: time.sleep(work["seconds"])), parameters=7)

def memory(work):
    held = b"x" * work["bytes"]
    return Ready(lambda n: len(held))

def raising(work):
    raise ValueError("no such\\nmodel")

def dying(work):
    def run(n):
        print("the last words", file=sys.stderr, flush=True)
        os._exit(3)
    return Ready(run, warm_up=0)

def importing(work):
    import colorsys
    return Ready(lambda n: None)

serve({f.__name__: f for f in (sleep, memory, raising, dying, importing)})
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Name of a module of workers that load no library."""
    (tmp_path / "fake_workers.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "fake_workers"


def start(module, what, **work):
    options = {name: work.pop(name) for name in ("limit", "without") if name in work}
    return Worker(sys.executable, module, {"what": what, "threads": 1} | work, **options)


def test_a_worker_computes_and_tells_its_peak(fake):
    small, large = start(fake, "memory", bytes=1), start(fake, "memory", bytes=60_000_000)
    peaks = [worker.close()[0] for worker in (small, large)]
    assert 50e6 < peaks[1] - peaks[0] < 90e6
    worker = start(fake, "sleep", seconds=0.02)
    assert worker.parameters == 7 and worker.versions == {} and worker.warmed_up
    assert 0.02 <= worker.run(3) < 1
    worker.kill()


def test_what_goes_wrong_in_a_worker_is_told_in_one_line(fake):
    with pytest.raises(WorkerError, match="^ValueError: no such model$"):
        start(fake, "raising")
    with pytest.raises(WorkerError, match="^ended with status 3: the last words$"):
        start(fake, "dying").run(1)
    with pytest.raises(WorkerError, match="^took over 0.5 s$"):
        start(fake, "sleep", seconds=60, limit=0.5)
    start(fake, "importing").kill()
    with pytest.raises(WorkerError, match="colorsys"):
        start(fake, "importing", without=("colorsys",))


class Counter:
    """A worker in this process: notes its turns, fails after `lasts` of them."""

    def __init__(self, log, name, seconds, lasts=99, warmed_up=True):
        self.log, self.name, self.seconds, self.lasts = log, name, seconds, lasts
        self.warmed_up = warmed_up

    def run(self, n):
        self.log.append((self.name, n))
        if [name for name, _ in self.log].count(self.name) > self.lasts:
            raise WorkerError("worn out")
        return self.seconds


def test_workers_take_turns_in_changing_order_and_short_ones_run_often():
    log = []
    by_name = {name: Counter(log, name, seconds) for name, seconds in (("a", 0.05), ("b", 9))}
    by_name["c"] = Counter(log, "c", 0.05, lasts=1, warmed_up=False)
    by_name["d"] = Counter(log, "d", 1, lasts=0)
    times, failed = workers.interleave(by_name, rounds=4, seconds=60)
    assert "".join(name for name, _ in log) == "abd" + "abcbcaabba"
    assert dict(log) == {"a": 4, "b": 1, "c": 1, "d": 1}
    assert times == {"a": [0.05] * 4, "b": [9] * 4, "c": [0.05], "d": []}
    assert failed == {"c": "worn out", "d": "worn out"}


def test_no_round_begins_after_the_time_but_some_always_do():
    by_name, done = {"a": Counter([], "a", 1)}, []
    workers.interleave(by_name, rounds=50, seconds=0, report=done.append)
    assert done == [1, 2, 3]


def test_spread_is_the_quartiles_distance_over_the_median():
    assert workers.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == pytest.approx(2 / 3)
    assert workers.spread([1.0, 9.0]) == 0


def make_rows():
    known = {"size": "small", "flops": 3e9}
    rows = [
        known | {"variant": "ours", "median": 0.1, "spread": 0.02, "peak_bytes": 1.2e9},
        known | {"variant": "ours, other", "median": 0.04},
        known | {"variant": "peer", "median": 0.25, "peak_bytes": 5e8},
        known | {"variant": "quick peer", "median": 0.15, "flops": None},
        known | {"variant": "absent", "note": "not installed"},
    ]
    return tables.compare(rows, rate=60e9)


def test_ratios_are_medians_over_ours_and_shares_are_of_the_rate():
    ours, other, peer, quick, absent = make_rows()
    assert [row["ratio"] for row in (ours, other, peer, quick)] == pytest.approx([1, 0.4, 2.5, 1.5])
    assert [row["share"] for row in (ours, other, peer)] == pytest.approx([0.5, 1.25, 0.2])
    assert quick["best"] and not any("best" in row for row in (ours, other, peer, absent))
    assert "share" not in quick and "ratio" not in absent
    (row,) = tables.compare([{"variant": "ours", "median": 0.5, "bytes": 3e6, "windows": 7}])
    assert row["bytes_per_second"] == 6e6 and row["windows_per_second"] == 14


def test_nothing_is_divided_by_a_median_of_ours_that_is_not_there():
    rows = [{"variant": "ours", "note": "failed"}, {"variant": "peer", "median": 1.0}]
    assert "ratio" not in tables.compare(rows)[1]


def test_a_table_aligns_its_columns_and_leaves_empty_ones_out():
    assert tables.table(make_rows()).splitlines() == [
        "size   variant      median ms  spread  ratio  of rate  peak MB",
        "small  ours             100.0      2%   1.00      50%    1,200",
        "small  ours, other       40.0           0.40     125%",
        "small  peer             250.0           2.50      20%      500",
        "small  quick peer       150.0           1.50                    best peer",
        "small  absent                                                   not installed",
    ]


def test_a_group_measures_what_is_there_and_says_what_is_not(fake, capsys):
    variants = (
        Variant("ours", fake, "sleep", options={"seconds": 0.01}),
        Variant("peer", fake, "sleep", options={"seconds": 0.05}),
        Variant("absent", fake, "sleep", needs=("no-such-package",)),
        Variant("old", fake, "sleep", needs=("keras<2",)),
        Variant("broken", fake, "dying"),
    )
    group = Group("section", {"size": "tiny"}, {}, variants, rounds=3, bytes=1000)
    lab = Laboratory(Options(threads=1))
    ours, peer, absent, old, broken = sections.measure(group, lab)
    assert len(ours["seconds"]) == 3 and ours["peak_bytes"] > 1e6
    assert 1.5 < peer["ratio"] < 10 and peer["best"]
    assert 1000 / 0.5 < ours["bytes_per_second"] < 1000 / 0.01
    assert absent["note"] == old["note"] == "not installed"
    assert broken["note"] == "ended with status 3: the last words"
    assert "section tiny: 3 of 3 rounds" in capsys.readouterr().out


def test_a_variant_runs_in_the_first_interpreter_that_has_its_packages(monkeypatch):
    has = {sys.executable: {"transformers": "5.1"}, "other": {"transformers": "4.57.6"}}
    monkeypatch.setattr(workers, "installed", lambda python, names: has[python])
    lab = Laboratory(Options(peers_python=("other",)))
    assert lab._interpreter(("transformers",)) == sys.executable
    assert lab._interpreter(("transformers<5",)) == "other"
    assert lab._interpreter(("transformers<4",)) is None


def test_installed_tells_versions_and_a_wrong_interpreter():
    found = workers.installed(sys.executable, ["pytest", "no-such-package"])
    assert found == {"pytest": pytest.__version__}
    with pytest.raises(UserError, match="no/python is no Python that runs"):
        workers.installed("no/python", ["pytest"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sections": ("froward",)}, "no section 'froward': choose of forward"),
        ({"sizes": ("large",)}, "no size 'large'"),
        ({"peers": ("jax",)}, "no peer 'jax'"),
        ({"precisions": ("float32", "half")}, "no precision 'half'"),
        ({"sections": ("epoch",)}, "section epoch needs --cola_dir."),
        ({"sections": ("records",), "text": "no/text"}, "--text=no/text is not there"),
        ({"sections": ("records",), "backend": "jax"}, "not with --backend=jax"),
        ({"sections": ("questions",)}, "section questions needs --squad."),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_shapes_are_batch_by_length():
    assert sections.parse_shape("8x128") == (8, 128)
    for text in ("8", "8x", "0x128", "8x128x2", "axb"):
        with pytest.raises(UserError, match="number above 0|no shape"):
            sections.parse_shape(text)


def test_the_curve_goes_over_lengths_and_batches_and_counts_full_attention_as_such():
    options = Options(sizes=("small",), lengths=(128, 1024), batches=(1, 4))
    groups = list(sections.curve_groups(options))
    shapes = [(group.work["batch"], group.work["length"]) for group in groups]
    assert shapes == [(1, 128), (1, 1024), (4, 128)]
    assert groups[1].work["config"]["max_position_embeddings"] == 1024
    full = groups[1].variants[1]
    assert full.options["config"]["conv_type"] == "noconv" and full.flops > groups[1].flops


def test_records_take_the_first_documents_and_one_core(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one\n\ntwo\n\nthree\n")
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("x")
    options = Options(
        sections=("records",), text=str(text), vocab_file=str(vocab), megabytes=7e-6, threads=4
    )
    for group in sections.records_groups(options):
        with open(group.work["text"]) as file:
            assert file.read() == "one\n\ntwo\n\n"
        assert group.bytes == 10 and group.work["threads"] == 1


def test_questions_are_of_paragraphs_all_over_the_file(tmp_path):
    paragraphs = [
        {"context": f"c{i}", "qas": [{"id": f"{i}{q}", "question": q} for q in "abc"]}
        for i in range(40)
    ]
    path, target = tmp_path / "dev.json", tmp_path / "some.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert sections._copy_questions(path, target, 20) == 20
    asked = peers_questions._questions({"squad": target})
    contexts = [int(context[1:]) for _, context in asked]
    assert len(set(contexts)) == 7 and contexts[0] < 4 and contexts[-1] > 32
    assert sections._copy_questions(path, target, 999) == 120
    path.write_text('{"data": [{}]}')
    with pytest.raises(UserError, match="is not in SQuAD's form"):
        sections._copy_questions(path, target, 5)


def test_hugging_face_s_best_spans_are_those_with_the_highest_logits():
    context = "a b c d"
    places = [None, None, (0, 1), (2, 3), (4, 5), (6, 7), None]
    starts, ends = np.zeros([2, 7]), np.zeros([2, 7])
    starts[0, [0, 3]], ends[0, [1, 4]] = 9, 5  # those outside of the context do not count
    starts[1, 5], ends[1, 2] = 7, 7  # an end before its start
    found = peers_questions._best_spans([("?", context)], [(0, places)] * 2, starts, ends)
    assert found[0][0]["text"] == "b c" and len(found[0]) == 20
    assert sum(each["probability"] for each in found[0]) == pytest.approx(1)
    nothing = peers_questions._best_spans([("?", "")], [(0, [None] * 3)], starts[:1], ends[:1])
    assert nothing == [[{"text": "", "probability": 1.0}]]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_curve_is_drawn(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    rows = [
        {"variant": name, "batch": 1, "length": length, "median": length / 1e4, "peak_bytes": 1e8}
        for name in ("ours", "peer")
        for length in (64, 128)
    ]
    path = tmp_path / f"curve.{suffix}"
    tables.plot([*rows, {"variant": "absent", "note": "not installed"}], str(path))
    assert (b"<svg" if suffix == "svg" else b"PNG") in path.read_bytes()[:2000]


def test_without_matplotlib_a_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    tables.plot([], str(tmp_path / "curve.svg"))
    assert "matplotlib is not installed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layers", [False, True])
def test_the_original_s_structure_has_the_same_losses(layers):
    from convbert_tf.modeling import masking, pretraining
    from tools.benchmark.ours import OriginalStructure

    ours = pretraining.ConvBertPretrainer(sections.SIZES["tiny"])
    original = OriginalStructure(sections.SIZES["tiny"], layers=layers)
    original.set_weights(ours.get_weights())
    features = workers.make_batch(30522, 2, 24)
    uniforms = np.random.default_rng(0).random((2, 2, 24)).astype("float32")
    masked = masking.mask_inputs(
        features, uniforms, masking.SpecialTokens(101, 102, 103), ours.pretraining
    )
    expected, outputs = ours.losses(features, masked), original.losses(features, masked)
    assert float(outputs["mlm_loss_sum"]) == pytest.approx(float(expected["mlm_loss_sum"]), 1e-5)
    # Of 30522 tokens a model that knows nothing draws another one nearly always.
    changed = outputs["fake_input_ids"].numpy() != features["input_ids"]
    assert changed.sum() == outputs["disc_labels"].numpy().sum() == expected["mlm_weight"]
    logits = [m.discriminator_logits(features, features["input_ids"]) for m in (ours, original)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-6)


@pytest.mark.peers
def test_hugging_face_s_model_is_of_the_same_size():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from convbert_tf import ConvBertEncoder

    config = sections.SIZES["tiny"]
    theirs = transformers.ConvBertModel(peers._config({"config": config.to_dict()}))
    assert peers._num_weights(theirs) == ConvBertEncoder(config).count_params()


@pytest.mark.slow
def test_ours_alone_is_measured_from_flags_to_file(tmp_path, capsys):
    options = Options(
        sections=("forward", "pretrain"),
        sizes=("tiny",),
        shapes=((2, 16), (1, 16)),
        step_shape=(2, 16),
        peers=(),
        precisions=("float32", "bfloat16"),
        rounds=2,
    )
    path = tmp_path / "benchmark.json"
    rows = sections.run(options, str(path))
    steps = ["ours", "the original's losses", "the original's losses and layers"]
    forward = 2 * ["ours", "ours, a thread an operation"]
    runtimes = [[*forward, "ours, LiteRT"], [*forward, "ours, LiteRT int8"]]
    assert [row["variant"] for row in rows] == sum(runtimes, []) + 2 * steps
    precisions = [row["precision"] for row in rows if row["section"] == "forward"]
    assert precisions == ["float32"] * 5 + ["bfloat16"] * 5
    assert all(0 < row["share"] < 1 and len(row["seconds"]) == 2 for row in rows)
    report = json.loads(path.read_text())
    assert report["rows"][0]["median"] == rows[0]["median"] and "tensorflow" in report["machine"]
    assert "matrix rate" in capsys.readouterr().out
