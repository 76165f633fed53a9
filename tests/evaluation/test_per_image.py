"""Hits, misses and false alarms of single images, worked out by hand."""

from pathlib import Path

import numpy as np
from labelled import found, labels

from prompt_tune.evaluation.per_image import ImageResult, image_results

KEYS = (("original", "fox"), ("learned", "raccoon"), ("learned", "badger"))
LIMITS = np.array([0.5, 0.3, 0.3], np.float32)
A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)


def test_each_image_and_vocabulary_is_counted_at_the_thresholds() -> None:
    truth = [labels((1, A), (1, B), (0, C), (2, C), ignore=[3]), labels()]
    detections = [
        found((1, 0.9, A), (1, 0.3, B), (2, 0.6, B), (2, 0.5, A), (2, 0.5, C), (0, 0.6, C), (0, 0.5, A)),
        found((0, 0.9, A)),
    ]
    one, two = Path("one.jpg"), Path("two.jpg")
    results = list(image_results([one, two], truth, detections, KEYS, LIMITS))
    assert results == [
        ImageResult(one, "original", 1, 1, 0, (), ()),
        ImageResult(one, "learned", 2, 1, 2, (("raccoon", 1),), (("badger", 2),)),  # 0.3 is not above 0.3
        ImageResult(two, "original", 0, 0, 1, (), (("fox", 1),)),
        ImageResult(two, "learned", 0, 0, 0, (), ()),
    ]
    assert [result.misses for result in results] == [0, 1, 0, 0]


def test_vocabulary_without_a_class_has_no_lines() -> None:
    results = image_results([Path("a")], [labels()], [found()], KEYS[1:], LIMITS[1:])
    assert [result.vocabulary for result in results] == ["learned"]
