"""COCO metrics of detections, and detections from scores: what `fit`, the pretraining and `demo` measure with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from prompt_tune.coco import METRIC_CONF as METRIC_CONF
from prompt_tune.coco import Found, Truth, coco_evaluation
from prompt_tune.loss import region_logits
from prompt_tune.overlap import NMS_IOU, distinct
from prompt_tune.regions import Regions
from prompt_tune.world import World

MAX_DETECTIONS = 300  # a class and image, in suppression; as in the ONNX graph
NMS_IOUS = (NMS_IOU, 0.6, 0.5)  # among which a learned vocabulary's limit of overlap is chosen
SELECTION_CONF = 0.01  # scores below it are left out of the per-epoch metric: a learned class's curve ends above it

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Precision:
    """Average precision in 0..1, as COCO defines it: `ap` over IoU 0.50 to 0.95, `ap50` at 0.50; `per_class_ap50`
    (n_cls,), nan for a class without an object."""

    ap: float
    ap50: float
    per_class_ap50: np.ndarray


@torch.no_grad()
def suppress(
    boxes_xyxy: Tensor,
    scores: Tensor,
    *,
    conf: float = METRIC_CONF,
    iou: float = NMS_IOU,
    nms_iou: np.ndarray | None = None,
) -> Found:
    """Greedy suppression a class at a time, multi-label: one box may carry several classes.

    Args:    boxes_xyxy: (A, 4) float32. scores: (A, n_cls) float32 in 0..1. conf: scores at or below it are dropped.
             iou: overlap above which the lower score goes. nms_iou: (n_cls,) float32, for what is left, a class's own
             such limit.
    Returns: at most 300 detections a class, by class, then falling score, then anchor, in the frame of the boxes.
    Source:  the rule of `graph.suppress`, without a step for the classes that have nothing above `conf`.
    """
    from torchvision.ops import nms

    label, anchor = scores.T.gt(conf).nonzero(as_tuple=True)  # (m,), (m,), class after class
    score = scores[anchor, label]
    kept, first = [], 0
    for count in torch.bincount(label).tolist():
        rows = slice(first, first + count)
        if count:
            kept.append(first + nms(boxes_xyxy[anchor[rows]], score[rows], iou)[:MAX_DETECTIONS])
        first += count
    keep = torch.cat(kept) if kept else label  # (n,)
    found = Found(boxes_xyxy[anchor[keep]].cpu().numpy(), score[keep].cpu().numpy(), label[keep].cpu().numpy())
    return found if nms_iou is None else suppress_more(found, nms_iou)


def suppress_more(found: Found, nms_iou: np.ndarray) -> Found:
    """What a further suppression leaves, each class at its own limit (n_cls,), as the runtime does it."""
    keep = distinct(found.boxes_xyxy, found.scores, found.classes, nms_iou)
    return Found(found.boxes_xyxy[keep], found.scores[keep], found.classes[keep])


def average_precision(truths: Sequence[Truth], founds: Sequence[Found], n_cls: int) -> Precision:
    """AP and AP50 of detections against labels, by faster-coco-eval.

    Args:    truths, founds: one an image, in the same order and frame. n_cls: classes are 0 .. n_cls - 1.
    Returns: means over the classes that have an object. Where none has, all numbers are nan.
    """
    evaluation = coco_evaluation(truths, founds, n_cls)
    metrics = evaluation.metrics(range(n_cls))
    return Precision(metrics.ap, metrics.ap50, evaluation.curves.mean(1))


def choose_nms_iou(truths: Sequence[Truth], founds: Sequence[Found], n_cls: int) -> float:
    """The limit of overlap, one of `NMS_IOUS`, that gives detections the highest AP50; of equal ones the loosest.

    At the IoU that thresholds are chosen at, a second box on an object is wrong. AP hardly tells: at a stricter IoU,
    one of the two may be right where the better-scored one is not.

    Args: as of `average_precision`; the detections are those that the detector's own suppression leaves.
    """
    limits = [np.full(n_cls, iou, np.float32) for iou in NMS_IOUS]
    ap50 = [average_precision(truths, [suppress_more(f, limit) for f in founds], n_cls).ap50 for limit in limits]
    return NMS_IOUS[int(np.argmax(ap50))]  # the first where no class has an object


@torch.no_grad()
def detect_regions(
    world: World,
    embeddings: np.ndarray,
    images: Iterable[Regions],
    anchors: tuple[Tensor, Tensor, Tensor],
    *,
    conf: float = METRIC_CONF,
) -> tuple[list[Truth], list[Found]]:
    """Labels and detections of images from all their regions, in pixels of the network's input.

    As the runtime does, boxes are cut at the edges of the photo once suppression is done.

    Args:    embeddings: (n_cls, n_prompts, 512) float32. images: each with all its anchors.
             anchors: from `World.anchors`, for the input size. conf: scores at or below it are dropped.
    """
    rows = torch.from_numpy(embeddings).to(world.device)
    level = anchors[2]
    truths, founds = [], []
    for regions in images:
        scores = region_logits(world, regions.head.to(world.device), level, rows).sigmoid()
        found = suppress(regions.boxes_xyxy.to(world.device), scores, conf=conf)
        founds.append(_cut(found, regions.frame_xyxy.numpy()))
        parts = (regions.label_boxes, regions.label_classes, regions.label_ignore)
        truths.append(Truth(*(part.numpy() for part in parts)))
    return truths, founds


def _cut(found: Found, frame_xyxy: np.ndarray) -> Found:
    """Detections with their boxes cut at a frame (4,); those wholly outside are left out."""
    boxes_xyxy = found.boxes_xyxy.clip(np.tile(frame_xyxy[:2], 2), np.tile(frame_xyxy[2:], 2))  # (n, 4)
    inside = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1)
    return Found(boxes_xyxy[inside], found.scores[inside], found.classes[inside])


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items, `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
