"""Data sets in CVAT's own XML ("CVAT for images 1.1"), which FiftyOne writes too: one file for all images.

The file is `annotations.xml` or `labels.xml` in the folder of the images or above it. Boxes (turned ones too),
polygons, polylines and ellipses are read as the box around them. An image without shapes is background. "CVAT for
video" has tracks instead of images, and is refused.
"""

import math
from pathlib import Path
from xml.etree import ElementTree

from prompt_tune.datasets.named import Album, Found, NamedImage, NamedRow
from prompt_tune.datasets.places import beginning
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.datasets.shapes import Box, box_around, box_around_rotated
from prompt_tune.datasets.splits import split_of
from prompt_tune.datasets.xml_files import MAX_XML_BYTES, parsed_xml
from prompt_tune.errors import DataError
from prompt_tune.wording import shown

FILES = ("annotations.xml", "labels.xml")
_SHAPES = ("box", "polygon", "polyline", "ellipse")
_OTHERS = ("points", "mask", "skeleton", "cuboid")


def is_cvat(folder: Path) -> bool:
    """Whether a folder has a file in CVAT's XML."""
    return _file(folder) is not None


def read_cvat(folder: Path) -> dict[str, Found]:
    """Reads the file of a folder, by the subsets of its images. Shapes that break a rule are left out.

    Raises:
        DataError: The file cannot be read, or has tracks.
    """
    file = _file(folder)
    if file is None:
        raise DataError(f"`{folder}` has no file in CVAT's XML.")
    try:
        root = parsed_xml(file, MAX_XML_BYTES)
    except ValueError as error:
        raise DataError(f"`{file}` is not valid XML: {error}. Export it again.") from error
    if root.find("track") is not None:
        raise DataError(f"`{file}` has tracks of a video, which are not read. Export it as `CVAT for images 1.1`.")
    entries = [(split_of(entry.get("subset", "")) or "train", entry) for entry in root.iterfind("image")]
    albums = {split: Album(folder) for split in sorted({split for split, _ in entries} | {"train"})}
    for number, (split, entry) in enumerate(entries, start=1):
        name = entry.get("name", "")
        where = f"`{file}`, image {number}"
        image = albums[split].image(f"{where} ({shown(name)})", name)
        if image is not None:
            sides = [entry.get(key, "") for key in ("width", "height")]
            if all(side.isdecimal() and len(side) < 10 for side in sides):
                image.size_wh = int(sides[0]), int(sides[1])
            _add_all(image, where, entry)
    return {split: album.found() for split, album in albums.items() if split == "train" or len(album.found().images)}


def _file(folder: Path) -> Path | None:
    places = (folder / name for name in FILES)
    return next((path for path in places if path.is_file() and "<annotations" in beginning(path)), None)


def _add_all(image: NamedImage, where: str, entry: ElementTree.Element) -> None:
    for number, shape in enumerate(entry, start=1):
        place = f"{where}, shape {number}"
        try:
            if shape.tag in _OTHERS:
                raise DataError(f"`<{shape.tag}>` has no box. Draw a rectangle, or remove it.")
            if shape.tag not in _SHAPES:
                continue
            name = shape.get("label", "").strip()
            if not name:
                raise DataError("it has no `label`.")
            image.rows.append(NamedRow(place, name, _box(shape)))
        except DataError as error:
            image.left_out.append(LeftOut(Reason.ROW, f"{place}: {error}"))


def _box(shape: ElementTree.Element) -> Box:
    turn = math.radians(_number(shape, "rotation", "0"))
    if shape.tag == "box":
        x1, y1, x2, y2 = (_number(shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        return box_around_rotated((x1, y1, x2, y2), turn)
    if shape.tag == "ellipse":
        x, y, half_w, half_h = (_number(shape, key) for key in ("cx", "cy", "rx", "ry"))
        return box_around_rotated((x - half_w, y - half_h, x + half_w, y + half_h), turn)
    try:
        return box_around([float(value) for point in shape.get("points", "").split(";") for value in point.split(",")])
    except ValueError as error:
        raise DataError(f"`points` must be x,y;x,y;... Received: {shown(shape.get('points'))}.") from error


def _number(shape: ElementTree.Element, key: str, default: str = "") -> float:
    text = shape.get(key, default)
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"`{key}` must be a number. Received: {shown(text)}.") from error
