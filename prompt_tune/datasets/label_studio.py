"""Data sets as Label Studio exports them: one JSON file of tasks ("JSON" or "JSON-MIN") in the folder of the images.

Rectangles (turned ones too), polygons and ellipses are read as the box around them; coordinates are percent of the
image. Of several annotations of a task, the one that is marked as ground truth counts, else the last that was not
cancelled. Predictions are not read. An annotation without regions makes its image background; a task without an
annotation is left out.
"""

import logging
import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from prompt_tune.datasets.named import Album, Found, NamedImage, NamedRow
from prompt_tune.datasets.places import beginning, read_json
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.datasets.shapes import Box, box_around, is_number
from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import is_metadata
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES, unread_picture
from prompt_tune.wording import counted, shown

_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file
_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
_OTHER_LABELS = ("brushlabels", "keypointlabels")  # regions without a box
_SHAPE_KEYS = {"x", "y", "width", "height", "rotation", "points", "radiusX", "radiusY"}
log = logging.getLogger(__name__)


def is_label_studio(folder: Path) -> bool:
    """Whether a folder has a JSON file that begins like an export of tasks."""
    return bool(_exports(folder))


def read_label_studio(folder: Path) -> dict[str, Found]:
    """Reads an export whose images lie in the folder of the JSON file or below it.

    Raises:
        DataError: There are several exports in the folder, or the file is not a list of tasks. Tasks and regions that
            break a rule are left out.
    """
    files = _exports(folder)
    if len(files) > 1:
        shown_files = ", ".join(file.name for file in files)
        raise DataError(f"`{folder}` has {len(files)} exports of Label Studio ({shown_files}). Leave one of them.")
    (file,) = files
    tasks = read_json(file, lambda entry: entry, "Export it again.")
    if not isinstance(tasks, list):
        raise DataError(f"`{file}` must be a list of tasks. Received: {type(tasks).__name__}. Export it again as JSON.")
    album = Album(folder)
    several = 0
    for position, task in enumerate(tasks, start=1):
        number = task.get("id", position) if isinstance(task, dict) else position
        where = f"`{file}`, task {shown(number)}"
        try:
            several += _read_task(task, where, album)
        except DataError as error:
            album.left_out.append(LeftOut(Reason.IMAGE, f"{where}: {error}"))
    if several:
        log.info("`%s`: %s with several annotations: one of each counts.", file, counted(several, "task"))
    return {"train": album.found()}


def _exports(folder: Path) -> list[Path]:
    """The JSON files of a folder that begin like a list of tasks."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".json" and path.is_file())
    return [file for file in files if not is_metadata(file.name) and _looks_right(beginning(file))]


def _looks_right(head: str) -> bool:
    return (
        head.lstrip().startswith("[")
        and any(f'"{key}"' in head for key in ("original_width", "annotations"))
        and (any(f'"{key}"' in head for key in ("data", "annotator", "annotation_id", "inner_id")))
    )


def _read_task(task: Any, where: str, album: Album) -> bool:
    """Adds the image of a task and its regions; returns whether it has several annotations."""
    if not isinstance(task, dict):
        raise DataError(f"a task must be an object. Received: {shown(task)}.")
    is_full = isinstance(task.get("data"), dict)
    names = _names(task["data"] if is_full else task)
    if is_full:
        annotations = task.get("annotations", task.get("completions", []))  # none yet: nobody has opened the task
    else:
        annotations = [{"result": _short_regions(task)}]
    if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
        raise DataError(f"`annotations` must be a list of objects. Received: {shown(annotations)}.")
    usable = [entry for entry in annotations if not entry.get("was_cancelled")]
    if not usable:
        what = f"{where}: nobody has annotated {shown(names[0])}."
        album.left_out.append(LeftOut(Reason.UNLABELLED, what))
        return False
    chosen = next((entry for entry in usable if entry.get("ground_truth")), usable[-1])
    regions = chosen.get("result")
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise DataError(f"`result` must be a list of objects. Received: {shown(regions)}.")
    if any(region.get("image_rotation") for region in regions):
        raise DataError("its image was turned in Label Studio (`image_rotation`), which is not read. Turn the file.")
    image = album.image(where, *names, normalised=True)
    if image is not None:
        for number, region in enumerate(regions, start=1):
            _add(image, f"{where}, region {shown(region.get('id', number))}", region)
    return len(usable) > 1


def _names(data: dict[str, Any]) -> list[str]:
    """The names that the image of a task may have here: its path, and the one without what an upload adds."""
    texts = [
        value for key, value in sorted(data.items(), key=lambda item: item[0] != "image") if isinstance(value, str)
    ]
    paths = [path for text in texts if _is_picture(path := _path(text))]
    if not paths:
        raise DataError(f"its data name no image. Received: {shown(data)}.")
    head, _, name = paths[0].rpartition("/")
    plain = _UPLOAD.sub("", name)
    return list(dict.fromkeys((paths[0], f"{head}/{plain}" if head else plain)))


def _is_picture(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES) or unread_picture(Path(path)) is not None


def _path(text: str) -> str:
    """The path in an address: of a local file (`/data/local-files/?d=...`), an upload, a bucket or a site."""
    try:
        parts = urlsplit(text)
        return (parse_qs(parts.query).get("d") or [unquote(parts.path)])[0]
    except ValueError:  # brackets that are no IPv6 address
        return text


def _short_regions(task: dict[str, Any]) -> list[Any]:
    """The regions of a task in "JSON-MIN", where each tag of the labels has a list of values."""
    lists = [value for value in task.values() if isinstance(value, list)]
    values = [value for part in lists for value in part if isinstance(value, dict) and _SHAPE_KEYS & value.keys()]
    return [{"value": value} | value for value in values]


def _add(image: NamedImage, where: str, region: dict[str, Any]) -> None:
    """Adds the box of a region; a region that is no shape, such as a choice, is passed over."""
    value = region.get("value")
    if not isinstance(value, dict):
        return
    names = next((value[key] for key in _LABELS if value.get(key)), None)
    if names is None:
        other = next((key for key in _OTHER_LABELS if value.get(key)), None)
        if other:
            what = f"{where}: `{other}` have no box. Draw a rectangle, or remove the region."
            image.left_out.append(LeftOut(Reason.ROW, what))
        return
    try:
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise DataError(f"the labels of a region must be texts. Received: {shown(names)}.")
        box = _box(value, region)
        image.rows += [NamedRow(where, name.strip(), box) for name in dict.fromkeys(names)]
    except DataError as error:
        image.left_out.append(LeftOut(Reason.ROW, f"{where}: {error}"))


def _box(value: dict[str, Any], region: dict[str, Any]) -> Box:
    """The box around a region, as fractions of the image."""
    points = value.get("points")
    if isinstance(points, list):
        if not all(isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in points):
            raise DataError(f"`points` must be a list of [x, y]. Received: {shown(points)}.")
        x1, y1, x2, y2 = box_around([float(number) / 100 for point in points for number in point])
        return x1, y1, x2, y2
    turn = value.get("rotation") or 0
    if "radiusX" in value:
        x, y, half_w, half_h = _numbers(value, "x", "y", "radiusX", "radiusY")
        corners = _turned(-half_w, -half_h, 2 * half_w, 2 * half_h, turn, region)
    else:
        x, y, w, h = _numbers(value, "x", "y", "width", "height")
        corners = _turned(0.0, 0.0, w, h, turn, region)
    xs, ys = [x + corner[0] for corner in corners], [y + corner[1] for corner in corners]
    return min(xs) / 100, min(ys) / 100, max(xs) / 100, max(ys) / 100


def _turned(x: float, y: float, w: float, h: float, turn: Any, region: dict[str, Any]) -> list[tuple[float, float]]:
    """The corners of a box in percent, turned clockwise about (0, 0) by degrees that hold for pixels."""
    corners = [(x, y), (x + w, y), (x, y + h), (x + w, y + h)]
    if turn == 0:
        return corners
    if not is_number(turn) or not math.isfinite(turn):
        raise DataError(f"`rotation` must be a number of degrees. Received: {shown(turn)}.")
    width, height = _numbers(region, "original_width", "original_height")
    if min(width, height) <= 0:
        raise DataError(f"a turned box needs the size of its image. Received: {width:g}x{height:g}.")
    cos, sin, ratio = math.cos(math.radians(turn)), math.sin(math.radians(turn)), height / width
    return [(px * cos - py * ratio * sin, px / ratio * sin + py * cos) for px, py in corners]


def _numbers(entry: dict[str, Any], *keys: str) -> list[float]:
    values = [entry.get(key) for key in keys]
    if not all(map(is_number, values)):
        raise DataError(f"a region has {', '.join(f'`{key}`' for key in keys)}, numbers. Received: {shown(values)}.")
    return [float(value) for value in values]  # type: ignore[arg-type]
