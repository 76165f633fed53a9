"""Class names and their synonyms, from a built-in list, a text file, or the command line."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from prompt_tune.errors import VocabularyError
from prompt_tune.texts import regular_bytes

BUILT_IN = ("coco", "lvis", "objects365", "tiny")  # prompts/<name>.txt
LIST_SUFFIX = ".txt"
MAX_LIST_BYTES = 2**24  # a million names
NAMED = 10  # class names in a hint
_COMMENT = re.compile(r"(^|\s)#.*")  # not inside a word such as "C#"
_BETWEEN_WORDS = re.compile(r"[\s_-]+")
# control characters, line and paragraph separators, lone surrogates
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# They turn the direction of text, so that a name reads as another one. Other invisible characters stay: emoji, Persian
# and Hindi need the joiners.
_BIDI_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def parse_line(line: str) -> tuple[str, ...]:
    """One class: its name and its synonyms.

    Args:
        line: For example "lorry; truck". White space around a name is dropped, inside a name it becomes one space.

    Returns:
        (name, synonym, ...): at least one string, all different.

    Raises:
        VocabularyError: A name or synonym is empty, repeated, or has control characters or controls of direction.
    """
    prompts = tuple(" ".join(part.split()) for part in line.split(";"))
    if "" in prompts:
        raise VocabularyError(
            f"A class name or synonym is empty in {line.strip()!r}. Write `name; synonym`, with words on both sides."
        )
    for i, prompt in enumerate(prompts):
        if prompt in prompts[:i]:
            raise VocabularyError(f"{prompt!r} appears twice in the class {line.strip()!r}. Remove one.")
        _check_printable(prompt)
    return prompts


def parse_inline(text: str) -> list[tuple[str, ...]]:
    """Classes as they are written on the command line.

    Args:
        text: For example "lorry; truck, car": commas separate classes, semicolons synonyms.

    Returns:
        One tuple per class, see `parse_line`.

    Raises:
        VocabularyError: A name is empty or repeated.
    """
    classes = [parse_line(part) for part in text.split(",")]
    check_names([prompts[0] for prompts in classes])
    return classes


def read_classes(source: str | Path) -> list[tuple[str, ...]]:
    """Classes from a built-in list, a text file, or the command line.

    Args:
        source: The name of a built-in list ("coco", "lvis", "objects365", "tiny"), a .txt file (UTF-8, one class per
            line, `#` comments, synonyms after semicolons), or the class names themselves ("lorry; truck, car").

    Returns:
        One tuple (name, synonym, ...) per class, in class-id order. Names are unique, synonyms need not be.

    Raises:
        VocabularyError: The file cannot be read, or a name is empty or repeated.
    """
    if isinstance(source, str) and source in BUILT_IN:
        file = resources.files("prompt_tune.prompts").joinpath(source + LIST_SUFFIX)
        return _parse_file(file.read_text("utf-8"), file.name)
    if str(source).lower().endswith(LIST_SUFFIX):
        try:
            # Windows editors begin the file with a byte order mark
            text = regular_bytes(source, MAX_LIST_BYTES).decode("utf-8-sig")
        except OSError as error:
            raise VocabularyError(f"Cannot read the class list {source}: {error.strerror}. Check the path.") from error
        except ValueError as error:
            raise VocabularyError(f"The class list {source} is not UTF-8 text. Save it as UTF-8.") from error
        return _parse_file(text, str(source))
    if isinstance(source, Path) or os.path.isfile(source):
        raise VocabularyError(f"A class list is a {LIST_SUFFIX} file with one class per line. Received: {source}.")
    return parse_inline(source)


def read_templates() -> list[str]:
    """The sentences of prompts/templates.txt, each with `{}` for the class name."""
    file = resources.files("prompt_tune.prompts") / "templates.txt"
    return [line for _, line in _lines(file.read_text("utf-8"))]


def check_names(names: Sequence[str]) -> None:
    """Refuse class names that a vocabulary cannot hold.

    Args:
        names: In class-id order.

    Raises:
        VocabularyError: A name is not a string, is empty or blank, is repeated, or has control characters or controls
            of direction.
    """
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise VocabularyError(f"Class names must be text; class {i} is {name!r}. Put it in quotes.")
        if not name.strip():
            raise VocabularyError(f"The name of class {i} is empty. Give every class a name.")
        _check_printable(name)
        if name in seen:
            raise VocabularyError(
                f"Class names must be unique; classes {seen[name]} and {i} are both {name!r}. Rename or remove one."
            )
        seen[name] = i


class KeptName(str):
    """A name with controls of direction, from a file that was made before they were refused."""

    __slots__ = ()


def kept_names(names: Sequence[Any]) -> list[Any]:
    """Names from a file, so that `check_names` takes those that it took when the file was made."""
    return [KeptName(name) if isinstance(name, str) and _BIDI_CONTROLS.search(name) else name for name in names]


def unprintable(text: str) -> bool:
    """Whether a text has control characters, line separators or lone surrogates."""
    return _UNPRINTABLE.search(text) is not None


def unfit(name: str) -> str | None:
    """Why a class cannot have a name: a sentence about its characters, or None."""
    if unprintable(name):
        return f"Class names must not have control characters or line breaks. Received: {name!r}."
    if _BIDI_CONTROLS.search(name) and not isinstance(name, KeptName):
        return f"Class names must not have characters that control the direction of text. Received: {name!a}."
    return None


def name_hints(names: Sequence[str], original: Sequence[str]) -> list[str]:
    """What is probably not meant about class names: one line for each kind.

    Args:
        names: The classes to be learned.
        original: The classes of the original vocabulary.

    Returns:
        At most two lines: names that differ in case, spaces, `_` or `-` only, and names of original classes.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_folded(name), []).append(name)
    known = {key: name for name in original if (key := _folded(name))}
    hints = []
    groups = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if groups:
        hints.append(
            f"Class names that differ in case, spaces or dashes only: {_listed(groups)}. Each is learned as a class of "
            "its own. If they mean the same, give their labels one class id."
        )
    taken = [
        repr(name) if name == known[key] else f"{name!r} (original: {known[key]!r})"
        for name in names
        if (key := _folded(name)) in known
    ]
    if taken:
        hints.append(
            f"The original class exists already: {_listed(taken)}. Its detections stay as they are, and the learned "
            "class of that name finds the same objects beside it. Consider leaving it out of the data set, or another "
            "name with --names. If `detect` made the labels: its --show decides which classes are labelled."
        )
    return hints


def _folded(name: str) -> str:
    """A name without case, spaces, `_` and `-`, to find names that mean the same."""
    return _BETWEEN_WORDS.sub("", unicodedata.normalize("NFKC", name).casefold())


def _listed(parts: Sequence[str]) -> str:
    """The first `NAMED` of the parts, and how many there are more."""
    rest = len(parts) - NAMED
    return ", ".join(parts[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _check_printable(name: str) -> None:
    """Refuse escape sequences, line breaks and controls of direction: names go to terminals, pictures and JSON."""
    if why := unfit(name):
        raise VocabularyError(why)


def _parse_file(text: str, source: str) -> list[tuple[str, ...]]:
    """The classes of a list that error messages call `source`."""
    classes = []
    for number, line in _lines(text):
        if "," in line:
            raise VocabularyError(
                f"{source}, line {number}: write one class per line, no commas, synonyms after semicolons. "
                f"Received: {line!r}."
            )
        try:
            classes.append(parse_line(line))
        except VocabularyError as error:
            raise VocabularyError(f"{source}, line {number}: {error}") from error
    if not classes:
        raise VocabularyError(f"{source} has no classes. Write one class per line.")
    try:
        check_names([prompts[0] for prompts in classes])
    except VocabularyError as error:
        raise VocabularyError(f"{source}: {error}") from error
    return classes


def _lines(text: str) -> Iterable[tuple[int, str]]:
    """Number (from 1) and content of each line that is not empty, without comments."""
    for number, line in enumerate(text.split("\n"), start=1):
        content = _COMMENT.sub("", line).strip()
        if content:
            yield number, content
