"""Counts of false alarms and collisions, and the few of them that are kept to be shown, worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from vocabularies import learned

from prompt_tune.evaluation.alarms import EXAMPLES_EACH, AlarmCounts
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.vocabulary.vocabulary import Vocabulary

BOX = (10, 10, 20, 20)
GIZMO, WIDGET = ("new", "gizmo"), ("new", "widget")
Row = tuple[str, str, float, tuple[float, ...]]  # vocabulary, class, score, box


@pytest.fixture
def vocabulary() -> Vocabulary:
    return learned("gizmo", "widget", thresholds=np.array([0.25, 0.5], np.float32))


def found(*rows: Row) -> Detections:
    return Detections(
        np.array([box for *_, box in rows], np.float32).reshape(-1, 4),
        np.array([score for _, _, score, _ in rows], np.float32),
        np.array([name == "widget" for _, name, _, _ in rows], np.int64),
        tuple(name for _, name, _, _ in rows),
        tuple(label for label, *_ in rows),
        (100, 80),
    )


def test_images_without_learned_detections_count_nothing(vocabulary: Vocabulary) -> None:
    counts = AlarmCounts({"new": vocabulary})
    counts.add(Path("a.jpg"), found())
    counts.add(Path("b.jpg"), found((ORIGINAL, "cup", 0.9, BOX)))
    assert not counts.alarms and not counts.collisions
    assert (counts.examples().alarms, counts.examples().collisions) == ({}, {})


def test_alarm_on_the_box_of_original_classes_collides_with_each_and_shows_the_highest_score(
    vocabulary: Vocabulary,
) -> None:
    counts = AlarmCounts({"new": vocabulary})
    cup, bowl = (ORIGINAL, "cup", 0.75, (10, 10, 20, 18)), (ORIGINAL, "bowl", 0.875, (10, 10, 20, 17.5))
    beside = (ORIGINAL, "fork", 0.99, (10, 10, 20, 16))  # IoU 0.6
    counts.add(Path("folder/a.jpg"), found(cup, bowl, beside, ("new", "gizmo", 0.5, BOX), ("new", "widget", 0.75, BOX)))
    counts.add(Path("folder/b.jpg"), found(cup, ("new", "gizmo", 0.625, BOX)))
    assert counts.alarms == {GIZMO: 2, WIDGET: 1}
    assert counts.collisions == {
        (GIZMO, "cup"): 2,
        (GIZMO, "bowl"): 1,
        (WIDGET, "cup"): 1,
        (WIDGET, "bowl"): 1,
    }
    examples = counts.examples()
    assert [(example.path.name, example.note) for example in examples.alarms[GIZMO]] == [
        ("b.jpg", "score 0.625, threshold 0.250, on the box of cup (0.750)"),
        ("a.jpg", "score 0.500, threshold 0.250, on the box of bowl (0.875)"),
    ]
    (widget,) = examples.alarms[WIDGET]
    assert (widget.found_xyxy, widget.reference_xyxy) == (BOX, (10, 10, 20, 17.5))
    assert widget.note == "score 0.750, threshold 0.500, on the box of bowl (0.875)"
    assert set(examples.collisions) == set(counts.collisions)
    assert examples.collisions[GIZMO, "cup"].path.name == "b.jpg"  # the higher score of two
    assert examples.collisions[GIZMO, "bowl"].path.name == "a.jpg"


def test_alarm_beside_everything_has_nothing_to_be_held_against(vocabulary: Vocabulary) -> None:
    counts = AlarmCounts({"new": vocabulary})
    counts.add(Path("a.jpg"), found((ORIGINAL, "cup", 0.75, (40, 40, 60, 60)), ("new", "gizmo", 0.5, BOX)))
    (example,) = counts.examples().alarms[GIZMO]
    assert (example.reference_xyxy, example.note) == (None, "score 0.500, threshold 0.250")
    assert not counts.collisions


def test_only_the_highest_scores_are_kept_of_many(vocabulary: Vocabulary) -> None:
    counts = AlarmCounts({"new": vocabulary})
    scores = np.random.default_rng(3).permutation(np.repeat(np.arange(20), 2) / 64 + 0.5)  # each twice
    for k, score in enumerate(scores):
        counts.add(Path(f"{k}.jpg"), found(("new", "gizmo", float(score), BOX)))
    assert counts.alarms == {GIZMO: 40}
    order = np.argsort(-scores, kind="stable")[:EXAMPLES_EACH]  # of equal scores the first
    assert [int(example.path.stem) for example in counts.examples().alarms[GIZMO]] == order.tolist()
