"""Annotated pictures with Pillow: original classes in thin muted boxes, learned classes in thick bright ones."""

import colorsys
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from prompt_tune.media.fonts import FONTS, Colour, Line
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.images import ImageInput, to_rgb

Rectangle = tuple[float, float, float, float]
LINE_FRACTION = 1 / 200  # line width of a learned box, as a share of the mean of the picture's sides
ORIGINAL_SHARE = 0.45  # line width of an original box, as a share of that
FONT_FRACTION = 1 / 42  # height of the text, as a share of the mean of the picture's sides
CROWD = 25  # labels; with more of them, the text is smaller, so that all together cover as much as so many
LEGIBLE = 11  # pixels; crowds do not make the text smaller than that
SATURATED = (0.92, 0.95)  # HSV saturation and value of learned classes
MUTED = (0.42, 0.86)  # of original classes: pale beside learned ones, but with hues that can be told apart
MOST_INSET = 8  # equal boxes that are drawn inside one another
GOLDEN_RATIO = 0.618034  # steps of it spread any number of hues evenly
LABELS_APART = 100  # labels that avoid one another; with more of them, a picture is not legible anyway
OUTLINE: Colour = (15, 18, 22)  # a dark edge around each line keeps a box visible on a background of its own colour
PAPER: Colour = (250, 250, 248)
INK: Colour = (24, 26, 30)


def draw(image: ImageInput, detections: Detections, *, bgr: bool = False) -> Image.Image:
    """Draw detections into a copy of the picture: high scores over low ones, learned classes over original ones.

    Args:
        image: What `Detector.detect` was given: a path, a PIL image, or a uint8 (h, w, 3) RGB array. It is not changed.
            Files and PIL images are turned upright as their EXIF orientation says, as the detector does.
        detections: Those of this image, with boxes in its pixels. A score of nan, as of a label, is not written, and
            hidden ones are not drawn. The number of a tracked object stands behind its class, as in "car #2: 0.84".
        bgr: Whether an array is BGR, as OpenCV gives it. The result is RGB in any case.

    Returns:
        An RGB picture of the same size. A class has the same colour in every picture.

    Raises:
        DataError: The image cannot be read, or is none of the above.
    """
    picture = Image.fromarray(to_rgb(image, bgr=bgr)).copy()
    detections = detections.shown
    canvas = ImageDraw.Draw(picture)
    side = sum(picture.size) / 2
    learned = np.array([label != ORIGINAL for label in detections.vocabularies], dtype=bool)
    order = [int(row) for row in np.lexsort((detections.scores, learned))]
    thick, thin = max(2, round(side * LINE_FRACTION)), max(1, int(side * LINE_FRACTION * ORIGINAL_SHARE))
    boxes = _side_by_side_lines(detections.boxes_xyxy[order[::-1]], thick + 2)[::-1]
    for row, box in zip(order, boxes, strict=True):
        _draw_box(canvas, tuple(box.tolist()), _colour_of(detections, row), thick if learned[row] else thin)
    FONTS.prepare(detections.class_names)
    height = side * FONT_FRACTION
    height = max(min(height, LEGIBLE), height * min(1.0, CROWD / max(1, len(order))) ** 0.5)
    labels: list[tuple[Rectangle, Line, Colour]] = []
    for row in reversed(order):  # the most important label chooses its place first
        score = detections.scores[row]
        track = 0 if detections.track_ids is None else detections.track_ids[row]
        words = detections.class_names[row] + (f" #{track}:" if track else "")
        words += "" if np.isnan(score) else f" {score:.2f}"
        text = FONTS.line(words, height)
        taken = [place for place, _, _ in labels] if len(labels) < LABELS_APART else []
        place = _label_place(text, tuple(detections.boxes_xyxy[row].tolist()), picture.size, taken)
        labels.append((place, text, _colour_of(detections, row)))
    for place, text, colour in reversed(labels):
        _draw_label(picture, place, text, colour)
    return picture


def side_by_side(
    images: Sequence[np.ndarray | Image.Image], captions: Sequence[str], *, height: int = 480
) -> Image.Image:
    """Put pictures in a row, scaled to one height, each under its caption.

    Args:
        images: At least one uint8 (h, w, 3) RGB array or Pillow image.
        captions: One for each image; a caption that is wider than its picture is cut short.
        height: Height of the pictures in pixels; the captions are above them.

    Raises:
        ValueError: The numbers of images and captions differ, or there are no images.
    """
    if not images or len(images) != len(captions):
        raise ValueError(
            f"`captions` must be as many as `images`, one at least. Received: {len(captions)}, {len(images)}."
        )
    pictures = [_picture(image) for image in images]
    pictures = [
        picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    gap = max(4, height // 60)
    texts = [
        _shortened(caption, height / 24, picture.width) for caption, picture in zip(captions, pictures, strict=True)
    ]
    top = round(texts[0].pixels * 1.7) + gap
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + gap * (len(pictures) + 1), top + height + gap), PAPER)
    left = gap
    for picture, text in zip(pictures, texts, strict=True):
        sheet.paste(picture, (left, top))
        text.draw(sheet, (left, top / 2), INK)
        left += picture.width + gap
    return sheet


def grid(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, columns: int, cell_wh: tuple[int, int]
) -> Image.Image:
    """Put pictures on a sheet, row by row, each as large as its cell allows and above its caption.

    Args:
        pictures: At least one.
        captions: One for each picture; a caption that is wider than a cell is cut short.
        columns: The most pictures in a row.
        cell_wh: Room for a picture, in pixels. Larger pictures are made smaller, and small ones stay as they are.
    """
    gap = max(4, cell_wh[1] // 30)
    texts = [_shortened(caption, cell_wh[1] / 22, cell_wh[0]) for caption in captions]
    step_x, step_y = cell_wh[0] + gap, cell_wh[1] + gap + round(texts[0].pixels * 1.7)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (min(columns, len(pictures)) * step_x + gap, rows * step_y + gap), PAPER)
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        small = picture.copy()
        small.thumbnail(cell_wh, Image.Resampling.LANCZOS)
        left, top = gap + i % columns * step_x, gap + i // columns * step_y
        sheet.paste(small, (left + (cell_wh[0] - small.width) // 2, top + (cell_wh[1] - small.height) // 2))
        text.draw(sheet, (left, top + (cell_wh[1] + step_y - gap) / 2), INK)
    return sheet


def class_colour(name: str, *, learned: bool) -> Colour:
    """The colour of a class, from its name alone: bright for learned classes, muted for original ones."""
    hue = zlib.crc32(name.encode()) * GOLDEN_RATIO % 1
    saturation, value = SATURATED if learned else MUTED
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _picture(image: np.ndarray | Image.Image) -> Image.Image:
    """A new RGB picture with the pixels of `image`."""
    return Image.fromarray(image).convert("RGB") if isinstance(image, np.ndarray) else image.convert("RGB").copy()


def _colour_of(detections: Detections, row: int) -> Colour:
    """The colour of one detection's class."""
    return class_colour(detections.class_names[row], learned=detections.vocabularies[row] != ORIGINAL)


def _side_by_side_lines(boxes_xyxy: np.ndarray, step: int) -> np.ndarray:
    """Boxes whose lines do not hide one another: one that is equal to an earlier box is drawn inside it.

    Args:
        boxes_xyxy: (n, 4) float32 in pixels, the most important box first.
        step: Pixels between the lines of equal boxes.

    Returns:
        (n, 4) float32. The first of equal boxes stays where it is.
    """
    drawn = np.array(boxes_xyxy, np.float32)  # (n, 4)
    inward = np.array([1, 1, -1, -1], np.float32) * step
    for row in range(1, len(drawn)):
        for _ in range(MOST_INSET):
            smaller = drawn[row] + inward
            equal = (np.abs(drawn[:row] - drawn[row]).max(axis=1) < step).any()
            if not equal or (smaller[2:] - smaller[:2]).min() < 2 * step:
                break
            drawn[row] = smaller
    return drawn


def _draw_box(canvas: ImageDraw.ImageDraw, box: tuple[float, ...], colour: Colour, width: int) -> None:
    """A box whose line has a dark edge of one pixel: on both sides, or outside only if the line is one pixel wide."""
    left, top = round(box[0]), round(box[1])
    right, bottom = max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=OUTLINE, width=width + (2 if width > 1 else 1))
    canvas.rectangle((left, top, right, bottom), outline=colour, width=width)


def _label_place(text: Line, box: tuple[float, ...], size_wh: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """The label's rectangle: above, inside or below its box, within the picture, where it covers other labels least."""
    padding = text.pixels * 0.25
    width, height = text.width + 2 * padding, text.pixels * 1.25
    left = min(max(box[0], 0), max(size_wh[0] - width, 0))
    right = min(max(box[2] - width, 0), max(size_wh[0] - width, 0))
    corners = [(left, box[1] - height), (left, box[1]), (left, box[3]), (left, box[3] - height)]
    corners += [(right, y) for _, y in corners]
    places = [(x, y, x + width, y + height) for x, y in corners if 0 <= y <= size_wh[1] - height]
    places = places or [(left, 0.0, left + width, height)]
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))  # the first of equals


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """The area that two rectangles share."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _draw_label(picture: Image.Image, place: Rectangle, text: Line, colour: Colour) -> None:
    """Text on a plate of the class's colour: dark or light, whichever has more contrast."""
    ImageDraw.Draw(picture).rectangle(place, fill=colour, outline=OUTLINE)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601
    start = (place[0] + text.pixels * 0.25, (place[1] + place[3]) / 2)
    text.draw(picture, start, INK if luminance > 128 else PAPER)


def _shortened(text: str, pixels: float, width: float) -> Line:
    """The text, cut with three dots where it is wider than `width` pixels."""
    line = FONTS.line(text, pixels)
    while text and line.width > width:
        text = text[:-1]
        line = FONTS.line(text + "...", pixels)
    return line
