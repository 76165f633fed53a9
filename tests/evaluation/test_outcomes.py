"""Hits, misses and false alarms: worked out by hand, and counted again class by class."""

from pathlib import Path

import numpy as np
import pytest
from labelled import found, labels, random_images

from prompt_tune.evaluation.outcomes import ClassOutcome, Example, Judged, outcomes

NAMES = ("gizmo", "widget")
PHOTO = Path("photo.jpg")


@pytest.fixture
def judged() -> Judged:
    """Two gizmos and a widget; the second gizmo is found below 0.5 only."""
    detections = found(
        (0, 0.9, (0, 0, 10, 10)),
        (0, 0.95, (0, 0, 10, 8)),
        (0, 0.3, (50, 0, 60, 10)),
        (0, 0.6, (100, 50, 110, 60)),
        (0, 0.7, (30, 30, 40, 40)),
        (1, 0.2, (0, 0, 10, 10)),
    )
    truth = labels((0, (0, 0, 10, 10)), (0, (50, 0, 60, 10)), (1, (31, 30, 41, 40)))
    return Judged.of(PHOTO, truth, detections)


def of_gizmo(image: Judged, *, n_best: int = 9) -> ClassOutcome:
    """The outcome of the first class at the threshold 0.5."""
    return outcomes([image], NAMES, [0.5, 0.5], n_best=n_best)[0]


def test_outcomes_without_images_labels_or_detections_are_empty() -> None:
    for images in ([], [Judged.of(PHOTO, labels(), found())]):
        for result in outcomes(images, NAMES, [0.5, 0.5], n_best=3):
            assert (result.objects, result.hits, result.misses, result.false_alarms) == (0, 0, 0, 0)
            assert result.precision is None and result.recall is None and not len(result.precisions)


def test_object_without_a_detection_is_missed() -> None:
    result = of_gizmo(Judged.of(PHOTO, labels((0, (0, 0, 10, 10))), found()))
    assert (result.objects, result.hits, result.misses, result.false_alarms) == (1, 0, 1, 0)
    assert result.precision is None and result.recall == 0
    assert vars(result.best_misses[0]) == vars(Example(PHOTO, (0, 0, 10, 10), None, (), "nothing found here"))


def test_object_goes_to_the_detection_with_the_highest_score(judged: Judged) -> None:
    assert judged.label.tolist() == [-1, 0, 1, -1, -1, -1]
    assert judged.counts.all()


def test_outcomes_count_at_the_threshold_and_say_why(judged: Judged) -> None:
    result = of_gizmo(judged, n_best=2)
    assert (result.objects, result.hits, result.misses, result.false_alarms) == (2, 1, 1, 3)
    assert result.precision == 1 / 4 and result.recall == 1 / 2
    assert [example.note for example in result.best_hits] == ["score 0.950, IoU 0.80"]
    assert result.best_hits[0].others_xyxy == ((50, 0, 60, 10), (31, 30, 41, 40))
    assert [example.note for example in result.best_misses] == ["score 0.300, needs 0.500"]
    assert result.best_misses[0].found_xyxy == (50, 0, 60, 10)
    assert [example.note for example in result.best_false_alarms] == [
        "score 0.900, second box (IoU 1.00)",
        "score 0.700, on a widget",
    ]
    assert of_gizmo(judged).best_false_alarms[2].note == "score 0.600, nothing labelled here"
    np.testing.assert_allclose(result.recalls, [0.5, 0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(result.precisions, [1, 1 / 2, 1 / 3, 1 / 4, 2 / 5])


@pytest.mark.parametrize(
    ("class_id", "box", "note"),
    [
        (0, (0, 0, 10, 4), "box is off (IoU 0.40)"),
        (1, (0, 0, 10, 4), "beside a gizmo (IoU 0.40)"),
        (1, (0, 0, 10, 9), "on a gizmo"),
        (0, (0, 9.5, 10, 30), "nothing labelled here"),
    ],
)
def test_false_alarm_says_what_it_lies_on(class_id: int, box: tuple[float, ...], note: str) -> None:
    image = Judged.of(PHOTO, labels((0, (0, 0, 10, 10))), found((class_id, 0.9, box)))
    (alarm,) = outcomes([image], NAMES, [0.5, 0.5], n_best=3)[class_id].best_false_alarms
    assert alarm.note == f"score 0.900, {note}" and alarm.reference_xyxy is None


def test_ignored_labels_make_neither_misses_nor_false_alarms() -> None:
    result = of_gizmo(Judged.of(PHOTO, labels((0, (0, 0, 10, 9)), ignore=[0]), found((0, 0.9, (0, 0, 10, 10)))))
    assert (result.objects, result.hits, result.misses, result.false_alarms) == (0, 0, 0, 0)


def test_examples_are_the_highest_scores_and_the_largest_misses_the_earlier_image_first() -> None:
    images = [
        Judged.of(Path(f"{k}.jpg"), labels((0, (0, 0, side, 10))), found((0, score, (50, 0, 60, 10))))
        for k, (side, score) in enumerate([(10, 0.6), (30, 0.9), (20, 0.6), (30, 0.7)])
    ]
    result = outcomes(images, NAMES, [0.5, 0.5], n_best=3)[0]
    assert [example.path.stem for example in result.best_misses] == ["1", "3", "2"]
    assert [example.path.stem for example in result.best_false_alarms] == ["1", "3", "0"]
    assert (result.misses, result.false_alarms) == (4, 4)


@pytest.mark.parametrize("seed", range(4))
def test_one_pass_counts_what_a_scan_of_all_images_counts_for_each_class(seed: int) -> None:
    thresholds = np.array([0.3, 0.5, 0.0, 0.9], np.float32)
    images = [Judged.of(Path(f"{k}.jpg"), *pair) for k, pair in enumerate(zip(*random_images(seed), strict=True))]
    for k, result in enumerate(outcomes(images, "abcd", thresholds, n_best=5)):
        hits: list[tuple[float, tuple[float, ...]]] = []  # rank and box
        alarms: list[tuple[float, tuple[float, ...]]] = []
        misses: list[tuple[float, tuple[float, ...]]] = []
        scores, right = [], []
        for image in images:
            for row in np.flatnonzero((image.found.class_ids == k) & image.counts):
                scores.append(image.found.scores[row])
                right.append(image.label[row] >= 0)
                if image.found.scores[row] > thresholds[k]:
                    (hits if right[-1] else alarms).append((-scores[-1], tuple(image.found.boxes_xyxy[row].tolist())))
            for row in np.flatnonzero((image.labels.classes == k) & ~image.labels.ignore):
                if not (image.found.scores[image.label == row] > thresholds[k]).any():
                    box = image.labels.boxes_xyxy[row]
                    misses.append((-np.prod(box[2:] - box[:2]), tuple(box.tolist())))
        assert (result.hits, result.false_alarms, result.misses) == (len(hits), len(alarms), len(misses))
        assert result.objects == len(hits) + len(misses)
        for wanted, got in ((hits, result.best_hits), (alarms, result.best_false_alarms)):
            wanted.sort(key=lambda pair: pair[0])  # stable
            assert [example.found_xyxy for example in got] == [box for _, box in wanted[:5]]
        misses.sort(key=lambda pair: pair[0])
        assert [example.reference_xyxy for example in result.best_misses] == [box for _, box in misses[:5]]
        order = np.argsort(-np.array(scores), kind="stable")
        true = np.array(right, bool)[order].cumsum()
        np.testing.assert_array_equal(result.precisions, true / np.arange(1, len(true) + 1))
        np.testing.assert_array_equal(result.recalls, true / max(1, result.objects))
