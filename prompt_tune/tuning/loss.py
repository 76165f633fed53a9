"""What the context vectors are trained on: binary cross-entropy of cached regions against task-aligned soft targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.models.world import World, level_logits
from prompt_tune.tuning.assignment import Candidates, find_candidates, join, targets
from prompt_tune.tuning.regions import Regions


@dataclass(frozen=True, eq=False)
class Prepared:
    """A cached image, ready for training.

    Attributes:
        head: (r, c3) float16 or float32, head features, level after level.
        ends: Where each level ends in `head`.
        candidates: The regions that its objects may take.
    """

    head: Tensor
    ends: tuple[int, ...]
    candidates: Candidates


@dataclass(frozen=True, eq=False)
class ClassSample:
    """The classes that a step encodes, where it does not encode all.

    Attributes:
        classes: (k,) int64, rising. All classes with a box in the step's images are among them.
        weights: (k,) float32, how many classes each stands for, so that the loss is unbiased.
    """

    classes: Tensor
    weights: Tensor


def prepare_image(regions: Regions, anchors: tuple[Tensor, Tensor, Tensor], strides: Sequence[int]) -> Prepared:
    """Find what does not change in training.

    Args:
        regions: The image.
        anchors: Points, strides and levels from `World.anchors` for the image's input size, on the CPU.
        strides: `World.strides`.
    """
    return Prepared(
        regions.head, level_ends(regions, anchors, len(strides)), find_candidates(regions, anchors[0], strides)
    )


def level_ends(regions: Regions, anchors: tuple[Tensor, Tensor, Tensor], n_levels: int) -> tuple[int, ...]:
    """Where each level ends among an image's anchors, which rise and so stand level after level."""
    return tuple(torch.bincount(anchors[2][regions.anchor], minlength=n_levels).cumsum(0).tolist())


def class_loss(
    world: World, embeddings: Tensor, images: Sequence[Prepared], sample: ClassSample | None = None
) -> Tensor:
    """The loss of one batch of cached images. Boxes are not trained.

    Args:
        world: The frozen detector.
        embeddings: (n_cls, n_prompts, 512) float32, of the learned prompts; with a sample, of its classes alone.
        images: The images.
        sample: The classes of the embeddings; None if they are all classes.

    Returns:
        A scalar: binary cross-entropy summed over regions and classes, divided by the sum of the targets.

    Source: YOLOv8's classification loss, as ultralytics trains YOLO-World. Here, ignored boxes have no weight.
    """
    heads, places = _by_level(images, world.n_levels)
    candidates = join([image.candidates for image in images], places, world.device)
    ends = torch.tensor([len(head) for head in heads]).cumsum(0).tolist()
    weight, bias = world.fold(embeddings.flatten(0, 1))
    logits = level_logits(torch.cat(heads), ends, weight, bias, embeddings.shape[1])  # (sum of r, k)
    classes, ignored = candidates.classes, candidates.ignored.clone()
    losses = F.softplus(logits)  # of regions that are nothing
    if sample is not None:
        classes = torch.searchsorted(sample.classes, classes)
        ignored[:, 1] = torch.searchsorted(sample.classes, ignored[:, 1])
    of_pairs = logits[candidates.rows, classes]  # (m,)
    wanted = targets(candidates, of_pairs.detach().sigmoid(), len(logits))  # (m,)
    loss = losses.sum() if sample is None else losses.sum(0) @ sample.weights
    loss = loss - of_pairs @ wanted
    if len(ignored):
        n_cls = logits.shape[1]
        objects = (candidates.rows * n_cls + classes)[wanted > 0]
        ignored = ignored[~torch.isin(ignored[:, 0] * n_cls + ignored[:, 1], objects)]
        loss = loss - losses[ignored[:, 0], ignored[:, 1]].sum()
    return loss / wanted.sum().clamp(min=1)


def teacher_distance(embeddings: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """How far learned embeddings are from the embeddings of hand-written prompts.

    Args:
        embeddings: (n_cls, n_prompts, 512) float32, unit rows.
        teacher: The same of hand-written prompts.
        weights: (n_cls,) float32, how many classes each stands for; None if each stands for itself.

    Returns:
        A scalar in 0..4: the squared Euclidean distance, mean over classes and prompts.

    Source: KgCoOp (arXiv 2303.13283), equation 4.
    """
    distances = (embeddings - teacher).square().sum(-1)  # (n_cls, n_prompts)
    return distances.mean() if weights is None else (distances.mean(1) @ weights) / weights.sum()


def _by_level(images: Sequence[Prepared], n_levels: int) -> tuple[list[Tensor], list[Tensor]]:
    """Puts the regions of a batch together, a level after the other.

    Returns:
        Head features (regions of the level, c3) of each level, and for each image the places (r,) of its regions.
    """
    bounds = [list(pairwise((0, *image.ends))) for image in images]
    heads = [
        torch.cat([image.head[slice(*bound[level])] for image, bound in zip(images, bounds, strict=True)])
        for level in range(n_levels)
    ]
    pieces: list[list[Tensor]] = [[] for _ in images]
    first = 0
    for level in range(n_levels):
        for piece, bound in zip(pieces, bounds, strict=True):
            length = bound[level][1] - bound[level][0]
            piece.append(torch.arange(first, first + length))
            first += length
    return heads, [torch.cat(piece) for piece in pieces]
