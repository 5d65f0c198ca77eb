"""From the text of a docstring to plain English: its sentences, and what it says of each argument.

Google, NumPy and Sphinx style are read; what is no prose (code, doctests, tables, formulas) is
left out. Everything here works on text; `documentation` finds the docstrings.
"""

import inspect
import re
from typing import NamedTuple


class Field(NamedTuple):
    """One described part of a function: kind is argument, attribute, returns, yields or raises."""

    kind: str
    name: str
    text: str


class Entry(NamedTuple):
    """What one docstring says: its first sentence and its fields."""

    name: str
    is_class: bool
    summary: str
    fields: list


# --- From a docstring to sections -----------------------------------------------------------------

SECTION_KINDS = {
    "argument": "args arguments parameters params call_arguments keyword_args keyword_arguments "
    "other_parameters constructor_args init_args optional_arguments",
    "attribute": "attributes properties",
    "returns": "returns return outputs",
    "yields": "yields yield",
    "raises": "raises raise exceptions throws",
    "prose": "note notes warning warnings warns important remarks caution tip description details",
    "dropped": "example examples usage references reference see_also see methods input_shape "
    "output_shape todo citation citations authors author bibtex routines functions sample_usage "
    "example_usage usage_example usage_examples call_signature demo doctest doctests",
}
SECTION_KINDS = {title: kind for kind, titles in SECTION_KINDS.items() for title in titles.split()}
PROSE_DIRECTIVES = {
    "admonition", "attention", "caution", "danger", "deprecated", "hint", "important", "note",
    "seealso", "tip", "todo", "versionadded", "versionchanged", "warning",
}  # fmt: skip
VERSION_DIRECTIVES = {"deprecated", "versionadded", "versionchanged", "admonition"}
DIRECTIVE = re.compile(r"\.\.\s+([\w:.-]+?)::\s*(.*)")
UNDERLINE = re.compile(r"([=\-~^*#])\1{2,}")
TABLE_LINE = re.compile(r"\|.*\||\+[-=+]+\+|[-=]+( +[-=]+)+|.*\S {3,}\S.* {3,}\S.*")
HEADER = re.compile(r"(?:#+ *|\*\*)?([A-Za-z][A-Za-z ]{2,24}?)(?:\*\*)?:?(?:\*\*)?")


def drop_blocks(lines):
    """The lines without code, doctests, tables, comments and footnotes.

    Directives that hold prose (notes, warnings) leave their text.
    """
    kept, i = [], 0
    while i < len(lines):
        text = lines[i].strip()
        directive = DIRECTIVE.match(text)
        if text.startswith(("```", "~~~")):
            fence = text[:3]
            kept.append("")
            i = 1 + _after(lines, i, lambda line, f=fence: not line.strip().startswith(f))
        elif text.startswith((">>>", "$ ", "In [")):
            i = _after(lines, i, lambda line: line.strip())
        elif directive and directive[1] in PROSE_DIRECTIVES:
            argument = "" if directive[1] in VERSION_DIRECTIVES else directive[2]
            kept += ["", _indent(lines[i]) * " " + argument]
            i += 1
        elif text.startswith(".. ") or text == "..":
            i = _after_block(lines, i)
        elif text.endswith("::"):
            kept += [lines[i].rstrip()[:-1], ""]
            i = _after_block(lines, i)
        else:
            table = (text[:1] in "|+-=" or "   " in text) and TABLE_LINE.fullmatch(text)
            kept.append("" if table else lines[i])
            i += 1
    return kept


def _indent(line):
    return len(line) - len(line.lstrip())


def _after(lines, i, belongs):
    i += 1
    while i < len(lines) and belongs(lines[i]):
        i += 1
    return i


def _after_block(lines, i):
    indent = _indent(lines[i])
    return _after(lines, i, lambda line: not line.strip() or _indent(line) > indent)


def split_sections(lines):
    """[(kind, style, lines)] of a docstring in NumPy or Google style, headings removed.

    A NumPy (underlined) section lasts to the next; a Google section ("Args:") as long as its
    lines are indented more than its title.
    """
    sections, title_indent = [("prose", "", [])], None
    for i, line in enumerate(lines):
        text, indent = line.strip(), _indent(line)
        if title_indent is not None and text and indent <= title_indent:
            sections.append(("prose", "", []))
            title_indent = None
        following = lines[i + 1].strip() if i + 1 < len(lines) else ""
        match = HEADER.fullmatch(text) if len(text) < 40 else None
        kind = SECTION_KINDS.get(match[1].lower().replace(" ", "_")) if match else None
        if UNDERLINE.fullmatch(text):
            continue
        if text and UNDERLINE.fullmatch(following):
            sections.append((kind or "prose", "numpy", []))
            title_indent = None
        elif kind and (text.endswith((":", ":**")) or text.startswith("#")):
            sections.append((kind, "google", []))
            title_indent = indent if not text.startswith("#") else None
        elif not text.startswith("# "):
            sections[-1][2].append(line)
    return sections


SPHINX_FIELD = re.compile(
    r"[:@](param|parameter|arg|argument|key|keyword|ivar|var|cvar|raises?|except|exception"
    r"|returns?|type|rtype|vartype|yields?)\b([^:]*):(?:\s+(.*)|$)"
)
SPHINX_KINDS = {"r": "returns", "y": "yields", "i": "attribute", "v": "attribute", "c": "attribute"}


def take_sphinx_fields(lines):
    """(remaining lines, fields) of a docstring with ":param x: ..." lines."""
    if not any(line.lstrip().startswith((":", "@")) for line in lines):
        return lines, []
    rest, fields, i = [], [], 0
    while i < len(lines):
        match = SPHINX_FIELD.match(lines[i].strip())
        if not match:
            rest.append(lines[i])
            i += 1
            continue
        end = _after(lines, i, lambda line: line.strip() and not SPHINX_FIELD.match(line.strip()))
        word, name = match[1], match[2].split()[-1:] or [""]
        if word not in ("type", "rtype", "vartype"):
            kind = "raises" if word[:3] in ("rai", "exc") else SPHINX_KINDS.get(word[0], "argument")
            text = " ".join([match[3] or "", *lines[i + 1 : end]])
            fields.append(Field(kind, name[0].lstrip("*\\"), plain(text)))
        i = end
    return rest, fields


ITEM = re.compile(
    r"(?:`{0,2}\*{0,2}|\\\*{1,2})([A-Za-z_][\w.]*)`{0,2}(?:\s*\(.*?\))?\s*:(?:\s+(.*)|$)"
)
NUMPY_ITEM = re.compile(r"`{0,2}\*{0,2}(\w[\w.]*)`{0,2}(?:\s*,.*)?(?:\s*:.*)?")


def section_items(kind, style, lines):
    """[(name, description lines)] of a section of fields; the name may be empty."""
    indents = [_indent(line) for line in lines if line.strip()]
    if not indents:
        return []
    base, items = indents[0], []
    for line in lines:
        text = line.strip()
        if not text or _indent(line) > base or (text.startswith(("- ", "* ")) and style == "numpy"):
            if items:
                items[-1][1].append(line)
            continue
        match = (NUMPY_ITEM if style == "numpy" else ITEM).match(text)
        if style == "numpy":
            items.append((match[1] if match and kind != "returns" else "", []))
        elif kind in ("returns", "yields"):
            items[-1][1].append(line) if items else items.append(("", ["- " + text]))
        elif match:
            # As a list item, so that deeper continuation lines stay in its paragraph.
            items.append((match[1], ["- " + (match[2] or "")]))
        elif items:
            items[-1][1].append(line)
    return items


# --- From lines to sentences ----------------------------------------------------------------------

MARKUP = [
    (re.compile(r":[\w:+-]+:`[~!.]?([^`<]*?)\s*(?:<[^`]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`]*>`_{0,2}"), r"\1"),
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\[([^\]]*)\]\([^)\s]*\)"), r"\1"),
    (re.compile(r"\s*\[[\w-]{1,12}\]_(?=[\s)]*[.,;:]|\s*$)"), ""),
    (re.compile(r"`+([^`]*?)`+_{0,2}"), r"\1"),
    (re.compile(r"(?<!\w)_([^\W_][^_]*)_(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w*])\*{1,3}(?=\w)|(?<=[\w.,:;!?])\*{1,3}(?![\w*])"), ""),
    (re.compile(r"\b(\w+)\(\)"), r"\1"),
    (re.compile(r"(?<=[a-z])- +(?=[a-z])"), "-"),
]
MARKED = re.compile(r"[`*\]_]|\(\)|[a-z]- ")
PLAIN_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u00a0", "''\"\"-- ")


def plain(text):
    """One line of text without reST and Markdown markup; roles and links keep their words."""
    if MARKED.search(text):
        for pattern, replacement in MARKUP:
            text = pattern.sub(replacement, text)
    if not text.isascii():
        text = text.translate(PLAIN_QUOTES)
    return " ".join(text.split())


BULLET = re.compile(r"(?:[-*+\u2022]|\(?\w{1,2}[.)])\s+")


def paragraphs(lines):
    """Wrapped lines joined; a list item or a change of indentation starts a new paragraph."""
    joined, indent = [], None
    for line in lines:
        text = line.strip()
        bullet = BULLET.match(text)
        if not text:
            indent = None
        elif bullet or indent is None or (indent >= 0 and _indent(line) != indent):
            joined.append([text[bullet.end() :] if bullet else text])
            indent = -1 if bullet else _indent(line)
        else:
            joined[-1].append(text)
            indent = _indent(line)
    return [plain(" ".join(parts)) for parts in joined]


ENDING = re.compile(r"(?<=\.)([\"')\]]*)\s+|(?<=[!?])([\"')\]]*)\s+(?=[\"'(\[]?[A-Z])")
NO_ENDING = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|approx|resp|Fig|Eq|Eqs|No|Dr|Mr|Mrs|St|Prof|Sec|Ch|Vol|Inc)"
    r"|(?<![\w.])[A-Z])\.$"
)


def split_sentences(text):
    """The sentences of a paragraph; abbreviations and initials end none."""
    sentences, start = [], 0
    for match in ENDING.finditer(text):
        if not NO_ENDING.search(text[start : match.start()]):
            sentences.append(text[start : match.end()].rstrip())
            start = match.end()
    return [*sentences, text[start:]] if text[start:] else sentences


FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can do does for from has have if in into is it its may "
        "must no not of on or should such than that the their then there these this to was when "
        "which will with you",
    )
)
OPEN_WORDS = FUNCTION_WORDS - {"can", "do", "does", "it", "not", "that", "this", "then", "you"}
CODE = re.compile(r"[={}\\|<>@#^~\[\]`$]|__|->|::|\w\(|://|%\(|%[srd]\b|\.\.\.|\*\*|\b[A-Z]{3,}_")
IDENTIFIER = re.compile(r"\w*[_\d]\w*|\w+\.\w[\w.]*|\w*[a-z][A-Z]\w*|[^A-Za-z]*")


def tidy_sentence(sentence):
    """The sentence with a capital and a full stop, or None where it is no English prose."""
    sentence = sentence.strip()
    words = sentence.split()
    if not 4 <= len(words) <= 60 or len(sentence) > 400:
        return None
    if CODE.search(sentence) or not sentence.isprintable():
        return None
    if sentence.count("(") != sentence.count(")") or sentence.count('"') % 2:
        return None
    bare = [word.strip(".,;:!?()\"'") for word in words]
    if sum(bool(IDENTIFIER.fullmatch(word)) for word in bare) * 4 > len(words):
        return None
    if sum(word.lower() in FUNCTION_WORDS for word in bare) * 8 < len(words):
        return None
    if not re.match(r"[\"'(]?[A-Za-z]", sentence) or re.match(r"\w+ ?:", sentence):
        return None
    if bare[-1] in OPEN_WORDS:
        return None  # it went on in something that is gone: a formula, a footnote, a list
    if re.fullmatch(r"[a-z]+", bare[0]):
        sentence = sentence[0].upper() + sentence[1:]
    if re.search(r"[\w)\"']$", sentence):
        return sentence + "."
    return sentence if sentence[-1] in ".!?" else None


TYPE_NOTE = re.compile(
    r"^(?:\([^()]{1,40}\)[:,.]?|[Oo]ptional[:,.]"
    r"|[\w.]+(?:\[[^\]]{1,40}\])?(?: or [\w.]+)?:(?= [A-Z]))\s+"
)


def describe(text):
    """What a description says first, a clause of 2 to 25 words without full stop; else "".

    A type in front ("(int)", "Optional.", "A string.") is passed over where more follows.
    """
    sentences = split_sentences(TYPE_NOTE.sub("", text))
    if len(sentences) > 1 and len(sentences[0].split()) <= 3:
        sentences = sentences[1:]
    clause = sentences[0].strip().rstrip(".") if sentences else ""
    words = clause.split()
    if not 2 <= len(words) <= 25 or not clause[0].isalpha() or not clause.isprintable():
        return ""
    if CODE.search(clause) or clause.count("(") != clause.count(")") or clause.count('"') % 2:
        return ""
    return "" if clause[-1] in ",;:-" or words[-1].lower() in OPEN_WORDS else clause


def _prose(blocks):
    return [s for p in blocks for s in map(tidy_sentence, split_sentences(p)) if s]


def read_docstring(name, is_class, text):
    """(sentences, Entry) of one docstring."""
    lines = drop_blocks(inspect.cleandoc(text).expandtabs().splitlines())
    lines, sphinx_fields = take_sphinx_fields(lines)
    sentences, fields, summary = [], [], ""
    for kind, style, body in split_sections(lines):
        if kind == "prose":
            blocks = paragraphs(body)
            sentences += _prose(blocks)
            # The first paragraph may be a signature.
            summary = summary or next((p for p in blocks if not re.match(r"[\w.]+\(", p)), "")
        elif kind != "dropped":
            for field_name, description in section_items(kind, style, body):
                blocks = paragraphs(description)
                sentences += _prose(blocks)
                fields.append(Field(kind, field_name, describe(blocks[0] if blocks else "")))
    sentences += _prose([field.text for field in sphinx_fields])
    fields += [field._replace(text=describe(field.text)) for field in sphinx_fields]
    return sentences, Entry(name, is_class, describe(summary), fields)
