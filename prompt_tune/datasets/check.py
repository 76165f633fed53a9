"""A data set looked over before anything is learned from it: what `fit` would read, and what of it looks odd."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tune.datasets.held_out import pictures
from prompt_tune.datasets.reading import DataSet, read_dataset
from prompt_tune.datasets.samples import Sample, Split
from prompt_tune.errors import DataError
from prompt_tune.progress import Progress, silent
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.images import read_rgb

WHOLE_SHARE = 0.95  # of its image that a box covers: a label of the picture rather than of an object
SLIVER = 20.0  # longer side of a box over its shorter side
SPECK_PIXELS = 4.0  # shorter side in the network's input: half a cell of the finest level
TWICE_IOU = 0.8  # of two boxes of one class: suppression at 0.7 can never find both
RIVAL_IOU = 0.95  # of boxes of two classes: one object that is labelled as both
BLOCK = 64  # boxes that are compared with their neighbours at once
EDGE = 0.01  # pixels: rounding of an edge
MIN_IMAGES = 10  # training images of a class, below which AP is low: see "Few photos" in docs/learning.md


class Oddity(StrEnum):
    """What may be wrong with a box."""

    WHOLE = "covers its whole image"
    SLIVER = "is a sliver"
    SPECK = "is a speck in the network's input"
    TWICE = "lies on another box of its class"
    RIVAL = "lies on a box of another class"


@dataclass(frozen=True)
class OddBox:
    """A box that may be wrong.

    Attributes:
        oddity: What is odd.
        split: "train" or "val".
        image: The file.
        name: The class.
        box_xyxy: Left, top, right, bottom in pixels of the image.
        note: A number that shows how odd it is, in words.
    """

    oddity: Oddity
    split: str
    image: str
    name: str
    box_xyxy: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class SplitCount:
    """What a split has.

    Attributes:
        images: All that can be used.
        boxes: Without ignored ones.
        ignored: Boxes that are neither positive nor negative (`iscrowd`, `difficult`).
        background: Images without any box.
        left_out: One line for each image, label row or box that is not used.
    """

    images: int
    boxes: int
    ignored: int
    background: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class ClassCount:
    """What the data set has of a class.

    Attributes:
        name: The class.
        train_boxes: Boxes in training images, without ignored ones.
        train_images: Training images that show it.
        val_boxes: Boxes in validation images.
        side: Median of the square roots of the areas of all boxes, in pixels of the network's input; None without any.
    """

    name: str
    train_boxes: int
    train_images: int
    val_boxes: int
    side: float | None


@dataclass(frozen=True)
class DataCheck:
    """What `fit` would read of a data set.

    Attributes:
        source: The file or folder.
        kind: The format, see `samples.Kind`.
        held_out: Whether the validation images are held out of the training images.
        few: Whether there are too few images to hold some out, so that all are trained on and cross-validated.
        splits: Counts of "train" and "val".
        classes: Counts by class, in class-id order.
        image_sizes: Width and height of the smallest, the median and the largest image by area.
        unreadable: One line for each image that has a header but cannot be decoded.
        copies: Groups of files that are copies of one picture.
        leaked: How many validation images are copies of training images.
        odd: Boxes that may be wrong.
        hints: What to do about it, a sentence each.
    """

    source: str
    kind: str
    held_out: bool
    few: bool
    splits: dict[str, SplitCount]
    classes: tuple[ClassCount, ...]
    image_sizes: tuple[tuple[int, int], ...]
    unreadable: tuple[str, ...]
    copies: tuple[tuple[str, ...], ...]
    leaked: int
    odd: tuple[OddBox, ...]
    hints: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return asdict(self)


def check_dataset(
    source: str | Path, *, image_size: int = 640, strict: bool = False, progress: Progress = silent
) -> tuple[DataCheck, DataSet]:
    """Reads a data set as `fit` does, decodes every image, and counts what is in it.

    Args:
        source: What `read_dataset` takes.
        image_size: Side of the network's input in pixels, in which small boxes are measured.
        strict: Whether anything that is left out is an error.
        progress: Called after each image.

    Returns:
        The counts, and the data set.

    Raises:
        DataError: See `read_dataset`; or `strict`, and an image cannot be decoded.
    """
    found = read_dataset(source, strict=strict, keep_few=True)
    splits = {"train": found.train} | ({} if found.few else {"val": found.val})
    samples = [sample for split in splits.values() for sample in split.samples]
    unreadable = _undecodable(samples, strict=strict, progress=progress)
    odd = [box for name, split in splits.items() for box in _odd_boxes(split, name, found.names, image_size)]
    groups, leaked = _copies(splits)
    sizes = sorted((sample.size_wh for sample in samples), key=lambda size: size[0] * size[1])
    classes = _by_class(found, image_size)
    return DataCheck(
        source=str(found.source),
        kind=found.kind,
        held_out=found.held_out,
        few=found.few,
        splits={name: _count(split) for name, split in splits.items()},
        classes=classes,
        image_sizes=(sizes[0], sizes[len(sizes) // 2], sizes[-1]),
        unreadable=unreadable,
        copies=groups,
        leaked=leaked,
        odd=tuple(odd),
        hints=tuple(_hints(found, classes, leaked)),
    ), found


def shown_samples(dataset: DataSet, count: int) -> list[Sample]:
    """Training images to look at: first one that shows each class, then others at equal distances.

    Args:
        dataset: The data set.
        count: The most images.

    Returns:
        Images with boxes, in the order of the data set.
    """
    samples = [sample for sample in dataset.train.samples if not sample.labels.ignore.all()]
    visible = [_visible(sample) for sample in samples]
    chosen: list[int] = []
    missing = set().union(*visible)
    while missing and len(chosen) < count:
        best = max(range(len(samples)), key=lambda i: (len(missing & visible[i]), -i))
        chosen.append(best)
        missing -= visible[best]
    rest = [i for i in range(len(samples)) if i not in chosen]
    room = min(count - len(chosen), len(rest))
    chosen += [rest[i * len(rest) // room] for i in range(room)]
    return [samples[i] for i in sorted(chosen)]


def _undecodable(samples: Sequence[Sample], *, strict: bool, progress: Progress) -> tuple[str, ...]:
    """One line for each image that is damaged behind its header."""
    lines = []
    for done, sample in enumerate(samples, 1):
        try:
            read_rgb(sample.path)
        except DataError as error:
            if strict:
                raise
            lines.append(str(error))
        progress("read images", done, len(samples), "")
    return tuple(lines)


def _count(split: Split) -> SplitCount:
    ignored = sum(int(sample.labels.ignore.sum()) for sample in split.samples)
    return SplitCount(
        images=len(split.samples),
        boxes=sum(len(sample.labels) for sample in split.samples) - ignored,
        ignored=ignored,
        background=sum(not len(sample.labels) for sample in split.samples),
        left_out=tuple(f"{entry.reason}: {entry.what}" for entry in split.left_out),
    )


def _by_class(dataset: DataSet, image_size: int) -> tuple[ClassCount, ...]:
    """Counts of every class; those of `val` are 0 where all images are trained on."""
    n_cls = len(dataset.names)
    boxes = {"train": np.zeros(n_cls, np.int64), "val": np.zeros(n_cls, np.int64)}
    images = np.zeros(n_cls, np.int64)
    sides: list[list[float]] = [[] for _ in range(n_cls)]
    for name, split in (("train", dataset.train), ("val", dataset.val)):
        for sample in split.samples:
            kept = ~sample.labels.ignore
            classes = sample.labels.classes[kept]
            boxes[name] += np.bincount(classes, minlength=n_cls)
            if name == "train":
                images[np.unique(classes)] += 1
            lengths = _sides(sample)[kept] * (image_size / max(sample.size_wh))  # (n, 2)
            for k, side in zip(classes, np.sqrt(lengths.prod(axis=1)), strict=True):
                sides[k].append(float(side))
    return tuple(
        ClassCount(
            name,
            int(boxes["train"][k]),
            int(images[k]),
            int(boxes["val"][k]),
            round(float(np.median(sides[k])), 1) if sides[k] else None,
        )
        for k, name in enumerate(dataset.names)
    )


def _odd_boxes(split: Split, split_name: str, names: Sequence[str], image_size: int) -> Iterable[OddBox]:
    """Boxes of a split that may be wrong, image by image. Of two that lie on each other, the later one is named."""
    for sample in split.samples:
        kept = np.flatnonzero(~sample.labels.ignore)
        boxes, classes, sides = sample.labels.boxes_xyxy[kept], sample.labels.classes[kept], _sides(sample)[kept]
        scale = image_size / max(sample.size_wh)
        found: list[tuple[int, Oddity, str]] = []
        for i, (width, height) in enumerate(sides.tolist()):
            share = width * height / (sample.size_wh[0] * sample.size_wh[1])
            if share >= WHOLE_SHARE:
                found.append((i, Oddity.WHOLE, f"{share:.0%} of it"))
            if max(width, height) > SLIVER * min(width, height):
                found.append((i, Oddity.SLIVER, f"{width:.1f} x {height:.1f} pixels"))
            if min(width, height) * scale < SPECK_PIXELS:
                found.append((i, Oddity.SPECK, f"{width * scale:.1f} x {height * scale:.1f} pixels there"))
        for j, i, iou in _pairs(boxes, classes):
            if classes[i] == classes[j]:
                found.append((j, Oddity.TWICE, f"IoU {iou:.2f}"))
            else:
                found.append((j, Oddity.RIVAL, f"IoU {iou:.2f} with '{names[classes[i]]}'"))
        for i, oddity, note in sorted(found):
            box = tuple(round(value, 1) for value in boxes[i].tolist())
            yield OddBox(oddity, split_name, str(sample.path), names[classes[i]], box, note)


def _pairs(boxes_xyxy: np.ndarray, classes: np.ndarray) -> Iterable[tuple[int, int, float]]:
    """Boxes of one image that lie on an earlier one.

    Args:
        boxes_xyxy: (n, 4) in pixels. n may be large: boxes that are near each other are looked for by their left edges.
        classes: (n,).

    Yields:
        The row of a box, that of the earlier box of its class on which it lies most, and their IoU, if that is
        `TWICE_IOU` or more; likewise for other classes, from `RIVAL_IOU` on.
    """
    order = np.argsort(boxes_xyxy[:, 0], kind="stable")
    lefts, widths = boxes_xyxy[order, 0], (boxes_xyxy[:, 2] - boxes_xyxy[:, 0])[order]
    reach = widths * (1 / TWICE_IOU - 1)  # the left edges of two boxes with that IoU differ by this at most
    for first in range(0, len(order), BLOCK):
        part = slice(first, first + BLOCK)
        start = np.searchsorted(lefts, (lefts[part] - reach[part]).min() - EDGE)
        end = np.searchsorted(lefts, (lefts[part] + reach[part]).max() + EDGE, side="right")
        later, earlier = order[part], np.sort(order[start:end])  # (b,), (m,)
        overlaps = box_iou(boxes_xyxy[later], boxes_xyxy[earlier])  # (b, m)
        overlaps[earlier >= later[:, None]] = 0
        own = classes[earlier] == classes[later][:, None]
        for limit, of_interest in ((TWICE_IOU, own), (RIVAL_IOU, ~own)):
            considered = np.where(of_interest, overlaps, 0)
            best = considered.argmax(axis=1)
            for row in np.flatnonzero(considered.max(axis=1) >= limit).tolist():
                yield int(later[row]), int(earlier[best[row]]), float(considered[row, best[row]])


def _copies(splits: dict[str, Split]) -> tuple[tuple[tuple[str, ...], ...], int]:
    """Groups of files that are copies of one picture, and how many validation images have a copy in `train`."""
    paths = [(name, sample.path) for name, split in splits.items() for sample in split.samples]
    groups: dict[int, list[tuple[str, Path]]] = {}
    for number, entry in zip(pictures([path for _, path in paths]), paths, strict=True):
        groups.setdefault(number, []).append(entry)
    copies = [group for group in groups.values() if len(group) > 1]
    leaked = sum(sum(name == "val" for name, _ in group) for group in copies if group[0][0] == "train")
    return tuple(tuple(str(path) for _, path in group) for group in copies), leaked


def _hints(dataset: DataSet, classes: Sequence[ClassCount], leaked: int) -> Iterable[str]:
    """What `fit` will say or suffer from."""
    if not any(not len(sample.labels) for sample in dataset.train.samples):
        yield (
            "No training image is background, so the classes may fire on similar things. Add images without the "
            "objects, as unlabelled images or with `fit --replay`."
        )
    rare = [row.name for row in classes if 0 < row.train_images < MIN_IMAGES]
    if rare:
        yield f"Fewer than {MIN_IMAGES} training images show: {', '.join(rare)}."
    without = [row.name for row in classes if not row.train_boxes]
    if without:
        yield f"No training image shows: {', '.join(without)}. Such a class cannot be learned."
    if leaked:
        yield "Validation images that are copies of training images make every metric too good. Remove them."


def _sides(sample: Sample) -> np.ndarray:
    """(n, 2), width and height of each box in pixels of the image."""
    boxes = sample.labels.boxes_xyxy.astype(np.float64)
    sides: np.ndarray = boxes[:, 2:] - boxes[:, :2]
    return sides


def _visible(sample: Sample) -> set[int]:
    """The classes that an image shows, without ignored boxes."""
    return {int(k) for k in sample.labels.classes[~sample.labels.ignore]}
