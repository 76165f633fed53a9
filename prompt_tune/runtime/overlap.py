"""One box for an object, if wanted: a view on detections in which one of an original and a learned box is hidden.

It comes after the results and removes no row. Two boxes of one vocabulary never hide each other.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast, get_args

import numpy as np

from prompt_tune.contract import SAME_BOX_IOU
from prompt_tune.errors import PromptTuneError
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.offsets import moved
from prompt_tune.vocabulary.vocabulary import Vocabulary

Overlap = Literal["keep", "learned", "score"]


def check_overlap(overlap: str) -> Overlap:
    """The way of treating overlapping boxes, if it is one.

    Raises:
        PromptTuneError: It is not "keep", "learned" or "score".
    """
    if overlap not in get_args(Overlap):
        raise PromptTuneError(f"`overlap` must be one of {', '.join(get_args(Overlap))}. Received: {overlap!r}.")
    return cast(Overlap, overlap)


def hide_boxes(found: list[Detections], vocabularies: Mapping[str, Vocabulary], overlap: Overlap) -> list[Detections]:
    """The detections of several images, with hidden ones marked. "keep" marks nothing. See `hidden_rows`."""
    if overlap == "keep":
        return found
    return [replace(part, hidden=hidden_rows(part, vocabularies, overlap)) for part in found]


def hidden_rows(found: Detections, vocabularies: Mapping[str, Vocabulary], overlap: Overlap) -> np.ndarray:
    """Which detections of one image are hidden, because another box lies on the same object.

    An original and a learned detection are on the same object if their boxes overlap with an IoU of `SAME_BOX_IOU` or
    more, after the original one is moved as the learned class's boxes are: the pairs that `verify` calls collisions.

    Args:
        found: With names and vocabularies.
        vocabularies: Those of the detections, by label.
        overlap: "keep" hides nothing. "learned" hides the original one if the learned one is above its class's
            threshold. "score" hides the one that is less far above its class's threshold, as a share of the way from
            the threshold to 1; the learned one stays if both are equally far. A hidden one hides nothing itself.

    Returns:
        (n,) bool.
    """
    hidden = np.zeros(len(found), bool)
    learned = np.array([label != ORIGINAL for label in found.vocabularies], dtype=bool)
    originals = np.flatnonzero(~learned)
    if overlap == "keep" or not len(originals) or not learned.any():
        return hidden
    margins = _margins(found, vocabularies)
    groups: dict[tuple[str, int], list[int]] = {}
    covering = learned & (margins > 0) if overlap == "learned" else learned
    for covers in np.flatnonzero(covering).tolist():
        groups.setdefault((found.vocabularies[covers], int(found.class_ids[covers])), []).append(covers)
    near: dict[int, list[int]] = {}  # rows of original detections on the box of each learned one
    for (label, class_id), rows in groups.items():
        offsets = vocabularies[label].box_offsets_rows[[class_id]]  # (1, 4)
        theirs = moved(found.boxes_xyxy[originals], offsets)  # the same boxes, as this class draws them
        overlaps = box_iou(found.boxes_xyxy[rows], theirs) >= SAME_BOX_IOU  # (k, m)
        near |= {row: originals[overlaps[k]].tolist() for k, row in enumerate(rows) if overlaps[k].any()}
    if overlap == "learned":
        hidden[[row for rows in near.values() for row in rows]] = True
        return hidden
    rivals: dict[int, list[int]] = {row: list(rows) for row, rows in near.items()}
    for row, rows in near.items():
        for other in rows:
            rivals.setdefault(other, []).append(row)
    order = np.lexsort((~learned, -margins))  # the surest first; of equal ones, the learned ones
    for row in order.tolist():
        if not hidden[row]:
            hidden[rivals.pop(row, [])] = True
    return hidden


def _margins(found: Detections, vocabularies: Mapping[str, Vocabulary]) -> np.ndarray:
    """How far each score is above its class's threshold, as a share of what is above the threshold: (n,) float64."""
    rows = zip(found.vocabularies, found.class_ids, strict=True)
    limits = np.array([vocabularies[label].thresholds[class_id] for label, class_id in rows], np.float64)
    return (found.scores - limits) / np.maximum(1 - limits, 1e-9)
