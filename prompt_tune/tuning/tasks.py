"""What the prompts are trained and measured on: cached images, under a guide that is fixed or that is being learned."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prompt_tune.config import FitConfig, RegionBudget
from prompt_tune.contract import METRIC_CONF
from prompt_tune.datasets.reading import DataSet
from prompt_tune.datasets.replay import Replayed
from prompt_tune.datasets.samples import Labels, Split
from prompt_tune.errors import DataError
from prompt_tune.models.suppression import find
from prompt_tune.models.world import World, join_levels, region_logits
from prompt_tune.progress import Progress
from prompt_tune.runtime.detections import Detections
from prompt_tune.tuning.loss import class_loss
from prompt_tune.tuning.regions import FORWARD_BATCH, RegionCache, Regions, cache_regions
from prompt_tune.vocabulary.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


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
    ) -> tuple[list[Labels], list[Detections]]:
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
    ) -> tuple[list[Labels], list[Detections]]:
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
    ) -> tuple[list[Labels], list[Detections]]:
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


@dataclass(frozen=True, eq=False)
class Caching:
    """How images get into the cache of a run."""

    world: World
    original: Vocabulary
    folder: Path
    config: FitConfig
    progress: Progress

    def task(self, dataset: DataSet, replayed: Replayed) -> Task:
        """Cached training images in their views, and validation images with all anchors; behind both, replayed ones.

        Raises:  DataError: no training image that can be read has a box, or no replayed image can be read.
        """
        own = self.config.guide == "own"
        guide = None if own else self._guide()
        budget = None if own else RegionBudget(*self.config.region_budget)
        train = self._run(guide, dataset.train, "cache train", self.config.views, budget)
        if not any(train.has_object(i) for i in range(len(train.files))):
            raise DataError(f"No readable training image of `{dataset.source}` has a box. Replace the damaged images.")
        if replayed.train.samples:
            train = train.with_replay(self._run(guide, replayed.train, "cache replay", self.config.views, budget))
        val = self._run(guide, dataset.val, "cache val", 1, None)
        if replayed.held_out.samples:
            val = val.with_replay(self._run(guide, replayed.held_out, "cache replay held out", 1, None))
        return (GuidedTask if own else RegionTask)(self.world, train, val, self.config.image_size)

    def seen(self, task: Task, val: Split) -> RegionCache:
        """The validation images under the original guide: what the original classes make of them."""
        return task.val if self.config.guide == "original" else self._run(self._guide(), val, "report", 1, None)

    def _guide(self) -> Tensor:
        """(n_cls * n_prompts, 512) float32."""
        return torch.tensor(self.original.embeddings, device=self.world.device).flatten(0, 1)

    def _run(
        self, guide: Tensor | None, split: Split, stage: str, views: int, budget: RegionBudget | None
    ) -> RegionCache:
        for cache in cache_regions(
            self.world,
            guide,
            split.samples,
            self.folder,
            image_size=self.config.image_size,
            views=views,
            budget=budget,
            seed=self.config.seed,
        ):
            self.progress(stage, len(cache.files) + len(cache.skipped), len(split.samples), "")
        if cache.skipped:
            logger.warning("%d damaged images skipped:\n  %s", len(cache.skipped), "\n  ".join(cache.skipped))
        return cache


@torch.no_grad()
def detect_regions(
    world: World,
    embeddings: np.ndarray,
    images: Iterable[Regions],
    anchors: tuple[Tensor, Tensor, Tensor],
    *,
    conf: float = METRIC_CONF,
) -> tuple[list[Labels], list[Detections]]:
    """Labels and detections of images from all their regions, in pixels of the network's input.

    As the runtime does, boxes are cut at the edges of the photo once suppression is done.

    Args:    embeddings: (n_cls, n_prompts, 512) float32. images: each with all its anchors.
             anchors: from `World.anchors`, for the input size. conf: scores at or below it are dropped.
    """
    rows = torch.from_numpy(embeddings).to(world.device)
    level = anchors[2]
    labels, founds = [], []
    for regions in images:
        scores = region_logits(world, regions.head.to(world.device), level, rows).sigmoid()
        found = find(regions.boxes_xyxy.to(world.device), scores, conf=conf)
        founds.append(_cut(found, regions.frame_xyxy))
        labels.append(regions.labels)
    return labels, founds


def _cut(found: Detections, frame_xyxy: np.ndarray) -> Detections:
    """Detections with their boxes cut at a frame (4,); those wholly outside are left out."""
    boxes_xyxy = found.boxes_xyxy.clip(np.tile(frame_xyxy[:2], 2), np.tile(frame_xyxy[2:], 2))  # (n, 4)
    inside = np.flatnonzero((boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1))
    return replace(found, boxes_xyxy=boxes_xyxy).select(inside)
