"""Views of a training image: the image as it is, and augmented copies that are cached beside it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from prompt_tune.datasets import Sample
from prompt_tune.images import PAD_GREY, Letterbox

ZOOM = (0.6, 1.4)  # scale of an augmented copy against the plain view
SHIFT = 0.15  # of the side, in either direction
LIGHT = (0.7, 1.3)  # gain of brightness, contrast and saturation, each
MIN_SIDE, MIN_VISIBLE = 2.0, 0.3  # px and share of its area: what a box must keep inside the picture to stay a label


@dataclass(frozen=True, eq=False)
class View:
    """A network input and its labels: image (size, size, 3) uint8; boxes_xyxy (n, 4) float32 in pixels of that input;
    classes (n,) int64; ignore (n,) bool."""

    image: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray


def make_view(picture: tuple[np.ndarray, Letterbox], sample: Sample, index: int, rng: np.random.Generator) -> View:
    """View `index` of a letterboxed image: 0 is the image as it is, others are flipped, zoomed, shifted and relit.

    Args:    picture: from `letterbox`. sample: whose labels they are, in original pixels. rng: the only source of chance.
    Returns: the view; boxes that an augmentation moves out of the picture become `ignore`, or go where nothing is left.
    """
    image, frame = picture
    boxes = frame.to_input(sample.boxes_xyxy).reshape(-1, 4)
    if index == 0:
        return View(image, boxes, sample.classes, sample.ignore)
    size = image.shape[0]
    zoom = rng.uniform(*ZOOM)
    shift = rng.uniform(-SHIFT, SHIFT, 2) * size + size * (1 - zoom) / 2
    flip = rng.random() < 0.5
    x_scale, x_shift = (-zoom, size - shift[0]) if flip else (zoom, shift[0])
    # Pillow maps output to input: x_in = (x_out - shift) / scale
    matrix = (1 / x_scale, 0, -x_shift / x_scale, 0, 1 / zoom, -shift[1] / zoom)
    turned = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(PAD_GREY,) * 3
    )
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        turned = enhance(turned).enhance(rng.uniform(*LIGHT))
    moved = boxes * np.array([x_scale, zoom, x_scale, zoom]) + np.array([x_shift, shift[1], x_shift, shift[1]])
    if flip:
        moved = moved[:, [2, 1, 0, 3]]
    clipped = moved.clip(0, size)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) / np.maximum((moved[:, 2:] - moved[:, :2]).prod(1), 1e-6)
    there = (sides > MIN_SIDE).all(1)
    ignore = sample.ignore | (visible < MIN_VISIBLE)
    return View(
        np.asarray(turned),
        np.ascontiguousarray(clipped[there], np.float32),
        sample.classes[there],
        ignore[there],
    )
