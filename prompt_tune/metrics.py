"""The verdict on each detection, which thresholds and calibration are chosen by, and precision-recall curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tune.coco import IOU_THRESHOLDS, RECALLS, Found, Truth
from prompt_tune.files import replacing

MAX_LINES = 20  # classes that a picture of curves tells apart


@dataclass(frozen=True, eq=False)
class Matched:
    """Detections of one class in all images, by falling score, and whether each is right at IoU 0.5.

    scores: (n,) float32. correct: (n,) bool; what only overlaps an ignored box is left out. n_objects: labels.
    """

    scores: np.ndarray
    correct: np.ndarray
    n_objects: int

    def above(self, threshold: float) -> tuple[float, float]:
        """Precision and recall of the detections with a score above `threshold`; nan of nothing."""
        kept = self.correct[self.scores > np.float32(threshold)]
        right = float(kept.sum())
        return right / len(kept) if len(kept) else np.nan, right / self.n_objects if self.n_objects else np.nan


def match_classes(truths: Sequence[Truth], founds: Sequence[Found], n_cls: int) -> list[Matched]:
    """The verdict on every detection at IoU 0.5, class by class.

    Args: as of `coco_evaluation`.
    """
    outcomes = np.concatenate([np.zeros(0, np.int8), *(match(t, f)[:, 0] for t, f in zip(truths, founds, strict=True))])
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for found in founds)])  # (n,)
    classes = np.concatenate([np.zeros(0, np.int64), *(found.classes for found in founds)])  # (n,)
    objects = np.concatenate([np.zeros(0, np.int64), *(truth.classes[~truth.ignore] for truth in truths)])  # (m,)
    matched = []
    for k in range(n_cls):
        rows = np.flatnonzero((classes == k) & (outcomes >= 0))
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        matched.append(Matched(scores[rows], outcomes[rows] == 1, int((objects == k).sum())))
    return matched


def draw_curves(path: Path, curves: np.ndarray, names: Sequence[str]) -> None:
    """Precision by recall at IoU 0.5 as a picture: a line for each class, and their mean.

    Args: path: a .png file. curves: (n_cls, 101), as `Evaluation` has them. names: of the classes.
    """
    from matplotlib.figure import Figure  # the object interface: no display, no global state

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    told_apart = len(names) <= MAX_LINES
    for name, curve in zip(names, curves, strict=True):
        style: dict[str, Any] = {"label": name} if told_apart else {"color": "grey", "alpha": 0.4}
        axes.plot(RECALLS, curve, linewidth=1, **style)
    mean = curves.mean(0)
    axes.plot(RECALLS, mean, color="black", linewidth=2.5, label=f"mean of {len(names)}, AP50 {mean.mean():.3f}")
    axes.set(title="precision and recall at IoU 0.5", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def match(truth: Truth, found: Found) -> np.ndarray:
    """Whether the detections of one image are right: by falling score, each takes the free object it overlaps most.

    Args:    truth, found: of one image, in the same frame; only an object of a detection's own class counts for it.
    Returns: (n, 10) int8 at each of `IOU_THRESHOLDS`: 1 true positive, 0 false, -1 neither: it finds no object, but
             overlaps an ignored box of its class.
    """
    outcome = np.zeros((len(found.scores), len(IOU_THRESHOLDS)), np.int8)
    overlap = _overlaps(truth, found)  # (n, m)
    if not overlap.size:
        return outcome
    objects = overlap[:, ~truth.ignore][:, ::-1]  # of equal overlaps COCO takes the last object, argmax the first
    ignored = overlap[:, truth.ignore].max(1, initial=-1)  # (n,)
    outcome[ignored[:, None] >= IOU_THRESHOLDS] = -1
    free = np.ones((len(IOU_THRESHOLDS), objects.shape[1]), bool)
    level = np.arange(len(IOU_THRESHOLDS))
    near = np.flatnonzero(objects.max(1, initial=-1) >= IOU_THRESHOLDS[0])  # the others take no object
    for row in near[np.argsort(-found.scores[near], kind="stable")]:
        candidates = np.where(free, objects[row], -1)  # (10, m)
        best = candidates.argmax(1)  # (10,)
        hit = candidates[level, best] >= IOU_THRESHOLDS
        free[level[hit], best[hit]] = False
        outcome[row, hit] = 1
    return outcome


def _overlaps(truth: Truth, found: Found) -> np.ndarray:
    """(n, m) float64: IoU of detections and labels, -1 between classes; with an ignored box, the share of the detection
    that lies in it."""
    one, other = found.boxes_xyxy.astype(np.float64)[:, None], truth.boxes_xyxy.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])  # (n, m, 2)
    shared = sides.clip(0).prod(2)
    area, label_area = ((boxes[..., 2:] - boxes[..., :2]).prod(2) for boxes in (one, other))  # (n, 1), (1, m)
    whole = np.where(truth.ignore, area, area + label_area - shared)
    ratio = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return np.where(found.classes[:, None] == truth.classes, ratio, -1.0)
