"""Random inputs in torch, and ultralytics' own forward pass, with which ours is compared."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def unit_rows(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 512, generator=torch.Generator().manual_seed(seed)), dim=1)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def ultralytics_forward(model: Any, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (b, A, 4) xyxy and logits (b, A, n) of the model as it was made, its own state put back."""
    head = model.model[-1]
    before = head.nc
    head.nc = len(text)
    try:
        with torch.no_grad():
            decoded, raw = model(images, txt_feats=text[None].expand(len(images), -1, -1))
    finally:
        head.nc = before
    xy, wh = decoded[:, :2], decoded[:, 2:4]
    return torch.cat((xy - wh / 2, xy + wh / 2), dim=1).transpose(1, 2), raw["scores"].transpose(1, 2)
