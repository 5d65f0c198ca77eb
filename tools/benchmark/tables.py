"""What the benchmark shows of its rows: ratios, tables, plots; no TensorFlow."""

import os
import statistics

from convbert_tf.console import say
from convbert_tf.files import atomic_path


def compare(rows, rate=None):
    """Adds to measured `rows` what follows from their medians; returns them.

    That is `ratio` (to the first row, ours), `best` (the quickest peer), `flops_per_second`, `rate`
    and `share` of it, `bytes_per_second`, `questions_per_second`, `windows_per_second`.

    Args:
        rows: see benchmark.measure; variants of ours are named so.
        rate: FLOP/s of matrix products, None where unknown.
    """
    measured = [row for row in rows if "median" in row]
    ours = rows[0].get("median")
    for row in measured:
        if ours:
            row["ratio"] = row["median"] / ours
        for what in ("bytes", "questions", "windows"):
            if row.get(what):
                row[f"{what}_per_second"] = row[what] / row["median"]
        if row.get("flops"):
            row["flops_per_second"] = row["flops"] / row["median"]
            if rate:
                row |= {"rate": rate, "share": row["flops_per_second"] / rate}
    peers = [row for row in measured if not row["variant"].startswith("ours")]
    if peers:
        min(peers, key=lambda row: row["median"])["best"] = True
    return rows


def of_answers(seconds, answers, latencies, first_answer_seconds):
    """What a row has of a load: the mean time an answer as `median`, and the latencies.

    Args:
        seconds: of each part of the texts.
        answers: number of the texts.
        latencies: of the requests.
        first_answer_seconds: from the start of the process.
    """
    row = {"median": sum(seconds) / answers, "answers_per_second": answers / sum(seconds)}
    row["first_answer_seconds"] = first_answer_seconds
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return row | {f"latency_{percent}": cuts[percent - 1] for percent in (50, 95, 99)}


def _milliseconds(key):
    return _cell(key, lambda value: f"{value * 1e3:,.1f}")


def _cell(key, form):
    return lambda row: form(row[key]) if row.get(key) else ""


_LONGEST_NOTE = 100  # characters of a message that may have many lines

# Heading -> what stands in a row's cell.
COLUMNS = {
    "size": _cell("size", str),
    "batch": _cell("batch", str),
    "length": _cell("length", str),
    "text": _cell("text", str),
    "load": _cell("load", str),
    "precision": _cell("precision", str),
    "variant": lambda row: row["variant"],
    "answers/s": _cell("answers_per_second", lambda value: f"{value:,.1f}"),
    "median ms": lambda row: _milliseconds("latency_50" if "latency_50" in row else "median")(row),
    "95% ms": _milliseconds("latency_95"),
    "99% ms": _milliseconds("latency_99"),
    "spread": _cell("spread", lambda value: f"{value:.0%}"),
    "ratio": _cell("ratio", lambda value: f"{value:.2f}"),
    "of rate": _cell("share", lambda value: f"{value:.0%}"),
    "MB/s": _cell("bytes_per_second", lambda value: f"{value / 1e6:.2f}"),
    "questions/s": _cell("questions_per_second", lambda value: f"{value:,.1f}"),
    "windows/s": _cell("windows_per_second", lambda value: f"{value:,.1f}"),
    "first answer s": _cell("first_answer_seconds", lambda value: f"{value:.1f}"),
    "peak MB": _cell("peak_bytes", lambda value: f"{value / 1e6:,.0f}"),
    "device MB": _cell("device_peak_bytes", lambda value: f"{value / 1e6:,.0f}"),
    "": lambda row: row.get("note", "")[:_LONGEST_NOTE] or ("best peer" if row.get("best") else ""),
}
_LEFT = ("size", "precision", "text", "variant", "load", "")


def table(rows):
    """The rows as aligned text, without the columns that are empty in all of them."""
    columns = {}
    for heading, cell in COLUMNS.items():
        cells = [cell(row) for row in rows]
        if any(cells):
            width = max(map(len, [heading, *cells]))
            align = str.ljust if heading in _LEFT else str.rjust
            columns[heading] = [align(text, width) for text in (heading, *cells)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns.values(), strict=True))


# What the plot's columns are over, and what is held at which value; what its rows show.
_OVER = (("length", "batch", 1), ("batch", "length", 128))
_SHOWN = (("median", 1e3, "forward, ms"), ("peak_bytes", 1e-6, "peak memory, MB"))


def plot(rows, path):
    """Draws time and peak memory over length and over batch; says so where matplotlib is absent."""
    try:
        from matplotlib import figure
    except ImportError:
        say(f"{path} is not drawn: matplotlib is not installed")
        return
    drawing = figure.Figure(figsize=(11, 8), layout="constrained")
    panels = drawing.subplots(len(_SHOWN), len(_OVER))
    measured = [row for row in rows if "median" in row]
    for column, (over, fixed, value) in enumerate(_OVER):
        for panel, (key, scale, label) in zip(panels[:, column], _SHOWN, strict=True):
            for name in dict.fromkeys(row["variant"] for row in measured):
                own = [row for row in measured if row["variant"] == name and row[fixed] == value]
                points = sorted((row[over], row[key] * scale) for row in own)
                if points:
                    panel.plot(*zip(*points, strict=True), marker="o", label=name)
            panel.set(xlabel=f"{over} ({fixed} {value})", ylabel=label)
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
            if key == "median":
                panel.set_yscale("log", base=2)
                panel.yaxis.set_major_formatter("{x:g}")
            else:
                panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize="small")
    with atomic_path(path) as partial:
        drawing.savefig(partial, format=os.path.splitext(path)[1][1:] or "svg")
