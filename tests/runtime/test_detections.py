"""The result of one image: selection, classes that are chosen, and COCO's JSON."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prompt_tune.errors import PromptTuneError, VocabularyError
from prompt_tune.runtime.detections import (
    ClassKey,
    Detection,
    Detections,
    choose_classes,
    coco_categories,
    concatenate,
)

CLASSES: tuple[ClassKey, ...] = (("original", "car"), ("original", "truck"), ("learned", "truck"), ("shelf", "crate"))


def three() -> Detections:
    return Detections(
        boxes_xyxy=np.array([[0, 0, 10, 20], [1.25, 2.5, 3.75, 4], [5, 5, 6, 7]], np.float32),
        scores=np.array([0.5, 0.123456789, 1], np.float32),
        class_ids=np.array([1, 0, 0]),
        class_names=("truck", "car", "truck"),
        vocabularies=("original", "original", "learned"),
        size_wh=(100, 50),
    )


def test_select_takes_masks_and_rows_in_order() -> None:
    found = three()
    for keep in (np.array([True, False, True]), np.array([0, 2])):
        some = found.select(keep)
        assert (len(some), some.class_names, some.vocabularies) == (2, ("truck", "truck"), ("original", "learned"))
        np.testing.assert_array_equal(some.boxes_xyxy, found.boxes_xyxy[[0, 2]])
        np.testing.assert_array_equal(some.class_ids, [1, 0])
    assert found.of("learned").scores.tolist() == [1.0]
    empty = found.of("nobody")
    assert (len(empty), empty.boxes_xyxy.shape, empty.size_wh) == (0, (0, 4), (100, 50))


def test_scaled_moves_boxes_into_the_frame_of_another_size() -> None:
    found = Detections(np.array([[10, 20, 30, 40]], np.float32), np.ones(1), np.zeros(1, np.int64), size_wh=(100, 200))
    half = found.scaled((50, 100))
    assert half.boxes_xyxy.tolist() == [[5, 10, 15, 20]] and half.size_wh == (50, 100)
    assert half.boxes_xyxy.dtype == np.float32
    unknown = replace(found, size_wh=(0, 0))
    assert found.scaled((100, 200)) is found and unknown.scaled((50, 100)) is unknown


def test_concatenate_of_nothing_is_empty_and_of_parts_the_whole() -> None:
    empty = concatenate([], (7, 5))
    assert (len(empty), empty.boxes_xyxy.shape, empty.size_wh) == (0, (0, 4), (7, 5))
    assert (str(empty.boxes_xyxy.dtype), str(empty.class_ids.dtype)) == ("float32", "int64")
    found = three()
    whole = concatenate([found.of("original"), found.of("learned")], found.size_wh)
    assert whole.class_names == found.class_names
    np.testing.assert_array_equal(whole.boxes_xyxy, found.boxes_xyxy)


def test_coco_entries_by_hand() -> None:
    ids = {key: number for number, key in enumerate(CLASSES, start=1)}
    entries = three().to_coco(7, ids, first_id=11)
    assert entries[1] == {
        "id": 12,
        "image_id": 7,
        "category_id": 1,
        "bbox": [1.25, 2.5, 2.5, 1.5],
        "area": 3.75,
        "iscrowd": 0,
        "score": 0.123457,
        "vocabulary": "original",
    }
    assert [(entry["id"], entry["category_id"], entry["vocabulary"]) for entry in entries] == [
        (11, 2, "original"),
        (12, 1, "original"),
        (13, 3, "learned"),  # a truck too, but the learned one
    ]
    truck = {"id": 3, "name": "truck", "supercategory": "learned", "vocabulary": "learned"}
    assert coco_categories(CLASSES)[2] == truck


@pytest.mark.parametrize(
    ("show", "hide", "rows"),
    [
        (None, None, [0, 1, 2, 3]),
        (None, [], [0, 1, 2, 3]),
        ([], None, []),
        (["truck"], None, [1, 2]),
        (["original:truck", "crate"], None, [1, 3]),
        (["original:*"], ["truck"], [0]),
        (None, ["learned:truck"], [0, 1, 3]),
        (None, ["original:*", "crate"], [2]),
    ],
)
def test_choose_classes(show: list[str] | None, hide: list[str] | None, rows: list[int]) -> None:
    assert choose_classes(CLASSES, show=show, hide=hide) == {CLASSES[row] for row in rows}


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("truk", "No loaded class is named 'truk'. Near: truck."),
        ("learned:truk", "No loaded class is named 'learned:truk'. Near: learned:truck, learned:*."),
        ("zebra", "No loaded class is named 'zebra'. Near: learned:*, original:*, shelf:*."),
    ],
)
def test_unknown_class_is_refused_with_near_names(wanted: str, text: str) -> None:
    for options in ({"show": [wanted]}, {"hide": ["car", wanted]}):
        with pytest.raises(VocabularyError) as refusal:
            choose_classes(CLASSES, **options)
        assert str(refusal.value) == text


def test_to_supervision_keeps_vocabularies_apart() -> None:
    found = three()
    given = found.to_supervision(CLASSES)
    np.testing.assert_array_equal(given.xyxy, found.boxes_xyxy)
    np.testing.assert_array_equal(given.confidence, found.scores)
    assert given.class_id is not None and given.class_id.tolist() == [1, 0, 2]  # row 0 of both vocabularies: 0 and 2
    assert list(given.data["class_name"]) == ["truck", "car", "truck"]
    assert list(given.data["vocabulary"]) == ["original", "original", "learned"]


def test_to_supervision_can_be_filtered_suppressed_and_drawn() -> None:
    import supervision

    found = three()
    found.boxes_xyxy[2] = found.boxes_xyxy[1]  # row 0 of two vocabularies on one place
    given = found.to_supervision(CLASSES)
    assert len(given.with_nms(threshold=0.5)) == 3
    learned = given[np.array(given.data["vocabulary"]) == "learned"]
    assert isinstance(learned, supervision.Detections) and list(learned.data["class_name"]) == ["truck"]
    picture = supervision.BoxAnnotator().annotate(np.zeros((50, 100, 3), np.uint8), given)
    assert picture.any()


def test_to_supervision_of_nothing_is_empty_and_merges_with_others() -> None:
    import supervision

    empty = three().of("nobody").to_supervision([])
    assert (len(empty), empty.xyxy.shape) == (0, (0, 4)) and len(empty.data["class_name"]) == 0
    merged = supervision.Detections.merge([empty, three().to_supervision(CLASSES)])
    assert len(merged) == 3


def test_to_supervision_of_a_class_that_is_not_listed_is_refused() -> None:
    with pytest.raises(VocabularyError) as refusal:
        three().to_supervision(CLASSES[:2])
    assert str(refusal.value) == (
        "'learned:truck' is not one of the 2 `classes`. Give the classes that the detector had when it found this."
    )


def test_to_supervision_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(PromptTuneError) as refusal:
        three().to_supervision(CLASSES)
    assert str(refusal.value) == (
        "supervision is not installed, and this needs it: pip install '.[supervision]' (in a checkout)"
    )


def raccoons() -> Detections:
    return Detections(
        boxes_xyxy=np.array([[10, 20, 30, 40], [1, 1, 5, 5], [0, 1, 2, 3]], np.float32),
        scores=np.array([0.5, 0.75, 0.25], np.float32),
        class_ids=np.array([0, 3, 4]),
        class_names=("person", "raccoon", "raccoon"),
        vocabularies=("original", "learned", "learned"),
        size_wh=(64, 48),
    )


def test_loop_and_index_give_single_detections() -> None:
    found = raccoons()
    assert [one.class_name for one in found] == ["person", "raccoon", "raccoon"]
    assert found[-1] == Detection("raccoon", "learned", 0.25, (0.0, 1.0, 2.0, 3.0), 4)
    assert found[np.int64(0)].vocabulary == "original"
    assert found[0].box_xyxy == (10.0, 20.0, 30.0, 40.0)
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(TypeError, match="indexed by row"):
        found["raccoon"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("rows", "ids"),
    [
        (slice(1, None), [3, 4]),
        (slice(None, None, -1), [4, 3, 0]),
        ([2, 0], [4, 0]),
        ([True, False, True], [0, 4]),
        (np.array([False, True, False]), [3]),
        ([], []),
        (slice(5, 9), []),
    ],
)
def test_slice_mask_or_rows_give_detections(rows: Any, ids: list[int]) -> None:
    part = raccoons()[rows]
    assert isinstance(part, Detections) and part.size_wh == (64, 48)
    assert part.class_ids.tolist() == ids and len(part.class_names) == len(ids)


def test_repr_is_one_line_that_says_what_was_found() -> None:
    assert repr(raccoons()) == "<3 detections in 64 x 48 pixels: 2 'raccoon' (learned), 1 'person' (original)>"
    assert repr(raccoons()[:0]) == "<0 detections in 64 x 48 pixels>"
    assert repr(Detections(np.zeros((1, 4)), np.ones(1), np.array([7]))) == "<1 detection: 1 'class 7'>"
    many = Detections(np.zeros((7, 4)), np.ones(7), np.arange(7), tuple("abcdefg"), ("x",) * 7, (1, 1))
    assert repr(many).endswith("1 'e' (x), 2 more classes>")


def test_hidden_rows_stay_and_are_marked() -> None:
    found = replace(three(), hidden=np.array([True, False, False]))
    assert len(found) == 3 and [one.hidden for one in found] == [True, False, False]
    assert found.shown.class_names == ("car", "truck") and found.shown.hidden is None
    rest = found[1:].hidden
    assert rest is not None and rest.tolist() == [False, False]
    assert three().shown.hidden is None and not three()[0].hidden
    ids = {key: number for number, key in enumerate(CLASSES, start=1)}
    assert [entry["hidden"] for entry in found.to_coco(1, ids)] == [True, False, False]
    assert all("hidden" not in entry for entry in three().to_coco(1, ids))
    assert repr(found) == "<2 detections in 100 x 50 pixels: 1 'truck' (learned), 1 'car' (original); 1 hidden>"
