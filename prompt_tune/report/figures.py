"""Figures: precision-recall curves, reliability, and the course of a training.

Light: matplotlib is imported when a figure is drawn, through its object interface (no display, no global state).
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_tune.errors import RunError
from prompt_tune.evaluation.calibration import N_BINS, reliability
from prompt_tune.evaluation.matching import Matched
from prompt_tune.evaluation.metrics import RECALLS
from prompt_tune.evaluation.outcomes import ClassOutcome
from prompt_tune.files import saving
from prompt_tune.media.fonts import FONTS
from prompt_tune.privacy import quiet_imports

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

DPI = 110  # resolution of the PNG files
MAX_LINES = 20  # with more classes than this, curves are grey and have no legend
SVG_SIDE = 100  # side of a class's curve in the page, in SVG units
SVG_POINTS = 400  # about how many corners of a class's curve are kept


def import_matplotlib() -> None:
    """Import matplotlib, without what it would write into the home folder of a user who does not use it."""
    with quiet_imports():
        importlib.import_module("matplotlib.figure")


def draw_precision_recall(path: Path, curves: np.ndarray, names: Sequence[str]) -> None:
    """Draw precision over recall at IoU 0.5: a line for each class, and their mean.

    Args:
        path: The .png file to write.
        curves: (n_cls, 101) precision at each of `RECALLS`, as in `Evaluation.curves`.
        names: The n_cls class names.

    Raises:
        RunError: The file cannot be written.
    """
    figure = _new_figure(8, 4.8)
    axes = figure.subplots()
    for name, curve in zip(names, curves, strict=True):
        style: dict[str, Any] = (
            {"label": FONTS.legible(name)} if len(names) <= MAX_LINES else {"color": "grey", "alpha": 0.4}
        )
        axes.plot(RECALLS, curve, linewidth=1, **style)
    mean = curves.mean(0)
    axes.plot(RECALLS, mean, color="black", linewidth=2.5, label=f"mean of {len(names)}, AP50 {mean.mean():.3f}")
    axes.set(title="precision and recall at IoU 0.5", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", prop=_legend_font())
    _save(figure, path)


def draw_reliability(path: Path, before: Sequence[Matched], after: Sequence[Matched] | None = None) -> None:
    """Draw the reliability curve, with the number of detections in each bin of scores below it.

    Args:
        path: The .png file to write.
        before: Detections of each class, not calibrated.
        after: The same detections, calibrated; None if the classes have no calibration.

    Raises:
        RunError: The file cannot be written.
    """
    figure = _new_figure(5.6, 6)
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
    _save(figure, path)


def draw_training(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss over the epochs, and AP and AP50 if they were measured; without an epoch, nothing is written.

    Args:
        path: The .png file to write.
        lines: The metrics of each epoch, from `RunFolder.read_metrics`.

    Raises:
        RunError: The file cannot be written.
    """
    if not lines:
        return
    epochs = [line["epoch"] for line in lines]
    measured = [line for line in lines if "ap" in line]
    figure = _new_figure(9 if measured else 4.5, 3.6)
    panels = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    panels[0].plot(epochs, [line["loss"] for line in lines], color="tab:red")
    panels[0].set(title="training loss", xlabel="epoch", yscale="log")
    if measured:
        for key, label in (("ap50", "AP50"), ("ap", "AP")):
            panels[1].plot([line["epoch"] for line in measured], [line[key] for line in measured], label=label)
        best = max(measured, key=lambda line: line["ap"])
        panels[1].axvline(best["epoch"], color="grey", linestyle=":", label=f"kept: epoch {best['epoch']}")
        panels[1].set(title="validation, learned classes", xlabel="epoch", ylim=(0, 1))
        panels[1].legend()
    for axes in panels:
        axes.grid(alpha=0.3)
    _save(figure, path)


def svg_precision_recall(outcome: ClassOutcome) -> str:
    """The precision-recall curve of one class, for the page.

    Returns:
        Points of an SVG polyline, up to the last hit; recall to the right and precision up, both from 0 to `SVG_SIDE`.
        A long curve is thinned.
    """
    hits = np.flatnonzero(np.diff(outcome.recalls, prepend=0.0))
    corners = np.union1d(hits, hits[hits > 0] - 1)  # precision peaks at a hit, and is lowest just before one
    rows = corners[:: 1 + len(corners) // SVG_POINTS]
    points = [(outcome.recalls[row] * SVG_SIDE, (1 - outcome.precisions[row]) * SVG_SIDE) for row in rows]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _legend_font() -> "FontProperties":
    """Matplotlib's own font, and the fonts that class names need beside it."""
    from matplotlib.font_manager import FontProperties, fontManager

    families = ["DejaVu Sans"]
    for path in FONTS.files():
        fontManager.addfont(path)
        families.append(FontProperties(fname=path).get_name())
    return FontProperties(family=families, size="small")


def _new_figure(width: float, height: float) -> "Figure":
    """An empty figure; width and height in inches."""
    import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all. The same figure gives the same bytes."""
    with saving(path, RunError) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
