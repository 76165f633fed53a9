"""YOLO-World v1's image-aware text (arXiv 2401.17270, section 3.3): the guide looks at the image, pooled to 3x3 cells.

ultralytics' `ImagePoolingAttn` with its own weights. Its adaptive pooling does not export where height and width are
dynamic; the same maxima over slices, bit for bit, do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def attend_to_image(layer: Any, levels: Sequence[Tensor], guides: Tensor) -> Tensor:
    """The guide of each image, from the guide of all.

    Args:    layer: an `ImagePoolingAttn`. levels: (b, channels, h, w) a level. guides: (b, n_guide, 512) float32.
    Returns: (b, n_guide, 512) float32. A row does not depend on the others; rows are not unit.
    """
    projected = [project(level) for project, level in zip(layer.projections, levels, strict=True)]
    patches = torch.cat([max_pool(level, layer.k) for level in projected], dim=2).transpose(1, 2)  # (b, n_patches, ec)
    heads = (guides.shape[0], -1, layer.nh, layer.hc)
    guides = guides.to(patches.dtype)  # float16 in a detector that computes so
    query = layer.query(guides).reshape(heads).transpose(1, 2)  # (b, nh, n_guide, hc)
    key = layer.key(patches).reshape(heads).permute(0, 2, 3, 1)  # (b, nh, hc, n_patches)
    value = layer.value(patches).reshape(heads).transpose(1, 2)  # (b, nh, n_patches, hc)
    weights = (query @ key / layer.hc**0.5).softmax(dim=-1)  # (b, nh, n_guide, n_patches)
    attended = (weights @ value).transpose(1, 2).flatten(2)  # (b, n_guide, ec)
    return layer.proj(attended) * layer.scale + guides


def max_pool(x: Tensor, size: int) -> Tensor:
    """torch's `adaptive_max_pool2d` to size x size cells, flattened: (b, channels, size^2) from (b, channels, h, w)."""
    height, width = x.shape[2], x.shape[3]
    cells = [
        x[:, :, i * height // size : ((i + 1) * height + size - 1) // size][
            ..., j * width // size : ((j + 1) * width + size - 1) // size
        ].amax(dim=(2, 3))
        for i in range(size)
        for j in range(size)
    ]
    return torch.stack(cells, dim=2)  # (b, channels, size^2)
