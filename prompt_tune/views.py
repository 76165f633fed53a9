"""Views of a training image: the image as it is, and augmented copies that are cached beside it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from prompt_tune.datasets import Sample
from prompt_tune.images import PAD_GREY, Letterbox

ZOOM = (0.6, 1.4)  # scale of an augmented copy against the plain view
SHIFT = 0.15  # of the side, in either direction
LIGHT = (0.7, 1.3)  # gain of brightness, contrast and saturation, each
MIN_VISIBLE = 0.3  # share of its area that a box must keep inside the picture to stay an object


@dataclass(frozen=True, eq=False)
class View:
    """A network input and its labels: image (size, size, 3) uint8; boxes_xyxy (n, 4) float32 in pixels of that input;
    classes (n,) int64; ignore (n,) bool; frame_xyxy (4,) float32, where the photo lies in that input."""

    image: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray
    frame_xyxy: np.ndarray


def make_view(picture: tuple[np.ndarray, Letterbox], sample: Sample, index: int, rng: np.random.Generator) -> View:
    """View `index` of a letterboxed image: 0 is the image as it is, others are flipped, zoomed, shifted and relit.

    Args:    picture: from `letterbox`, with a square input. sample: whose labels they are, in original pixels.
             rng: the only source of chance.
    Returns: the view. A box that mostly leaves the picture becomes `ignore`; one that leaves it wholly is gone.
    """
    image, frame = picture
    boxes = frame.to_input(sample.boxes_xyxy)  # (n, 4)
    if index == 0:
        photo = frame.to_input(np.array([[0, 0, *frame.size_wh]]))[0]  # (4,)
        return View(image, boxes, sample.classes, sample.ignore, photo)
    size = image.shape[0]
    zoom = rng.uniform(*ZOOM)
    x_shift, y_shift = rng.uniform(-SHIFT, SHIFT, 2) * size + size * (1 - zoom) / 2
    flip = rng.random() < 0.5
    x_scale, x_shift = (-zoom, size - x_shift) if flip else (zoom, x_shift)
    # Pillow maps output to input: x_in = (x_out - shift) / scale
    matrix = (1 / x_scale, 0, -x_shift / x_scale, 0, 1 / zoom, -y_shift / zoom)
    moved = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(PAD_GREY,) * 3
    )
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        moved = enhance(moved).enhance(rng.uniform(*LIGHT))
    boxes = boxes * np.array([x_scale, zoom] * 2) + np.array([x_shift, y_shift] * 2)  # (n, 4)
    boxes = boxes[:, [2, 1, 0, 3]] if flip else boxes
    clipped = boxes.clip(0, size)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1).clip(1e-6)  # share of the area
    there = (sides > 0).all(1)
    return View(
        np.asarray(moved),
        np.ascontiguousarray(clipped[there], np.float32),
        sample.classes[there],
        (sample.ignore | (visible < MIN_VISIBLE))[there],
        np.array([0, 0, size, size], np.float32),
    )
