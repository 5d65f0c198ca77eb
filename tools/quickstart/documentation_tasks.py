"""Two labelled tasks made of documentation: acceptability (CoLA's format) and question answering.

Nothing here is annotated by hand. Acceptability tells intact sentences from sentences damaged in
one place; question answering turns the described parts of a function (arguments, result,
exceptions) into a paragraph and asks for one of them (SQuAD v1.1's format). Both are functions
of their input and of `seed` alone.
"""

import hashlib
import random
import re

# --- Acceptability --------------------------------------------------------------------------------


def _words(text):
    return frozenset(text.split())


HINGES = _words("a an the of to in for with by from as at on")  # words whose place is fixed
DROPPABLE = _words("of to by with from is are be than has")
AGREEMENT = {
    "is": "are", "are": "is", "was": "were", "were": "was", "has": "have", "have": "has",
    "does": "do", "do": "does", "a": "an", "an": "a", "this": "these", "these": "this",
}  # fmt: skip
MODALS = _words("can cannot could may might must should to will would")
CANDIDATE = re.compile(r"[A-Z][A-Za-z]*(?:,? [A-Za-z'-]+)+\.")
PLAIN_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


def _swap(words, rng):
    """Two neighbours in each other's place."""
    sites = [
        i
        for i in range(len(words) - 1)
        if _plain(words, i, i + 1) and HINGES & set(words[i : i + 2]) and words[i] != words[i + 1]
    ]
    if sites:
        i = rng.choice(sites)
        return [*words[:i], words[i + 1], words[i], *words[i + 2 :]]


def _drop(words, rng):
    """A word the grammar needs left out."""
    sites = [i for i in range(1, len(words) - 1) if words[i] in DROPPABLE]
    if sites:
        i = rng.choice(sites)
        return words[:i] + words[i + 1 :]


def _repeat(words, rng):
    """One word said twice."""
    sites = [i for i in range(len(words) - 1) if _plain(words, i) and words[i] != "that"]
    if sites:
        i = rng.choice(sites)
        return [*words[: i + 1], *words[i:]]


def _disagree(words, rng):
    """A verb, article or demonstrative in the wrong form."""
    wrong = {i: AGREEMENT[word] for i, word in enumerate(words) if word in AGREEMENT}
    for i in range(1, len(words)):
        before, word = words[i - 1], words[i]
        if before in MODALS and re.fullmatch(r"[a-z]{2,}[b-df-hj-rt-wze]", word):
            wrong[i] = word + "s"
    if wrong:
        i = rng.choice(sorted(wrong))
        return [*words[:i], wrong[i], *words[i + 1 :]]


def _move(words, rng):
    """A word with a fixed place moved at least four places away."""
    sites = [i for i in range(len(words) - 1) if words[i] in HINGES]
    if not sites:
        return None
    i = rng.choice(sites)
    rest = words[:i] + words[i + 1 :]
    targets = [
        j
        for j in range(1, len(rest))
        if abs(j - i) >= 4 and words[i] not in rest[j - 1 : j + 1] and _plain(rest, j - 1)
    ]
    if targets:
        j = rng.choice(targets)
        return [*rest[:j], words[i], *rest[j:]]


CORRUPTIONS = {
    "swap": _swap,
    "drop": _drop,
    "repeat": _repeat,
    "disagree": _disagree,
    "move": _move,
}


def _plain(words, *positions):
    return all(PLAIN_WORD.fullmatch(words[i]) for i in positions)


def corrupt(sentence, kind, rng):
    """The sentence damaged in one place, or None where this kind of damage finds no place."""
    words = sentence.removesuffix(".").split()
    if words[0][1:].islower() or len(words[0]) == 1:
        words[0] = words[0].lower()
    words = CORRUPTIONS[kind](words, rng)
    if not words:
        return None
    damaged = " ".join(words)
    return damaged[0].upper() + damaged[1:] + "."


def acceptability_rows(sentences, count, seed):
    """Up to `count` rows (source, label, mark, sentence) of CoLA's four columns, in random order.

    Half are intact ("1"), half damaged ("0", mark "*"); no sentence serves for both. The source
    names the damage. Every sentence is put through the same choice of damage, then every other
    one of a kind stays intact: neither length nor wording tells the label.
    """
    rng = random.Random(seed)
    pool = [s for s in sentences if 5 <= s.count(" ") + 1 <= 30 and CANDIDATE.fullmatch(s)]
    rng.shuffle(pool)
    counts = dict.fromkeys(CORRUPTIONS, 0)
    rows, limit = [], count // 2 * 2
    for sentence in pool:
        if len(rows) == limit:
            break
        for kind in sorted(counts, key=counts.get):
            damaged = corrupt(sentence, kind, rng)
            if damaged:
                intact = counts[kind] % 2
                rows.append(("intact", "1", "", sentence) if intact else (kind, "0", "*", damaged))
                counts[kind] += 1
                break
    good = [row for row in rows if row[1] == "1"]
    bad = [row for row in rows if row[1] == "0"]
    rows = good + bad[: len(good)]
    rng.shuffle(rows)
    return rows


# --- Question answering ---------------------------------------------------------------------------

QUESTIONS = {
    "do": ["What does {f} do?", "What is {f} for?", "What can {f} be used for?"],
    "does": ["What does {f} do?", "What does {f} do in short?"],
    "be": ["What is {f}?", "What kind of thing is {f}?"],
    "argument": [
        "What is the argument {x} of {f}?",
        "What does {x} mean in {f}?",
        "What should be given to {f} as {x}?",
        "What does {f} expect as {x}?",
    ],
    "attribute": ["What is the attribute {x} of {f}?", "What does the attribute {x} of {f} hold?"],
    "returns": ["What does {f} return?", "What is returned by {f}?", "What is the result of {f}?"],
    "yields": ["What does {f} yield?", "What is yielded by {f}?"],
    "raises": [
        "When does {f} raise {x}?",
        "In which case does {f} raise {x}?",
        "What makes {f} raise {x}?",
    ],
}
VERBS = _words(
    "accumulate add adjust aggregate annotate append apply assert assign attach attempt broadcast "
    "build calculate call cast change check choose clear clip close collect combine compare "
    "compile compute concatenate configure connect construct convert copy count create crop "
    "decode decorate define delete describe deserialize detect determine disable display divide "
    "download draw drop emit enable encode ensure estimate evaluate execute expand export extend "
    "extract fetch fill filter find fit flatten flip format gather generate get give group handle "
    "identify implement import indicate infer initialize insert inspect instantiate integrate "
    "interpolate invert invoke iterate join launch learn list load log look make map mask match "
    "measure merge minimize modify move multiply normalize obtain open override pack pad parse "
    "partition perform pick plot pop predict prepare print process produce provide push put "
    "quantize raise read record reduce register release remove rename render repeat replace "
    "report represent reset reshape resize resolve restore retrieve return reverse rotate round "
    "run sample save scale search select send serialize set shift show slice solve sort specify "
    "stack start stop store subtract sum summarize swap take test tokenize trace train transform "
    "translate transpose try turn unpack unwrap update use validate verify visit wait walk wrap "
    "write yield"
)
PREDICATES = _words(
    "can contains controls defaults defines denotes describes determines gives has indicates is "
    "must represents sets should specifies will"
)  # first words of descriptions that lack only their subject
MOST_WORDS = 80  # of a context
MOST_ARGUMENTS = 8  # of a context
SAME_ANSWER = 5  # times that the same argument may have the same answer


def _lower(text):
    word = text.split()[0]
    return text[0].lower() + text[1:] if word[1:].islower() or len(word) == 1 else text


def _third_person(word):
    endings = (("s", ""), ("es", ""), ("ies", "y"))
    return any(word.endswith(e) and word.removesuffix(e) + y in VERBS for e, y in endings)


def _summary_piece(name, entry, rng):
    """(question kind, text before the answer, answer, text after it) for what a function does."""
    answer = _lower(entry.summary)
    word = next((word for word in answer.split() if not word.endswith("ly")), "")
    if word in VERBS:
        return "do", rng.choice([f"Use {name} to ", f"One calls {name} to "]), answer, "."
    if _third_person(word):
        return "does", rng.choice([f"{name} ", f"The {_noun(entry)} {name} "]), answer, "."
    if word in ("a", "an", "the", "this"):
        return "be", f"{name} is ", answer, "."
    return "be", rng.choice([f"{name}: ", f"About {name}: "]), answer, "."


def _noun(entry):
    return "class" if entry.is_class else "method" if "." in entry.name else "function"


def _field_piece(field, rng):
    """The same for one field; what stands before the answer is chosen to read as a sentence."""
    answer, x = _lower(field.text), field.name
    word = re.split(r"\W", answer, maxsplit=1)[0]
    noun_phrase = word in ("a", "an", "the", "one", "list", "number", "name", "path", "any")
    if word in PREDICATES:
        subject = f"The result it {field.kind} " if field.kind in ("returns", "yields") else f"{x} "
        return subject, answer, "."
    if field.kind == "raises":
        if word in ("if", "when", "on", "in", "for", "unless", "whenever"):
            return rng.choice([f"It raises {x} ", f"{x} is raised "]), answer, "."
        return f"It raises {x}: ", answer, "."
    if field.kind in ("returns", "yields"):
        verb = field.kind
        if word in (verb, verb[:-1]):
            return "It " + verb + " ", answer.split(" ", 1)[1], "."
        if word in ("if", "when", "this", "it", "depending"):
            return f"What it {verb}: ", answer, "."
        return rng.choice([f"It {verb} ", f"The result it {verb} is "]), answer, "."
    if field.kind == "argument" and noun_phrase and rng.random() < 0.3:
        return "Give it ", answer, f" as {x}."
    if noun_phrase:
        return rng.choice([f"The {field.kind} {x} is ", f"{x} is "]), answer, "."
    if word in ("whether", "how", "which", "where", "what"):
        return f"{x} tells ", answer, "."
    return rng.choice([f"The {field.kind} {x}: ", f"{x}: "]), answer, "."


def _pieces(name, entry, rng):
    """[(question kind, x, before, answer, after)] in the order of the context."""
    kind, *summary = _summary_piece(name, entry, rng)
    fields = {}
    for field in entry.fields:
        if field.text:
            fields.setdefault((field.kind, field.name or field.text), field)
    fields = list(fields.values())
    arguments = [f for f in fields if f.kind in ("argument", "attribute") and f.name]
    results = [f for f in fields if f.kind in ("returns", "yields")]
    raised = [f for f in fields if f.kind == "raises" and f.name]
    groups = [arguments[:MOST_ARGUMENTS], results if len(results) == 1 else [], raised[:2]]
    if rng.random() < 0.3:
        groups.reverse()
    pieces = [(kind, "", *summary)]
    return pieces + [(f.kind, f.name, *_field_piece(f, rng)) for group in groups for f in group]


def build_paragraph(entry, seed, answers_seen):
    """A SQuAD paragraph {"context", "qas"} about one documented function, or None.

    None where the function has too few described parts: a context holds four candidate answers
    or more. Two to four questions, three about arguments at the most. `answers_seen` counts
    (argument, answer) over calls, and is updated: a pair is asked for SAME_ANSWER times.
    """
    name = entry.name.removesuffix(".__init__")
    rng = random.Random(f"{seed} {name} {entry.summary}")
    context, spans = "", []
    for kind, x, before, answer, after in _pieces(name, entry, rng):
        start = len(context) + len(before)
        context += before + answer + after + " "
        spans.append((kind, x, answer, start))
    context = context.rstrip()
    texts = {answer for _, _, answer, _ in spans}
    if len(texts) < 4 or len(context.split()) > MOST_WORDS:
        return None
    rng.shuffle(spans)
    qas, asked = [], 0
    for kind, x, answer, start in spans:
        about_argument = kind in ("argument", "attribute")
        if len(qas) == 4 or (about_argument and asked == 3) or context.count(answer) > 1:
            continue
        if answers_seen.get((x, answer), 0) >= SAME_ANSWER:
            continue
        answers_seen[x, answer] = answers_seen.get((x, answer), 0) + 1
        asked += about_argument
        question = rng.choice(QUESTIONS[kind]).format(f=name, x=x)
        identity = hashlib.sha256(f"{context}\n{question}".encode()).hexdigest()[:24]
        answers = [{"text": answer, "answer_start": start}]
        qas.append({"id": identity, "question": question, "answers": answers})
    return {"context": context, "qas": qas} if len(qas) >= 2 else None


def question_answering(documents, count, seed, excluded):
    """SQuAD v1.1's structure over (document name, entries) until `count` questions are there.

    Args:
        excluded: a set of (name, summary) and of (question, answer) that must not come again;
            what is written is added to it, so that passing it on keeps two sets apart.
    """
    data, total, answers_seen = [], 0, {}
    for document_name, entries in documents:
        paragraphs = []
        for entry in entries:
            key = (entry.name, entry.summary)
            if total >= count or key in excluded or not _speakable(entry.name):
                continue
            paragraph = build_paragraph(entry, seed, answers_seen)
            if not paragraph:
                continue
            pairs = {(qa["question"], qa["answers"][0]["text"]) for qa in paragraph["qas"]}
            if pairs & excluded:
                continue
            excluded |= pairs | {key}
            paragraphs.append(paragraph)
            total += len(paragraph["qas"])
        if paragraphs:
            data.append({"title": document_name, "paragraphs": paragraphs})
    return {"version": "1.1", "data": data}


def _speakable(name):
    parts = name.removesuffix(".__init__").split(".")
    return len(parts) <= 2 and not parts[-1].startswith("_")
