"""Data sets in COCO's JSON: categories, mistakes in the file, and the memory that parsing takes."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from data_sets import NAMES, TRAIN, VAL, coco_content, save_images, write_coco, write_roboflow
from places import ROOT

from prompt_tune.datasets.coco import read_roboflow
from prompt_tune.datasets.reading import find_labels, read_dataset
from prompt_tune.datasets.samples import Reason, Split
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
        (edited("annotations", 1, category_id=99), "annotation 101 .*: class id 99 is outside the categories"),
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


def train_of(tmp_path: Path, key: str, position: int, **values: object) -> Split:
    """The training images of a file in which one entry is changed. A value of `...` removes a key."""
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    content = coco_content(TRAIN)
    changed = content[key][position] | values
    content[key][position] = {key: value for key, value in changed.items() if value is not ...}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return read_dataset(source).train


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_id": 9}, "annotation 101: there is no image 9"),
        ({"image_id": [0]}, r"annotation 101: there is no image \[0\]"),
        ({"category_id": [7]}, r"\(a\.png\): `category_id` must be the id of a category. Received: \[7\]"),
        ({"bbox": [1, 2, 3]}, r"annotation 101 \(a\.png\): `bbox` must be \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, "4"]}, "`bbox` must be"),
        ({"bbox": ...}, "`bbox` must be .* Received: None"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"annotation 101 \(a\.png\): the box .* not finite"),
        ({"bbox": [1, 2, -3, 4]}, "annotation 101 .* negative width or height"),
        ({"bbox": [10, 20, 30, 40, 0.5]}, r"`bbox` must be .* With an angle, it is a rotated box"),
        ({"rotation": 30}, r"a rotated box \(by 30\) is not read"),
        ({"angle": 30}, r"a rotated box \(by 30\) is not read"),
        ({"bbox": ..., "keypoints": [10, 10, 2]}, "Keypoints alone are not read"),
        ({"bbox": ..., "segmentation": {"counts": [3, 4], "size": [80, 100]}}, r"A mask \(RLE\) alone is not read"),
        ({"bbox": [], "segmentation": [[1, 2, 3, 4]]}, "A polygon has x and y of at least three points"),
    ],
)
def test_read_coco_bad_annotation_is_left_out_and_named(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    train = train_of(tmp_path, "annotations", 1, **values)
    assert [len(sample.labels) for sample in train.samples] == [1, 2, 0]
    (entry,) = train.left_out
    assert entry.reason == Reason.ROW and re.search(message, entry.what) and "\n" not in entry.what


@pytest.mark.parametrize(
    ("values", "stems"),
    [({"id": 0}, ["c"]), ({"file_name": None}, ["a", "c"]), ({"id": ...}, ["a", "c"])],
)
def test_read_coco_bad_image_entry_is_left_out_with_its_boxes(
    tmp_path: Path, values: dict[str, object], stems: list[str]
) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    content = coco_content(TRAIN)
    changed = content["images"][1] | values
    content["images"][1] = {key: value for key, value in changed.items() if value is not ...}
    (tmp_path / "train.json").write_text(json.dumps(content))
    labels = find_labels(source)
    assert labels is not None
    assert [image.path.stem for image in labels.images("train")] == stems
    bad = [entry for entry in labels.left_out["train"] if entry.reason == Reason.IMAGE]
    assert len(bad) == 3 - len(stems) and all("`id` of its own and a `file_name`" in entry.what for entry in bad)


@pytest.mark.parametrize(
    ("values", "box"),
    [
        ({"bbox": ..., "segmentation": [[10, 20, 50, 20, 30, 40], [60, 10, 70, 10, 60, 15]]}, [10, 10, 70, 40]),
        ({"bbox": [], "segmentation": [10, 20, 50, 20, 30, 40]}, [10, 20, 50, 40]),
        ({"bbox": [10, 20, 40, 20], "attributes": {"rotation": 90.0}}, [20, 10, 40, 50]),
        ({"bbox": [10, 20, 40, 20], "attributes": {"rotation": 0.0}, "keypoints": [1, 2, 2]}, [10, 20, 50, 40]),
    ],
)
def test_read_coco_shape_is_read_as_the_box_around_it(
    tmp_path: Path, values: dict[str, object], box: list[float]
) -> None:
    train = train_of(tmp_path, "annotations", 1, **values)
    assert train.left_out == ()
    assert train.samples[0].labels.boxes_xyxy[1].tolist() == pytest.approx(box)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ku\u0308hler.png", "k\u00fchler.png"),
        ("k\u00fchler.png", "ku\u0308hler.png"),
        ("big fork.png", "big%20fork.png"),
        ("big%20fork.png", "big fork.png"),
        ("a.PNG", "a.png"),
        ("A.png", "a.png"),
        ("sub/a.png", "sub\\a.png"),
        ("sub/a.png", "Sub/a.png"),
        ("\udcff.png", "\udcff.png"),
    ],
)
def test_read_coco_image_is_found_in_another_spelling(tmp_path: Path, file: str, name: str) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "train" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "train/a.png").rename(tmp_path / "train" / file)
    content = coco_content(TRAIN)
    content["images"][0]["file_name"] = name
    (tmp_path / "train.json").write_text(json.dumps(content), "utf-8-sig")
    train = read_dataset(source).train
    assert {sample.path: len(sample.labels) for sample in train.samples}[tmp_path / "train" / file] == 2
    assert train.left_out == ()


def test_read_coco_metadata_is_no_data_and_broken_links_are_named(tmp_path: Path) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    content = coco_content(TRAIN)
    (tmp_path / "train/x.png").symlink_to(tmp_path / "gone")
    for index, name in enumerate(("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "x.png"), start=10):
        content["images"].append({"id": index, "file_name": name})
        content["annotations"].append({"id": index, "image_id": index, "category_id": 7, "bbox": [1, 1, 9, 9]})
    (tmp_path / "train.json").write_text(json.dumps(content))
    train = read_dataset(source).train
    assert [sample.path.stem for sample in train.samples] == ["a", "b", "c"]
    (entry,) = train.left_out
    assert entry.reason == Reason.LINK and "x.png" in entry.what


def test_read_coco_image_that_is_listed_twice_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    content = coco_content(TRAIN)
    content["images"].append(content["images"][0] | {"id": 9})
    content["annotations"].append(content["annotations"][0] | {"id": 9, "image_id": 9, "bbox": [60, 60, 9, 9]})
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert [len(sample.labels) for sample in read_dataset(source).train.samples] == [3, 2, 0]
    assert "lists 1 image more than once: each counts once" in caplog.text


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
def test_read_roboflow_validation_folder_has_several_names(tmp_path: Path, name: str) -> None:
    write_roboflow(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "valid").rename(tmp_path / name)
    data = read_dataset(tmp_path)
    assert not data.held_out and [sample.path.stem for sample in data.val.samples] == ["d"]


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
