"""The verdict on each detection, by COCO's rule: what counts and pictures, thresholds and calibration are made from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.metrics import IOU_THRESHOLDS
from prompt_tune.runtime.boxes import box_iou, match
from prompt_tune.runtime.detections import Detections

HIT_IOU = IOU_THRESHOLDS[0]  # AP50's: the overlap from which on a detection has found an object


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Detections of one image held against its labels; row for row with the detections.

    Attributes:
        label: (n, 10) int64, the label that a detection found at each of `IOU_THRESHOLDS`, or -1.
        counts: (n, 10) bool. False for a detection that found no object but lies on an ignored label of its class: it
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
        """Precision and recall of the detections with a score above `threshold`; nan where they are not defined."""
        kept = self.correct[self.scores > np.float32(threshold)]
        right = float(kept.sum())
        return right / len(kept) if len(kept) else np.nan, right / self.n_objects if self.n_objects else np.nan


def judge(labels: Labels, found: Detections) -> Verdicts:
    """Which detections of one image are right: by falling score, each takes the free object it overlaps most.

    Args:
        labels: In the same frame as the detections. Only labels of a detection's own class count for it.
        found: The detections of the image.

    Source: COCO (arXiv 1405.0312). An ignored region may be found by any number of detections; with it, the share of
        the detection that lies inside takes the place of the IoU.
    """
    same = found.class_ids[:, None] == labels.classes  # (n, m)
    overlap = np.where(same, box_iou(found.boxes_xyxy, labels.boxes_xyxy, labels.ignore), -1.0)
    objects = np.flatnonzero(~labels.ignore)
    label = match(overlap[:, objects], found.scores, IOU_THRESHOLDS)  # (n, 10)
    label = np.where(label < 0, -1, np.append(objects, -1)[label])
    ignored = overlap[:, labels.ignore].max(axis=1, initial=-1)[:, None] >= IOU_THRESHOLDS  # (n, 10)
    return Verdicts(label, (label >= 0) | ~ignored)


def match_classes(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> list[Matched]:
    """The verdict on every detection at IoU 0.5, class by class; the arguments are those of `coco_evaluation`."""
    verdicts = [judge(*pair) for pair in zip(labels, found, strict=True)]
    correct = np.concatenate([np.zeros(0, bool), *(part.label[:, 0] >= 0 for part in verdicts)])  # (n,)
    counts = np.concatenate([np.zeros(0, bool), *(part.counts[:, 0] for part in verdicts)])  # (n,)
    scores = np.concatenate([np.zeros(0, np.float32), *(part.scores for part in found)])  # (n,)
    classes = np.concatenate([np.zeros(0, np.int64), *(part.class_ids for part in found)])  # (n,)
    objects = np.concatenate([np.zeros(0, np.int64), *(part.classes[~part.ignore] for part in labels)])  # (m,)
    matched = []
    for k in range(n_cls):
        rows = np.flatnonzero((classes == k) & counts)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        matched.append(Matched(scores[rows], correct[rows], int((objects == k).sum())))
    return matched
