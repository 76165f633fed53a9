"""The loss of cached regions, and their assignment to labelled boxes."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from cached import embeddings
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.datasets.samples import Labels
from prompt_tune.models import ultralytics
from prompt_tune.models.world import World, region_logits
from prompt_tune.tuning.loss import ALPHA, BETA, TOPK, assign, class_loss
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
        Labels(np.array([[-1, -1, SIZE + 1, SIZE + 1]], np.float32), np.array([1]), np.array([True])),
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


# assignment of cached regions, against ultralytics' assigner on the full grid of anchors

GRID_SIZE, STRIDES, N_CLS = 160, (8, 16, 32), 4


def grid() -> Tensor:
    """(A, 2) anchor points of a network input of 160 pixels."""
    points = []
    for stride in STRIDES:
        cells = torch.arange(GRID_SIZE // stride) + 0.5
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        points.append(torch.stack((x, y), -1).flatten(0, 1) * stride)
    return torch.cat(points)


def crowded_image(n_objects: int, seed: int, ignore: Sequence[bool] = ()) -> Regions:
    """All anchors, with boxes that overlap the objects more or less well."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    points = grid()
    corner, side = uniform(n_objects, 2) * 100, 6 + uniform(n_objects, 2) * 54
    labels = torch.cat([corner, corner + side], 1)
    reach = 4 + uniform(len(points), 4) * 30
    boxes = torch.cat([points - reach[:, :2], points + reach[:, 2:]], 1)
    return Regions(
        head=torch.zeros(len(points), 1),
        boxes_xyxy=boxes,
        anchor=torch.arange(len(points)),
        labels=Labels(
            labels.numpy(),
            torch.randint(0, N_CLS, (n_objects,), generator=generator).numpy(),
            np.array(ignore or [False] * n_objects, bool),
        ),
        frame_xyxy=np.array([0, 0, GRID_SIZE, GRID_SIZE], np.float32),
    )


def kept(regions: Regions, anchors: Tensor) -> Regions:
    """The same image with only some of its anchors."""
    return replace(
        regions, head=regions.head[anchors], boxes_xyxy=regions.boxes_xyxy[anchors], anchor=regions.anchor[anchors]
    )


def scores_of(regions: Sequence[Regions], seed: int = 0) -> Tensor:
    return torch.rand(sum(len(r.anchor) for r in regions), N_CLS, generator=torch.Generator().manual_seed(seed))


def plain(scores: Tensor, regions: Regions) -> Tensor:
    """Targets of one image by ultralytics' assigner, as it trains."""
    tal = ultralytics.quiet_import("ultralytics.utils.tal")
    assigner = tal.TaskAlignedAssigner(topk=TOPK, num_classes=N_CLS, alpha=ALPHA, beta=BETA, stride=list(STRIDES))
    targets: Tensor = assigner(
        scores[None],
        regions.boxes_xyxy[None],
        grid(),
        torch.from_numpy(regions.labels.classes)[None, :, None],
        torch.from_numpy(regions.labels.boxes_xyxy)[None],
        torch.ones(1, len(regions.labels), 1),
    )[2][0]
    return targets


def test_constants_are_those_of_ultralytics_training() -> None:
    loss = ultralytics.quiet_import("ultralytics.utils.loss")
    model = ultralytics.build_world(
        ultralytics.quiet_import("ultralytics.nn.tasks").yaml_model_load("yolov8n-worldv2.yaml")
    )
    model.args = None  # type: ignore[assignment]
    assigner = loss.v8DetectionLoss(model).assigner
    assert (assigner.topk, assigner.alpha, assigner.beta) == (TOPK, ALPHA, BETA)


def test_assign_with_all_anchors_gives_the_targets_of_the_plain_assigner() -> None:
    batch = [crowded_image(n_objects, seed) for seed, n_objects in enumerate([3, 0, 1, 12])]
    scores = scores_of(batch)
    targets, weights = assign(scores, batch, grid(), STRIDES)
    parts = scores.split([len(r.anchor) for r in batch])
    for part, regions, got in zip(parts, batch, targets.split([len(r.anchor) for r in batch]), strict=True):
        wanted = plain(part, regions) if len(regions.labels) else torch.zeros_like(part)
        assert torch.equal(got, wanted)
    assert int((targets > 0).sum()) > 40 and bool((weights == 1).all())


def test_assign_with_the_anchors_near_objects_gives_the_targets_of_all_anchors() -> None:
    whole = crowded_image(4, seed=5)
    points = grid()
    boxes = torch.from_numpy(whole.labels.boxes_xyxy)
    near = ((points[:, None] > boxes[:, :2] - 16) & (points[:, None] < boxes[:, 2:] + 16)).all(2)
    anchors = near.any(1).nonzero().flatten()
    assert TOPK < len(anchors) < 0.8 * len(points)
    scores = scores_of([whole])
    targets, _ = assign(scores[anchors], [kept(whole, anchors)], points, STRIDES)
    assert torch.equal(targets, plain(scores, whole)[anchors])


def test_assign_does_not_depend_on_the_other_images_of_a_batch() -> None:
    one, other = crowded_image(3, seed=1), crowded_image(5, seed=2)
    scores = scores_of([other, one, other])
    together, _ = assign(scores, [other, one, other], grid(), STRIDES)
    n = len(one.anchor)
    alone, _ = assign(scores[n : 2 * n], [one], grid(), STRIDES)
    assert torch.equal(together[n : 2 * n], alone)


@pytest.mark.parametrize("n_anchors", [0, 1, 5])
def test_assign_with_few_anchors_is_possible(n_anchors: int) -> None:
    regions = kept(crowded_image(2, seed=3), torch.arange(n_anchors) * 60)
    targets, weights = assign(scores_of([regions]), [regions], grid(), STRIDES)
    assert targets.shape == weights.shape == (n_anchors, N_CLS)


def test_assign_ignored_box_makes_its_anchors_neither_positive_nor_negative() -> None:
    box = torch.tensor([20.0, 20, 120, 130])
    regions = replace(
        crowded_image(2, seed=8, ignore=[False, True]),
        labels=Labels(
            np.array([[30, 30, 70, 70], box.tolist()], np.float32), np.array([1, 1]), np.array([False, True])
        ),
    )
    scores = scores_of([regions])
    targets, weights = assign(scores, [regions], grid(), STRIDES)
    points = grid()
    inside = ((points > box[:2]) & (points < box[2:])).all(1)
    positive = targets[:, 1] > 0
    assert 0 < positive.sum() < inside.sum()
    assert bool((weights[positive] == 1).all())  # the object in it stays one
    assert bool((weights[inside & ~positive, 1] == 0).all())
    assert bool((weights[~inside] == 1).all())
    assert bool((weights[:, [0, 2, 3]] == 1).all())  # other classes are looked for there as anywhere
    alone = replace(regions, labels=Labels(box[None].numpy(), np.array([1]), np.array([True])))
    targets, weights = assign(scores, [alone], grid(), STRIDES)
    assert not targets.any() and torch.equal(weights[:, 1] == 0, inside)
