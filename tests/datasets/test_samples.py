"""Labels checked against images: damaged images, and boxes at or beyond the edge."""

from collections.abc import Callable
from pathlib import Path

import pytest
from data_sets import TRAIN, VAL, Boxes, write_coco, write_devkit, write_roboflow, write_voc, write_yolo
from PIL import Image

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.samples import LabelledImage, Reason, Row, make_split
from prompt_tune.errors import DataError


@pytest.mark.parametrize("damage", ["truncated", "text", "missing"])
def test_read_dataset_one_damaged_image_is_skipped_and_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    image = tmp_path / "train" / "b.png"
    if damage == "missing":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:60] if damage == "truncated" else b"nothing")
    data = read_dataset(source)
    assert [sample.path.stem for sample in data.train.samples] == ["a", "c"]
    assert [entry.reason for entry in data.train.left_out] == [Reason.IMAGE]
    assert any(message.startswith(f"Left out: `{image}`") for message in caplog.messages)
    with pytest.raises(DataError, match=r"1 unreadable image\), which --strict forbids: `.*b\.png`"):
        read_dataset(source, strict=True)


def test_read_dataset_every_image_damaged_raises(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "images/val/d.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"the `val` split cannot be used: none of its 1 images can be read\. .*d\.png"):
        read_dataset(source)


def test_read_dataset_box_slightly_beyond_the_edge_is_clipped(tmp_path: Path) -> None:
    source = write_coco(tmp_path, {"train": {"a": [(0, -1.5, 0, 101.5, 82, False)]}, "val": VAL})
    assert read_dataset(source).train.samples[0].labels.boxes_xyxy.tolist() == [[0, 0, 100, 80]]


def test_read_dataset_box_without_area_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes: Boxes = {"a": [(0, 10, 10, 10, 30, False), (1, 10, 10, 20, 20, False), (1, 100, 5, 101, 9, False)]}
    data = read_dataset(write_voc(tmp_path, {"train": boxes, "val": VAL}))
    assert data.train.samples[0].labels.boxes_xyxy.tolist() == [[10, 10, 20, 20]]
    assert [entry.reason for entry in data.train.left_out] == [Reason.FLAT] * 2
    assert caplog.text.count("the box has no area in its image") == 2
    assert "1 class has no box in the training images: lorry" in caplog.messages


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_roboflow, write_voc, write_devkit])
@pytest.mark.parametrize("box", [(110, 10, 120, 20), (50, 10, 110, 20), (5, -30, 20, 20), (900, 900, 950, 950)])
def test_read_dataset_box_outside_its_image_is_left_out_and_told(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path], box: tuple[float, float, float, float]
) -> None:
    source = write(tmp_path, {"train": {"a": [(0, 1, 1, 9, 9, False), (0, *box, False)]}, "val": VAL})
    train = read_dataset(source).train
    assert [sample.labels.boxes_xyxy.tolist() for sample in train.samples] == [[[1, 1, 9, 9]]]
    (entry,) = train.left_out
    assert entry.reason == Reason.ROW and "is not inside its image of 100x80. Correct or remove it" in entry.what
    places = ("a.txt`, line 2", "annotation 101 (a.png)", "a.xml`, object 2")  # the file, and where in it
    assert any(place in entry.what for place in places)
    with pytest.raises(DataError, match=r"1 bad label row\), which --strict forbids"):
        read_dataset(source, strict=True)


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_voc])
def test_read_dataset_only_bad_rows_is_an_error_that_names_them(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path]
) -> None:
    source = write(tmp_path, {"train": {"a": [(0, 900, 900, 950, 950, False)]}, "val": VAL})
    with pytest.raises(DataError, match=r"the 1 image of `train` have no box\..* Left out: .* is not inside its image"):
        read_dataset(source)


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_voc])
def test_read_dataset_boxes_that_are_all_under_a_pixel_are_refused(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path]
) -> None:
    speck: Boxes = {"a": [(0, 10, 10, 10.5, 10.25, False), (1, 20, 20, 20.75, 20.5, False)], "b": []}
    with pytest.raises(DataError, match="All 2 boxes of `train` are under a pixel wide and high, the first in"):
        read_dataset(write(tmp_path / "all", {"train": speck, "val": VAL}))
    one = speck | {"b": [(0, 10, 10, 12, 10.25, False)]}
    assert len(read_dataset(write(tmp_path / "one", {"train": one, "val": VAL})).train.samples) == 2


def test_read_dataset_declared_size_that_differs_raises(tmp_path: Path) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    Image.new("RGB", (200, 160)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.png` is 200x160 pixels \(upright\), but its label was made for 100x80"):
        read_dataset(source)


def test_make_split_normalised_boxes_in_a_format_of_pixels_are_refused(tmp_path: Path) -> None:
    images = [LabelledImage(tmp_path / "a.jpg", [Row("`a.json`, annotation 1", 0, (0.1, 0.2, 0.5, 0.9))])]
    with pytest.raises(DataError, match="annotation 1: all 1 boxes of `train` lie in"):
        make_split(images, "train", 1)


@pytest.mark.parametrize("write", [write_coco, write_voc])
def test_read_dataset_pictures_in_formats_that_are_not_read_are_named(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path]
) -> None:
    """Their labels are there, so boxes are lost with them."""
    source = write(tmp_path, {"train": TRAIN, "val": VAL})
    image = next(path for path in tmp_path.rglob("a.png"))
    image.rename(image.with_suffix(".nef"))
    for labels in [*tmp_path.rglob("*.json"), *tmp_path.rglob("a.xml")]:
        labels.write_text(labels.read_text().replace("a.png", "a.nef"))
    train = read_dataset(source).train
    assert [sample.path.stem for sample in train.samples] == ["b", "c"]
    assert [entry.reason for entry in train.left_out] == [Reason.FORMAT] and "a.nef" in train.left_out[0].what
