"""Dense targets of cached images, which tests compare with ultralytics' own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prompt_tune.tuning.assignment import find_candidates, join, targets
from prompt_tune.tuning.regions import Regions


def assign(scores: Tensor, images: Sequence[Regions], points: Tensor, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Targets and weights of regions, both (sum of r, n_cls), image after image; ignored regions have no weight."""
    places = list(torch.arange(len(scores)).split([len(image.anchor) for image in images]))
    parts = [find_candidates(image, points, strides) for image in images]
    pairs = join(parts, places, scores.device)
    wanted, weights = torch.zeros_like(scores), torch.ones_like(scores)
    wanted.index_put_(
        (pairs.rows, pairs.classes), targets(pairs, scores[pairs.rows, pairs.classes], len(scores)), accumulate=True
    )
    weights[pairs.ignored[:, 0], pairs.ignored[:, 1]] = 0
    return wanted, torch.where(wanted > 0, torch.ones_like(weights), weights)
