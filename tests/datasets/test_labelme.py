"""labelme's JSON files: every shape, files beside and elsewhere, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_sets import save_images
from exports import labelme_content, labelme_shape

from prompt_tune.datasets.labelme import is_labelme, read_labelme
from prompt_tune.datasets.named import Found
from prompt_tune.datasets.samples import Reason
from prompt_tune.datasets.shapes import Box


def read(tmp_path: Path, shapes: list[dict[str, Any]], file: str = "a.json", image: str = "a.png") -> Found:
    save_images(tmp_path, ["a"])
    place = tmp_path / file
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(labelme_content(image, shapes)))
    assert is_labelme(tmp_path)
    return read_labelme(tmp_path)["train"]


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("rectangle", [[50, 60], [10, 20]], (10, 20, 50, 60)),
        ("polygon", [[10, 20], [50, 30], [30, 60]], (10, 20, 50, 60)),
        ("circle", [[30, 40], [33, 44]], (25, 35, 35, 45)),
        ("mask", [[10, 20], [50, 60]], (10, 20, 50, 60)),
        ("oriented_rectangle", [[30, 10], [50, 30], [30, 50], [10, 30]], (10, 10, 50, 50)),
        ("linestrip", [[10, 20], [50, 30], [30, 60]], (10, 20, 50, 60)),
    ],
)
def test_the_box_around_each_shape(tmp_path: Path, kind: str, points: list[list[float]], box: Box) -> None:
    (image,) = read(tmp_path, [labelme_shape("lorry", points, kind)]).images
    assert [(row.name, row.box_xyxy) for row in image.rows] == [("lorry", box)]
    assert image.size_wh == (100, 80)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (labelme_shape("lorry", [[1, 2]], "point"), "a shape 'point' of 1 points has no box"),
        (labelme_shape("", [[1, 2], [3, 4]]), "a shape has a `label`"),
        (labelme_shape("lorry", [[1, 2], [3]]), "`points` must be a list of"),
        ([], "a shape has a `label`"),
    ],
)
def test_a_bad_shape_is_left_out(tmp_path: Path, shape: Any, message: str) -> None:
    (image,) = read(tmp_path, [shape, labelme_shape("lorry", [[1, 2], [3, 4]])]).images
    assert len(image.rows) == 1
    assert [entry.reason for entry in image.left_out] == [Reason.ROW]
    assert message in image.left_out[0].what and "shape 1" in image.left_out[0].what


@pytest.mark.parametrize("name", ["..\\a.png", "C:\\Users\\me\\photos\\a.png", "renamed.png", "../../elsewhere/a.png"])
def test_the_image_of_a_file_in_another_folder(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, [labelme_shape("lorry", [[1, 2], [3, 4]])], "labels/a.json", name)
    assert [image.path for image in found.images] == [tmp_path / "a.png"]


def test_images_without_a_file_are_left_out_and_without_shapes_are_background(tmp_path: Path) -> None:
    save_images(tmp_path, ["b"])
    (tmp_path / "c.json").write_text('{"version": "6", "shapes": [], "imagePath": "a.png"')
    found = read(tmp_path, [])
    assert [(image.path.stem, image.rows) for image in found.images] == [("a", [])]
    assert [entry.reason for entry in found.left_out] == [Reason.IMAGE, Reason.UNLABELLED]
    assert "c.json` is not valid JSON" in found.left_out[0].what
    assert f"`{tmp_path / 'b.png'}` has no entry" in found.left_out[1].what
