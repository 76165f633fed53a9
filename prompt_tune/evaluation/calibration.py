"""Calibration: a scale and a shift for each class's logit, so that a score says how often such a detection is right.

Platt scaling, fitted as by Lin, Lin and Weng (Machine Learning 68, 2007): smoothed targets, Newton with a line search.
"""

import logging
from collections.abc import Sequence

import numpy as np

from prompt_tune.contract import IDENTITY
from prompt_tune.evaluation.matching import Matched
from prompt_tune.runtime.packing import calibrated, logit, sigmoid

LEAST_OF_EACH = 5  # right, and wrong, detections of a class; a slope cannot be fitted to fewer
LARGEST_LOGIT = 20.0  # used for a float32 score of 1, whose logit is infinite
NEWTON_STEPS, GRADIENT_TOLERANCE = 100, 1e-9
RIDGE = 1e-12  # keeps the Hessian regular, as in the paper
N_BINS = 10  # bins of the reliability curve
logger = logging.getLogger(__name__)


def fit_calibration(names: Sequence[str], matched: Sequence[Matched]) -> np.ndarray:
    """Fit the scale and shift of each class's logit.

    Args:
        names: The n_cls class names.
        matched: The uncalibrated detections of each class in the validation images.

    Returns:
        (n_cls, 2) float32. Scales are above 0, so the order of detections stays, and AP with it. A class keeps scale 1
        and shift 0 if it has too few right or wrong detections, or if its scores do not rise with being right. One log
        line names these classes.
    """
    rows = [_fit_platt(part) for part in matched]
    unset = [name for name, row in zip(names, rows, strict=True) if row is None]
    if unset:
        logger.warning("Too little validation data to calibrate the scores of: %s", ", ".join(unset))
    return np.array([IDENTITY if row is None else row for row in rows], np.float32)  # (n_cls, 2)


def apply_calibration(matched: Sequence[Matched], calibration: np.ndarray) -> list[Matched]:
    """The same detections with calibrated scores, computed as by the runtime.

    Args:
        matched: The detections of each class.
        calibration: (n_cls, 2) float32, scale and shift of the logit.
    """
    return [
        Matched(calibrated(part.scores, np.broadcast_to(row, (len(part.scores), 2))), part.correct, part.n_objects)
        for part, row in zip(matched, calibration, strict=True)
    ]


def reliability(matched: Sequence[Matched]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often detections are right, by score, over all classes.

    Args:
        matched: The detections of each class.

    Returns:
        Three arrays of shape (10,), for scores from 0 to 0.1, from 0.1 to 0.2, and so on: mean score, precision at IoU
        0.5 and number of detections. Mean score and precision are nan where there are no detections.
    """
    scores = np.concatenate([np.zeros(0, np.float32), *(part.scores for part in matched)]).astype(np.float64)  # (n,)
    correct = np.concatenate([np.zeros(0, bool), *(part.correct for part in matched)])  # (n,)
    bins = np.minimum((scores * N_BINS).astype(np.int64), N_BINS - 1)
    counts = np.bincount(bins, minlength=N_BINS)
    sums = (np.bincount(bins, weights=values, minlength=N_BINS) for values in (scores, correct))
    score, precision = (np.divide(s, counts, out=np.full(N_BINS, np.nan), where=counts > 0) for s in sums)
    return score, precision, counts


def _fit_platt(matched: Matched) -> np.ndarray | None:
    """(2,) float64: the scale and shift with the highest likelihood; None if the fit cannot be trusted."""
    n_right = int(matched.correct.sum())
    n_wrong = len(matched.correct) - n_right
    if min(n_right, n_wrong) < LEAST_OF_EACH:
        return None
    # targets slightly inside 0 and 1 keep the slope finite if a score separates right from wrong
    targets = np.where(matched.correct, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))  # (n,)
    logits = np.clip(logit(matched.scores), -LARGEST_LOGIT, LARGEST_LOGIT)
    design = np.stack((logits, np.ones_like(logits)), axis=1)  # (n, 2)

    def loss(row: np.ndarray) -> float:
        outputs = design @ row
        return float((np.logaddexp(0, outputs) - targets * outputs).mean())

    row = np.array([0.0, np.log((n_right + 1) / (n_wrong + 1))])
    for _ in range(NEWTON_STEPS):
        expected = sigmoid(design @ row)
        gradient = design.T @ (expected - targets) / len(logits)
        if np.abs(gradient).max() < GRADIENT_TOLERANCE:
            break
        hessian = (design.T * (expected * (1 - expected))) @ design / len(logits) + RIDGE * np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while loss(row - size * step) > loss(row) and size > 1e-10:
            size /= 2
        row = row - size * step
    return row if np.float32(row[0]) > 0 and np.isfinite(row).all() else None
