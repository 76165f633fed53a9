"""The matcher: worked out by hand, and against `faster-coco-eval`; one verdict for metrics and for pictures."""

from pathlib import Path

import numpy as np
import pytest
from labelled import coco_tables, found, labels, random_images

from prompt_tune.evaluation.matching import Matched, f1_scores, judge, match_classes
from prompt_tune.evaluation.metrics import RECALLS
from prompt_tune.evaluation.outcomes import Judged, outcomes

BOX, LOWER, UPPER = (0, 0, 10, 10), (0, 0, 10, 8), (0, 0, 10, 6)  # IoU with the first: 1, 0.8, 0.6


def test_judge_without_labels_or_detections_is_empty() -> None:
    assert judge(labels(), found()).label.shape == judge(labels((0, BOX)), found()).counts.shape == (0,)
    alone = judge(labels(), found((0, 0.5, BOX)))
    assert (alone.label.tolist(), alone.counts.tolist()) == ([-1], [True])


@pytest.mark.parametrize(
    ("truth", "rows", "label", "counts"),
    [
        ([(0, BOX)], [(0, 0.5, LOWER), (0, 0.9, UPPER)], [-1, 0], [True, True]),  # the higher score goes first
        ([(0, BOX)], [(0, 0.5, LOWER), (0, 0.5, BOX)], [0, -1], [True, True]),  # in a tie the first
        ([(0, LOWER), (0, BOX)], [(0, 0.5, BOX)], [1], [True]),  # the object that it overlaps most
        ([(0, BOX), (0, BOX)], [(0, 0.5, BOX)], [1], [True]),  # of equal ones the last, as COCO's evaluator
        ([(1, BOX)], [(0, 0.5, BOX)], [-1], [True]),  # another class
        ([(0, BOX)], [(0, 0.5, (0, 0, 10, 5))], [0], [True]),  # IoU 0.5 is enough
        ([(0, BOX)], [(0, 0.5, (0, 0, 10, 4.9))], [-1], [True]),
    ],
)
def test_judge_gives_each_object_to_one_detection(
    truth: list[tuple[int, tuple[float, ...]]],
    rows: list[tuple[int, float, tuple[float, ...]]],
    label: list[int],
    counts: list[bool],
) -> None:
    verdicts = judge(labels(*truth), found(*rows))
    assert (verdicts.label.tolist(), verdicts.counts.tolist()) == (label, counts)


def test_an_object_is_preferred_to_a_crowd_which_any_number_of_detections_may_lie_in() -> None:
    crowd = (0, 0, 40, 40)
    truth = labels((0, crowd), (0, LOWER), ignore=[0])
    inside = [(0, score, BOX) for score in (0.9, 0.8, 0.7)]
    verdicts = judge(truth, found(*inside, (1, 0.9, BOX)))
    assert verdicts.label.tolist() == [1, -1, -1, -1]
    assert verdicts.counts.tolist() == [True, False, False, True]  # the last one's class has no crowd


CROWD = labels((0, (0, 0, 100, 100)), (1, (200, 0, 220, 20)), ignore=[0])
IN_THE_CROWD = found((0, 0.9, (10, 10, 20, 20)), (0, 0.8, (200, 50, 220, 70)))  # inside, IoU 0.01; and beside


def test_a_hit_inside_a_crowd_is_ignored_by_metrics_and_pictures_alike() -> None:
    """Its IoU with the crowd is small, but it lies in it entirely: COCO's rule. The second detection is wrong."""
    matched = match_classes([CROWD], [IN_THE_CROWD], 2)[0]
    assert (matched.scores.tolist(), matched.correct.tolist(), matched.n_objects) == (
        [pytest.approx(0.8)],
        [False],
        0,
    )
    outcome = outcomes([Judged.of(Path("a.jpg"), CROWD, IN_THE_CROWD)], ["a", "b"], [0.5, 0.5], n_best=9)[0]
    assert (outcome.hits, outcome.misses, outcome.false_alarms) == (0, 0, 1)
    assert [example.note for example in outcome.best_false_alarms] == ["score 0.800, nothing labelled here"]


@pytest.mark.parametrize("seed", range(4))
def test_metrics_and_pictures_count_the_same_hits_and_false_alarms(seed: int) -> None:
    truths, founds = random_images(seed)
    images = [Judged.of(Path("a.jpg"), *pair) for pair in zip(truths, founds, strict=True)]
    for matched, outcome in zip(
        match_classes(truths, founds, 3), outcomes(images, "abc", np.full(3, 0.3), n_best=1), strict=True
    ):
        right = matched.correct[matched.scores > np.float32(0.3)]
        assert (outcome.hits, outcome.false_alarms) == (right.sum(), (~right).sum())
        assert outcome.hits > 0 and outcome.objects == matched.n_objects == outcome.hits + outcome.misses


@pytest.mark.parametrize("seed", range(8))
def test_match_classes_has_the_precision_and_recall_of_faster_coco_eval(seed: int) -> None:
    """Random images with crowds, up to COCO's cap of 100 detections per class and image."""
    truths, founds = random_images(seed, n=30)
    founds = [one.select(np.arange(len(one)) < 100) for one in founds]
    curves = coco_tables(truths, founds, 3)[0][0, :, :, 0]  # (101, n_cls)
    for k, matched in enumerate(match_classes(truths, founds, 3)):
        hits = matched.correct.cumsum()
        precision = hits / np.arange(1, len(hits) + 1)
        highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
        at = np.searchsorted(hits / matched.n_objects, RECALLS)
        np.testing.assert_array_equal(highest[at], curves[:, k])


def test_matched_classes_keep_their_detections_by_falling_score() -> None:
    assert [len(part.scores) for part in match_classes([], [], 2)] == [0, 0]
    truths, founds = random_images(3)
    for k, part in enumerate(match_classes(truths, founds, 3)):
        assert (np.diff(part.scores) <= 0).all() and part.scores.dtype == np.float32
        assert part.n_objects == sum(((one.classes == k) & ~one.ignore).sum() for one in truths)


def test_precision_and_recall_above_a_threshold() -> None:
    part = Matched(np.array([0.9, 0.8, 0.7], np.float32), np.array([True, False, True]), 3)
    assert part.above(0.75) == (1 / 2, 1 / 3)
    assert part.above(0.0) == pytest.approx((2 / 3, 2 / 3))
    assert np.isnan(part.above(0.95)[0]) and part.above(0.95)[1] == 0
    assert part.above(float(np.float32(0.9)))[1] == 0  # above, not at
    wrong = Matched(np.array([0.5], np.float32), np.array([False]), 0)
    assert wrong.above(0.2)[0] == 0 and np.isnan(wrong.above(0.2)[1])


def test_f1_counts_what_lies_above_the_score() -> None:
    matched = Matched(np.array([0.9, 0.8, 0.8, 0.3], np.float32), np.array([True, False, True, True]), 4)
    # 4 of 4 detections counted: 3 right, F1 6/8; above 0.5: 2 of 3, 4/7; above 0.8: 1 of 1, 2/5; above 0.95: none
    assert f1_scores(matched, np.array([0, 0.5, 0.8, 0.95])).tolist() == [6 / 8, 4 / 7, 2 / 5, 0]
    for threshold in (0.0, 0.5, 0.8):
        precision, recall = matched.above(threshold)
        expected = 2 * precision * recall / (precision + recall)
        assert f1_scores(matched, np.array([threshold]))[0] == pytest.approx(expected)
    assert f1_scores(Matched(np.zeros(0, np.float32), np.zeros(0, bool), 0), np.array([0.5])).tolist() == [0]
