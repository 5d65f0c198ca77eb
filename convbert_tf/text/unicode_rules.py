"""What BERT's cleaning and lower-casing make of one character; no TensorFlow.

By Python's `unicodedata`, so its version decides which characters exist; the rest is dropped like
all of category C*. The graph's tables (characters.py) and the tokenizer in plain Python
(plain_tokenization.py) are both made of these rules.
"""

import unicodedata

# Of Python 3.11, 3.12 and 3.13: 14.0, 15.0 and 15.1. Each knows all characters of the one before,
# treats them alike, and 4,482 and 627 more (rare scripts and ideographs), which the earlier drops.
UNICODE_VERSION = unicodedata.unidata_version
# CJK ideographs, each a word of its own, as the reference lists them.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


def is_kept(char):
    """Whether the reference's cleaning keeps `char`: it drops U+FFFD and all of category C*."""
    # To the reference \t \n \r are white space, not control characters.
    return (unicodedata.category(char)[0] != "C" or char in "\t\n\r") and char != "\ufffd"


def replacement(char, lower_case, strip_accents):
    """What the reference makes of one kept character; blanks in it split words."""
    if char.isspace():
        return " "
    text = char.lower() if lower_case else char
    return stripped(text) if strip_accents else text


def stripped(text):
    """`text` decomposed (NFD) and without combining marks."""
    parts = unicodedata.normalize("NFD", text)
    return "".join(c for c in parts if unicodedata.category(c) != "Mn")


def stands_alone(char):
    """Whether a normalised character is a word of its own: punctuation and CJK ideographs."""
    code = ord(char)
    if code < 0x80:
        return not char.isalnum() and char.isprintable() and char != " "
    if unicodedata.category(char)[0] == "P":
        return True
    return any(first <= code <= last for first, last in _IDEOGRAPHS)
