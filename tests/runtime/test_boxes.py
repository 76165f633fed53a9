"""Overlap of boxes, and the suppression of a class's own, against torchvision's."""

import time

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.ops import nms

from prompt_tune.contract import UNLIMITED
from prompt_tune.runtime.boxes import box_iou, distinct, paired_iou


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        (np.zeros((0, 4)), [[0, 0, 1, 1]], np.zeros((0, 1))),
        ([[0, 0, 10, 10]], [[0, 0, 10, 7], [0, 0, 20, 10], [10, 0, 20, 10], [2, 2, 7, 6]], [[0.7, 0.5, 0, 0.2]]),
        ([[0, 0, 4, 4], [2, 2, 6, 6]], [[2, 2, 6, 6]], [[4 / 28], [1]]),
    ],
)
def test_box_iou_of_boxes_worked_out_by_hand(
    first: npt.ArrayLike, second: npt.ArrayLike, wanted: npt.ArrayLike
) -> None:
    got = box_iou(np.asarray(first, np.float32), np.asarray(second, np.float32))
    assert got.shape == np.asarray(wanted).shape
    np.testing.assert_allclose(got, np.asarray(wanted), atol=1e-7)


def random_boxes(n: int, seed: int) -> np.ndarray:
    """(n, 4) float32 in a square of 100 px, many of them over one another."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (n, 2)), rng.uniform(20, 40, (n, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_suppressed_at_its_own_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores, classes = random_boxes(120, seed), rng.random(120, np.float32), rng.integers(0, 4, 120)
    limits = np.array([0.3, 0.5, UNLIMITED, 0.6], np.float32)
    expected = np.zeros(120, bool)
    for k, limit in enumerate(limits.tolist()):
        rows = np.flatnonzero(classes == k)
        left = nms(torch.from_numpy(boxes[rows]), torch.from_numpy(scores[rows]), limit)
        expected[rows[left.numpy()]] = True
    kept = distinct(boxes, scores, classes, limits)
    np.testing.assert_array_equal(kept, expected)
    assert kept[classes == 2].all() and not kept[classes != 2].all()


def test_equal_scores_keep_the_first_and_what_is_left_stays_left() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [50, 50, 60, 60]], np.float32)
    scores, classes = np.full(4, 0.5, np.float32), np.zeros(4, np.int64)
    limit = np.array([0.7], np.float32)
    kept = distinct(boxes, scores, classes, limit)
    assert kept.tolist() == [True, False, True, True]  # the second, which overlaps the third by 0.75, is gone
    assert distinct(boxes[kept], scores[kept], classes[kept], limit).all()


def test_nothing_is_left_of_nothing() -> None:
    nothing = distinct(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0))
    assert nothing.shape == (0,)


def test_thousands_of_classes_with_all_the_boxes_they_may_have_take_seconds() -> None:
    n_cls = 1000
    boxes = random_boxes(300, 0)
    order = np.argsort(-np.random.default_rng(0).random((n_cls, 300)), axis=1)
    many, scores = boxes[order].reshape(-1, 4), np.tile(np.linspace(1, 0, 300, dtype=np.float32), n_cls)
    classes = np.repeat(np.arange(n_cls), 300)
    begin = time.process_time()
    kept = distinct(many, scores, classes, np.full(n_cls, 0.5, np.float32))
    assert time.process_time() - begin < 10  # 1 on an idle machine; it was 4, and grew with the square
    for k in (0, n_cls - 1):
        left = nms(torch.from_numpy(many[classes == k]), torch.from_numpy(scores[:300]), 0.5)
        assert np.flatnonzero(kept[classes == k]).tolist() == sorted(left.tolist())


def test_iou_of_pairs_is_that_of_all_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (2, 40, 2)).astype(np.float32)
    first, second = np.concatenate([corners, corners + rng.uniform(1, 40, (2, 40, 2)).astype(np.float32)], axis=2)
    crowd = rng.random(40) < 0.5
    np.testing.assert_array_equal(paired_iou(first, second, crowd), np.diag(box_iou(first, second, crowd)))
    assert paired_iou(np.array([[0, 0, 10, 10]]), np.array([[5, 0, 15, 10]])).tolist() == [50 / 150]
