"""Which images an update of the training sees; what a whole training does is in test_fit.py."""

from pathlib import Path

import numpy as np
import pytest

from prompt_tune.config import FitConfig
from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.tuning.regions import RegionCache
from prompt_tune.tuning.tasks import RegionTask
from prompt_tune.tuning.trainer import Trainer


def batches(world: World, tower: Path, n_labelled: int, n_replay: int, config: FitConfig) -> list[list[int]]:
    """The images of each update of an epoch; none of their files is read."""
    files = [[Path(f"{i}")] for i in range(n_labelled + n_replay)]
    task = RegionTask(world, RegionCache(files, n_replay=n_replay), RegionCache(), 64)
    trainer = Trainer(task, PromptContext(TextTower.load(f"local-dir:{tower}"), [("lorry",)]), config)
    return [chosen.tolist() for chosen, _ in trainer._batches(np.random.default_rng(3))]


@pytest.mark.parametrize(
    ("n_labelled", "n_replay", "updates", "steps", "passes"),
    [(1, 0, 6, 6, 6), (5, 0, 6, 6, 3), (8, 0, 6, 6, 3), (30, 0, 6, 8, 1), (5, 9, 6, 6, 3), (5, 1, 1, 2, 1)],
)
def test_few_images_are_passed_over_several_times_and_replayed_ones_make_no_more_updates(
    n_labelled: int, n_replay: int, updates: int, steps: int, passes: int, world: World, text_tower: Path
) -> None:
    found = batches(world, text_tower, n_labelled, n_replay, FitConfig(batch=4, updates=updates))
    assert len(found) == steps
    seen = np.bincount(np.concatenate(found), minlength=n_labelled + n_replay)
    assert (seen == passes).all()  # every image, labelled or replayed, as often as the others
    assert all(sum(i < n_labelled for i in batch) in range(1, 5) for batch in found)
    assert all(len(set(batch)) == len(batch) for batch in found)
