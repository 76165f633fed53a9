"""Labels and detections of images, and COCO's tables of them by the `faster-coco-eval` package."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_tune.contract import METRIC_CONF as METRIC_CONF
from prompt_tune.datasets.samples import Labels
from prompt_tune.runtime.detections import Detections

RECALLS = np.linspace(0, 1, 101)  # COCO's: where the precision is read
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
CAPS = (1, 10, 100)  # COCO's: detections of a class in an image that count; precision is read at the last


@dataclass(frozen=True)
class Metrics:
    """COCO's numbers, in 0..1, means over classes; nan where no object is of that size.

    ap: over IoU 0.50 to 0.95. ap50, ap75: at one IoU. ap_small, ap_medium, ap_large: of objects up to 32 x 32, up to
    96 x 96, and above, in pixels of the labels' frame. ar_1, ar_10, ar_100: recall with that many detections of a class
    in an image, over IoU 0.50 to 0.95.
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
    """COCO's tables; nan where a class has no object of a size.

    precision: (10 IoU, 101 recalls, n_cls, 4 sizes). recall: (10 IoU, n_cls, 4 sizes, 3 caps). Sizes: all, small,
    medium, large.
    """

    precision: np.ndarray
    recall: np.ndarray

    @property
    def curves(self) -> np.ndarray:
        """(n_cls, 101): precision at IoU 0.5 at each of `RECALLS`."""
        return self.precision[0, :, :, 0].T

    def metrics(self, classes: Sequence[int]) -> Metrics:
        """Means over some classes, by number; all nan where none of them has an object."""
        precision, recall = self.precision[:, :, list(classes)], self.recall[:, list(classes)]
        sizes = [_mean(precision[..., size]) for size in range(4)]
        caps = [_mean(recall[:, :, 0, cap]) for cap in range(len(CAPS))]
        return Metrics(sizes[0], _mean(precision[0, ..., 0]), _mean(precision[5, ..., 0]), *sizes[1:], *caps)


def coco_evaluation(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> Evaluation:
    """Evaluate detections against labels.

    Args:    labels, found: of each image, in the same order and frame; for sizes, pixels of the original image.
             n_cls: classes are 0 .. n_cls - 1.
    Source:  COCO (arXiv 1405.0312), with its own caps of 1, 10 and 100 detections of a class in an image.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    def dataset(parts: Sequence[tuple[np.ndarray, np.ndarray, str, np.ndarray]]) -> Any:
        entries = [
            _entry(image, box, label) | {"id": 0, key: value.item()}
            for image, (boxes, labels, key, values) in enumerate(parts)
            for box, label, value in zip(boxes, labels, values, strict=True)
        ]
        for number, entry in enumerate(entries, start=1):  # the evaluator takes the id 0 for none
            entry["id"] = number
        return COCO(
            {
                "images": [{"id": image} for image in range(len(parts))],
                "annotations": entries,
                "categories": [{"id": k, "name": str(k)} for k in range(n_cls)],
            }
        )

    evaluator = COCOeval_faster(
        dataset([(part.boxes_xyxy, part.classes, "iscrowd", part.ignore.astype(int)) for part in labels]),
        dataset([(part.boxes_xyxy, part.class_ids, "score", part.scores) for part in found]),
        iouType="bbox",
    )
    evaluator.params.maxDets = list(CAPS)
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = (np.asarray(evaluator.eval[name], np.float64) for name in ("precision", "recall"))
    precision = precision[..., -1]  # (10, 101, n_cls, 4)
    return Evaluation(np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall))


def average_precision(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> Metrics:
    """COCO's numbers of detections, means over the classes that have an object; see `coco_evaluation`."""
    return coco_evaluation(labels, found, n_cls).metrics(range(n_cls))


def _entry(image: int, box_xyxy: np.ndarray, label: np.integer[Any]) -> dict[str, object]:
    """What labels and detections have in common in COCO's format."""
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    width, height = x2 - x1, y2 - y1
    return {"image_id": image, "category_id": int(label), "bbox": [x1, y1, width, height], "area": width * height}


def _mean(table: np.ndarray) -> float:
    """The mean of what is not nan; nan where nothing is."""
    known = table[~np.isnan(table)]
    return float(known.mean()) if known.size else np.nan
