"""Which images an update of the training sees; what a whole training does is in test_fit.py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from prompt_tune.config import FitConfig
from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.tuning.regions import RegionCache
from prompt_tune.tuning.tasks import GuidedTask, RegionTask
from prompt_tune.tuning.trainer import CLASSES, Trainer


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


@pytest.mark.parametrize(
    ("n_labelled", "n_replay", "views", "replay_views", "together"),
    [(3, 0, 16, 1, 5), (3, 0, 2, 1, 2), (3, 6, 16, 4, 4), (9, 0, 16, 1, 1), (16, 0, 4, 1, 1), (20, 0, 4, 1, 1)],
)
def test_an_update_has_several_views_of_few_images(
    n_labelled: int, n_replay: int, views: int, replay_views: int, together: int, world: World, text_tower: Path
) -> None:
    files = [[Path("a")] * views] * n_labelled + [[Path("b")] * replay_views] * n_replay
    task = RegionTask(world, RegionCache(files, n_replay=n_replay), RegionCache(), 64)
    context = PromptContext(TextTower.load(f"local-dir:{text_tower}"), [("lorry",)])
    trainer = Trainer(task, context, FitConfig(batch=16, updates=6, views=views))
    for chosen, view in trainer._batches(np.random.default_rng(0)):
        pairs = list(zip(chosen.tolist(), view.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)  # never twice the same view
        assert set(np.bincount(chosen).tolist()) <= {0, together}
        assert all(k < (views if i < n_labelled else replay_views) for i, k in pairs)


class ManyClasses(RegionTask):
    """Any two images have boxes of the classes 3 and 70."""

    def labelled(self, chosen: Sequence[int], views: Sequence[int]) -> np.ndarray:
        return np.array([3, 70])


def many(world: World, tower: Path, n_cls: int, task: type[RegionTask] = ManyClasses, n_val: int = 0) -> Trainer:
    files = [[Path("a")]] * 2
    classes = [(f"lorry {k}",) for k in range(n_cls)]
    val = RegionCache([[Path("b")]] * n_val)
    context = PromptContext(TextTower.load(f"local-dir:{tower}"), classes, n_ctx=1)
    return Trainer(task(world, RegionCache(files), val, 64), context, FitConfig(epochs=10))


def test_an_update_encodes_the_classes_of_its_images_and_a_sample_that_stands_for_the_others(
    world: World, text_tower: Path
) -> None:
    trainer = many(world, text_tower, 200)
    seen: set[int] = set()
    for seed in range(20):
        sample = trainer._sample([0, 1], [0, 0], np.random.default_rng(seed))
        assert sample is not None
        classes = sample.classes.tolist()
        assert len(classes) == CLASSES and classes == sorted(set(classes)) and {3, 70} <= set(classes)
        weights = dict(zip(classes, sample.weights.tolist(), strict=True))
        assert weights.pop(3) == weights.pop(70) == 1
        assert list(weights.values()) == pytest.approx([198 / 62] * 62)
        seen |= set(classes)
    assert len(seen) == 200


def test_an_update_encodes_all_classes_if_they_are_few_or_steer_the_neck(world: World, text_tower: Path) -> None:
    chance = np.random.default_rng(0)
    assert many(world, text_tower, CLASSES)._sample([0], [0], chance) is None
    files = RegionCache([[Path("a")]])
    assert GuidedTask(world, files, files, 64).labelled([0], [0]) is None


@pytest.mark.parametrize(
    ("n_val", "n_cls", "measured"),
    [
        (10, 1, range(1, 11)),
        (300, 1, [1, 2, 4, 6, 8, 10]),
        (5000, 1, [1, 2, 4, 6, 8, 10]),
        (10, 300, [1, 2, 4, 6, 8, 10]),
    ],
)
def test_ap_is_measured_after_some_epochs_if_there_is_much_to_measure_and_always_after_the_first_and_the_last(
    n_val: int, n_cls: int, measured: Sequence[int], world: World, text_tower: Path
) -> None:
    trainer = many(world, text_tower, n_cls, n_val=n_val)
    found = []
    for epoch in range(1, 11):
        trainer.epoch = epoch
        if trainer._is_measured():
            trainer.best_epoch = epoch
            found.append(epoch)
    assert found == list(measured)


class FiftyEach(RegionTask):
    """Image i has boxes of the 50 classes from 50 * i on."""

    def labelled(self, chosen: Sequence[int], views: Sequence[int]) -> np.ndarray:
        return np.unique(np.concatenate([np.arange(50) + 50 * i for i in chosen]))


@pytest.mark.parametrize(("n_images", "together", "in_an_update"), [(1, 8, 8), (2, 4, 8), (6, 1, 2)])
def test_an_update_takes_fewer_images_if_they_have_boxes_of_many_classes(
    n_images: int, together: int, in_an_update: int, world: World, text_tower: Path
) -> None:
    files, classes = RegionCache([[Path("a")] * 8] * n_images), [(f"lorry {k}",) for k in range(300)]
    context = PromptContext(TextTower.load(f"local-dir:{text_tower}"), classes, n_ctx=1)
    trainer = Trainer(FiftyEach(world, files, RegionCache(), 64), context, FitConfig(batch=8, views=8, updates=1))
    found = trainer._batches(np.random.default_rng(0))
    assert [len(chosen) for chosen, _ in found] == [in_an_update] * len(found)
    assert np.bincount(np.concatenate([chosen for chosen, _ in found])).tolist() == [together] * n_images
    sample = trainer._sample(found[0][0].tolist(), [0] * in_an_update, np.random.default_rng(0))
    assert sample is not None and len(sample.classes) <= 2 * CLASSES
