"""Small objects in large images: an image and its slices go through the network, and their detections become one list.

Everything works per vocabulary and class, so other vocabularies change no bit of what one vocabulary finds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from prompt_tune.errors import PromptTuneError
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import Detections, concatenate
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import ImageInput, to_rgb
from prompt_tune.runtime.overlap import Overlap, check_overlap, hide_boxes
from prompt_tune.vocabulary.vocabulary import Vocabulary

LEAST_SLICE = 32  # pixels
MOST_OVERLAP = 0.9
MOST_SLICES = 10_000  # of one image: hours on a CPU
MERGE_IOU = 0.5  # two slices see an object at two scales: their boxes differ by more than those of one image
EDGE = 0.01  # share of a slice's side: a box that ends nearer to an inner edge may be a part of an object
Window = tuple[int, int, int, int]  # left, top, right and bottom in pixels of the image


@dataclass(frozen=True)
class Slices:
    """How an image is cut.

    Attributes:
        size: Side of a slice in pixels of the image.
        overlap: Share of a slice that the next one sees too, at least.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if self.size < LEAST_SLICE:
            raise PromptTuneError(f"A slice must have at least {LEAST_SLICE} pixels. Received: {self.size}.")
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise PromptTuneError(f"Slices must overlap by 0 to {MOST_OVERLAP}. Received: {self.overlap}.")

    def windows(self, size_wh: tuple[int, int]) -> list[Window]:
        """The whole image, then its slices, row by row. An image that fits into a slice has none.

        Slices are spread evenly, and all have the same size: the last ones end where the image does.

        Args:
            size_wh: Width and height of the image in pixels.

        Raises:
            PromptTuneError: There would be more than `MOST_SLICES`.
        """
        width, height = size_wh
        whole = (0, 0, width, height)
        if max(size_wh) <= self.size:
            return [whole]
        count = (self._steps(height) + 1) * (self._steps(width) + 1)
        if count > MOST_SLICES:
            raise PromptTuneError(
                f"An image may have {MOST_SLICES:,} slices at most. Received: {count:,}, of {self.size} pixels with an "
                f"overlap of {self.overlap}, in an image of {width} x {height}. Give larger slices or less overlap."
            )
        tops, lefts = self._starts(height), self._starts(width)
        w, h = min(self.size, width), min(self.size, height)
        return [whole, *((left, top, left + w, top + h) for top, left in product(tops, lefts))]

    def _starts(self, length: int) -> list[int]:
        """Where slices begin along one side of the image."""
        free, steps = max(0, length - self.size), self._steps(length)
        return [0] if not steps else [free * step // steps for step in range(steps + 1)]

    def _steps(self, length: int) -> int:
        """How many slices come after the first one along one side of the image."""
        free = max(0, length - self.size)  # pixels after the first slice
        return -(-free // max(1, int(self.size * (1 - self.overlap))))


def detect_sliced(
    detector: Detector,
    image: ImageInput,
    slices: Slices,
    *,
    iou: float | None = None,
    overlap: Overlap = "keep",
    batch: int = 1,
    bgr: bool = False,
    **options: Any,
) -> Detections:
    """Detections of an image, in the whole of it and in its slices.

    Args:
        detector: Its vocabularies must stay as they are until this returns.
        image: See `Detector.detect`.
        slices: How to cut the image. If it fits into a slice, the result is that of `Detector.detect`, bit for bit.
        iou: See `Detector.detect`; also the limit between windows. By default, that is 0.5 or the tighter limit of a
            class.
        overlap: See `Detector.detect`. It looks at the merged detections.
        batch: Number of windows that go through the network at once.
        bgr: See `Detector.detect`.
        options: Further options of `Detector.detect`.

    Returns:
        Boxes in pixels of the image. The vocabularies have the order of `Detector.classes`; in each, the rows of the
        whole image come first, then those of each slice.

    Raises:
        PromptTuneError: See `Detector.detect` and `Slices.windows`.
    """
    check_overlap(overlap)
    pixels = to_rgb(image, bgr=bgr)
    vocabularies = dict(detector.vocabularies)
    height, width = pixels.shape[:2]
    windows = slices.windows((width, height))
    crops = [pixels[top:bottom, left:right] for left, top, right, bottom in windows]
    parts = detector.detect(crops, iou=iou, batch=batch, **options)
    order = list(dict.fromkeys(label for label, _ in detector.classes))
    found = parts[0] if len(parts) == 1 else merged(parts, windows, vocabularies, order, iou=iou)
    return hide_boxes([found], vocabularies, overlap)[0]


def merged(
    parts: Sequence[Detections],
    windows: Sequence[Window],
    vocabularies: Mapping[str, Vocabulary],
    order: Sequence[str],
    *,
    iou: float | None = None,
) -> Detections:
    """The detections of an image's windows as one list, each object once.

    Of two boxes of one class in one vocabulary that come from two windows and overlap by more than a limit, the one
    with the lower score is dropped. A box that ends at an inner edge of its slice, and so may be a part of an object,
    always gives way, and already if more than that share of it lies in the other box. Boxes of one window do not touch
    each other: the detector has compared them.

    Args:
        parts: The detections of each window, in pixels of the window.
        windows: The whole image, then the slices.
        vocabularies: Those of the detections, by label.
        order: Their labels, in the order of the result.
        iou: The limit for all classes. By default, 0.5 or the tighter limit of a class.
    """
    moved = [
        replace(part, boxes_xyxy=part.boxes_xyxy + np.array((left, top) * 2, np.float32))
        for part, (left, top, _, _) in zip(parts, windows, strict=True)
    ]
    found = concatenate(moved, parts[0].size_wh)
    window = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # (n,)
    is_cut = np.concatenate([_is_cut(part.boxes_xyxy, at, windows[0]) for part, at in zip(moved, windows, strict=True)])
    groups: dict[tuple[str, int], list[int]] = {}
    for row, key in enumerate(zip(found.vocabularies, found.class_ids.tolist(), strict=True)):
        groups.setdefault(key, []).append(row)
    kept: list[int] = []
    for (label, class_id), members in groups.items():
        limit = min(MERGE_IOU, float(vocabularies[label].nms_iou_rows[class_id])) if iou is None else iou
        rows = np.array(members)
        kept += rows[_distinct(found[rows], window[rows], is_cut[rows], limit)].tolist()
    rank = {label: number for number, label in enumerate(order)}
    kept.sort(key=lambda row: (rank[found.vocabularies[row]], row))
    return found.select(np.array(kept, np.int64))


def _is_cut(boxes_xyxy: np.ndarray, window: Window, whole: Window) -> np.ndarray:
    """Which boxes (n, 4) end at an edge of their window that is no edge of the image: (n,) bool."""
    left, top, right, bottom = window
    near = EDGE * max(right - left, bottom - top)
    inner = np.array(window) != np.array(whole)  # (4,)
    return ((np.abs(boxes_xyxy - np.array(window, np.float32)) <= near) & inner).any(axis=1)


def _distinct(found: Detections, window: np.ndarray, is_cut: np.ndarray, limit: float) -> np.ndarray:
    """Which detections of one class stay: (n,) bool. See `merged`."""
    order = np.lexsort((-found.scores, is_cut))  # parts of objects last, the best first; stable
    boxes, window, is_cut = found.boxes_xyxy[order], window[order], is_cut[order]
    kept = np.ones(len(order), bool)
    for i in range(len(order)):
        if not kept[i]:
            continue
        rest = np.flatnonzero(kept[i + 1 :] & (window[i + 1 :] != window[i])) + i + 1
        shared = box_iou(boxes[rest], boxes[[i]])[:, 0]
        inside = box_iou(boxes[rest], boxes[[i]], np.ones(1, bool))[:, 0]
        kept[rest[np.where(is_cut[rest], inside, shared) > limit]] = False
    stays = np.zeros(len(order), bool)
    stays[order] = kept
    return stays
