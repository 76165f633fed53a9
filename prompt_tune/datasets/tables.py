"""Data sets whose boxes are lines of a table, as Roboflow exports them: a file beside the images of each split.

`_annotations.csv` (TensorFlow, with a heading, or RetinaNet, without one), `_annotations.txt` with `_classes.txt` (YOLO
Keras, YOLOv4 PyTorch) and `_annotations.createml.json` (CreateML, whose boxes have a centre). Boxes are pixels. An
image without a line is background.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prompt_tune.datasets.named import Album, Found, NamedRow
from prompt_tune.datasets.places import MAX_TEXT_BYTES, read_json, read_lines, read_list
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.datasets.shapes import Box, is_number
from prompt_tune.errors import DataError
from prompt_tune.wording import shown

CSV, KERAS, CREATEML = "_annotations.csv", "_annotations.txt", "_annotations.createml.json"
_KERAS_CLASSES = "_classes.txt"
_HEADING = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_BARE = ("filename", "xmin", "ymin", "xmax", "ymax", "class")


def is_table(folder: Path) -> bool:
    """Whether a folder has one of the tables."""
    return _reader(folder) is not None


def read_table(folder: Path) -> dict[str, Found]:
    """Reads the table of a folder. Lines that break a rule are left out.

    Raises:
        DataError: The table cannot be read.
    """
    reader = _reader(folder)
    if reader is None:
        raise DataError(f"`{folder}` has no table of boxes.")
    album = Album(folder)
    names = reader(folder, album)
    return {"train": album.found(names, background=True)}


def _reader(folder: Path) -> Callable[[Path, Album], tuple[str, ...]] | None:
    if (folder / CSV).is_file():
        return _read_csv
    if (folder / KERAS).is_file() and (folder / _KERAS_CLASSES).is_file():
        return _read_keras
    return _read_createml if (folder / CREATEML).is_file() else None


def rows_of(file: Path, most: int = MAX_TEXT_BYTES) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file with their numbers.

    Args:
        file: The file.
        most: The most bytes that it may have.

    Raises:
        DataError: The file cannot be read, or is no CSV.
    """
    reader = csv.reader(read_lines(file, most))
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"`{file}`, line {reader.line_num + 1}: not valid CSV ({error}). Correct the line.") from error


def _read_csv(folder: Path, album: Album) -> tuple[str, ...]:
    file = folder / CSV
    columns: tuple[str, ...] = _BARE
    for number, row in rows_of(file):
        fields = [field.strip() for field in row]
        if number == 1 and {field.casefold() for field in fields} >= {"filename", "xmin"}:
            columns = tuple(field.casefold() for field in fields)
            if missing := [column for column in _BARE if column not in columns]:
                raise DataError(f"`{file}` has no column {', '.join(missing)}. It must have {', '.join(_HEADING)}.")
            continue
        where = f"`{file}`, line {number}"
        if len(fields) != len(columns):
            what = f"{where}: a line has {len(columns)} fields. Received: {len(fields)}."
            album.left_out.append(LeftOut(Reason.ROW, what))
            continue
        entry = dict(zip(columns, fields, strict=True))
        image = album.image(where, entry["filename"])
        if image is None or not any(entry[key] for key in _BARE[1:]):  # keras-retinanet: only commas is background
            continue
        if entry.get("width", "").isdecimal() and entry.get("height", "").isdecimal():
            image.size_wh = _size(entry["width"], entry["height"])
        try:
            box = _corners([entry[key] for key in _BARE[1:5]])
            if not entry["class"]:
                raise DataError("it has no class.")
            image.rows.append(NamedRow(where, entry["class"], box))
        except DataError as error:
            image.left_out.append(LeftOut(Reason.ROW, f"{where}: {error}"))
    return ()


def _size(width: str, height: str) -> tuple[int, int] | None:
    return (int(width), int(height)) if max(len(width), len(height)) < 10 else None


def _read_keras(folder: Path, album: Album) -> tuple[str, ...]:
    names = tuple(read_list(folder / _KERAS_CLASSES))
    file = folder / KERAS
    for number, line in enumerate(read_list(file), start=1):
        where = f"`{file}`, line {number}"
        fields = line.split()
        boxes = [index for index, field in enumerate(fields) if index and field.count(",") == 4]
        start = boxes[0] if boxes else len(fields)
        image = album.image(where, " ".join(fields[:start]))  # a name may have spaces
        for field in fields[start:] if image is not None else ():
            assert image is not None
            try:
                *corners, index = field.split(",")
                if not index.isdecimal() or len(index) > 9 or int(index) >= len(names):
                    raise DataError(f"class {shown(index)} is outside `{_KERAS_CLASSES}` ({len(names)} names).")
                image.rows.append(NamedRow(where, names[int(index)], _corners(corners)))
            except DataError as error:
                image.left_out.append(LeftOut(Reason.ROW, f"{where}: {error}"))
    return names


def _corners(texts: list[str]) -> Box:
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError as error:
        raise DataError(f"a box has four numbers. Received: {shown(', '.join(texts))}.") from error
    return x1, y1, x2, y2


def _read_createml(folder: Path, album: Album) -> tuple[str, ...]:
    file = folder / CREATEML
    entries = read_json(file, lambda entry: entry, "Export it again.")
    if not isinstance(entries, list):
        raise DataError(f"`{file}` must be a list of images. Received: {type(entries).__name__}. Export it again.")
    for position, entry in enumerate(entries, start=1):
        where = f"`{file}`, image {position}"
        name = (entry.get("image") or entry.get("imagefilename")) if isinstance(entry, dict) else None
        if not isinstance(name, str):
            album.left_out.append(LeftOut(Reason.IMAGE, f"{where}: it has no `image`. Received: {shown(entry)}."))
            continue
        image = album.image(where, name)
        boxes = entry.get("annotations", entry.get("annotation"))
        for number, box in enumerate(boxes if isinstance(boxes, list) else (), start=1):
            if image is None:
                break
            place = f"{where}, annotation {number}"
            try:
                image.rows.append(NamedRow(place, *_createml_box(box)))
            except DataError as error:
                image.left_out.append(LeftOut(Reason.ROW, f"{place}: {error}"))
    return ()


def _createml_box(entry: Any) -> tuple[str, Box]:
    name = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"an annotation has a `label`. Received: {shown(name)}.")
    held = entry.get("coordinates")
    values = [held.get(key) for key in ("x", "y", "width", "height")] if isinstance(held, dict) else [None]
    if not all(map(is_number, values)):
        raise DataError(f"`coordinates` must have x, y, width and height. Received: {shown(held)}.")
    x, y, w, h = (float(value) for value in values if value is not None)
    return name.strip(), (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
