"""Data sets in ultralytics' format: a YAML with `train`, `val`, `test` and `names`, and a label file for each image.

A line of a label file is `class x y w h`: centre and size as fractions of the image's width and height. A polygon
(`class x1 y1 x2 y2 x3 y3 ...`) is read as the box around it. An image without a label file is background.
"""

import unicodedata
from pathlib import Path
from typing import Any

from prompt_tune.datasets.places import clean_path, files_under, read_list, read_text, resolve, root_of
from prompt_tune.datasets.samples import LabelledImage, RawLabels, Row
from prompt_tune.errors import DataError
from prompt_tune.runtime.images import IMAGE_SUFFIXES, is_metadata

_BOX_FIELDS = 5
_LEAST_POLYGON_FIELDS = 7  # a class and three points


def read_yolo(description: Path, content: dict[str, Any]) -> RawLabels:
    """Reads the labels of an ultralytics data set.

    Args:
        description: The YAML file, for paths and error texts.
        content: The mapping in that file.

    Returns:
        The labels of all splits, not checked against the images.

    Raises:
        DataError: A key breaks a rule. A path or a label file that does makes its split unusable.
    """
    if "kpt_shape" in content:
        raise DataError(f"`{description}` has `kpt_shape`: its labels are poses, not boxes. Give a detection data set.")
    names = _names(description, content)
    root = root_of(description, content)
    keys = {"train": "train", "val": "val" if content.get("val") else "validation", "test": "test"}
    splits, unusable = {}, {}
    for split, key in keys.items():
        if not content.get(key):
            continue
        try:
            paths = _image_paths(root, content[key], description, key)
            files = LabelFiles()
            splits[split] = [
                LabelledImage(path, _read_labels(files.find(_label_path(path))), normalised=True) for path in paths
            ]
        except DataError as error:
            unusable[split] = str(error)
    return RawLabels(names, "yolo", splits, unusable)


def _names(description: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(
                f"`{description}`: the keys of `names` must be 0, 1, 2, ... without a gap. Received: {list(names)}."
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"`{description}` has no `names`. Add them: a list, or a mapping from class id to name.")
    unquoted = [name for name in names if isinstance(name, bool) or not isinstance(name, str | int | float)]
    if unquoted:  # YAML reads a bare `no` as false
        raise DataError(f"`{description}`: a class name must be text. Received: {unquoted[0]!r}. Put it in quotes.")
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(f"`{description}`: `nc` is {count}, but `names` has {len(names)}. Make them agree.")
    return tuple(str(name) for name in names)


def _image_paths(root: Path, entries: Any, description: Path, key: str) -> list[Path]:
    """The images of a split, from folders (searched recursively) and from text files that list images."""
    entries = [entries] if isinstance(entries, str) else entries
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(
            f"`{description}`: `{key}` must be a folder, a text file, or a list of them. Received: {entries!r}."
        )
    paths: list[Path] = []
    for entry in entries:
        place = resolve(root, entry, description)
        if place.is_dir():
            paths += files_under(place, IMAGE_SUFFIXES)
        elif place.suffix.lower() == ".txt":
            # ultralytics takes `./` from the list's own folder and other paths from the current one; we take both here
            listed = [clean_path(place.parent / line) for line in read_list(place)]
            paths += (path for path in listed if not is_metadata(path.name))
        else:
            raise DataError(
                f"`{description}`: `{key}: {entry}` must be a folder of images or a .txt file that lists them."
            )
    if not paths:
        raise DataError(f"`{description}`: `{key}: {', '.join(entries)}` holds no image. Correct the entry.")
    return sorted(set(paths))


def _label_path(image: Path) -> Path:
    """The label file of an image: ultralytics replaces the last folder `images` in its path, if any, by `labels`."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


class LabelFiles:
    """Finds label files whose names are written in another way than those of the images.

    macOS decomposes the accents of names, and some tools write suffixes in capitals.
    """

    def __init__(self) -> None:
        """Start without any folder; each is listed at most once."""
        self._folders: dict[Path, dict[str, Path]] = {}

    def find(self, path: Path) -> Path | None:
        """The file of that name; else the one whose name is the same in Unicode's composed form; else None."""
        if path.exists():
            return path
        if path.parent not in self._folders:
            files = path.parent.iterdir() if path.parent.is_dir() else iter(())
            self._folders[path.parent] = {_composed(file): file for file in files if file.suffix.lower() == ".txt"}
        return self._folders[path.parent].get(_composed(path))


def _composed(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem) + path.suffix.lower()


def _read_labels(path: Path | None) -> list[Row]:
    if path is None:
        return []
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [_row(line.split(), f"`{path}`, line {number}") for number, line in lines if line.strip()]


def _row(fields: list[str], where: str) -> Row:
    is_polygon = len(fields) >= _LEAST_POLYGON_FIELDS and len(fields) % 2 == 1
    if len(fields) != _BOX_FIELDS and not is_polygon:
        raise DataError(
            f"{where}: a box is `class x y w h`, 5 numbers. Received: {len(fields)}. Correct or remove the line."
        )
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise DataError(f"{where}: a box is `class x y w h`, 5 numbers. Received: `{' '.join(fields)}`.") from error
    if not values[0].is_integer():
        raise DataError(f"{where}: a class id must be a whole number. Received: `{fields[0]}`.")
    if is_polygon:
        xs, ys = values[1::2], values[2::2]
        return Row(where, int(values[0]), (min(xs), min(ys), max(xs), max(ys)))
    x, y, w, h = values[1:]
    return Row(where, int(values[0]), (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
