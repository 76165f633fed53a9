"""Thresholds and NMS limits of learned classes, chosen on the validation images.

Learned scores cannot be compared with original ones, nor between classes, so one threshold for all would not do.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_tune.contract import DEFAULT_THRESHOLD, IDENTITY, METRIC_CONF, NMS_IOU
from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.matching import Matched
from prompt_tune.evaluation.metrics import average_precision
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.packing import calibrated

NMS_IOUS = (NMS_IOU, 0.6, 0.5)  # what a learned vocabulary's NMS IoU is chosen from
MIN_PRECISION = 0.5  # a class is hardly learned if most detections above its threshold are wrong ...
MIN_THRESHOLD = 0.05  # ... or if its threshold is this low: other images have such scores anywhere
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The threshold of each class, and the precision and recall to expect there.

    Attributes:
        values: (n_cls,) float32 in 0..1.
        precision: (n_cls,) in 0..1, at IoU 0.5 on the validation images; nan where the class keeps the default.
        recall: (n_cls,) likewise.
        rule: How the thresholds were chosen, in words.
    """

    values: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    rule: str

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The rule, and what to expect of each class that has a chosen threshold: for a vocabulary's provenance."""
        expected = {
            name: {"precision": round(float(precision), 4), "recall": round(float(recall), 4)}
            for name, precision, recall in zip(names, self.precision, self.recall, strict=True)
            if not np.isnan(precision)
        }
        return {"rule": self.rule, "expected": expected}


def _suppressed(found: Sequence[Detections], nms_iou: np.ndarray) -> list[Detections]:
    """The detections of each image after a further suppression."""
    return [part.distinct(nms_iou) for part in found]


def choose_nms_iou(
    labels: Sequence[Labels],
    found: Sequence[Detections],
    n_cls: int,
    suppressed: Callable[[Sequence[Detections], np.ndarray], list[Detections]] = _suppressed,
) -> float:
    """Choose the NMS IoU from `NMS_IOUS` that gives the highest AP50; in a tie, the highest IoU.

    AP50, since thresholds are chosen at IoU 0.5 too, where a second box on an object is wrong. AP hardly reacts: at a
    stricter IoU, one of two boxes may be right where the other, with the higher score, is not.

    Args:
        labels: The labels of each image.
        found: The detections of each image after the detector's own suppression.
        n_cls: The number of classes.
        suppressed: What a limit of each class, (n_cls,), leaves of `found`, in the images of `labels`.
    """
    limits = [np.full(n_cls, iou, np.float32) for iou in NMS_IOUS]
    ap50 = [average_precision(labels, suppressed(found, limit), n_cls).ap50 for limit in limits]
    return NMS_IOUS[int(np.argmax(ap50))]  # the first if no class has an object


def choose_thresholds(
    names: Sequence[str],
    matched: Sequence[Matched],
    *,
    precision: float = 0.0,
    known: Collection[str] = (),
    calibration: np.ndarray | None = None,
) -> Thresholds:
    """Choose the threshold of each class.

    A threshold lies halfway between the lowest score that is to count and the next one below, so that rounding (float16
    in the cache, another engine) moves no detection across it. A class without objects or without a right detection
    keeps 0.25. Log lines name the classes that keep it, those that miss `precision`, and those that are hardly learned.

    Args:
        names: The n_cls class names.
        matched: The detections of each class in the validation images, calibrated if the vocabulary will be.
        precision: 0 chooses the best F1 at IoU 0.5. Above 0: the lowest score at which the precision of everything
            above it is at least this. If that is out of reach, the score with the highest precision.
        known: Classes that get a threshold from elsewhere if none can be chosen; the log does not name them.
        calibration: (n_cls, 2) float32, the scale and shift with which `matched` was calibrated, if it was.
    """
    rows = np.tile(np.array(IDENTITY, np.float32), (len(names), 1)) if calibration is None else calibration
    lowest = calibrated(np.full(len(names), METRIC_CONF, np.float32), rows)  # no detection is below
    chosen = [_choose(part, precision, least) for part, least in zip(matched, lowest, strict=True)]
    unset = [name for name, row in zip(names, chosen, strict=True) if row is None and name not in known]
    if unset:
        logger.warning(
            "Never found in the validation images, so the threshold stays at %g: %s",
            DEFAULT_THRESHOLD,
            ", ".join(unset),
        )
    values, reached, recall = np.array([row or (DEFAULT_THRESHOLD, np.nan, np.nan) for row in chosen]).T
    short = [name for name, got in zip(names, reached, strict=True) if got < precision]
    if short:
        logger.warning("Precision %g is out of reach; the highest was taken instead: %s", precision, ", ".join(short))
    weak = [
        f"{name} (threshold {value:.3f}, precision {got:.2f}, recall {found:.2f})"
        for name, value, got, found in zip(names, values, reached, recall, strict=True)
        if hardly_learned(value, got)
    ]
    if weak:
        logger.warning(
            "Hardly learned, so expect many false alarms: %s. The threshold should be at least %g, and most detections "
            "above it right. Give these classes more images or other names, or fit with `--precision 0.9`.",
            ", ".join(weak),
            MIN_THRESHOLD,
        )
    rule = f"lowest score with precision {precision:g} at IoU 0.5" if precision else "best F1 at IoU 0.5"
    return Thresholds(values.astype(np.float32), reached, recall, rule)


def hardly_learned(threshold: float, precision: float | None) -> bool:
    """Whether to expect many false alarms of a class with this threshold and this precision above it."""
    return threshold < MIN_THRESHOLD or (precision is not None and precision < MIN_PRECISION)


def _choose(matched: Matched, precision: float, lowest: np.float32) -> tuple[np.float32, float, float] | None:
    """Threshold, precision and recall of one class; None if nothing right was found. No score is below `lowest`."""
    if not matched.correct.any():
        return None
    scores = matched.scores
    right = matched.correct.cumsum()  # (n,)
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # equal scores count together or not at all
    purity, recall = right[last] / (last + 1), right[last] / matched.n_objects
    if not precision:
        best = int((2 * right[last] / (last + 1 + matched.n_objects)).argmax())  # F1; in a tie the higher score
    elif (purity >= precision).any():
        best = int(np.flatnonzero(purity >= precision)[-1])
    else:
        best = int(np.flatnonzero(purity == purity.max())[-1])
    below = scores[last[best] + 1] if last[best] + 1 < len(scores) else lowest
    return _between(scores[last[best]], below), float(purity[best]), float(recall[best])


def _between(score: np.float32, below: np.float32) -> np.float32:
    """Halfway, and less than `score` in float32: a detection counts above the threshold, not at it."""
    middle = np.float32((np.float64(score) + np.float64(below)) / 2)
    return middle if middle < score else np.minimum(below, np.nextafter(score, np.float32(0)))
