"""Pictures of hits, misses and false alarms, as they stand in a page."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment, PackageLoader
from PIL import Image

from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.errors import DataError
from prompt_tune.evaluation.outcomes import Example
from prompt_tune.media.draw import class_colour
from prompt_tune.report.pictures import (
    MOST_DRAWN,
    SHEET_CELL,
    SHEET_COLUMNS,
    TILE_PIXELS,
    WHOLE_PIXELS,
    Picture,
    contact_sheet,
    embedded_photos,
    labelled_picture,
    picture,
    pictures,
)


def test_picture_shows_the_crop_with_detection_and_label_drawn_apart() -> None:
    image = Image.new("RGB", (400, 200), (90, 90, 90))
    image.paste((250, 250, 0), (300, 100, 340, 140))
    example = Example(Path("photo.jpg"), (300, 100, 340, 140), (310, 110, 330, 130), (), "score 0.900, IoU 0.25")
    got = picture(image, example, "gizmo", "hit")
    assert (got.width, got.height) == (TILE_PIXELS, TILE_PIXELS)
    assert got.alt == "gizmo, hit in photo.jpg: score 0.900, IoU 0.25"
    head, content = got.src.split(",")
    tile = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == "data:image/jpeg;base64" and tile.format == "JPEG" and tile.size == (TILE_PIXELS, TILE_PIXELS)
    bare = picture(image, Example(Path("photo.jpg"), None, (310, 110, 330, 130), (), ""), "gizmo", "false alarm")
    assert bare.src != got.src
    pixels = np.asarray(tile).reshape(-1, 3).astype(int)
    assert ((pixels - (250, 250, 0)).__abs__().max(1) < 40).any()  # the object is in the crop


def test_detection_shows_between_the_dashes_of_a_box_on_top_of_it() -> None:
    box = (300, 100, 340, 140)
    got = picture(Image.new("RGB", (400, 200)), Example(Path("a.jpg"), box, box, (), ""), "gizmo", "collision")
    tile = Image.open(io.BytesIO(base64.b64decode(got.src.split(",")[1])))
    pixels = np.asarray(tile).astype(int)
    coloured = (pixels.max(axis=2) - pixels.min(axis=2)) > 80
    assert coloured.sum() > 100  # the solid box
    assert (pixels.min(axis=2) > 150).sum() > 100  # the dashes


def test_labelled_picture_is_the_whole_image_with_each_box_in_its_place(tmp_path: Path) -> None:
    Image.new("RGB", (800, 600), (90, 90, 90)).save(tmp_path / "a.png")
    boxes = np.array([[200, 200, 600, 500], [10, 10, 90, 90]], np.float32)
    labels = Labels(boxes, np.array([1, 0]), np.array([False, True]))
    got = labelled_picture(Sample(tmp_path / "a.png", labels, (800, 600)), ["gizmo", "widget"])
    assert got is not None and (got.width, got.height) == (WHOLE_PIXELS, WHOLE_PIXELS * 3 // 4)
    assert got.caption == "a.png: 1 widget"  # without the ignored box
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(got.src.split(",")[1])))).astype(int)
    near = np.abs(pixels - class_colour("widget", learned=True)).max(2) < 60
    rows, columns = np.nonzero(near)
    assert (columns.min(), columns.max()) == pytest.approx((100, 299), abs=2)
    assert rows.max() == pytest.approx(249, abs=2) and not near[:60].any()
    assert labelled_picture(Sample(tmp_path / "gone.png", labels, (800, 600)), ["gizmo", "widget"]) is None


def test_contact_sheet_has_each_readable_image_in_a_cell_with_its_box(tmp_path: Path) -> None:
    samples = []
    for number in range(SHEET_COLUMNS + 2):  # the second is missing, so that one is left for the second row
        if number != 1:
            Image.new("RGB", (2 * SHEET_CELL[0], 2 * SHEET_CELL[1]), (90, 90, 90)).save(tmp_path / f"{number}.png")
        box = np.array([[200, 100, 600, 500]], np.float32)
        labels = Labels(box, np.array([0]), np.array([False]))
        samples.append(Sample(tmp_path / f"{number}.png", labels, (2 * SHEET_CELL[0], 2 * SHEET_CELL[1])))
    sheet = np.asarray(contact_sheet(samples, ["widget"])).astype(int)
    grey = (sheet == 90).all(axis=2)
    assert grey.sum() == pytest.approx(
        (SHEET_COLUMNS + 1) * SHEET_CELL[0] * SHEET_CELL[1], rel=0.05
    )  # without lines and names
    near = np.abs(sheet - class_colour("widget", learned=True)).max(2) < 60
    rows, columns = np.nonzero(near)
    first = columns < SHEET_CELL[0]
    left = np.nonzero(grey)[1].min()
    assert columns[first].min() - left == pytest.approx(100, abs=2)
    assert columns[first].max() - left == pytest.approx(300, abs=2)
    assert rows.max() > SHEET_CELL[1] and columns[rows > SHEET_CELL[1] + 30].max() < SHEET_CELL[0]
    with pytest.raises(DataError, match="No image for the contact sheet can be read"):
        contact_sheet(samples[1:2], ["widget"])


def test_of_very_many_boxes_the_largest_are_drawn(tmp_path: Path) -> None:
    """The sheet of an image with 600 boxes is that of its 500 largest; the caption counts all."""
    Image.new("RGB", (200, 200), (90, 90, 90)).save(tmp_path / "a.png")
    corners = np.stack(np.meshgrid(np.arange(0, 180, 6), np.arange(0, 120, 6)), -1).reshape(-1, 2)  # 600
    side = np.where(np.arange(600) % 6 == 0, 2, 4)[:, None]
    boxes = np.concatenate([corners, corners + side], 1).astype(np.float32)

    def sheet(rows: np.ndarray) -> np.ndarray:
        labels = Labels(boxes[rows], np.zeros(len(rows), int), np.zeros(len(rows), bool))
        return np.asarray(contact_sheet([Sample(tmp_path / "a.png", labels, (200, 200))], ["widget"]))

    every, large = np.arange(600), np.flatnonzero(side[:, 0] == 4)
    assert len(large) == 500 == MOST_DRAWN
    assert (sheet(every)[:200] == sheet(large)[:200]).all() and (sheet(every) != sheet(large)).any()


def test_pictures_read_each_image_once_and_name_what_is_gone(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    one, two, lost = (Example(tmp_path / name, None, (0, 0, 9, 9), (), name) for name in ("a.png", "a.png", "b.png"))
    assert pictures([]) == ({}, ())
    drawn, unread = pictures([(one, "gizmo", "hit"), (lost, "gizmo", "hit"), (two, "widget", "false alarm")])
    assert set(drawn) == {one, two}
    assert drawn[two].alt == "widget, false alarm in a.png: a.png" and drawn[one].src != drawn[two].src
    assert len(unread) == 1 and "b.png" in unread[0]


def test_picture_of_an_image_smaller_than_the_crop_is_whole() -> None:
    image = Image.new("RGB", (40, 20))
    got = picture(image, Example(Path("a.jpg"), (0, 0, 40, 20), None, (), "nothing found here"), "gizmo", "miss")
    assert (got.width, got.height) == (TILE_PIXELS, TILE_PIXELS // 2)


def test_photos_of_a_page_come_back_with_their_words(tmp_path: Path) -> None:
    """Also a name that HTML writes with escapes; curves, which are no photos, are left out."""
    example = Example(Path("a.jpg"), None, (10, 10, 30, 30), (), "score 0.9")
    shown = picture(Image.new("RGB", (80, 60), (9, 99, 9)), example, 'a "b" <c>', "hit")
    Image.new("RGB", (9, 9)).save(tmp_path / "curves.png")
    curves = Picture.of_png(tmp_path / "curves.png", "curves", "")
    page = tmp_path / "page.html"
    macros = PackageLoader("prompt_tune.report").get_source(Environment(), "macros.html.j2")[0]
    template = Environment(autoescape=True).from_string(macros + "{{ tiles([curves, shown]) }}")
    page.write_text(template.render(curves=curves, shown=shown), "utf-8")
    ((words, content),) = embedded_photos(page)
    assert words == 'a "b" <c>, hit in a.jpg: score 0.9'
    assert content == base64.b64decode(shown.src.split(",")[1])
    assert embedded_photos(tmp_path / "none.html") == []
