"""Annotated pictures: what is drawn where, in which colour, and on any size of image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prompt_tune.errors import DataError
from prompt_tune.media.draw import PAPER, class_colour, draw, grid, side_by_side
from prompt_tune.runtime.detections import Detections

Row = tuple[float, float, float, float, float, str, str]


def found(size_wh: tuple[int, int], *rows: Row) -> Detections:
    """Detections from rows of x1, y1, x2, y2, score, class name, vocabulary."""
    return Detections(
        boxes_xyxy=np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),  # (n, 4)
        scores=np.array([row[4] for row in rows], np.float32),
        class_ids=np.zeros(len(rows), np.int64),
        class_names=tuple(row[5] for row in rows),
        vocabularies=tuple(row[6] for row in rows),
        size_wh=size_wh,
    )


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def changed(picture: Image.Image) -> np.ndarray:
    """(h, w) bool: pixels that are not the grey of `grey`."""
    return (np.asarray(picture) != 128).any(axis=2)


def test_no_detections_leave_the_image_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    picture = draw(image, found((60, 40)))
    np.testing.assert_array_equal(np.asarray(picture), image)


def test_grid_puts_pictures_row_by_row_and_makes_large_ones_smaller() -> None:
    sizes, colours = [(100, 60), (400, 240), (50, 30)], [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]
    sheet = np.asarray(grid(pictures, ["a", "b" * 500, ""], columns=2, cell_wh=(100, 60)))
    boxes = []
    for colour in colours:
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        boxes.append([int(value) for value in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)])
    assert boxes[0] == [4, 4, 104, 64] and boxes[1] == [108, 4, 208, 64]  # four pixels apart
    left, top, right, bottom = boxes[2]
    assert (right - left, bottom - top, left) == (50, 30, 29) and top > 64 + 15  # in the middle of its cell
    assert sheet.shape[1] == 212 and (sheet[64:, 104:108] == PAPER).all()  # a long caption stays in its cell
    assert pictures[1].size == (400, 240)


@pytest.mark.parametrize("kind", ["array", "RGB", "L", "RGBA"])
def test_image_of_any_kind_is_drawn_on_a_copy(kind: str) -> None:
    image = grey(200, 100) if kind == "array" else Image.fromarray(grey(200, 100)).convert(kind)
    before = np.array(image)
    picture = draw(image, found((200, 100), (50, 40, 150, 90, 0.9, "crate", "learned")))
    assert (picture.mode, picture.size) == ("RGB", (200, 100))
    np.testing.assert_array_equal(np.array(image), before)
    assert changed(picture).any()


def test_box_line_has_the_class_colour_at_the_boxs_edge() -> None:
    picture = draw(grey(400, 300), found((400, 300), (100, 100, 300, 250, 0.9, "crate", "learned")))
    colour = class_colour("crate", learned=True)
    for point in ((100, 200), (299, 200), (250, 249)):
        assert picture.getpixel(point) == colour
    assert not changed(picture)[110:240, 110:290].any()  # nothing inside
    assert not changed(picture)[260:].any() and not changed(picture)[:, 310:].any()


def test_learned_classes_stand_out_from_original_ones() -> None:
    size, box = (640, 480), (100, 100, 500, 400)
    lines = {}
    for label in ("original", "learned", "shelf"):
        picture = draw(grey(*size), found(size, (*box, 0.9, "crate", label)))
        lines[label] = int(changed(picture)[250, :300].sum())  # pixels across the left line, dark edge included
        assert lines[label] > 0
    assert lines["learned"] == lines["shelf"] >= lines["original"] + 2
    for name in ("crate", "person", "forklift", "traffic light"):
        bright, muted = (np.ptp(class_colour(name, learned=learned)) for learned in (True, False))
        assert bright > 200 and muted < 100


def test_colour_of_a_class_is_always_the_same_and_classes_differ() -> None:
    assert class_colour("raccoon", learned=True) == (242, 227, 19)  # from the name alone: the same in every picture
    colours = {class_colour(f"class {number}", learned=True) for number in range(30)}
    assert len(colours) > 25


def test_original_classes_have_colours_that_can_be_told_apart() -> None:
    names = ("person", "car", "truck", "bus", "bicycle", "dog", "cat", "chair", "bottle", "laptop", "book", "cup")
    colours = np.array([class_colour(name, learned=False) for name in names], int)  # (12, 3)
    apart = np.abs(colours[:, None] - colours[None]).max(axis=2)[np.triu_indices(len(names), 1)]
    assert np.median(apart) > 50 and len({tuple(colour // 16) for colour in colours}) >= 9


def test_equal_boxes_do_not_hide_one_another() -> None:
    box = (50.0, 50.0, 250.0, 150.0)
    rows: list[Row] = [
        (*box, 0.9, "car", "original"),
        (*box, 0.8, "truck", "original"),
        (*box, 0.3, "crate", "learned"),
    ]
    picture = np.asarray(draw(grey(300, 200), found((300, 200), *rows)))
    left = [tuple(pixel) for pixel in picture[130, 50:70]]  # across the left lines, below the labels
    places = [left.index(class_colour(row[5], learned=row[6] != "original")) for row in rows]
    assert places[2] == 0 < places[0] < places[1]  # the most important one at the box's edge, the others inside it


def test_learned_boxes_lie_on_top_of_original_ones_whatever_the_score() -> None:
    box = (50.0, 50.0, 250.0, 150.0)
    for order in (0, 1):
        rows: list[Row] = [(*box, 0.99, "crate", "original"), (*box, 0.3, "crate", "learned")]
        picture = draw(grey(300, 200), found((300, 200), *(rows[::-1] if order else rows)))
        assert picture.getpixel((50, 120)) == class_colour("crate", learned=True)


def test_line_and_text_grow_with_the_image() -> None:
    line, label = [], []
    for factor in (2, 8):  # below that, text has its smallest legible size
        size = (320 * factor, 240 * factor)
        row: Row = (80.0 * factor, 80.0 * factor, 240.0 * factor, 200.0 * factor, 0.5, "crate", "learned")
        pixels = changed(draw(grey(*size), found(size, row)))
        line.append(int(pixels[150 * factor, : 160 * factor].sum()) - 2)  # less its dark edge, always a pixel
        label.append(int(pixels[: 75 * factor].sum()))
    assert line[1] == pytest.approx(4 * line[0], abs=2)
    assert label[1] == pytest.approx(16 * label[0], rel=0.15)


@pytest.mark.parametrize(
    "box", [(0, 0, 20, 20), (380, 0, 400, 300), (0, 280, 400, 300), (0, 0, 400, 300), (399, 299, 400, 300)]
)
def test_label_of_a_box_at_the_edge_is_drawn_whole(box: tuple[float, float, float, float]) -> None:
    row: Row = (*box, 0.5, "crate", "learned")
    colour = np.array(class_colour("crate", learned=True))
    middle: Row = (100, 100, 300, 200, 0.5, "crate", "learned")
    plates = []
    for each in (row, middle):
        pixels = np.asarray(draw(grey(400, 300), found((400, 300), each)))
        plates.append((pixels == colour).all(axis=2))
    height, width = 12, 40  # of a label at this size, at least: wider and higher than a line
    windows = np.lib.stride_tricks.sliding_window_view(plates[0], (height, width))
    assert windows.mean(axis=(2, 3)).max() > 0.5  # somewhere lies a plate with text on it


def test_score_of_a_label_is_not_written() -> None:
    """The plate of the name alone is narrower than that of the name with a score."""
    plates = []
    for score in (0.5, np.nan):
        box, scores = np.array([[20, 60, 300, 280]], np.float32), np.array([score], np.float32)
        picture = draw(grey(320, 300), Detections(box, scores, np.zeros(1, np.int64), ("gizmo",), ("labels",)))
        coloured = np.abs(np.asarray(picture).astype(int) - class_colour("gizmo", learned=True)).max(2) < 20
        plates.append(int(coloured[:58].any(0).sum()))
    assert 0 < plates[1] < plates[0]


def test_labels_make_way_for_one_another() -> None:
    rows: list[Row] = [(100, 100, 300, 250, 0.9 - 0.1 * n, f"crate {n}", "learned") for n in range(4)]
    picture = np.asarray(draw(grey(400, 300), found((400, 300), *rows)))
    for name in (row[5] for row in rows):
        plate = (picture == class_colour(name, learned=True)).all(axis=2)
        assert plate.sum() > 300  # of 70 x 15 pixels, those that text does not cover


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 200), (200, 3), (30, 20)])
def test_picture_smaller_than_its_labels_works(width: int, height: int) -> None:
    picture = draw(grey(width, height), found((width, height), (0, 0, width, height, 0.5, "a long name", "learned")))
    assert picture.size == (width, height)


def test_thousands_of_detections_are_drawn_in_time() -> None:
    generator = np.random.default_rng(0)
    corner = generator.random((3000, 2)) * 500
    rows: list[Row] = [(x, y, x + 40, y + 40, 0.5, f"class {n % 90}", "original") for n, (x, y) in enumerate(corner)]
    draw(grey(640, 640), found((640, 640), *rows))


def test_side_by_side_scales_to_one_height_under_captions() -> None:
    sheet = side_by_side([grey(100, 50), Image.new("RGB", (50, 100), "red")], ["before", "after"], height=200)
    pixels = np.asarray(sheet)
    assert sheet.height > 200 and sheet.width == 400 + 100 + 3 * 4
    red = (pixels == [255, 0, 0]).all(axis=2)
    rows, columns = np.nonzero(red)
    assert (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1) == (200, 100)
    caption = (pixels[: rows.min()] != PAPER).any(axis=(0, 2))
    assert caption[:100].any() and caption[columns.min() :].any()  # a text above each
    assert pixels[0, 0].tolist() == list(PAPER)


def test_caption_that_is_too_wide_stays_above_its_picture() -> None:
    sheet = np.asarray(side_by_side([grey(100, 100), grey(100, 100)], ["a caption without end " * 9, ""], height=100))
    right = sheet[:20, 4 + 100 + 2 :]
    assert (right == PAPER).all()


@pytest.mark.parametrize(("images", "captions"), [([], []), ([grey(9, 9)], []), ([], ["a"])])
def test_side_by_side_of_unequal_lists_is_refused(images: list[np.ndarray], captions: list[str]) -> None:
    with pytest.raises(ValueError, match="`captions` must be as many as `images`"):
        side_by_side(images, captions)


def test_draw_takes_what_the_detector_takes(tmp_path: Path) -> None:
    from prompt_tune import draw as public

    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "a.png", exif=exif)
    right = np.asarray(public(pixels, found((60, 40), (5, 5, 50, 30, 0.9, "crate", "learned"))))
    detections = found((60, 40), (5, 5, 50, 30, 0.9, "crate", "learned"))
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png")):
        np.testing.assert_array_equal(np.asarray(public(image, detections)), right)
    np.testing.assert_array_equal(np.asarray(public(pixels[:, :, ::-1], detections, bgr=True)), right)
    with pytest.raises(DataError, match="An image must be a path"):
        public(None, detections)  # type: ignore[arg-type]


def test_hidden_detections_are_not_drawn() -> None:
    image = np.full((60, 80, 3), 90, np.uint8)
    rows = Detections(
        boxes_xyxy=np.array([[5, 20, 30, 50], [40, 20, 70, 50]], np.float32),
        scores=np.array([0.5, 0.6], np.float32),
        class_ids=np.array([0, 0]),
        class_names=("a", "b"),
        vocabularies=("original", "learned"),
    )
    half_hidden = draw(image, replace(rows, hidden=np.array([True, False])))
    assert half_hidden.tobytes() == draw(image, rows[1:]).tobytes() != draw(image, rows).tobytes()


def test_number_of_a_tracked_object_stands_behind_its_class() -> None:
    one = found((100, 80), (20, 30, 60, 70, 0.5, "car", "learned"))
    tracked, new = (replace(one, track_ids=np.array([number])) for number in (12, 0))
    same_words = replace(one, class_names=("car #12:",))  # in another colour, but with a label of the same size
    assert (changed(draw(grey(100, 80), tracked)) == changed(draw(grey(100, 80), same_words))).all()
    assert (changed(draw(grey(100, 80), tracked)) != changed(draw(grey(100, 80), one))).any()
    assert draw(grey(100, 80), new).tobytes() == draw(grey(100, 80), one).tobytes()


def test_text_of_a_crowd_is_smaller_but_legible() -> None:
    size = (2000, 2000)

    def height(count: int) -> int:
        """Rows of the picture that the plate of the label of one box covers, of `count` boxes far below it."""
        rows: list[Row] = [(100, 500, 400, 600, 0.9, "crate", "learned")]
        rows += [(10 * n % 1900, 1500.0, 10 * n % 1900 + 60, 1560.0, 0.5, "bolt", "original") for n in range(count - 1)]
        return int(changed(draw(grey(*size), found(size, *rows)))[400:490, 110].sum())

    few, crowd, thousands = height(25), height(100), height(5_000)
    assert few == height(1) >= 50  # 2000 / 42, with its padding, less what lies below row 490
    assert 0 < thousands < crowd < 0.7 * few
