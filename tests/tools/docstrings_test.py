"""Docstrings to English: every style, and everything that must not get through."""

import textwrap

import pytest

from tools.quickstart import docstrings
from tools.quickstart.docstrings import Field


def read(text, is_class=False):
    return docstrings.read_docstring("f", is_class, textwrap.dedent(text))


GOOGLE = """Blends two pictures of the same size.

    The colours are mixed pixel by pixel, which
    takes a while for large pictures.

    Args:
      first: The picture that lies
        underneath the other one.
      weight (float): How much of the second picture shows.
      *rest: Further pictures, which are ignored.

    Returns:
      A new picture of
      the same size.

    Raises:
      ValueError: If the sizes of the pictures differ.

    Example:
      blended = blend(first, second)
    """

NUMPY = """
    blend(first, second, weight=0.5)

    Blends two pictures of the same size.

    Parameters
    ----------
    first : array_like of shape (n, m)
        The picture that lies
        underneath the other one.
    weight, other : float, optional
        How much of the second picture shows.

    Returns
    -------
    blended : ndarray
        A new picture of the same size.

    Raises
    ------
    ValueError
        If the sizes of the pictures differ.

    See Also
    --------
    mix : The colours are mixed by the other function.

    Notes
    -----
    The colours are mixed pixel by pixel [1]_.

    References
    ----------
    .. [1] Somebody, "The book of colours that nobody read".
    """

SPHINX = """Blends two pictures of the same size.

    :param array first: The picture that lies
        underneath the other one.
    :param weight: How much of the second picture shows.
    :type weight: float of the usual kind
    :returns: A new picture of the same size.
    :raises ValueError: If the sizes of the pictures differ.
    """


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX])
def test_styles_give_the_same_fields(text):
    _, entry = read(text)
    assert entry.summary == "Blends two pictures of the same size"
    fields = [field for field in entry.fields if field.name != "rest"]
    assert fields == [
        Field("argument", "first", "The picture that lies underneath the other one"),
        Field("argument", "weight", "How much of the second picture shows"),
        Field("returns", "", "A new picture of the same size"),
        Field("raises", "ValueError", "If the sizes of the pictures differ"),
    ]


def test_starred_argument_keeps_its_bare_name():
    _, entry = read(GOOGLE)
    assert Field("argument", "rest", "Further pictures, which are ignored") in entry.fields


def test_numpy_sentences_leave_out_signature_see_also_and_references():
    sentences, _ = read(NUMPY)
    assert sentences == [
        "Blends two pictures of the same size.",
        "The picture that lies underneath the other one.",
        "How much of the second picture shows.",
        "A new picture of the same size.",
        "If the sizes of the pictures differ.",
        "The colours are mixed pixel by pixel.",
    ]


def test_google_wrapped_lines_are_joined_and_the_example_is_gone():
    sentences, _ = read(GOOGLE)
    joined = "The colours are mixed pixel by pixel, which takes a while for large pictures."
    assert sentences[1] == joined
    assert "A new picture of the same size." in sentences
    assert not any("blended" in sentence for sentence in sentences)


def test_prose_after_a_google_section_is_read():
    sentences, _ = read("""Sorts the list in place.

        Args:
          key: The function that gives the order.

        The order of equal items is kept in this case.
        """)
    assert sentences[-1] == "The order of equal items is kept in this case."


def test_markdown_headings_open_sections():
    _, entry = read("""A layer for pictures of any size.

        # Arguments
            size: The number of pixels in a row.

        # References
            Nobody has ever written about this.
        """)
    assert entry.fields == [Field("argument", "size", "The number of pixels in a row")]


@pytest.mark.parametrize(
    "block",
    [
        ">>> print('this is a line of code')\nthis is the output of the line",
        "```python\nthis is a line of code in the fence\n```",
        ".. code-block:: python\n\n    this is a line of code in the block",
        ".. [3] This is a footnote that is not to be read.",
        "| this is | a table | of words |",
        "=====  =====\nthis   is the\n=====  =====",
    ],
)
def test_blocks_that_are_no_prose_disappear(block):
    sentences, _ = read(f"The first sentence is here.\n\n{block}\n\nThe last one is here.")
    assert sentences == ["The first sentence is here.", "The last one is here."]


def test_literal_block_ends_with_its_indentation():
    text = "It is used in the following way::\n\n    it is code\n\nThe rest is for the reader."
    assert read(text)[0] == ["The rest is for the reader."]


def test_notes_keep_their_text_and_lose_their_directive():
    text = (
        ".. note:: This is of no use to a reader.\n\n.. versionchanged:: 2.1\n   It is faster now."
    )
    assert read(text)[0] == ["This is of no use to a reader.", "It is faster now."]


@pytest.mark.parametrize(
    ("marked", "bare"),
    [
        ("see :class:`~a.b.Thing` and :func:`run <a.run>`", "see a.b.Thing and run"),
        ("``None`` or `x`", "None or x"),
        ("the [guide](https://example.org/guide) says", "the guide says"),
        ("`the guide <https://example.org>`_ says", "the guide says"),
        ("as shown before [12]_.", "as shown before."),
        ("a **bold** and *thin* and _plain_ word", "a bold and thin and plain word"),
        ("call close() after __init__ and a_b_c", "call close after __init__ and a_b_c"),
        ("a deci- mal number \u2019s \u201cname\u201d", 'a deci-mal number \'s "name"'),
    ],
)
def test_plain(marked, bare):
    assert docstrings.plain(marked) == bare


def test_list_items_are_paragraphs_of_their_own():
    lines = ["Either of", "these:", "- the first one", "  of them", "- the second", "", "The end"]
    expected = ["Either of these:", "the first one of them", "the second", "The end"]
    assert docstrings.paragraphs(lines) == expected


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It works. It is fast! Is it?", ["It works.", "It is fast!", "Is it?"]),
        ("Numbers, e.g. 2 or i.e. two, etc. are fine.", None),
        ("Written by J. Miller in May.", None),
        ("It is (see below.) Good.", ["It is (see below.)", "Good."]),
        ("It is version 3.2 of it. x_max is next.", ["It is version 3.2 of it.", "x_max is next."]),
    ],
)
def test_split_sentences(text, sentences):
    assert docstrings.split_sentences(text) == (sentences or [text])


@pytest.mark.parametrize(
    "sentence",
    [
        "Too short.",
        "The value of a = b + c is used.",
        "The shape of it is [batch, time].",
        "See https://example.org for the rest of it.",
        "It ends (without the other half.",
        "It is to be used for the",
        "It is shown in [3]_ and not here.",
        "It is what we see in.",
        "Banana apple cherry lemon melon orange papaya pear.",
        "x_a y_b z_c of q_d.",
        "weight: the number of the item",
        "It is one of the following:",
        "The \ud800 of a broken string.",
    ],
)
def test_tidy_sentence_refuses(sentence):
    assert docstrings.tidy_sentence(sentence) is None


def test_tidy_sentence_completes():
    assert docstrings.tidy_sentence("number of items in it") == "Number of items in it."
    assert docstrings.tidy_sentence("It is (nearly) done!") == "It is (nearly) done!"
    assert docstrings.tidy_sentence("x_min is the least of them") == "x_min is the least of them."


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("(int, optional) The number of rows. Not more.", "The number of rows"),
        ("Optional. The number of rows.", "The number of rows"),
        ("A string. The name of the file.", "The name of the file"),
        ("A string.", "A string"),
        ("list[int]: The sizes of it.", "The sizes of it"),
        ("If the rows (int) match.", "If the rows (int) match"),
        ("One of the following:", ""),
        ("rows", ""),
        ("a" + " b" * 25 + ".", ""),
        ("The value of x[0] in it.", ""),
    ],
)
def test_describe(text, clause):
    assert docstrings.describe(text) == clause
