"""The result of one image: selection, classes that are chosen, and COCO's JSON."""

import numpy as np
import pytest

from prompt_tune.detections import ClassKey, Detections, choose_classes, coco_categories, concatenate
from prompt_tune.errors import VocabularyError

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
