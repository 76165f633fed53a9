"""What the context vectors are trained on: binary cross-entropy of cached regions against task-aligned soft targets."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.assign import assign
from prompt_tune.regions import Regions
from prompt_tune.world import World


def region_logits(world: World, head: Tensor, level: Tensor, embeddings: Tensor) -> Tensor:
    """Class logits of regions; a class scores the maximum over its prompts.

    Args:    head: (r, c3) float32. level: (r,) int64. embeddings: (n_cls, n_prompts, 512) float32.
    Returns: (r, n_cls) float32, differentiable in the embeddings.
    """
    n_cls, n_prompts = embeddings.shape[:2]
    weight, bias = world.fold(embeddings.flatten(0, 1))  # rows: n_cls * n_prompts, prompts of a class together
    logits = world.logits(head[None], level, weight, bias)[0]  # (r, n_cls * n_prompts)
    return logits.unflatten(1, (n_cls, n_prompts)).amax(2)  # (r, n_cls)


def class_loss(
    world: World, embeddings: Tensor, regions: Sequence[Regions], anchors: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """The loss of one batch of cached images; boxes are untouched.

    Args:    embeddings: (n_cls, n_prompts, 512) float32, of the learned prompts. regions: the images.
             anchors: points, strides and levels from `World.anchors` for the images' input size.
    Returns: scalar: binary cross-entropy summed over regions and classes, divided by the sum of the targets.
    Source:  YOLOv8's classification loss, as ultralytics trains YOLO-World; here ignored boxes have no weight.
    """
    points, _, levels = (part.cpu() for part in anchors)
    head = torch.cat([image.head for image in regions]).to(world.device)  # (sum of r, c3)
    level = levels[torch.cat([image.anchor for image in regions])].to(world.device)  # (sum of r,)
    logits = region_logits(world, head, level, embeddings)
    targets, weights = assign(logits.detach().sigmoid(), regions, points, world.strides)
    losses = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
    return losses / targets.sum().clamp(min=1)


def teacher_distance(embeddings: Tensor, teacher: Tensor) -> Tensor:
    """How far learned embeddings are from those that hand-written prompts give.

    Args:    embeddings, teacher: (n_cls, n_prompts, 512) float32, unit rows.
    Returns: scalar in 0..4: the squared Euclidean distance, a mean over classes and prompts.
    Source:  KgCoOp (arXiv 2303.13283), equation 4.
    """
    return (embeddings - teacher).square().sum(-1).mean()
