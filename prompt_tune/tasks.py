"""What the prompts are trained and measured on: cached images, under a guide that is fixed or that is being learned."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prompt_tune.coco import Found, Truth
from prompt_tune.evaluate import METRIC_CONF, detect_regions
from prompt_tune.loss import class_loss
from prompt_tune.regions import FORWARD_BATCH, RegionCache, Regions
from prompt_tune.world import World, join_levels


class Task(Protocol):
    """Training images that give a loss, and validation images that give detections."""

    world: World
    train: RegionCache
    val: RegionCache

    def loss(self, embeddings: Tensor, chosen: Sequence[int], views: Sequence[int]) -> Tensor:
        """The loss of some training images, each in a view.

        Args:    embeddings: (n_cls, n_prompts, 512) float32, of the learned prompts; the loss is differentiable in it.
        Returns: a scalar.
        """

    def detect(
        self, embeddings: np.ndarray, *, conf: float = METRIC_CONF, replayed: bool = False
    ) -> tuple[list[Truth], list[Found]]:
        """Labels and detections of the validation images, and behind them of the replayed ones that are held out, where
        they are wanted; see `evaluate.detect_regions`."""


class RegionTask:
    """Guide `original`: regions do not depend on the prompts, so the detector has run once, and training is matrix
    products."""

    def __init__(self, world: World, train: RegionCache, val: RegionCache, image_size: int) -> None:
        """Caches of `cache_regions` with a guide; `val` holds all anchors."""
        self.world, self.train, self.val = world, train, val
        self._anchors = world.anchors(image_size, image_size)

    def loss(self, embeddings: Tensor, chosen: Sequence[int], views: Sequence[int]) -> Tensor:
        """See `Task`."""
        regions = [self.train.load(i, view) for i, view in zip(chosen, views, strict=True)]
        return class_loss(self.world, embeddings, regions, self._anchors)

    def detect(
        self, embeddings: np.ndarray, *, conf: float = METRIC_CONF, replayed: bool = False
    ) -> tuple[list[Truth], list[Found]]:
        """See `Task`."""
        images = (self.val.load(i) for i in range(_count(self.val, replayed)))
        return detect_regions(self.world, embeddings, images, self._anchors, conf=conf)


class GuidedTask:
    """Guide `own`: the learned classes steer the neck themselves, so neck and head run in every step, on what the
    backbone gave once."""

    def __init__(
        self, world: World, train: RegionCache, val: RegionCache, image_size: int, *, beside: Tensor | None = None
    ) -> None:
        """Caches of `cache_regions` without a guide.

        Args: beside: (n, 512) float32, unit rows: classes that guide the neck too. None: the learned ones alone do.
        """
        self.world, self.train, self.val = world, train, val
        self._anchors = world.anchors(image_size, image_size)
        self._beside = torch.zeros(0, world.embed_dim, device=world.device) if beside is None else beside

    def loss(self, embeddings: Tensor, chosen: Sequence[int], views: Sequence[int]) -> Tensor:
        """See `Task`."""
        regions = self._regions(self.train, embeddings, chosen, views)
        return class_loss(self.world, embeddings, regions, self._anchors)

    def detect(
        self, embeddings: np.ndarray, *, conf: float = METRIC_CONF, replayed: bool = False
    ) -> tuple[list[Truth], list[Found]]:
        """See `Task`."""
        images = self._val_regions(embeddings, _count(self.val, replayed))
        return detect_regions(self.world, embeddings, images, self._anchors, conf=conf)

    def _val_regions(self, embeddings: np.ndarray, count: int) -> Iterator[Regions]:
        """All anchors of the first validation images, a few images at a time."""
        rows = torch.from_numpy(embeddings).to(self.world.device)
        for first in range(0, count, FORWARD_BATCH):
            chosen = range(first, min(first + FORWARD_BATCH, count))
            with torch.no_grad():  # not around the yield, or it would hold for the caller as well
                regions = self._regions(self.val, rows, chosen, [0] * len(chosen))
            yield from regions

    def _regions(
        self, cache: RegionCache, embeddings: Tensor, chosen: Sequence[int], views: Sequence[int]
    ) -> list[Regions]:
        """Regions of some images under the guide as it is now; head features are differentiable in it, boxes are
        not."""
        device = self.world.device
        loaded = [cache.load_backbone(i, view) for i, view in zip(chosen, views, strict=True)]
        kept = {layer: torch.cat([layers[layer] for layers, _ in loaded]).to(device) for layer in loaded[0][0]}
        if len(loaded) == 1:  # torch's batch norm on the CPU gives a batch of one wrong gradients
            kept = {layer: output.expand(2, -1, -1, -1) for layer, output in kept.items()}
        guide = torch.cat([self._beside, embeddings.flatten(0, 1)])  # (n + n_cls * n_prompts, 512)
        head_maps, boxes = self.world.neck(kept, guide)
        head, boxes = join_levels(head_maps), boxes.detach().cpu()  # (b, A, c3), (b, A, 4)
        anchor = torch.arange(head.shape[1])
        return [
            replace(labels, head=head[i], boxes_xyxy=boxes[i], anchor=anchor) for i, (_, labels) in enumerate(loaded)
        ]


def _count(cache: RegionCache, replayed: bool) -> int:
    """How many images of a cache are measured."""
    return len(cache.files) - (0 if replayed else cache.n_replay)
