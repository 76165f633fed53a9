"""Data sets in ultralytics' format: a YAML with `train`, `val`, `test` and `names`, and a label file for each image.

A line of a label file is `class x y w h`: centre and size as fractions of the image's width and height. A polygon
(`class x1 y1 x2 y2 x3 y3 ...`, which may be a rotated box of four corners) is read as the box around it. An image
without a label file is background.
"""

from pathlib import Path
from typing import Any

from prompt_tune.datasets.finding import Finder, folded, may_exist, pair, sharing, warn_of_sharing
from prompt_tune.datasets.places import (
    MAX_LABEL_BYTES,
    cannot_use,
    clean_path,
    expanded,
    files_under,
    gate_of,
    is_hidden,
    read_list,
    read_text,
    resolve,
    root_of,
)
from prompt_tune.datasets.samples import LabelledImage, LeftOut, RawLabels, Reason, Row
from prompt_tune.datasets.shapes import box_around, may_be_pose
from prompt_tune.datasets.splits import split_of
from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import walk
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES
from prompt_tune.wording import brief, shown

MAX_LINE = 2**20  # characters of a row: a polygon of more than 50,000 points
_BOX_FIELDS = 5
_LEAST_POLYGON_FIELDS = 7  # a class and three points
_NAMED = 5  # entries in an error
_EXTRA = "A confidence, an angle, a track or keypoints after the box are not read. "
_POSE = "this looks like a box and the keypoints of a pose, which is not read. Keep the first five numbers."


def read_yolo(description: Path, content: dict[str, Any]) -> RawLabels:
    """Reads the labels of an ultralytics data set.

    Args:
        description: The YAML file, for paths and error texts.
        content: The mapping in that file.

    Returns:
        The labels of all splits, not checked against the images.

    Raises:
        DataError: A key breaks a rule. A path that does makes its split unusable. Label rows and files that do are left
            out.
    """
    if "kpt_shape" in content:
        raise DataError(f"`{description}` has `kpt_shape`: its labels are poses, not boxes. Give a detection data set.")
    names = _names(description, content)
    root = root_of(description, content)
    splits, unusable, left_out = {}, {}, {}
    for split, key in _split_keys(content).items():
        try:
            paths, passed, folders = _image_paths(root, content[key], description, key)
        except DataError as error:
            unusable[split] = str(error)
            continue
        splits[split], unread = _read_split(paths)
        left_out[split] = [*passed.values(), *unread, *_alone(folders, [*paths, *passed])]
    return RawLabels(names, "yolo", splits, unusable, left_out)


def _split_keys(content: dict[str, Any]) -> dict[str, str]:
    """The key of each split that a description has, as tools spell them; ultralytics' own spelling comes first."""
    keys: dict[str, str] = {}
    for key in ("train", "val", "test", *content):
        if isinstance(key, str) and content.get(key) and (split := split_of(key)):
            keys.setdefault(split, key)
    return {split: keys[split] for split in ("train", "val", "test") if split in keys}


def _names(description: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(
                f"`{description}`: the keys of `names` must be 0, 1, 2, ... without a gap. Received: "
                f"{shown(list(names))}."
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"`{description}` has no `names`. Add them: a list, or a mapping from class id to name.")
    unquoted = [name for name in names if isinstance(name, bool) or not isinstance(name, str | int | float)]
    if unquoted:  # YAML reads a bare `no` as false
        raise DataError(
            f"`{description}`: a class name must be text. Received: {shown(unquoted[0])}. Put it in quotes."
        )
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(f"`{description}`: `nc` is {shown(count)}, but `names` has {len(names)}. Make them agree.")
    return tuple(str(name) for name in names)


def _image_paths(
    root: Path, entries: Any, description: Path, key: str
) -> tuple[list[Path], dict[Path, LeftOut], list[Path]]:
    """The images of a split, from folders (searched recursively) and from lists; what is passed over; the folders."""
    entries = [entries] if isinstance(entries, str) else entries
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(
            f"`{description}`: `{key}` must be a folder, a text file, or a list of them. Received: {shown(entries)}."
        )
    paths: set[Path] = set()
    passed: dict[Path, LeftOut] = {}
    folders: list[Path] = []
    finder = Finder()
    gate = gate_of(description, root)
    for entry in entries:
        place = resolve(root, entry, description)
        if expanded(entry, f"`{description}`").is_absolute():  # the user names it
            gate = gate.with_folders([], [place])
        if place.is_dir():
            folders.append(place)
            paths.update(files_under(place, IMAGE_SUFFIXES, passed))
        elif place.suffix.lower() == ".txt":
            # ultralytics takes `./` from the list's own folder and other paths from the current one; we take both here
            listing = gate.with_folders([place.parent])
            for line in read_list(place):
                path = clean_path(_listed(place.parent, line, finder))
                if not may_exist(line):
                    what = f"`{place}`: {shown(line)} cannot be a path. Correct or remove the line."
                    passed[path] = LeftOut(Reason.IMAGE, what)
                    continue
                listing.check(path, f"`{place}`", line)
                if link := cannot_use(path):
                    passed[path] = link
                elif not is_hidden(path, place.parent):
                    paths.add(path)
        else:
            raise DataError(
                f"`{description}`: `{key}: {entry}` must be a folder of images or a .txt file that lists them."
            )
    if not paths and not passed:
        raise DataError(
            f"`{description}`: `{key}: {', '.join(map(str, entries[:_NAMED]))}` holds no image. Correct the entry."
        )
    return sorted(paths), passed, folders


def _listed(folder: Path, line: str, finder: Finder) -> Path:
    """The image that a line of a list names; CVAT writes `data/` before paths that start from the list's folder."""
    short = line.removeprefix("data/")
    return finder.find(folder / line) or (finder.find(folder / short) if short != line else None) or folder / line


def _label_path(image: Path) -> Path:
    """The label file of an image: ultralytics replaces the last folder `images` in its path, if any, by `labels`."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _alone(folders: list[Path], images: list[Path]) -> list[LeftOut]:
    """Label files that have boxes and no image, in the label folders of image folders."""
    known = {folded(str(_label_path(image))) for image in images}
    found: dict[Path, LeftOut] = {}
    for folder in folders:
        place = _label_path(folder / "x").parent
        if place == folder or not place.is_dir():  # beside images, any text file may be
            continue
        for file in walk(place):
            if file.suffix.lower() == ".txt" and folded(str(file)) not in known and _has_rows(file):
                what = f"`{file}` has boxes, but `{folder}` has no image of its name. Restore it, or remove the labels."
                found[file] = LeftOut(Reason.ALONE, what)
    return list(found.values())


def _has_rows(file: Path) -> bool:
    """Whether a text file begins with a label row."""
    try:
        lines = read_text(file, most=MAX_LABEL_BYTES).split("\n", 1)
        _numbers(lines[0])
    except DataError:
        return False
    return True


def _read_split(paths: list[Path]) -> tuple[list[LabelledImage], list[LeftOut]]:
    """The labelled images, and those that are left out because their boxes are unknown."""
    labels = pair(paths, _label_path, Finder())
    warn_of_sharing(sharing(labels))
    images, left_out = [], []
    shapes: set[tuple[int, bool]] = set()
    for path in paths:
        image = LabelledImage(path, [], normalised=True)
        if label := labels.get(path):
            try:
                shapes |= _read_labels(label, image)
            except DataError as error:
                left_out.append(
                    cannot_use(label) or LeftOut(Reason.IMAGE, f"{error} Until then, `{path}` is left out.")
                )
                continue
        images.append(image)
    if len(shapes) == 1 and shapes.pop()[1]:
        # Each row alone could be a small polygon, but polygons of one length that all look like poses are poses.
        for image in images:
            image.left_out.extend(LeftOut(Reason.ROW, f"{row.where}: {_POSE}") for row in image.rows)
            image.rows.clear()
    return images, left_out


def _read_labels(file: Path, image: LabelledImage) -> set[tuple[int, bool]]:
    """Adds the rows of a label file to an image; returns their lengths, and whether they may be poses."""
    shapes = set()
    for number, line in enumerate(read_text(file, most=MAX_LABEL_BYTES).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = _numbers(line)
            image.rows.append(Row(f"`{file}`, line {number}", int(values[0]), _box(values[1:])))
            shapes.add((len(values), len(values) > _BOX_FIELDS and may_be_pose(values[1:], 2)))
        except DataError as error:
            image.left_out.append(LeftOut(Reason.ROW, f"`{file}`, line {number}: {error}"))
    return shapes


def _numbers(line: str) -> list[float]:
    """The numbers of a line: a class, and a box or a polygon."""
    if len(line) > MAX_LINE:
        raise DataError(f"a line has at most {MAX_LINE:,} characters. Received: {len(line):,}. Correct or remove it.")
    fields = line.split()
    if len(fields) != _BOX_FIELDS and (len(fields) < _LEAST_POLYGON_FIELDS or len(fields) % 2 == 0):
        extra = _EXTRA if len(fields) > _BOX_FIELDS else ""
        raise DataError(
            f"a box is `class x y w h`, 5 numbers. Received: {len(fields)}. {extra}Correct or remove the line."
        )
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise DataError(f"a box is `class x y w h`, 5 numbers. Received: `{brief(line.strip())}`.") from error
    if not values[0].is_integer():
        raise DataError(f"a class id must be a whole number. Received: `{brief(fields[0])}`.")
    return values


def _box(values: list[float]) -> tuple[float, float, float, float]:
    """The box that the numbers after the class say."""
    if len(values) == _BOX_FIELDS - 1:
        x, y, w, h = values
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if may_be_pose(values, 3):
        raise DataError(_POSE)
    return box_around(values)
