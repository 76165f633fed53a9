"""COCO's average precision and recall (arXiv 1405.0312), by the `faster-coco-eval` package."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.runtime.detections import Detections

RECALLS = np.linspace(0, 1, 101)  # COCO's: where the precision is read
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
CAPS = (1, 10, 100)  # COCO's: how many detections count per class and image; precision is read at the last
N_SIZES = 4  # COCO's: all objects, small, medium, large


@dataclass(frozen=True)
class Metrics:
    """COCO's numbers, in 0..1. Means over classes; nan where no object has the size.

    Attributes:
        ap: Average precision, mean over IoU 0.50 to 0.95.
        ap50: Average precision at IoU 0.50.
        ap75: Average precision at IoU 0.75.
        ap_small: `ap` of objects up to 32 x 32 pixels, in the labels' frame.
        ap_medium: `ap` of objects up to 96 x 96 pixels.
        ap_large: `ap` of larger objects.
        ar_1: Recall with one detection per class and image, mean over IoU 0.50 to 0.95.
        ar_10: Recall with 10 detections.
        ar_100: Recall with 100 detections.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """COCO's tables; nan where a class has no object of a size. Sizes are all, small, medium and large.

    Attributes:
        precision: (10 IoU, 101 recalls, n_cls, 4 sizes) float64.
        recall: (10 IoU, n_cls, 4 sizes, 3 caps) float64.
    """

    precision: np.ndarray
    recall: np.ndarray

    @property
    def curves(self) -> np.ndarray:
        """(n_cls, 101): precision at IoU 0.5 at each of `RECALLS`."""
        return self.precision[0, :, :, 0].T

    def metrics(self, classes: Sequence[int]) -> Metrics:
        """Means over the classes given by number; all nan where none of them has an object."""
        precision, recall = self.precision[:, :, list(classes)], self.recall[:, list(classes)]
        sizes = [_mean(precision[..., size]) for size in range(N_SIZES)]
        caps = [_mean(recall[:, :, 0, cap]) for cap in range(len(CAPS))]
        return Metrics(sizes[0], _mean(precision[0, ..., 0]), _mean(precision[5, ..., 0]), *sizes[1:], *caps)


def coco_evaluation(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> Evaluation:
    """Compare detections with labels, by faster-coco-eval.

    Args:
        labels: The labels of each image, in original pixels if sizes matter.
        found: The detections of each image, in the same order and frame.
        n_cls: The number of classes; class ids are 0 .. n_cls - 1.

    Source: COCO (arXiv 1405.0312), with its own caps of 1, 10 and 100 detections per class and image.
    """
    objects = _Boxes.of([(part.boxes_xyxy, part.classes, part.ignore) for part in labels])
    best = [part.select(_ranks(part) < CAPS[-1]) for part in found]
    detections = _Boxes.of([(part.boxes_xyxy, part.class_ids, part.scores) for part in best])
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), n_cls, N_SIZES), np.nan)
    recall = np.full((len(IOU_THRESHOLDS), n_cls, N_SIZES, len(CAPS)), np.nan)
    evaluator = _evaluator_on_arrays()
    for k in np.unique(objects.classes[objects.values == 0]):  # the others have no object
        tables = evaluator(objects.of_class(k), detections.of_class(k)).tables()
        precision[:, :, k], recall[:, k] = tables[0][:, :, 0, :, -1], tables[1][:, 0]
    return Evaluation(np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall))


def average_precision(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> Metrics:
    """COCO's numbers, means over the classes that have an object. The arguments are those of `coco_evaluation`."""
    return coco_evaluation(labels, found, n_cls).metrics(range(n_cls))


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Labels or detections of all images, row by row, sorted by class.

    Attributes:
        images: (n,) int64, the image of each box.
        boxes_xyxy: (n, 4) float64.
        classes: (n,) int64.
        values: (n,) float64, the score of a detection; of a label 1 if it is ignored, else 0.
    """

    images: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "_Boxes":
        """Boxes, classes and values of each image."""
        empty = (np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
        boxes, classes, values = (np.concatenate(part) for part in zip(empty, *parts, strict=True))
        images = np.repeat(np.arange(len(parts)), [len(part[1]) for part in parts])
        order = np.argsort(classes, kind="stable")
        return cls(images[order], boxes[order], classes[order], values[order].astype(np.float64))

    def of_class(self, k: int) -> "_Boxes":
        """The boxes of one class, image after image."""
        rows = slice(*np.searchsorted(self.classes, (k, k + 1)))
        return _Boxes(self.images[rows], self.boxes_xyxy[rows], self.classes[rows], self.values[rows])


@cache
def _evaluator_on_arrays() -> Any:
    """faster-coco-eval's evaluator for one class, fed from arrays.

    Its own way keeps Python dictionaries of all boxes, and visits every pair of an image and a class. Here, boxes go
    straight into its tables, one class at a time, and it sees only the images that have the class.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    class Evaluator(COCOeval_faster):
        """Evaluates the detections of one class against its labels."""

        def __init__(self, objects: _Boxes, detections: _Boxes) -> None:
            images = np.union1d(objects.images, detections.images).tolist()
            images_alone = {"images": [{"id": i} for i in images], "annotations": [], "categories": [{"id": 0}]}
            super().__init__(COCO(images_alone), COCO(images_alone), iouType="bbox")
            self.params.maxDets = list(CAPS)
            self._arrays = objects, detections

        def tables(self) -> tuple[np.ndarray, np.ndarray]:
            """Precision (10, 101, 1, 4 sizes, 3 caps) and recall (10, 1, 4 sizes, 3 caps); -1 where undefined."""
            self.evaluate()
            self.accumulate()
            return np.asarray(self.eval["precision"]), np.asarray(self.eval["recall"])

        def _prepare(self) -> None:
            """Fill the evaluator's tables; `evaluate` calls this in place of its own."""
            objects, detections = self._arrays
            for table, part in ((self.gt_dataset, objects), (self.dt_dataset, detections)):
                for row, (image, box, value) in enumerate(zip(part.images, part.boxes_xyxy, part.values, strict=True)):
                    x1, y1, x2, y2 = box.tolist()
                    entry: dict[str, Any] = {
                        "id": row + 1,  # the evaluator takes the id 0 for none
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                    }
                    if part is detections:
                        entry |= {"score": float(value)}
                    else:
                        entry |= {"iscrowd": int(value), "ignore": int(value)}
                    table.append(int(image), 0, entry)
            both = set(objects.images.tolist()) & set(detections.images.tolist())
            self._nonempty_iou_pairs = {(image, 0) for image in both}

    return Evaluator


def _ranks(found: Detections) -> np.ndarray:
    """(n,) int64: the place of each detection among those of its class, from 0 by falling score."""
    order = np.lexsort((-found.scores, found.class_ids))  # stable
    classes = found.class_ids[order]
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.searchsorted(classes, classes)
    return ranks


def _mean(table: np.ndarray) -> float:
    """The mean of the numbers that are not nan; nan if there are none."""
    known = table[~np.isnan(table)]
    return float(known.mean()) if known.size else np.nan
