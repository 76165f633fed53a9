"""Messages of errors, whatever is in them."""

import pickle

import pytest

from prompt_tune.errors import MAX_CHARACTERS, TAIL, DataError, PromptTuneError, VocabularyError
from prompt_tune.vocabulary.names import check_names


@pytest.mark.parametrize("length", [0, 1, MAX_CHARACTERS])
def test_message_of_reasonable_length_stays(length: int) -> None:
    assert str(PromptTuneError("x" * length)) == "x" * length


def test_message_that_is_too_long_loses_its_middle() -> None:
    error = DataError("`" + "a" * 70_000 + "` is wrong. Correct it.")
    text = str(error)
    assert len(text) == MAX_CHARACTERS
    assert text.startswith("`aaa") and text.endswith("aaa` is wrong. Correct it.")
    assert text[-TAIL - 5 : -TAIL] == " ... "
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError and str(again) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb\u2028c\x85", "a\\u202eb\\u2028c\\x85"),
        ("K\u00e4fer \u81ea \u200d", "K\u00e4fer \u81ea \u200d"),
    ],
)
def test_message_is_one_line_that_a_terminal_does_not_obey(text: str, shown: str) -> None:
    assert str(PromptTuneError(text)) == shown
    assert str(PromptTuneError(shown)) == shown  # an error that is raised again with more words


def test_name_of_any_length_gives_a_short_message() -> None:
    with pytest.raises(VocabularyError) as error:
        check_names(["a" * 100_000, "a" * 100_000])
    assert len(str(error.value)) <= MAX_CHARACTERS
