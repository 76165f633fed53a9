"""What a graph leaves to its caller: vocabularies filled up to fixed shapes, and suppression where it has none."""

from dataclasses import dataclass

import numpy as np

from prompt_tune.contract import DETECTION_COLUMNS, MAX_PER_CLASS


@dataclass(frozen=True)
class Slots:
    """The shapes of a graph that has no free ones: one image, and vocabularies of a fixed size.

    Attributes:
        count: Classes of each vocabulary input.
        n_prompts: Prompts of a class in the input `original`.
        n_learned_prompts: Prompts of a class in the input `learned`.
    """

    count: int
    n_prompts: int
    n_learned_prompts: int

    def filled(self, embeddings: np.ndarray, *, guides: bool) -> np.ndarray:
        """A vocabulary with as many classes and prompts as the graph has.

        Prompts are repeated, since a class takes the maximum over them. Unused classes of the vocabulary that guides
        repeat its first one: zeros would enter the guide's maximum. Other unused classes are zero, and the graph gives
        them a score of 0.

        Args:
            embeddings: (n_cls, n_prompts, 512) float32, with no more classes and prompts than that.
            guides: Whether it is the input `original`.

        Returns:
            (count, n_prompts, 512) float32, or with `n_learned_prompts`.
        """
        n_cls, n_prompts, width = embeddings.shape
        wanted = self.n_prompts if guides else self.n_learned_prompts
        whole = np.zeros((self.count, wanted, width), np.float32)
        whole[:n_cls] = embeddings[:, np.arange(wanted) % n_prompts]
        if guides:
            whole[n_cls:] = whole[0]
        return whole


def suppressed(boxes_xyxy: np.ndarray, scores: np.ndarray, *, iou: float, conf: float) -> np.ndarray:
    """The table of detections that ONNX's `NonMaxSuppression` makes of boxes and scores, class by class.

    Args:
        boxes_xyxy: (b, A, 4) float32, in pixels of the network's input.
        scores: (b, n_cls, A) float32.
        iou: In 0..1. A box is dropped if it overlaps a kept one of its class and a higher score by more than this.
        conf: Scores at or below it are dropped.

    Returns:
        (n, 7) float32: image index, box, score, class; sorted by image, then class, then falling score, then anchor, at
        most `contract.MAX_PER_CLASS` of a class and image.

    Source: onnxruntime/core/providers/cpu/object_detection/non_max_suppression.cc, whose arithmetic is float32.
    """
    tables = [np.zeros((0, DETECTION_COLUMNS), np.float32)]
    for image, (boxes, of_classes) in enumerate(zip(boxes_xyxy, scores, strict=True)):
        for class_id in np.flatnonzero((of_classes > np.float32(conf)).any(axis=1)):
            anchors = np.flatnonzero(of_classes[class_id] > np.float32(conf))
            anchors = anchors[np.argsort(-of_classes[class_id, anchors], kind="stable")]
            anchors = anchors[_kept(boxes[anchors], np.float32(iou))]
            table = np.empty((len(anchors), DETECTION_COLUMNS), np.float32)
            table[:, 0], table[:, 1:5] = image, boxes[anchors]
            table[:, 5], table[:, 6] = of_classes[class_id, anchors], class_id
            tables.append(table)
    return np.concatenate(tables)


def _kept(boxes: np.ndarray, iou: np.float32) -> list[int]:
    """The rows of boxes (n, 4), the best first, that overlap no better one that is kept by more than `iou`."""
    left = np.arange(len(boxes))
    kept: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(left) and len(kept) < MAX_PER_CLASS:
        best, left = left[0], left[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        sides = high - low  # (m, 2)
        shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], np.float32(0))
        union = areas[best] + areas[left] - shared
        real = (shared > 0) & (areas[best] > 0) & (areas[left] > 0) & (union > 0)
        over = np.divide(shared, union, out=np.zeros_like(shared), where=real) > iou
        left = left[~over]
    return kept
