"""Thresholds and NMS limits: the operating points that the rules mean, worked out by hand and by brute force."""

import logging
from pathlib import Path

import numpy as np
import pytest
from labelled import found, labels
from vocabularies import learned

from prompt_tune.evaluation.calibration import apply_calibration
from prompt_tune.evaluation.matching import Matched
from prompt_tune.evaluation.thresholds import Thresholds, choose_nms_iou, choose_thresholds, hardly_learned
from prompt_tune.vocabulary.vocabulary import Vocabulary


def matched(*rows: tuple[float, bool], n_objects: int) -> Matched:
    """Detections of a class by falling score: (score, right)."""
    scores = np.array([score for score, _ in rows], np.float32)
    return Matched(scores, np.array([right for _, right in rows], bool), n_objects)


FIVE = matched((0.9, True), (0.8, False), (0.7, True), (0.6, False), (0.3, False), n_objects=2)
TIE = matched((0.9, True), (0.7, True), (0.7, False), (0.5, False), n_objects=2)
ALL_RIGHT = matched((0.9, True), (0.8, True), n_objects=2)


@pytest.mark.parametrize(
    ("part", "precision", "value", "reached", "recall"),
    [
        (FIVE, 0, 0.65, 2 / 3, 1),  # F1 by score: 2/3, 1/2, 4/5, 2/3, 4/7
        (FIVE, 0.95, 0.85, 1, 1 / 2),
        (FIVE, 0.6, 0.65, 2 / 3, 1),
        (FIVE, 0.5, 0.45, 1 / 2, 1),  # the lowest score that will do
        (TIE, 0, 0.6, 2 / 3, 1),  # equal scores count together
        (TIE, 0.9, 0.8, 1, 1 / 2),
        (ALL_RIGHT, 0, 0.4005, 1, 1),  # nothing lies below: halfway to the metric's own cut, 0.001
    ],
)
def test_threshold_is_halfway_below_the_operating_point(
    part: Matched, precision: float, value: float, reached: float, recall: float
) -> None:
    chosen = choose_thresholds(["a"], [part], precision=precision)
    assert chosen.values.dtype == np.float32
    assert chosen.values.tolist() == pytest.approx([value])
    assert (chosen.precision[0], chosen.recall[0]) == pytest.approx((reached, recall))
    assert part.above(float(chosen.values[0])) == pytest.approx((reached, recall))


def random_class(seed: int) -> Matched:
    """Detections that are the likelier right the higher their score, some of equal score."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.random(200).round(2 + seed % 2).astype(np.float32))[::-1]
    correct = rng.random(200) < scores**2
    return Matched(scores, correct, int(correct.sum()) + 10)


@pytest.mark.parametrize("seed", range(6))
def test_no_other_threshold_has_a_higher_f1(seed: int) -> None:
    part = random_class(seed)

    def f1(threshold: float) -> float:
        precision, recall = part.above(threshold)
        return 2 * precision * recall / (precision + recall) if recall else 0.0

    chosen = choose_thresholds(["a"], [part]).values[0]
    assert f1(float(chosen)) == pytest.approx(max(f1(float(t)) for t in np.linspace(0, 1, 5001)))


@pytest.mark.parametrize("seed", range(6))
def test_no_lower_threshold_has_the_precision(seed: int) -> None:
    part = random_class(seed)
    chosen = float(choose_thresholds(["a"], [part], precision=0.8).values[0])
    assert part.above(chosen)[0] >= 0.8
    recall = part.above(chosen)[1]
    for threshold in np.linspace(0, chosen, 1000):
        precision, more = part.above(float(threshold))
        assert precision < 0.8 or more == recall


def test_neighbouring_floats_are_told_apart() -> None:
    upper = np.float32(0.5)
    lower = np.nextafter(upper, np.float32(0))
    part = Matched(np.array([upper, lower], np.float32), np.array([True, False]), 1)
    chosen = choose_thresholds(["a"], [part])
    assert part.above(float(chosen.values[0])) == (1, 1)


@pytest.mark.parametrize("row", [(1.0, -8.0), (4.0, -6.0), (6.0, 3.0), (0.3, -3.0), (1.0, 0.0)])
def test_fallback_below_the_lowest_score_is_on_the_calibrated_scale(row: tuple[float, float]) -> None:
    """All detections are right, down to just above the metric's cut; what is expected must come true."""
    calibration = np.array([row], np.float32)
    raw = Matched(np.array([0.9, 0.5, 0.0011], np.float32), np.array([True] * 3), 3)
    (part,) = apply_calibration([raw], calibration)
    chosen = choose_thresholds(["a"], [part], calibration=calibration)
    assert (chosen.precision[0], chosen.recall[0]) == (1, 1)
    assert part.above(float(chosen.values[0])) == (1, 1)


def test_fallback_of_few_high_scores_is_halfway_to_the_calibrated_cut() -> None:
    calibration = np.array([[1.0, -4.0]], np.float32)
    (part,) = apply_calibration([ALL_RIGHT], calibration)
    cut = 1 / (1 + np.exp(-(np.log(0.001 / 0.999) - 4)))  # 0.001, calibrated
    chosen = choose_thresholds(["a"], [part], calibration=calibration)
    assert chosen.values[0] == pytest.approx((part.scores[-1] + cut) / 2)


def test_class_that_was_never_found_keeps_the_default_and_is_named_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = [matched(n_objects=0), FIVE, matched((0.6, False), n_objects=3)]
    with caplog.at_level(logging.INFO):
        chosen = choose_thresholds(["gone", "there", "missed"], parts)
    assert chosen.values.tolist() == pytest.approx([0.25, 0.65, 0.25])
    assert np.isnan(chosen.precision).tolist() == [True, False, True]
    assert len(caplog.records) == 1 and caplog.records[0].getMessage() == (
        "Never found in the validation images, so the threshold stays at 0.25: gone, missed"
    )
    assert chosen.as_json(["gone", "there", "missed"]) == {
        "rule": "best F1 at IoU 0.5",
        "expected": {"there": {"precision": 0.6667, "recall": 1.0}},
    }


def test_precision_out_of_reach_takes_the_highest_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    hard = matched((0.9, False), (0.8, True), (0.7, True), (0.6, False), n_objects=4)
    chosen = choose_thresholds(["easy", "hard"], [ALL_RIGHT, hard], precision=0.95)
    assert (chosen.values[1], chosen.precision[1]) == pytest.approx((0.65, 2 / 3))
    assert [record.getMessage() for record in caplog.records] == [
        "Precision 0.95 is out of reach; the highest was taken instead: hard"
    ]
    assert chosen.rule == "lowest score with precision 0.95 at IoU 0.5"


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (matched((0.9, True), (0.8, False), n_objects=1), None),
        (matched((0.4, False), (0.3, True), (0.1, False), n_objects=1), None),  # as often right as wrong
        (matched((0.4, False), (0.3, False), (0.2, True), n_objects=1), "threshold 0.101, precision 0.33, recall 1.00"),
        (matched((0.04, True), (0.02, False), n_objects=2), "threshold 0.030, precision 1.00, recall 0.50"),
    ],
)
def test_class_that_is_hardly_learned_is_named_with_a_cure(
    part: Matched, named: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    choose_thresholds(["good", "odd"], [ALL_RIGHT, part])
    assert [record.getMessage() for record in caplog.records] == (
        []
        if named is None
        else [
            f"Hardly learned, so expect many false alarms: odd ({named}). The threshold should be at least 0.05, and "
            "most detections above it right. Give these classes more images or other names, or fit with "
            "`--precision 0.9`."
        ]
    )


@pytest.mark.parametrize(
    ("threshold", "precision", "wanted"),
    [(0.25, None, False), (0.01, None, True), (0.25, 0.4, True), (0.05, 0.5, False), (0.25, np.nan, False)],
)
def test_hardly_learned_is_a_low_threshold_or_mostly_wrong(
    threshold: float, precision: float | None, wanted: bool
) -> None:
    assert hardly_learned(threshold, precision) is wanted


def test_thresholds_go_into_a_vocabulary_file(tmp_path: Path) -> None:
    chosen: Thresholds = choose_thresholds(["car", "van"], [FIVE, TIE])
    vocabulary = learned(
        "car", "van", thresholds=chosen.values, provenance={"thresholds": chosen.as_json(["car", "van"])}
    )
    vocabulary.save(tmp_path / "a.vocab.safetensors")
    loaded = Vocabulary.load(tmp_path / "a.vocab.safetensors")
    assert np.array_equal(loaded.thresholds, chosen.values)
    assert loaded.provenance["thresholds"]["expected"]["van"] == {"precision": 0.6667, "recall": 1.0}


def test_nms_iou_is_the_one_with_the_highest_ap50() -> None:
    """Two boxes that overlap by 0.65, on one object or on two."""
    box, near, other = (0, 0, 100, 100), (0, 0, 100, 65), (300, 300, 350, 350)
    twice = found((0, 0.9, box), (0, 0.8, near), (0, 0.7, other))
    assert choose_nms_iou([labels((0, box), (0, other))], [twice], 1) == 0.6
    assert choose_nms_iou([labels((0, box), (0, near))], [twice], 1) == 0.7
    assert choose_nms_iou([labels((0, box))], [found((0, 0.9, box))], 1) == 0.7  # a tie: the highest
    assert choose_nms_iou([labels()], [found()], 1) == 0.7
