"""Folders whose class names stand in a text file."""

from pathlib import Path

import pytest
from data_sets import NAMES, TRAIN, VAL, check_split, save_images
from exports import label_studio_yolo, roboflow_darknet, yolo_lines

from prompt_tune.datasets.darknet import darknet_content
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.errors import DataError


def test_labelimg_writes_labels_beside_images(tmp_path: Path) -> None:
    save_images(tmp_path, list(TRAIN))
    for stem, rows in TRAIN.items():
        (tmp_path / f"{stem}.txt").write_text(yolo_lines(rows))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    data = read_dataset(tmp_path, keep_few=True)
    assert data.names == tuple(NAMES)
    check_split(data.train, TRAIN, with_ignored=False)


def test_classes_beside_split_folders(tmp_path: Path) -> None:
    for split, boxes in (("train", TRAIN), ("val", VAL)):
        save_images(tmp_path / "images" / split, list(boxes))
        (tmp_path / "labels" / split).mkdir(parents=True)
        for stem, rows in boxes.items():
            (tmp_path / "labels" / split / f"{stem}.txt").write_text(yolo_lines(rows))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    check_split(read_dataset(tmp_path).val, VAL, with_ignored=False)


def test_lists_of_names_that_differ_are_an_error(tmp_path: Path) -> None:
    roboflow_darknet(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "valid/_darknet.labels").write_text("\n".join(NAMES[::-1]))
    with pytest.raises(DataError, match=r"_darknet.labels` and `.*_darknet.labels` differ"):
        read_dataset(tmp_path)


def test_a_text_file_alone_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\n")
    assert darknet_content(tmp_path) is None
    label_studio_yolo(tmp_path / "set", {"train": TRAIN})
    assert darknet_content(tmp_path / "set") == (tmp_path / "set/classes.txt", {"names": NAMES, "train": "images"})
