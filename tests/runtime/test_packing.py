"""Several vocabularies in one input of the graph, thresholds and calibration, and rows as detections."""

from typing import Any

import numpy as np
import pytest
from vocabularies import learned, unit_rows

from prompt_tune.contract import UNLIMITED
from prompt_tune.runtime.images import Letterbox
from prompt_tune.runtime.packing import Packed, calibrated, from_rows, logit, sigmoid, uncalibrated
from prompt_tune.vocabulary.vocabulary import guide_digest


def two() -> Packed:
    """Three classes of two vocabularies, the second calibrated and with two prompts."""
    one = learned("lorry", thresholds=[0.5], seed=1)
    other = learned(
        "car", "van", n_prompts=2, thresholds=[0.2, 0.9], calibration=[[2, 1], [1, 0]], nms_iou=[0.5, 1], seed=2
    )
    return Packed.of({"one": one, "other": other})


def test_packed_rows_belong_to_the_classes_in_order() -> None:
    packed = two()
    assert packed.classes == (("one", "lorry"), ("other", "car"), ("other", "van"))
    assert packed.embeddings.shape == (3, 2, 512) and packed.class_ids.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(packed.embeddings[0, 0], packed.embeddings[0, 1])  # padded by repeating
    np.testing.assert_array_equal(packed.thresholds, np.array([0.5, 0.2, 0.9], np.float32))
    assert packed.calibration is not None and packed.calibration.tolist() == [[1, 0], [2, 1], [1, 0]]
    assert packed.nms_iou.tolist() == [UNLIMITED, 0.5, 1] and packed.box_offsets is None


def test_packed_of_nothing_has_no_classes() -> None:
    packed = Packed.of({})
    assert packed.classes == () and packed.embeddings.shape == (0, 1, 512) and packed.calibration is None
    assert packed.graph_conf(np.zeros(0, bool), packed.limits(None)) == 1.0


def test_single_vocabulary_is_not_copied() -> None:
    vocabulary = learned("lorry", "car")
    assert Packed.of({"one": vocabulary}).embeddings is vocabulary.embeddings


def test_number_of_the_caller_is_for_all_classes() -> None:
    packed = two()
    assert packed.limits(0.25).tolist() == [0.25] * 3 and packed.limits(None) is packed.thresholds
    assert packed.overlaps(0.7).tolist() == [UNLIMITED] * 3 and packed.overlaps(None) is packed.nms_iou


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ([True, True, True], 1 / (1 + np.exp((np.log(4) + 1) / 2))),  # 0.2 of `car` before its calibration
        ([True, False, True], 0.5),
        ([False, False, True], 0.9),
        ([False, False, False], 1.0),
    ],
)
def test_threshold_for_the_graph_is_the_lowest_that_matters(shown: list[bool], expected: float) -> None:
    packed = two()
    conf = packed.graph_conf(np.array(shown), packed.limits(None))
    assert expected * (1 - 2e-5) <= conf <= np.float32(expected)  # never above, or detections would be lost


def test_detections_are_calibrated_filtered_suppressed_and_in_original_pixels() -> None:
    rows = np.array(
        [
            [0, 10, 20, 30, 40, 0.50, 0],  # not above its threshold
            [0, 10, 20, 30, 40, 0.51, 0],
            [0, 10, 20, 30, 40, 0.40, 1],
            [0, 10, 20, 30, 38, 0.39, 1],  # overlaps the better one by 0.9, the limit is 0.5
            [0, 10, 20, 30, 40, 0.95, 2],  # not shown
            [0, 0, 0, 60, 9, 0.99, 0],  # in the grey border above the image
        ],
        np.float32,
    )
    placed = Letterbox.of((120, 80), (60, 60))  # scale 0.5, 10 grey rows above
    packed = two()
    found = packed.detections(
        from_rows(rows), placed, np.array([True, True, False]), packed.limits(None), packed.overlaps(None)
    )
    assert (found.class_names, found.vocabularies) == (("lorry", "car"), ("one", "other"))
    assert found.class_ids.tolist() == [0, 0] and found.size_wh == (120, 80)
    np.testing.assert_allclose(found.boxes_xyxy, [[20, 20, 60, 60]] * 2)
    odds = (0.4 / 0.6) ** 2 * np.e
    np.testing.assert_allclose(found.scores, [0.51, odds / (1 + odds)], rtol=1e-6)


def test_calibration_that_changes_nothing_keeps_every_bit() -> None:
    scores = np.random.default_rng(0).random(1000, np.float32)
    same = calibrated(scores, np.tile(np.array([1, 0], np.float32), (1000, 1)))
    assert same.tobytes() == scores.tobytes()
    higher = calibrated(scores, np.tile(np.array([1, 0.5], np.float32), (1000, 1)))
    assert (higher > scores).all() and higher.dtype == np.float32


def test_logit_and_sigmoid_by_hand_and_at_the_ends() -> None:
    np.testing.assert_allclose(logit(np.array([0.5, 0.8])), [0, np.log(4)])
    assert logit(np.array([0.0, 1.0])).tolist() == [-np.inf, np.inf]
    np.testing.assert_allclose(sigmoid(np.array([0, np.log(4)])), [0.5, 0.8])
    assert sigmoid(np.array([-1000.0, 1000.0])).tolist() == [0.0, 1.0]


def test_boxes_move_before_the_own_suppression_and_before_they_are_cut() -> None:
    offsets = [[0, 0, 0, 0], [-0.25, 0, 0.25, 0]]
    packed = Packed.of({"one": learned("a", "b", box_offsets=offsets, nms_iou=[1, 0.4], thresholds=0.0)})
    # of class `b`: two boxes that overlap by 0.33 as found and by 0.5 as drawn, and one at the edge of the photo
    boxes = [[0, 20, 20, 40], [20, 20, 40, 40], [30, 20, 50, 40], [48, 40, 64, 60]]
    rows = np.array([[0, *box, 0.9 - 0.1 * i, min(i, 1)] for i, box in enumerate(boxes)], np.float32)
    placed = Letterbox.of((64, 64), (64, 64))
    found = packed.detections(from_rows(rows), placed, np.ones(2, bool), np.zeros(2, np.float32), packed.overlaps(None))
    assert found.class_names == ("a", "b", "b")
    assert found.boxes_xyxy.tolist() == [[0, 20, 20, 40], [15, 20, 45, 40], [44, 40, 64, 60]]


def test_background_rows_are_never_visible() -> None:
    rows = unit_rows(2, 1)
    guide: dict[str, Any] = {"kind": "original", "guide": guide_digest(rows)}
    packed = Packed.of({"original": learned("a", "void", background=(("void", ""),), **guide), "one": learned("b")})
    assert packed.classes == (("original", "a"), ("original", "void"), ("one", "b"))
    assert packed.visible.tolist() == [True, False, True]
    table = np.array([[0, 1, 1, 9, 9, 0.9, k] for k in range(3)], np.float32)
    placed = Letterbox.of((32, 32), (32, 32))
    found = packed.detections(from_rows(table), placed, np.ones(3, bool), packed.limits(0.1), packed.overlaps(None))
    assert found.class_names == ("a", "b")


def test_uncalibrated_scores_become_the_same_by_calibration() -> None:
    scores = np.array([0.3, 0.5, 0.9], np.float32)
    calibration = np.array([[2, 1], [0.5, -1], [1, 0]], np.float32)
    raw = uncalibrated(scores, calibration)
    # logits -0.8473, 0 and 2.1972: (logit - shift) / scale is -0.9236, 2 and 2.1972
    np.testing.assert_allclose(raw, [0.28423, 0.88080, 0.9], atol=2e-5)
    np.testing.assert_allclose(calibrated(raw, calibration), scores, atol=1e-6)
    assert uncalibrated(scores, None) is scores
