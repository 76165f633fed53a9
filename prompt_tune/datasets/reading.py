"""Reads a data set, whichever format it is in: a YAML, or a folder as an annotation tool exports it."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from prompt_tune.contract import HOLD_OUT
from prompt_tune.datasets.coco import (
    ROBOFLOW_FILE,
    ROBOFLOW_FOLDERS,
    read_coco_files,
    read_coco_yaml,
    read_roboflow,
)
from prompt_tune.datasets.coco_folders import coco_places
from prompt_tune.datasets.darknet import darknet_content
from prompt_tune.datasets.folders import read_folder
from prompt_tune.datasets.grounding import GROUNDING_KEY
from prompt_tune.datasets.held_out import HELD_OUT_SHARE, copied, has_box, hold_out
from prompt_tune.datasets.opening import named, tell
from prompt_tune.datasets.places import expanded, has_file, read_yaml
from prompt_tune.datasets.samples import Kind, RawLabels, Split, make_split
from prompt_tune.datasets.voc import has_xml_beside, is_voc, read_voc
from prompt_tune.datasets.yolo import read_yolo
from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import is_metadata
from prompt_tune.vocabulary.names import unfit
from prompt_tune.wording import counted

SplitName = Literal["train", "val", "test"]
_YAML_SUFFIXES = (".yaml", ".yml")
_WANTED = (
    "Give an ultralytics YAML, a YAML that names COCO files (`train: {images: FOLDER, annotations: FILE}`), or a "
    "folder as CVAT, Label Studio, Roboflow, labelme or FiftyOne exports it; docs/data-sets.md lists the formats."
)
_RECORDS = "TFRecord files are not read. Export the data set as COCO JSON or Pascal VOC instead."
MIN_VAL = 20  # images with boxes: AP and thresholds from fewer are chance
_FEW = "no image is held out, since a fifth would be too few to validate on: all are trained on, and cross-validated"
_HELD_OUT = "the validation images are held out of the training images, drawn with seed {}"
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set whose labels were checked against its images.

    Attributes:
        names: The classes, in class-id order.
        train: Training images.
        val: Validation images.
        source: The file or folder that was read.
        kind: The format.
        held_out: Whether `val` was split off from the training images.
        few: Whether there are too few images to hold some out: `val` is empty, and `train` has all of them.
    """

    names: tuple[str, ...]
    train: Split
    val: Split
    source: Path
    kind: Kind
    held_out: bool
    few: bool = False

    @property
    def measured(self) -> Split:
        """The images to measure on: `val`, or with few images those of `train`, to be cross-validated."""
        return self.train if self.few else self.val


def read_dataset(
    source: str | Path,
    *,
    seed: int = 0,
    names: Sequence[str] | None = None,
    recorded: Collection[str] | None = None,
    strict: bool = False,
    keep_few: bool = False,
) -> DataSet:
    """Reads training and validation images in any of the formats and checks boxes against the headers of images.

    Images without objects are background. What cannot be used, above all damaged or missing images and bad label rows,
    is left out, see `Split.left_out`; one log line counts it, and a warning names the first few. Damage in the middle
    of a file shows only when the image is decoded. Without validation images, a fifth of the training images is held
    out. A `test` split is not looked at.

    Args:
        source: A YAML file or a folder.
        seed: Draws the images that are held out.
        names: Class names to use instead of the data set's own, in class-id order.
        recorded: What a run says of the images that it held out; see `hold_out`.
        strict: Whether anything that is left out is an error.
        keep_few: Whether no image is held out if fewer than `MIN_VAL` images with boxes would be.

    Raises:
        DataError: There is no data set that can be read, its labels cannot be meant, see `make_split`, `train` or `val`
            has no box, `names` do not fit, or `strict`, and something is left out.
    """
    place = expanded(str(source), "The data set")
    labels = _read_labels(place)
    if not labels.has("train"):
        raise DataError(f"`{place}` has no `train`: it has no training images. {_WANTED}")
    n_cls = len(labels.names)
    chosen = _chosen_names(labels.names, names, place)
    used = [split for split in ("train", "val") if labels.has(split)]
    splits = {split: _checked(labels, split) for split in used}
    _require_boxes(splits["train"], "train", place)
    held_out = "val" not in splits
    few = held_out and keep_few and sum(map(has_box, splits["train"].samples)) * HELD_OUT_SHARE < MIN_VAL
    note = _FEW if few else _HELD_OUT.format(seed) if held_out else ""
    if held_out and not few:
        splits["train"], splits["val"] = hold_out(splits["train"], chosen, seed, place, recorded)
    tell(place, splits, n_cls, note=note, strict=strict)
    if not held_out:
        _require_boxes(splits["val"], "val", place)
        _warn_of_shared_images(splits["train"], splits["val"])
    counts = _box_counts(splits["train"], n_cls)
    without = [name for name, count in zip(chosen, counts, strict=True) if count == 0]
    if without:
        have = "has" if len(without) == 1 else "have"
        log.warning("%s %s no box in the training images: %s", counted(len(without), "class"), have, ", ".join(without))
    return DataSet(chosen, splits["train"], splits.get("val", Split(())), place, labels.kind, held_out and not few, few)


def read_split(
    source: str | Path,
    split: SplitName,
    *,
    seed: int = 0,
    names: Sequence[str] | None = None,
    recorded: Collection[str] | None = None,
    strict: bool = False,
    trained_on_all: bool = False,
) -> tuple[tuple[str, ...], Split]:
    """Reads the classes and one split of a data set, which needs no other split.

    Args:
        source: A YAML file or a folder.
        split: The split to read. If the data set has no validation images, "train" and "val" are the two parts that
            `read_dataset` makes of its training images.
        seed: Draws the images that are held out.
        names: Class names to use instead of the data set's own, in class-id order.
        recorded: What a run says of the images that it held out; see `hold_out`.
        strict: Whether anything that is left out is an error.
        trained_on_all: Whether what is to be measured was trained on all images of its data set, so that none can be
            held out.

    Returns:
        The class names and the split.

    Raises:
        DataError: See `read_dataset`; or the data set has no such split, or the split has no box; or
            `trained_on_all`, and images would have to be held out.
    """
    place = expanded(str(source), "The data set")
    labels = _read_labels(place)
    chosen = _chosen_names(labels.names, names, place)
    held_out = not labels.has("val") and split != "test"
    stored = "train" if held_out else split
    if held_out and split == "val" and trained_on_all:
        raise DataError(
            f"`{place}` has no `val`, and these prompts were trained on all images of a data set without `val`, since "
            "there were few; the run has the AP of its cross-validation. Give --data a set with `val`, or measure on "
            "`--split train` if these are other images."
        )
    held_out = held_out and not (split == "train" and trained_on_all)
    if not labels.has(stored):
        raise DataError(f"`{place}` has no `{split}` images. It has: {', '.join(labels.splits) or 'none at all'}.")
    images = _checked(labels, stored)
    if held_out:
        train, val = hold_out(images, chosen, seed, place, recorded)
        images = replace(val if split == "val" else train, left_out=images.left_out)
    _require_boxes(images, split, place)
    tell(place, {split: images}, len(chosen), note=_HELD_OUT.format(seed) if held_out else "", strict=strict)
    return chosen, images


def find_labels(place: Path) -> RawLabels | None:
    """Reads the labels of a data set without checking them against its images.

    Args:
        place: A YAML file or a folder.

    Returns:
        The labels, or None for a folder that holds no data set.

    Raises:
        DataError: There is no such file or folder, it is another kind of file, or its content breaks a rule.
    """
    if place.is_file() and place.suffix.lower() in _YAML_SUFFIXES:
        return _read_description(place)
    if place.is_file():
        raise DataError(f"`{place}` is not a data set. {_WANTED}")
    if not place.is_dir():
        raise DataError(f"`{place}`: no such file or folder. {_WANTED}")
    if any((place / folder / ROBOFLOW_FILE).exists() for folder in ROBOFLOW_FOLDERS.values()):
        return read_roboflow(place)
    if is_voc(place):
        return read_voc(place)
    descriptions = sorted(
        path
        for path in place.iterdir()
        if path.suffix.lower() in _YAML_SUFFIXES and path.is_file() and not is_metadata(path.name)
    )
    if len(descriptions) == 1:
        return _read_description(descriptions[0])
    if descriptions:
        shown = ", ".join(path.name for path in descriptions)
        raise DataError(f"`{place}` has {len(descriptions)} YAML files ({shown}). Give one of them.")
    if coco := coco_places(place):
        return read_coco_files(place, coco)
    if darknet := darknet_content(place):
        return read_yolo(*darknet)
    if found := read_folder(place):
        return found
    return read_voc(place) if has_xml_beside(place) else None


def _read_labels(place: Path) -> RawLabels:
    labels = find_labels(place)
    if labels is None:
        cure = _RECORDS if has_file(place, ".tfrecord") else _WANTED
        raise DataError(f"`{place}` is not a data set in a known format. {cure}")
    return labels


def _checked(labels: RawLabels, split: str) -> Split:
    """A split that the data set has, checked against its images."""
    return make_split(labels.images(split), split, len(labels.names), labels.left_out.get(split, ()))


def _read_description(file: Path) -> RawLabels:
    content = read_yaml(file)
    if GROUNDING_KEY in content:
        raise DataError(
            f"`{file}` describes a grounding set, which has no classes to learn. Give this file to `--replay`, and a "
            "data set with classes here."
        )
    if content.get(HOLD_OUT):
        content.pop("val", None)
    is_coco = any(isinstance(content.get(split), dict) for split in ("train", "val", "test"))
    return read_coco_yaml(file, content) if is_coco else read_yolo(file, content)


def _chosen_names(own: tuple[str, ...], names: Sequence[str] | None, place: Path) -> tuple[str, ...]:
    chosen = tuple(own if names is None else names)
    if len(chosen) != len(own):
        raise DataError(
            f"`names` must name the {len(own)} classes of `{place}` ({', '.join(own)}). Received: {len(chosen)} names."
        )
    if chosen != own and set(chosen) == set(own):
        raise DataError(
            f"`names` has the classes of `{place}` in another order, which would exchange them: {', '.join(own)}."
        )
    if not all(name.strip() for name in chosen):
        raise DataError(f"`{place}`: a class name is empty. Give every class a name.")
    if bad := next(filter(unfit, chosen), None):
        raise DataError(f"`{place}`: {unfit(bad)} Rename the class there, or with --names.")
    repeated = sorted({name for name in chosen if chosen.count(name) > 1})
    if repeated:
        raise DataError(f"`{place}`: class names must differ. Repeated: {', '.join(repeated)}.")
    return chosen


def _require_boxes(split: Split, name: str, place: Path) -> None:
    if not any(has_box(sample) for sample in split.samples):
        left_out = f" Left out: {named(split.left_out)}" if split.left_out else ""
        raise DataError(
            f"`{place}`: the {counted(len(split.samples), 'image')} of `{name}` have no box. Check that the label "
            f"files are where the format wants them (ultralytics: `labels/` beside `images/`).{left_out}"
        )


def _box_counts(split: Split, n_cls: int) -> np.ndarray:
    """The number of boxes of each class, without ignored ones: (n_cls,) int64."""
    counts = np.zeros(n_cls, np.int64)
    for sample in split.samples:
        counts += np.bincount(sample.labels.classes[~sample.labels.ignore], minlength=n_cls)
    return counts


def _warn_of_shared_images(train: Split, val: Split) -> None:
    shared = {sample.path for sample in train.samples} & {sample.path for sample in val.samples}
    if shared:
        what, are = counted(len(shared), "validation image"), "is" if len(shared) == 1 else "are"
        log.warning("%s %s among the training images too: the metrics will be too high.", what, are)
    paths = [sample.path for sample in val.samples if sample.path not in shared]
    copies = sum(copied(paths, [sample.path for sample in train.samples]))
    if copies:
        log.warning(
            "%d of %d validation images are copies of training images (same content, or Roboflow's `.rf.` names of one "
            "photo): the metrics will be too high.",
            copies,
            len(val.samples),
        )
