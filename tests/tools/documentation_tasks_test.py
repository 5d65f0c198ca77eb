"""The two tasks: formats, balance, exact answers, and no leak between the parts."""

import collections
import random

import pytest

from tools.quickstart import documentation_tasks as tasks
from tools.quickstart.docstrings import Entry, Field

NOUNS = ["reader", "table", "number", "river", "window", "letter", "garden", "engine", "picture"]
PLACES = ["house", "street", "station", "market", "forest", "harbour", "library", "kitchen"]


def make_sentences(count):
    """Sentences each of which has a word of its own, the last."""
    rng, sentences = random.Random(7), []
    for i in range(count):
        a, b, c, d = rng.sample(NOUNS, 4)
        p, q = rng.sample(PLACES, 2)
        mark = "".join(chr(ord("a") + int(digit)) for digit in str(i))
        sentence = f"The {a} of the {b} is to look from the {p} at the {c} by the {d} in a {q} of"
        sentences.append(f"{sentence} z{mark}.")
    return sentences


def make_entry(name="resize", number=0):
    fields = [
        Field("argument", "image", f"The picture number {number} of the set"),
        Field("argument", "method", "whether the colours are mixed"),
        Field("argument", "size", "Two numbers that tell rows and columns"),
        Field("returns", "", "A picture of another size"),
        Field("raises", "ValueError", "If the size is negative"),
        Field("argument", "empty", ""),
    ]
    return Entry(name, False, "Changes the size of a picture", fields)


@pytest.mark.parametrize("kind", tasks.CORRUPTIONS)
def test_each_damage_is_what_its_name_says(kind):
    sentence = "The name of the file is used to find the place where a table has its first row."
    before = sentence.removesuffix(".").lower().split()
    for seed in range(50):
        damaged = tasks.corrupt(sentence, kind, random.Random(seed))
        assert damaged != sentence and damaged[0].isupper() and damaged.endswith(".")
        after = damaged.removesuffix(".").lower().split()
        difference = collections.Counter(before), collections.Counter(after)
        lost, gained = difference[0] - difference[1], difference[1] - difference[0]
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
        if kind == "drop":
            assert len(after) == len(before) - 1 and set(lost) <= tasks.DROPPABLE
        elif kind == "repeat":
            assert len(after) == len(before) + 1
            assert any(a == b for a, b in zip(after, after[1:], strict=False))
        elif kind == "disagree":
            assert len(changed) == 1 and after[changed[0]] in gained
        elif kind == "swap":
            assert not lost and not gained and changed[1] == changed[0] + 1 and len(changed) == 2
        else:
            assert not lost and not gained and changed[-1] - changed[0] >= 4


def test_damage_without_a_place_is_refused():
    assert tasks.corrupt("Nothing here helps anybody much.", "drop", random.Random(0)) is None
    assert tasks.corrupt("Nothing here helps anybody much.", "disagree", random.Random(0)) is None
    assert tasks.corrupt("A dog barks.", "move", random.Random(0)) is None


def test_disagree_knows_verbs_after_modals():
    results = {
        tasks.corrupt("One must open every door.", "disagree", random.Random(seed))
        for seed in range(5)
    }
    assert results == {"One must opens every door."}


def test_acceptability_rows_are_balanced_and_use_a_sentence_once():
    sentences = make_sentences(300)
    rows = tasks.acceptability_rows(sentences, 200, seed=3)
    labels = collections.Counter((label, mark) for _, label, mark, _ in rows)
    assert labels == {("1", ""): 100, ("0", "*"): 100}
    damage = collections.Counter(source for source, label, _, _ in rows if label == "0")
    assert damage == dict.fromkeys(tasks.CORRUPTIONS, 20)
    intact = [sentence for _, label, _, sentence in rows if label == "1"]
    assert set(intact) <= set(sentences) and len(set(intact)) == 100
    damaged = {sentence for _, label, _, sentence in rows if label == "0"}
    assert not damaged & set(sentences)


def test_no_damaged_sentence_has_its_intact_twin():
    rows = tasks.acceptability_rows(make_sentences(300), 300, seed=3)
    marks = [next(w for w in row[3].rstrip(".").split() if w[0] == "z") for row in rows]
    assert len(marks) == len(set(marks)) == 300


def test_acceptability_rows_depend_on_the_seed_only():
    sentences = make_sentences(120)
    first = tasks.acceptability_rows(sentences, 60, seed=1)
    assert first == tasks.acceptability_rows(sentences, 60, seed=1)
    assert first != tasks.acceptability_rows(sentences, 60, seed=2)


def test_acceptability_rows_take_plain_sentences_only():
    unfit = [
        "Too short to be.",
        "The value of x_max is to be given here.",
        "The value of 3 is to be given here.",
        "The value (if any) is to be given here.",
        "The value " + "of the value " * 20 + "is given.",
        "Is the value to be given here?",
    ]
    assert tasks.acceptability_rows(unfit, 10, seed=0) == []


def test_paragraph_holds_its_answers():
    paragraph = tasks.build_paragraph(make_entry(), 0, {})
    context = paragraph["context"]
    assert "resize changes the size of a picture." in context
    assert 2 <= len(paragraph["qas"]) <= 4
    for qa in paragraph["qas"]:
        (answer,) = qa["answers"]
        start = answer["answer_start"]
        assert context[start : start + len(answer["text"])] == answer["text"]
        assert context.count(answer["text"]) == 1
        assert "resize" in qa["question"] and "{" not in qa["question"]


def test_answer_follows_the_question():
    expected = {
        "image": "the picture number 0 of the set",
        "size": "two numbers that tell rows and columns",
        "method": "whether the colours are mixed",
        "return": "a picture of another size",
        "result": "a picture of another size",
        "raise": "if the size is negative",
        "do": "changes the size of a picture",
    }
    asked = set()
    for seed in range(30):
        for qa in tasks.build_paragraph(make_entry(), seed, {})["qas"]:
            words = qa["question"].rstrip("?").replace("returned", "return").split()
            key = next(key for key in expected if key in words)
            assert qa["answers"][0]["text"] == expected[key], qa["question"]
            asked.add(key)
    assert asked == set(expected)


@pytest.mark.parametrize(
    ("summary", "beginning"),
    [
        ("Make a list of it", ("Use f to make a list", "One calls f to make a list")),
        ("Randomly make a list", ("Use f to randomly make", "One calls f to randomly make")),
        ("Makes a list of it", ("f makes a list", "The function f makes a list")),
        ("A list of it", ("f is a list of it",)),
        ("GPU list of it", ("f: GPU list of it", "About f: GPU list of it")),
    ],
)
def test_summary_reads_as_a_sentence(summary, beginning):
    entry = make_entry("f")._replace(summary=summary)
    assert tasks.build_paragraph(entry, 1, {})["context"].startswith(beginning)


def test_a_function_that_says_little_gives_no_paragraph():
    entry = make_entry()
    assert tasks.build_paragraph(entry._replace(fields=entry.fields[:2]), 0, {}) is None
    assert tasks.build_paragraph(entry._replace(fields=entry.fields[:3]), 0, {}) is not None


def test_the_same_answer_is_asked_for_a_few_times_only():
    documents = [("m", [make_entry(f"f{i}", i) for i in range(60)])]
    squad = tasks.question_answering(documents, 1000, 0, set())
    qas = [qa for p in squad["data"][0]["paragraphs"] for qa in p["qas"]]
    texts = collections.Counter(qa["answers"][0]["text"] for qa in qas)
    assert texts["two numbers that tell rows and columns"] == tasks.SAME_ANSWER


def test_question_answering_format_and_ids():
    documents = [(f"m{i}", [make_entry(f"f{i}", i), make_entry("_private")]) for i in range(5)]
    squad = tasks.question_answering(documents, 1000, 0, set())
    assert squad["version"] == "1.1"
    assert [article["title"] for article in squad["data"]] == [f"m{i}" for i in range(5)]
    qas = [qa for a in squad["data"] for p in a["paragraphs"] for qa in p["qas"]]
    assert not any("_private" in qa["question"] for qa in qas)
    assert len({qa["id"] for qa in qas}) == len(qas)
    assert squad == tasks.question_answering(documents, 1000, 0, set())


def test_question_answering_stops_at_the_count_and_keeps_parts_apart():
    entries = [make_entry(f"f{i}", i) for i in range(10)]
    taken = set()
    first = tasks.question_answering([("m", entries[:2])], 1000, 0, taken)
    second = tasks.question_answering([("n", entries)], 5, 0, taken)
    contexts = [{p["context"] for a in s["data"] for p in a["paragraphs"]} for s in (first, second)]
    assert len(contexts[0]) == 2 and len(contexts[1]) == 2
    assert not contexts[0] & contexts[1]
