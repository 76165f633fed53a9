"""Small objects in large images: an image and its slices go through the network, and their detections become one list.

Everything works per vocabulary and class, so other vocabularies change no bit of what one vocabulary finds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.runtime.boxes import paired_iou
from prompt_tune.runtime.detections import Detections, concatenate
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import ImageInput, Letterboxed, Picture, to_rgb
from prompt_tune.runtime.overlap import Overlap, check_overlap, hide_boxes
from prompt_tune.vocabulary.vocabulary import Vocabulary

LEAST_SLICE = 32  # pixels
MOST_OVERLAP = 0.9
MOST_SLICES = 10_000  # of one image: hours on a CPU
MERGE_IOU = 0.5  # two slices see an object at two scales: their boxes differ by more than those of one image
TOGETHER = 256  # boxes that are compared with others at once
TRIES = 5  # while other vocabularies are loaded
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

    @classmethod
    def of(cls, size: int | None, overlap: float | None) -> "Slices | None":
        """How an image is cut if `size` says so; by default, slices overlap by 0.2.

        Raises:
            PromptTuneError: A number is out of range, or there is an overlap without a size.
        """
        if size is None:
            if overlap is not None:
                raise PromptTuneError("`slice_overlap` says how far slices overlap. Give their size, `slice`, too.")
            return None
        return cls(size) if overlap is None else cls(size, overlap)

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

    def count(self, size_wh: tuple[int, int]) -> int:
        """How many slices an image has, without the whole image.

        Args:
            size_wh: Width and height of the image in pixels.
        """
        width, height = size_wh
        return len(self._starts(width)) * len(self._starts(height)) if max(size_wh) > self.size else 0

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
        detector: See `detect_windows`.
        image: See `Detector.detect`. A large JPEG is read whole.
        slices: How to cut the image. If it fits into a slice, the result is that of `Detector.detect`, bit for bit.
        iou: See `detect_windows`.
        overlap: See `Detector.detect`. It looks at the merged detections.
        batch: Number of windows that go through the network at once.
        bgr: See `Detector.detect`.
        options: Further options of `Detector.detect`.

    Returns:
        See `detect_windows`.

    Raises:
        PromptTuneError: See `detect_windows`.
    """
    if isinstance(image, Picture) and image.size_wh != image.pixels.shape[1::-1]:
        raise DataError("An image that was read at reduced size cannot be cut into slices. Read it whole.")
    pixels = to_rgb(image, bgr=bgr)
    height, width = pixels.shape[:2]
    windows = slices.windows((width, height))
    crops = [pixels[top:bottom, left:right] for left, top, right, bottom in windows]
    return detect_windows(detector, crops, windows, iou=iou, overlap=overlap, batch=batch, **options)


def detect_windows(
    detector: Detector,
    crops: Sequence[ImageInput | Letterboxed],
    windows: Sequence[Window],
    *,
    iou: float | None = None,
    overlap: Overlap = "keep",
    **options: Any,
) -> Detections:
    """Detections of an image that is cut into windows.

    Args:
        detector: If other vocabularies are loaded in the meantime, all windows are looked at again.
        crops: What `windows` show.
        windows: See `Slices.windows`.
        iou: See `Detector.detect`; also the limit between windows. By default, that is 0.5 or the tighter limit of a
            class.
        overlap: See `Detector.detect`. It looks at the merged detections.
        options: Further options of `Detector.detect`.

    Returns:
        Boxes in pixels of the image. The vocabularies have the order of `Detector.classes`; in each, the rows of the
        whole image come first, then those of each slice.

    Raises:
        PromptTuneError: See `Detector.detect` and `Slices.windows`, or other vocabularies are loaded all the time.
    """
    check_overlap(overlap)
    for _ in range(TRIES):
        vocabularies = dict(detector.vocabularies)
        order = list(dict.fromkeys(label for label, _ in detector.classes))
        parts = detector.detect(crops, iou=iou, **options)
        if dict(detector.vocabularies) == vocabularies:
            break
    else:
        raise PromptTuneError(
            f"Vocabularies changed {TRIES} times while one image was in work. Change them less often."
        )
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
    """The detections of an image's windows as one list, each object once. See `merged_classes`.

    Args:
        parts: The detections of each window, in pixels of the window.
        windows: The whole image, then the slices.
        vocabularies: Those of the detections, by label.
        order: Their labels, in the order of the result.
        iou: The limit for all classes. By default, 0.5 or the tighter limit of a class.
    """
    ends = np.cumsum([len(vocabularies[label].names) for label in order])
    first = {label: int(end) - len(vocabularies[label].names) for label, end in zip(order, ends, strict=True)}
    numbered = [  # each class of each vocabulary by a number of its own
        replace(part, class_ids=part.class_ids + np.array([first[label] for label in part.vocabularies], np.int64))
        for part in parts
    ]
    limits = np.concatenate([merge_limits(vocabularies[label].nms_iou_rows, iou) for label in order])
    thresholds = np.concatenate([vocabularies[label].thresholds for label in order])
    found = merged_classes(numbered, windows, limits, thresholds)
    starts = np.array([first[label] for label in found.vocabularies], np.int64)
    by_vocabulary = np.argsort(starts, kind="stable")
    return replace(found, class_ids=found.class_ids - starts).select(by_vocabulary)


def merge_limits(nms_iou: np.ndarray, iou: float | None = None) -> np.ndarray:
    """The limits between windows, (n_cls,) float64: `iou`, or by default 0.5 or the tighter limit of a class.

    Args:
        nms_iou: (n_cls,), the limit of each class within a window.
        iou: The limit for all classes.
    """
    return np.minimum(nms_iou.astype(np.float64), MERGE_IOU) if iou is None else np.full(len(nms_iou), iou)


def merged_classes(
    parts: Sequence[Detections], windows: Sequence[Window], limits: np.ndarray, thresholds: np.ndarray
) -> Detections:
    """The detections of an image's windows as one list, in their order, each object once.

    Of two boxes of one class that come from two windows and overlap by more than a limit, the one with the lower score
    is dropped. A box that ends at an inner edge of its slice, and so may be a part of an object, always gives way, and
    already if more than that share of it lies in the other box. But no box above its class's threshold gives way to
    one that is not: what a lower `conf` lets through changes nothing above. Boxes of one window do not touch each
    other: the detector has compared them.

    Args:
        parts: The detections of each window, in pixels of the window.
        windows: The whole image, then the slices.
        limits: (n_cls,) IoU, see `merge_limits`.
        thresholds: (n_cls,) scores.
    """
    moved = [
        replace(part, boxes_xyxy=part.boxes_xyxy + np.array((left, top) * 2, np.float32))
        for part, (left, top, _, _) in zip(parts, windows, strict=True)
    ]
    found = concatenate(moved, parts[0].size_wh)
    window = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # (n,)
    is_cut = np.concatenate([_is_cut(part.boxes_xyxy, at, windows[0]) for part, at in zip(moved, windows, strict=True)])
    rank = is_cut + 2 * (found.scores <= thresholds[found.class_ids])  # (n,): who gives way to whom
    kept = np.ones(len(found), bool)
    for class_id in np.unique(found.class_ids):
        rows = np.flatnonzero(found.class_ids == class_id)
        kept[rows] = _distinct(found.select(rows), window[rows], is_cut[rows], rank[rows], limits[class_id])
    return found.select(kept)


def _is_cut(boxes_xyxy: np.ndarray, window: Window, whole: Window) -> np.ndarray:
    """Which boxes (n, 4) end at an edge of their window that is no edge of the image: (n,) bool."""
    left, top, right, bottom = window
    near = EDGE * max(right - left, bottom - top)
    inner = np.array(window) != np.array(whole)  # (4,)
    return ((np.abs(boxes_xyxy - np.array(window, np.float32)) <= near) & inner).any(axis=1)


def _distinct(found: Detections, window: np.ndarray, is_cut: np.ndarray, rank: np.ndarray, limit: float) -> np.ndarray:
    """Which detections of one class stay: (n,) bool. See `merged_classes`."""
    order = np.lexsort((-found.scores, rank))  # in each rank, the best first; stable
    boxes, window, is_cut = found.boxes_xyxy[order], window[order], is_cut[order]
    better, other = _overlapping(boxes)
    apart = window[better] != window[other]
    better, other = better[apart], other[apart]
    shared = paired_iou(boxes[other], boxes[better], is_cut[other])  # of a part, the share that lies inside
    better, other = better[shared > limit], other[shared > limit]
    kept = np.ones(len(order), bool)
    starts = np.searchsorted(better, np.arange(len(order) + 1))
    for i in np.unique(better):
        if kept[i]:
            kept[other[starts[i] : starts[i + 1]]] = False
    stays = np.zeros(len(order), bool)
    stays[order] = kept
    return stays


def _overlapping(boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of boxes (n, 4) that overlap: two (k,) int64, the first number below the second, and rising."""
    by_left = np.argsort(boxes_xyxy[:, 0], kind="stable")
    left, top, right, bottom = boxes_xyxy[by_left].T
    counts = np.searchsorted(left, right) - np.arange(1, len(left) + 1)  # boxes that begin before each one ends
    counts, pairs = np.maximum(counts, 0), [np.zeros((2, 0), np.int64)]
    for first in range(0, len(left), TOGETHER):
        count = counts[first : first + TOGETHER]
        a = np.arange(first, first + len(count)).repeat(count)
        b = np.arange(len(a)) - (count.cumsum() - count).repeat(count) + a + 1
        shares = (top[a] < bottom[b]) & (top[b] < bottom[a])
        pairs.append(by_left[np.stack([a[shares], b[shares]])])
    lower, upper = np.sort(np.concatenate(pairs, axis=1), axis=0)
    order = np.lexsort((upper, lower))
    return lower[order], upper[order]
