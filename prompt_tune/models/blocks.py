"""The contrastive head of a frozen YOLO-World (arXiv 2401.17270), folded: its last 1x1 convolution, norm, scale, bias
and the class embedding are one affine map of the head features a level.

v2 has a batch norm, which folds. v1 divides a region embedding by its length, which depends on no class: there the head
features are divided by it instead, and carry its inverse as one channel more.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_NORM = 1e-12  # of a region embedding, as in torch's `normalize`


class FoldedHead(nn.Module):
    """Constants of the folded head, computed in float64, once.

    Attributes:
        matrix: (n_levels, 512, c + 1) float32, what embeddings are multiplied with; the last column is for the bias.
        shift: (n_levels, 1) float32, added to every logit.
        factor: v1: (n_levels, k, c + 1) float32, a square root of the convolution's Gram matrix; None in v2.
    """

    matrix: Tensor
    shift: Tensor
    factor: Tensor | None

    def __init__(self, head: Any) -> None:
        """Folds ultralytics' `WorldDetect`, whose contrastive heads are all of one kind.

        One matrix for weight and bias: ONNX Runtime computes a product with a single column in another way, in which a
        row's last bits depend on how many rows there are.
        """
        super().__init__()
        matrices, shifts, factors = [], [], []
        for branch, contrast in zip(head.cv3, head.cv4, strict=True):
            conv = branch[-1]
            columns = torch.cat((conv.weight.double().flatten(1), conv.bias.double()[:, None]), dim=1)  # (512, c + 1)
            if hasattr(contrast, "norm"):
                norm = contrast.norm
                gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
                columns[:, -1] -= norm.running_mean.double()
                columns = gain[:, None] * columns
                columns[:, -1] += norm.bias.double()
            else:
                factors.append(torch.linalg.qr(columns.cpu(), mode="r").R.to(columns.device))  # (k, c + 1)
            matrices.append(contrast.logit_scale.double().exp() * columns)
            shifts.append(contrast.bias.double())
        self.register_buffer("matrix", torch.stack(matrices).float())
        self.register_buffer("shift", torch.stack(shifts).float())
        self.register_buffer("factor", torch.stack(factors).float() if factors else None)

    def features(self, level: int, head_map: Tensor) -> Tensor:
        """Head features of a level, from the input of its last 1x1 convolution.

        Args:    head_map: (b, c, h, w) float32.
        Returns: v2: the same. v1: (b, c + 1, h, w), that and a channel of ones, divided by the region embedding's norm.
        """
        if self.factor is None:
            return head_map
        # R of Q R has the lengths of what it factors, with c rather than 512 rows, and no difference of large numbers
        region = F.conv2d(head_map, self.factor[level, :, :-1, None, None], self.factor[level, :, -1])  # (b, k, h, w)
        length = region.square().sum(dim=1, keepdim=True).clamp(min=SMALLEST_NORM**2).sqrt()  # (b, 1, h, w)
        return torch.cat((head_map, torch.ones_like(head_map[:, :1])), dim=1) / length  # (b, c + 1, h, w)

    def fold(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (n_levels, n, c3) and bias (n_levels, n) for embeddings (n, 512): see `World.fold`."""
        product = F.normalize(embeddings, dim=-1) @ self.matrix  # (n_levels, n, c + 1)
        if self.factor is not None:
            return product, self.shift.expand_as(product[..., 0])
        return product[..., :-1], product[..., -1] + self.shift


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
