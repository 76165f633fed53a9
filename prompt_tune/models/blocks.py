"""Two blocks of a frozen YOLO-World (arXiv 2401.17270): the folded contrastive head, and pooling from image to guide.

On each level, the head's last 1x1 convolution, norm, scale, bias and class embedding are one affine map of the head
features. In v2 the norm is a batch norm, which folds into it. In v1 each region embedding is divided by its length,
which does not depend on the classes: here the head features are divided by it, and carry its inverse as one more
channel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_NORM = 1e-12  # lower limit for the length of a region embedding, as in torch's `normalize`


class FoldedHead(nn.Module):
    """The constants of the folded head, computed once, in float64.

    Attributes:
        matrix: (n_levels, 512, c + 1) float32, by which embeddings are multiplied; the last column makes the bias.
        shift: (n_levels, 1) float32, added to every logit.
        factor: In v1 (n_levels, k, c + 1) float32, a square root of the convolution's Gram matrix; None in v2.
    """

    matrix: Tensor
    shift: Tensor
    factor: Tensor | None

    def __init__(self, head: Any) -> None:
        """Folds ultralytics' `WorldDetect`, whose contrastive heads are all of the same version.

        Weight and bias share a matrix, because ONNX Runtime computes a product with a single column differently, and
        there the last bits of a row depend on the number of rows.
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
        """Computes the head features of a level.

        Args:
            level: The level, from 0.
            head_map: (b, c, h, w) float32, the input of the level's last 1x1 convolution.

        Returns:
            In v2 the same tensor. In v1 (b, c + 1, h, w): the map and a channel of ones, both divided by the length of
            the region embedding.
        """
        if self.factor is None:
            return head_map
        # multiplying by R of the QR factorisation gives vectors of the same length, with c rows instead of 512, and
        # without subtracting large numbers
        region = F.conv2d(head_map, self.factor[level, :, :-1, None, None], self.factor[level, :, -1])  # (b, k, h, w)
        length = region.square().sum(dim=1, keepdim=True).clamp(min=SMALLEST_NORM**2).sqrt()  # (b, 1, h, w)
        return torch.cat((head_map, torch.ones_like(head_map[:, :1])), dim=1) / length  # (b, c + 1, h, w)

    def fold(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Computes weight (n_levels, n, c3) and bias (n_levels, n) for embeddings (n, 512); see `World.fold`."""
        product = F.normalize(embeddings, dim=-1) @ self.matrix  # (n_levels, n, c + 1)
        if self.factor is not None:
            return product, self.shift.expand_as(product[..., 0])
        return product[..., :-1], product[..., -1] + self.shift


def attend_to_image(layer: Any, levels: Sequence[Tensor], guides: Tensor) -> Tensor:
    """Updates the guide of each image by attention to the image.

    Args:
        layer: An `ImagePoolingAttn`.
        levels: (b, channels, h, w) of each level.
        guides: (b, n_guide, 512) float32.

    Returns:
        (b, n_guide, 512) float32. A row does not depend on other rows. Rows do not have unit norm.

    Source: ultralytics' `ImagePoolingAttn.forward`; here pooling takes sizes that are traced (`max_pool`).
    """
    projected = [project(level) for project, level in zip(layer.projections, levels, strict=True)]
    patches = torch.cat([max_pool(level, layer.k) for level in projected], dim=2).transpose(1, 2)  # (b, n_patches, ec)
    heads = (guides.shape[0], -1, layer.nh, layer.hc)
    guides = guides.to(patches.dtype)  # float16 in the float16 variant of a detector
    query = layer.query(guides).reshape(heads).transpose(1, 2)  # (b, nh, n_guide, hc)
    key = layer.key(patches).reshape(heads).permute(0, 2, 3, 1)  # (b, nh, hc, n_patches)
    value = layer.value(patches).reshape(heads).transpose(1, 2)  # (b, nh, n_patches, hc)
    weights = (query @ key / layer.hc**0.5).softmax(dim=-1)  # (b, nh, n_guide, n_patches)
    attended = (weights @ value).transpose(1, 2).flatten(2)  # (b, n_guide, ec)
    return layer.proj(attended) * layer.scale + guides


def max_pool(x: Tensor, size: int) -> Tensor:
    """Computes torch's `adaptive_max_pool2d` to size x size cells, in operations that export with any input size.

    Args:
        x: (b, channels, h, w).
        size: Cells along each side.

    Returns:
        (b, channels, size^2), row by row.
    """
    height, width = x.shape[2], x.shape[3]
    cells = [
        x[:, :, i * height // size : ((i + 1) * height + size - 1) // size][
            ..., j * width // size : ((j + 1) * width + size - 1) // size
        ].amax(dim=(2, 3))
        for i in range(size)
        for j in range(size)
    ]
    return torch.stack(cells, dim=2)  # (b, channels, size^2)
