"""Detections held against labels, for people to look at: hits, misses and false alarms of each class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.matching import HIT_IOU, judge
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import Detections

NEAR_IOU = 0.1  # a false alarm that overlaps every label by less is reported as lying on nothing


@dataclass(frozen=True, eq=False)
class Judged:
    """Detections and labels of one image, both in original pixels.

    Attributes:
        path: The image.
        labels: Its m labels.
        found: Its n detections, including those below their thresholds.
        label: (n,) int64, the label that a detection found at IoU 0.5, or -1.
        counts: (n,) bool, False for a detection that lies on an ignored label of its class.
    """

    path: Path
    labels: Labels
    found: Detections
    label: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, path: Path, labels: Labels, found: Detections) -> "Judged":
        """Match the detections of one image with its labels."""
        verdicts = judge(labels, found)
        return cls(path, labels, found, verdicts.label, verdicts.counts)


@dataclass(frozen=True, eq=False)
class Example:
    """One hit, miss or false alarm: where it is, what to draw and what to say. Boxes are in original pixels.

    Attributes:
        path: The image.
        reference_xyxy: The labelled box, or None for a false alarm. In a verification: the original detection on the
            same box, or None.
        found_xyxy: The detection. For a miss: the detection below the threshold that would have found the object, or
            None.
        others_xyxy: The other labelled boxes of the image.
        note: One line of text.
        before_xyxy: The detection with the detector's own box, if that is to be shown beside a moved one.
    """

    path: Path
    reference_xyxy: tuple[float, ...] | None
    found_xyxy: tuple[float, ...] | None
    others_xyxy: tuple[tuple[float, ...], ...]
    note: str
    before_xyxy: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class ClassOutcome:
    """The detections and objects of one class, counted at its threshold.

    Attributes:
        objects: The number of labelled objects.
        hits: The number of objects found.
        misses: The number of objects not found.
        false_alarms: The number of detections that found no object.
        best_hits: The hits with the highest scores.
        best_misses: The largest objects that were missed.
        best_false_alarms: The false alarms with the highest scores.
        precisions: (n,) by falling score, over all detections, including those below the threshold.
        recalls: (n,) likewise.
    """

    objects: int
    hits: int
    misses: int
    false_alarms: int
    best_hits: tuple[Example, ...]
    best_misses: tuple[Example, ...]
    best_false_alarms: tuple[Example, ...]
    precisions: np.ndarray
    recalls: np.ndarray

    @property
    def precision(self) -> float | None:
        """Share of the detections that are right; None without detections."""
        return self.hits / (self.hits + self.false_alarms) if self.hits + self.false_alarms else None

    @property
    def recall(self) -> float | None:
        """Share of the objects that are found; None without objects."""
        return self.hits / self.objects if self.objects else None


def outcomes(
    images: Sequence[Judged], names: Sequence[str], thresholds: Sequence[float] | np.ndarray, *, n_best: int
) -> list[ClassOutcome]:
    """Count hits, misses and false alarms of every class, in one pass over the images.

    Args:
        images: The images. Class ids of detections and labels are places in `names`.
        names: The classes.
        thresholds: (n_cls,) float32 in 0..1, the score above which a detection of each class counts.
        n_best: How many examples of each kind to keep for each class. Ties go to the earlier image.

    Returns:
        One outcome for each class, in the order of `names`.
    """
    limits = np.asarray(thresholds, np.float32)
    found = [np.flatnonzero(image.counts) for image in images]
    objects = [np.flatnonzero(~image.labels.ignore) for image in images]
    scores = _joined((image.found.scores[rows] for image, rows in zip(images, found, strict=True)), np.float32)
    right = _joined((image.label[rows] >= 0 for image, rows in zip(images, found, strict=True)), bool)
    sizes = _joined((_areas(image.labels.boxes_xyxy[rows]) for image, rows in zip(images, objects, strict=True)), float)
    missed = _joined((_missed(image, limits)[rows] for image, rows in zip(images, objects, strict=True)), bool)
    found_of = _by_class([image.found.class_ids for image in images], found, scores, len(names))
    objects_of = _by_class([image.labels.classes for image in images], objects, sizes, len(names))
    found_at, object_at = _places(found), _places(objects)

    result = []
    for threshold, detected, labelled in zip(limits, found_of, objects_of, strict=True):
        above = detected[scores[detected] > threshold]
        hits, alarms = above[right[above]], above[~right[above]]
        misses = labelled[missed[labelled]]
        true = right[detected].cumsum()  # (n,)
        result.append(
            ClassOutcome(
                objects=len(labelled),
                hits=len(hits),
                misses=len(misses),
                false_alarms=len(alarms),
                best_hits=tuple(_detection(images[i], row, names) for i, row in found_at[hits[:n_best]]),
                best_misses=tuple(_miss(images[i], row, threshold) for i, row in object_at[misses[:n_best]]),
                best_false_alarms=tuple(_detection(images[i], row, names) for i, row in found_at[alarms[:n_best]]),
                precisions=true / np.arange(1, len(true) + 1),
                recalls=true / max(1, len(labelled)),
            )
        )
    return result


def _joined(parts: Iterable[np.ndarray], dtype: type) -> np.ndarray:
    """The parts of all images in one array."""
    return np.concatenate([np.zeros(0, dtype), *parts])


def _places(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(n, 2) int64: image and row of each entry."""
    image = np.repeat(np.arange(len(rows)), [len(part) for part in rows])  # (n,)
    return np.stack((image, _joined(rows, np.int64)), axis=1)


def _by_class(
    classes: Sequence[np.ndarray], rows: Sequence[np.ndarray], rank: np.ndarray, n_cls: int
) -> list[np.ndarray]:
    """For each class, its entries by falling rank; ties stay in the order of the images."""
    of = _joined((ids[part] for ids, part in zip(classes, rows, strict=True)), np.int64)  # (n,)
    order = np.lexsort((-rank, of))  # stable
    return np.split(order, np.searchsorted(of[order], np.arange(1, n_cls)))


def _areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(n,): width times height."""
    areas: np.ndarray = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    return areas


def _missed(image: Judged, limits: np.ndarray) -> np.ndarray:
    """(m,) bool: the labels that no detection above its threshold found."""
    hits = (image.label >= 0) & (image.found.scores > limits[image.found.class_ids])
    missed = np.ones(len(image.labels.classes), bool)
    missed[image.label[hits]] = False
    return missed


def _detection(image: Judged, row: int, names: Sequence[str]) -> Example:
    """A hit or a false alarm."""
    box_xyxy, k = image.found.boxes_xyxy[row], int(image.label[row])
    iou = box_iou(box_xyxy[None], image.labels.boxes_xyxy)[0]  # (m,)
    reason = f"IoU {iou[k]:.2f}" if k >= 0 else _reason(image, row, iou, names)
    label = tuple(image.labels.boxes_xyxy[k].tolist()) if k >= 0 else None
    note = f"score {image.found.scores[row]:.3f}, {reason}"
    return Example(image.path, label, tuple(box_xyxy.tolist()), _others(image, k), note)


def _reason(image: Judged, row: int, iou: np.ndarray, names: Sequence[str]) -> str:
    """What a false alarm lies on."""
    if iou.max(initial=0) < NEAR_IOU:
        return "nothing labelled here"
    k = int(iou.argmax())
    name = names[image.labels.classes[k]]
    if image.labels.classes[k] != image.found.class_ids[row]:
        return f"on a {name}" if iou[k] >= HIT_IOU else f"beside a {name} (IoU {iou[k]:.2f})"
    return f"second box (IoU {iou[k]:.2f})" if iou[k] >= HIT_IOU else f"box is off (IoU {iou[k]:.2f})"


def _miss(image: Judged, k: int, threshold: float) -> Example:
    """An object that no detection above the threshold found."""
    note, found = "nothing found here", None
    for row in np.flatnonzero(image.label == k):  # one at most
        note = f"score {image.found.scores[row]:.3f}, needs {threshold:.3f}"
        found = tuple(image.found.boxes_xyxy[row].tolist())
    return Example(image.path, tuple(image.labels.boxes_xyxy[k].tolist()), found, _others(image, k), note)


def _others(image: Judged, k: int) -> tuple[tuple[float, ...], ...]:
    """All labelled boxes but label `k`."""
    return tuple(tuple(box.tolist()) for j, box in enumerate(image.labels.boxes_xyxy) if j != k)
