"""The confusion matrix, worked out by hand on one image."""

import numpy as np
import pytest
from labelled import found, labels

from prompt_tune.evaluation.confusion import Column, Confusion, ConfusionCounts, Row

# classes of the data set, and of the vocabularies: four are measured, and `bear` is not labelled
NAMES = ("badger", "raccoon", "fox", "thing")
KEYS = (("original", "fox"), ("learned", "raccoon"), ("learned", "badger"), ("learned", "fox"), ("original", "bear"))
A, B, C, D = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (60, 0, 70, 10)
FAR, CROWD = (200, 0, 210, 10), (300, 0, 400, 100)


@pytest.fixture
def confusion() -> Confusion:
    counts = ConfusionCounts(NAMES, KEYS, 4)
    objects = labels((1, A), (2, B), (0, C), (3, D), (1, CROWD), ignore=[4])
    as_keys = labels((1, A), (0, B), (3, B), (2, C), (1, CROWD), ignore=[4])  # a fox for each vocabulary; no `thing`
    detections = found(
        (1, 0.9, A),  # a raccoon found
        (1, 0.8, (0, 0, 10, 9)),  # and once more
        (2, 0.7, A),  # a badger on it
        (4, 0.9, A),  # and a bear
        (0, 0.6, B),  # a fox found by one vocabulary
        (1, 0.6, (20, 0, 30, 6)),  # a raccoon on it
        (1, 0.5, D),  # a raccoon on what no vocabulary has
        (3, 0.5, FAR),  # a fox on nothing
        (4, 0.5, FAR),  # a bear on nothing labelled, which may be a bear
        (1, 0.5, (310, 10, 320, 20)),  # in a crowd of raccoons
        (0, 0.4, (40, 0, 50, 4)),  # IoU 0.4 with the badger
    )
    counts.add(objects, as_keys, np.array([0, 1, 1, 2, 4]), detections)
    return counts.result()


def test_every_detection_counts_once_on_what_it_lies_on(confusion: Confusion) -> None:
    assert confusion.rows == (Row("raccoon", 1, 0), Row("badger", 1, 1), Row("fox", 1, 0), Row("thing", 1, None))
    assert confusion.columns == (
        Column("learned", "raccoon", 1, 0),
        Column("learned", "badger", 0, 0),
        Column("learned", "fox", 0, 1),
        Column("original", "fox", 0, 1),
        Column("original", "bear", 0, None),
    )
    assert confusion.counts.tolist() == [[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0]]


def test_worst_pairs_are_those_of_different_classes(confusion: Confusion) -> None:
    pairs = [(row.name, column.vocabulary, column.name, count) for row, column, count in confusion.worst()]
    assert pairs == [
        ("raccoon", "learned", "badger", 1),
        ("raccoon", "original", "bear", 1),
        ("fox", "learned", "raccoon", 1),
        ("thing", "learned", "raccoon", 1),
    ]


def test_json_has_rows_columns_and_cells_that_are_not_zero(confusion: Confusion) -> None:
    found = confusion.to_json()
    assert found["labels"][3] == {"name": "thing", "objects": 1, "missed": None}
    assert found["classes"][0] == {"vocabulary": "learned", "name": "raccoon", "second_boxes": 1, "on_nothing": 0}
    assert len(found["cells"]) == 6
    assert found["cells"][2] == {"label": "raccoon", "vocabulary": "original", "class": "bear", "detections": 1}


def test_images_add_up_and_unlabelled_classes_with_the_most_detections_come_first() -> None:
    counts = ConfusionCounts(("a",), (("learned", "a"), ("original", "b"), ("original", "c"), ("original", "d")), 1)
    for rows in ([(1, 0.5, A)], [(2, 0.5, A)], [(2, 0.5, A), (3, 0.5, FAR)]):
        counts.add(labels((0, A)), labels((0, A)), np.array([0]), found(*rows))
    result = counts.result()
    assert result.rows == (Row("a", 3, 3),)
    assert [column.name for column in result.columns] == ["a", "c", "b"] and result.counts.tolist() == [[0, 2, 1]]


def test_without_images_there_are_no_rows() -> None:
    result = ConfusionCounts(("a",), (("learned", "a"),), 1).result()
    assert result.rows == () and result.counts.shape == (0, 1) and result.worst() == []
