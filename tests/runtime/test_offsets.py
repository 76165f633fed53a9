"""Boxes moved by shares of their size."""

from dataclasses import replace

import numpy as np
import pytest

from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.offsets import move, moved
from prompt_tune.vocabulary.checks import MAX_OFFSET


def test_edges_move_by_shares_of_width_and_height() -> None:
    box, offsets = np.array([[10, 20, 50, 40]], np.float32), np.array([[-0.1, 0.25, 0.5, -0.05]], np.float32)
    np.testing.assert_array_equal(moved(box, offsets), np.array([[6, 25, 70, 39]], np.float32))
    assert moved(box, offsets).dtype == np.float32


def test_zero_keeps_every_bit() -> None:
    boxes = np.array([[-0.0, 0.1, 3.3, 1e20], [-7, -0.0, 0.0, 0.7]], np.float32)
    assert moved(boxes, np.zeros((2, 4), np.float32)).tobytes() == boxes.tobytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_no_allowed_offset_turns_a_box_inside_out(sign: int) -> None:
    boxes = np.random.default_rng(0).uniform(0, 300, (1000, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 1
    offsets = np.array([[MAX_OFFSET, MAX_OFFSET, -MAX_OFFSET, -MAX_OFFSET]], np.float32) * np.float32(sign)
    new = moved(boxes, offsets)
    assert (new[:, 2:] > new[:, :2]).all()


def test_detections_move_by_their_class() -> None:
    found = Detections(np.tile(np.array([[0, 0, 10, 10]], np.float32), (3, 1)), np.ones(3), np.array([1, 0, 1]))
    offsets = np.array([[0, 0, 0, 0], [0, 0, 0.1, 0.2]], np.float32)
    expected = [[0, 0, 11, 12], [0, 0, 10, 10], [0, 0, 11, 12]]
    np.testing.assert_allclose(move(found, offsets).boxes_xyxy, np.array(expected, np.float32))
    assert move(found, None) is found
    assert len(move(replace(found.select(np.zeros(3, bool))), offsets)) == 0
