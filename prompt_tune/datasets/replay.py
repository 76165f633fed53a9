"""Replay: images without the new objects, mixed into the training, that teach the prompts what they are not.

YOLO-World's authors recommend it (they mix in GQA) against forgetting; here nothing can be forgotten, and it cuts false
alarms. Every region of a replayed image is a negative of every learned class, except where the image's own labels or
captions name that class.
"""

import glob
import logging
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from prompt_tune.datasets.grounding import (
    GROUNDING_KEY,
    CaptionedImage,
    ignored_regions,
    read_grounding,
    read_grounding_yaml,
)
from prompt_tune.datasets.places import read_yaml
from prompt_tune.datasets.reading import find_labels
from prompt_tune.datasets.samples import LabelledImage, RawLabels, Split, make_split
from prompt_tune.errors import DataError
from prompt_tune.runtime.images import find_images

RATIO = 3.0  # replayed images per labelled one: half the false alarms or less, at a point of AP (bench_methods.py)
HELD_OUT = 0.2  # as many more, for each that is trained on: thresholds are chosen with them
_GAP = r"[\s_-]+"  # between the words of a name: labels have "traffic light", "traffic_light" and "traffic-light"
_YAML_SUFFIXES = (".yaml", ".yml")
_WANTED = (
    "Give a data set that `fit` reads, a folder of images, a grounding set's JSON file, or a YAML with "
    f"`images: FOLDER` and `{GROUNDING_KEY}: FILE.json`."
)
_Image = TypeVar("_Image", LabelledImage, CaptionedImage)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplaySource:
    """Where replayed images come from: `place` is what `read_replay` reads, `ratio` how many there are for each
    labelled training image.

    Raises:  DataError: the ratio is not a finite number above 0, or the place is empty.
    """

    place: str
    ratio: float = RATIO

    def __post_init__(self) -> None:
        if not self.place.strip():
            raise DataError(f"Replay needs a place before the `=`. {_WANTED}")
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise DataError(
                f"Replay from `{self.place}`: the ratio, replayed images per labelled training image, must be a number "
                f"above 0. Received: {self.ratio}."
            )


def parse_replay(text: str) -> ReplaySource:
    """What the command line says: `DATA` or `DATA=0.5`. A file or folder that has that very name, `=` and all, wins.

    Raises:  DataError: nothing before the `=`, or no number above 0 behind it.
    """
    place, equals, number = text.rpartition("=")
    if not equals or Path(text).expanduser().exists():
        return ReplaySource(text)
    try:
        ratio = float(number)
    except ValueError as error:
        raise DataError(
            f"`{text}`: behind the `=` stands the ratio, replayed images per labelled training image, such as "
            f"`{place}=0.5`. Received: {number!r}."
        ) from error
    return ReplaySource(place, ratio)


@dataclass(frozen=True, eq=False)
class Replayed:
    """Replayed images, each split as of `read_replay`: those that are trained on, and those that are held out."""

    train: Split = field(default_factory=lambda: Split(()))
    held_out: Split = field(default_factory=lambda: Split(()))


def choose_replay(
    sources: Sequence[ReplaySource],
    classes: Sequence[tuple[str, ...]],
    n_labelled: int,
    seed: int,
    labelled: Collection[Path] = (),
) -> Replayed:
    """The replayed images of a training: of each source `round(ratio * n_labelled)`, and a fifth as many more that are
    held out: thresholds are chosen with them. Where a source has fewer, all of its images, in the same proportion.

    Args:    classes: the learned classes, (name, synonym, ...), in class-id order.
             n_labelled: labelled training images.
             seed: draws the images.
             labelled: images of the data set itself, which are not replayed: they show the new objects.
    Returns: the images of all sources, sorted by path.
    Raises:  DataError: as of `read_replay`; a place stands twice, or a ratio amounts to no image.
    """
    places = [Path(source.place).expanduser().resolve() for source in sources]
    parts = []
    for source, place in zip(sources, places, strict=True):
        count = round(source.ratio * n_labelled)
        if places.count(place) > 1:
            raise DataError(
                f"Replay from `{source.place}` is asked for twice. Give it once, with the sum of the ratios."
            )
        if count == 0:
            raise DataError(
                f"Replay from `{source.place}`: {source.ratio:g} times {n_labelled} labelled training images is no "
                "image. Raise the ratio."
            )
        parts.append(read_replay(source.place, classes, count=count + round(HELD_OUT * count), seed=seed))
    own = {path.resolve() for path in labelled}
    drawn = sorted((sample for part in parts for sample in part.samples), key=lambda sample: sample.path)
    samples = [sample for sample in drawn if sample.path.resolve() not in own]
    if len(samples) < len(drawn):
        log.warning("%d images are labelled ones, and are not replayed.", len(drawn) - len(samples))
    if not samples:
        raise DataError("All replayed images are images of the data set itself. Give images without the new objects.")
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    held = set(order[: round(len(samples) * HELD_OUT / (1 + HELD_OUT))].tolist())
    skipped = tuple(path for part in parts for path in part.skipped)
    return Replayed(
        Split(tuple(sample for i, sample in enumerate(samples) if i not in held), skipped),
        Split(tuple(samples[i] for i in sorted(held))),
    )


def read_replay(
    source: str | Path, classes: Sequence[tuple[str, ...]], *, count: int | None = None, seed: int = 0
) -> Split:
    """Images to replay. No box of theirs is a positive: all are `ignore`, where a learned class may really be.

    A text names a class when it contains the class's name or a synonym as whole words, in any case, the last word in
    singular or plural (s, es, ies): "the red forklifts" names "forklift". A labelled box stays, ignored for each class
    that its label names; other boxes are dropped, which makes their regions negatives. For captions see
    `ignored_regions`. A plain folder says nothing about what its images show: it should hold none of the new objects.

    Args:    source: a data set that `read_dataset` reads (its training images; where it has none, its validation
                 images), a folder of images (and the folders in it), a grounding set's JSON file, or its YAML.
             classes: the learned classes, (name, synonym, ...), in class-id order.
             count: so many images are drawn, before any is opened; None is all. Files that are not there are replaced
                 by further ones, damaged ones are not.
             seed: draws them.
    Returns: the images, sorted by path, `classes` being indices into `classes`; damaged or missing ones are left out,
             counted and named (`Split.skipped` and a warning).
    Raises:  DataError: nothing that can be read is there, no image can be read, or a label breaks a rule.
    """
    if count is not None and count < 1:
        raise DataError(f"`count`, the images to replay, must be at least 1. Received: {count}.")
    place = Path(source).expanduser()
    patterns = [name_pattern(prompts) for prompts in classes]
    found = _captioned(place)
    if found is not None:
        images = [ignored_regions(image, patterns) for image in _draw(found, count, seed, place)]
    else:
        labels = _labels(place)
        split = next((split for split in ("train", "val") if split in labels.splits), None)
        if split is None:
            raise DataError(f"`{place}` has no `train` and no `val`: it has no images to replay. {_WANTED}")
        named = [[i for i, pattern in enumerate(patterns) if pattern.search(name)] for name in labels.names]
        drawn = _draw(sorted(labels.splits[split], key=lambda image: image.path), count, seed, place)
        images = [_ignoring(image, named) for image in drawn]
    replayed = make_split(images, "replay", len(classes))
    log.info(
        "`%s`: %d images to replay; in %d of them learned classes are named, and left out of the negatives there.",
        place,
        len(replayed.samples),
        sum(len(sample.labels.classes) > 0 for sample in replayed.samples),
    )
    return replayed


def name_pattern(prompts: Sequence[str]) -> re.Pattern[str]:
    """What finds a class in a text.

    Args:    prompts: (name, synonym, ...) of the class.
    Returns: the pattern; see `read_replay` for the rule.
    """
    alternatives = []
    for prompt in prompts:
        words = [word for word in re.split(_GAP, prompt) if word] or [prompt]
        last = "|".join(re.escape(form) for form in sorted(_forms(words[-1])))
        alternatives.append(_GAP.join([*map(re.escape, words[:-1]), f"(?:{last})"]))
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(alternatives)})(?![^\W_])", re.IGNORECASE)


def _forms(word: str) -> set[str]:
    """A word, what its plural may be, and what it may be the plural of."""
    forms = {word, word + "s", word + "es"}
    if word.lower().endswith("y"):
        forms.add(word[:-1] + "ies")
    for ending, singular in (("s", ""), ("es", ""), ("ies", "y")):
        stem = word[: -len(ending)]
        if word.lower().endswith(ending) and len(stem) > 1:
            forms.add(stem + singular)
    return forms


def _captioned(place: Path) -> list[CaptionedImage] | None:
    """The images of a grounding set; None when the place is something else."""
    if place.is_file() and place.suffix.lower() == ".json":
        return read_grounding(place)
    if place.is_file() and place.suffix.lower() in _YAML_SUFFIXES:
        content = read_yaml(place)
        return read_grounding_yaml(place, content) if GROUNDING_KEY in content else None
    return None


def _labels(place: Path) -> RawLabels:
    """The labels of a data set, or a plain folder as a set of training images without classes."""
    if not place.is_dir() and not (place.is_file() and place.suffix.lower() in _YAML_SUFFIXES):
        what = "is nothing to replay" if place.exists() else "no such file or folder"
        raise DataError(f"`{place}`: {what}. {_WANTED}")
    labels = find_labels(place)
    if labels is not None:
        return labels
    try:
        paths = find_images(f"{glob.escape(str(place))}/**/*")
    except DataError as error:
        raise DataError(f"`{place}` has no image in it, nor in its folders, and is no data set. {_WANTED}") from error
    return RawLabels((), "yolo", {"train": [LabelledImage(path, []) for path in paths]})


def _draw(images: Sequence[_Image], count: int | None, seed: int, place: Path) -> list[_Image]:
    """So many images whose files are there, and those that the draw met and are not: `make_split` names them."""
    if count is None or count >= len(images):
        if count is not None and count > len(images):
            log.info("`%s` has %d images, fewer than the %d to replay: all are taken.", place, len(images), count)
        return list(images)
    drawn: list[_Image] = []
    there = 0
    for index in np.random.default_rng(seed).permutation(len(images)):
        drawn.append(images[index])
        there += images[index].path.is_file()
        if there == count:
            break
    return drawn


def _ignoring(image: LabelledImage, named: Sequence[Sequence[int]]) -> LabelledImage:
    """The image with the boxes of named classes only, ignored.

    Args:    named: of each class of the data set, the learned classes that its name names.
    """
    rows = []
    for row in image.rows:
        if not 0 <= row.class_id < len(named):
            raise DataError(
                f"{row.where}: class id {row.class_id} is outside the names (0 to {len(named) - 1}). "
                "Correct the id, or add its name."
            )
        rows += [replace(row, class_id=class_id, ignore=True) for class_id in named[row.class_id]]
    return replace(image, rows=rows, declared_wh=image.declared_wh if rows else None)
