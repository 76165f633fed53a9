"""Windows in the cache: what was found in them, as detections in photos."""

from pathlib import Path

import numpy as np
import pytest

from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.slices import Slices
from prompt_tune.tuning.photos import Photos
from prompt_tune.tuning.regions import RegionCache
from prompt_tune.tuning.tiles import cut

SIZE = 100  # pixels of the network's input


def labels(*rows: tuple[int, tuple[float, ...]]) -> Labels:
    boxes = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    return Labels(boxes, np.array([number for number, _ in rows], np.int64), np.zeros(len(rows), bool))


def found(*rows: tuple[int, float, tuple[float, ...]]) -> Detections:
    boxes = np.array([box for _, _, box in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(boxes, scores, np.array([number for number, _, _ in rows], np.int64))


@pytest.fixture
def photos() -> Photos:
    """A photo of 180 x 100 pixels with two slices, 0..100 and 80..180, and one that fits into a slice."""
    large = Sample(Path("a.jpg"), labels((0, (90, 20, 110, 40)), (1, (10, 10, 30, 30))), (180, 100))
    small = Sample(Path("b.jpg"), labels((1, (5, 5, 25, 25))), (50, 50))
    return Photos(tuple(part for sample in (large, small) for part in cut(sample, Slices(100))), SIZE)


FOUND = [
    found((1, 0.3, (5, 27, 17, 39))),  # the whole photo: scaled by 100 / 180, below 22 rows of grey
    found((0, 0.9, (90, 20, 100, 40)), (1, 0.6, (10, 10, 30, 30))),  # left: the first ends at its inner edge
    found((0, 0.8, (10, 20, 28, 40)), (1, 0.7, (60, 60, 80, 80))),  # right
    found((1, 0.5, (10, 10, 50, 50)), (1, 0.4, (0, -9, 5, 0))),  # the small photo: scaled by 2; the second is outside
]


def test_detections_in_windows_become_those_in_photos_each_object_once(photos: Photos) -> None:
    large, small = photos.merged(FOUND, range(4))
    rows = zip(large.class_ids.tolist(), large.scores.tolist(), large.boxes_xyxy.tolist(), strict=True)
    assert [(number, pytest.approx(score), box) for number, score, box in rows] == [
        (1, pytest.approx(0.6), [10, 10, 30, 30]),  # the box of the whole photo, (9, 9, 30.6, 30.6), scores less
        (0, pytest.approx(0.8), [90, 20, 108, 40]),  # its part in the left slice gives way, though it scores more
        (1, pytest.approx(0.7), [140, 60, 160, 80]),
    ]
    assert large.size_wh == (180, 100) and small.size_wh == (50, 50)
    assert small.boxes_xyxy.tolist() == [[5, 5, 25, 25]]


def test_no_box_above_its_threshold_gives_way_to_one_below(photos: Photos) -> None:
    large, _ = photos.merged(FOUND, range(4), thresholds=np.array([0.85, 0.0], np.float32))
    assert large[0].box_xyxy == (90, 20, 100, 40) and large[0].score == pytest.approx(0.9)
    assert [part.score for part in large if part.class_id == 0] == pytest.approx([0.9])


def test_limit_of_a_class_holds_between_windows_where_it_is_tighter(photos: Photos) -> None:
    # in the photo, they are at 80..98 and 87..105: their IoU is 11 / 25, and neither ends at an edge of its slice
    parts = [found(), found((0, 0.9, (80, 0, 98, 20))), found((0, 0.8, (7, 0, 25, 20))), found()]
    counts = [len(photos.merged(parts, range(4), np.array([limit, 1], np.float32))[0]) for limit in (1, 0.45, 0.43)]
    assert counts == [2, 2, 1]


def test_labels_are_those_of_the_photo_in_its_own_pixels(photos: Photos) -> None:
    scaled = [labels((0, (50, 33, 61, 44)), (1, (6, 28, 17, 39)))]
    rest = [labels((0, (90, 20, 100, 40))), labels((0, (10, 20, 30, 40))), labels((1, (10, 10, 50, 50)))]
    large, small = photos.labels([*scaled, *rest], range(4))
    assert large.boxes_xyxy.tolist() == [[90, 20, 110, 40], [10, 10, 30, 30]] and large.classes.tolist() == [0, 1]
    assert small.boxes_xyxy.tolist() == [[5, 5, 25, 25]]
    without = photos.labels([labels((1, (6, 28, 17, 39))), *rest], range(4))[0]  # a class too rare to validate
    assert without.classes.tolist() == [1]


def test_cache_of_windows_knows_its_photos_and_one_without_them_changes_nothing(photos: Photos) -> None:
    files = [[Path(str(k))] for k in range(4)]
    cache = RegionCache(files[:3], [0, 1, 2], photos=Photos(photos.windows[:3], SIZE))
    cache = cache.with_replay(RegionCache(files[3:], [0], photos=Photos(photos.windows[3:], SIZE)))
    assert cache.wholes == [0] and cache.images_of([1, 0]) == [3, 0, 1, 2] and cache.n_replay == 1
    assert len(cache.seen(FOUND)) == 2 and len(cache.seen(FOUND[3:], images=[3])) == 1
    plain = RegionCache(files, [0, 1, 2, 3])
    assert plain.wholes == [0, 1, 2, 3] and plain.images_of([2, 0]) == [2, 0]
    assert all(a is b for a, b in zip(plain.seen(FOUND), FOUND, strict=True))
    twice = found((0, 0.9, (0, 0, 10, 10)), (0, 0.8, (0, 0, 10, 9)))
    assert len(plain.seen([twice], np.array([0.5], np.float32))[0]) == 1
