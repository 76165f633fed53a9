"""Data sets in COCO's JSON: categories, mistakes in the file, and the memory that parsing takes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from data_sets import NAMES, TRAIN, VAL, coco_content, save_images, write_coco
from places import ROOT

from prompt_tune.datasets.coco import read_roboflow
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.errors import DataError


def test_read_coco_category_without_boxes_keeps_its_place(tmp_path: Path) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    for split in ("train", "val"):
        content = json.loads((tmp_path / f"{split}.json").read_text())
        content["categories"].append({"id": 1, "name": "person", "supercategory": "person"})  # COCO's own
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    data = read_dataset(source)
    assert data.names == ("person", *NAMES)
    assert data.train.samples[0].labels.classes.tolist() == [1, 2]


def test_read_coco_bad_content_raises(tmp_path: Path) -> None:
    def edited(key: str, position: int, **values: object) -> str:
        content = coco_content(TRAIN)
        content[key][position] |= values
        return json.dumps(content)

    cases = [
        ("{", "is not valid JSON"),
        ("[]", "must have a list `images`"),
        (json.dumps(coco_content(TRAIN) | {"annotations": {}}), "must have a list `annotations`"),
        (edited("annotations", 1, category_id=99), "annotation 101: class id 99 is outside the categories"),
        (edited("annotations", 1, category_id=[7]), "class id .* is outside the categories"),
        (edited("annotations", 1, image_id=9), "annotation 101: there is no image 9"),
        (edited("annotations", 1, bbox=[1, 2, 3]), r"annotation 101: `bbox` must be \[x, y, width, height\]"),
        (edited("annotations", 1, bbox=[1, 2, 3, "4"]), "`bbox` must be"),
        (edited("annotations", 1, bbox=[1, 2, float("nan"), 4]), r"annotation 101 \(a\.png\): the box .* not finite"),
        (edited("annotations", 1, bbox=[1, 2, -3, 4]), "annotation 101 .* negative width or height"),
        (edited("images", 1, id=0), "an image has an `id` of its own"),
        (edited("images", 1, file_name=None), "and a `file_name`"),
        (edited("categories", 0, name=None), "a category has an integer `id` and a `name`"),
        (edited("categories", 0, name="other"), "category 17 is `other` in one file and `traffic light` in"),
        (edited("categories", 0, id=7), "category 7 is `traffic light` in one file and `lorry` in"),
    ]
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    for text, message in cases:
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            read_dataset(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"names": ["a"]}, "a COCO description has path, test, train, val. Received: names"),
        ({"val": "val"}, r"`val` must be \{images: FOLDER, annotations: FILE\}"),
        ({"val": {"images": "val"}}, r"`val` must be \{images: FOLDER, annotations: FILE\}"),
        ({"val": {"images": "val", "annotations": "gone.json"}}, r"there is no `.*gone\.json`"),
    ],
)
def test_read_coco_bad_description_raises(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    source.write_text(yaml.safe_dump(yaml.safe_load(source.read_text()) | keys))
    with pytest.raises(DataError, match=message):
        read_dataset(source)


def test_read_coco_polygons_do_not_take_memory(tmp_path: Path) -> None:
    # the rest of the peak is the file's text, as bytes and decoded; with polygons it is more than five times the file
    source = write_coco(tmp_path, {"train": TRAIN})
    content = coco_content(TRAIN)
    rng = random.Random(0)
    polygon = [round(rng.uniform(0, 100), 2) for _ in range(160)]
    row = content["annotations"][0]
    content["annotations"] = [row | {"id": i, "segmentation": [polygon], "area": 9.5} for i in range(4000)]
    content["annotations"][1]["segmentation"] = {"counts": [3, 4] * 80, "size": [80, 100]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    code = (
        "import sys, tracemalloc; from pathlib import Path\n"
        "from prompt_tune.datasets.reading import find_labels\n"
        "tracemalloc.start(); labels = find_labels(Path(sys.argv[1]))\n"
        "print(tracemalloc.get_traced_memory()[1], sum(len(image.rows) for image in labels.splits['train']))"
    )
    command = [sys.executable, "-c", code, str(source)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ).stdout
    peak, n_rows = map(int, printed.split())
    assert n_rows == 4000
    assert peak < 2.5 * (tmp_path / "train.json").stat().st_size


def test_read_roboflow_a_group_with_the_name_of_its_class_is_no_class(tmp_path: Path) -> None:
    save_images(tmp_path / "train", ["a"])
    content = coco_content({"a": [(0, 10, 10, 30, 30, False)]})
    content["categories"] = [
        {"id": 0, "name": "helmet", "supercategory": "none"},
        {"id": 1, "name": "helmet", "supercategory": "helmet"},
    ]
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(content), "utf-8")
    labels = read_roboflow(tmp_path)
    assert labels.names == ("helmet",)
    assert [row.class_id for row in labels.images("train")[0].rows] == [0]
