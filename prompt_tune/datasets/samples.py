"""Labels in two stages: as a reader found them (`RawLabels`), and checked against the images (`Split`)."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from prompt_tune.errors import DataError
from prompt_tune.runtime.images import image_size

Kind = Literal["yolo", "coco", "voc"]
EDGE_PIXELS = 2.0  # annotation tools round: a box may reach this far beyond the image, and is clipped
EDGE_SHARE = 0.01  # or by this share of the image's side, if that is more; ultralytics allows the same
_NAMED = 5  # damaged images named in a warning; `Split.skipped` lists all of them
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one image, or of one view of it. The object that holds them documents the frame of the boxes.

    Attributes:
        boxes_xyxy: (n, 4) float32.
        classes: (n,) int64, the class index of each box.
        ignore: (n,) bool. True for a box that is neither positive nor negative (`iscrowd`, `difficult`).
    """

    boxes_xyxy: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def none(cls) -> "Labels":
        """The labels of an image without objects."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its labels.

    Attributes:
        path: The image file.
        labels: Boxes in pixels of the original, upright image, clipped to it, each with an area. Classes are indices
            into `DataSet.names`.
        size_wh: Width and height of the upright image in pixels.
    """

    path: Path
    labels: Labels
    size_wh: tuple[int, int]

    @property
    def classes(self) -> np.ndarray:
        """(n,) int64, the class index of each box, ignored ones included."""
        return self.labels.classes


@dataclass(frozen=True, eq=False)
class Split:
    """The images of a split.

    Attributes:
        samples: The usable images, sorted by path.
        skipped: Paths of images that are damaged or missing.
    """

    samples: tuple[Sample, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One box as its label file has it.

    Attributes:
        where: File and line (or object), for error texts.
        class_id: The class index; not checked yet.
        box_xyxy: Left, top, right, bottom, in the units of its `LabelledImage`.
        ignore: Whether the box is neither positive nor negative.
    """

    where: str
    class_id: int
    box_xyxy: tuple[float, float, float, float]
    ignore: bool = False


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file and its boxes, as a reader found them.

    Attributes:
        path: The image file, which may not exist.
        rows: The boxes.
        normalised: Boxes are fractions of width and height; otherwise they are pixels of the original image.
        declared_wh: The image size that the labels were made for, or None if the format does not say.
    """

    path: Path
    rows: list[Row]
    normalised: bool = False
    declared_wh: tuple[int, int] | None = None


@dataclass(frozen=True)
class RawLabels:
    """A data set as a reader found it, not checked against the images.

    Attributes:
        names: Class names, in class-id order.
        kind: The format.
        splits: The images by split: any of "train", "val" and "test".
        unusable: The splits that are named but cannot be read, with the error text of each.
    """

    names: tuple[str, ...]
    kind: Kind
    splits: dict[str, list[LabelledImage]]
    unusable: dict[str, str] = field(default_factory=dict)

    def has(self, split: str) -> bool:
        """Whether the data set names this split, usable or not."""
        return split in self.splits or split in self.unusable

    def images(self, split: str) -> list[LabelledImage]:
        """The images of a split that the data set has.

        Raises:
            DataError: The split cannot be read.
        """
        if split in self.unusable:
            raise DataError(self.unusable[split])
        return self.splits[split]


def make_split(images: Sequence[LabelledImage], split: str, n_cls: int) -> Split:
    """Checks the labels of a split against the headers of its images.

    Args:
        images: The images and their raw labels.
        split: The name of the split, for error texts.
        n_cls: The number of classes.

    Returns:
        The samples. Images that cannot be read are left out, counted and named in a warning.

    Raises:
        DataError: No image is usable, a class id is not in 0..n_cls - 1, or a box is not inside its image.
    """
    _refuse_fractions(images, split)
    samples, skipped, reasons, flat, repeated = [], [], [], [], []
    for image in sorted(images, key=lambda image: image.path):
        try:
            size_wh = image_size(image.path)
        except DataError as error:
            skipped.append(str(image.path))
            reasons.append(str(error))
            continue
        image, twice = _without_repeats(image)
        repeated += twice
        sample, dropped = _make_sample(image, size_wh, n_cls)
        samples.append(sample)
        flat += dropped
    if not samples:
        what = f"none of its {len(skipped)} images can be read. The first: {reasons[0]}" if skipped else "no images."
        raise DataError(f"the `{split}` split cannot be used: {what}")
    if skipped:
        named = "; ".join(reasons[:_NAMED]) + (f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else "")
        log.warning("%d of %d images of `%s` are skipped: %s", len(skipped), len(images), split, named)
    if flat:
        log.warning("%d boxes of `%s` have no area and are left out, the first: %s", len(flat), split, flat[0])
    if repeated:
        log.warning("%d boxes of `%s` stand twice and count once, the first: %s", len(repeated), split, repeated[0])
    return Split(tuple(samples), tuple(skipped))


def _without_repeats(image: LabelledImage) -> tuple[LabelledImage, list[str]]:
    """The image with each row once, and where the repeated ones stand. A box that is ignored once counts otherwise."""
    first = {(row.class_id, row.box_xyxy, row.ignore): row for row in reversed(image.rows)}
    kept = [row for row in image.rows if first[row.class_id, row.box_xyxy, row.ignore] is row]
    if len(kept) == len(image.rows):
        return image, []
    known = set(map(id, kept))
    return replace(image, rows=kept), [row.where for row in image.rows if id(row) not in known]


def _refuse_fractions(images: Sequence[LabelledImage], split: str) -> None:
    """Refuses pixel boxes that all lie in the first pixel: they are fractions of the image."""
    rows = [row for image in images if not image.normalised for row in image.rows]
    if rows and all(-1 <= x1 < x2 <= 1 and -1 <= y1 < y2 <= 1 for x1, y1, x2, y2 in (row.box_xyxy for row in rows)):
        raise DataError(
            f"{rows[0].where}: all {len(rows)} boxes of `{split}` lie in 0..1, so they look normalised, but COCO and "
            "Pascal VOC want pixels. Multiply them by the width and height of their images."
        )


def _make_sample(image: LabelledImage, size_wh: tuple[int, int], n_cls: int) -> tuple[Sample, list[str]]:
    """The sample, and the places of boxes without an area, which it leaves out."""
    if image.declared_wh is not None and min(image.declared_wh) > 0 and image.declared_wh != size_wh:
        raise DataError(
            f"`{image.path}` is {_by(size_wh)} pixels (upright), but its label was made for {_by(image.declared_wh)}: "
            "the boxes would be off. Use the image that was labelled, or label this one."
        )
    boxes, flat = [], []
    for row in image.rows:
        if not 0 <= row.class_id < n_cls:
            raise DataError(
                f"{row.where}: class id {row.class_id} is outside the names (0 to {n_cls - 1}). "
                "Correct the id, or add its name."
            )
        scale = size_wh if image.normalised else (1, 1)
        box = _clipped(row, [value * scale[i % 2] for i, value in enumerate(row.box_xyxy)], size_wh)
        if box[2] > box[0] and box[3] > box[1]:
            boxes.append((row, box))
        else:
            flat.append(row.where)
    sample = Sample(
        image.path,
        Labels(
            boxes_xyxy=np.array([box for _, box in boxes], np.float32).reshape(-1, 4),  # (n, 4)
            classes=np.array([row.class_id for row, _ in boxes], np.int64),
            ignore=np.array([row.ignore for row, _ in boxes], bool),
        ),
        size_wh,
    )
    return sample, flat


def _clipped(row: Row, box: list[float], size_wh: tuple[int, int]) -> list[float]:
    """A box in pixels, clipped to the image. Refuses one that lies further outside than rounding explains."""
    shown = "(" + ", ".join(f"{value:g}" for value in box) + ")"
    if not all(math.isfinite(value) for value in box):
        raise DataError(f"{row.where}: the box {shown} has numbers that are not finite. Correct or remove it.")
    if box[2] < box[0] or box[3] < box[1]:
        raise DataError(f"{row.where}: the box {shown} has a negative width or height. Correct or remove it.")
    clipped = []
    for i, value in enumerate(box):
        side = size_wh[i % 2]
        slack = max(EDGE_PIXELS, EDGE_SHARE * side)
        if not -slack <= value <= side + slack:
            raise DataError(
                f"{row.where}: the box {shown}, in pixels from left, top to right, bottom, is not inside its image of "
                f"{_by(size_wh)}. Correct or remove it, or check that the label belongs to this image."
            )
        clipped.append(min(max(value, 0.0), float(side)))
    return clipped


def _by(size_wh: tuple[int, int]) -> str:
    return f"{size_wh[0]}x{size_wh[1]}"
