"""Numbers with their nouns, and texts of other people where they are shown."""

import pytest

from prompt_tune.wording import brief, counted, csv_cell, printable, shown


@pytest.mark.parametrize(
    ("count", "what", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "image", "2 images"),
        (1, "learned class", "1 learned class"),
        (3, "learned class", "3 learned classes"),
        (2, "box", "2 boxes"),
        (2, "batch", "2 batches"),
        (2, "vocabulary", "2 vocabularies"),
        (2, "day", "2 days"),
    ],
)
def test_noun_agrees_with_its_number(count: int, what: str, text: str) -> None:
    assert counted(count, what) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ({"z": 1, "a": [2]}, "{'z': 1, 'a': [2]}"),
        (None, "None"),
        (16**6000, "a int too large to show"),
    ],
    ids=["text", "mapping", "none", "digits"],
)
def test_value_from_a_file_is_shown_as_python_writes_it(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    "value", ["x" * 10_000, list(range(10_000)), {i: "y" * 999 for i in range(999)}, [[[[[[[1]]]]]]]]
)
def test_value_that_is_long_is_cut(value: object) -> None:
    assert len(shown(value)) < 210 and "..." in shown(value)


def test_value_inside_itself_is_shown() -> None:
    own: list[object] = []
    own.append(own)
    assert "..." in shown(own)


def test_long_text_is_cut() -> None:
    assert brief("abc") == "abc"
    assert brief("x" * 300) == "x" * 200 + "..."


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("a photo.png", "a photo.png"),
        ("K\u00e4fer \u8ca8\u8eca \U0001f69a", "K\u00e4fer \u8ca8\u8eca \U0001f69a"),
        ("\u06af\u0627\u0648\u200c\u0645\u06cc\u0634", "\u06af\u0627\u0648\u200c\u0645\u06cc\u0634"),  # Persian
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),  # Hindi
        ("\U0001f469\u200d\U0001f692", "\U0001f469\u200d\U0001f692"),  # a firefighter
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nError: b", "a\\nError: b"),
        ("\x9b2J", "\\x9b2J"),
        ("exe.\u202egnp", "exe.\\u202egnp"),
        ("a\u2066b\u2069", "a\\u2066b\\u2069"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("a\U000e0041", "a\\U000e0041"),
    ],
)
def test_what_terminals_obey_or_hide_is_escaped(text: str, visible: str) -> None:
    assert printable(text) == visible


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "  =1", "\uff1d1"])
def test_cell_that_would_be_a_formula_gets_an_apostrophe(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=b", "", "x-1", "1", -1.5, 7, None])
def test_other_cell_stays(value: object) -> None:
    assert csv_cell(value) is value
