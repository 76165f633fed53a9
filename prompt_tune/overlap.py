"""Boxes that overlap, and the suppression of a class's own after the one in the graph. NumPy only."""

import numpy as np

NMS_IOU = 0.7  # ultralytics' default for suppression
UNLIMITED = 1.0  # a class's own limit where it has none: no overlap exceeds it


def box_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union, (n, m) float64 in 0..1, of boxes (n, 4) and (m, 4) in the same frame."""
    first, second = first_xyxy[:, None].astype(np.float64), second_xyxy[None].astype(np.float64)  # (n, 1, 4), (1, m, 4)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])  # (n, m, 2)
    shared = sides.clip(min=0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1) for boxes in (first, second)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


def distinct(boxes_xyxy: np.ndarray, scores: np.ndarray, classes: np.ndarray, nms_iou: np.ndarray) -> np.ndarray:
    """Which detections a further greedy suppression leaves, each class at its own limit.

    Frozen boxes come in kinds (an object with its rim and without), which a learned class scores alike: where those of
    one object overlap by less than the detector's limit, the class needs a tighter one.

    Args:    boxes_xyxy: (n, 4) float32, in one frame. scores: (n,) float32; of equal ones the first is the better.
             classes: (n,) int64. nms_iou: (n_cls,) float32 in 0..1; a box that overlaps a better one of its class that
                 is left by more than this is dropped.
    Returns: (n,) bool.
    """
    kept = np.ones(len(scores), bool)
    for k in np.unique(classes[nms_iou[classes] < UNLIMITED]):
        rows = np.flatnonzero(classes == k)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        over = np.triu(box_iou(boxes_xyxy[rows], boxes_xyxy[rows]) > nms_iou[k], 1)  # (m, m): better than, and near
        for i in np.flatnonzero(over.any(axis=1)):
            if kept[rows[i]]:
                kept[rows[over[i]]] = False
    return kept
