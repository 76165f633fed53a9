"""COCO metrics of detections, and detections from scores: what `fit`, the pretraining and `demo` measure with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prompt_tune.loss import region_logits
from prompt_tune.regions import RegionCache
from prompt_tune.world import World

MAX_DETECTIONS = 300  # a class and image, in suppression; as in the ONNX graph
NMS_IOU = 0.7  # ultralytics' default for detection
METRIC_CONF = 0.001  # ultralytics' validator's: low enough that the curve's tail is in it
SELECTION_CONF = 0.01  # scores below it are left out of the per-epoch metric: they move AP by less than 0.001
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
RECALLS = np.linspace(0, 1, 101)  # COCO's: where the precision is read


@dataclass(frozen=True, eq=False)
class Truth:
    """The labels of one image.

    boxes_xyxy: (n, 4) float32. classes: (n,) int64. ignore: (n,) bool, neither positive nor negative. All in the frame
    of the detections they are compared with.
    """

    boxes_xyxy: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """The detections of one image: boxes_xyxy (n, 4) float32, scores (n,) float32 in 0..1, classes (n,) int64."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True, eq=False)
class Precision:
    """Average precision in 0..1, as COCO defines it: `ap` over IoU 0.50 to 0.95, `ap50` at 0.50; `per_class_ap50`
    (n_cls,), nan for a class without an object."""

    ap: float
    ap50: float
    per_class_ap50: np.ndarray


@torch.no_grad()
def suppress(boxes_xyxy: Tensor, scores: Tensor, *, conf: float = METRIC_CONF, iou: float = NMS_IOU) -> Found:
    """Greedy suppression a class at a time, multi-label: one box may carry several classes.

    Args:    boxes_xyxy: (A, 4) float32. scores: (A, n_cls) float32 in 0..1. conf: scores at or below it are dropped.
             iou: overlap above which the lower score goes.
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
    return Found(boxes_xyxy[anchor[keep]].cpu().numpy(), score[keep].cpu().numpy(), label[keep].cpu().numpy())


def average_precision(truths: Sequence[Truth], founds: Sequence[Found], n_cls: int) -> Precision:
    """AP and AP50 of detections against labels.

    Args:    truths, founds: one an image, in the same order and frame; at most 300 detections a class and image, as
             `suppress` gives. n_cls: classes are 0 .. n_cls - 1.
    Returns: means over the classes that have an object. Where none has, all numbers are nan.
    Source:  COCO (arXiv 1405.0312); `tests/test_evaluate.py` compares it with the `faster-coco-eval` package.
    """
    objects = np.zeros(n_cls, np.int64)
    for truth in truths:
        objects += np.bincount(truth.classes[~truth.ignore], minlength=n_cls)
    parts = [match(truth, found) for truth, found in zip(truths, founds, strict=True)]
    outcomes = np.concatenate([np.zeros((0, len(IOU_THRESHOLDS)), np.int8), *parts])  # (n, 10)
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for found in founds)])  # (n,)
    classes = np.concatenate([np.zeros(0, np.int64), *(found.classes for found in founds)])  # (n,)
    order = np.lexsort((-scores, classes))  # by class, then falling score; of equal scores the first image is first
    bounds = np.searchsorted(classes[order], np.arange(n_cls + 1))
    table = np.full((n_cls, len(IOU_THRESHOLDS)), np.nan)
    for k in np.flatnonzero(objects):
        table[k] = _interpolated(outcomes[order[bounds[k] : bounds[k + 1]]], int(objects[k]))
    present = table[objects > 0]
    if not len(present):
        return Precision(float("nan"), float("nan"), table[:, 0])
    return Precision(float(present.mean()), float(present[:, 0].mean()), table[:, 0])


def measure(
    world: World, embeddings: np.ndarray, cache: RegionCache, anchors: tuple[Tensor, Tensor, Tensor]
) -> Precision:
    """AP of classes on cached images; see `detect_cached`."""
    return average_precision(*detect_cached(world, embeddings, cache, anchors, conf=SELECTION_CONF), len(embeddings))


@torch.no_grad()
def detect_cached(
    world: World,
    embeddings: np.ndarray,
    cache: RegionCache,
    anchors: tuple[Tensor, Tensor, Tensor],
    *,
    conf: float = METRIC_CONF,
) -> tuple[list[Truth], list[Found]]:
    """Labels and detections of cached images with all their anchors, in pixels of the network's input.

    Args:    embeddings: (n_cls, n_prompts, 512) float32. cache: of `cache_regions` without a budget.
             anchors: from `World.anchors`, for the cached input size. conf: scores at or below it are dropped.
    """
    rows = torch.from_numpy(embeddings).to(world.device)
    level = anchors[2]
    truths, founds = [], []
    for i in range(len(cache.files)):
        regions = cache.load(i)
        scores = region_logits(world, regions.head.to(world.device), level, rows).sigmoid()
        founds.append(suppress(regions.boxes_xyxy.to(world.device), scores, conf=conf))
        parts = (regions.label_boxes, regions.label_classes, regions.label_ignore)
        truths.append(Truth(*(part.numpy() for part in parts)))
    return truths, founds


def match(truth: Truth, found: Found) -> np.ndarray:
    """Whether the detections of one image are right: by falling score, each takes the free object it overlaps most.

    Args:    truth, found: of one image, in the same frame; only an object of a detection's own class counts for it.
    Returns: (n, 10) int8 at each of `IOU_THRESHOLDS`: 1 true positive, 0 false, -1 neither: it finds no object, but
             overlaps an ignored box of its class.
    """
    outcome = np.zeros((len(found.scores), len(IOU_THRESHOLDS)), np.int8)
    overlap = _overlaps(truth, found)  # (n, m)
    if not overlap.size:
        return outcome
    objects = overlap[:, ~truth.ignore][:, ::-1]  # of equal overlaps COCO takes the last object, argmax the first
    ignored = overlap[:, truth.ignore].max(1, initial=-1)  # (n,)
    outcome[ignored[:, None] >= IOU_THRESHOLDS] = -1
    free = np.ones((len(IOU_THRESHOLDS), objects.shape[1]), bool)
    level = np.arange(len(IOU_THRESHOLDS))
    near = np.flatnonzero(objects.max(1, initial=-1) >= IOU_THRESHOLDS[0])  # the others take no object
    for row in near[np.argsort(-found.scores[near], kind="stable")]:
        candidates = np.where(free, objects[row], -1)  # (10, m)
        best = candidates.argmax(1)  # (10,)
        hit = candidates[level, best] >= IOU_THRESHOLDS
        free[level[hit], best[hit]] = False
        outcome[row, hit] = 1
    return outcome


def _overlaps(truth: Truth, found: Found) -> np.ndarray:
    """(n, m) float64: IoU of detections and labels, -1 between classes; with an ignored box, the share of the detection
    that lies in it."""
    one, other = found.boxes_xyxy.astype(np.float64)[:, None], truth.boxes_xyxy.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])  # (n, m, 2)
    shared = sides.clip(0).prod(2)
    area, label_area = ((boxes[..., 2:] - boxes[..., :2]).prod(2) for boxes in (one, other))  # (n, 1), (1, m)
    whole = np.where(truth.ignore, area, area + label_area - shared)
    ratio = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return np.where(found.classes[:, None] == truth.classes, ratio, -1.0)


def _interpolated(outcomes: np.ndarray, n_objects: int) -> np.ndarray:
    """(10,) average precision of one class at every IoU threshold.

    Args: outcomes: (n, 10) int8 from `match`, by falling score. n_objects: at least 1.
    """
    true, false = (outcomes == 1).cumsum(0), (outcomes == 0).cumsum(0)  # (n, 10)
    precision = true / np.maximum(true + false, 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # the highest precision at this recall or a larger one
    highest = np.concatenate([highest, np.zeros((1, len(IOU_THRESHOLDS)))])  # (n + 1, 10): recalls never reached
    reached = [np.searchsorted(column, RECALLS) for column in (true / n_objects).T]
    return np.array([highest[rows, i].mean() for i, rows in enumerate(reached)])


def batches(items: Sequence[object], size: int) -> Iterator[Sequence[object]]:
    """The items, `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
