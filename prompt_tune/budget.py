"""Which anchors of a training image are kept in the region cache."""

import torch
from torch import Tensor

from prompt_tune.config import RegionBudget

SMALLEST_BOX = 16.0  # px, the assigner widens smaller boxes to this (its second stride): anchors there are kept as well


def choose_anchors(
    points: Tensor, boxes: Tensor, scores: Tensor, objects: Tensor, budget: RegionBudget, generator: torch.Generator
) -> Tensor:
    """(r,) int64, rising: the anchors of a training image that are kept.

    Args: points (A, 2), boxes (A, 4), scores (A,) the highest original logit of each, objects (n, 4) the labels that
          are not ignored; all in pixels of the network's input.
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
