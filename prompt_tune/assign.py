"""Task-aligned assignment (TOOD, arXiv 2108.07755) of cached regions to labelled boxes, by ultralytics' assigner."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prompt_tune import yolo
from prompt_tune.regions import Regions

TOPK, ALPHA, BETA = 10, 0.5, 6.0  # as ultralytics trains YOLO-World


@torch.no_grad()
def assign(
    scores: Tensor, regions: Sequence[Regions], points: Tensor, strides: Sequence[int], image_size: int
) -> tuple[Tensor, Tensor]:
    """Soft targets of a batch of cached images.

    The assigner takes one grid of anchors for all images of a batch, and here every image kept other anchors. So the
    images are laid side by side, far enough apart that no box of one overlaps the next, and assigned as one.

    Args:    scores: (sum of r, n_cls) float32 in 0..1, the current scores of all regions, image after image.
             regions: the images. points: (A, 2) anchor points in pixels of the network's input. strides: of the levels.
             image_size: side of the network's input in pixels.
    Returns: targets (sum of r, n_cls) float32 in 0..1, and weights (sum of r,): 0 for a region in an ignored box that
             is no object's, 1 for all others.
    """
    tal = yolo.quiet_import("ultralytics.utils.tal")
    offsets = [torch.tensor([2.0 * image_size * i, 0.0]) for i in range(len(regions))]
    device = scores.device
    at = torch.cat([points[r.anchor] + o for r, o in zip(regions, offsets, strict=True)])  # (sum of r, 2)
    boxes = torch.cat([r.boxes_xyxy + o.repeat(2) for r, o in zip(regions, offsets, strict=True)])  # (sum of r, 4)
    labels = torch.cat([r.label_boxes + o.repeat(2) for r, o in zip(regions, offsets, strict=True)])  # (n, 4)
    classes = torch.cat([r.label_classes for r in regions])  # (n,)
    ignore = torch.cat([r.label_ignore for r in regions])  # (n,)
    targets = torch.zeros_like(scores)
    weights = torch.ones(len(scores), device=device)
    if (~ignore).any():
        assigner = tal.TaskAlignedAssigner(
            topk=min(TOPK, len(scores)), num_classes=scores.shape[1], alpha=ALPHA, beta=BETA, stride=list(strides)
        )
        _, _, found, _, _ = assigner(
            scores[None],
            boxes[None].to(device),
            at.to(device),
            classes[~ignore][None, :, None].to(device),
            labels[~ignore][None].to(device),
            torch.ones(1, int((~ignore).sum()), 1, device=device),
        )
        targets = found[0].to(scores.dtype)
    if ignore.any():
        box = labels[ignore]  # (n_ignored, 4)
        inside = ((at[:, None] > box[:, :2]) & (at[:, None] < box[:, 2:])).all(2).any(1).to(device)  # (sum of r,)
        weights[inside & (targets.sum(1) == 0)] = 0
    return targets, weights
