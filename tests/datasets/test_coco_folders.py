"""Folders with COCO's JSON: which file is which split, and where its images lie."""

import json
from pathlib import Path

import pytest
from data_sets import NAMES, TRAIN, VAL, coco_content, save_images
from exports import cvat_coco, lvis

from prompt_tune.datasets.coco_folders import coco_places
from prompt_tune.datasets.reading import find_labels, read_dataset
from prompt_tune.errors import DataError


def test_a_cvat_task_without_subsets(tmp_path: Path) -> None:
    """CVAT calls the subset `default`; older versions put the images into `images` itself."""
    cvat_coco(tmp_path, {"train": TRAIN})
    file = (tmp_path / "annotations/instances_Train.json").rename(tmp_path / "annotations/instances_default.json")
    (tmp_path / "annotations/person_keypoints_default.json").write_text("{}")
    (tmp_path / "images/Train").rename(tmp_path / "images/default")
    assert coco_places(tmp_path) == {"train": (tmp_path / "images/default", file)}
    for path in sorted((tmp_path / "images/default").iterdir()):
        path.rename(tmp_path / "images" / path.name)
    (tmp_path / "images/default").rmdir()
    assert coco_places(tmp_path) == {"train": (tmp_path / "images", file)}


def test_coco_as_it_is_downloaded(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split, boxes in (("train", TRAIN), ("val", VAL)):
        save_images(tmp_path / f"{split}2017", list(boxes))
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(coco_content(boxes)))
    assert {split: images.name for split, (images, _) in coco_places(tmp_path).items()} == {
        "train": "train2017",
        "val": "val2017",
    }
    assert len(read_dataset(tmp_path).val.samples) == 1


def test_names_that_say_no_split_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("day", "night"):
        (tmp_path / f"annotations/instances_{name}.json").write_text("{}")
    with pytest.raises(DataError, match=r"the names of instances_day.json, instances_night.json do not say"):
        coco_places(tmp_path)
    (tmp_path / "annotations/instances_night.json").unlink()
    assert list(coco_places(tmp_path)) == ["train"]  # a single file is for training, whatever it is called


def test_lvis_classes_that_are_not_labelled_to_the_end_are_ignored_on_that_image(tmp_path: Path) -> None:
    lvis(tmp_path, {"train": TRAIN})
    file = tmp_path / "lvis_v1_train.json"
    content = json.loads(file.read_text())
    content["images"][0] |= {"not_exhaustive_category_ids": [17, 17, 99, "x"], "neg_category_ids": [7]}
    file.write_text(json.dumps(content))
    labels = find_labels(tmp_path)
    assert labels is not None and labels.names == tuple(NAMES)
    assert [(row.class_id, row.box_xyxy, row.ignore) for row in labels.images("train")[0].rows] == [
        (0, (10, 20, 50, 60), False),
        (1, (0, 0, 100, 80), False),
        (1, (0, 0, 100, 80), True),
    ]


def test_lvis_size_that_no_image_has_is_an_error(tmp_path: Path) -> None:
    lvis(tmp_path, {"train": TRAIN})
    file = tmp_path / "lvis_v1_train.json"
    content = json.loads(file.read_text())
    content["images"][0] |= {"not_exhaustive_category_ids": [17], "width": 10**400}
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="its label was made for"):
        read_dataset(tmp_path)


def test_lvis_takes_images_of_val_from_the_folder_of_train(tmp_path: Path) -> None:
    lvis(tmp_path, {"train": TRAIN, "val": {"e": VAL["d"]}})
    (tmp_path / "val2017/e.png").rename(tmp_path / "train2017/e.png")
    file = tmp_path / "lvis_v1_val.json"
    file.write_text(file.read_text().replace("org/val2017", "org/train2017"))
    assert [sample.path for sample in read_dataset(tmp_path).val.samples] == [tmp_path / "train2017/e.png"]
