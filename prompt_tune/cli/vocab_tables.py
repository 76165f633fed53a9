"""The tables that `prompt-tune vocab` prints."""

import json
import re
import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.diff import flat
from prompt_tune.wording import printable

if TYPE_CHECKING:
    from prompt_tune.vocabulary.diff import Change, VocabularyDiff
    from prompt_tune.vocabulary.vocabulary import Vocabulary

KEY_WIDTH = 20  # characters of a dotted key in a line of a narrow table
DIGESTS = ("detector", "text_tower", "guide")  # of what a vocabulary was made for
_KEY = re.compile(r"provenance\..*")
_PART = re.compile(r"[^.]*\.|[^.]+")


def classes_table(vocabulary: "Vocabulary", width: int) -> Table:
    """One row per class; see `fitted` for the width."""
    columns = ["id", "class", "prompts", "threshold"]
    columns += ["scale, shift"] if vocabulary.calibration is not None else []
    columns += ["NMS IoU"] if vocabulary.nms_iou is not None else []
    columns += ["box offsets in %"] if vocabulary.box_offsets is not None else []
    rows = []
    for i, name in enumerate(vocabulary.names):
        n_prompts = len(np.unique(vocabulary.embeddings[i], axis=0))  # padding repeats prompts
        cells = [str(i), name, str(n_prompts), f"{vocabulary.thresholds[i]:.3g}"]
        if vocabulary.calibration is not None:
            cells.append("{:.3g}, {:.3g}".format(*vocabulary.calibration[i]))
        if vocabulary.nms_iou is not None:
            cells.append(f"{vocabulary.nms_iou[i]:.3g}")
        if vocabulary.box_offsets is not None:
            cells.append(" ".join(f"{100 * value:+.1f}" for value in vocabulary.box_offsets[i]))
        rows.append(cells)
    return fitted(columns, rows, width, left=("class",))


def content_json(vocabulary: "Vocabulary", *, whole: bool) -> dict[str, Any]:
    """What the tables show, with full digests and numbers; the provenance too if `whole`."""
    classes, texts = [], dict(vocabulary.background)
    for i, name in enumerate(vocabulary.names):
        n_prompts = len(np.unique(vocabulary.embeddings[i], axis=0))  # padding repeats prompts
        row: dict[str, Any] = {"name": name, "prompts": n_prompts, "threshold": float(vocabulary.thresholds[i])}
        if vocabulary.calibration is not None:
            row["calibration"] = vocabulary.calibration[i].tolist()
        if vocabulary.nms_iou is not None:
            row["nms_iou"] = float(vocabulary.nms_iou[i])
        if vocabulary.box_offsets is not None:
            row["box_offsets"] = vocabulary.box_offsets[i].tolist()
        if name in texts:
            row["background"] = texts[name]
        classes.append(row)
    content = {name: getattr(vocabulary, name) for name in ("kind", "guide_mode", "digest", *DIGESTS)}
    return content | {"classes": classes} | ({"provenance": vocabulary.provenance} if whole else {})


def origin_table(vocabulary: "Vocabulary") -> Table:
    """What holds for the whole file, one line each; digests are shortened."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for what, value in (
        ("classes", str(len(vocabulary.class_names))),
        *((("background", _background(vocabulary)),) if vocabulary.background else ()),
        ("kind", vocabulary.kind),
        ("guide mode", vocabulary.guide_mode),
        ("digest", short(vocabulary.digest)),
        ("detector", short(vocabulary.detector)),
        ("text tower", short(vocabulary.text_tower)),
        ("guide", short(vocabulary.guide)),
    ):
        table.add_row(what, Text(value, overflow="fold"))
    return table


def _background(vocabulary: "Vocabulary") -> str:
    """The rows that guide and score and are never shown, with their texts."""
    return ", ".join(f"{name} (text {json.dumps(text, ensure_ascii=False)})" for name, text in vocabulary.background)


def provenance_lines(vocabulary: "Vocabulary", width: int) -> list[str]:
    """How the vocabulary was made: one line per value, and more where a value has words that need them."""
    values = flat("provenance", vocabulary.provenance)
    lines = [f"{key}  {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    wrapper = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [part for line in lines for part in wrapper.wrap(line)]


def is_provenance(change: "Change") -> bool:
    """Whether a change is one of how the file was made, which changes no detection."""
    return change.name.partition(".")[0] == "provenance"


def differences_table(found: "VocabularyDiff", width: int, *, whole: bool = False) -> Table:
    """One row per change; digests are shortened. Changes of the provenance are listed only if `whole`."""

    def shown(value: object, name: str = "") -> str:
        if value is None:
            return "none"
        if name in DIGESTS:
            return short(str(value))
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True).strip("[]")

    rows = [("added", name, "", "") for name in found.added]
    rows += [("removed", name, "", "") for name in found.removed]
    rows += [("moved", moved.name, "", f"cosine {moved.cosine:.6f}") for moved in found.moved]
    for what, changes in (
        ("threshold", found.rethresholded),
        ("scale, shift", found.recalibrated),
        ("NMS IoU", found.resuppressed),
        ("box offsets", found.reboxed),
    ):
        rows += [(what, change.name, shown(change.before), shown(change.after)) for change in changes]
    if found.reordered:
        rows.append(("order", "", "", "other class ids"))
    rows += [
        (c.name, "", shown(c.before, c.name), shown(c.after, c.name))
        for c in found.metadata
        if whole or not is_provenance(c)
    ]
    columns = ("what", "class", "before", "after")
    return fitted(columns, rows, width, left=columns)


def fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, left: Collection[str]) -> Table:
    """A table that breaks lines between words, or after the dots of a key, but no word.

    Args:
        columns: The headings.
        rows: The cells of each row.
        width: Of the table in characters. It gets wider where its words need that.
        left: Headings of the columns that are aligned to the left; the others are to the right.
    """
    rows = [list(map(printable, row)) for row in rows]
    room = width - 3 * len(columns) - 1  # beside lines and padding
    ruled = True
    cells = [[column, *(row[i] for row in rows)] for i, column in enumerate(columns)]
    if sum(map(_longest_word, cells)) > room:
        cells = [[_after_dots(cell) for cell in column] for column in cells]
    widths = [_longest_word(column) for column in cells]
    if sum(widths) > room:  # columns without lines between them are two apart
        ruled, room = False, width - 2 * len(columns) + 2
    wanted = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in cells]
    room -= sum(widths)
    for i in sorted(range(len(columns)), key=lambda i: (columns[i] != "class", wanted[i] - widths[i])):
        more = max(0, min(room, wanted[i] - widths[i]))
        widths[i], room = widths[i] + more, room - more
    table = Table() if ruled else Table(box=None, pad_edge=False)
    for column, wide in zip(columns, widths, strict=True):
        table.add_column(column, width=wide, justify="left" if column in left else "right", overflow="fold")
    for row in zip(*(column[1:] for column in cells), strict=True):
        table.add_row(*map(Text, row))
    return table


def _longest_word(cells: Sequence[str]) -> int:
    return max(cell_len(word) for cell in cells for word in cell.split() or [""])


def _after_dots(cell: str) -> str:
    """A long dotted key on several lines, each of which but the last ends with a dot; other cells as they are."""
    if len(cell) <= KEY_WIDTH or " " in cell or not _KEY.fullmatch(cell):
        return cell
    lines = [""]
    for part in _PART.findall(cell):
        if lines[-1] and len(lines[-1] + part) > KEY_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
