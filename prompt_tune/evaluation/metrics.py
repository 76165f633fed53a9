"""COCO's average precision and recall (arXiv 1405.0312), computed on arrays.

The numbers equal those of the `faster-coco-eval` package bit for bit. That package takes ten times the memory, because
it makes a Python object of every detection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.matching import match_labels
from prompt_tune.runtime.detections import Detections

RECALLS = np.linspace(0, 1, 101)  # COCO's: where the precision is read
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
CAPS = (1, 10, 100)  # COCO's: how many detections count per class and image; precision is read at the last
AREAS = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])  # COCO's: all, small, medium, large; pixels
_WRONG, _RIGHT, _IGNORED = 0, 1, 2


@dataclass(frozen=True)
class Metrics:
    """COCO's numbers, in 0..1. Means over classes; nan where no object has the size.

    Attributes:
        ap: Average precision, mean over IoU 0.50 to 0.95.
        ap50: Average precision at IoU 0.50.
        ap75: Average precision at IoU 0.75.
        ap_small: `ap` of objects up to 32 x 32 pixels, in the labels' frame.
        ap_medium: `ap` of objects up to 96 x 96 pixels.
        ap_large: `ap` of larger objects.
        ar_1: Recall with one detection per class and image, mean over IoU 0.50 to 0.95.
        ar_10: Recall with 10 detections.
        ar_100: Recall with 100 detections.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """COCO's tables; nan where a class has no object of a size. Sizes are all, small, medium and large.

    Attributes:
        precision: (10 IoU, 101 recalls, n_cls, 4 sizes) float64.
        recall: (10 IoU, n_cls, 4 sizes, 3 caps) float64.
    """

    precision: np.ndarray
    recall: np.ndarray

    @property
    def curves(self) -> np.ndarray:
        """(n_cls, 101): precision at IoU 0.5 at each of `RECALLS`."""
        return self.precision[0, :, :, 0].T

    def metrics(self, classes: Sequence[int]) -> Metrics:
        """Means over the classes given by number; all nan where none of them has an object."""
        precision, recall = self.precision[:, :, list(classes)], self.recall[:, list(classes)]
        sizes = [_mean(precision[..., size]) for size in range(len(AREAS))]
        caps = [_mean(recall[:, :, 0, cap]) for cap in range(len(CAPS))]
        return Metrics(sizes[0], _mean(precision[0, ..., 0]), _mean(precision[5, ..., 0]), *sizes[1:], *caps)


def coco_evaluation(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> Evaluation:
    """Compare detections with labels.

    Args:
        labels: The labels of each image, in original pixels if sizes matter.
        found: The detections of each image, in the same order and frame.
        n_cls: The number of classes; class ids are 0 .. n_cls - 1.

    Source: COCO (arXiv 1405.0312), with its own caps of 1, 10 and 100 detections per class and image.
    """
    images = [_Judged.of(*pair) for pair in zip(labels, found, strict=True)]
    scores = _joined([image.scores for image in images], np.zeros(0, np.float32))
    classes = _joined([image.classes for image in images], np.zeros(0, np.int64))
    ranks = _joined([image.ranks for image in images], np.zeros(0, np.int64))
    verdicts = _joined([image.verdicts for image in images], np.zeros((0, len(AREAS), len(IOU_THRESHOLDS)), np.int8))
    label_classes = _joined([image.label_classes for image in images], np.zeros(0, np.int64))
    wanted = _joined([image.wanted for image in images], np.zeros((0, len(AREAS)), bool))
    n_objects = np.stack([np.bincount(label_classes[part], minlength=n_cls) for part in wanted.T], axis=1)  # (n_cls, 4)
    del images  # the verdicts of all images stand in `verdicts`
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), n_cls, len(AREAS)), np.nan)
    recall = np.full((len(IOU_THRESHOLDS), n_cls, len(AREAS), len(CAPS)), np.nan)
    order = np.lexsort((-scores, classes))  # stable
    for k, rows in enumerate(np.split(order, np.searchsorted(classes[order], np.arange(1, n_cls)))):
        for size in np.flatnonzero(n_objects[k]):
            for level in range(len(IOU_THRESHOLDS)):
                column, n = verdicts[rows, size, level], n_objects[k, size]
                precision[level, :, k, size] = _interpolated(column, n)
                recall[level, k, size] = [(column[ranks[rows] < cap] == _RIGHT).sum() / n for cap in CAPS]
    return Evaluation(precision, recall)


def average_precision(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> Metrics:
    """COCO's numbers, means over the classes that have an object. The arguments are those of `coco_evaluation`."""
    return coco_evaluation(labels, found, n_cls).metrics(range(n_cls))


@dataclass(frozen=True, eq=False)
class _Judged:
    """The verdicts on the n detections of one image, and its m labels.

    Attributes:
        scores: (n,) float32.
        classes: (n,) int64.
        ranks: (n,) int64, the place of each detection among those of its class, from 0 by falling score.
        verdicts: (n, 4 sizes, 10 IoU) int8: wrong, right or ignored.
        label_classes: (m,) int64.
        wanted: (m, 4 sizes) bool, whether each label is an object that should be found.
    """

    scores: np.ndarray
    classes: np.ndarray
    ranks: np.ndarray
    verdicts: np.ndarray
    label_classes: np.ndarray
    wanted: np.ndarray

    @classmethod
    def of(cls, labels: Labels, found: Detections) -> "_Judged":
        """Match the 100 best detections of each class with the labels."""
        ranks = _ranks(found)
        kept = ranks < CAPS[-1]
        found = found.select(kept)
        wanted = _in_range(labels.boxes_xyxy) & ~labels.ignore[:, None]  # (m, 4)
        label = match_labels(labels, found, ~wanted.T, IOU_THRESHOLDS)  # (n, 4, 10)
        right = np.append(wanted, np.zeros((1, len(AREAS)), bool), axis=0)[label, np.arange(len(AREAS))[:, None]]
        wrong = (label < 0) & _in_range(found.boxes_xyxy)[:, :, None]
        verdicts = np.where(right, _RIGHT, np.where(wrong, _WRONG, _IGNORED)).astype(np.int8)
        return cls(found.scores, found.class_ids, ranks[kept], verdicts, labels.classes, wanted)


def _joined(parts: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """The parts of all images in one array."""
    return np.concatenate([empty, *parts])


def _ranks(found: Detections) -> np.ndarray:
    """(n,) int64: the place of each detection among those of its class, from 0 by falling score."""
    order = np.lexsort((-found.scores, found.class_ids))  # stable
    classes = found.class_ids[order]
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.searchsorted(classes, classes)
    return ranks


def _in_range(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(n, 4) bool: whether the area of each box is within each of `AREAS`."""
    sides = boxes_xyxy[:, 2:].astype(np.float64) - boxes_xyxy[:, :2]
    area = sides.prod(axis=1)[:, None]  # (n, 1)
    inside: np.ndarray = (area >= AREAS[:, 0]) & (area <= AREAS[:, 1])
    return inside


def _interpolated(verdicts: np.ndarray, n_objects: int) -> np.ndarray:
    """(101,): the highest precision at each of `RECALLS` or beyond; 0 where the recall is not reached.

    Args:
        verdicts: (n,) int8, by falling score.
        n_objects: At least 1.
    """
    right = np.flatnonzero(verdicts == _RIGHT)
    hits = np.arange(1, len(right) + 1)
    precision = hits / (verdicts != _IGNORED).cumsum()[right]
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return highest[np.searchsorted(hits / n_objects, RECALLS)]


def _mean(table: np.ndarray) -> float:
    """The mean of the numbers that are not nan; nan if there are none."""
    known = table[~np.isnan(table)]
    return float(known.mean()) if known.size else np.nan
