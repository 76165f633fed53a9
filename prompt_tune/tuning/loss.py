"""What the context vectors are trained on: binary cross-entropy of cached regions against task-aligned soft targets."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.models import ultralytics
from prompt_tune.models.world import World, region_logits
from prompt_tune.tuning.regions import Regions

TOPK, ALPHA, BETA = 10, 0.5, 6.0  # as ultralytics trains YOLO-World


def class_loss(
    world: World, embeddings: Tensor, regions: Sequence[Regions], anchors: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """The loss of one batch of cached images. Boxes are not trained.

    Args:
        world: The frozen detector.
        embeddings: (n_cls, n_prompts, 512) float32, of the learned prompts.
        regions: The images.
        anchors: Points, strides and levels from `World.anchors` for the images' input size.

    Returns:
        A scalar: binary cross-entropy summed over regions and classes, divided by the sum of the targets.

    Source: YOLOv8's classification loss, as ultralytics trains YOLO-World. Here, ignored boxes have no weight.
    """
    points, _, levels = (part.cpu() for part in anchors)
    head = torch.cat([image.head for image in regions]).to(world.device)  # (sum of r, c3)
    level = levels[torch.cat([image.anchor for image in regions])].to(world.device)  # (sum of r,)
    logits = region_logits(world, head, level, embeddings)
    targets, weights = assign(logits.detach().sigmoid(), regions, points, world.strides)
    losses = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
    return losses / targets.sum().clamp(min=1)


def teacher_distance(embeddings: Tensor, teacher: Tensor) -> Tensor:
    """How far learned embeddings are from the embeddings of hand-written prompts.

    Args:
        embeddings: (n_cls, n_prompts, 512) float32, unit rows.
        teacher: The same of hand-written prompts.

    Returns:
        A scalar in 0..4: the squared Euclidean distance, mean over classes and prompts.

    Source: KgCoOp (arXiv 2303.13283), equation 4.
    """
    return (embeddings - teacher).square().sum(-1).mean()


@torch.no_grad()
def assign(scores: Tensor, regions: Sequence[Regions], points: Tensor, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Soft targets of a batch of cached images, by ultralytics' task-aligned assigner.

    The assigner takes one grid of anchors for a whole batch, but each image kept its own anchors. So it is called once
    for each image.

    Args:
        scores: (sum of r, n_cls) float32 in 0..1, the present scores of all regions, image after image.
        regions: The images.
        points: (A, 2) anchor points in pixels of the network's input, on the CPU.
        strides: Pixels of the network's input per cell of each level.

    Returns:
        Targets and weights, both (sum of r, n_cls) float32. Targets are in 0..1. A weight is 0 where the region lies in
        an ignored box of the class and is not one of its objects; else it is 1.

    Source: TOOD (arXiv 2108.07755).
    """
    tal = ultralytics.quiet_import("ultralytics.utils.tal")
    n_cls, device = scores.shape[1], scores.device
    targets, weights = torch.zeros_like(scores), torch.ones_like(scores)
    for image, rows in zip(regions, _rows(regions), strict=True):
        if not len(image.anchor) or not len(image.labels):
            continue
        at, ignore = points[image.anchor].to(device), torch.from_numpy(image.labels.ignore)  # (r, 2), (n,)
        boxes = torch.from_numpy(image.labels.boxes_xyxy).to(device)  # (n, 4)
        classes = torch.from_numpy(image.labels.classes).to(device)  # (n,)
        if (~ignore).any():
            objects = (~ignore).to(device)
            assigner = tal.TaskAlignedAssigner(
                topk=min(TOPK, len(at)), num_classes=n_cls, alpha=ALPHA, beta=BETA, stride=list(strides)
            )
            targets[rows] = assigner(
                scores[None, rows],
                image.boxes_xyxy[None].to(device),
                at,
                classes[objects][None, :, None],
                boxes[objects][None],
                torch.ones(1, int(objects.sum()), 1, device=device),
            )[2][0].to(scores.dtype)
        for k in ignore.nonzero().flatten().tolist():
            inside = ((at > boxes[k, :2]) & (at < boxes[k, 2:])).all(1)  # (r,)
            label = int(image.labels.classes[k])
            weights[rows, label].masked_fill_(inside & (targets[rows, label] == 0), 0)
    return targets, weights


def _rows(regions: Sequence[Regions]) -> list[slice]:
    """The rows of each image in a batch."""
    ends = torch.tensor([len(image.anchor) for image in regions]).cumsum(0).tolist()
    return [slice(first, end) for first, end in pairwise([0, *ends])]
