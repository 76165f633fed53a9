"""What is said of a data set before the work begins: one line of what there is, and what is left out."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prompt_tune.datasets.samples import PLURALS, LeftOut, Reason, Split
from prompt_tune.errors import DataError
from prompt_tune.wording import counted, printable

_NAMED = 5  # of what is left out, in a warning; a run folder has all of it
log = logging.getLogger(__name__)


def tell(place: Path, splits: Mapping[str, Split], n_cls: int, *, note: str = "", strict: bool = False) -> None:
    """Logs one line on a data set and, if something is left out, a warning that names the first few.

    Args:
        place: The data set.
        splits: The images by split.
        n_cls: The number of classes.
        note: What else the line says.
        strict: Whether anything that is left out is an error.

    Raises:
        DataError: `strict`, and something is left out.
    """
    left_out = [entry for split in splits.values() for entry in split.left_out]
    parts = [f"{name} {_in_words(split)}" for name, split in splits.items()] + [note, counted(n_cls, "class")]
    tell_left_out(f"`{place}`: {'; '.join(filter(None, parts))}", left_out, strict=strict)


def tell_left_out(what: str, left_out: Sequence[LeftOut], *, strict: bool = False) -> None:
    """Logs one line that ends with what is left out, by reason, and a warning that names the first few.

    Args:
        what: The beginning of the line, without a full stop.
        left_out: What is left out.
        strict: Whether that is an error.

    Raises:
        DataError: `strict`, and something is left out.
    """
    log.info("%s. Left out: %s.", what, _by_reason(left_out) or "nothing")
    require_all(left_out, strict=strict)
    if left_out:
        log.warning("Left out: %s", named(left_out))


def _in_words(split: Split) -> str:
    """The images of a split in words: "160 images, 173 boxes, 12 background images"."""
    boxes = sum(int((~sample.labels.ignore).sum()) for sample in split.samples)
    background = sum(not len(sample.labels) for sample in split.samples)
    return ", ".join(
        (counted(len(split.samples), "image"), counted(boxes, "box"), counted(background, "background image"))
    )


def _by_reason(left_out: Sequence[LeftOut]) -> str:
    """What is left out, counted by reason: "2 unreadable images, 1 bad label row"; empty for nothing."""
    counts = Counter(entry.reason for entry in left_out)
    words = {reason: reason if count == 1 else PLURALS[reason] for reason, count in counts.items()}
    return ", ".join(f"{counts[reason]} {words[reason]}" for reason in Reason if reason in counts)


def named(left_out: Sequence[LeftOut]) -> str:
    """The first few of what is left out, and how many more there are."""
    more = f"; and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    return "; ".join(entry.what.rstrip(".") for entry in left_out[:_NAMED]) + more + "."


def require_all(left_out: Sequence[LeftOut], *, strict: bool) -> None:
    """Refuses what is left out, if nothing may be.

    Raises:
        DataError: `strict`, and something is left out.
    """
    if strict and left_out:
        raise DataError(
            f"Something is left out ({_by_reason(left_out)}), which --strict forbids: {named(left_out)} Correct it, or "
            "go on without --strict."
        )


def listed(splits: Mapping[str, Iterable[LeftOut]]) -> str:
    """All of what is left out, a line each: the split, the reason and the sentence."""
    lines = (f"{name}: {entry.reason}: {entry.what}" for name, entries in splits.items() for entry in entries)
    return "".join(f"{printable(line)}\n" for line in lines)
