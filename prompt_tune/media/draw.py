"""Annotated pictures with Pillow: the original vocabulary thin and muted, learned vocabularies thick and saturated."""

import colorsys
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prompt_tune.runtime.detections import ORIGINAL, Detections

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
LINE_FRACTION = 1 / 200  # width of a learned box's line, of the mean of the picture's sides
ORIGINAL_SHARE = 0.45  # width of an original box's line, of that
FONT_FRACTION = 1 / 42  # height of the text, likewise
FONT_PIXELS = (11, 64)  # smallest that Pillow's own font stays legible at, and largest that is of any use
SATURATED = (0.92, 0.95)  # HSV saturation and value of learned classes
MUTED = (0.24, 0.86)  # of original classes
MUTED_HUES = (0.46, 0.70)  # they are cool greys, green to violet: none is near a learned class
GOLDEN_RATIO = 0.618034  # steps of it spread hues evenly, however many there are
LABELS_APART = 100  # labels that make way for one another; in a picture with more, nothing would be legible anyway
OUTLINE: Colour = (15, 18, 22)  # a dark edge around each line: a box stays visible on a background of its own colour
PAPER: Colour = (250, 250, 248)
INK: Colour = (24, 26, 30)


def draw(image: np.ndarray | Image.Image, detections: Detections) -> Image.Image:
    """The picture with its detections drawn in; low scores first, learned vocabularies on top.

    Args:    image: uint8 (h, w, 3) RGB, or a Pillow image; it is not changed.
             detections: of this image, boxes in its pixels.
    Returns: a new RGB picture of the same size. A class has the same colour in every picture.
    """
    picture = _picture(image)
    canvas = ImageDraw.Draw(picture)
    side = sum(picture.size) / 2
    font = _font(side * FONT_FRACTION)
    learned = np.array([label != ORIGINAL for label in detections.vocabularies], dtype=bool)
    order = [int(row) for row in np.lexsort((detections.scores, learned))]
    for row in order:
        width = (
            max(2, round(side * LINE_FRACTION)) if learned[row] else max(1, int(side * LINE_FRACTION * ORIGINAL_SHARE))
        )
        _draw_box(canvas, tuple(detections.boxes_xyxy[row].tolist()), _colour_of(detections, row), width)
    labels: list[tuple[Rectangle, str, Colour]] = []
    for row in reversed(order):  # the most important label chooses its place first
        text = f"{detections.class_names[row]} {detections.scores[row]:.2f}"
        taken = [place for place, _, _ in labels] if len(labels) < LABELS_APART else []
        place = _label_place(canvas, text, font, tuple(detections.boxes_xyxy[row].tolist()), picture.size, taken)
        labels.append((place, text, _colour_of(detections, row)))
    for place, text, colour in reversed(labels):
        _draw_label(canvas, place, text, font, colour)
    return picture


def side_by_side(
    images: Sequence[np.ndarray | Image.Image], captions: Sequence[str], *, height: int = 480
) -> Image.Image:
    """The pictures in a row, scaled to one height, each under its caption.

    Args:   images: uint8 (h, w, 3) RGB arrays or Pillow images, one at least.
            captions: one for each image; a caption is cut short where it is wider than its picture.
            height: of the pictures in pixels, the captions come on top.
    Raises: ValueError: the numbers of images and captions differ, or there is none.
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
    font = _font(height / 24)
    top = round(font.size * 1.7) + gap
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + gap * (len(pictures) + 1), top + height + gap), PAPER)
    canvas = ImageDraw.Draw(sheet)
    left = gap
    for picture, caption in zip(pictures, captions, strict=True):
        sheet.paste(picture, (left, top))
        canvas.text((left, top / 2), _shortened(canvas, caption, font, picture.width), font=font, fill=INK, anchor="lm")
        left += picture.width + gap
    return sheet


def class_colour(name: str, *, learned: bool) -> Colour:
    """The colour of a class, from its name alone: saturated for learned classes, muted for original ones."""
    hue = zlib.crc32(name.encode()) * GOLDEN_RATIO % 1
    first, last = (0.0, 1.0) if learned else MUTED_HUES
    hue = first + hue * (last - first)
    saturation, value = SATURATED if learned else MUTED
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _picture(image: np.ndarray | Image.Image) -> Image.Image:
    """A new RGB picture with the pixels of `image`."""
    return Image.fromarray(image).convert("RGB") if isinstance(image, np.ndarray) else image.convert("RGB").copy()


def _font(pixels: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which needs no file on the machine."""
    smallest, largest = FONT_PIXELS
    font = ImageFont.load_default(size=min(max(round(pixels), smallest), largest))
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow built without FreeType has one tiny bitmap font
        raise RuntimeError(
            "Pillow must be built with FreeType to write labels. Cure: pip install --force-reinstall pillow"
        )
    return font


def _colour_of(detections: Detections, row: int) -> Colour:
    """The colour of one detection's class."""
    return class_colour(detections.class_names[row], learned=detections.vocabularies[row] != ORIGINAL)


def _draw_box(canvas: ImageDraw.ImageDraw, box: tuple[float, ...], colour: Colour, width: int) -> None:
    """A box whose line has a dark edge of one pixel; a line of one pixel has it outside only, or it would drown."""
    left, top = round(box[0]), round(box[1])
    right, bottom = max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=OUTLINE, width=width + (2 if width > 1 else 1))
    canvas.rectangle((left, top, right, bottom), outline=colour, width=width)


def _label_place(
    canvas: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont,
    box: tuple[float, ...],
    size_wh: tuple[int, int],
    taken: list[Rectangle],
) -> Rectangle:
    """The label's rectangle: above, inside or below its box, in the picture, off the labels that stand already."""
    padding = font.size * 0.25
    width, height = canvas.textlength(text, font=font) + 2 * padding, font.size * 1.25
    left = min(max(box[0], 0), max(size_wh[0] - width, 0))
    right = min(max(box[2] - width, 0), max(size_wh[0] - width, 0))
    corners = [(left, box[1] - height), (left, box[1]), (left, box[3]), (left, box[3] - height)]
    corners += [(right, y) for _, y in corners]
    places = [(x, y, x + width, y + height) for x, y in corners if 0 <= y <= size_wh[1] - height]
    places = places or [(left, 0.0, left + width, height)]
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))  # of equals, the first


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """The area that two rectangles share."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _draw_label(
    canvas: ImageDraw.ImageDraw, place: Rectangle, text: str, font: ImageFont.FreeTypeFont, colour: Colour
) -> None:
    """Text on a plate of the class's colour, dark or light, whichever stands out more."""
    canvas.rectangle(place, fill=colour, outline=OUTLINE)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601
    middle = (place[0] + font.size * 0.25, (place[1] + place[3]) / 2)
    canvas.text(middle, text, font=font, fill=INK if luminance > 128 else PAPER, anchor="lm")


def _shortened(canvas: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut with three dots where it is wider than `width` pixels."""
    if canvas.textlength(text, font=font) <= width:
        return text
    while text and canvas.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
