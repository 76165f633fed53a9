"""COCO metrics against a case worked by hand; suppression against the graph's rule; detections of cached images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from prompt_tune.datasets.samples import Sample
from prompt_tune.deployment import graph
from prompt_tune.evaluation.metrics import Found, Truth, average_precision
from prompt_tune.evaluation.thresholds import choose_nms_iou
from prompt_tune.models.suppression import suppress
from prompt_tune.models.world import World
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.tuning.regions import cache_regions
from prompt_tune.tuning.tasks import detect_regions


def truth(*boxes: Sequence[float], classes: Sequence[int] = (), ignore: Sequence[bool] = ()) -> Truth:
    n = len(boxes)
    return Truth(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes or [0] * n, np.int64),
        np.array(ignore or [False] * n, bool),
    )


def found(*rows: tuple[Sequence[float], float], classes: Sequence[int] = ()) -> Found:
    return Found(
        np.array([box for box, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score in rows], np.float32),
        np.array(classes or [0] * len(rows), np.int64),
    )


def test_average_precision_of_three_images_is_what_a_hand_works_out() -> None:
    box, other = (0, 0, 10, 10), (20, 20, 30, 30)
    truths = [truth(box), truth(box, other), truth()]
    founds = [
        found((box, 0.9)),  # right at every IoU
        found(((20, 20, 30, 26.2), 0.6), ((0, 0, 10, 8.2), 0.7)),  # IoU 0.62 and 0.82
        found((box, 0.8)),  # wrong
    ]
    got = average_precision(truths, founds, 1)
    # by falling score: right, wrong, IoU 0.82, IoU 0.62, of three objects. Recall 1/3 is reached with precision 1 (34
    # of the 101 recalls), 2/3 with 2/3 (33 of them), 1 with 3/4 (34), which also is the highest from 1/3 on.
    both, one, none = (34 + 67 * 3 / 4) / 101, (34 + 33 * 2 / 3) / 101, 34 / 101
    assert got.ap50 == pytest.approx(both, abs=1e-12)
    assert got.ap == pytest.approx((3 * both + 4 * one + 3 * none) / 10, abs=1e-12)
    assert got.per_class_ap50.tolist() == [got.ap50]


def test_average_precision_without_detections_is_zero_for_classes_with_objects() -> None:
    got = average_precision([truth((0, 0, 9, 9), classes=[1]), truth()], [found(), found()], 3)
    assert (got.ap, got.ap50) == (0, 0)
    np.testing.assert_array_equal(got.per_class_ap50, [np.nan, 0, np.nan])


@pytest.mark.parametrize("ignore", [[], [True]])
def test_average_precision_without_objects_is_nan(ignore: list[bool]) -> None:
    truths = [truth((0, 0, 9, 9), ignore=ignore) if ignore else truth()]
    got = average_precision(truths, [found(((0, 0, 9, 9), 0.5))], 2)
    assert np.isnan([got.ap, got.ap50, *got.per_class_ap50]).all()


def test_average_precision_ignored_boxes_are_neither_positive_nor_negative() -> None:
    box, crowd = (0, 0, 10, 10), (50, 50, 90, 90)
    founds = [found((box, 0.5), ((55, 55, 60, 60), 0.9), ((70, 70, 80, 80), 0.8))]  # two lie in the ignored box
    ignored = average_precision([truth(box, crowd, ignore=[False, True])], founds, 1)
    assert (ignored.ap, ignored.ap50) == (1, 1)  # not missed, and what lies in it is not wrong
    assert average_precision([truth(box)], founds, 1).ap50 == pytest.approx(1 / 3)
    # of another class: then they are wrong
    crowd_of_other = truth(box, crowd, classes=[0, 1], ignore=[False, True])
    assert average_precision([crowd_of_other], founds, 2).ap50 == pytest.approx(1 / 3)


def _boxes_and_scores(n_anchors: int, n_cls: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crowded boxes, some of them outside the picture, and scores of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n_anchors, 2, generator=generator) * 100 - 40
    boxes = torch.cat([corner, corner + 20 + torch.rand(n_anchors, 2, generator=generator) * 40], 1)
    return boxes, (torch.rand(n_anchors, n_cls, generator=generator) * 200).round() / 200


@pytest.mark.parametrize(("n_anchors", "n_cls", "iou"), [(0, 3, 0.7), (50, 1, 0.5), (400, 7, 0.7), (3000, 40, 0.9)])
def test_suppress_random_boxes_follows_the_rule_of_the_graph(n_anchors: int, n_cls: int, iou: float) -> None:
    boxes, scores = _boxes_and_scores(n_anchors, n_cls, seed=n_anchors)
    got = suppress(boxes, scores, conf=0.25, iou=iou)
    rows = graph.suppress(boxes[None], scores.T[None], torch.tensor([iou]), torch.tensor([0.25]))
    np.testing.assert_array_equal(got.classes, rows[:, 1].numpy())
    np.testing.assert_array_equal(got.boxes_xyxy, boxes[rows[:, 2]].numpy())
    np.testing.assert_array_equal(got.scores, scores[rows[:, 2], rows[:, 1]].numpy())


def test_suppress_many_detections_keeps_the_best_300_of_a_class() -> None:
    corner = torch.arange(400.0)[:, None].expand(-1, 2) * 20
    boxes = torch.cat([corner, corner + 10], 1)  # none overlaps another
    scores = torch.linspace(0.1, 0.9, 400)[:, None].repeat(1, 2)
    got = suppress(boxes, scores)
    assert np.bincount(got.classes).tolist() == [300, 300]
    assert got.scores.min() == scores[100, 0]


def test_limit_of_overlap_is_the_one_with_the_highest_ap50() -> None:
    """Two boxes on one object that overlap by 0.65, and two objects that do by as much."""
    box, near, other = (0, 0, 100, 100), (0, 0, 100, 65), (300, 300, 350, 350)
    twice = found((box, 0.9), (near, 0.8), (other, 0.7))
    assert choose_nms_iou([truth(box, other)], [twice], 1) == 0.6
    assert choose_nms_iou([truth(box, near)], [twice], 1) == 0.7
    assert choose_nms_iou([truth(box)], [found((box, 0.9))], 1) == 0.7  # all alike: the loosest
    assert choose_nms_iou([truth()], [found()], 1) == 0.7


def test_suppress_at_the_limits_of_classes_drops_more_of_these_alone() -> None:
    boxes, scores = _boxes_and_scores(300, 3, seed=1)
    loose, tight = suppress(boxes, scores), suppress(boxes, scores, nms_iou=np.array([1, 0.3, 1], np.float32))
    for k in (0, 2):
        np.testing.assert_array_equal(tight.scores[tight.classes == k], loose.scores[loose.classes == k])
    assert 0 < (tight.classes == 1).sum() < (loose.classes == 1).sum()
    overlap = box_iou(*[tight.boxes_xyxy[tight.classes == 1]] * 2)
    assert np.triu(overlap, 1).max() <= 0.3


def test_suppress_drops_scores_at_conf_and_keeps_other_classes_of_a_box() -> None:
    box = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9.5]])
    got = suppress(box, torch.tensor([[0.5, 0.3], [0.4, 0.9]]), conf=0.3)
    assert got.classes.tolist() == [0, 1] and got.scores.tolist() == pytest.approx([0.5, 0.9])


def test_detect_cached_gives_what_the_detector_finds_with_the_best_prompt_of_a_class(
    world: World, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    guide = F.normalize(torch.randn(5, 512, generator=generator), dim=1)
    learned = F.normalize(torch.randn(3, 2, 512, generator=generator), dim=2)
    pixels = torch.randint(0, 255, (64, 64, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    boxes = np.array([[4, 5, 30, 40]], np.float32)
    sample = Sample(tmp_path / "a.png", boxes, np.array([1]), np.array([False]), (64, 64))
    *_, cache = cache_regions(world, guide, [sample], tmp_path / "cache", image_size=64)
    anchors = world.anchors(64, 64)
    (labels,), (got,) = detect_regions(world, learned.numpy(), [cache.load(0)], anchors, conf=0.02)

    head, corners = world.features(pixels.permute(2, 0, 1)[None].float() / 255, guide)
    logits = world.logits(head, anchors[2], *world.fold(learned.flatten(0, 1)))[0]
    wanted = suppress(corners[0], logits.sigmoid().unflatten(1, (3, 2)).amax(2), conf=0.02)
    np.testing.assert_array_equal(labels.boxes_xyxy, boxes)
    assert set(got.classes) == {0, 1, 2} and abs(len(got.scores) - len(wanted.scores)) <= 2  # float16 at a threshold
    np.testing.assert_allclose(np.sort(got.scores)[-20:], np.sort(wanted.scores)[-20:], rtol=5e-3)
