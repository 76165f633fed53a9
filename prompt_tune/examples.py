"""Detections against labels, for people to look at: hits, misses and false alarms, and pictures of them. Light."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prompt_tune.detections import Detections
from prompt_tune.draw import OUTLINE, PAPER, class_colour
from prompt_tune.errors import DataError
from prompt_tune.images import read_rgb
from prompt_tune.overlap import box_iou

HIT_IOU = 0.5  # from here on a detection counts as having found an object: AP50's
TILE_PIXELS = 220  # longer side of a picture
SURROUNDINGS = 1.9  # side of a crop, of the box's longer side
SMALLEST_CROP = 72  # original pixels: a smaller object shows its surroundings rather than its pixels
JPEG_QUALITY = 80  # about 8 kB a picture
LINE = 3  # pixels of a box's line
DASH = (7, 5)  # pixels drawn and left out of a label's line

Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one image in original pixels: boxes_xyxy (m, 4) float32, classes (m,) int64, ignore (m,) bool."""

    path: Path
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray


@dataclass(frozen=True, eq=False)
class Judged:
    """Detections of one image beside its labels; row for row with `found`.

    iou: (n, m) of detections and labels. label: (n,) int64, the label that a detection found, or -1. counts: (n,) bool,
    False for a detection that lies on an ignored label of its class, and is neither right nor wrong.
    """

    labels: Labels
    found: Detections
    iou: np.ndarray
    label: np.ndarray
    counts: np.ndarray


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


@dataclass(frozen=True)
class Picture:
    """A picture in a page. src: a data URI. alt: what it shows, in words. caption: what stands below it."""

    src: str
    alt: str
    caption: str
    width: int
    height: int


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


def judge(found: Detections, labels: Labels) -> Judged:
    """Gives each label at most one detection of its class: by falling score, the free label that it overlaps most.

    For pictures and counts at one threshold; `evaluate.average_precision` is the metric.
    """
    iou = box_iou(found.boxes_xyxy, labels.boxes_xyxy)
    same = (found.class_ids[:, None] == labels.classes) & (iou >= HIT_IOU)  # (n, m)
    label = np.full(len(found), -1)
    free = ~labels.ignore
    for row in np.argsort(-found.scores, kind="stable"):
        candidates = np.where(same[row] & free, iou[row], 0)
        if candidates.any():
            label[row] = candidates.argmax()
            free[label[row]] = False
    counts = (label >= 0) | ~(same & labels.ignore).any(axis=1)
    return Judged(labels, found, iou, label, counts)


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


def picture(image: Image.Image, example: Example, name: str, kind: str) -> Picture:
    """The crop around an example, as a small JPEG: detection solid, what it is held against dashed.

    Args: image: the whole image, RGB, upright. name: of the class. kind: "hit", "miss", "false alarm" or "collision".
    """
    boxes = [box for box in (example.reference_xyxy, example.found_xyxy) if box is not None]
    left, top, right, bottom = _crop(boxes, image.size)
    scale = TILE_PIXELS / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    tile = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    canvas = ImageDraw.Draw(tile)

    def placed(box: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((value - offset) * scale for value, offset in zip(box, (left, top, left, top), strict=True))

    for box in example.others_xyxy:
        _dashed(canvas, placed(box), width=1)
    if example.found_xyxy is not None:
        _solid(canvas, placed(example.found_xyxy), class_colour(name, learned=True))
    if example.reference_xyxy is not None:
        _dashed(canvas, placed(example.reference_xyxy), width=2)
    buffer = io.BytesIO()
    tile.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    alt = f"{name}, {kind} in {example.path.name}: {example.note}"
    return Picture(data_uri(buffer.getvalue(), "image/jpeg"), alt, example.note, *size)


def pictures(wanted: Iterable[tuple[Example, str, str]]) -> tuple[dict[Example, Picture], tuple[str, ...]]:
    """Pictures of many examples; each image is read once, and one at a time is in memory.

    Args:    wanted: examples, with a class's name and a kind as of `picture`.
    Returns: the pictures by example, and a line for each image that cannot be read (any more).
    """
    by_path: dict[Path, list[tuple[Example, str, str]]] = {}
    for task in wanted:
        by_path.setdefault(task[0].path, []).append(task)
    drawn: dict[Example, Picture] = {}
    unread = []
    for path, tasks in by_path.items():
        try:
            image = Image.fromarray(read_rgb(path))
        except DataError as error:
            unread.append(str(error))
            continue
        drawn |= {example: picture(image, example, name, kind) for example, name, kind in tasks}
    return drawn, tuple(unread)


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content as the address of itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


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
    return Example(image.labels.path, label, box, others, note)


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
    return Example(image.labels.path, box, found, others, note)


def _crop(boxes: Sequence[tuple[float, ...]], size_wh: tuple[int, int]) -> tuple[float, float, float, float]:
    """A square around the boxes with some surroundings, moved into the image, or cut where the image is smaller."""
    corners = np.array(boxes)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)  # (2,) each
    side = max(float((high - low).max()) * SURROUNDINGS, SMALLEST_CROP)
    sides = np.minimum(side, size_wh)
    start = np.clip((low + high) / 2 - sides / 2, 0, size_wh - sides)
    end = start + sides
    return float(start[0]), float(start[1]), float(end[0]), float(end[1])


def _solid(canvas: ImageDraw.ImageDraw, box: tuple[float, ...], colour: Colour) -> None:
    """A detection: a line in the class's colour between dark edges."""
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=OUTLINE, width=LINE + 2)
    canvas.rectangle((left, top, right, bottom), outline=colour, width=LINE)


def _dashed(canvas: ImageDraw.ImageDraw, box: tuple[float, ...], *, width: int) -> None:
    """A label: light dashes with dark edges; a detection's colour below shows between them."""
    left, top, right, bottom = box
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    for (x1, y1), (x2, y2) in (
        (corners[0], corners[1]),
        (corners[1], corners[2]),
        (corners[3], corners[2]),
        (corners[0], corners[3]),
    ):
        length, step = max(x2 - x1, y2 - y1), sum(DASH)
        for k in range(int(length // step) + 1):
            first, last = k * step, min(k * step + DASH[0], length)
            along = (1, 0) if y1 == y2 else (0, 1)
            dash = (x1 + along[0] * first, y1 + along[1] * first, x1 + along[0] * last, y1 + along[1] * last)
            canvas.line(dash, fill=OUTLINE, width=width + 2)
            canvas.line(dash, fill=PAPER, width=width)
