"""Pictures of hits, misses, false alarms and collisions: small JPEGs, embedded in the page. Light: NumPy and Pillow."""

import base64
import html
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prompt_tune.datasets.samples import Sample
from prompt_tune.errors import DataError
from prompt_tune.evaluation.outcomes import Example
from prompt_tune.media.draw import OUTLINE, PAPER, class_colour, draw, grid
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.images import read_rgb

TILE_PIXELS = 220  # longer side of a picture
WHOLE_PIXELS = 400  # longer side of a whole image
MOST_DRAWN = 500  # boxes of one image: more cover it, and take minutes to draw
SHEET_COLUMNS, SHEET_CELL = 5, (400, 300)  # of a contact sheet; a cell in pixels
SURROUNDINGS = 1.9  # side of the crop as a multiple of the box's longer side
SMALLEST_CROP = 72  # original pixels: a tiny object is shown in its surroundings, not blown up to blocks
JPEG_QUALITY = 80  # about 8 kB per picture
LINE = 3  # width of a detection's outline in pixels
DASH = (7, 5)  # a label's dashed line: pixels drawn, pixels left out
Colour = tuple[int, int, int]
_PHOTO = re.compile(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]*)"')


@dataclass(frozen=True)
class Picture:
    """A picture embedded in the page.

    Attributes:
        src: A data URI.
        alt: What the picture shows, in words.
        caption: The text below it.
        width: In pixels.
        height: In pixels.
    """

    src: str
    alt: str
    caption: str
    width: int
    height: int

    @classmethod
    def of_png(cls, path: Path, alt: str, caption: str) -> "Picture":
        """A whole PNG file, such as the figures of a run folder."""
        with Image.open(path) as image:
            size = image.size
        return cls(_data_uri(path.read_bytes(), "image/png"), alt, caption, *size)


def picture(image: Image.Image, example: Example, name: str, kind: str) -> Picture:
    """A small JPEG of the surroundings of an example.

    The detection is drawn solid, in the colour of its class, and thin where the detector had it before its box was
    moved. Labels are dashed, and so is the original detection of a collision.

    Args:
        image: The whole image, RGB, upright.
        example: What to show; its boxes are in pixels of the image.
        name: The class name.
        kind: "hit", "miss", "false alarm" or "collision"; it goes into the picture's `alt`.
    """
    drawn = (example.reference_xyxy, example.found_xyxy, example.before_xyxy)
    boxes = [box for box in drawn if box is not None]
    left, top, right, bottom = _crop(boxes, image.size)
    scale = TILE_PIXELS / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    tile = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    canvas = ImageDraw.Draw(tile)

    def placed(box: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((value - offset) * scale for value, offset in zip(box, (left, top, left, top), strict=True))

    for box in example.others_xyxy:
        _dashed(canvas, placed(box), width=1)
    if example.before_xyxy is not None:
        _thin(canvas, placed(example.before_xyxy))
    if example.found_xyxy is not None:
        _solid(canvas, placed(example.found_xyxy), class_colour(name, learned=True))
    if example.reference_xyxy is not None:
        _dashed(canvas, placed(example.reference_xyxy), width=2)
    alt = f"{name}, {kind} in {example.path.name}: {example.note}"
    return Picture(_jpeg(tile), alt, example.note, *size)


def labelled_picture(sample: Sample, names: Sequence[str]) -> Picture | None:
    """A small JPEG of a whole image with its labelled boxes; None if it cannot be read.

    Args:
        sample: The image and its labels.
        names: The class names, in class-id order.
    """
    drawn = _labelled(sample, names, (WHOLE_PIXELS, WHOLE_PIXELS))
    if drawn is None:
        return None
    small, counts = drawn
    caption = f"{sample.path.name}: {counts}"
    return Picture(_jpeg(small), f"Training image with its boxes, {caption}", caption, *small.size)


def contact_sheet(samples: Sequence[Sample], names: Sequence[str]) -> Image.Image:
    """Images with their labelled boxes, side by side on one sheet. Those that cannot be read are left out.

    Args:
        samples: The images and their labels.
        names: The class names, in class-id order.

    Raises:
        DataError: None of the images can be read.
    """
    drawn = [(sample, _labelled(sample, names, SHEET_CELL)) for sample in samples]
    shown = [(part[0], f"{sample.path.name}: {part[1]}") for sample, part in drawn if part is not None]
    if not shown:
        raise DataError("No image for the contact sheet can be read. Check the image files.")
    return grid(*zip(*shown, strict=True), columns=SHEET_COLUMNS, cell_wh=SHEET_CELL)


def _labelled(sample: Sample, names: Sequence[str], most_wh: tuple[int, int]) -> tuple[Image.Image, str] | None:
    """An image with its `MOST_DRAWN` largest boxes, no larger than `most_wh`, and what it shows; None if unreadable."""
    try:
        image = Image.fromarray(read_rgb(sample.path))
    except DataError:
        return None
    scale = min(1.0, *(most / side for most, side in zip(most_wh, image.size, strict=True)))
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    kept = np.flatnonzero(~sample.labels.ignore)
    shown = tuple(names[k] for k in sample.labels.classes[kept])
    boxes = sample.labels.boxes_xyxy[kept] * np.tile(np.divide(small.size, image.size), 2)  # (n, 4)
    labels = Detections(
        boxes.astype(np.float32),
        np.full(len(kept), np.nan, np.float32),
        sample.labels.classes[kept],
        shown,
        ("labels",) * len(kept),
        small.size,
    )
    if len(labels) > MOST_DRAWN:
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        labels = labels.select(np.sort(np.argsort(-areas, kind="stable")[:MOST_DRAWN]))
    return draw(small, labels), ", ".join(f"{count} {name}" for name, count in Counter(shown).items())


def pictures(wanted: Iterable[tuple[Example, str, str]]) -> tuple[dict[Example, Picture], tuple[str, ...]]:
    """Pictures of many examples. Each image is read once, and only one is in memory at a time.

    Args:
        wanted: Examples, each with the class name and the kind that `picture` takes.

    Returns:
        The pictures by example, and a line for each image that could not be read.
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


def _jpeg(image: Image.Image) -> str:
    """A picture as a JPEG in a URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _data_uri(buffer.getvalue(), "image/jpeg")


def _data_uri(content: bytes, media_type: str) -> str:
    """The content of a file as a URI that can stand in a page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _crop(boxes: Sequence[tuple[float, ...]], size_wh: tuple[int, int]) -> tuple[float, float, float, float]:
    """A square around the boxes and some of their surroundings; shifted into the image, or cut if it is small."""
    corners = np.array(boxes)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)  # (2,) each
    side = max(float((high - low).max()) * SURROUNDINGS, SMALLEST_CROP)
    sides = np.minimum(side, size_wh)
    start = np.clip((low + high) / 2 - sides / 2, 0, size_wh - sides)
    end = start + sides
    return float(start[0]), float(start[1]), float(end[0]), float(end[1])


def _solid(canvas: ImageDraw.ImageDraw, box: tuple[float, ...], colour: Colour) -> None:
    """Draw a detection: a line in the colour of its class between dark edges."""
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=OUTLINE, width=LINE + 2)
    canvas.rectangle((left, top, right, bottom), outline=colour, width=LINE)


def _thin(canvas: ImageDraw.ImageDraw, box: tuple[float, ...]) -> None:
    """Draw the detector's own box of a detection that was moved: a thin light line with a dark edge."""
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=OUTLINE)
    canvas.rectangle((left, top, right, bottom), outline=PAPER)


def _dashed(canvas: ImageDraw.ImageDraw, box: tuple[float, ...], *, width: int) -> None:
    """Draw a label: light dashes with dark edges. The colour of a detection beneath shows between them."""
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


def embedded_photos(page: Path) -> list[tuple[str, bytes]]:
    """The photos in a page of this package, with the words that say what they show; none if there is no such page."""
    text = page.read_text("utf-8") if page.is_file() else ""
    return [(html.unescape(alt), base64.b64decode(content)) for content, alt in _PHOTO.findall(text)]
