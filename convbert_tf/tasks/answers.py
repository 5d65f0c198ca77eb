"""Outputs of a served model in the order and form in which people and files have them."""

# What comes first; what is not named here comes last.
_FIRST = ("filled", "label", "labels", "answer", "start", "end", "start_char", "end_char", "score")


def place(name):
    """A key by which to sort the names of outputs."""
    return _FIRST.index(name) if name in _FIRST else len(_FIRST), name


_LISTS = {
    "words": ("word", "word_start", "word_end", "tag", "tag_score"),
    "entities": ("entity", "entity_start", "entity_end", "entity_label", "entity_score"),
    "tokens": ("token", "token_start", "token_end", "replaced_probability"),
    "masks": ("fills", "fill_probability"),
}


def listed(outputs, plain=lambda value: value):
    """The words of a text, its entities, tokens or masks, whichever there are: lists of dicts.

    Args:
        outputs: of serving.TaggerServer, ReplacedTokenServer or MaskFillerServer for one text, by
            their names.
        plain: makes a value of an output what the dicts hold.

    Returns:
        "words", "entities", "tokens" or "masks" -> list; {} of another server's outputs. Masks
        have a list "fills" of dicts of their own.
    """
    found = {}
    for plural, keys in _LISTS.items():
        if (count := f"num_{plural}") in outputs:
            rows = range(int(outputs[count]))
            found[plural] = [{key: plain(outputs[key][i]) for key in keys} for i in rows]
    for mask in found.get("masks", ()):
        probabilities = mask.pop("fill_probability")
        mask["fills"] = [
            {"piece": piece, "probability": probability}
            for piece, probability in zip(mask["fills"], probabilities, strict=True)
        ]
    return found
