"""Labels and detections for tests of evaluation, made by hand or at random, and their tables by `faster-coco-eval`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.runtime.detections import Detections

Box = Sequence[float]


def labels(*rows: tuple[int, Box], ignore: Sequence[int] = ()) -> Labels:
    """Labels of one image: (class, box), and which of them are ignored."""
    boxes = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    return Labels(boxes, np.array([k for k, _ in rows], np.int64), np.isin(np.arange(len(rows)), ignore))


def found(*rows: tuple[int, float, Box]) -> Detections:
    """Detections of one image: (class, score, box)."""
    boxes = np.array([box for *_, box in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(boxes, scores, np.array([k for k, *_ in rows], np.int64))


def random_image(rng: np.random.Generator, n_cls: int) -> tuple[Labels, Detections]:
    """An image with crowds, objects of all sizes on top of each other, boxes near them, and equal scores and boxes.

    Some images have no labels, some no detections, and some more than 100 detections of a class.
    """
    n_labels, n_found = rng.choice([0, 2, 6, 12]), rng.choice([0, 5, 40, 150 * n_cls])
    corner, size = rng.uniform(0, 300, (n_labels, 2)), rng.choice([12, 30, 60, 150], (n_labels, 1))
    boxes = np.concatenate([corner, corner + size * rng.uniform(0.7, 1.3, (n_labels, 2))], axis=1).round(1)
    boxes = np.concatenate([boxes, boxes[: n_labels // 3]])  # two objects, or an object and a crowd, on one box
    classes = rng.integers(0, n_cls, len(boxes))
    lone = rng.uniform(0, 300, (n_found, 2))
    rows = np.concatenate([lone, lone + rng.uniform(5, 120, (n_found, 2))], axis=1)
    kinds = rng.integers(0, n_cls, n_found)
    if n_labels:
        source, near = rng.integers(0, len(boxes), n_found), rng.random(n_found) < 0.7
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)[source]
        jitter = rng.choice([0, 0.05, 0.15], (n_found, 1)) * rng.normal(size=(n_found, 4)) * sides
        rows = np.where(near[:, None], boxes[source] + jitter, rows)
        kinds = np.where(near & (rng.random(n_found) < 0.8), classes[source], kinds)
    rows[:, 2:] = np.maximum(rows[:, 2:], rows[:, :2] + 1)
    scores = (rng.random(n_found) * 50).round() / 50
    ignore = rng.random(len(boxes)) < 0.25
    return (
        Labels(boxes.astype(np.float32), classes.astype(np.int64), ignore),
        Detections(rows.astype(np.float32), scores.astype(np.float32), kinds.astype(np.int64)),
    )


def random_images(seed: int, *, n: int = 20, n_cls: int = 3) -> tuple[list[Labels], list[Detections]]:
    """Labels and detections of n random images."""
    rng = np.random.default_rng(seed)
    pairs = [random_image(rng, n_cls) for _ in range(n)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def coco_tables(labels: Sequence[Labels], found: Sequence[Detections], n_cls: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision (10 IoU, 101 recalls, n_cls, 4 sizes) and recall (10 IoU, n_cls, 4 sizes, 3 caps); nan for -1."""
    from faster_coco_eval import COCO, COCOeval_faster

    def dataset(parts: Sequence[tuple[np.ndarray, np.ndarray, str, np.ndarray]]) -> Any:
        entries: list[dict[str, Any]] = []
        for image, (boxes, classes, key, values) in enumerate(parts):
            for box, k, value in zip(boxes.astype(float).tolist(), classes.tolist(), values.tolist(), strict=True):
                x1, y1, x2, y2 = box
                entry = {"image_id": image, "category_id": k, "bbox": [x1, y1, x2 - x1, y2 - y1], key: value}
                entries.append(entry | {"id": len(entries) + 1, "area": (x2 - x1) * (y2 - y1)})
        categories = [{"id": k, "name": str(k)} for k in range(n_cls)]
        images = [{"id": image} for image in range(len(parts))]
        return COCO({"images": images, "annotations": entries, "categories": categories})

    evaluator = COCOeval_faster(
        dataset([(part.boxes_xyxy, part.classes, "iscrowd", part.ignore.astype(int)) for part in labels]),
        dataset([(part.boxes_xyxy, part.class_ids, "score", part.scores) for part in found]),
        iouType="bbox",
    )
    evaluator.params.maxDets = [1, 10, 100]
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = (np.asarray(evaluator.eval[name], np.float64) for name in ("precision", "recall"))
    precision = precision[..., -1]  # with up to 100 detections
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)
