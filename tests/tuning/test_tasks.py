"""Training under a guide that is learned: loss, gradients and detections as under the same guide when it is fixed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cached import SIZE, embeddings, fill, write_sample
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.models.suppression import find
from prompt_tune.models.world import World, region_logits
from prompt_tune.tuning.caching import cache_regions
from prompt_tune.tuning.regions import RegionCache
from prompt_tune.tuning.tasks import GuidedTask, RegionTask, detect_regions

CHOSEN, VIEWS = [0, 2, 5], [0, 1, 0]


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """(3, 2, 512) float32, unit rows: of classes that score and steer."""
    return embeddings(3, 2, seed=8)


@pytest.fixture(scope="module")
def caches(world: World, rows: Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[RegionCache, RegionCache]:
    """Six images, the last without objects, in two views: under the guide `rows`, all anchors; and without a guide."""
    folder = tmp_path_factory.mktemp("images")
    samples = [write_sample(folder, number, n_objects=0 if number == 5 else 2) for number in range(6)]
    fixed, free = (
        fill(world, guide, samples, folder / name, views=2)
        for name, guide in (("fixed", rows.flatten(0, 1)), ("free", None))
    )
    return fixed, free


@pytest.fixture(scope="module")
def region_task(world: World, caches: tuple[RegionCache, RegionCache]) -> RegionTask:
    return RegionTask(world, caches[0], caches[0], SIZE)


@pytest.fixture(scope="module")
def guided_task(world: World, caches: tuple[RegionCache, RegionCache]) -> GuidedTask:
    return GuidedTask(world, caches[1], caches[1], SIZE)


def test_loss_under_a_learned_guide_is_that_under_the_same_fixed_guide(
    region_task: RegionTask, guided_task: GuidedTask, rows: Tensor
) -> None:
    fixed, free = (float(task.loss(rows, CHOSEN, VIEWS)) for task in (region_task, guided_task))
    assert free == pytest.approx(fixed, rel=5e-3)  # both caches are float16, in different places
    other = float(guided_task.loss(embeddings(3, 2, seed=9), CHOSEN, VIEWS))
    assert abs(other - fixed) > 0.02 * fixed


def test_detections_under_a_learned_guide_are_those_under_the_same_fixed_guide(
    region_task: RegionTask, guided_task: GuidedTask, rows: Tensor
) -> None:
    (truths, fixed), (same, free) = (task.detect(rows.numpy(), conf=0.02) for task in (region_task, guided_task))
    assert len(free) == len(fixed) == 6 and sum(len(found.scores) for found in fixed) > 30
    for truth, other, a, b in zip(truths, same, fixed, free, strict=True):
        np.testing.assert_array_equal(truth.boxes_xyxy, other.boxes_xyxy)
        for label in range(3):  # near ties may change places, so scores are compared by rank
            best = [np.sort(found.scores[found.class_ids == label])[::-1][:10] for found in (a, b)]
            np.testing.assert_allclose(best[0], best[1], atol=5e-3)


def test_gradient_goes_through_guide_and_head_and_is_that_of_finite_differences(
    region_task: RegionTask, guided_task: GuidedTask, rows: Tensor
) -> None:
    """On an image without objects, whose targets do not move, along a direction that the head alone does not see.

    The batch has one image, for which torch's batch norm alone would give wrong gradients.
    """
    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(guided_task.loss(leaf, [5], [0]), leaf)
    (of_head,) = torch.autograd.grad(region_task.loss(leaf, [5], [0]), leaf)
    assert float((gradient * of_head).sum()) > 0.9 * float(of_head.square().sum())
    of_guide = gradient - of_head * (gradient * of_head).sum() / of_head.square().sum()
    step = 0.01 * of_guide / of_guide.norm()
    with torch.no_grad():
        ahead, behind = (float(guided_task.loss(rows + sign * step, [5], [0])) for sign in (1, -1))
    slope = float((gradient * step).sum())
    assert (ahead - behind) / 2 == pytest.approx(slope, rel=0.1) and slope > 1e-3


def test_guided_loss_has_gradients_in_the_embeddings_alone(guided_task: GuidedTask, rows: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in guided_task.world.model.state_dict().items()}
    leaf = rows.clone().requires_grad_()
    guided_task.loss(leaf, CHOSEN, VIEWS).backward()
    assert leaf.grad is not None and bool((leaf.grad.abs().sum(2) > 0).all())
    assert all(parameter.grad is None for parameter in guided_task.world.model.parameters())
    after = guided_task.world.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_guided_detections_do_not_change_when_prompts_are_repeated(guided_task: GuidedTask, rows: Tensor) -> None:
    """A class with fewer prompts repeats its own: neither guide nor score may notice."""
    _, once = guided_task.detect(rows[:, :1].numpy(), conf=0.01)
    _, twice = guided_task.detect(rows[:, [0, 0, 0]].numpy(), conf=0.01)
    assert sum(len(found.scores) for found in once) > 0
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(np.sort(a.scores), np.sort(b.scores), atol=1e-5)


def test_detection_in_chosen_images_is_that_of_all_images_in_those(region_task: RegionTask, rows: Tensor) -> None:
    _, found = region_task.detect(rows.numpy())
    _, chosen = region_task.detect(rows.numpy(), images=[len(found) - 1])
    assert len(chosen) == 1
    np.testing.assert_array_equal(chosen[0].scores, found[-1].scores)
    _, trained = region_task.detect(rows.numpy(), trained=True)  # its training images are the same, with all anchors
    np.testing.assert_array_equal(trained[-1].scores, found[-1].scores)


def test_validation_regions_leave_gradients_on_for_the_caller(guided_task: GuidedTask, rows: Tensor) -> None:
    regions = next(guided_task._all_regions(guided_task.val, rows.numpy(), [0]))
    assert torch.is_grad_enabled() and not regions.head.requires_grad


def test_detect_regions_gives_what_the_detector_finds_with_the_best_prompt_of_a_class(
    world: World, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    guide = F.normalize(torch.randn(5, 512, generator=generator), dim=1)
    learned = F.normalize(torch.randn(3, 2, 512, generator=generator), dim=2)
    pixels = torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    wanted_labels = Labels(np.array([[4, 5, 30, 40]], np.float32), np.array([1]), np.array([False]))
    sample = Sample(tmp_path / "a.png", wanted_labels, (64, 64))
    *_, cache = cache_regions(world, guide, [sample], tmp_path / "cache", image_size=64)
    anchors = world.anchors(64, 64)
    (labels,), (got,) = detect_regions(world, learned.numpy(), [cache.load(0)], anchors, conf=0.02)

    head, boxes = world.features(pixels.permute(2, 0, 1)[None].float() / 255, guide)
    wanted = find(boxes[0], region_logits(world, head[0], anchors[2], learned).sigmoid(), conf=0.02)
    np.testing.assert_array_equal(labels.boxes_xyxy, wanted_labels.boxes_xyxy)
    assert set(got.class_ids) == {0, 1, 2} and abs(len(got) - len(wanted)) <= 2  # float16 at a threshold
    np.testing.assert_allclose(np.sort(got.scores)[-20:], np.sort(wanted.scores)[-20:], rtol=5e-3)
