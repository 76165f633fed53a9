"""Pictures of hits, misses, false alarms and collisions, as small JPEGs in a page. Light: NumPy and Pillow."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prompt_tune.errors import DataError
from prompt_tune.evaluation.outcomes import Example
from prompt_tune.media.draw import OUTLINE, PAPER, class_colour
from prompt_tune.runtime.images import read_rgb

TILE_PIXELS = 220  # longer side of a picture
SURROUNDINGS = 1.9  # side of a crop, of the box's longer side
SMALLEST_CROP = 72  # original pixels: a smaller object shows its surroundings rather than its pixels
JPEG_QUALITY = 80  # about 8 kB a picture
LINE = 3  # pixels of a box's line
DASH = (7, 5)  # pixels drawn and left out of a label's line
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """A picture in a page. src: a data URI. alt: what it shows, in words. caption: what stands below it."""

    src: str
    alt: str
    caption: str
    width: int
    height: int


def picture(image: Image.Image, example: Example, name: str, kind: str) -> Picture:
    """The crop around an example, as a small JPEG: detection solid, what it is held against dashed.

    Args: image: the whole image, RGB, upright. name: of the class. kind: "hit", "miss", "false alarm" or "collision".
    """
    boxes = [box for box in (example.reference_xyxy, example.found_xyxy) if box is not None]
    left, top, right, bottom = _crop(boxes, image.size)
    scale = TILE_PIXELS / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    tile = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    canvas = ImageDraw.Draw(tile)

    def placed(box: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((value - offset) * scale for value, offset in zip(box, (left, top, left, top), strict=True))

    for box in example.others_xyxy:
        _dashed(canvas, placed(box), width=1)
    if example.found_xyxy is not None:
        _solid(canvas, placed(example.found_xyxy), class_colour(name, learned=True))
    if example.reference_xyxy is not None:
        _dashed(canvas, placed(example.reference_xyxy), width=2)
    buffer = io.BytesIO()
    tile.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    alt = f"{name}, {kind} in {example.path.name}: {example.note}"
    return Picture(data_uri(buffer.getvalue(), "image/jpeg"), alt, example.note, *size)


def pictures(wanted: Iterable[tuple[Example, str, str]]) -> tuple[dict[Example, Picture], tuple[str, ...]]:
    """Pictures of many examples; each image is read once, and one at a time is in memory.

    Args:    wanted: examples, with a class's name and a kind as of `picture`.
    Returns: the pictures by example, and a line for each image that cannot be read (any more).
    """
    by_path: dict[Path, list[tuple[Example, str, str]]] = {}
    for task in wanted:
        by_path.setdefault(task[0].path, []).append(task)
    drawn: dict[Example, Picture] = {}
    unread = []
    for path, tasks in by_path.items():
        try:
            image = Image.fromarray(read_rgb(path))
        except DataError as error:
            unread.append(str(error))
            continue
        drawn |= {example: picture(image, example, name, kind) for example, name, kind in tasks}
    return drawn, tuple(unread)


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content as the address of itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _crop(boxes: Sequence[tuple[float, ...]], size_wh: tuple[int, int]) -> tuple[float, float, float, float]:
    """A square around the boxes with some surroundings, moved into the image, or cut where the image is smaller."""
    corners = np.array(boxes)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)  # (2,) each
    side = max(float((high - low).max()) * SURROUNDINGS, SMALLEST_CROP)
    sides = np.minimum(side, size_wh)
    start = np.clip((low + high) / 2 - sides / 2, 0, size_wh - sides)
    end = start + sides
    return float(start[0]), float(start[1]), float(end[0]), float(end[1])


def _solid(canvas: ImageDraw.ImageDraw, box: tuple[float, ...], colour: Colour) -> None:
    """A detection: a line in the class's colour between dark edges."""
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=OUTLINE, width=LINE + 2)
    canvas.rectangle((left, top, right, bottom), outline=colour, width=LINE)


def _dashed(canvas: ImageDraw.ImageDraw, box: tuple[float, ...], *, width: int) -> None:
    """A label: light dashes with dark edges; a detection's colour below shows between them."""
    left, top, right, bottom = box
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    for (x1, y1), (x2, y2) in (
        (corners[0], corners[1]),
        (corners[1], corners[2]),
        (corners[3], corners[2]),
        (corners[0], corners[3]),
    ):
        length, step = max(x2 - x1, y2 - y1), sum(DASH)
        for k in range(int(length // step) + 1):
            first, last = k * step, min(k * step + DASH[0], length)
            along = (1, 0) if y1 == y2 else (0, 1)
            dash = (x1 + along[0] * first, y1 + along[1] * first, x1 + along[0] * last, y1 + along[1] * last)
            canvas.line(dash, fill=OUTLINE, width=width + 2)
            canvas.line(dash, fill=PAPER, width=width)
