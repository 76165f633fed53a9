"""The loss of cached regions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.datasets.samples import Labels
from prompt_tune.models.world import World, region_logits
from prompt_tune.tuning.loss import assign, class_loss
from prompt_tune.tuning.regions import Regions

SIZE = 64


def embeddings(n_cls: int, n_prompts: int, seed: int = 0) -> Tensor:
    rows = torch.randn(n_cls, n_prompts, 512, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=-1)


@pytest.fixture(scope="module")
def regions(world: World) -> list[Regions]:
    """Two images with all anchors: one has two objects, the other none."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    head, boxes = world.features(images, embeddings(5, 1)[:, 0])
    anchor = torch.arange(head.shape[1])
    boxes_xyxy = np.array([[4, 6, 40, 44], [30, 30, 60, 62]], np.float32)
    labels = [Labels(boxes_xyxy, np.array([0, 2]), np.zeros(2, bool)), Labels.none()]
    frame = np.array([0, 0, SIZE, SIZE], np.float32)
    return [Regions(head[i], boxes[i], anchor, labels[i], frame) for i in range(2)]


def test_region_logits_of_several_prompts_are_their_maximum(world: World, regions: list[Regions]) -> None:
    _, _, level = world.anchors(SIZE, SIZE)
    rows = embeddings(3, 4)
    got = region_logits(world, regions[0].head, level, rows)
    single = torch.stack([region_logits(world, regions[0].head, level, rows[:, j : j + 1]) for j in range(4)])
    torch.testing.assert_close(got, single.amax(0), rtol=1e-5, atol=1e-5)
    assert len(single.argmax(0).unique()) == 4  # each prompt is somewhere the best
    repeated = rows[:, [0, 0, 0]]
    torch.testing.assert_close(region_logits(world, regions[0].head, level, repeated), single[0], rtol=1e-5, atol=1e-5)


def test_class_loss_is_the_cross_entropy_against_the_assigned_targets(world: World, regions: list[Regions]) -> None:
    anchors = world.anchors(SIZE, SIZE)
    rows = embeddings(3, 2)
    logits = torch.cat([region_logits(world, image.head, anchors[2], rows) for image in regions])
    targets, _ = assign(logits.sigmoid(), regions, anchors[0], world.strides)
    p = logits.double().sigmoid()
    wanted = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / max(float(targets.sum()), 1)
    got = class_loss(world, rows, regions, anchors)
    assert targets.sum() > 1 and float(got) == pytest.approx(float(wanted), rel=1e-4)


def test_class_loss_without_objects_is_the_sum_over_background(world: World, regions: list[Regions]) -> None:
    anchors = world.anchors(SIZE, SIZE)
    logits = region_logits(world, regions[1].head, anchors[2], embeddings(1, 1))
    got = class_loss(world, embeddings(1, 1), regions[1:], anchors)
    assert float(got) == pytest.approx(float(F.softplus(logits).sum()), rel=1e-5)


def test_class_loss_of_ignored_regions_has_no_gradient(world: World, regions: list[Regions]) -> None:
    everything = Regions(
        regions[0].head,
        regions[0].boxes_xyxy,
        regions[0].anchor,
        torch.tensor([[-1.0, -1, SIZE + 1, SIZE + 1]]),
        torch.tensor([1]),
        torch.tensor([True]),
        regions[0].frame_xyxy,
    )
    rows = embeddings(3, 1).requires_grad_()
    loss = class_loss(world, rows, [everything], world.anchors(SIZE, SIZE))
    (gradient,) = torch.autograd.grad(loss, rows)
    assert gradient[1].abs().max() == 0 and gradient[0].abs().max() > 0


def test_class_loss_falls_when_embeddings_follow_its_gradient(world: World, regions: list[Regions]) -> None:
    anchors = world.anchors(SIZE, SIZE)
    rows = embeddings(3, 1, seed=4).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=0.02)
    losses = []
    for _ in range(25):
        loss = class_loss(world, rows, regions, anchors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is None for parameter in world.model.parameters())
