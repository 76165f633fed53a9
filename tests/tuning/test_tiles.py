"""Photos cut into windows: where they lie, which boxes they show, and which empty slices are trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prompt_tune.datasets.reading import DataSet
from prompt_tune.datasets.replay import Replayed
from prompt_tune.datasets.samples import Labels, Sample, Split
from prompt_tune.errors import RunError
from prompt_tune.runtime.slices import Slices
from prompt_tune.tuning.tiles import Tiling, cut, tile

Box = tuple[float, float, float, float]


def photo(*boxes: Box, size_wh: tuple[int, int] = (180, 100), name: str = "a.jpg", ignore: Any = False) -> Sample:
    """A photo and its boxes of class 0, 1, ..."""
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    labels = Labels(rows, np.arange(len(rows)), np.zeros(len(rows), bool) | ignore)
    return Sample(Path(name), labels, size_wh)


def shown(sample: Sample) -> list[tuple[int, Box, bool]]:
    """Class, box and whether it is ignored."""
    labels = sample.labels
    rows = zip(labels.classes.tolist(), labels.boxes_xyxy.tolist(), labels.ignore.tolist(), strict=True)
    return [(number, tuple(box), ignored) for number, box, ignored in rows]


@pytest.mark.parametrize("slices", [Slices(100), Slices(64, 0.5), Slices(640, 0), Slices(300, 0.9)])
@pytest.mark.parametrize("size_wh", [(180, 100), (101, 640), (1920, 1080), (100, 100)])
def test_windows_are_those_of_detection_in_the_same_order(slices: Slices, size_wh: tuple[int, int]) -> None:
    sample, windows = photo(size_wh=size_wh), slices.windows(size_wh)
    parts = cut(sample, slices)
    if len(windows) == 1:
        assert parts == [sample] and sample.window is None
    else:
        assert [part.window for part in parts] == windows
        assert [part.part for part in parts] == list(range(len(windows)))
        assert [part.size_wh for part in parts] == [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in windows]


def test_boxes_are_clipped_and_those_of_which_too_little_is_visible_are_ignored() -> None:
    sample = photo(
        (10, 10, 30, 30),  # in the left slice, 0..100
        (90, 20, 110, 40),  # half of it in the left slice, all of it in the right one, 80..180
        (95, 50, 115, 70),  # a quarter and all
        (96, 0, 106, 10),  # 40 % and all
        (60, 60, 85, 70),  # all and a fifth
        (0, 80, 180, 100),  # 100 of 180 pixels in each
        (100, 0, 140, 8),  # only touches the left slice
    )
    whole, left, right = cut(sample, Slices(100))
    assert shown(whole) == shown(sample) and whole.labels.boxes_xyxy.dtype == np.float32
    assert shown(left) == [
        (0, (10, 10, 30, 30), False),
        (1, (90, 20, 100, 40), False),
        (2, (95, 50, 100, 70), True),
        (3, (96, 0, 100, 10), False),
        (4, (60, 60, 85, 70), False),
        (5, (0, 80, 100, 100), False),
    ]
    assert shown(right) == [
        (1, (10, 20, 30, 40), False),
        (2, (15, 50, 35, 70), False),
        (3, (16, 0, 26, 10), False),
        (4, (0, 60, 5, 70), True),
        (5, (0, 80, 100, 100), False),
        (6, (20, 0, 60, 8), False),
    ]


def test_parts_of_ignored_boxes_are_ignored() -> None:
    _, left, right = cut(photo((90, 20, 110, 40), ignore=True), Slices(100))
    assert shown(left) == [(0, (90, 20, 100, 40), True)] and shown(right) == [(0, (10, 20, 30, 40), True)]


def dataset(train: list[Sample], val: list[Sample], *, few: bool = False) -> DataSet:
    return DataSet(("a",), Split(tuple(train)), Split(tuple(val)), Path("data"), "yolo", False, few)


def test_empty_slices_are_trained_on_as_often_as_others_and_all_are_measured_on() -> None:
    wide = {"size_wh": (420, 100)}  # five slices: 0, 80, 160, 240 and 320
    train = [photo((5, 5, 25, 25), (350, 5, 370, 25), name="a.jpg", **wide), photo(name="b.jpg", **wide)]
    val = [photo((5, 5, 25, 25), name="c.jpg", **wide), photo((1, 1, 9, 9), name="d.jpg", size_wh=(50, 50))]
    backgrounds = [photo(name=f"{k}.jpg", **wide) for k in range(3)]
    replayed = Replayed(Split(tuple(backgrounds[:2])), Split(tuple(backgrounds[2:])))
    whole = dataset(train, val)
    cut_up, more, tiling = tile(whole, replayed, Slices(100), seed=3)
    parts = [(sample.path.name, sample.part) for sample in cut_up.train.samples]
    shows = [sample.part for sample in cut_up.train.samples if sample.part and len(sample.labels)]
    assert shows == [1, 5] and len(parts) == 2 + 2 + 2 and {("a.jpg", 0), ("b.jpg", 0)} <= set(parts)
    assert parts == sorted(parts)  # the order stays
    assert [sample.path.name for sample in cut_up.train.photos] == ["a.jpg", "b.jpg"]
    assert [(s.path.name, s.part) for s in cut_up.val.samples] == [*(("c.jpg", k) for k in range(6)), ("d.jpg", 0)]
    assert [sample.part > 0 for sample in more.train.samples].count(True) == 2 and len(more.train.photos) == 2
    assert len(more.held_out.samples) == 6
    assert tiling == Tiling(Slices(100), 4 + 5, 4, 6)
    again = tile(whole, replayed, Slices(100), seed=3)[0]
    assert [sample.part for sample in again.train.samples] == [sample.part for sample in cut_up.train.samples]
    few, _, tiling = tile(replace(whole, few=True, val=Split(())), Replayed(), Slices(100), seed=3)
    assert len(few.measured.samples) == 12 and tiling == Tiling(Slices(100), 10, 2, 0)


def test_photos_that_all_fit_into_a_slice_are_refused() -> None:
    with pytest.raises(RunError, match=r"^No photo is larger than `tile` 180, so none would be cut\. Leave --tile out"):
        tile(dataset([photo()], [photo()]), Replayed(), Slices(180), seed=0)


def test_tiling_in_words_and_as_a_record() -> None:
    tiling = Tiling(Slices(640), 1312, 164, 0)
    assert str(tiling) == "tile 640, overlap 0.2: 1,312 slices of 164 photos"
    assert str(replace(tiling, n_left_out=1400)).endswith(
        "164 photos; 1,400 without an object left out of the training"
    )
    assert Tiling.of(tiling.to_record()) == tiling
