"""The label of a vocabulary, by which its detections, `show` and `hide` name it."""

import os
from collections.abc import Container, Sequence
from pathlib import Path

from prompt_tune.errors import VocabularyError
from prompt_tune.runtime.detections import ORIGINAL
from prompt_tune.vocabulary.format import LEARNED_FILE
from prompt_tune.vocabulary.names import unfit
from prompt_tune.vocabulary.vocabulary import Vocabulary

LEARNED = "learned"  # of a learned vocabulary without a file name
SUFFIX = ".vocab.safetensors"
LABEL = "label"  # key of the provenance: the label that `export --name` gave


def named_file(place: str | Path) -> tuple[str | None, Path]:
    """A label and a file, from "NAME=FILE" or a file alone.

    Args:
        place: What has the form NAME=FILE is read as that, unless a file of the whole name exists or NAME has a slash.

    Raises:
        VocabularyError: The label is empty, "original", or has control characters.
    """
    name, equals, file = str(place).partition("=")
    if not equals or "/" in name or "\\" in name or os.path.exists(place):
        return None, Path(place)
    return checked_label(name), Path(file)


def checked_label(name: str) -> str:
    """The label, if it can be one.

    Raises:
        VocabularyError: It is empty, "original", or has control characters.
    """
    if not name.strip() or name == ORIGINAL or unfit(name):
        raise VocabularyError(
            f"A label must be a word such as `forklifts`, and not `{ORIGINAL}`. Received: {name!r}. Give another name."
        )
    return name


def label_of(file: Path, vocabulary: Vocabulary, taken: Container[str]) -> str:
    """The label of a vocabulary file that was given none.

    It is the name of the file. `fit` calls every file learned.vocab.safetensors: such a file has the label that
    `export --name` gave, or else "learned", or else, if that is taken, the name of its folder.

    Args:
        file: The file.
        vocabulary: Its content.
        taken: Labels that other vocabularies have.
    """
    label = file.name.removesuffix(SUFFIX)
    if file.name != LEARNED_FILE:
        return label
    given = vocabulary.provenance.get(LABEL)
    if isinstance(given, str) and given.strip() and given != ORIGINAL and not unfit(given):
        label = given
    return file.absolute().parent.name or label if label in taken else label


def free_label(taken: Container[str]) -> str:
    """ "learned", "learned-2", ...: the first that is not taken."""
    number = 1
    while (label := LEARNED if number == 1 else f"{LEARNED}-{number}") in taken:
        number += 1
    return label


def load_labelled(places: Sequence[str | Path]) -> dict[str, Vocabulary]:
    """Vocabulary files by label, as a detector that loads them in this order has them.

    Args:
        places: Files, or NAME=FILE; see `named_file`.

    Raises:
        VocabularyError: A label or a file cannot be used.
    """
    found: dict[str, Vocabulary] = {}
    for place in places:
        name, file = named_file(place)
        vocabulary = Vocabulary.load(file)
        found[name or label_of(file, vocabulary, found)] = vocabulary
    return found
