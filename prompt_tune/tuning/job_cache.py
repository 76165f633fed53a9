"""The region cache of one run: which images go into it, in how many views, and with how many anchors."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prompt_tune.config import FitConfig, RegionBudget
from prompt_tune.datasets.reading import DataSet
from prompt_tune.datasets.replay import Replayed
from prompt_tune.datasets.samples import Sample, Split
from prompt_tune.errors import DataError
from prompt_tune.models.world import World
from prompt_tune.progress import Progress
from prompt_tune.tuning.caching import cache_regions
from prompt_tune.tuning.photos import Photos
from prompt_tune.tuning.regions import RegionCache
from prompt_tune.tuning.tasks import GuidedTask, RegionTask, Task
from prompt_tune.vocabulary.vocabulary import Vocabulary

REPLAY_VIEWS = 4  # at most: there are several replayed images for each labelled one
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Caching:
    """How the images of a run get into its cache.

    Attributes:
        world: The frozen detector.
        original: The original vocabulary.
        folder: The folder of the cache.
        config: The settings of the run.
        progress: Called after every few images.
    """

    world: World
    original: Vocabulary
    folder: Path
    config: FitConfig
    progress: Progress

    def task(self, dataset: DataSet, replayed: Replayed) -> Task:
        """Cache training images in their views, and those to measure on with all anchors. Replayed ones come last.

        Raises:
            DataError: No readable training or validation image has a box, or no replayed image can be read.
        """
        train_part, replay_part, val_part, held_out_part, *_ = self._parts(dataset, replayed)
        train = self._run(train_part)
        _require_object(train, "training", dataset)
        if replay_part.split.samples:
            train = train.with_replay(self._run(replay_part))
        val = self._run(val_part)
        _require_object(val, "validation", dataset)
        if held_out_part.split.samples:
            val = val.with_replay(self._run(held_out_part))
        own = self.config.guide == "own"
        return (GuidedTask if own else RegionTask)(self.world, train, val, self.config.image_size)

    def seen(self, task: Task, val: Split) -> RegionCache:
        """The validation images under the original guide, which shows what the original classes find in them."""
        return task.val if self.config.guide == "original" else self._run(_report(val))

    def n_images(self, dataset: DataSet, replayed: Replayed) -> int:
        """The number of images that all shares have together."""
        return sum(len(part.split.samples) for part in self._parts(dataset, replayed))

    def share(self, dataset: DataSet, replayed: Replayed, rank: int, size: int) -> Iterator[int]:
        """Cache one share of all images: every `size`-th one. `task` then finds their files.

        Args:
            dataset: See `task`.
            replayed: See `task`.
            rank: Which share, from 0.
            size: The number of shares.

        Yields:
            The images that are done, after every few.
        """
        before = 0
        for part in self._parts(dataset, replayed):
            samples = part.split.samples[rank::size]
            try:
                for cache in self._fill(part, samples):
                    yield before + len(cache.files) + len(cache.skipped)
            except DataError:  # no image of this share can be read, or it has none; `task` sees all shares
                pass
            before += len(samples)
        yield before

    def _parts(self, dataset: DataSet, replayed: Replayed) -> list["_Part"]:
        """What is cached: training images, replayed ones, those to measure on, and replayed ones for that."""
        guided, views = self.config.guide != "own", self.config.views
        budget = RegionBudget(*self.config.region_budget) if guided else None
        parts = [
            _Part("cache train", dataset.train, views, budget, guided),
            _Part("cache replay", replayed.train, min(views, REPLAY_VIEWS), budget, guided),
            _Part("cache val", dataset.measured, 1, None, guided),
            _Part("cache replay held out", replayed.held_out, 1, None, guided),
        ]
        return parts if guided else [*parts, _report(dataset.measured)]

    def _fill(self, part: "_Part", samples: Sequence[Sample]) -> Iterator[RegionCache]:
        """See `cache_regions`."""
        guide = torch.tensor(self.original.embeddings, device=self.world.device).flatten(0, 1) if part.guided else None
        return cache_regions(
            self.world,
            guide,
            samples,
            self.folder,
            image_size=self.config.image_size,
            views=part.views,
            budget=part.budget,
            seed=self.config.seed,
        )

    def _run(self, part: "_Part") -> RegionCache:
        for cache in self._fill(part, part.split.samples):
            self.progress(part.stage, len(cache.files) + len(cache.skipped), len(part.split.samples), "")
        if self.config.tile:
            windows = tuple(part.split.samples[i] for i in cache.kept)
            skipped = list(dict.fromkeys(cache.skipped))  # once for all windows of a photo
            cache = replace(cache, skipped=skipped, photos=Photos(windows, self.config.image_size))
        if cache.skipped:
            logger.warning("%d damaged images are skipped:\n  %s", len(cache.skipped), "\n  ".join(cache.skipped))
        return cache


@dataclass(frozen=True)
class _Part:
    """Some of the images of a run, and how they are cached.

    Attributes:
        stage: The name that progress shows.
        split: The images.
        views: See `cache_regions`.
        budget: See `cache_regions`.
        guided: Whether the original vocabulary steers the neck; otherwise the backbone's outputs are kept.
    """

    stage: str
    split: Split
    views: int
    budget: RegionBudget | None
    guided: bool


def _report(val: Split) -> _Part:
    """The validation images for the report."""
    return _Part("report", val, 1, None, guided=True)


def _require_object(cache: RegionCache, kind: str, dataset: DataSet) -> None:
    """Refuse images without any box that counts: nothing could be learned from them, or measured on them."""
    if not any(cache.has_object(i) for i in range(len(cache.files))):
        first = f" The first that was skipped: {cache.skipped[0]}" if cache.skipped else ""
        raise DataError(
            f"No readable {kind} image of `{dataset.source}` has a box.{first} Replace the damaged images, or label "
            "others."
        )
