"""COCO metrics of detections, and detections from head features: what `fit`, the pretraining and `demo` measure with."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_DETECTIONS = 300  # a class and image, in suppression; as in the ONNX graph
NMS_IOU = 0.7  # ultralytics' default for detection
METRIC_CONF = 0.001  # ultralytics' validator's: low enough that the curve's tail is in it


@dataclass(frozen=True)
class Truth:
    """The labels of one image.

    boxes_xyxy: (n, 4) float32. classes: (n,) int64. ignore: (n,) bool, neither positive nor negative. All in the frame of
    the detections they are compared with.
    """

    boxes_xyxy: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray


@dataclass(frozen=True)
class Found:
    """The detections of one image: boxes_xyxy (n, 4) float32, scores (n,) float32 in 0..1, classes (n,) int64."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Precision:
    """Average precision in 0..1, as COCO defines it: `ap` over IoU 0.50 to 0.95, `ap50` at 0.50; `per_class_ap50` (n_cls,),
    nan for a class without an object."""

    ap: float
    ap50: float
    per_class_ap50: np.ndarray


@torch.no_grad()
def suppress(boxes_xyxy: Tensor, scores: Tensor, *, conf: float = METRIC_CONF, iou: float = NMS_IOU) -> Found:
    """Greedy suppression a class at a time, multi-label: one box may carry several classes.

    Args:    boxes_xyxy: (A, 4) float32. scores: (A, n_cls) float32 in 0..1. conf: scores at or below it are dropped.
             iou: overlap above which the lower score goes.
    Returns: at most 300 detections a class, by falling score, in the frame of the boxes.
    """
    from torchvision.ops import batched_nms

    anchor, label = (scores > conf).nonzero(as_tuple=True)  # (m,), (m,)
    score = scores[anchor, label]
    keep = batched_nms(boxes_xyxy[anchor], score, label, iou)
    label, score, anchor = label[keep], score[keep], anchor[keep]
    rank = torch.zeros_like(label)
    for k in label.unique().tolist():
        of_class = label == k
        rank[of_class] = torch.arange(int(of_class.sum()), device=label.device)
    within = rank < MAX_DETECTIONS
    return Found(
        boxes_xyxy[anchor[within]].cpu().numpy(),
        score[within].cpu().numpy(),
        label[within].cpu().numpy(),
    )


def average_precision(truths: Sequence[Truth], founds: Sequence[Found], n_cls: int) -> Precision:
    """AP and AP50 of detections against labels, by faster-coco-eval.

    Args:    truths, founds: one an image, in the same order and frame. n_cls: classes are 0 .. n_cls - 1.
    Returns: means over the classes that have an object. Where none has, all numbers are nan.
    Source:  COCO (arXiv 1405.0312), evaluated by the `faster-coco-eval` package with at most 300 detections an image.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    annotations = []
    for image_id, truth in enumerate(truths):
        for box, label, ignore in zip(truth.boxes_xyxy, truth.classes, truth.ignore, strict=True):
            annotations.append(_annotation(len(annotations) + 1, image_id, box, int(label)) | {"iscrowd": int(ignore)})
    results = []
    for image_id, found in enumerate(founds):
        for box, label, score in zip(found.boxes_xyxy, found.classes, found.scores, strict=True):
            results.append(_annotation(len(results) + 1, image_id, box, int(label)) | {"score": float(score)})
    if not any(not a["iscrowd"] for a in annotations):
        return Precision(float("nan"), float("nan"), np.full(n_cls, np.nan))
    if not results:
        present = {a["category_id"] for a in annotations if not a["iscrowd"]}
        return Precision(0.0, 0.0, np.array([0.0 if k in present else np.nan for k in range(n_cls)]))
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluator prints its progress
        coco = COCO(
            {
                "images": [{"id": i} for i in range(len(truths))],
                "annotations": annotations,
                "categories": [{"id": k, "name": str(k)} for k in range(n_cls)],
            }
        )
        evaluation = COCOeval_faster(coco, coco.loadRes(results), iouType="bbox")
        evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU thresholds, recalls, classes, areas, caps); -1 where a class has no object
    table = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    table = np.where(table < 0, np.nan, table)
    per_class = table.mean(1)  # (IoU thresholds, classes)
    present = ~np.isnan(per_class[0])
    return Precision(float(per_class[:, present].mean()), float(per_class[0, present].mean()), per_class[0])


def _annotation(identifier: int, image_id: int, box_xyxy: np.ndarray, label: int) -> dict[str, object]:
    """What truths and results have in common in COCO's format."""
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    width, height = x2 - x1, y2 - y1
    return {
        "id": identifier,
        "image_id": image_id,
        "category_id": label,
        "bbox": [x1, y1, width, height],
        "area": width * height,
    }


def batches(items: Sequence[object], size: int) -> Iterator[Sequence[object]]:
    """The items, `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
