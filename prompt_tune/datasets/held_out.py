"""Holds validation images out of the training images of a data set that has no others, and finds copies of pictures."""

import hashlib
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prompt_tune.datasets.samples import Sample, Split
from prompt_tune.errors import DataError

HELD_OUT_SHARE = 0.2  # of the training images, if a data set has no validation images
_NAMED = 10  # class names in a warning
# Roboflow writes each augmented copy of `NAME.jpg` as `NAME_jpg.rf.HASH.jpg`
_ROBOFLOW_NAME = re.compile(r"(.+_[A-Za-z0-9]+)\.rf\.[^.]+\.[^.]+")
log = logging.getLogger(__name__)


def hold_out(
    train: Split, names: Sequence[str], seed: int, place: Path, recorded: Collection[str] | None = None
) -> tuple[Split, Split]:
    """Splits training images into training and validation images.

    About a fifth of the images with boxes and a fifth of the background are held out. Copies of one picture stay
    together, and every class keeps a training image. One line names the classes that have no held-out image. If no
    image can be held out in this way, all images are both trained and validated on, and one line says so.

    Args:
        train: The images to divide.
        names: The class names, in class-id order.
        seed: Draws the images.
        place: The data set, for error texts.
        recorded: What a run says of its held-out images: their content digests, or nothing if it was made before runs
            said so. It then gets the draw of that time. None draws by the rule above.

    Returns:
        The training and the validation images.

    Raises:
        DataError: Only one image has boxes.
    """
    held: set[int] = set()
    if recorded:
        digests = [content_digest(sample.path) for sample in train.samples]
        held = {index for index, digest in enumerate(digests) if digest in recorded}
        missing = len(set(recorded) - set(digests))
        if held and missing:
            log.warning("%d of the %d images that the run held out are not in `%s`.", missing, len(recorded), place)
    if not held:
        held = _first_draw(train, seed, place)
        if recorded is None or recorded:
            held = _by_the_rule(train, held, seed)
    kept, val = (
        tuple(sample for index, sample in enumerate(train.samples) if (index in held) == is_held)
        for is_held in (False, True)
    )
    if not any(map(has_box, kept)) or not any(map(has_box, val)):
        log.warning(
            "`%s` has no `val`, and no image can be held out, because each picture with boxes is the only one of a "
            "class. Validation uses the same images as training, so its figures are too good. Label more, or add "
            "`val`.",
            place,
        )
        return train, train
    validated = {int(k) for sample in val for k in _classes(sample)}
    rare = sorted({int(k) for sample in kept for k in _classes(sample)} - validated)
    if rare:
        more = ", ..." if len(rare) > _NAMED else ""
        log.warning(
            "Too rare to validate: %s%s. No held-out image shows %s, so AP leaves such a class out. Label more "
            "images of it, or add `val`.",
            ", ".join(names[k] for k in rare[:_NAMED]),
            more,
            "it" if len(rare) == 1 else "them",
        )
    return replace(train, samples=kept), Split(val)


def has_box(sample: Sample) -> bool:
    """Whether an image has a box that is not ignored."""
    return bool((~sample.labels.ignore).any())


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}. Check the file.") from error


def pictures(paths: Sequence[Path]) -> list[int]:
    """Numbers the pictures behind files: copies of one picture have the same number.

    Copies are files with the same content, and Roboflow's `NAME_jpg.rf.HASH.jpg` files of one photo.

    Args:
        paths: The files. Only those of equal size are read.
    """
    sizes = [path.stat().st_size for path in paths]
    repeated = {int(size) for size, count in zip(*np.unique(sizes, return_counts=True), strict=True) if count > 1}
    roots = list(range(len(paths)))
    first: dict[tuple[str, str], int] = {}
    for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        keys = [("content", content_digest(path))] if size in repeated else []
        if named := _ROBOFLOW_NAME.fullmatch(path.name):
            keys.append(("name", named[1]))
        for key in keys:
            a, b = _root(roots, first.setdefault(key, index)), _root(roots, index)
            roots[max(a, b)] = min(a, b)
    return [_root(roots, index) for index in range(len(paths))]


def copied(paths: Sequence[Path], others: Sequence[Path]) -> list[bool]:
    """Whether each of the files is a copy of one of the others; see `pictures`."""
    numbers = pictures([*others, *paths])
    known = set(numbers[: len(others)])
    return [number in known for number in numbers[len(others) :]]


def _root(roots: list[int], index: int) -> int:
    while roots[index] != index:
        index = roots[index]
    return index


def _classes(sample: Sample) -> np.ndarray:
    """The classes of an image, without ignored boxes."""
    return np.unique(sample.labels.classes[~sample.labels.ignore])


def _first_draw(train: Split, seed: int, place: Path) -> set[int]:
    """The draw image by image, which all runs had that say nothing of their held-out images. It must stay as it is."""
    rng = np.random.default_rng(seed)
    held: set[int] = set()
    for boxes in (True, False):
        members = [index for index, sample in enumerate(train.samples) if has_box(sample) == boxes]
        if boxes and len(members) < 2:
            raise DataError(
                f"`{place}` has no `val`, and one image with boxes cannot be split. Label more, or add `val`."
            )
        count = round(len(members) * HELD_OUT_SHARE)
        held.update(rng.permutation(members)[: max(count, 1) if boxes else count].tolist())
    return held


def _by_the_rule(train: Split, first: set[int], seed: int) -> set[int]:
    """The first draw if it keeps copies together and every class trained; otherwise a draw of pictures that does.

    Empty if there is none.
    """
    groups: dict[int, list[int]] = {}
    for index, number in enumerate(pictures([sample.path for sample in train.samples])):
        groups.setdefault(number, []).append(index)
    classes = {
        number: {int(k) for index in members for k in _classes(train.samples[index])}
        for number, members in groups.items()
    }
    whole = all(len(first.intersection(members)) in (0, len(members)) for members in groups.values())
    trained = {k for number, members in groups.items() if members[0] not in first for k in classes[number]}
    if whole and trained == set().union(*classes.values()):
        return first
    left = {k: sum(k in found for found in classes.values()) for k in set().union(*classes.values())}
    rng = np.random.default_rng(seed)
    held: set[int] = set()
    for boxes in (True, False):
        numbers = [number for number in groups if bool(classes[number]) == boxes]
        order = [numbers[i] for i in rng.permutation(len(numbers))]
        count = round(sum(len(groups[number]) for number in numbers) * HELD_OUT_SHARE)
        taken = 0
        for number in order:
            if taken + len(groups[number]) <= count and all(left[k] > 1 for k in classes[number]):
                taken += len(groups[number])
                held.update(groups[number])
                for k in classes[number]:
                    left[k] -= 1
        if boxes and not taken:
            possible = [number for number in order if all(left[k] > 1 for k in classes[number])]
            if not possible:
                return set()
            number = min(possible, key=lambda number: len(groups[number]))
            held.update(groups[number])
            for k in classes[number]:
                left[k] -= 1
    return held
