"""Suppression in torch: greedy, class by class, by the rule of `NonMaxSuppression` in the ONNX graph."""

import torch
from torch import Tensor
from torchvision.ops import nms  # here: loading it while a graph is traced would fail

from prompt_tune.contract import MAX_PER_CLASS, METRIC_CONF, NMS_IOU
from prompt_tune.runtime.detections import Detections


def suppress(
    boxes_xyxy: Tensor, scores: Tensor, *, conf: float = METRIC_CONF, iou: float = NMS_IOU
) -> tuple[Tensor, Tensor]:
    """Greedy suppression of one image, class by class and multi-label: one box may carry several classes.

    Args:
        boxes_xyxy: (A, 4) float32, in any one frame.
        scores: (A, n_cls) float32 in 0..1.
        conf: Scores at or below it are dropped.
        iou: Overlap above which the box with the lower score goes.

    Returns:
        Class and anchor of what is kept, (n,) int64 each, by class, then falling score, then anchor; at most
        `MAX_PER_CLASS` of a class.
    """
    candidate = conf < scores.T  # (n_cls, A)
    label, anchor = candidate.nonzero().unbind(1)  # (m,), (m,), class after class
    score = scores[anchor, label]
    place = torch.arange(len(label), device=label.device)
    kept, first = [], 0
    for count in candidate.sum(1).tolist():
        rows = slice(first, first + count)
        if count:
            kept.append(place[rows][nms(boxes_xyxy[anchor[rows]], score[rows], iou)[:MAX_PER_CLASS]])
        first += count
    keep = torch.cat(kept) if kept else label  # (n,)
    return label[keep], anchor[keep]


def find(boxes_xyxy: Tensor, scores: Tensor, *, conf: float = METRIC_CONF, iou: float = NMS_IOU) -> Detections:
    """What `suppress` leaves of one image, as detections in the frame of the boxes.

    Args, order and limits are those of `suppress`.
    """
    label, anchor = suppress(boxes_xyxy, scores, conf=conf, iou=iou)
    boxes, score = boxes_xyxy[anchor].detach(), scores[anchor, label].detach()
    return Detections(boxes.cpu().numpy(), score.cpu().numpy(), label.cpu().numpy())
