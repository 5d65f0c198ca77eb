"""Texts as callers give them."""

import numpy as np
import pytest

from convbert_tf.console import UserError
from convbert_tf.text import requests


def test_texts_come_in_the_order_of_the_inputs_as_bytes():
    given = {"context": np.array(["é", "b"]), "question": (b"\xff", "d")}
    assert requests.checked(given, ["question", "context"]) == [
        [b"\xff", b"d"],
        ["é".encode(), b"b"],
    ]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"inputs": ["a"]}, "takes text; given: inputs"),
        ({"text": "a"}, "text is one string; give a list: \\[text\\]"),
        ({"text": 3}, "text must be a list of strings, got 3"),
        ({"text": ["a", None]}, "a text must be a string, got None"),
        ({"text": ["\ud800"]}, "half a surrogate pair"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts, told):
    with pytest.raises(UserError, match=told):
        requests.checked(texts, ["text"])


def test_pairs_must_be_whole():
    with pytest.raises(UserError, match="a and b go together: 2 and 1 of them"):
        requests.checked({"a": ["x", "y"], "b": ["z"]}, ["a", "b"])


def test_a_byte_that_is_no_utf8_stays_as_a_surrogate():
    assert requests.as_str(b"a\xff\xc3\xa9") == "a\udcffé"
    assert requests.as_str("é") == "é"
    with pytest.raises(UserError, match="half a surrogate pair"):
        requests.as_str("\udcff")
