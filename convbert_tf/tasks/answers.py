"""Outputs of a served model in the order and form in which people and files have them."""

# What comes first; what is not named here comes last.
_FIRST = ("label", "labels", "answer", "start", "end", "start_char", "end_char", "score")


def place(name):
    """A key by which to sort the names of outputs."""
    return _FIRST.index(name) if name in _FIRST else len(_FIRST), name


def tagged(outputs, plain=lambda value: value):
    """The words of a tagged text, and its entities where the tags mark some: lists of dicts.

    Args:
        outputs: of serving.TaggerServer for one text, by their names.
        plain: makes a value of an output what the dicts hold.
    """
    found = {}
    for name, label, plural in (("word", "tag", "words"), ("entity", "entity_label", "entities")):
        if name in outputs:
            score = f"{label.removesuffix('_label')}_score"
            keys = (name, f"{name}_start", f"{name}_end", label, score)
            number = outputs[f"num_{plural}"]
            found[plural] = [{key: plain(outputs[key][i]) for key in keys} for i in range(number)]
    return found
