"""COCO's metrics: against numbers worked out by hand, and against ultralytics' on the same detections."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import coco_tables, found, labels, random_images

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.metrics import CAPS, IOU_THRESHOLDS, Metrics, average_precision, coco_evaluation
from prompt_tune.models import ultralytics
from prompt_tune.runtime.detections import Detections

# Class 0 has a small, a large and a medium object. The small one is found exactly; on the large one's image a box
# beside it scores higher than the one on it, whose IoU is 0.64; the medium one is missed. Class 1 has an object, which
# is found, and a crowd, in which the detection with the highest score lies. Class 2 has none.
SMALL, LARGE, MEDIUM = (10, 10, 30, 30), (0, 0, 100, 100), (50, 50, 100, 100)
LABELS = [labels((0, SMALL), (1, LARGE)), labels((0, LARGE), (1, (200, 0, 300, 100)), ignore=[1]), labels((0, MEDIUM))]
FOUNDS = [
    found((0, 0.9, SMALL), (1, 0.6, LARGE)),
    found((0, 0.7, (0, 0, 64, 100)), (0, 0.8, (100, 100, 200, 200)), (1, 0.95, (210, 10, 260, 60)), (2, 0.5, LARGE)),
    found(),
]


def test_metrics_of_three_images_are_those_worked_out_by_hand() -> None:
    evaluation = coco_evaluation(LABELS, FOUNDS, 3)
    # Of 101 recalls, 34 are up to 1/3 and 33 more up to 2/3. At IoU 0.50, 0.55 and 0.60 the three detections are right,
    # wrong, right: precision 1 up to recall 1/3, then 2/3 up to 2/3. At the other seven: right, wrong, wrong.
    low, high = (34 + 33 * 2 / 3) / 101, 34 / 101
    wanted = Metrics(
        ap=(3 * low + 7 * high) / 10,
        ap50=low,
        ap75=high,
        ap_small=1,  # what is larger and overlaps no small object does not count
        ap_medium=0,
        ap_large=3 * 0.5 / 10,  # the wrong box of 100 x 100 comes first
        ar_1=1 / 3,  # the best detection of the second image is the wrong one
        ar_10=(3 * 2 / 3 + 7 * 1 / 3) / 10,
        ar_100=(3 * 2 / 3 + 7 * 1 / 3) / 10,
    )
    got = evaluation.metrics([0])
    assert list(vars(got).values()) == pytest.approx(list(vars(wanted).values()), abs=1e-9)
    assert evaluation.metrics([1]).ap == pytest.approx(1)
    both = evaluation.metrics([0, 1])
    assert both.ap == pytest.approx((wanted.ap + 1) / 2) and both.ap50 == pytest.approx((low + 1) / 2)
    assert both.ap_large == pytest.approx((0.15 + 1) / 2) and both.ap_small == pytest.approx(1)


def test_metrics_of_classes_without_objects_are_nan() -> None:
    evaluation = coco_evaluation(LABELS, FOUNDS, 3)
    assert np.isnan(list(vars(evaluation.metrics([2])).values())).all()
    assert evaluation.metrics([0, 1, 2]) == evaluation.metrics([0, 1])
    assert np.isnan(evaluation.metrics([]).ap)


@pytest.mark.parametrize(
    ("truths", "founds", "ap"),
    [
        ([labels()], [found()], np.nan),
        ([labels((0, SMALL))], [found()], 0),
        ([labels()], [found((0, 0.5, SMALL))], np.nan),
    ],
)
def test_metrics_of_nothing_found_or_nothing_there(truths: list[Labels], founds: list[Detections], ap: float) -> None:
    metrics = coco_evaluation(truths, founds, 1).metrics([0])
    assert metrics.ap == metrics.ar_100 == ap or np.isnan([metrics.ap, metrics.ar_100, ap]).all()


def test_curves_are_precision_at_iou_50_by_recall() -> None:
    curves = coco_evaluation(LABELS, FOUNDS, 3).curves
    assert curves.shape == (3, 101)
    assert curves[0].tolist() == pytest.approx([1] * 34 + [2 / 3] * 33 + [0] * 34)
    assert np.isnan(curves[2]).all()


def test_average_precision_of_three_images_is_what_a_hand_works_out() -> None:
    box, other = (0, 0, 10, 10), (20, 20, 30, 30)
    truths = [labels((0, box)), labels((0, box), (0, other)), labels()]
    founds = [
        found((0, 0.9, box)),  # right at every IoU
        found((0, 0.6, (20, 20, 30, 26.2)), (0, 0.7, (0, 0, 10, 8.2))),  # IoU 0.62 and 0.82
        found((0, 0.8, box)),  # wrong
    ]
    got = average_precision(truths, founds, 1)
    # by falling score: right, wrong, IoU 0.82, IoU 0.62, of three objects. Recall 1/3 is reached with precision 1 (34
    # of the 101 recalls), 2/3 with 2/3 (33 of them), 1 with 3/4 (34), which also is the highest from 1/3 on.
    both, one, none = (34 + 67 * 3 / 4) / 101, (34 + 33 * 2 / 3) / 101, 34 / 101
    assert got.ap50 == pytest.approx(both, abs=1e-12)
    assert got.ap == pytest.approx((3 * both + 4 * one + 3 * none) / 10, abs=1e-12)


def test_average_precision_without_detections_is_zero_for_classes_with_objects() -> None:
    images = [labels((1, (0, 0, 9, 9))), labels()]
    assert average_precision(images, [found(), found()], 3).ap == 0
    np.testing.assert_array_equal(coco_evaluation(images, [found(), found()], 3).curves.mean(1), [np.nan, 0, np.nan])


@pytest.mark.parametrize("images", [[], [labels()], [labels((0, (0, 0, 9, 9)), ignore=[0])]])
def test_average_precision_without_objects_is_nan(images: list[Labels]) -> None:
    got = average_precision(images, [found((0, 0.5, (0, 0, 9, 9)))] * len(images), 2)
    assert np.isnan(list(vars(got).values())).all()


def test_average_precision_ignored_boxes_are_neither_positive_nor_negative() -> None:
    box, crowd = (0, 0, 10, 10), (50, 50, 90, 90)
    founds = [found((0, 0.5, box), (0, 0.9, (55, 55, 60, 60)), (0, 0.8, (70, 70, 80, 80)))]  # two lie in the crowd
    ignored = average_precision([labels((0, box), (0, crowd), ignore=[1])], founds, 1)
    assert (ignored.ap, ignored.ap50) == (1, 1)  # the crowd is not missed, and what lies in it is not wrong
    assert average_precision([labels((0, box))], founds, 1).ap50 == pytest.approx(1 / 3)
    # a crowd of another class does not excuse them
    assert average_precision([labels((0, box), (1, crowd), ignore=[1])], founds, 2).ap50 == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(12))
def test_tables_are_those_of_faster_coco_eval_bit_for_bit(seed: int) -> None:
    """Random images with crowds, all sizes, equal scores and overlaps, and more than 100 detections of a class."""
    truths, founds = random_images(seed, n=30)
    assert max(np.bincount(one.class_ids, minlength=3).max() for one in founds) > CAPS[-1]
    got, (precision, recall) = coco_evaluation(truths, founds, 4), coco_tables(truths, founds, 4)
    np.testing.assert_array_equal(got.precision, precision)
    np.testing.assert_array_equal(got.recall, recall)
    assert 0 < np.nanmean(precision) < 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_evaluation_of_many_classes_takes_a_fraction_of_the_memory_of_the_plain_evaluator() -> None:
    """130,000 detections of 40 classes. The peak is read from /proc, since that of getrusage starts at the parent's."""
    code = f"""
import re, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from labelled import coco_tables, random_images
from prompt_tune.evaluation.metrics import coco_evaluation
labels, found = random_images(0, n=20, n_cls=40)
coco_evaluation(labels, found, 40), coco_tables(labels, found, 40)  # imports
labels, found = random_images(1, n=100, n_cls=40)
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
{{}}(labels, found, 40)
print(peak() - before)
"""
    ours, plain = (
        int(subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, check=True).stdout)
        for name in ("coco_evaluation", "coco_tables")
    )
    assert ours < 0.4 * plain


def random_detections(seed: int) -> tuple[list[Labels], list[Detections]]:
    """60 images of three classes, each found better or worse, with false alarms and twice found objects."""
    rng = np.random.default_rng(seed)
    truths, founds = [], []
    for _ in range(60):
        classes = rng.integers(3, size=rng.integers(3, 9))
        corner, size = rng.uniform(0, 500, (len(classes), 2)), rng.uniform(20, 140, (len(classes), 2))
        boxes = np.concatenate([corner, corner + size], 1)
        seen = np.flatnonzero(rng.random(len(classes)) < 0.8)
        seen = np.concatenate([seen, seen[rng.random(len(seen)) < 0.2]])
        jitter = rng.normal(0, 0.08, (len(seen), 4)) * np.tile(size[seen], 2)
        lone = rng.uniform(0, 500, (4, 2))
        truths.append(Labels(boxes.astype(np.float32), classes, np.zeros(len(classes), bool)))
        founds.append(
            Detections(
                np.concatenate([boxes[seen] + jitter, np.concatenate([lone, lone + 60], 1)]).astype(np.float32),
                np.concatenate([rng.beta(4, 2, len(seen)), rng.beta(2, 4, 4)]).astype(np.float32),
                np.concatenate([classes[seen], rng.integers(3, size=4)]),
            )
        )
    return truths, founds


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_agree_with_ultralytics_validator_on_the_same_detections(seed: int) -> None:
    truths, founds = random_detections(seed)
    validator = ultralytics.quiet_import("ultralytics.models.yolo.detect").DetectionValidator(args={"plots": False})
    metrics = ultralytics.quiet_import("ultralytics.utils.metrics")
    correct = []
    for t, f in zip(truths, founds, strict=True):
        order = np.argsort(-f.scores, kind="stable")  # the validator gets them so from suppression
        overlaps = metrics.box_iou(torch.from_numpy(t.boxes_xyxy), torch.from_numpy(f.boxes_xyxy[order]))
        labels = (torch.from_numpy(part) for part in (f.class_ids[order], t.classes))
        rows = np.empty((len(order), len(IOU_THRESHOLDS)), bool)
        rows[order] = validator.match_predictions(*labels, overlaps).numpy()
        correct.append(rows)
    scores, classes = (np.concatenate([getattr(f, name) for f in founds]) for name in ("scores", "class_ids"))
    theirs = metrics.ap_per_class(
        np.concatenate(correct), scores, classes, np.concatenate([t.classes for t in truths])
    )[5]
    evaluation = coco_evaluation(truths, founds, 3)
    ours = [evaluation.metrics([k]) for k in range(3)]
    assert 0.3 < theirs.mean() < 0.9
    assert [m.ap for m in ours] == pytest.approx(theirs.mean(1).tolist(), abs=0.005)
    assert [m.ap50 for m in ours] == pytest.approx(theirs[:, 0].tolist(), abs=0.005)
    assert evaluation.metrics(range(3)).ap == pytest.approx(theirs.mean(), abs=0.005)
