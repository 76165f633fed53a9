"""Detections against labels, for people to look at: hits, misses and false alarms, and pictures of them. Light."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.matching import HIT_IOU, judge
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import Detections


@dataclass(frozen=True, eq=False)
class Judged:
    """Detections of one image beside its labels, both in original pixels; rows are those of `found`.

    Attributes:
        path: The image.
        labels: Its labels.
        found: Its detections, also those below their thresholds.
        iou: (n, m) of detections and labels, whatever their classes.
        label: (n,) int64, the label that a detection found at IoU 0.5, or -1.
        counts: (n,) bool, False for a detection that lies on an ignored label of its class.
    """

    path: Path
    labels: Labels
    found: Detections
    iou: np.ndarray
    label: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, path: Path, labels: Labels, found: Detections) -> "Judged":
        """The verdicts on the detections of an image."""
        verdicts = judge(labels, found)
        iou = box_iou(found.boxes_xyxy, labels.boxes_xyxy)
        return cls(path, labels, found, iou, verdicts.label[:, 0], verdicts.counts[:, 0])


@dataclass(frozen=True, eq=False)
class Example:
    """One hit, miss or false alarm: where it is, what to draw, and what to say.

    reference_xyxy: the labelled box, or None for a false alarm; in a verification, the original detection on the same
    box, or None. found_xyxy: the detection; of a miss the best one below the threshold, or None. others_xyxy: further
    labelled boxes of the image. All in original pixels. note: one line.
    """

    path: Path
    reference_xyxy: tuple[float, ...] | None
    found_xyxy: tuple[float, ...] | None
    others_xyxy: tuple[tuple[float, ...], ...]
    note: str


@dataclass(frozen=True, eq=False)
class ClassOutcome:
    """What became of one class, at its threshold.

    objects, hits, misses, false_alarms: counts. best_...: the surest hits, the largest misses, the surest false alarms.
    precisions, recalls: (n,) by falling score, over all detections, also those below the threshold.
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
        """Share of the detections that are right; None where there is none."""
        return self.hits / (self.hits + self.false_alarms) if self.hits + self.false_alarms else None

    @property
    def recall(self) -> float | None:
        """Share of the objects that are found; None where there is none."""
        return self.hits / self.objects if self.objects else None


def outcome(
    images: Sequence[Judged], class_id: int, names: Sequence[str], threshold: float, *, n_best: int
) -> ClassOutcome:
    """What became of one class over all images.

    Args:    names: of the classes. threshold: score above which a detection of this class counts. n_best: examples of
             each kind.
    """
    hits: list[tuple[float, Example]] = []
    misses: list[tuple[float, Example]] = []
    alarms: list[tuple[float, Example]] = []
    scores, right, objects = [], [], 0
    for image in images:
        of_class, wanted = image.found.class_ids == class_id, image.labels.classes == class_id
        if not of_class.any() and not wanted.any():
            continue
        of_class, wanted = of_class & image.counts, wanted & ~image.labels.ignore
        objects += int(wanted.sum())
        scores.append(image.found.scores[of_class])
        right.append(image.label[of_class] >= 0)
        for row in np.flatnonzero(of_class & (image.found.scores > threshold)):
            kind = hits if image.label[row] >= 0 else alarms
            kind.append((float(image.found.scores[row]), _detected(image, int(row), names)))
        for k in np.flatnonzero(wanted):
            rows = np.flatnonzero(image.label == k)
            if not (image.found.scores[rows] > threshold).any():
                size = float(np.prod(image.labels.boxes_xyxy[k, 2:] - image.labels.boxes_xyxy[k, :2]))
                misses.append((size, _missed(image, int(k), rows, names, threshold)))
    order = np.argsort(-np.concatenate([np.zeros(0), *scores]), kind="stable")
    true = np.concatenate([np.zeros(0, bool), *right])[order].cumsum()  # (n,)
    return ClassOutcome(
        objects=objects,
        hits=len(hits),
        misses=len(misses),
        false_alarms=len(alarms),
        best_hits=_best(hits, n_best),
        best_misses=_best(misses, n_best),
        best_false_alarms=_best(alarms, n_best),
        precisions=true / np.arange(1, len(true) + 1),
        recalls=true / max(1, objects),
    )


def _best(ranked: Sequence[tuple[float, Example]], n_best: int) -> tuple[Example, ...]:
    """The examples with the highest numbers; of equal ones the first."""
    return tuple(example for _, example in sorted(ranked, key=lambda pair: -pair[0])[:n_best])


def _detected(image: Judged, row: int, names: Sequence[str]) -> Example:
    """A hit or a false alarm."""
    score, box = image.found.scores[row], tuple(image.found.boxes_xyxy[row].tolist())
    k = int(image.label[row])
    note = f"score {score:.3f}, " + (f"IoU {image.iou[row, k]:.2f}" if k >= 0 else _reason(image, row, names))
    others = tuple(tuple(other.tolist()) for j, other in enumerate(image.labels.boxes_xyxy) if j != k)
    label = tuple(image.labels.boxes_xyxy[k].tolist()) if k >= 0 else None
    return Example(image.path, label, box, others, note)


def _reason(image: Judged, row: int, names: Sequence[str]) -> str:
    """What a false alarm lies on."""
    if not image.iou.shape[1] or image.iou[row].max() < 0.1:
        return "nothing labelled here"
    k = int(image.iou[row].argmax())
    iou, name = image.iou[row, k], names[image.labels.classes[k]]
    if image.labels.classes[k] != image.found.class_ids[row]:
        return f"on a {name}" if iou >= HIT_IOU else f"beside a {name} (IoU {iou:.2f})"
    return f"second box (IoU {iou:.2f})" if iou >= HIT_IOU else f"box is off (IoU {iou:.2f})"


def _missed(image: Judged, k: int, rows: np.ndarray, names: Sequence[str], threshold: float) -> Example:
    """An object that no detection above the threshold found."""
    note = "nothing found here"
    found = None
    if len(rows):
        note = f"score {image.found.scores[rows].max():.3f}, needs {threshold:.3f}"
        found = tuple(image.found.boxes_xyxy[rows[image.found.scores[rows].argmax()]].tolist())
    box = tuple(image.labels.boxes_xyxy[k].tolist())
    others = tuple(tuple(other.tolist()) for j, other in enumerate(image.labels.boxes_xyxy) if j != k)
    return Example(image.path, box, found, others, note)
