"""How the images of a run get into its cache, for the guide that the run trains under."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prompt_tune.config import FitConfig, RegionBudget
from prompt_tune.datasets import DataSet, Split
from prompt_tune.errors import DataError
from prompt_tune.regions import RegionCache, cache_regions
from prompt_tune.replay import Replayed
from prompt_tune.tasks import GuidedTask, RegionTask, Task
from prompt_tune.vocabulary import Vocabulary
from prompt_tune.world import World

Report = Callable[[str, int, int, str], None]  # stage, done, total, note: what a progress bar shows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Caching:
    """How images get into the cache of a run."""

    world: World
    original: Vocabulary
    folder: Path
    config: FitConfig
    report: Report

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
            self.report(stage, len(cache.files) + len(cache.skipped), len(split.samples), "")
        if cache.skipped:
            logger.warning("%d damaged images skipped:\n  %s", len(cache.skipped), "\n  ".join(cache.skipped))
        return cache
