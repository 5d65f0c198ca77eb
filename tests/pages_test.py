"""README.md and docs/: what they link to is there, and their commands have flags that exist."""

import pathlib
import re

import pytest

from convbert_tf import config

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
EXPERIMENTS = {
    "pretrain": config.PretrainingExperiment,
    "pretrain_on_jax": config.PretrainingExperiment,
    "finetune": config.FinetuningExperiment,
    "evaluate": config.FinetuningExperiment,
}
ids = [page.name for page in PAGES]


def anchors(page):
    """Names by which the headings of a page are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page, text):
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        if not target.startswith("http") and (
            not linked.exists() or (anchor and anchor not in anchors(linked))
        ):
            found.append(target)
    return found


def commands(text):
    """(tool, its command line) of each `python tools/tool.py` in the blocks of a page."""
    for block in re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.M | re.S):
        lines = block.replace("\\\n", "").splitlines()
        found = (re.search(r"python tools/(\w+)\.py (.*)", line) for line in lines)
        yield from (match.groups() for match in found if match)


def unknown_flags(text):
    found = []
    for tool, line in commands(text):
        source = (ROOT / "tools" / f"{tool}.py").read_text()
        for flag in re.findall(r"(?<=\s)--([\w.]+)", f" {line}"):
            if flag.startswith(("config.", "grid.")):
                value = EXPERIMENTS[tool]()
                for name in flag.split(".")[1:]:
                    value = getattr(value, name, None)
                known = value is not None
            else:
                named = {"config"} if "ConfigFlag(" in source else set()
                named |= set(re.findall(r'"(\w+)"', source))
                known = {flag, flag.removeprefix("no")} & named
            found += [] if known else [f"{tool} --{flag}"]
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    assert not broken_links(page, page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_have_flags_that_exist(page):
    assert not unknown_flags(page.read_text())


def test_what_is_wrong_is_found():
    readme = ROOT / "README.md"
    assert broken_links(readme, "[a](docs/none.md) [b](README.md#none)") == [
        "docs/none.md",
        "README.md#none",
    ]
    text = "```bash\npython tools/pretrain.py --config=x \\\n  --config.data.dir=y --steps=3\n```\n"
    assert unknown_flags(text) == ["pretrain --config.data.dir", "pretrain --steps"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170
