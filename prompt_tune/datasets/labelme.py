"""Data sets of labelme: a JSON file for each image, beside it or in another folder of the data set.

The box around a rectangle, a polygon, a circle, a mask or a line of three or more points is read. An image without a
JSON file is left out, since labelme writes none for an image that nobody has looked at; a file without shapes makes
its image background.
"""

import math
from itertools import islice
from pathlib import Path
from typing import Any

from prompt_tune.datasets.named import Album, Found, NamedImage, NamedRow
from prompt_tune.datasets.places import beginning, read_json
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.datasets.shapes import Box, box_around, is_number
from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import walk
from prompt_tune.wording import shown

MAX_BYTES = 2**28  # of a file: labelme may write the image into it
_LOOKED_AT = 20  # JSON files, to recognise the format
_SHAPES = "rectangle, polygon, circle, linestrip, mask and oriented_rectangle"
_HEAVY = ("imageData", "mask")


def is_labelme(folder: Path) -> bool:
    """Whether one of the first JSON files in a folder and its subfolders is labelme's."""
    return any(_looks_right(file) for file in islice(_files(folder), _LOOKED_AT))


def read_labelme(folder: Path) -> dict[str, Found]:
    """Reads all of labelme's files in a folder and its subfolders. Files and shapes that break a rule are left out."""
    album = Album(folder)
    for file in _files(folder):
        _read_file(file, folder, album)
    return {"train": album.found(unlabelled="the JSON files of labelme")}


def _files(folder: Path) -> Any:
    return (path for path in walk(folder) if path.suffix.lower() == ".json")


def _looks_right(file: Path) -> bool:
    head = beginning(file)
    return head.lstrip().startswith("{") and '"shapes"' in head and ('"imagePath"' in head or '"shape_type"' in head)


def _read_file(file: Path, folder: Path, album: Album) -> None:
    """Adds the image and the shapes of a file."""
    where = f"`{file}`"
    try:
        content = read_json(file, _without_pixels, "Save it again in labelme.", MAX_BYTES)
    except DataError as error:
        album.left_out.append(LeftOut(Reason.IMAGE, f"{error} Until then, its image is left out."))
        return
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        return  # another tool's file
    named = content.get("imagePath")
    own = str(file.relative_to(folder).with_suffix(""))
    beside = f"{file.relative_to(folder).parent}/{named}" if isinstance(named, str) else own
    image = album.image(where, beside, own)
    if image is None:
        return
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if type(width) is int and type(height) is int:
        image.size_wh = width, height
    for number, shape in enumerate(shapes, start=1):
        _add(image, f"{where}, shape {number}", shape)


def _without_pixels(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _HEAVY}


def _add(image: NamedImage, where: str, shape: Any) -> None:
    try:
        name = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"a shape has a `label`. Received: {shown(name)}.")
        image.rows.append(NamedRow(where, name.strip(), _box(shape)))
    except DataError as error:
        image.left_out.append(LeftOut(Reason.ROW, f"{where}: {error}"))


def _box(shape: dict[str, Any]) -> Box:
    """The box around a shape, in pixels."""
    points, kind = shape.get("points"), shape.get("shape_type", "polygon")
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in points
    ):
        raise DataError(f"`points` must be a list of [x, y]. Received: {shown(points)}.")
    flat = [float(value) for point in points for value in point]
    if kind in ("rectangle", "mask") and len(points) == 2:
        x1, y1, x2, y2 = flat
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if kind == "circle" and len(points) == 2:
        x, y, edge_x, edge_y = flat
        radius = math.hypot(edge_x - x, edge_y - y)
        return x - radius, y - radius, x + radius, y + radius
    if kind in ("polygon", "linestrip", "rectangle", "oriented_rectangle"):
        return box_around(flat)
    raise DataError(
        f"a shape {shown(kind)} of {len(points)} points has no box. Read are {_SHAPES}. Draw one of them, or remove it."
    )
