"""Boxes that overlap: IoU, greedy matching, and further suppression per class. NumPy only."""

import numpy as np

from prompt_tune.contract import UNLIMITED


def box_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of two lists of boxes in the same frame.

    Args:
        first_xyxy: (n, 4).
        second_xyxy: (m, 4).
        crowd: (m,) bool. For these boxes of the second list, the share of the first box that lies inside replaces the
            IoU: COCO's rule for ignored regions.

    Returns:
        (n, m) float64 in 0..1.
    """
    # edge by edge, each in memory as one block: four times as fast as arrays of boxes
    return _iou(first_xyxy.astype(np.float64).T[:, :, None], second_xyxy.astype(np.float64).T[:, None], crowd)


def paired_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """`box_iou` of each box of the first list and the box in the same place of the second: (n,) float64 in 0..1.

    Args:
        first_xyxy: (n, 4).
        second_xyxy: (n, 4).
        crowd: (n,) bool, see `box_iou`.
    """
    return _iou(first_xyxy.astype(np.float64).T, second_xyxy.astype(np.float64).T, crowd)


def _iou(first: np.ndarray, second: np.ndarray, crowd: np.ndarray | None) -> np.ndarray:
    """`box_iou` of boxes by edge, (4, ...), where shapes are broadcast."""
    shared = np.minimum(first[2], second[2]) - np.maximum(first[0], second[0])  # width, then area
    height = np.minimum(first[3], second[3]) - np.maximum(first[1], second[1])
    shared = np.maximum(shared, 0, out=shared) * np.maximum(height, 0, out=height)
    areas = [np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0) for x1, y1, x2, y2 in (first, second)]
    whole = areas[0] + areas[1] - shared
    return shared / np.maximum(whole if crowd is None else np.where(crowd, areas[0], whole), 1e-9)


def cut(boxes_xyxy: np.ndarray, frame_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes cut at a frame.

    Args:
        boxes_xyxy: (n, 4).
        frame_xyxy: (4,), such as where the photo lies in the network's input.

    Returns:
        The boxes (n, 4), and (n,) bool, False for those that lie entirely outside.
    """
    boxes_xyxy = boxes_xyxy.clip(np.tile(frame_xyxy[:2], 2), np.tile(frame_xyxy[2:], 2))
    return boxes_xyxy, np.all(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=1)


def match(overlap: np.ndarray, scores: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Greedy matching: in order of falling score, each detection takes the free object that it overlaps most.

    If two overlaps are equal, the last object is taken, as in COCO's evaluator.

    Args:
        overlap: (n, m), of n detections with m objects. -1 means that they must not be matched.
        scores: (n,). Detections with equal scores keep their order.
        limits: (k,), rising. An object counts as found from this overlap on; each limit is a matching of its own.

    Returns:
        (n, k) int64: the object that each detection found at each limit, or -1.

    Source: COCO (arXiv 1405.0312).
    """
    n, m = overlap.shape
    found = np.full((n, len(limits)), -1, np.int64)
    if not overlap.size:
        return found
    backwards = overlap[:, ::-1]  # argmax takes the first of equal values
    free, level = np.ones((len(limits), m), bool), np.arange(len(limits))
    near = np.flatnonzero(overlap.max(1) >= limits[0])  # the others find nothing
    for row in near[np.argsort(-scores[near], kind="stable")]:
        candidates = np.where(free, backwards[row], -1)  # (k, m)
        best = candidates.argmax(1)  # (k,)
        hit = candidates[level, best] >= limits
        free[level[hit], best[hit]] = False
        found[row, hit] = m - 1 - best[hit]
    return found


def distinct(boxes_xyxy: np.ndarray, scores: np.ndarray, classes: np.ndarray, nms_iou: np.ndarray) -> np.ndarray:
    """Which detections a further greedy suppression keeps, with a limit for each class.

    The frozen detector may propose several boxes for an object, for example with its rim and without. A learned class
    scores them alike. If they overlap by less than the detector's limit, the class needs a tighter one.

    Args:
        boxes_xyxy: (n, 4) float32, in one frame.
        scores: (n,) float32. Of two equal scores, the first counts as the better one.
        classes: (n,) int64.
        nms_iou: (n_cls,) float32 in 0..1. A box is dropped if it overlaps a better box of its class that is kept by
            more than this.

    Returns:
        (n,) bool.
    """
    kept = np.ones(len(scores), bool)
    limited = np.flatnonzero(nms_iou[classes] < UNLIMITED)
    order = limited[np.lexsort((-scores[limited], classes[limited]))]  # class after class, the best first; stable
    for rows in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):  # (m,) of one class; none at all is one
        near = box_iou(boxes_xyxy[rows], boxes_xyxy[rows]) > nms_iou[classes[rows]]  # (m, m)
        over = np.triu(near, 1)  # row is better, and near
        for i in np.flatnonzero(over.any(axis=1)):
            if kept[rows[i]]:
                kept[rows[over[i]]] = False
    return kept
