"""The score above which a detection of a class counts, chosen on validation data: learned scores are comparable neither
with original ones nor between classes, so one number does not serve all.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_tune.contract import DEFAULT_THRESHOLD, NMS_IOU
from prompt_tune.contract import METRIC_CONF as METRIC_CONF
from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.matching import Matched
from prompt_tune.evaluation.metrics import average_precision
from prompt_tune.runtime.detections import Detections

NMS_IOUS = (NMS_IOU, 0.6, 0.5)  # among which a learned vocabulary's limit of overlap is chosen


MIN_PRECISION = 0.5  # a class is hardly learned where, at its threshold, more detections are wrong than right ...
MIN_THRESHOLD = 0.05  # ... or where this little has to count: other images have such scores anywhere
logger = logging.getLogger(__name__)


def choose_nms_iou(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> float:
    """The limit of overlap, one of `NMS_IOUS`, that gives detections the highest AP50; of equal ones the loosest.

    At the IoU that thresholds are chosen at, a second box on an object is wrong. AP hardly tells: at a stricter IoU,
    one of the two may be right where the better-scored one is not.

    Args: as of `average_precision`; the detections are those that the detector's own suppression leaves.
    """
    limits = [np.full(n_cls, iou, np.float32) for iou in NMS_IOUS]
    ap50 = [average_precision(labels, [part.distinct(limit) for part in found], n_cls).ap50 for limit in limits]
    return NMS_IOUS[int(np.argmax(ap50))]  # the first where no class has an object


@dataclass(frozen=True, eq=False)
class Thresholds:
    """A threshold for each class, and what the validation images let expect there.

    values: (n_cls,) float32 in 0..1. precision, recall: (n_cls,) in 0..1, at IoU 0.5; nan where the class keeps the
    default. rule: in words.
    """

    values: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    rule: str

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """For the provenance of a vocabulary with these classes: the rule, and the classes that it could be used on."""
        expected = {
            name: {"precision": round(float(precision), 4), "recall": round(float(recall), 4)}
            for name, precision, recall in zip(names, self.precision, self.recall, strict=True)
            if not np.isnan(precision)
        }
        return {"rule": self.rule, "expected": expected}


def choose_thresholds(
    names: Sequence[str], matched: Sequence[Matched], *, precision: float = 0.0, known: Collection[str] = ()
) -> Thresholds:
    """The threshold of each class.

    Args:    names, matched: of the classes; the detections of the validation images, calibrated where the vocabulary
                 will be. precision: 0 takes the best F1 at IoU 0.5; above 0, the lowest score at which the precision
                 of all that is above it is at least this. Where it is nowhere, the highest precision counts.
             known: classes that get a threshold from elsewhere if none can be chosen, and are not named in the log.
    Returns: thresholds halfway between the lowest score that is to count and the next one below, so that neither
             float16 in the cache nor another engine moves a detection across. A class without an object or without a
             right detection keeps 0.25, and one log line names it. Another names those that are hardly learned and will
             fire often.
    """
    rows = [_choose(part, precision) for part in matched]
    unset = [name for name, row in zip(names, rows, strict=True) if row is None and name not in known]
    if unset:
        logger.warning(
            "The threshold stays at %g for %d classes that were never found in the validation images: %s",
            DEFAULT_THRESHOLD,
            len(unset),
            ", ".join(unset),
        )
    values, reached, recall = np.array([row or (DEFAULT_THRESHOLD, np.nan, np.nan) for row in rows]).T  # (n_cls,) each
    short = [name for name, got in zip(names, reached, strict=True) if got < precision]
    if short:
        logger.warning("Precision %g is out of reach, so the highest counts: %s", precision, ", ".join(short))
    weak = [
        f"{name} (threshold {value:.3f}, precision {got:.2f}, recall {found:.2f})"
        for name, value, got, found in zip(names, values, reached, recall, strict=True)
        if hardly_learned(value, got)
    ]
    if weak:
        logger.warning(
            "Hardly learned, so expect many false alarms: %s. A threshold should be %g or more, and most detections "
            "above it right. Give these classes more images or other names, or fit with `--precision 0.9`.",
            ", ".join(weak),
            MIN_THRESHOLD,
        )
    rule = f"lowest score with precision {precision:g} at IoU 0.5" if precision else "best F1 at IoU 0.5"
    return Thresholds(values.astype(np.float32), reached, recall, rule)


def hardly_learned(threshold: float, precision: float | None) -> bool:
    """Whether a class will give many false alarms at this threshold, of this precision in the validation images."""
    return threshold < MIN_THRESHOLD or (precision is not None and precision < MIN_PRECISION)


def _choose(matched: Matched, precision: float) -> tuple[np.float32, float, float] | None:
    """Threshold, precision and recall of one class; None where nothing right was found."""
    if not matched.correct.any():
        return None
    scores = matched.scores
    right = matched.correct.cumsum()  # (n,)
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # equal scores count together or not at all
    purity, recall = right[last] / (last + 1), right[last] / matched.n_objects
    if not precision:
        best = int((2 * right[last] / (last + 1 + matched.n_objects)).argmax())  # F1; the higher score of equal ones
    elif (purity >= precision).any():
        best = int(np.flatnonzero(purity >= precision)[-1])
    else:
        best = int(np.flatnonzero(purity == purity.max())[-1])
    below = scores[last[best] + 1] if last[best] + 1 < len(scores) else np.float32(METRIC_CONF)
    return _between(scores[last[best]], below), float(purity[best]), float(recall[best])


def _between(score: np.float32, below: np.float32) -> np.float32:
    """Halfway, and in float32 never up to the score itself: a detection counts above the threshold, not at it."""
    middle = np.float32((np.float64(score) + np.float64(below)) / 2)
    return middle if middle < score else below
