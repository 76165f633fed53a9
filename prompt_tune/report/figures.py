"""Plots: learning curves, precision and recall, reliability. Light: matplotlib is imported where it is used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from prompt_tune.evaluation.calibration import N_BINS, reliability
from prompt_tune.evaluation.matching import Matched
from prompt_tune.evaluation.metrics import RECALLS
from prompt_tune.evaluation.outcomes import ClassOutcome
from prompt_tune.files import replacing
from prompt_tune.report.pictures import Picture, data_uri

if TYPE_CHECKING:
    pass

MAX_LINES = 20  # classes that a picture of curves tells apart


CURVE_POINTS = 400  # of a precision-recall curve in the page
CURVE_SIDE = 100  # units of its drawing


def draw_curves(path: Path, curves: np.ndarray, names: Sequence[str]) -> None:
    """Precision by recall at IoU 0.5 as a picture: a line for each class, and their mean.

    Args: path: a .png file. curves: (n_cls, 101), as `Evaluation` has them. names: of the classes.
    """
    from matplotlib.figure import Figure  # the object interface: no display, no global state

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    told_apart = len(names) <= MAX_LINES
    for name, curve in zip(names, curves, strict=True):
        style: dict[str, Any] = {"label": name} if told_apart else {"color": "grey", "alpha": 0.4}
        axes.plot(RECALLS, curve, linewidth=1, **style)
    mean = curves.mean(0)
    axes.plot(RECALLS, mean, color="black", linewidth=2.5, label=f"mean of {len(names)}, AP50 {mean.mean():.3f}")
    axes.set(title="precision and recall at IoU 0.5", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def draw_reliability(path: Path, before: Sequence[Matched], after: Sequence[Matched] | None = None) -> None:
    """The reliability curve as a picture, and the number of detections a bin below it.

    Args: path: a .png file. before, after: uncalibrated detections and, where there is a calibration, calibrated ones.
    """
    from matplotlib.figure import Figure  # the object interface: no display, no global state

    figure = Figure(figsize=(5.6, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="grey", linestyle=":", label="score = precision")
    parts = [("as learned", "tab:blue", before)] + ([] if after is None else [("calibrated", "tab:orange", after)])
    centres, width = (np.arange(N_BINS) + 0.5) / N_BINS, 0.8 / N_BINS / len(parts)
    most = 1
    for k, (label, colour, part) in enumerate(parts):
        score, precision, counts = reliability(part)
        most = max(most, int(counts.max()))
        known = counts > 0
        top.plot(score[known], precision[known], color=colour, marker="o", label=label)
        bottom.bar(centres + (k - (len(parts) - 1) / 2) * width, counts, width, color=colour)
    top.set(title="reliability on the validation images", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    top.legend()
    bottom.set(xlabel="score", ylabel="detections", yscale="symlog", ylim=(0, 2 * most))
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def figure(path: Path, alt: str, caption: str) -> Picture:
    """A picture file of a run folder, whole."""
    with Image.open(path) as image:
        size = image.size
    return Picture(data_uri(path.read_bytes(), "image/png"), alt, caption, *size)


def curve(outcome: ClassOutcome) -> str:
    """The precision-recall curve of a class, up to its last hit as SVG points; thinned where it is long."""
    hits = np.flatnonzero(np.diff(outcome.recalls, prepend=0.0))
    corners = np.union1d(hits, hits[hits > 0] - 1)  # at each hit, and just before, where the precision is lowest
    rows = corners[:: 1 + len(corners) // CURVE_POINTS]
    places = [(outcome.recalls[row] * CURVE_SIDE, (1 - outcome.precisions[row]) * CURVE_SIDE) for row in rows]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def draw_training_curves(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Loss, AP and AP50 by epoch as a picture; none where no epoch is on record."""
    from matplotlib.figure import Figure  # the object interface: no display, no global state

    if not lines:
        return
    epochs = [line["epoch"] for line in lines]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [line["loss"] for line in lines], color="tab:red")
    left.set(title="training loss", xlabel="epoch", yscale="log")
    for key, label in (("ap50", "AP50"), ("ap", "AP")):
        right.plot(epochs, [line[key] for line in lines], label=label)
    best = max(lines, key=lambda line: line["ap"])
    right.axvline(best["epoch"], color="grey", linestyle=":", label=f"kept: epoch {best['epoch']}")
    right.set(title="validation, learned classes", xlabel="epoch", ylim=(0, 1))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
