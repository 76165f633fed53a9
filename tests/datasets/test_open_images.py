"""Open Images: identifiers of classes, groups, and images that nobody downloaded."""

import logging
from pathlib import Path

import pytest
from data_sets import NAMES, TRAIN, save_images
from exports import IDENTIFIERS, open_images

from prompt_tune.datasets.open_images import is_open_images, read_open_images
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.samples import Reason
from prompt_tune.errors import DataError


def test_boxes_of_other_images_are_passed_over_and_images_without_boxes_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    open_images(tmp_path, {"train": TRAIN})
    save_images(tmp_path / "train", ["c"])
    assert is_open_images(tmp_path)
    found = read_open_images(tmp_path)["train"]
    assert [image.path.stem for image in found.images] == ["a", "b"]
    assert [row.ignore for row in found.images[1].rows] == [False, True]
    assert found.names == tuple(NAMES)  # of three in the file of names
    assert [(entry.reason, "c.png` has no box in" in entry.what) for entry in found.left_out] == [
        (Reason.UNLABELLED, True)
    ]
    assert "1 box of images that are not here" in caplog.text


def test_lines_that_break_a_rule_are_left_out(tmp_path: Path) -> None:
    open_images(tmp_path, {"train": TRAIN})
    file = tmp_path / "oidv6-train-annotations-bbox.csv"
    with open(file, "a") as table:
        table.write(f"a,xclick,/m/none,1,0,1,0,1,0,0,0,0,0\na,xclick,{IDENTIFIERS[0]},1,x,1,0,1,0,0,0,0,0\na,xclick\n")
    data = read_dataset(tmp_path, keep_few=True)
    assert [entry.reason for entry in data.train.left_out] == [Reason.ROW] * 3
    texts = " ".join(entry.what for entry in data.train.left_out)
    assert "class '/m/none' is not in the file" in texts and "a box has four numbers" in texts and "2 of 13" in texts


def test_without_names_or_columns_it_is_an_error(tmp_path: Path) -> None:
    open_images(tmp_path, {"train": TRAIN})
    file = tmp_path / "oidv6-train-annotations-bbox.csv"
    file.write_text(file.read_text().replace("XMin", "Left"))
    with pytest.raises(DataError, match="has no column XMin"):
        read_dataset(tmp_path)
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(DataError, match=r"names classes by identifiers.* Add `class-descriptions-boxable.csv`"):
        read_dataset(tmp_path)
