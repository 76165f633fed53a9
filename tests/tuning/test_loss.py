"""The loss of cached regions, and their assignment to labelled boxes."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from assigning import assign
from cached import embeddings
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.datasets.samples import Labels
from prompt_tune.models.world import World, region_logits
from prompt_tune.tuning.loss import ClassSample, class_loss, prepare_image, teacher_distance
from prompt_tune.tuning.regions import Regions

SIZE = 64


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


def loss_of(world: World, rows: Tensor, images: Sequence[Regions], sample: ClassSample | None = None) -> Tensor:
    """The loss of images that are not cached."""
    anchors = world.anchors(SIZE, SIZE)
    return class_loss(world, rows, [prepare_image(image, anchors, world.strides) for image in images], sample)


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
    got = loss_of(world, rows, regions)
    assert targets.sum() > 1 and float(got) == pytest.approx(float(wanted), rel=1e-4)


def test_class_loss_without_objects_is_the_sum_over_background(world: World, regions: list[Regions]) -> None:
    anchors = world.anchors(SIZE, SIZE)
    logits = region_logits(world, regions[1].head, anchors[2], embeddings(1, 1))
    got = loss_of(world, embeddings(1, 1), regions[1:])
    assert float(got) == pytest.approx(float(F.softplus(logits).sum()), rel=1e-5)


def test_class_loss_of_ignored_regions_has_no_gradient(world: World, regions: list[Regions]) -> None:
    everything = Regions(
        regions[0].head,
        regions[0].boxes_xyxy,
        regions[0].anchor,
        Labels(np.array([[-1, -1, SIZE + 1, SIZE + 1]], np.float32), np.array([1]), np.array([True])),
        regions[0].frame_xyxy,
    )
    rows = embeddings(3, 1).requires_grad_()
    loss = loss_of(world, rows, [everything])
    (gradient,) = torch.autograd.grad(loss, rows)
    assert gradient[1].abs().max() == 0 and gradient[0].abs().max() > 0


def test_class_loss_falls_when_embeddings_follow_its_gradient(world: World, regions: list[Regions]) -> None:
    rows = embeddings(3, 1, seed=4).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=0.02)
    losses = []
    for _ in range(25):
        loss = loss_of(world, rows, regions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is None for parameter in world.model.parameters())


def test_class_loss_of_a_sample_of_classes_is_unbiased(world: World, regions: list[Regions]) -> None:
    """The mean over all samples of the classes without a box is the loss of all classes, and so is its gradient."""
    rows = embeddings(6, 2).requires_grad_()
    whole = loss_of(world, rows, regions)
    (wanted,) = torch.autograd.grad(whole, rows)
    losses, gradients = [], []
    others = [1, 3, 4, 5]  # boxes are of classes 0 and 2
    for a, b in combinations(others, 2):
        classes = torch.tensor(sorted([0, 2, a, b]))
        weights = torch.tensor([1.0 if k in (0, 2) else len(others) / 2 for k in classes.tolist()])
        losses.append(loss_of(world, rows[classes], regions, ClassSample(classes, weights)))
        gradients.append(torch.autograd.grad(losses[-1], rows)[0])
    torch.testing.assert_close(torch.stack(losses).mean(), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(gradients).mean(0), wanted, rtol=1e-4, atol=1e-4)


def test_teacher_distance_of_a_sample_of_classes_weighs_each_by_how_many_it_stands_for() -> None:
    rows, teacher = embeddings(4, 2), embeddings(4, 2, seed=1)
    each = (rows - teacher).square().sum(2).mean(1)
    torch.testing.assert_close(teacher_distance(rows, teacher), each.mean())
    weights = torch.tensor([1.0, 0, 3, 0])
    torch.testing.assert_close(teacher_distance(rows, teacher, weights), (each[0] + 3 * each[2]) / 4)
