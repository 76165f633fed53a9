"""Numbers with their nouns."""

import pytest

from prompt_tune.wording import counted


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
