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
from prompt_tune.evaluation.confusion import Confusion
from prompt_tune.evaluation.matching import Matched, f1_scores
from prompt_tune.evaluation.metrics import RECALLS
from prompt_tune.evaluation.outcomes import ClassOutcome
from prompt_tune.files import saving
from prompt_tune.media.fonts import FONTS
from prompt_tune.privacy import quiet_imports

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

F1_SCORES = np.linspace(0, 1, 1001)  # where F1 is drawn
DPI = 110  # resolution of the PNG files
MAX_LINES = 20  # with more classes than this, curves are grey and have no legend
MAX_UNLABELLED = 10  # columns of the confusion matrix for classes that the data set does not label
MAX_ROWS, MAX_COLUMNS = 30, 40  # of the confusion matrix: with more, the classes with the most mistakes are drawn
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


def draw_f1(path: Path, matched: Sequence[Matched], names: Sequence[str], thresholds: Sequence[float]) -> None:
    """Draw F1 at IoU 0.5 over the score from which detections count: a line for each class, and their mean.

    A dot shows what each class has at its threshold.

    Args:
        path: The .png file to write.
        matched: The detections of each class.
        names: The n_cls class names.
        thresholds: (n_cls,) in 0..1.

    Raises:
        RunError: The file cannot be written.
    """
    figure = _new_figure(8, 4.8)
    axes = figure.subplots()
    curves = np.array([f1_scores(part, F1_SCORES) for part in matched])  # (n_cls, 1001)
    few = len(names) <= MAX_LINES
    for name, part, curve, threshold in zip(names, matched, curves, thresholds, strict=True):
        style: dict[str, Any] = {"label": FONTS.legible(name)} if few else {"color": "grey", "alpha": 0.4}
        (line,) = axes.plot(F1_SCORES, curve, linewidth=1, **style)
        at = f1_scores(part, np.array([threshold]))
        style = {"color": line.get_color(), "alpha": line.get_alpha(), "markersize": 5 if few else 3, "zorder": 3}
        axes.plot([threshold], at, "o", **style)
    mean = curves.mean(0)
    best = int(mean.argmax())
    label = f"mean of {len(names)}, best {mean[best]:.3f} at {F1_SCORES[best]:.3f}"
    axes.plot(F1_SCORES, mean, color="black", linewidth=2.5, label=label)
    axes.plot([], [], "o", color="grey", label="at the threshold")
    axes.set(title="F1 at IoU 0.5", xlabel="lowest score that counts", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", prop=_legend_font())
    _save(figure, path)


def draw_confusion(path: Path, confusion: Confusion) -> None:
    """Draw which classes were taken for which.

    Blue cells are right, red ones wrong. A cell is the darker, the larger its share of the objects of its row; in the
    last two rows, of the detections of its column. Of many classes, those with the most mistakes are drawn.

    Args:
        path: The .png file to write.
        confusion: The counts.

    Raises:
        RunError: The file cannot be written.
    """
    rows, columns = _most_mistaken(confusion)
    shown_rows, shown_columns = [confusion.rows[r] for r in rows], [confusion.columns[c] for c in columns]
    counts, right = _cells(confusion, rows, columns)
    objects = np.array([row.objects for row in shown_rows], float)[:, None]
    detections = np.nansum(counts, axis=0)
    share = np.full(counts.shape, np.nan)
    share[:-2] = counts[:-2] / np.maximum(objects, 1)
    share[-2:] = counts[-2:] / np.maximum(detections, 1)
    share = np.where(counts > 0, 0.12 + 0.78 * np.minimum(share, 1), share)  # one in a thousand can be seen too
    figure = _new_figure(3.2 + 0.42 * counts.shape[1], 2.6 + 0.36 * counts.shape[0])
    axes = figure.subplots()
    for colours, wanted in (("Blues", right), ("Reds", ~right)):
        axes.imshow(np.where(wanted & (counts > 0), share, np.nan), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (r, c), count in np.ndenumerate(counts):
        if np.isnan(count) and (r < len(rows) or c < len(columns)):
            axes.text(c, r, "-", ha="center", va="center", size=7, color="grey")
        elif count > 0:
            colour = "white" if share[r, c] > 0.6 else "black"
            axes.text(c, r, f"{count:.0f}", ha="center", va="center", size=7, color=colour)
    font = _legend_font()
    axes.set_xticks(
        range(counts.shape[1]),
        [FONTS.legible(column.name) for column in shown_columns] + ["missed"],
        rotation=90,
        fontproperties=font,
    )
    labels = [FONTS.legible(f"{row.name} ({row.objects})") for row in shown_rows]
    axes.set_yticks(range(counts.shape[0]), [*labels, "second box", "nothing labelled"], fontproperties=font)
    axes.set_xticks(np.arange(counts.shape[1] - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(counts.shape[0] - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.axhline(len(rows) - 0.5, color="k", linewidth=1)
    first = 0
    for c in range(1, len(columns) + 1):
        if c == len(columns) or shown_columns[c].vocabulary != shown_columns[c - 1].vocabulary:
            axes.axvline(c - 0.5, color="k", linewidth=1)
            label = FONTS.legible(shown_columns[first].vocabulary)
            axes.text((first + c - 1) / 2, -0.6, label, ha="center", va="bottom", fontproperties=font)
            first = c
    left_out = [
        f"{len(part)} of {len(every)} {what}"
        for part, every, what in ((rows, confusion.rows, "rows"), (columns, confusion.columns, "columns"))
        if len(part) < len(every)
    ]
    note = f"\nthe {' and '.join(left_out)} with the most mistakes; val.json has all" if left_out else ""
    axes.set_title(f"detections above their thresholds{note}", size=10, pad=20)
    axes.set(xlabel="detected class", ylabel="what the detection lies on (objects)")
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


def _most_mistaken(confusion: Confusion) -> tuple[list[int], list[int]]:
    """The rows and columns of the matrix that are drawn, in its order: all, or those with the most mistakes."""
    wrong = np.where(confusion.is_own(), 0, confusion.counts)
    missed = np.array([row.missed or 0 for row in confusion.rows], int)
    rows = _largest(wrong.sum(1) + missed, MAX_ROWS)
    alarms = np.array([column.second_boxes + (column.on_nothing or 0) for column in confusion.columns], int)
    of_rows = confusion.is_own()[rows].any(0)  # the diagonal of the rows that are drawn comes first
    weight = wrong[rows].sum(0) + alarms
    unlabelled = np.array([column.on_nothing is None for column in confusion.columns], bool)
    places = np.flatnonzero(unlabelled)
    dropped = np.setdiff1d(places, places[_largest(weight[places], MAX_UNLABELLED)])
    weight = weight + of_rows * (1 + weight.max(initial=0))
    weight[dropped] = -1
    return rows, _largest(weight, min(MAX_COLUMNS, len(weight) - len(dropped)))


def _largest(values: np.ndarray, most: int) -> list[int]:
    """The places of the largest values, in rising order."""
    chosen: list[int] = sorted(np.argsort(-values, kind="stable")[:most].tolist())
    return chosen


def _cells(confusion: Confusion, rows: Sequence[int], columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn: (r + 2, c + 1) numbers, nan where nothing is known, and whether each cell is right."""
    counts = np.full((len(rows) + 2, len(columns) + 1), np.nan)
    right = np.zeros(counts.shape, bool)
    counts[:-2, :-1] = confusion.counts[np.ix_(rows, columns)]
    right[:-2, :-1] = confusion.is_own()[np.ix_(rows, columns)]
    unknown = np.nan
    counts[:-2, -1] = [unknown if (missed := confusion.rows[r].missed) is None else missed for r in rows]
    for c, column in enumerate(confusion.columns[k] for k in columns):
        counts[-2:, c] = column.second_boxes, unknown if column.on_nothing is None else column.on_nothing
    return counts, right


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
