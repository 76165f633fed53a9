"""The convention by which the boxes of a class are labelled: how far its labels lie from the frozen detector's boxes.

People label looser or tighter than the detector learned to, with the tail or without. Nothing is trained: for each edge
it is the median distance, in shares of the box, shrunk towards zero if there are few objects, and it is kept only if it
brings boxes nearer to the labels of images that it was not computed from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.matching import judge
from prompt_tune.runtime.boxes import cut
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.offsets import moved
from prompt_tune.vocabulary.checks import MAX_OFFSET

PRIOR = 5  # objects that speak for no offset: the median of n objects counts n / (n + 5)
MIN_IMAGES = 3  # that show a class: with fewer, what is left without one of them says too little
MOST_PARTS = 50  # images are left out one by one, or in so many parts
SAID = 0.01  # offsets below this share are not worth a word


@dataclass(frozen=True, eq=False)
class BoxOffsets:
    """The offsets of each class, and what is known of them.

    Attributes:
        values: (n_cls, 4) float32, see `runtime.offsets`; zeros where boxes stay as they are.
        elsewhere: For each image, such values from the other images: (n_images, n_cls, 4) float32.
        objects: (n_cls,) int64, the labelled objects that were found.
        iou_before: (n_cls,) the mean IoU of these objects with the boxes as they are; nan without objects.
        iou_after: (n_cls,) the same with the boxes moved by `elsewhere`.
    """

    values: np.ndarray
    elsewhere: np.ndarray
    objects: np.ndarray
    iou_before: np.ndarray
    iou_after: np.ndarray

    def to_record(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """What is known of each class that was found: for a vocabulary's provenance."""
        rows = zip(names, self.objects.tolist(), self.iou_before, self.iou_after, strict=True)
        return {
            name: {"objects": n, "iou_before": round(float(before), 4), "iou_after": round(float(after), 4)}
            for name, n, before, after in rows
            if n
        }


def fit_box_offsets(
    labels: Sequence[Labels], found: Sequence[Detections], frames_xyxy: Sequence[np.ndarray], n_cls: int
) -> BoxOffsets:
    """Fit the offsets of each class.

    Args:
        labels: The labels of each image.
        found: The detections of each image, after suppression, not cut at the edges of the photo.
        frames_xyxy: (4,) each, where the photo lies in the frame of the boxes.
        n_cls: The number of classes; class ids are 0 .. n_cls - 1.
    """
    pairs = [_pairs(*image) for image in zip(labels, found, frames_xyxy, strict=True)]
    image = np.repeat(np.arange(len(pairs)), [len(part[0]) for part in pairs])  # (n,), of each object found
    classes, boxes, objects, frames = (
        np.concatenate([empty, *(part[k] for part in pairs)])
        for k, empty in enumerate((np.zeros(0, np.int64), *(np.zeros((0, 4), np.float32) for _ in range(3))))
    )
    values, elsewhere = np.zeros((n_cls, 4), np.float32), np.zeros((len(pairs), n_cls, 4), np.float32)
    before, after = np.full(n_cls, np.nan), np.full(n_cls, np.nan)
    for k in range(n_cls):
        rows = np.flatnonzero(classes == k)
        if not len(rows):
            continue
        shares = _shares(boxes[rows], objects[rows])  # (n, 4)
        shown = np.unique(image[rows])
        for part in np.array_split(shown, min(len(shown), MOST_PARTS)):
            elsewhere[part, k] = _shrunk(shares[~np.isin(image[rows], part)])
        before[k] = _iou(boxes[rows], objects[rows], frames[rows]).mean()
        after[k] = _iou(moved(boxes[rows], elsewhere[image[rows], k]), objects[rows], frames[rows]).mean()
        if len(shown) >= MIN_IMAGES and after[k] > before[k]:
            values[k] = _shrunk(shares)
            elsewhere[np.setdiff1d(np.arange(len(pairs)), shown), k] = values[k]
        else:
            elsewhere[:, k] = 0
    return BoxOffsets(values, elsewhere, np.bincount(classes, minlength=n_cls), before, after)


def in_words(offsets: np.ndarray) -> str:
    """What the offsets of a class, (4,), say about its labels: "labels are 5 % wider on the left than ..."."""
    outwards = np.asarray(offsets, np.float64) * (-1, -1, 1, 1)
    parts = [
        f"{abs(share):.0%} {kind[int(share < 0)]} {place}".replace("%", " %")
        for share, kind, place in zip(
            outwards[[0, 2, 1, 3]],
            [("wider", "narrower")] * 2 + [("taller", "shorter")] * 2,
            ("on the left", "on the right", "at the top", "at the bottom"),
            strict=True,
        )
        if round(abs(share), 2) >= SAID
    ]
    if not parts:
        return "labels lie where the detector's boxes do"
    text = " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"labels are {text} than the detector's boxes"


def _pairs(
    labels: Labels, found: Detections, frame_xyxy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Class, box as found, labelled box and frame of each object of an image that was found at IoU 0.5."""
    whole, kept = cut(found.boxes_xyxy, frame_xyxy)
    rows = np.flatnonzero(kept)
    label = judge(labels, Detections(whole[rows], found.scores[rows], found.class_ids[rows])).label
    rows, label = rows[label >= 0], label[label >= 0]
    frames = np.broadcast_to(frame_xyxy.astype(np.float32), (len(rows), 4))
    return found.class_ids[rows], found.boxes_xyxy[rows], labels.boxes_xyxy[label].astype(np.float32), frames


def _shares(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """How far each edge of the objects (n, 4) lies from that of the boxes (n, 4), in shares of the boxes' sizes."""
    return (objects - boxes) / np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _shrunk(shares: np.ndarray) -> np.ndarray:
    """The median of (n, 4) shares, shrunk towards zero and within limits: (4,). Zero without any."""
    n = len(shares)
    return np.clip(np.median(shares, axis=0) * n / (n + PRIOR), -MAX_OFFSET, MAX_OFFSET) if n else np.zeros(4)


def _iou(boxes: np.ndarray, objects: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The IoU of each box, cut at its frame, with its object: (n,)."""
    whole = boxes.clip(np.tile(frames[:, :2], 2), np.tile(frames[:, 2:], 2))
    sides = (np.minimum(whole[:, 2:], objects[:, 2:]) - np.maximum(whole[:, :2], objects[:, :2])).clip(min=0)
    areas = [(part[:, 2:] - part[:, :2]).prod(1) for part in (whole, objects)]
    shared = sides.prod(1)
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)
