"""Assignment of cached regions to labelled boxes, against ultralytics' assigner in every bit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from assigning import assign
from cached import SIZE, embeddings, fill, write_sample
from torch import Tensor

from prompt_tune.config import RegionBudget
from prompt_tune.datasets.samples import Labels
from prompt_tune.models import ultralytics
from prompt_tune.models.world import World
from prompt_tune.tuning.assignment import ALPHA, BETA, TOPK
from prompt_tune.tuning.regions import Regions

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


def plain(scores: Tensor, regions: Regions, points: Tensor | None = None) -> Tensor:
    """Targets of one image by ultralytics' assigner, as it trains."""
    points = grid() if points is None else points
    tal = ultralytics.quiet_import("ultralytics.utils.tal")
    assigner = tal.TaskAlignedAssigner(
        topk=min(TOPK, len(points)), num_classes=N_CLS, alpha=ALPHA, beta=BETA, stride=list(STRIDES)
    )
    targets: Tensor = assigner(
        scores[None],
        regions.boxes_xyxy[None],
        points,
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


@pytest.mark.parametrize("n_objects", [1, 9])
def test_targets_of_cached_regions_are_bit_equal_to_those_of_ultralytics(
    n_objects: int, world: World, tmp_path: Path
) -> None:
    """Augmented views, a budget of anchors, boxes under 16 pixels, objects with fewer anchors than they could take."""
    samples = [write_sample(tmp_path, number, n_objects=n_objects) for number in range(8)]
    cache = fill(world, embeddings(5, 1)[:, 0], samples, tmp_path / "cache", views=3, budget=RegionBudget(60, 5, 5))
    images = [cache.load(i, view) for i in range(8) for view in range(3)]
    points = world.anchors(SIZE, SIZE)[0]
    scores = scores_of(images) ** 4
    got, _ = assign(scores, images, points, STRIDES)
    sizes = [len(image.anchor) for image in images]
    for image, part, targets in zip(images, scores.split(sizes), got.split(sizes), strict=True):
        objects = ~image.labels.ignore  # what mostly left the view is ignored
        kept_labels = Labels(
            image.labels.boxes_xyxy[objects], image.labels.classes[objects], np.zeros(objects.sum(), bool)
        )
        wanted = plain(part, replace(image, labels=kept_labels), points[image.anchor]) if objects.any() else 0 * part
        assert torch.equal(targets, wanted)
    sides = np.concatenate([image.labels.boxes_xyxy for image in images])
    assert int((got > 0).sum()) > 100 and (sides[:, 2:] - sides[:, :2]).min() < 16


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
