"""Boxes moved to where people draw those of a class: the convention of its labels, four numbers for each class."""

from dataclasses import replace

import numpy as np

from prompt_tune.runtime.detections import Detections


def moved(boxes_xyxy: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes whose edges are moved by shares of the box.

    Args:
        boxes_xyxy: (n, 4) float32, in any frame.
        offsets: (n, 4) float32, for the left, top, right and bottom edge, in shares of the width (left, right) and of
            the height (top, bottom). Positive is to the right and down. Zero keeps an edge.

    Returns:
        (n, 4) float32. Other programs get the same bits if they round the size, its product with the offset, and the
        sum to float32, in this order.
    """
    sizes = np.tile(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 2)  # (n, 4): width, height, width, height
    return np.where(offsets == 0, boxes_xyxy, boxes_xyxy + offsets * sizes)  # a sum with 0 could change the sign of 0


def move(found: Detections, box_offsets: np.ndarray | None) -> Detections:
    """The detections of one image, with the boxes of each class moved as its labels are drawn.

    Args:
        found: After suppression, and not yet cut at the edges of the photo.
        box_offsets: (n_cls, 4) float32, see `moved`; None moves nothing.
    """
    if box_offsets is None:
        return found
    return replace(found, boxes_xyxy=moved(found.boxes_xyxy, box_offsets[found.class_ids]))
