"""COCO's metrics: against numbers worked out by hand, and against ultralytics' on the same detections."""

import numpy as np
import pytest
import torch

from prompt_tune.evaluation.matching import match_classes
from prompt_tune.evaluation.metrics import IOU_THRESHOLDS, Found, Metrics, Truth, coco_evaluation
from prompt_tune.models import ultralytics

Row = tuple[int, tuple[float, float, float, float]]


def truth(*rows: Row, ignore: tuple[int, ...] = ()) -> Truth:
    """Labels of an image: (class, box), and which of them are ignored."""
    boxes = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    return Truth(boxes, np.array([k for k, _ in rows], np.int64), np.isin(np.arange(len(rows)), ignore))


def found(*rows: tuple[int, float, tuple[float, float, float, float]]) -> Found:
    """Detections of an image: (class, score, box)."""
    boxes = np.array([box for _, _, box in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Found(boxes, scores, np.array([k for k, _, _ in rows], np.int64))


# Class 0 has a small, a large and a medium object. The small one is found exactly; on the large one's image a box
# beside it scores higher than the one on it, whose IoU is 0.64; the medium one is missed. Class 1 has an object, which
# is found, and a crowd, in which the detection with the highest score lies. Class 2 has none.
SMALL, LARGE, MEDIUM = (10, 10, 30, 30), (0, 0, 100, 100), (50, 50, 100, 100)
TRUTHS = [truth((0, SMALL), (1, LARGE)), truth((0, LARGE), (1, (200, 0, 300, 100)), ignore=(1,)), truth((0, MEDIUM))]
FOUNDS = [
    found((0, 0.9, SMALL), (1, 0.6, LARGE)),
    found((0, 0.7, (0, 0, 64, 100)), (0, 0.8, (100, 100, 200, 200)), (1, 0.95, (210, 10, 260, 60)), (2, 0.5, LARGE)),
    found(),
]


def test_metrics_of_three_images_are_those_worked_out_by_hand() -> None:
    evaluation = coco_evaluation(TRUTHS, FOUNDS, 3)
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
    evaluation = coco_evaluation(TRUTHS, FOUNDS, 3)
    assert np.isnan(list(vars(evaluation.metrics([2])).values())).all()
    assert evaluation.metrics([0, 1, 2]) == evaluation.metrics([0, 1])
    assert np.isnan(evaluation.metrics([]).ap)


@pytest.mark.parametrize(
    ("truths", "founds", "ap"),
    [
        ([truth()], [found()], np.nan),
        ([truth((0, SMALL))], [found()], 0),
        ([truth()], [found((0, 0.5, SMALL))], np.nan),
    ],
)
def test_metrics_of_nothing_found_or_nothing_there(truths: list[Truth], founds: list[Found], ap: float) -> None:
    metrics = coco_evaluation(truths, founds, 1).metrics([0])
    assert metrics.ap == metrics.ar_100 == ap or np.isnan([metrics.ap, metrics.ar_100, ap]).all()


def test_curves_are_precision_at_iou_50_by_recall() -> None:
    curves = coco_evaluation(TRUTHS, FOUNDS, 3).curves
    assert curves.shape == (3, 101)
    assert curves[0].tolist() == pytest.approx([1] * 34 + [2 / 3] * 33 + [0] * 34)
    assert np.isnan(curves[2]).all()


def test_matched_classes_say_which_detections_are_right() -> None:
    first, second, third = match_classes(TRUTHS, FOUNDS, 3)
    assert first.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert (first.correct.tolist(), first.n_objects) == ([True, False, True], 3)
    assert (second.correct.tolist(), second.n_objects) == ([True], 1)  # the crowd and what lies in it do not count
    assert (third.correct.tolist(), third.n_objects) == ([False], 0)


def test_precision_and_recall_above_a_threshold() -> None:
    first, _, third = match_classes(TRUTHS, FOUNDS, 3)
    assert first.above(0.75) == (1 / 2, 1 / 3)
    assert first.above(0.0) == pytest.approx((2 / 3, 2 / 3))
    assert np.isnan(first.above(0.95)[0]) and first.above(0.95)[1] == 0
    assert first.above(float(np.float32(0.9)))[1] == 0  # above, not at
    assert third.above(0.2)[0] == 0 and np.isnan(third.above(0.2)[1])


def random_detections(seed: int) -> tuple[list[Truth], list[Found]]:
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
        truths.append(Truth(boxes.astype(np.float32), classes, np.zeros(len(classes), bool)))
        founds.append(
            Found(
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
        labels = (torch.from_numpy(part) for part in (f.classes[order], t.classes))
        rows = np.empty((len(order), len(IOU_THRESHOLDS)), bool)
        rows[order] = validator.match_predictions(*labels, overlaps).numpy()
        correct.append(rows)
    scores, classes = (np.concatenate([getattr(f, name) for f in founds]) for name in ("scores", "classes"))
    theirs = metrics.ap_per_class(
        np.concatenate(correct), scores, classes, np.concatenate([t.classes for t in truths])
    )[5]
    evaluation = coco_evaluation(truths, founds, 3)
    ours = [evaluation.metrics([k]) for k in range(3)]
    assert 0.3 < theirs.mean() < 0.9
    assert [m.ap for m in ours] == pytest.approx(theirs.mean(1).tolist(), abs=0.005)
    assert [m.ap50 for m in ours] == pytest.approx(theirs[:, 0].tolist(), abs=0.005)
    assert evaluation.metrics(range(3)).ap == pytest.approx(theirs.mean(), abs=0.005)
