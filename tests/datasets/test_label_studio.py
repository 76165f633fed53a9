"""Label Studio's JSON: addresses of images, turned boxes, several annotations, and tasks without one."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import save_images
from exports import label_studio_region as region
from exports import label_studio_task as task

from prompt_tune.datasets.label_studio import is_label_studio, read_label_studio
from prompt_tune.datasets.named import Found
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.samples import Reason
from prompt_tune.errors import DataError

BOX = (10.0, 20.0, 50.0, 60.0)


def read(tmp_path: Path, tasks: Any, *stems: str) -> Found:
    save_images(tmp_path / "photos", list(stems or ("a",)))
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    assert is_label_studio(tmp_path)
    return read_label_studio(tmp_path)["train"]


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/1/5e0c1b2a-a.png",
        "/data/local-files/?d=photos%2Fa.png",
        "/data/local-files/?d=set/photos/a.png",
        "s3://bucket/folder/a.png",
        "https://site.example/x/a.png?X-Amz-Signature=1",
        "http://localhost:8080/data/upload/a.png",
    ],
)
def test_the_image_of_an_address(tmp_path: Path, address: str) -> None:
    found = read(tmp_path, [task(1, address, [region("lorry", BOX)])])
    assert [image.path for image in found.images] == [tmp_path / "photos/a.png"]
    np.testing.assert_allclose(found.images[0].rows[0].box_xyxy, (0.1, 0.25, 0.5, 0.75))


def test_a_turned_rectangle_turns_about_its_corner_in_pixels(tmp_path: Path) -> None:
    """40 pixels wide and 20 high with the corner at (50, 10), turned by 90 degrees: left of and below the corner."""
    turned = region("lorry", (50.0, 10.0, 90.0, 30.0))
    turned["value"]["rotation"] = 90
    (image,) = read(tmp_path, [task(1, "a.png", [turned])]).images
    np.testing.assert_allclose(image.rows[0].box_xyxy, (30 / 100, 10 / 80, 50 / 100, 50 / 80), atol=1e-9)


@pytest.mark.parametrize(
    ("value", "box"),
    [
        ({"points": [[10, 20], [50, 30], [30, 60]], "polygonlabels": ["lorry"]}, (0.1, 0.2, 0.5, 0.6)),
        ({"x": 30, "y": 40, "radiusX": 20, "radiusY": 10, "ellipselabels": ["lorry"]}, (0.1, 0.3, 0.5, 0.5)),
        ({"x": 10, "y": 20, "width": 40, "height": 40, "rotation": 0, "labels": ["lorry"]}, (0.1, 0.2, 0.5, 0.6)),
    ],
)
def test_the_box_around_other_regions(tmp_path: Path, value: dict[str, Any], box: tuple[float, ...]) -> None:
    choice = {"type": "choices", "value": {"choices": ["day"]}}
    (image,) = read(tmp_path, [task(1, "a.png", [choice, region("x", BOX, value=value)])]).images
    np.testing.assert_allclose(image.rows[0].box_xyxy, box)
    assert image.left_out == [] and len(image.rows) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"brushlabels": ["lorry"], "format": "rle", "rle": [1]}, "`brushlabels` have no box"),
        ({"x": 1, "y": 2, "width": "3", "height": 4, "rectanglelabels": ["lorry"]}, "a region has `x`, `y`, `width`"),
        ({"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": [7]}, "the labels of a region must be texts"),
    ],
)
def test_a_bad_region_is_left_out(tmp_path: Path, value: dict[str, Any], message: str) -> None:
    (image,) = read(tmp_path, [task(7, "a.png", [region("x", BOX, 5, value=value)])]).images
    assert image.rows == [] and [entry.reason for entry in image.left_out] == [Reason.ROW]
    assert message in image.left_out[0].what and "task 7, region 'r5'" in image.left_out[0].what


def test_of_several_annotations_the_ground_truth_counts_else_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tasks = [task(1, "a.png", []), task(2, "b.png", []), task(3, "c.png", [])]
    results = [{"result": [region(name, BOX)], "was_cancelled": name == "late"} for name in ("old", "new", "late")]
    tasks[0]["annotations"] = results
    tasks[1]["annotations"] = [results[0] | {"ground_truth": True}, *results[1:]]
    tasks[2]["annotations"] = [results[2]]
    tasks[2]["predictions"] = [results[0]]
    found = read(tmp_path, tasks, "a", "b", "c")
    assert [[row.name for row in image.rows] for image in found.images] == [["new"], ["old"]]
    assert [(entry.reason, "nobody has annotated" in entry.what) for entry in found.left_out] == [
        (Reason.UNLABELLED, True)
    ]
    assert "2 tasks with several annotations" in caplog.text


def test_a_task_that_was_never_annotated_is_not_damaged(tmp_path: Path) -> None:
    """What `detect --save label-studio` writes has predictions alone until somebody corrects them."""
    fresh = task(2, "b.png", [])
    fresh["predictions"] = [{"result": fresh.pop("annotations")[0]["result"]}]
    found = read(tmp_path, [task(1, "a.png", [region("lorry", BOX)]), fresh], "a", "b")
    assert len(found.images) == 1
    assert [(entry.reason, "nobody has annotated" in entry.what) for entry in found.left_out] == [
        (Reason.UNLABELLED, True)
    ]


def test_tasks_that_nobody_has_annotated_are_no_data_set(tmp_path: Path) -> None:
    fresh = [{key: value for key, value in task(1, "a.png", []).items() if key != "annotations"}]
    save_images(tmp_path, ["a"])
    (tmp_path / "tasks.json").write_text(
        json.dumps([entry | {"predictions": [{"original_width": 9}]} for entry in fresh])
    )
    with pytest.raises(DataError, match=r"^the `train` split cannot be used: nobody has labelled its 1 image\.$"):
        read_dataset(tmp_path)


def test_what_cannot_be_read_is_left_out_or_refused(tmp_path: Path) -> None:
    good = task(1, "a.png", [region("lorry", BOX)])
    bad = [
        task(2, "a.txt", []),
        task(3, "gone.png", []),
        task(4, "a.png", [region("lorry", BOX, image_rotation=90)]),
        5,
    ]
    found = read(tmp_path, [good, *bad])
    assert len(found.images) == 1
    texts = [entry.what for entry in found.left_out]
    assert [text.split("task ")[1].split(":")[0] for text in texts] == ["2", "3", "4", "5"]
    parts = (
        "its data name no image",
        "there is no image 'gone.png'",
        "was turned in Label Studio",
        "must be an object",
    )
    assert all(part in text for part, text in zip(parts, texts, strict=True))
    (tmp_path / "again.json").write_text((tmp_path / "export.json").read_text())
    with pytest.raises(DataError, match=r"has 2 exports of Label Studio \(again.json, export.json\)"):
        read_dataset(tmp_path)
