"""Background rows of an original vocabulary: they guide the neck and score, but are no class, so nothing shows them.

YOLO-World's authors pad a vocabulary with the text " ", and ultralytics documents "". A vocabulary gives such a row a
name, as it does every row, and marks it. The mark hides the row, never the name.
"""

from collections.abc import Sequence

from prompt_tune.errors import VocabularyError
from prompt_tune.vocabulary.names import unprintable

NAME = "<background>"  # of the first background row, if no class has that name
Background = tuple[tuple[str, str], ...]  # name of the row in its vocabulary, and the text that was encoded


def named(texts: Sequence[str]) -> tuple[tuple[str, ...], Background]:
    """Names for the rows of a vocabulary; a blank text makes a background row.

    Args:
        texts: The text of each row, such as ("person", "dog", " ").

    Returns:
        A name for each row: its text, or "<background>", "<background 2>" and so on for blank texts. And the
        background rows, in the same order.
    """
    names: list[str] = []
    taken, background = {text for text in texts if text.strip()}, []
    for text in texts:
        name = text
        if not text.strip():
            name = free_name(taken)
            background.append((name, text))
            taken.add(name)
        names.append(name)
    return tuple(names), tuple(background)


def free_name(taken: set[str]) -> str:
    """The name for a further background row beside the names `taken`."""
    name, number = NAME, 1
    while name in taken:
        number += 1
        name = f"{NAME[:-1]} {number}>"
    return name


def checked_background(value: object, names: Sequence[str], kind: str) -> Background:
    """The background rows of a vocabulary, as a tuple.

    Args:
        value: Pairs of a name and a text.
        names: The vocabulary's names.
        kind: The vocabulary's kind.

    Raises:
        VocabularyError: A pair is not two texts, a name is not one of the vocabulary or not in its order, a text has
            control characters, no class is left, or the vocabulary is not an original one.
    """
    rule = "`background` must be pairs of a name and the text that was encoded, both text"
    if not isinstance(value, (list, tuple)):
        raise VocabularyError(f"{rule}. Received: {value!r:.80}.")
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise VocabularyError(f"{rule}. Received: {pair!r:.80}.")
        if unprintable(pair[1]):
            raise VocabularyError(f"The text of a background row must not have control characters. Received: {pair!r}.")
    marked = [pair[0] for pair in value]
    known = set(marked)
    if marked != [name for name in names if name in known]:
        raise VocabularyError(
            f"`background` must name rows of the vocabulary, each once and in their order. Received: {marked!r:.200}."
        )
    if len(marked) == len(names):
        raise VocabularyError("A vocabulary must have at least one class beside its background rows. Received: none.")
    if marked and kind != "original":
        raise VocabularyError(
            f"Only a vocabulary of kind `original` has background rows. Received: kind `{kind}`, {marked!r:.200}."
        )
    return tuple((name, text) for name, text in value)
