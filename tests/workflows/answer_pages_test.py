"""Pages of answers: what is on them, in which order, and that nothing of a text is a tag."""

import re

import pytest

from convbert_tf.tasks.questions import View
from convbert_tf.tasks.squad import SquadExample
from convbert_tf.workflows import answer_pages
from convbert_tf.workflows.answer_pages import Page


def view(name, f1=None, probability=0.5, context="it is <b>here</b> & there", **values):
    start = context.index("here")
    best = {"text": "here", "probability": probability, "start_char": start, "end_char": start + 4}
    second = {"text": "it", "probability": 0.1, "start_char": 0, "end_char": 2}
    example = SquadExample(
        name, f"<i>{name}?", context, (("there", context.index("there")),), False
    )
    exact = None if f1 is None else float(f1 == 1)
    return View(example, [best, second], **{"answer": "here", "exact": exact, "f1": f1} | values)


@pytest.fixture
def written(tmp_path):
    """A function: the page of these views."""

    def write(views, limit=9):
        page = Page("dev & <more>", limit)
        for each in views:
            page.add(each)
        page.write(tmp_path / "page.html")
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return write


def asked(page):
    return re.findall(r"<h3>&lt;i&gt;(.*)\?</h3>", page)


def test_answers_stand_in_their_context_and_texts_are_no_tags(written):
    page = written([view("a", 0.0)])
    assert "<title>dev &amp; &lt;more&gt;</title>" in page and "<b>" not in page
    assert (
        '<p class="context"><span class="second">it</span> is &lt;b&gt;'
        '<span class="best">here</span>&lt;/b&gt; &amp; <span class="right">there</span></p>'
    ) in page
    assert '<th>answer</th><td><span class="best">here</span></td><td>50.0%</td>' in page
    assert '<th>second best</th><td><span class="second">it</span></td><td>10.0%</td>' in page
    assert '<th>right</th><td><span class="right">there</span></td>' in page
    for foreign in ("<script", "<link", "http", "src=", "url("):
        assert foreign not in page


def test_kinds_are_apart_and_ordered_by_how_sure_the_model_was(written):
    scores = {"a": (0.0, 0.2), "b": (1.0, 0.9), "c": (0.0, 0.8), "d": (0.5, 0.5), "e": (1.0, 0.3)}
    page = written([view(name, *given) for name, given in scores.items()] + [view("f")])
    assert asked(page) == ["c", "a", "d", "e", "b", "f"]
    assert re.findall(r"<h2>(.*)</h2>", page) == [
        "Wrong: 2",
        "Right in part: 1",
        "Right: 2",
        "Unscored: 1",
    ]
    assert "6 questions; exact match 40.00; F1 50.00; 2 wrong; 1 right in part; 2 right" in page
    assert page.count('type="checkbox"') == 4 and "are shown" not in page


def test_of_many_questions_the_first_of_each_kind_are_shown_and_the_page_says_so(written):
    views = [view(str(i), 0.0, probability=i / 100) for i in range(50)]
    page = written([*views, view("right", 1.0)], limit=3)
    assert asked(page) == ["49", "48", "47", "right"]
    assert "Wrong: 50</h2><p>the surest first; 3 of 50 are shown</p>" in page
    assert asked(written([view(str(i)) for i in range(9)], limit=2)) == ["0", "1"]


def test_what_is_withheld_and_what_has_no_answer(written):
    page = written([view("a", 0.0, answer="", null_odds=3.0)])
    assert "<th>answer</th><td><i>no answer</i></td>" in page
    assert '<th>withheld</th><td><span class="second">here</span></td>' in page
    assert "<th>log-odds of no answer</th><td>" in page and "3.00" in page
    assert '<span class="second">here</span>&lt;/b&gt;' in page
    # "No answer" is as sure as its odds say, which are no probability.
    sure, other = view("b", 0.0, answer="", null_odds=9.0), view("c", 0.0, probability=0.99)
    assert asked(written([other, sure])) == ["b", "c"]


def test_of_a_long_context_what_is_around_the_answers_is_shown(written):
    context = f"it {'x ' * 3000}here{' y' * 3000} there"
    page = written([view("a", 0.0, context=context)])
    assert page.count(answer_pages._part(None, ())) == 2
    assert len(page) < 6000 and '<span class="best">here</span>' in page
