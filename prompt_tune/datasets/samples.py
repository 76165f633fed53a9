"""Labels in two stages: as a reader found them (`RawLabels`), and checked against the images (`Split`)."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np

from prompt_tune.errors import DataError
from prompt_tune.runtime.images import image_size
from prompt_tune.wording import counted, shown

Kind = Literal["yolo", "coco", "voc", "labelme", "label-studio", "fiftyone", "open-images", "cvat", "table"]
EDGE_PIXELS = 2.0  # annotation tools round: a box may reach this far beyond the image, and is clipped
EDGE_SHARE = 0.01  # or by this share of the image's side, if that is more; ultralytics allows the same


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
        window: The part of the image that this is: left, top, right and bottom in its pixels. Labels and size are then
            those of the part. None is the whole image.
        part: The number of the part; 0 is the whole image.
    """

    path: Path
    labels: Labels
    size_wh: tuple[int, int]
    window: tuple[int, int, int, int] | None = None
    part: int = 0

    @property
    def classes(self) -> np.ndarray:
        """(n,) int64, the class index of each box, ignored ones included."""
        return self.labels.classes


class Reason(StrEnum):
    """Why something of a data set is not used: what it is, in the singular. `PLURALS` has the plural."""

    IMAGE = "unreadable image"
    FORMAT = "picture in a format that is not read"
    LINK = "link that leads nowhere"
    ALONE = "label file without an image"
    UNLABELLED = "image that nobody has labelled"
    ROW = "bad label row"
    FLAT = "box without an area"
    TWICE = "box that stands twice"


PLURALS = {
    Reason.IMAGE: "unreadable images",
    Reason.FORMAT: "pictures in a format that is not read",
    Reason.LINK: "links that lead nowhere",
    Reason.ALONE: "label files without an image",
    Reason.UNLABELLED: "images that nobody has labelled",
    Reason.ROW: "bad label rows",
    Reason.FLAT: "boxes without an area",
    Reason.TWICE: "boxes that stand twice",
}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something of a data set that is not used.

    Attributes:
        reason: Its kind.
        what: File, line (or object) and what is wrong with it: a sentence.
    """

    reason: Reason
    what: str


@dataclass(frozen=True, eq=False)
class Split:
    """The images of a split.

    Attributes:
        samples: The usable images, sorted by path.
        left_out: What is not used.
    """

    samples: tuple[Sample, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def photos(self) -> tuple[Sample, ...]:
        """The samples that are whole images: all, unless they were cut into parts."""
        return tuple(sample for sample in self.samples if sample.part == 0)


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
        left_out: Label rows that break a rule, which a reader passes over.
    """

    path: Path
    rows: list[Row]
    normalised: bool = False
    declared_wh: tuple[int, int] | None = None
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True)
class RawLabels:
    """A data set as a reader found it, not checked against the images.

    Attributes:
        names: Class names, in class-id order.
        kind: The format.
        splits: The images by split: any of "train", "val" and "test".
        unusable: The splits that are named but cannot be read, with the error text of each.
        left_out: What belongs to a split but to none of its images (links, pictures in other formats), by split.
    """

    names: tuple[str, ...]
    kind: Kind
    splits: dict[str, list[LabelledImage]]
    unusable: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[LeftOut]] = field(default_factory=dict)

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


def make_split(images: Sequence[LabelledImage], split: str, n_cls: int, left_out: Sequence[LeftOut] = ()) -> Split:
    """Checks the labels of a split against the headers of its images.

    Args:
        images: The images and their raw labels.
        split: The name of the split, for error texts.
        n_cls: The number of classes.
        left_out: What the reader left out of the split.

    Returns:
        The samples, and what is left out: also images that cannot be read, bad label rows, boxes without an area, and
        boxes that stand twice.

    Raises:
        DataError: No image is usable, a class id is not in 0..n_cls - 1, an image has another size than its label
            says, or the numbers of all boxes cannot be meant.
    """
    _refuse_fractions(images, split)
    samples = []
    found = [*left_out, *(entry for image in images for entry in image.left_out)]
    for image in sorted(images, key=lambda image: image.path):
        if os.path.exists(image.path) and not os.path.isfile(image.path):
            what = f"`{image.path}` is no file that can be read but a folder, a pipe, a socket or a device."
            found.append(LeftOut(Reason.IMAGE, what))
            continue
        try:
            size_wh = image_size(image.path)
        except DataError as error:
            found.append(LeftOut(Reason.IMAGE, str(error)))
            continue
        image, twice = _without_repeats(image)
        sample, dropped = _make_sample(image, size_wh, n_cls)
        samples.append(sample)
        found += twice + dropped
    if not samples:
        unread = [entry for entry in found if entry.reason in (Reason.IMAGE, Reason.FORMAT, Reason.LINK)]
        fresh = sum(entry.reason == Reason.UNLABELLED for entry in found)
        what = f"nobody has labelled its {counted(fresh, 'image')}." if fresh else "no images."
        if unread:
            what = f"none of its {len(unread)} images can be read. The first: {unread[0].what}"
        raise DataError(f"the `{split}` split cannot be used: {what}")
    _refuse_specks(samples, split)
    return Split(tuple(samples), tuple(found))


def _without_repeats(image: LabelledImage) -> tuple[LabelledImage, list[LeftOut]]:
    """The image with each row once, and the repeated ones. A box that is ignored once counts otherwise."""
    first = {(row.class_id, row.box_xyxy, row.ignore): row for row in reversed(image.rows)}
    kept = [row for row in image.rows if first[row.class_id, row.box_xyxy, row.ignore] is row]
    if len(kept) == len(image.rows):
        return image, []
    known = set(map(id, kept))
    return replace(image, rows=kept), [
        LeftOut(Reason.TWICE, f"{row.where}: the box stands twice.") for row in image.rows if id(row) not in known
    ]


def _refuse_fractions(images: Sequence[LabelledImage], split: str) -> None:
    """Refuses pixel boxes that all lie in the first pixel: they are fractions of the image."""
    rows = [row for image in images if not image.normalised for row in image.rows]
    if rows and all(-1 <= x1 < x2 <= 1 and -1 <= y1 < y2 <= 1 for x1, y1, x2, y2 in (row.box_xyxy for row in rows)):
        raise DataError(
            f"{rows[0].where}: all {len(rows)} boxes of `{split}` lie in 0..1, so they look normalised, but COCO and "
            "Pascal VOC want pixels. Multiply them by the width and height of their images."
        )


def _refuse_specks(samples: Sequence[Sample], split: str) -> None:
    """Refuses boxes that are all under a pixel: their numbers cannot be meant."""
    boxes = [sample.labels.boxes_xyxy for sample in samples if len(sample.labels)]
    if boxes and all((xyxy[:, 2:] - xyxy[:, :2] < 1).all() for xyxy in boxes):
        first = next(sample for sample in samples if len(sample.labels))
        raise DataError(
            f"All {sum(map(len, boxes))} boxes of `{split}` are under a pixel wide and high, the first in "
            f"`{first.path}`, so their numbers cannot be meant. Check the units: ultralytics wants fractions of the "
            "image, COCO and Pascal VOC want pixels."
        )


def _make_sample(image: LabelledImage, size_wh: tuple[int, int], n_cls: int) -> tuple[Sample, list[LeftOut]]:
    """The sample, and the rows that it leaves out."""
    if image.declared_wh is not None and min(image.declared_wh) > 0 and image.declared_wh != size_wh:
        raise DataError(
            f"`{image.path}` is {_by(size_wh)} pixels (upright), but its label was made for {_by(image.declared_wh)}: "
            "the boxes would be off. Use the image that was labelled, or label this one."
        )
    boxes, left_out = [], []
    for row in image.rows:
        if not 0 <= row.class_id < n_cls:
            raise DataError(
                f"{row.where}: class id {shown(row.class_id)} is outside the names (0 to {n_cls - 1}). "
                "Correct the id, or add its name."
            )
        scale = size_wh if image.normalised else (1, 1)
        try:
            box = _clipped(row, [value * scale[i % 2] for i, value in enumerate(row.box_xyxy)], size_wh)
        except DataError as error:
            left_out.append(LeftOut(Reason.ROW, str(error)))
            continue
        if box[2] > box[0] and box[3] > box[1]:
            boxes.append((row, box))
        else:
            left_out.append(LeftOut(Reason.FLAT, f"{row.where}: the box has no area in its image."))
    sample = Sample(
        image.path,
        Labels(
            boxes_xyxy=np.array([box for _, box in boxes], np.float32).reshape(-1, 4),  # (n, 4)
            classes=np.array([row.class_id for row, _ in boxes], np.int64),
            ignore=np.array([row.ignore for row, _ in boxes], bool),
        ),
        size_wh,
    )
    return sample, left_out


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
    return "x".join(map(shown, size_wh))
