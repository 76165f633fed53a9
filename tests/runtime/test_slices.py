"""Slices: where they lie, which boxes of two windows are one object, and how many small objects they find."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SIZE, TWIN, make_bundle
from PIL import Image
from scenes import scenes
from small_bundle import content, learned_for, photo
from vocabularies import learned, unit_rows

from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import read_picture, read_rgb
from prompt_tune.runtime.slices import Slices, Window, detect_sliced, merged, merged_classes
from prompt_tune.vocabulary.vocabulary import guide_digest

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
    assert slices.count(size_wh) == len(windows) - 1


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


def test_slices_are_asked_for_by_their_size() -> None:
    assert (Slices.of(None, None), Slices.of(64, None), Slices.of(64, 0.0)) == (None, Slices(64, 0.2), Slices(64, 0))
    with pytest.raises(PromptTuneError, match="Give their size, `slice`, too"):
        Slices.of(None, 0.5)


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


def test_what_a_lower_conf_lets_through_changes_nothing_above_the_threshold() -> None:
    part: Row = ("original", 0, 0.9, (60, 10, 100, 50))
    whole: Row = ("original", 0, 0.2, (60, 10, 140, 50))  # below the threshold, 0.25
    assert merge([whole], [part], []) == [whole, part]
    surer: Row = ("original", 0, 0.3, (60, 10, 140, 50))
    assert merge([surer], [part], []) == [surer]
    assert merge([("original", 0, 0.2, (60, 10, 110, 50))], [part], []) == [part]


def test_vocabularies_that_change_meanwhile_are_asked_again(detector: Detector, bundle: Path) -> None:
    """The rows are of the vocabularies that are there at the end; where they change all the time, this is said."""
    image = photo(150, 200)

    class Changing(Detector):
        """A detector whose vocabularies change during its first calls, as if by another thread."""

        times = 0

        def detect(self, *arguments: Any, **options: Any) -> list[Detections]:
            parts = super().detect(*arguments, **options)
            if self.times:
                self.times -= 1
                self.load(learned_for(bundle, "new", seed=self.times), "new", replace=True)
            return parts

    changing = Changing(bundle, threads=1)
    changing.times = 2
    result = detect_sliced(changing, image, Slices(96), conf=0.4)
    assert "new" in result.vocabularies
    assert content(result) == content(detect_sliced(changing, image, Slices(96), conf=0.4))
    changing.times = 5
    with pytest.raises(PromptTuneError, match=r"^Vocabularies changed 5 times while one image was in work"):
        detect_sliced(changing, image, Slices(96), conf=0.4)


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("slices") / "bundle")


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


def test_large_jpeg_is_cut_in_its_own_size(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prompt_tune.runtime.opening.WHOLE_MEGAPIXELS", 1)
    path = tmp_path / "a.jpg"
    Image.fromarray(photo(60, 90)).resize((1500, 1000)).save(path)
    pixels = read_rgb(path)
    assert read_picture(path).pixels.shape == (500, 750, 3) and pixels.shape == (1000, 1500, 3)
    wanted = content(detect_sliced(detector, pixels, Slices(800), hide=["thing 1"]))
    for image in (path, read_picture(path, whole=True)):
        assert content(detect_sliced(detector, image, Slices(800), hide=["thing 1"])) == wanted
    with pytest.raises(DataError, match="read at reduced size cannot be cut into slices"):
        detect_sliced(detector, read_picture(path), Slices(800))


def test_many_boxes_merge_as_they_would_one_by_one() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 90, (600, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 15, (600, 2))], axis=1).astype(np.float32)
    windows: list[Window] = [(0, 0, 110, 110)] * 4  # nothing ends at an inner edge
    scores = rng.permutation(600).astype(np.float32) / 600
    parts = [Detections(boxes[k::4], scores[k::4], np.zeros(150, np.int64)) for k in range(4)]
    found = merged_classes(parts, windows, np.array([0.3]), np.zeros(1, np.float32))
    kept: list[int] = []
    for row in np.argsort(-scores).tolist():
        others = [other for other in kept if other % 4 != row % 4]
        if not others or box_iou(boxes[[row]], boxes[others]).max() <= 0.3:
            kept.append(row)
    assert 300 < len(kept) < 590 and sorted(found.scores.tolist()) == sorted(scores[kept].tolist())
