"""Which detections found a labelled object, by COCO's rule. Every number, curve and picture of a result starts here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.runtime.boxes import box_iou, match
from prompt_tune.runtime.detections import Detections

HIT_IOU = 0.5  # the overlap at which a detection has found an object; AP50's


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What the n detections of one image are at IoU 0.5.

    Attributes:
        label: (n,) int64, the label that a detection found, or -1.
        counts: (n,) bool. False for a detection that found no object but lies on an ignored label of its class: it
            is neither right nor wrong.
    """

    label: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Matched:
    """Detections of one class in all images, by falling score.

    Attributes:
        scores: (n,) float32.
        correct: (n,) bool, whether each is right at IoU 0.5. Detections that only overlap an ignored box are left out.
        n_objects: The number of labelled objects.
    """

    scores: np.ndarray
    correct: np.ndarray
    n_objects: int

    def above(self, threshold: float) -> tuple[float, float]:
        """Precision and recall of the detections with a score above `threshold`; nan where undefined."""
        kept = self.correct[self.scores > np.float32(threshold)]
        right = float(kept.sum())
        return right / len(kept) if len(kept) else np.nan, right / self.n_objects if self.n_objects else np.nan


def judge(labels: Labels, found: Detections) -> Verdicts:
    """Decide for each detection of one image whether it is right, wrong or ignored, at IoU 0.5.

    By falling score, each detection takes the free label of its class that it overlaps most. Any number of detections
    can lie on an ignored label; with it, the share of the detection that lies inside takes the place of the IoU.

    Args:
        labels: The labels of the image.
        found: Its detections, in the same frame.

    Source: COCO (arXiv 1405.0312).
    """
    same = found.class_ids[:, None] == labels.classes  # (n, m)
    overlap = np.where(same, box_iou(found.boxes_xyxy, labels.boxes_xyxy, labels.ignore), -1.0)
    objects = np.flatnonzero(~labels.ignore)
    place = match(overlap[:, objects], found.scores, np.array([HIT_IOU]))[:, 0]  # (n,), in `objects`
    label = np.where(place < 0, -1, np.append(objects, -1)[place])
    ignored = (label < 0) & (overlap[:, labels.ignore].max(axis=1, initial=-1) >= HIT_IOU)
    return Verdicts(label, ~ignored)


def match_classes(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> list[Matched]:
    """Match the detections of all images with their labels at IoU 0.5.

    Args:
        labels: The labels of each image.
        found: The detections of each image, in the same order and frame.
        n_cls: The number of classes; class ids are 0 .. n_cls - 1.

    Returns:
        The detections of each class.
    """
    verdicts = [judge(*pair) for pair in zip(labels, found, strict=True)]
    correct = np.concatenate([np.zeros(0, bool), *(part.label >= 0 for part in verdicts)])  # (n,)
    counts = np.concatenate([np.zeros(0, bool), *(part.counts for part in verdicts)])  # (n,)
    scores = np.concatenate([np.zeros(0, np.float32), *(part.scores for part in found)])  # (n,)
    classes = np.concatenate([np.zeros(0, np.int64), *(part.class_ids for part in found)])  # (n,)
    objects = np.concatenate([np.zeros(0, np.int64), *(part.classes[~part.ignore] for part in labels)])  # (m,)
    n_objects = np.bincount(objects, minlength=n_cls)
    rows = np.flatnonzero(counts)
    rows = rows[np.lexsort((-scores[rows], classes[rows]))]  # stable
    parts = np.split(rows, np.searchsorted(classes[rows], np.arange(1, n_cls)))
    return [Matched(scores[part], correct[part], int(n)) for part, n in zip(parts, n_objects, strict=True)]


def f1_scores(matched: Matched, least: np.ndarray) -> np.ndarray:
    """F1 at IoU 0.5 of the detections of one class.

    Args:
        matched: The detections.
        least: (k,) scores; detections above count.

    Returns:
        (k,) in 0..1; 0 where no detection is right.
    """
    counted = np.searchsorted(-matched.scores, -np.asarray(least, np.float32))  # (k,): those above come first
    right = np.append(0, matched.correct.cumsum())[counted]
    scores: np.ndarray = 2 * right / np.maximum(counted + matched.n_objects, 1)
    return scores
