"""Suppression in torch: greedy and per class, by the rule of `NonMaxSuppression` in the ONNX graph."""

import torch
from torch import Tensor

from prompt_tune.contract import MAX_PER_CLASS, METRIC_CONF, NMS_IOU
from prompt_tune.privacy import quiet_imports
from prompt_tune.runtime.detections import Detections

with quiet_imports():
    from torchvision.ops import nms  # at module level: importing it while a graph is traced would fail

PREFIX = 512  # candidates of a class that are looked at first: often they hold the 300 that are kept


def suppress(
    boxes_xyxy: Tensor, scores: Tensor, *, conf: float = METRIC_CONF, iou: float = NMS_IOU, prefix: int | None = None
) -> tuple[Tensor, Tensor]:
    """Suppresses overlapping boxes of one image, class by class. A box may be kept for several classes.

    Args:
        boxes_xyxy: (A, 4) float32, in any frame.
        scores: (A, n_cls) float32 in 0..1.
        conf: Boxes with a score above this are candidates.
        iou: A candidate is dropped if it overlaps a kept one of the same class and a higher score by more than this.
        prefix: Of each class, so many candidates with the highest scores are looked at first, and others only if fewer
            than `MAX_PER_CLASS` of them are kept. The result is the same. None looks at all.

    Returns:
        Class and anchor of the kept boxes, each (n,) int64, sorted by class, then falling score, then anchor. There are
        at most `MAX_PER_CLASS` per class.
    """
    candidate = conf < scores.T  # (n_cls, A)
    label, anchor = candidate.nonzero().unbind(1)  # (m,), (m,), class after class
    score = scores[anchor, label]
    # The autograd function `deployment.graph._Suppress` runs this while the graph is traced. There the exporter records
    # some operations on the result of `nms`, such as `first + kept`, and fails; indexing a prepared `arange` is safe.
    place = torch.arange(len(label), device=label.device)
    kept, first = [], 0
    for count in candidate.sum(1).tolist():
        rows = place[first : first + count]
        if count:
            kept.append(_best(boxes_xyxy[anchor[rows]], score[rows], rows, iou, prefix))
        first += count
    keep = torch.cat(kept) if kept else label  # (n,)
    return label[keep], anchor[keep]


def _best(boxes_xyxy: Tensor, score: Tensor, rows: Tensor, iou: float, prefix: int | None) -> Tensor:
    """The rows of the candidates of one class that are kept. What is kept first depends on higher scores alone."""
    if prefix is None or len(rows) <= prefix:
        return rows[nms(boxes_xyxy, score, iou)[:MAX_PER_CLASS]]
    order = score.argsort(descending=True, stable=True)
    while True:
        part = order[:prefix]
        kept = part[nms(boxes_xyxy[part], score[part], iou)[:MAX_PER_CLASS]]
        if len(kept) == MAX_PER_CLASS or prefix >= len(order):
            return rows[kept]
        prefix *= 4


def find(boxes_xyxy: Tensor, scores: Tensor, *, conf: float = METRIC_CONF, iou: float = NMS_IOU) -> Detections:
    """Finds the detections of one image, in the frame of its boxes.

    Args:
        boxes_xyxy: See `suppress`.
        scores: See `suppress`.
        conf: See `suppress`.
        iou: See `suppress`.

    Returns:
        The boxes that `suppress` keeps, in its order.
    """
    label, anchor = suppress(boxes_xyxy, scores, conf=conf, iou=iou, prefix=PREFIX)
    boxes, score = boxes_xyxy[anchor].detach(), scores[anchor, label].detach()
    return Detections(boxes.cpu().numpy(), score.cpu().numpy(), label.cpu().numpy())
