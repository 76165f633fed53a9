"""Views of a training image: the image as it is, and augmented copies that are cached beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from prompt_tune.config import RegionBudget
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.runtime.images import PAD_GREY, Letterbox

ZOOM = (0.6, 1.4)  # scale of an augmented copy against the plain view
SHIFT = 0.15  # of the side, in either direction
LIGHT = (0.7, 1.3)  # gain of brightness, contrast and saturation, each
MIN_VISIBLE = 0.3  # share of its area that must stay inside the picture; otherwise the box is ignored
MOST_VIEWS, SEEN, PASSES, MANY = 16, 160, 480, 100  # see `automatic_views`
SMALLEST_BOX = 16.0  # pixels: the assigner widens smaller boxes to this, so anchors there are kept too


def automatic_views(samples: Sequence[Sample]) -> int:
    """How many views of each training image are cached if the settings do not say it.

    Each class should be seen in about `SEEN` views, at most `MOST_VIEWS` of one image, as long as a data set has fewer
    than `MANY` images and needs no more than `PASSES` passes of the detector. docs/benchmarks.md has the measurements.

    Args:
        samples: The training images.
    """
    if len(samples) >= MANY:
        return 1
    shown = np.concatenate([np.unique(sample.labels.classes[~sample.labels.ignore]) for sample in samples])
    typical = np.median(np.unique(shown, return_counts=True)[1])  # images of a class
    return int(np.clip(round(min(SEEN / typical, PASSES / len(samples))), 1, MOST_VIEWS))


@dataclass(frozen=True, eq=False)
class View:
    """A network input and its labels, both in pixels of that input.

    Attributes:
        image: (size, size, 3) uint8.
        labels: The labels of the view.
        frame_xyxy: (4,) float32, where the photo lies in the input.
    """

    image: np.ndarray
    labels: Labels
    frame_xyxy: np.ndarray


def make_view(picture: tuple[np.ndarray, Letterbox], sample: Sample, index: int, rng: np.random.Generator) -> View:
    """One view of a letterboxed image: the image itself (0), or a copy that is flipped, zoomed, shifted and relit.

    Args:
        picture: From `letterbox`, with a square input.
        sample: The sample that the image belongs to.
        index: The number of the view.
        rng: The only source of chance.

    Returns:
        The view. A box that mostly leaves the picture becomes ignored; one that leaves it entirely is dropped.
    """
    image, frame = picture
    boxes = frame.to_input(sample.labels.boxes_xyxy)  # (n, 4)
    if index == 0:
        photo = frame.to_input(np.array([[0, 0, *frame.size_wh]]))[0]  # (4,)
        return View(image, replace(sample.labels, boxes_xyxy=boxes), photo)
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
        Labels(
            np.ascontiguousarray(clipped[there], np.float32),
            sample.labels.classes[there],
            (sample.labels.ignore | (visible < MIN_VISIBLE))[there],
        ),
        np.array([0, 0, size, size], np.float32),
    )


def choose_anchors(
    points: Tensor, boxes: Tensor, scores: Tensor, objects: Tensor, budget: RegionBudget, generator: torch.Generator
) -> Tensor:
    """Which anchors of a training image are kept. Points and boxes are in pixels of the network's input.

    Args:
        points: (A, 2) anchor points.
        boxes: (A, 4) boxes of the anchors.
        scores: (A,) the highest original logit of each.
        objects: (n, 4) labels that are not ignored.
        budget: How many of each kind.
        generator: The only source of chance.

    Returns:
        (r,) int64, rising.
    """
    from torchvision.ops import box_iou

    kept = torch.zeros(len(points), dtype=torch.bool)
    if len(objects):
        centre, half = (objects[:, :2] + objects[:, 2:]) / 2, (objects[:, 2:] - objects[:, :2]) / 2
        half = half.clamp(min=SMALLEST_BOX / 2)
        inside = ((points[:, None] - centre).abs() <= half).all(2)  # (A, n)
        overlap = box_iou(boxes, objects).masked_fill(~inside, -1)  # (A, n)
        place = overlap.argsort(dim=0, descending=True, stable=True).argsort(dim=0)  # (A, n), 0 is an object's best
        place = place.masked_fill(~inside, len(points)).amin(1)  # (A,)
        in_turn = place.argsort(stable=True)[: int(inside.any(1).sum())]
        kept[in_turn[: budget.in_box]] = True
    kept[scores.topk(min(budget.top, len(scores))).indices] = True
    others = (~kept).nonzero().flatten()
    kept[others[torch.randperm(len(others), generator=generator)[: budget.random]]] = True
    return kept.nonzero().flatten()
