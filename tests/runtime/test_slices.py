"""Slices: where they lie, which boxes of two windows are one object, and how many small objects they find."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SIZE, TWIN, make_bundle
from small_bundle import content, learned_for, photo
from vocabularies import learned, unit_rows

from prompt_tune.datasets.sample import original_scene
from prompt_tune.errors import PromptTuneError
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.slices import Slices, Window, detect_sliced, merged
from prompt_tune.vocabulary.vocabulary import guide_digest

N = 3  # scenes beside each other, and below each other
GUIDE = guide_digest(unit_rows(2, 1))
VOCABULARIES = {
    "original": learned("bear", "cat", kind="original", guide=GUIDE),
    "learned": learned("raccoon", "gizmo", nms_iou=[0.3, 1]),
}
NAMES = {"original": ("bear", "cat"), "learned": ("raccoon", "gizmo")}
WINDOWS: list[Window] = [(0, 0, 180, 100), (0, 0, 100, 100), (80, 0, 180, 100)]
Row = tuple[str, int, float, tuple[int, int, int, int]]


@pytest.mark.parametrize(
    ("slices", "size_wh", "windows"),
    [
        (Slices(100), (100, 80), [(0, 0, 100, 80)]),
        (Slices(100), (101, 80), [(0, 0, 101, 80), (0, 0, 100, 80), (1, 0, 101, 80)]),
        (Slices(100), (180, 100), WINDOWS),  # the overlap is 20 pixels
        (Slices(100, 0), (80, 200), [(0, 0, 80, 200), (0, 0, 80, 100), (0, 100, 80, 200)]),
        (
            Slices(100, 0.5),
            (130, 151),
            [
                *((0, 0, 130, 151), (0, 0, 100, 100), (30, 0, 130, 100), (0, 25, 100, 125), (30, 25, 130, 125)),
                *((0, 51, 100, 151), (30, 51, 130, 151)),
            ],
        ),
    ],
)
def test_windows_by_hand(slices: Slices, size_wh: tuple[int, int], windows: list[Window]) -> None:
    assert slices.windows(size_wh) == windows


@pytest.mark.parametrize("size_wh", [(1920, 1080), (641, 4000), (5000, 333)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.9])
def test_slices_cover_the_image_and_overlap_as_far_as_was_said(size_wh: tuple[int, int], overlap: float) -> None:
    windows = Slices(640, overlap).windows(size_wh)[1:]
    for side in (0, 1):
        spans = sorted({(window[side], window[side + 2]) for window in windows})
        assert spans[0][0] == 0 and spans[-1][1] == size_wh[side]
        assert {end - start for start, end in spans} == {min(640, size_wh[side])}
        assert all(one[1] - two[0] >= 640 * overlap for one, two in pairwise(spans))


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(PromptTuneError, match=r"^A slice must have at least 32 pixels. Received: 31.$"):
        Slices(31)
    with pytest.raises(PromptTuneError, match=r"^Slices must overlap by 0 to 0.9. Received: 0.95.$"):
        Slices(640, 0.95)


def test_slices_that_nobody_could_wait_for_are_refused_before_they_are_made() -> None:
    assert len(Slices(32, 0).windows((3200, 3200))) == 10_001
    with pytest.raises(PromptTuneError, match=r"^An image may have 10,000 slices at most\. Received: 10,100, of 32 "):
        Slices(32, 0).windows((3201, 3200))
    with pytest.raises(PromptTuneError, match=r"Received: 5[0-9],[0-9]{3},[0-9]{3}, .* Give larger slices or less"):
        Slices(32, 0.9).windows((22_000, 22_000))


def found(*rows: Row, size_wh: tuple[int, int] = (100, 100)) -> Detections:
    return Detections(
        boxes_xyxy=np.array([row[3] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[2] for row in rows], np.float32),
        class_ids=np.array([row[1] for row in rows], np.int64),
        class_names=tuple(NAMES[row[0]][row[1]] for row in rows),
        vocabularies=tuple(row[0] for row in rows),
        size_wh=size_wh,
    )


def merge(*parts: list[Row], iou: float | None = None) -> list[Row]:
    """What is left, in pixels of the image. Boxes of the second slice begin at its left edge, 80."""
    sizes = ((180, 100), (100, 100), (100, 100))
    each = [found(*part, size_wh=size) for part, size in zip(parts, sizes, strict=True)]
    result = merged(each, WINDOWS, VOCABULARIES, ["original", "learned"], iou=iou)
    assert result.size_wh == (180, 100)
    return [
        (one.vocabulary, one.class_id, round(one.score, 3), tuple(int(x) for x in one.box_xyxy))  # type: ignore[misc]
        for one in result
    ]


def test_the_better_of_two_windows_boxes_stays_within_a_class_of_a_vocabulary() -> None:
    in_both, there = (10, 10, 18, 20), (90, 10, 98, 20)  # the same place: the second slice begins at 80
    assert merge([], [("original", 0, 0.5, there)], [("original", 0, 0.7, in_both)]) == [("original", 0, 0.7, there)]
    assert merge([("original", 0, 0.7, there)], [], [("original", 0, 0.7, in_both)]) == [("original", 0, 0.7, there)]
    apart: tuple[list[Row], ...] = (
        [("learned", 0, 0.3, there)],
        [("original", 1, 0.5, there), ("learned", 1, 0.5, there)],
        [("original", 0, 0.7, in_both)],
    )
    assert [row[:2] for row in merge(*apart)] == [("original", 1), ("original", 0), ("learned", 0), ("learned", 1)]


def test_limits_are_a_half_or_the_tighter_one_of_a_class_or_the_callers() -> None:
    one, other = (100, 10, 120, 30), (100, 10, 120, 19)  # IoU 0.45
    shifted = (20, 10, 40, 19)
    for label, class_id, left in (("original", 0, 2), ("learned", 0, 1), ("learned", 1, 2)):
        assert len(merge([(label, class_id, 0.9, one)], [], [(label, class_id, 0.5, shifted)])) == left, label
    assert len(merge([("original", 0, 0.9, one)], [], [("original", 0, 0.5, shifted)], iou=0.4)) == 1
    assert len(merge([("learned", 0, 0.9, one)], [], [("learned", 0, 0.5, shifted)], iou=0.46)) == 2
    assert len(merge([("original", 0, 0.9, one), ("original", 0, 0.8, other)], [], [], iou=0.1)) == 2  # one window


def test_a_part_of_an_object_at_an_inner_edge_gives_way_to_the_whole() -> None:
    whole, part = (60, 10, 140, 50), (60, 10, 100, 50)  # the first slice ends at 100
    rows = merge([("original", 0, 0.4, whole)], [("original", 0, 0.9, part)], [("original", 0, 0.8, (0, 10, 60, 50))])
    assert rows == [("original", 0, 0.4, whole)]
    inner = (60, 10, 95, 50)  # ends before the edge: an object of its own, with IoU 0.44
    assert len(merge([("original", 0, 0.4, whole)], [("original", 0, 0.9, inner)], [])) == 2
    at_the_border = (0, 10, 40, 50)  # the image ends there too: nothing is cut
    assert len(merge([("original", 0, 0.4, (0, 10, 90, 50))], [("original", 0, 0.9, at_the_border)], [])) == 2
    assert merge([], [], []) == []


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("slices") / "bundle")


def scenes() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A picture of N x N scenes, its boxes (n, 4), and their original classes."""
    picture, boxes, names = np.zeros((N * SIZE, N * SIZE, 3), np.uint8), [], []
    for number in range(N * N):
        scene = original_scene(0, number)
        y, x = (SIZE * at for at in divmod(number, N))
        picture[y : y + SIZE, x : x + SIZE] = scene.image
        boxes.append(scene.boxes_xyxy + np.array([x, y, x, y], np.float32))
        names += [f"{look.layers[0].colour} {look.layers[0].shape}" for look in scene.looks]
    return picture, np.concatenate(boxes), names


def recall(result: Detections, boxes: np.ndarray, names: list[str], *, begin: str = "") -> float:
    """Share of the objects that a box of their class finds with an IoU of 0.5 or more."""
    same = np.array([[begin + name == other for other in result.class_names] for name in names])
    return float(((box_iou(boxes, result.boxes_xyxy) >= 0.5) & same).any(axis=1).mean())


def test_slices_find_small_objects_in_a_large_picture(tiny_bundle: Path) -> None:
    """The whole picture is scaled to a third; a slice is not scaled."""
    picture, boxes, names = scenes()
    detector = Detector(tiny_bundle, threads=1)
    (whole,) = detector.detect(picture)
    sliced = detect_sliced(detector, picture, Slices(SIZE))
    before, after = (recall(result.of(ORIGINAL), boxes, names) for result in (whole, sliced))
    print(f"{len(names)} objects: recall {before:.3f} without slices, {after:.3f} with them")
    assert len(names) > 30 and before < 0.4 and after > 0.85
    assert recall(sliced.of("learned"), boxes, names, begin=TWIN) == after
    assert len(sliced.of(ORIGINAL)) < 2 * len(names)  # not a box from every window
    # each learned class has the rows of its twin, and takes none of them away
    twins, originals = sliced.of("learned"), sliced.of(ORIGINAL)
    assert twins.class_names == tuple(TWIN + name for name in originals.class_names)
    bare = detect_sliced(Detector(tiny_bundle, threads=1, use_bundled=False), picture, Slices(SIZE))
    assert content(bare) == content(originals)


@pytest.mark.parametrize("batch", [1, 4])
def test_learned_vocabularies_change_no_bit_of_original_rows(detector: Detector, bundle: Path, batch: int) -> None:
    image = photo(150, 200)
    options: dict[str, Any] = {"slices": Slices(96, 0.3), "batch": batch, "conf": 0.4}
    before = detect_sliced(detector, image, **options).of(ORIGINAL)
    assert len(before) > 100
    detector.load(learned_for(bundle, *(f"new {i}" for i in range(30)), seed=3))
    detector.load(learned_for(bundle, "own", guide_mode="own"))
    after = detect_sliced(detector, image, **options)
    assert content(after.of(ORIGINAL)) == content(before)
    labels = list(dict.fromkeys(after.vocabularies))
    assert labels == [label for label in dict.fromkeys(label for label, _ in detector.classes) if label in labels]
    assert len(labels) > 2 and content(after) == content(detect_sliced(detector, image, **options))


def test_an_image_that_fits_into_a_slice_gives_what_detect_gives(detector: Detector) -> None:
    image = photo(80, 100)
    sliced = detect_sliced(detector, image[..., ::-1], Slices(100), bgr=True, hide=["thing 1"])
    assert content(sliced) == content(detector.detect(image, hide=["thing 1"])[0]) and sliced.hidden is None


def test_overlap_looks_at_the_merged_rows(detector: Detector) -> None:
    image = photo(150, 200)
    plain = detect_sliced(detector, image, Slices(96), conf=0.4)
    marked = detect_sliced(detector, image, Slices(96), conf=0.4, overlap="score")
    assert marked.hidden is not None and marked.hidden.any() and content(marked) == content(plain)
    with pytest.raises(PromptTuneError, match="`overlap` must be one of"):
        detect_sliced(detector, image, Slices(96), overlap="all")  # type: ignore[arg-type]
