"""A run's answers as a page to look at: one HTML file, without scripts and without other files."""

import collections
import html
import math
import os

from convbert_tf.files import write_bytes

LIMIT = 500  # questions of a kind that are shown
_AROUND = 300  # characters of a context that are shown around an answer
_NBEST = 2
_KINDS = {
    "wrong": "the surest first",
    "half": "right in part (F1 between 0 and 1), the surest first",
    "right": "the least sure first",
    "unknown": "with nothing to compare with, in the order of the file",
}


class Page:
    """Collects Views of questions (tasks/questions.py), and writes them as a page.

    At most `limit` questions of each kind (wrong, right in part, right, unknown) are kept.

    Example:
        >>> page = Page("dev set of runs/qa")
        >>> page.add(view)
        >>> page.write("dev.html")
    """

    def __init__(self, title, limit=LIMIT):
        self.title, self.limit = title, limit
        self._numbers, self._sums = collections.Counter(), collections.Counter()
        self._kept = {kind: [] for kind in _KINDS}

    def add(self, view):
        kind = _kind(view)
        self._numbers[kind] += 1
        if view.f1 is not None:
            self._sums += collections.Counter(exact=view.exact, f1=view.f1)
        kept = self._kept[kind]
        sure = _probability(view)
        order = {"right": sure, "unknown": 0.0}.get(kind, -sure)
        kept.append((order, self._numbers[kind], view))
        if len(kept) >= 2 * self.limit:
            self._shorten(kind)

    def _shorten(self, kind):
        self._kept[kind] = sorted(self._kept[kind], key=lambda each: each[:2])[: self.limit]

    def write(self, path):
        """Writes the page to `path`, whole or not at all."""
        for kind in _KINDS:
            self._shorten(kind)
        write_bytes(path, "\n".join(self._lines()).encode("utf-8"))

    def _lines(self):
        there = [kind for kind in _KINDS if self._numbers[kind]]
        yield _HEAD.format(title=html.escape(self.title))
        yield f"<h1>{html.escape(self.title)}</h1>"
        yield f"<p>{self._summary(there)}</p>"
        yield _LEGEND
        for kind in there if len(there) > 1 else ():
            yield f'<input type="checkbox" id="show-{kind}" checked>'
            yield f'<label for="show-{kind}">{_NAMES[kind]} ({self._numbers[kind]:,})</label>'
        for kind in there:
            yield f'<section class="{kind}">'
            number, shown = self._numbers[kind], len(self._kept[kind])
            cut = f"; {shown:,} of {number:,} are shown" if shown < number else ""
            yield f"<h2>{_NAMES[kind].capitalize()}: {number:,}</h2><p>{_KINDS[kind]}{cut}</p>"
            for _, _, view in self._kept[kind]:
                yield from _article(view)
            yield "</section>"
        yield "</body></html>\n"

    def _summary(self, there):
        total = sum(self._numbers.values())
        parts = [f"{total:,} question{'' if total == 1 else 's'}"]
        if scored := total - self._numbers["unknown"]:
            parts += [
                f"{label} {100 * self._sums[name] / scored:.2f}"
                for name, label in (("exact", "exact match"), ("f1", "F1"))
            ]
        parts += [f"{self._numbers[kind]:,} {_NAMES[kind]}" for kind in there]
        return html.escape("; ".join(parts))


_NAMES = {"wrong": "wrong", "half": "right in part", "right": "right", "unknown": "unscored"}


def write_page(evaluation, outputs, task_name, split, directory):
    """Writes SPLIT.html to `directory`, of an evaluation (see families.py) that has Views."""
    if hasattr(evaluation, "views"):
        page = Page(f"{task_name}, {split}")
        for view in evaluation.views(outputs):
            page.add(view)
        page.write(os.path.join(directory, f"{split}.html"))


def _kind(view):
    if view.f1 is None:
        return "unknown"
    return "right" if view.f1 == 1 else "half" if view.f1 else "wrong"


def _probability(view):
    """How sure the model is of its answer; of "no answer" by the null odds."""
    if view.answer or view.null_odds is None:
        return view.best["probability"]
    return 1 / (1 + math.exp(-view.null_odds))


def _article(view):
    yield "<article>"
    yield f"<h3>{html.escape(view.example.question) or 'an empty question'}</h3>"
    yield "<table>"
    for i, entry in enumerate(view.nbest[:_NBEST]):
        name, kind = ("second best", "second") if i else ("answer", "best")
        note = f"{100 * entry['probability']:.1f}%"
        if not i and not view.answer:
            yield from _row("answer", "best", "", "")
            name, kind = "withheld", "second"
        if entry["text"]:
            yield from _row(name, kind, entry["text"], note)
    if view.f1 is not None:
        note = f"F1 {view.f1:.2f}" if 0 < view.f1 < 1 else ""
        for text in view.right_answers:
            yield from _row("right", "right", text, note)
            note = ""
    if view.null_odds is not None:
        yield from _row("log-odds of no answer", "", f"{view.null_odds:.2f}", "")
    yield "</table>"
    parts = [_part(text, kinds) for text, kinds in view.marked(_AROUND)]
    yield f'<p class="context">{"".join(parts)}</p></article>'


def _row(name, kind, text, note):
    shown = f'<span class="{kind}">{html.escape(text)}</span>' if text else "<i>no answer</i>"
    yield f"<tr><th>{name}</th><td>{shown}</td><td>{note}</td></tr>"


def _part(text, kinds):
    if text is None:
        return '<span class="gap"> [...] </span>'
    escaped = html.escape(text)
    return f'<span class="{" ".join(kinds)}">{escaped}</span>' if kinds else escaped


_LEGEND = (
    '<p>In a context: <span class="best">the answer</span>, '
    '<span class="second">the second best</span>, '
    '<span class="right">what is right</span>. '
    "A percentage is an answer's probability among the best ones.</p>"
)
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 1em auto; padding: 0 1em;
  color: #222; background: #fff }}
h1 {{ font-size: 1.5em }} h2 {{ font-size: 1.2em; margin-bottom: 0 }}
h3 {{ font-size: 1em; margin: 0 0 .3em }}
article {{ border-left: 5px solid #999; padding: .3em 1em; margin: 1em 0; background: #f7f7f7;
  overflow-wrap: anywhere }}
.wrong article {{ border-color: #c62828 }} .half article {{ border-color: #ef9a00 }}
.right article {{ border-color: #2e7d32 }}
th {{ text-align: left; font-weight: normal; color: #666; padding-right: 1em;
  vertical-align: top; white-space: nowrap }}
td {{ padding-right: 1em; vertical-align: top }} td:last-child {{ white-space: nowrap }}
.context {{ white-space: pre-wrap; margin: .5em 0 }} .gap {{ color: #888 }}
span.best {{ background: #ffe082 }} span.second {{ box-shadow: inset 0 -2px #1565c0 }}
span.right {{ color: #1b5e20; font-weight: 600 }}
label {{ margin-right: 1em }}
#show-wrong:not(:checked) ~ .wrong, #show-half:not(:checked) ~ .half,
#show-right:not(:checked) ~ .right, #show-unknown:not(:checked) ~ .unknown {{ display: none }}
</style></head><body>"""
