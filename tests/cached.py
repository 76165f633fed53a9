"""Small images in a region cache, and random embeddings, that tests of training share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.models.world import World
from prompt_tune.tuning.caching import cache_regions
from prompt_tune.tuning.regions import RegionCache

SIZE = 64  # pixels of the network's input


def embeddings(n_cls: int, n_prompts: int, seed: int = 0) -> Tensor:
    rows = torch.randn(n_cls, n_prompts, 512, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=-1)


def write_sample(folder: Path, number: int, *, n_objects: int = 2) -> Sample:
    """A picture of 90 x 60 pixels and its boxes."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 255, (6, 9, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    path = folder / f"{number:03}.png"
    Image.fromarray(pixels).save(path)
    corner = rng.uniform(0, 40, (n_objects, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 20, (n_objects, 2))], 1).astype(np.float32)
    return Sample(path, Labels(boxes, rng.integers(0, 3, n_objects), np.zeros(n_objects, bool)), (90, 60))


def fill(world: World, guide: Tensor | None, samples: list[Sample], folder: Path, **settings: Any) -> RegionCache:
    """The complete cache."""
    *_, cache = cache_regions(world, guide, samples, folder, **{"image_size": SIZE} | settings)
    return cache
