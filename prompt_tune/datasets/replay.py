"""Replay: images without the new objects, mixed into training to teach the prompts what their classes are not.

YOLO-World's authors recommend it against forgetting (they mix in GQA). Here nothing can be forgotten, but replay cuts
false alarms: every region of a replayed image is a negative of every learned class, except where the image's own labels
or captions name that class.
"""

import logging
import math
import os
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
from prompt_tune.datasets.held_out import copied
from prompt_tune.datasets.opening import tell_left_out
from prompt_tune.datasets.places import expanded, files_under, read_yaml
from prompt_tune.datasets.reading import find_labels
from prompt_tune.datasets.samples import LabelledImage, LeftOut, RawLabels, Split, make_split
from prompt_tune.errors import DataError
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES
from prompt_tune.wording import counted

RATIO = 3.0  # replayed images per labelled one: at most half the false alarms for one point of AP (bench_methods.py)
HELD_OUT = 0.2  # further images, as a share of those in training; thresholds are chosen on them
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
    """A source of replayed images.

    Attributes:
        place: What `read_replay` reads.
        ratio: The number of replayed images per labelled training image, above 0.

    Raises:
        DataError: The ratio is not a finite number above 0, or the place is empty.
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
    """Parses the option of the command line: `DATA` or `DATA=0.5`.

    If a file or folder has exactly this name, including the `=`, the text is taken as that place.

    Raises:
        DataError: There is nothing before the `=`, or no number above 0 after it.
    """
    place, equals, number = text.rpartition("=")
    if not equals or os.path.exists(os.path.expanduser(text)):
        return ReplaySource(text)
    try:
        ratio = float(number)
    except ValueError as error:
        raise DataError(
            f"`{text}`: the text after `=` must be the ratio of replayed images to labelled training images, such as "
            f"`{place}=0.5`. Received: {number!r}."
        ) from error
    return ReplaySource(place, ratio)


@dataclass(frozen=True, eq=False)
class Replayed:
    """Replayed images of a training; see `read_replay` for their labels.

    Attributes:
        train: Images for training.
        held_out: Images on which thresholds are chosen.
    """

    train: Split = field(default_factory=lambda: Split(()))
    held_out: Split = field(default_factory=lambda: Split(()))


def choose_replay(
    sources: Sequence[ReplaySource],
    classes: Sequence[tuple[str, ...]],
    n_labelled: int,
    seed: int,
    labelled: Collection[Path] = (),
    strict: bool = False,
) -> Replayed:
    """Draws the replayed images of a training.

    Each source gives `round(ratio * n_labelled)` images for training and a fifth as many more, which are held out. A
    source with fewer images gives all it has, divided in the same proportion.

    Args:
        sources: Where the images come from.
        classes: The learned classes, (name, synonym, ...), in class-id order.
        n_labelled: The number of labelled training images.
        seed: Draws the images.
        labelled: Images of the data set itself. They show the new objects, so neither they nor copies are replayed.
        strict: Whether anything that is left out is an error.

    Returns:
        The images of all sources, sorted by path.

    Raises:
        DataError: See `read_replay`; or a place is given twice, or a ratio amounts to less than one image.
    """
    places = [expanded(source.place, "Replay").resolve() for source in sources]
    parts = []
    for source, place in zip(sources, places, strict=True):
        count = round(source.ratio * n_labelled)
        if places.count(place) > 1:
            raise DataError(f"Replay from `{source.place}` is given twice. Give it once, with the sum of the ratios.")
        if count == 0:
            raise DataError(
                f"Replay from `{source.place}`: {source.ratio:g} times {n_labelled} labelled training images is less "
                "than one image. Raise the ratio."
            )
        parts.append(
            read_replay(source.place, classes, count=count + round(HELD_OUT * count), seed=seed, strict=strict)
        )
    own = {path.resolve() for path in labelled}
    drawn = sorted((sample for part in parts for sample in part.samples), key=lambda sample: sample.path)
    copies = copied([sample.path for sample in drawn], sorted(own))
    samples = [
        sample for sample, copy in zip(drawn, copies, strict=True) if not copy and sample.path.resolve() not in own
    ]
    if len(samples) < len(drawn):
        what = counted(len(drawn) - len(samples), "image")
        log.warning("Not replayed: %s, labelled in the data set itself or copied from it.", what)
    if not samples:
        raise DataError("All replayed images belong to the data set itself. Give images without the new objects.")
    order = np.random.default_rng([seed, len(samples)]).permutation(len(samples))
    held = set(order[: round(len(samples) * HELD_OUT / (1 + HELD_OUT))].tolist())
    left_out = tuple(entry for part in parts for entry in part.left_out)
    return Replayed(
        Split(tuple(sample for i, sample in enumerate(samples) if i not in held), left_out),
        Split(tuple(samples[i] for i in sorted(held))),
    )


def read_replay(
    source: str | Path,
    classes: Sequence[tuple[str, ...]],
    *,
    count: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Split:
    """Reads images to replay. None of their boxes is a positive: all are `ignore`, where a learned class may be.

    A text names a class if it contains the class's name or a synonym as whole words, in upper or lower case, with the
    last word in singular or plural (s, es, ies): "the red forklifts" names "forklift". A labelled box is kept, ignored,
    for each class that its label names; other boxes are dropped, so that their regions are negatives. For captions see
    `ignored_regions`. A plain folder says nothing about its images, so it should show none of the new objects.

    Args:
        source: A data set that `read_dataset` reads (its training images, or else its validation images), a folder of
            images (searched recursively), the JSON file of a grounding set, or its YAML.
        classes: The learned classes, (name, synonym, ...), in class-id order.
        count: The number of images to draw, before any is opened; None takes all. Missing files are replaced by further
            draws, damaged ones are not.
        seed: Draws the images.
        strict: Whether anything that is left out is an error.

    Returns:
        The images, sorted by path, with labels that index `classes`. What cannot be used is left out, see
        `Split.left_out`, and counted and named as in `read_dataset`.

    Raises:
        DataError: There is nothing to replay at `source`, no image can be read, its labels cannot be meant, or
            `strict`, and something is left out.
    """
    if count is not None and count < 1:
        raise DataError(f"`count`, the images to replay, must be at least 1. Received: {count}.")
    place = expanded(str(source), "Replay")
    patterns = [name_pattern(prompts) for prompts in classes]
    found = _captioned(place)
    left_out: Sequence[LeftOut] = ()
    if found is not None:
        images = [ignored_regions(image, patterns) for image in _draw(found, count, seed, place)]
    else:
        labels = _labels(place)
        split = next((split for split in ("train", "val") if labels.has(split)), None)
        if split is None:
            raise DataError(f"`{place}` has no `train` and no `val`: it has no images to replay. {_WANTED}")
        named = [[i for i, pattern in enumerate(patterns) if pattern.search(name)] for name in labels.names]
        drawn = _draw(sorted(labels.images(split), key=lambda image: image.path), count, seed, place)
        images, left_out = [_ignoring(image, named) for image in drawn], labels.left_out.get(split, ())
    replayed = make_split(images, "replay", len(classes), left_out)
    naming = sum(len(sample.labels.classes) > 0 for sample in replayed.samples)
    tell_left_out(
        f"`{place}`: {counted(len(replayed.samples), 'image')} to replay; {naming} of them name learned classes, whose "
        "regions are no negatives there",
        replayed.left_out,
        strict=strict,
    )
    return replayed


def name_pattern(prompts: Sequence[str]) -> re.Pattern[str]:
    """Makes the pattern that finds a class in a text; see `read_replay` for the rule.

    Args:
        prompts: The class's name and synonyms.
    """
    alternatives = []
    for prompt in prompts:
        words = [word for word in re.split(_GAP, prompt) if word] or [prompt]
        last = "|".join(re.escape(form) for form in sorted(_forms(words[-1])))
        alternatives.append(_GAP.join([*map(re.escape, words[:-1]), f"(?:{last})"]))
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(alternatives)})(?![^\W_])", re.IGNORECASE)


def _forms(word: str) -> set[str]:
    """A word with its possible plurals, and the words of which it may be the plural."""
    forms = {word, word + "s", word + "es"}
    if word.lower().endswith("y"):
        forms.add(word[:-1] + "ies")
    for ending, singular in (("s", ""), ("es", ""), ("ies", "y")):
        stem = word[: -len(ending)]
        if word.lower().endswith(ending) and len(stem) > 1:
            forms.add(stem + singular)
    return forms


def _captioned(place: Path) -> list[CaptionedImage] | None:
    """The images of a grounding set, or None if the place is something else."""
    if place.is_file() and place.suffix.lower() == ".json":
        return read_grounding(place)
    if place.is_file() and place.suffix.lower() in _YAML_SUFFIXES:
        content = read_yaml(place)
        return read_grounding_yaml(place, content) if GROUNDING_KEY in content else None
    return None


def _labels(place: Path) -> RawLabels:
    """The labels of a data set. A plain folder is read as training images without classes."""
    if not place.is_dir() and not (place.is_file() and place.suffix.lower() in _YAML_SUFFIXES):
        what = "nothing to replay" if place.exists() else "no such file or folder"
        raise DataError(f"`{place}`: {what}. {_WANTED}")
    labels = find_labels(place)
    if labels is not None:
        return labels
    passed: dict[Path, LeftOut] = {}
    paths = files_under(place, IMAGE_SUFFIXES, passed)
    if not paths:
        raise DataError(f"`{place}` and its subfolders hold no image, and it is not a data set. {_WANTED}")
    return RawLabels(
        (), "yolo", {"train": [LabelledImage(path, []) for path in paths]}, left_out={"train": [*passed.values()]}
    )


def _draw(images: Sequence[_Image], count: int | None, seed: int, place: Path) -> list[_Image]:
    """Draws images until `count` of them exist. Missing ones that were drawn stay in, for `make_split` to name."""
    if count is None or count >= len(images):
        if count is not None and count > len(images):
            log.info(
                "`%s` has %s, fewer than the %d to replay: all are taken.", place, counted(len(images), "image"), count
            )
        return list(images)
    drawn: list[_Image] = []
    existing = 0
    for index in np.random.default_rng(seed).permutation(len(images)):
        drawn.append(images[index])
        existing += os.path.isfile(images[index].path)
        if existing == count:
            break
    return drawn


def _ignoring(image: LabelledImage, named: Sequence[Sequence[int]]) -> LabelledImage:
    """The image with only the boxes of learned classes, ignored; `named` has the learned classes of each own class."""
    rows = []
    for row in image.rows:
        if not 0 <= row.class_id < len(named):
            raise DataError(
                f"{row.where}: class id {row.class_id} is outside the names (0 to {len(named) - 1}). "
                "Correct the id, or add its name."
            )
        rows += [replace(row, class_id=class_id, ignore=True) for class_id in named[row.class_id]]
    return replace(image, rows=rows, declared_wh=image.declared_wh if rows else None)
