"""The convention of labelling: medians, shrinkage, the choice by left-out images, and the words for it."""

import numpy as np
import pytest

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.box_offsets import PRIOR, BoxOffsets, fit_box_offsets, in_words
from prompt_tune.runtime.detections import Detections
from prompt_tune.vocabulary.checks import MAX_OFFSET

FRAME = np.array([0, 0, 1000, 1000], np.float32)
Image = tuple[Labels, Detections]


def image(*objects: tuple[int, tuple[float, ...], tuple[float, ...]], ignore: bool = False) -> Image:
    """An image of (class, labelled box, detected box)."""
    classes = np.array([k for k, _, _ in objects], np.int64)
    labelled, detected = (np.array([one[i] for one in objects], np.float32).reshape(-1, 4) for i in (1, 2))
    scores = np.linspace(0.9, 0.5, len(objects)).astype(np.float32)
    return Labels(labelled, classes, np.full(len(objects), ignore)), Detections(detected, scores, classes)


def fitted(images: list[Image], n_cls: int = 1, frame: np.ndarray = FRAME) -> BoxOffsets:
    return fit_box_offsets([one[0] for one in images], [one[1] for one in images], [frame] * len(images), n_cls)


def wide(share: float, k: int = 0, at: float = 100) -> Image:
    """An object whose label reaches further left than its detection, by a share of the detection's width."""
    return image((k, (at - 100 * share, 100, at + 100, 300), (at, 100, at + 100, 300)))


@pytest.mark.parametrize("n", [3, 10, 100])
def test_offset_is_the_median_shrunk_by_the_number_of_objects(n: int) -> None:
    images = [wide(0.3), wide(0.1), *[wide(0.2) for _ in range(n - 2)]]
    found = fitted(images)
    np.testing.assert_allclose(found.values, [[-0.2 * n / (n + PRIOR), 0, 0, 0]], atol=1e-6)
    assert found.objects.tolist() == [n] and found.iou_after[0] > found.iou_before[0]
    others = -0.2 * (n - 1) / (n - 1 + PRIOR)  # of 100 images, two are left out at a time
    np.testing.assert_allclose(found.elsewhere[5 % n, 0, 0], others, atol=1e-3)


def test_nothing_moves_without_gain_on_images_that_were_left_out() -> None:
    apart = [wide(0.4), wide(-0.2), wide(0.3), wide(-0.25)]  # no convention
    found = fitted(apart)
    assert not found.values.any() and not found.elsewhere.any() and found.iou_after[0] <= found.iou_before[0]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_nothing_moves_with_fewer_than_three_images(n: int) -> None:
    several = image(*[(0, (70, y, 200, y + 50), (100, y, 200, y + 50)) for y in (0, 100, 200, 300)])
    found = fitted([several] * n)
    assert found.values.tolist() == [[0, 0, 0, 0]] and found.objects.tolist() == [4 * n]
    assert np.isnan(found.iou_before[0]) == (n == 0)


def test_classes_do_not_touch_each_other_and_ignored_boxes_do_not_count() -> None:
    ignored = [image((1, (50, 100, 200, 300), (100, 100, 200, 300)), ignore=True) for _ in range(5)]
    found = fitted([wide(0.2) for _ in range(5)] + ignored, n_cls=3)
    assert found.values[0, 0] < 0 and not found.values[1:].any() and found.objects.tolist() == [5, 0, 0]
    assert found.to_record(["a", "b", "c"]) == {"a": {"objects": 5, "iou_before": 0.8333, "iou_after": 0.9074}}


def test_box_with_the_highest_score_counts_and_one_that_overlaps_too_little_does_not() -> None:
    label = Labels(np.array([[80, 0, 200, 100]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    boxes = np.array([[80, 0, 200, 100], [100, 0, 200, 100], [0, 0, 70, 20]], np.float32)
    found = Detections(boxes, np.array([0.3, 0.8, 0.9], np.float32), np.zeros(3, np.int64))
    offsets = fit_box_offsets([label] * 4, [found] * 4, [FRAME] * 4, 1)
    np.testing.assert_allclose(offsets.values, [[-0.2 * 4 / 9, 0, 0, 0]], atol=1e-6)


def test_offsets_stay_within_their_limit() -> None:
    found = fitted([wide(0.9) for _ in range(200)])
    assert found.values[0, 0] == np.float32(-MAX_OFFSET)


@pytest.mark.parametrize(
    ("offsets", "text"),
    [
        ((-0.05, 0, 0, 0), "labels are 5 % wider on the left than the detector's boxes"),
        ((0.02, 0, -0.031, 0), "labels are 2 % narrower on the left and 3 % narrower on the right than the detector's"),
        (
            (-0.04, -0.03, 0.03, 0.02),
            "labels are 4 % wider on the left, 3 % wider on the right, 3 % taller at the top and 2 % taller at the",
        ),
        ((0, 0.1, 0, -0.2), "labels are 10 % shorter at the top and 20 % shorter at the bottom than"),
        ((0.004, 0, 0, 0), "labels lie where the detector's boxes do"),
    ],
)
def test_words_say_what_was_found(offsets: tuple[float, ...], text: str) -> None:
    assert in_words(np.array(offsets, np.float32)).startswith(text)
