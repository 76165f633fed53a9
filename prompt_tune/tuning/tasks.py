"""What the prompts are trained and measured on: cached images, under a guide that is fixed or is learned itself."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prompt_tune.contract import METRIC_CONF
from prompt_tune.datasets.samples import Labels
from prompt_tune.models.suppression import find
from prompt_tune.models.world import World, join_levels, level_logits
from prompt_tune.runtime.boxes import cut
from prompt_tune.runtime.detections import Detections
from prompt_tune.tuning.caching import FORWARD_BATCH
from prompt_tune.tuning.loss import ClassSample, Prepared, class_loss, level_ends, prepare_image
from prompt_tune.tuning.memory import Store
from prompt_tune.tuning.regions import RegionCache, Regions


class Task(Protocol):
    """Training images that give a loss, and validation images that give detections."""

    world: World
    train: RegionCache
    val: RegionCache

    def loss(
        self,
        embeddings: Tensor,
        chosen: Sequence[int],
        views: Sequence[int],
        sample: ClassSample | None = None,
    ) -> Tensor:
        """The loss of some training images.

        Args:
            embeddings: (n_cls, n_prompts, 512) float32, of the learned prompts. The loss is differentiable in them.
            chosen: The images.
            views: The view of each.

            sample: The classes of the embeddings; None if they are all classes.

        Returns:
            A scalar.
        """

    def labelled(self, chosen: Sequence[int], views: Sequence[int]) -> np.ndarray | None:
        """The classes that have a box in some training images, rising; None if a loss needs all classes."""

    def detect(
        self,
        embeddings: np.ndarray,
        *,
        conf: float = METRIC_CONF,
        images: Sequence[int] | None = None,
        trained: bool = False,
        whole: bool = False,
    ) -> tuple[list[Labels], list[Detections]]:
        """Labels and detections of images in `val`, in pixels of the network's input; see `detect_regions`.

        Args:
            embeddings: (n_cls, n_prompts, 512) float32.
            conf: Scores at or below it are dropped.
            images: Which images; None takes all but the replayed ones, which come last.
            trained: Take the training images, in their first view and with the anchors of their budget.
            whole: Leave boxes as the detector draws them, also beyond the edges of the photo.
        """


class RegionTask:
    """Guide `original`: regions do not depend on the prompts.

    The detector has run once, and training is matrix products.
    """

    def __init__(self, world: World, train: RegionCache, val: RegionCache, image_size: int) -> None:
        """Take caches that `cache_regions` made with a guide; `val` holds all anchors."""
        self.world, self.train, self.val = world, train, val
        points, strides, levels = world.anchors(image_size, image_size)
        self._anchors = points.cpu(), strides.cpu(), levels.cpu()
        self._heads = Store(_folder(train), torch.float16)
        self._val_heads, self._val_boxes = Store(_folder(val), torch.float16), Store(_folder(val), torch.float32)
        self._prepared: dict[tuple[int, int], tuple[int, Prepared]] = {}  # image and view: place in the store, the rest
        self._seen: dict[int, tuple[int, Regions]] = {}

    def loss(
        self,
        embeddings: Tensor,
        chosen: Sequence[int],
        views: Sequence[int],
        sample: ClassSample | None = None,
    ) -> Tensor:
        """See `Task`."""
        return class_loss(self.world, embeddings, self._images(chosen, views), sample)

    def labelled(self, chosen: Sequence[int], views: Sequence[int]) -> np.ndarray | None:
        """See `Task`."""
        parts = [image.candidates.labelled for image in self._images(chosen, views)]
        return torch.cat(parts).unique().numpy()

    def detect(
        self,
        embeddings: np.ndarray,
        *,
        conf: float = METRIC_CONF,
        images: Sequence[int] | None = None,
        trained: bool = False,
        whole: bool = False,
    ) -> tuple[list[Labels], list[Detections]]:
        """See `Task`."""
        cache = self.train if trained else self.val
        load = cache.load if trained else self._val_image
        regions = (load(i) for i in _or_labelled(images, cache))
        return detect_regions(self.world, embeddings, regions, self._anchors, conf=conf, whole=whole)

    def _images(self, chosen: Sequence[int], views: Sequence[int]) -> list[Prepared]:
        """Training images, from memory."""
        return [self._image(int(i), int(view)) for i, view in zip(chosen, views, strict=True)]

    def _image(self, i: int, view: int) -> Prepared:
        if (i, view) not in self._prepared:
            whole = self.train.load(i, view)
            self._heads.append(whole.head)
            self._prepared[i, view] = (
                len(self._prepared),
                prepare_image(replace(whole, head=whole.head[:0]), self._anchors, self.world.strides),
            )
        place, image = self._prepared[i, view]
        return replace(image, head=self._heads[place])

    def _val_image(self, i: int) -> Regions:
        """A validation image, from memory; its head features are float16."""
        if i not in self._seen:
            whole = self.val.load(i)
            self._val_heads.append(whole.head)
            self._val_boxes.append(whole.boxes_xyxy)
            self._seen[i] = len(self._seen), replace(whole, head=whole.head[:0], boxes_xyxy=whole.boxes_xyxy[:0])
        place, regions = self._seen[i]
        return replace(regions, head=self._val_heads[place], boxes_xyxy=self._val_boxes[place])


class GuidedTask:
    """Guide `own`: the learned classes steer the neck themselves.

    Neck and head run in every step, on the backbone's outputs, which were computed once.
    """

    def __init__(self, world: World, train: RegionCache, val: RegionCache, image_size: int) -> None:
        """Take caches that `cache_regions` made without a guide."""
        self.world, self.train, self.val = world, train, val
        points, strides, levels = world.anchors(image_size, image_size)
        self._anchors = points.cpu(), strides.cpu(), levels.cpu()

    def guide(self, embeddings: Tensor) -> Tensor:
        """What steers the neck, (n_guide, 512) float32, for learned embeddings (n_cls, n_prompts, 512)."""
        return embeddings.flatten(0, 1)

    def loss(
        self,
        embeddings: Tensor,
        chosen: Sequence[int],
        views: Sequence[int],
        sample: ClassSample | None = None,
    ) -> Tensor:
        """See `Task`."""
        regions = self._regions(self.train, embeddings, chosen, views)
        images = [prepare_image(image, self._anchors, self.world.strides) for image in regions]
        return class_loss(self.world, embeddings, images, sample)

    def labelled(self, chosen: Sequence[int], views: Sequence[int]) -> np.ndarray | None:
        """See `Task`: all classes steer the neck."""
        return None

    def detect(
        self,
        embeddings: np.ndarray,
        *,
        conf: float = METRIC_CONF,
        images: Sequence[int] | None = None,
        trained: bool = False,
        whole: bool = False,
    ) -> tuple[list[Labels], list[Detections]]:
        """See `Task`."""
        cache = self.train if trained else self.val
        regions = self._all_regions(cache, embeddings, _or_labelled(images, cache))
        return detect_regions(self.world, embeddings, regions, self._anchors, conf=conf, whole=whole)

    def _all_regions(self, cache: RegionCache, embeddings: np.ndarray, images: Sequence[int]) -> Iterator[Regions]:
        """All anchors of some images of a cache, a few images at a time."""
        rows = torch.from_numpy(embeddings).to(self.world.device)
        for first in range(0, len(images), FORWARD_BATCH):
            chosen = images[first : first + FORWARD_BATCH]
            with torch.no_grad():  # not around the yield: it would hold in the caller too
                regions = self._regions(cache, rows, chosen, [0] * len(chosen))
            yield from regions

    def _regions(
        self, cache: RegionCache, embeddings: Tensor, chosen: Sequence[int], views: Sequence[int]
    ) -> list[Regions]:
        """Regions of some images under the present guide. Head features are differentiable in it, boxes are not."""
        device = self.world.device
        loaded = [cache.load_backbone(i, view) for i, view in zip(chosen, views, strict=True)]
        kept = {layer: torch.cat([layers[layer] for layers, _ in loaded]).to(device) for layer in loaded[0][0]}
        if len(loaded) == 1:  # torch's batch norm on the CPU gives wrong gradients for a batch of one
            kept = {layer: output.expand(2, -1, -1, -1) for layer, output in kept.items()}
        head_maps, boxes = self.world.neck(kept, self.guide(embeddings))
        head, boxes = join_levels(head_maps), boxes.detach().cpu()  # (b, A, c3), (b, A, 4)
        anchor = torch.arange(head.shape[1])
        return [
            replace(labels, head=head[i], boxes_xyxy=boxes[i], anchor=anchor) for i, (_, labels) in enumerate(loaded)
        ]


def _folder(cache: RegionCache) -> Path:
    """Where the files of a cache are."""
    return cache.files[0][0].parent if cache.files else Path()


def _or_labelled(images: Sequence[int] | None, cache: RegionCache) -> Sequence[int]:
    """The images, or all of a cache but the replayed ones."""
    return range(len(cache.files) - cache.n_replay) if images is None else images


@torch.no_grad()
def detect_regions(
    world: World,
    embeddings: np.ndarray,
    images: Iterable[Regions],
    anchors: tuple[Tensor, Tensor, Tensor],
    *,
    conf: float = METRIC_CONF,
    whole: bool = False,
) -> tuple[list[Labels], list[Detections]]:
    """Labels and detections of images from all their regions, in pixels of the network's input.

    As in the runtime, boxes are cut at the edges of the photo after suppression, unless they are to be left `whole`.

    Args:
        world: The frozen detector.
        embeddings: (n_cls, n_prompts, 512) float32.
        images: The regions of each image.
        anchors: From `World.anchors`, for the input size, on the CPU.
        conf: Scores at or below it are dropped.
        whole: See `Task.detect`.
    """
    weight, bias = world.fold(torch.from_numpy(embeddings).to(world.device).flatten(0, 1))
    labels, founds = [], []
    for regions in images:
        ends = level_ends(regions, anchors, world.n_levels)
        scores = level_logits(regions.head, ends, weight, bias, embeddings.shape[1]).sigmoid()
        found = find(regions.boxes_xyxy.to(world.device), scores, conf=conf)
        founds.append(found if whole else cut_at(found, regions.frame_xyxy))
        labels.append(regions.labels)
    return labels, founds


def cut_at(found: Detections, frame_xyxy: np.ndarray) -> Detections:
    """Detections with their boxes cut at a frame (4,). Boxes entirely outside are left out."""
    boxes_xyxy, inside = cut(found.boxes_xyxy, frame_xyxy)
    return replace(found, boxes_xyxy=boxes_xyxy).select(inside)
