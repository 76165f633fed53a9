"""The folded head and the pooling from image to guide: gradients, bits, and limits."""

import copy

import pytest
import torch
from conftest import MakeCheckpoint
from parity import random_images, unit_rows
from torch.nn import functional as F

from prompt_tune.models.blocks import max_pool
from prompt_tune.models.world import World


@pytest.fixture(scope="module")
def v1(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A random yolov8n-world, whose guide attends to the image."""
    return World.load(make_checkpoint(tmp_path_factory.mktemp("v1") / "random-n-world.pt", version=""))


def test_fold_gradient_equals_autograd_through_the_unfolded_head(world: World) -> None:
    images, guide = random_images(1, 3, 64, 64), unit_rows(4, seed=1)
    maps, _ = world.feature_maps(images, guide)
    head, _ = world.features(images, guide)
    folded, unfolded = (3 * unit_rows(5, seed=2)).requires_grad_(), (3 * unit_rows(5, seed=2)).requires_grad_()

    world.logits(head, world.anchors(64, 64)[2], *world.fold(folded)).sigmoid().square().sum().backward()
    last = world.model.model[-1]
    for level, feature_map in enumerate(maps):
        region = last.cv3[level][-1](feature_map)
        last.cv4[level](region, unfolded[None]).sigmoid().square().sum().backward()

    assert folded.grad is not None and unfolded.grad is not None
    assert unfolded.grad.abs().max() > 1e-3
    torch.testing.assert_close(folded.grad, unfolded.grad, rtol=1e-3, atol=1e-5)


def test_guide_looks_at_the_image(v1: World, monkeypatch: pytest.MonkeyPatch) -> None:
    images, guide = random_images(1, 3, 64, 64), unit_rows(5, seed=1)
    seen, _ = v1.features(images, guide)
    monkeypatch.setattr("prompt_tune.models.world.attend_to_image", lambda layer, levels, guides: guides)
    blind, _ = v1.features(images, guide)
    assert (seen - blind).abs().max() > 1e-3  # or parity would not show that it is done


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 3), (4, 5), (7, 8), (20, 13), (80, 2)])
def test_max_pool_has_the_bits_of_adaptive_max_pool(size: tuple[int, int]) -> None:
    x = random_images(2, 4, *size) - 0.5
    assert torch.equal(max_pool(x, 3), F.adaptive_max_pool2d(x, 3).flatten(2))


def test_region_embedding_of_nothing_is_finite_as_are_its_gradients(v1: World) -> None:
    head = copy.deepcopy(v1.head)
    assert head.factor is not None
    head.factor[0] = 0  # every region embedding of the first level has no length
    maps = torch.zeros(1, v1.c3 - 1, 1, 1, requires_grad=True)
    features = head.features(0, maps)
    features.sum().backward()
    assert maps.grad is not None and bool(features.isfinite().all() & maps.grad.isfinite().all())
