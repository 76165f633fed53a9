"""Small objects in large images: part of the program `detect.py`. See docs/detecting.md of prompt-tune."""

from itertools import product
from typing import Any

import numpy as np
from kit_detector import Detector, overlaps, passes
from kit_images import original_size
from PIL import Image

LEAST_SLICE = 32  # pixels
MOST_OVERLAP = 0.9  # share of a slice
MERGE_IOU = 0.5  # two boxes of a class in two windows that overlap by more are on one object
EDGE = 0.01  # share of a slice's side: a box that ends nearer to an inner edge may be a part of an object
Window = tuple[int, int, int, int]  # left, top, right, bottom


def detect_sliced(
    detector: Detector,
    image: Image.Image,
    size: int,
    slice_overlap: float = 0.2,
    conf: float | None = None,
    overlap: str = "keep",
) -> list[dict[str, Any]]:
    """Detections in an upright RGB image and in its slices, squares of `size` pixels, each object once.

    A very large JPEG must be read `whole`.
    `slice_overlap` is the share of a slice that the next one sees too. For the others, see `Detector.detect`.
    """
    if original_size(image) != image.size:
        raise ValueError("an image that was read at reduced size cannot be cut into slices: read it whole")
    places = windows(image.size, size, slice_overlap)
    parts = [detector.detect(image.crop(place), conf) for place in places]
    found = parts[0] if len(parts) == 1 else merged(parts, places, detector)
    detector.mark_hidden(found, overlap)
    return found


def windows(size_wh: tuple[int, int], size: int, slice_overlap: float) -> list[Window]:
    """The whole image, then its slices, row by row; an image that fits into a slice has none."""
    width, height = size_wh
    whole = (0, 0, width, height)
    if max(size_wh) <= size:
        return [whole]
    step = max(1, int(size * (1 - slice_overlap)))
    starts = []
    for length in (height, width):
        free = max(0, length - size)
        count = -(-free // step)  # of further slices, spread evenly
        starts.append([0, *(free * number // count for number in range(1, count + 1))])
    w, h = min(size, width), min(size, height)
    return [whole, *((left, top, left + w, top + h) for top, left in product(*starts))]


def merged(parts: list[list[dict[str, Any]]], places: list[Window], detector: Detector) -> list[dict[str, Any]]:
    """The detections of the windows as one list, in pixels of the image, by vocabulary and window."""
    found, window, is_cut = [], [], []
    for number, (part, place) in enumerate(zip(parts, places, strict=True)):
        near = EDGE * max(place[2] - place[0], place[3] - place[1])
        inner = np.array(place) != np.array(places[0])
        for one in part:
            box = np.array(one["box_xyxy"], np.float32) + np.array(place[:2] * 2, np.float32)
            is_cut.append(bool(((np.abs(box - np.array(place, np.float32)) <= near) & inner).any()))
            window.append(number)
            found.append(one | {"box_xyxy": [float(value) for value in box]})
    vocabularies = {part.label: part for part in (detector.original, *detector.learned)}
    groups: dict[tuple[str, int], list[int]] = {}
    for row, one in enumerate(found):
        groups.setdefault((one["vocabulary"], one["class_id"]), []).append(row)
    kept = []
    for (label, class_id), rows in groups.items():
        vocabulary = vocabularies[label]
        limit, threshold = min(MERGE_IOU, float(vocabulary.nms_iou[class_id])), vocabulary.thresholds[class_id]
        # scores above the threshold come first, of these parts of objects last, and of these the best first
        rows.sort(key=lambda row: (found[row]["score"] <= threshold, is_cut[row], -found[row]["score"]))
        boxes = np.array([found[row]["box_xyxy"] for row in rows], np.float32)
        left = list(range(len(rows)))
        while left:
            best, *rest = left
            kept.append(rows[best])
            shares = np.where([is_cut[rows[i]] for i in rest], *_shares(boxes[best : best + 1], boxes[rest]))
            same = [window[rows[i]] == window[rows[best]] for i in rest]
            left = [i for i, share, here in zip(rest, shares, same, strict=True) if here or share <= limit]
    order = [part.label for groups in passes(detector.original, detector.learned) for group in groups for part in group]
    return [found[row] for row in sorted(kept, key=lambda row: (order.index(found[row]["vocabulary"]), row))]


def _shares(one: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For other boxes (n, 4): the share of each that lies in a box (1, 4), and its IoU with it."""
    one, others = one.astype(np.float64), others.astype(np.float64)
    shared = np.maximum(np.minimum(one[:, 2:], others[:, 2:]) - np.maximum(one[:, :2], others[:, :2]), 0).prod(axis=1)
    inside = shared / np.maximum((others[:, 2:] - others[:, :2]).prod(axis=1), 1e-9)
    return inside, overlaps(one, others)
