"""Boxes around polygons and rotated boxes, and what may be a pose."""

import math

import pytest

from prompt_tune.datasets.shapes import box_around, box_around_rotated, may_be_pose
from prompt_tune.errors import DataError


def test_box_around_a_polygon() -> None:
    assert box_around([3, 1, 5, 2, 4, 9]) == (3, 1, 5, 9)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([], "at least three points. Received: 0 numbers"),
        ([1, 2, 3, 4], "Received: 4 numbers"),
        ([1, 2, 3, 4, 5, 6, 7], "Received: 7 numbers"),
        ([1, 2, 3, math.nan, 5, 6], "not finite"),
    ],
)
def test_box_around_what_is_no_polygon_is_refused(numbers: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        box_around(numbers)


@pytest.mark.parametrize(
    ("degrees", "box"),
    [
        (0, (10, 20, 50, 40)),
        (90, (20, 10, 40, 50)),
        (-90, (20, 10, 40, 50)),
        (180, (10, 20, 50, 40)),
        (45, (30 - 15 * 2**0.5, 30 - 15 * 2**0.5, 30 + 15 * 2**0.5, 30 + 15 * 2**0.5)),
    ],
)
def test_box_around_a_rotated_box(degrees: float, box: tuple[float, ...]) -> None:
    assert box_around_rotated((10, 20, 50, 40), math.radians(degrees)) == pytest.approx(box)


def test_box_around_an_angle_that_is_no_number_is_no_box() -> None:
    assert all(map(math.isnan, box_around_rotated((10, 20, 50, 40), math.inf)))


@pytest.mark.parametrize(
    ("values", "step", "pose"),
    [
        ([0.5, 0.5, 0.2, 0.4], 2, False),
        ([0.5, 0.5, 0.2, 0.4, 0.45, 0.6], 2, True),
        ([0.5, 0.5, 0.2, 0.4, 0.45, 0.6, 0, 0], 2, True),  # the second keypoint is not labelled
        ([0.5, 0.5, 0.2, 0.4, 0.3, 0.6], 2, False),  # a point outside the box
        ([0.1, 0.5, 0.4, 0.4, 0.2, 0.5], 2, False),  # the box is not in the image
        ([0.5, 0.5, 0.6, 0.5, 0.6, 0.6, 0.5, 0.6], 2, False),  # four corners
        ([0.5, 0.5, 0.2, 0.4, 0.45, 0.6, 2, 0.5, 0.5, 1], 3, True),
        ([0.5, 0.5, 0.2, 0.4, 0.45, 0.6, 2, 0.5, 0.5, 0.3], 3, False),
        ([0.5, 0.5, 0.2, 0.4, 0.45, 0.6], 3, False),
    ],
)
def test_may_be_pose(values: list[float], step: int, pose: bool) -> None:
    assert may_be_pose(values, step) == pose
