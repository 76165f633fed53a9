"""Calibration: what it fits, where it refuses to, and that the order of detections stays."""

import logging

import numpy as np
import pytest

from prompt_tune.evaluation.calibration import apply_calibration, fit_calibration, reliability
from prompt_tune.evaluation.matching import Matched
from prompt_tune.runtime.packing import logit, sigmoid

IDENTITY = [1.0, 0.0]


def drawn(scale: float, shift: float, *, n: int = 20_000, seed: int = 0) -> Matched:
    """Detections that are right as often as the calibrated score says."""
    rng = np.random.default_rng(seed)
    scores = np.sort(sigmoid(rng.normal(-1, 1.5, n)).astype(np.float32))[::-1]
    correct = rng.random(n) < sigmoid(scale * logit(scores) + shift)
    return Matched(scores, correct, int(correct.sum()))


def split(n_right: int, n_wrong: int, right: float, wrong: float) -> Matched:
    """Right detections around one score, wrong ones around another."""
    scores = np.concatenate(
        [np.linspace(right - 0.02, right + 0.02, n_right), np.linspace(wrong - 0.02, wrong, n_wrong)]
    )
    order = np.argsort(-scores)
    return Matched(scores[order].astype(np.float32), (np.arange(len(scores)) < n_right)[order], n_right)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.7, 0.6), (0.4, -1.0)])
def test_fit_finds_the_scale_and_shift_that_the_data_was_drawn_with(scale: float, shift: float) -> None:
    fitted = fit_calibration(["a"], [drawn(scale, shift)])
    assert fitted.dtype == np.float32 and fitted.shape == (1, 2)
    assert fitted[0].tolist() == pytest.approx([scale, shift], abs=0.08)


def test_fit_is_where_the_likelihood_is_highest() -> None:
    part = drawn(1.3, -0.4, n=300)
    row = fit_calibration(["a"], [part])[0].astype(np.float64)
    n_right, n_wrong = part.correct.sum(), (~part.correct).sum()
    targets = np.where(part.correct, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))  # Platt's

    def loss(scale: float, shift: float) -> float:
        outputs = scale * logit(part.scores) + shift
        return float((np.logaddexp(0, outputs) - targets * outputs).sum())

    around = [loss(row[0] + a, row[1] + b) for a in (-0.01, 0, 0.01) for b in (-0.01, 0, 0.01) if a or b]
    assert min(around) > loss(*row)


def test_fit_of_scores_that_separate_stays_finite_and_rises() -> None:
    row = fit_calibration(["a"], [split(40, 60, 0.6, 0.1)])[0]
    assert np.isfinite(row).all() and 0 < row[0] < 100


@pytest.mark.parametrize(
    "part",
    [
        Matched(np.zeros(0, np.float32), np.zeros(0, bool), 0),
        split(4, 60, 0.6, 0.1),
        split(60, 4, 0.6, 0.1),
        split(40, 60, 0.1, 0.6),  # the wrong ones score higher: a scale above 0 would not help
    ],
)
def test_class_that_cannot_be_calibrated_stays_and_is_named_in_one_line(
    part: Matched, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fitted = fit_calibration(["odd", "usual"], [part, drawn(1.7, 0.6, n=500)])
    assert fitted[0].tolist() == IDENTITY and fitted[1].tolist() != IDENTITY
    assert [record.getMessage().rsplit(": ", 1)[1] for record in caplog.records] == ["odd"]
    unchanged, changed = apply_calibration([part, drawn(1.7, 0.6, n=500)], fitted)
    assert np.array_equal(unchanged.scores, part.scores)
    assert not np.array_equal(changed.scores, drawn(1.7, 0.6, n=500).scores)


@pytest.mark.parametrize("part", [drawn(2.5, 0.5, n=2000), drawn(0.3, -2, n=2000), split(40, 60, 0.6, 0.1)])
def test_calibrated_scores_are_float32_in_the_same_order(part: Matched) -> None:
    scores = np.unique(part.scores)[::-1]
    part = Matched(scores, np.resize(part.correct, len(scores)), part.n_objects)
    fitted = fit_calibration(["a"], [split(40, 60, 0.6, 0.1)])
    after = apply_calibration([part], fitted)[0]
    assert after.scores.dtype == np.float32
    assert (np.diff(after.scores) <= 0).all() and (np.diff(after.scores) < 0).mean() > 0.99
    assert np.array_equal(after.correct, part.correct)


def test_reliability_counts_by_score() -> None:
    parts = [
        Matched(np.array([1.0, 0.95, 0.15], np.float32), np.array([True, False, False]), 5),
        Matched(np.array([0.11], np.float32), np.array([True]), 5),
    ]
    score, precision, counts = reliability(parts)
    assert counts.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (score[[1, 9]].tolist(), precision[[1, 9]].tolist()) == (pytest.approx([0.13, 0.975]), [0.5, 0.5])
    assert np.isnan(score[0]) and np.isnan(precision[0])
    assert reliability([])[2].sum() == 0


def test_calibration_brings_the_reliability_curve_to_the_diagonal() -> None:
    part = drawn(2.2, 1.5)
    after = apply_calibration([part], fit_calibration(["a"], [part]))
    (score, precision, _), (wanted, got, _) = reliability([part]), reliability(after)
    assert np.abs(precision - score).max() > 0.2
    assert np.abs(got - wanted).max() < 0.06
