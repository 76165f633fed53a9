"""The figures of runs and measurements: same input, same bytes; written whole or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from disks import full_disk
from PIL import Image

from prompt_tune.errors import RunError
from prompt_tune.evaluation.calibration import apply_calibration
from prompt_tune.evaluation.confusion import Column, Confusion, Row
from prompt_tune.evaluation.matching import Matched
from prompt_tune.evaluation.outcomes import ClassOutcome
from prompt_tune.media.fonts import FONTS
from prompt_tune.report.figures import (
    MAX_COLUMNS,
    MAX_LINES,
    MAX_ROWS,
    MAX_UNLABELLED,
    SVG_POINTS,
    SVG_SIDE,
    _legend_font,
    _most_mistaken,
    draw_confusion,
    draw_f1,
    draw_precision_recall,
    draw_reliability,
    draw_training,
    svg_precision_recall,
)

CURVES = np.linspace(1, 0.2, 101)[None]  # (1, 101)
LINES = [{"epoch": epoch, "loss": 1.0 / epoch, "ap": 0.1 * epoch, "ap50": 0.2 * epoch} for epoch in (1, 2)]
EMPTY = Matched(np.zeros(0, np.float32), np.zeros(0, bool), 0)


def drawn(n: int) -> Matched:
    """Detections by falling score, every other one of them right."""
    return Matched(np.linspace(0.9, 0.1, n, dtype=np.float32), np.arange(n) % 2 == 0, n)


def confusion(n: int, others: int = 0) -> Confusion:
    """n learned classes, class k missed k times and once taken for the next; further original ones on the first."""
    rows = tuple(Row(f"thing {k}", 100, k) for k in range(n))
    columns = [Column("learned", f"thing {k}", 1, k) for k in range(n)]
    columns += [Column("original", f"other {k}", 0, None) for k in range(others)]
    counts = np.hstack([90 * np.eye(n, dtype=int) + np.eye(n, k=1, dtype=int), np.ones((n, others), int)])
    return Confusion(rows, tuple(columns), counts)


def outcome(precisions: np.ndarray, recalls: np.ndarray) -> ClassOutcome:
    """An outcome with a curve; its counts do not enter the drawing."""
    return ClassOutcome(2, 2, 0, 4, (), (), (), precisions, recalls)


def test_precision_recall_of_names_that_no_font_draws_shows_their_codes(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for number in range(2):
        draw_precision_recall(tmp_path / f"{number}.png", CURVES, [chr(0x50001 + number)])
    assert not [str(warning.message) for warning in recwarn if "missing from font" in str(warning.message)]
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()


def test_precision_recall_in_another_script_uses_the_fonts_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    monkeypatch.setattr(FONTS, "files", lambda: [str(fonts / "DejaVuSerif.ttf")])
    assert _legend_font().get_family() == ["DejaVu Sans", "DejaVu Serif"]


def test_precision_recall_names_few_classes_and_not_many(tmp_path: Path) -> None:
    coloured = {}
    for n_cls in (1, MAX_LINES, MAX_LINES + 1):
        path = tmp_path / f"{n_cls}.png"
        draw_precision_recall(path, CURVES.repeat(n_cls, 0), [f"thing {k}" for k in range(n_cls)])
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 500
            pixels = np.asarray(image.convert("RGB")).astype(int)
        coloured[n_cls] = int((np.ptp(pixels, axis=2) > 50).sum())
    assert coloured[MAX_LINES] > coloured[1] > 0  # a line in each class's colour beside its name
    assert coloured[MAX_LINES + 1] == 0


def test_f1_has_a_dot_at_each_threshold(tmp_path: Path) -> None:
    for name, threshold in (("one", 0.2), ("two", 0.2), ("other", 0.7)):
        draw_f1(tmp_path / f"{name}.png", [drawn(50)] * 2, ["thing", "other"], [threshold, 0.5])
    draw_f1(tmp_path / "many.png", [drawn(50)] * (MAX_LINES + 1), ["thing"] * (MAX_LINES + 1), [0.5] * (MAX_LINES + 1))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    with Image.open(tmp_path / "many.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert int((np.ptp(pixels, axis=2) > 50).sum()) == 0  # grey lines and dots


def test_confusion_is_blue_where_right_and_red_where_wrong(tmp_path: Path) -> None:
    right = Confusion((Row("thing", 9, 0),), (Column("learned", "thing", 0, 0),), np.array([[9]]))
    wrong = Confusion((Row("thing", 9, None),), (Column("learned", "else", 0, None),), np.array([[9]]))
    for name, part, channel in (("right", right, 2), ("wrong", wrong, 0)):
        draw_confusion(tmp_path / f"{name}.png", part)
        with Image.open(tmp_path / f"{name}.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        coloured = pixels[np.ptp(pixels, axis=2) > 80]
        assert len(coloured) > 500 and (coloured.argmax(1) == channel).mean() > 0.95
    again = tmp_path / "again.png"
    draw_confusion(again, right)
    assert again.read_bytes() == (tmp_path / "right.png").read_bytes()


def test_confusion_of_many_classes_draws_those_with_the_most_mistakes(tmp_path: Path) -> None:
    sizes = {}
    for n in (2, MAX_ROWS, 3 * MAX_ROWS):
        draw_confusion(tmp_path / f"{n}.png", confusion(n, others=20))
        with Image.open(tmp_path / f"{n}.png") as image:
            sizes[n] = image.size
    assert sizes[2][0] < sizes[MAX_ROWS][0] and abs(sizes[3 * MAX_ROWS][0] - sizes[MAX_ROWS][0]) < 50
    assert _most_mistaken(confusion(3, others=1)) == ([0, 1, 2], [0, 1, 2, 3])
    assert len(_most_mistaken(confusion(3, others=20))[1]) == 3 + MAX_UNLABELLED
    n = 3 * MAX_ROWS
    rows, columns = _most_mistaken(confusion(n, others=20))
    assert rows == list(range(n - MAX_ROWS, n))
    assert columns == list(range(n - MAX_COLUMNS, n))  # each row's own class, then those with the most false alarms


@pytest.mark.parametrize("part", [drawn(500), EMPTY], ids=["500 detections", "none"])
def test_reliability_of_the_same_detections_has_the_same_bytes(part: Matched, tmp_path: Path) -> None:
    after = apply_calibration([part], np.array([[2, 1]], np.float32))
    for name in ("one.png", "two.png"):
        draw_reliability(tmp_path / name, [part], after)
    draw_reliability(tmp_path / "alone.png", [part])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "alone.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.format == "PNG"


def test_training_is_drawn_when_there_are_epochs(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_training(path, [])
    assert not path.exists()
    draw_training(path, LINES)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    draw_training(path, LINES)
    assert path.read_bytes() == first
    draw_training(path, LINES[:1])
    assert path.read_bytes() != first


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_precision_recall(path, CURVES, ["thing"]),
        lambda path: draw_reliability(path, [EMPTY]),
        lambda path: draw_training(path, LINES),
        lambda path: draw_f1(path, [drawn(5)], ["thing"], [0.5]),
        lambda path: draw_confusion(path, confusion(2)),
    ],
    ids=["precision and recall", "reliability", "training", "F1", "confusion"],
)
def test_figure_that_cannot_be_written_is_one_line_and_leaves_nothing(
    draw: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(RunError) as refusal, full_disk():
        draw(tmp_path / "figure.png")
    assert str(refusal.value).startswith(f"Cannot write {tmp_path / 'figure.png'}: File too large.")
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as refusal:
        draw(tmp_path / "file" / "figure.png")
    assert str(refusal.value).startswith(f"Cannot write {tmp_path / 'file' / 'figure.png'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_svg_curve_ends_at_the_last_hit_and_keeps_its_corners() -> None:
    recalls = np.array([0.5, 0.5, 0.5, 1, 1, 1])
    text = svg_precision_recall(outcome(np.array([1, 1 / 2, 1 / 3, 1 / 2, 2 / 5, 1 / 3]), recalls))
    points = [tuple(map(float, point.split(","))) for point in text.split()]
    half, whole = SVG_SIDE / 2, float(SVG_SIDE)
    assert points == [(half, 0.0), (half, pytest.approx(whole * 2 / 3, abs=0.1)), (whole, half)]


def test_svg_curve_without_detections_is_empty_and_a_long_one_is_thinned() -> None:
    assert svg_precision_recall(outcome(np.zeros(0), np.zeros(0))) == ""
    n = 10 * SVG_POINTS
    right = np.arange(n) % 2 == 0
    found = right.cumsum()
    points = svg_precision_recall(outcome(found / np.arange(1, n + 1), found / found[-1])).split()
    assert SVG_POINTS / 2 < len(points) <= SVG_POINTS
