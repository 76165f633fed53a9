"""Task-aligned assignment (TOOD, arXiv 2108.07755) of cached regions to labelled boxes, by ultralytics' assigner."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from prompt_tune import yolo
from prompt_tune.regions import Regions

TOPK, ALPHA, BETA = 10, 0.5, 6.0  # as ultralytics trains YOLO-World


@torch.no_grad()
def assign(scores: Tensor, regions: Sequence[Regions], points: Tensor, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Soft targets of a batch of cached images.

    An image at a time: the assigner takes one grid of anchors for all images of a batch, and each kept its own.

    Args:    scores: (sum of r, n_cls) float32 in 0..1, the current scores of all regions, image after image.
             regions: the images. points: (A, 2) anchor points in pixels of the network's input, on the CPU.
             strides: of the levels, in pixels.
    Returns: targets and weights, both (sum of r, n_cls) float32. A target is in 0..1. A weight is 0 where the region
             lies in an ignored box of the class and is no object of it, else 1.
    """
    tal = yolo.quiet_import("ultralytics.utils.tal")
    n_cls, device = scores.shape[1], scores.device
    targets, weights = torch.zeros_like(scores), torch.ones_like(scores)
    for image, rows in zip(regions, _rows(regions), strict=True):
        if not len(image.anchor) or not len(image.label_classes):
            continue
        at, ignore = points[image.anchor].to(device), image.label_ignore  # (r, 2), (n,)
        boxes, classes = image.label_boxes.to(device), image.label_classes.to(device)  # (n, 4), (n,)
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
            label = int(image.label_classes[k])
            weights[rows, label].masked_fill_(inside & (targets[rows, label] == 0), 0)
    return targets, weights


def _rows(regions: Sequence[Regions]) -> list[slice]:
    """Where each image's regions are in the rows of a batch."""
    ends = torch.tensor([len(image.anchor) for image in regions]).cumsum(0).tolist()
    return [slice(first, end) for first, end in pairwise([0, *ends])]
