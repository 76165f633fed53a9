"""Words of messages that several rooms write, and texts of other people made harmless for where they are shown."""

import re
import reprlib

MAX_SHOWN = 200  # characters of a value in a message
# What terminals obey or hide: control characters, line separators, and characters that are invisible or change the
# direction of text. The joiners U+200C and U+200D are shown: emoji, Persian and Hindi need them.
_HOSTILE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # full-width ones too


def counted(count: int, what: str) -> str:
    """A number and its noun, in the singular or plural: "1 learned class", "2 learned classes".

    Args:
        count: How many.
        what: The singular of a regular noun, with any words before it.
    """
    if count == 1:
        return f"1 {what}"
    if what.endswith(("s", "x", "ch", "sh")):
        return f"{count} {what}es"
    if what.endswith("y") and what[-2:-1] not in tuple("aeiou"):
        return f"{count} {what[:-1]}ies"
    return f"{count} {what}s"


def shown(value: object) -> str:
    """A value from a file as a message shows it: like `repr`, but short, whatever the value is."""
    try:
        text = _BRIEF.repr(value)
    except (ValueError, RecursionError):  # a whole number with more digits than Python writes
        return f"a {type(value).__name__} too large to show"
    return brief(text)


def brief(text: str) -> str:
    """A text from a file, cut where a message would become too long."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def printable(text: str) -> str:
    """A text for one line of a terminal: what terminals obey or hide is written as an escape such as \\x1b."""
    return _HOSTILE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def csv_cell(value: object) -> object:
    """A cell of a table that no spreadsheet runs: a text that would begin a formula gets an apostrophe before it.

    Numbers stay numbers.
    """
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) else value


class _Brief(reprlib.Repr):
    """`repr` with limits, and with the keys of a mapping in their own order."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxset = 4, 12, 12, 12, 12
        self.maxstring, self.maxlong, self.maxother = 120, 60, 120

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        if level <= 0 and x:
            return "{...}"
        parts = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in list(x)[: self.maxdict]]
        return "{" + ", ".join(parts + ["..."] * (len(x) > self.maxdict)) + "}"


_BRIEF = _Brief()
