"""Boxes around shapes that label files may have instead of boxes: polygons, rotated boxes, and poses."""

import math
import sys
from collections.abc import Sequence

from prompt_tune.errors import DataError

Box = tuple[float, float, float, float]  # left, top, right, bottom
_SLACK = 0.005  # of the image: labels are rounded, and keypoints lie on the edge of their box


def is_number(value: object) -> bool:
    """Whether a value from JSON is a number that arithmetic can take: NaN and infinity are, 10 ** 400 is not."""
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def box_around(coordinates: Sequence[float]) -> Box:
    """The box around a polygon, given as x, y, x, y, ...

    Raises:
        DataError: There are fewer than three points, an odd count of numbers, or numbers that are not finite.
    """
    if not all(map(math.isfinite, coordinates)):
        raise DataError("the polygon has numbers that are not finite. Correct or remove it.")
    if len(coordinates) < 6 or len(coordinates) % 2:
        raise DataError(f"a polygon has x and y of at least three points. Received: {len(coordinates)} numbers.")
    xs, ys = coordinates[0::2], coordinates[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def box_around_rotated(box_xyxy: Box, radians: float) -> Box:
    """The upright box around a box that is turned about its centre, in either direction."""
    x1, y1, x2, y2 = box_xyxy
    if radians == 0 or not math.isfinite(radians):
        return box_xyxy if radians == 0 else (math.nan,) * 4
    cos, sin = abs(math.cos(radians)), abs(math.sin(radians))
    half_w = ((x2 - x1) * cos + (y2 - y1) * sin) / 2
    half_h = ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - half_w, y - half_h, x + half_w, y + half_h


def may_be_pose(values: Sequence[float], step: int) -> bool:
    """Whether numbers can be a normalised box `x y w h` in the image, and keypoints inside it.

    Args:
        values: The numbers after the class.
        step: 3 if each keypoint has a visibility (0, 1 or 2) after its x and y; else 2.
    """
    (x, y, w, h), points = values[:4], values[4:]
    if not points or len(points) % step or (step == 3 and not set(points[2::3]) <= {0, 1, 2}):
        return False
    if step == 2 and len(values) == 8 and _is_parallelogram(values):
        return False  # a rotated box, as four corners
    left, top, right, bottom = x - w / 2 - _SLACK, y - h / 2 - _SLACK, x + w / 2 + _SLACK, y + h / 2 + _SLACK
    if min(left, top) < -2 * _SLACK or max(right, bottom) > 1 + 2 * _SLACK:
        return False
    return all(
        (px, py) == (0, 0) or (left <= px <= right and top <= py <= bottom)
        for px, py in zip(points[0::step], points[1::step], strict=True)
    )


def _is_parallelogram(corners: Sequence[float]) -> bool:
    x1, y1, x2, y2, x3, y3, x4, y4 = corners
    return abs(x1 + x3 - x2 - x4) < _SLACK and abs(y1 + y3 - y2 - y4) < _SLACK
