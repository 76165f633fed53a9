"""The tables that `prompt-tune vocab` prints."""

import json
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.diff import flat

if TYPE_CHECKING:
    from prompt_tune.vocabulary.diff import Change, VocabularyDiff
    from prompt_tune.vocabulary.vocabulary import Vocabulary


def classes_table(vocabulary: "Vocabulary") -> Table:
    """One row per class."""
    table = Table()
    table.add_column("id", justify="right")
    table.add_column("class", overflow="fold")
    table.add_column("prompts", justify="right")
    table.add_column("threshold", justify="right")
    if vocabulary.calibration is not None:
        table.add_column("scale, shift", justify="right")
    if vocabulary.nms_iou is not None:
        table.add_column("NMS IoU", justify="right")
    if vocabulary.box_offsets is not None:
        table.add_column("box offsets in %", justify="right")
    for i, name in enumerate(vocabulary.names):
        n_prompts = len(np.unique(vocabulary.embeddings[i], axis=0))  # padding repeats prompts
        cells: list[str | Text] = [str(i), Text(name), str(n_prompts), f"{vocabulary.thresholds[i]:.3g}"]
        if vocabulary.calibration is not None:
            cells.append("{:.3g}, {:.3g}".format(*vocabulary.calibration[i]))
        if vocabulary.nms_iou is not None:
            cells.append(f"{vocabulary.nms_iou[i]:.3g}")
        if vocabulary.box_offsets is not None:
            cells.append(" ".join(f"{100 * value:+.1f}" for value in vocabulary.box_offsets[i]))
        table.add_row(*cells)
    return table


def origin_table(vocabulary: "Vocabulary") -> Table:
    """What holds for the whole file, one line each; digests are shortened."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for what, value in (
        ("classes", str(len(vocabulary.names))),
        ("kind", vocabulary.kind),
        ("guide mode", vocabulary.guide_mode),
        ("digest", short(vocabulary.digest)),
        ("detector", short(vocabulary.detector)),
        ("text tower", short(vocabulary.text_tower)),
        ("guide", short(vocabulary.guide)),
    ):
        table.add_row(what, Text(value, overflow="fold"))
    return table


def provenance_lines(vocabulary: "Vocabulary") -> list[str]:
    """How the vocabulary was made: one line per value."""
    values = flat("provenance", vocabulary.provenance)
    return [f"{key}  {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def is_provenance(change: "Change") -> bool:
    """Whether a change is one of how the file was made, which changes no detection."""
    return change.name.partition(".")[0] == "provenance"


def differences_table(found: "VocabularyDiff", *, whole: bool = False) -> Table:
    """One row per change; digests are shortened. Changes of the provenance are listed only if `whole`."""

    def shown(value: object, name: str = "") -> str:
        if value is None:
            return "none"
        if name in ("detector", "text_tower", "guide"):
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
    table = Table("what", "class", "before", "after")
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    return table
