"""Data sets in three formats: the same boxes from each, and one line that cures each mistake."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from places import SHARED

from prompt_tune.datasets.reading import DataSet, SplitName, read_dataset, read_split
from prompt_tune.datasets.samples import Split
from prompt_tune.errors import DataError

SIZE_WH = (100, 80)
RACCOON = SHARED / "data" / "raccoon"

# image -> boxes: (class, x1, y1, x2, y2, ignored); the third image is background
Boxes = dict[str, list[tuple[int, float, float, float, float, bool]]]
NAMES = ["lorry", "traffic light"]
TRAIN: Boxes = {
    "a": [(0, 10, 20, 50, 60, False), (1, 0, 0, 100, 80, False)],
    "b": [(1, 30, 10, 70, 40, False), (0, 5, 5, 25, 45, True)],
    "c": [],
}
VAL: Boxes = {"d": [(0, 20, 20, 40, 40, False)]}


def save_images(folder: Path, stems: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", SIZE_WH).save(folder / f"{stem}.png")


def write_yolo(root: Path, splits: dict[str, Boxes], **keys: object) -> Path:
    """An ultralytics data set; it has no way to say `ignore`, so that those boxes are left out."""
    for split, boxes in splits.items():
        save_images(root / "images" / split, list(boxes))
        labels = root / "labels" / split
        labels.mkdir(parents=True)
        for stem, rows in boxes.items():
            lines = [
                f"{c} {(x1 + x2) / 200} {(y1 + y2) / 160} {(x2 - x1) / 100} {(y2 - y1) / 80}"
                for c, x1, y1, x2, y2, ignored in rows
                if not ignored
            ]
            if lines:
                (labels / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    content = {"names": NAMES} | {split: f"images/{split}" for split in splits} | keys
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def coco_content(boxes: Boxes) -> dict[str, list[dict[str, object]]]:
    annotations = [
        {"image_id": image, "category_id": 10 * c + 7, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(ignored)}
        for image, rows in enumerate(boxes.values())
        for c, x1, y1, x2, y2, ignored in rows
    ]
    return {
        "images": [
            {"id": i, "file_name": f"{stem}.png", "width": SIZE_WH[0], "height": SIZE_WH[1]}
            for i, stem in enumerate(boxes)
        ],
        "annotations": [{"id": 100 + i, **annotation} for i, annotation in enumerate(annotations)],
        # out of order, as files have them: ids decide
        "categories": [{"id": 10 * c + 7, "name": NAMES[c], "supercategory": "things"} for c in (1, 0)],
    }


def write_coco(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        save_images(root / split, list(boxes))
        (root / f"{split}.json").write_text(json.dumps(coco_content(boxes)))
    content = {split: {"images": split, "annotations": f"{split}.json"} for split in splits}
    (root / "coco.yaml").write_text(yaml.safe_dump(content))
    return root / "coco.yaml"


def write_roboflow(root: Path, splits: dict[str, Boxes]) -> Path:
    for split, boxes in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        save_images(folder, list(boxes))
        content = coco_content(boxes)
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})  # as Roboflow does
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path, splits: dict[str, Boxes], *, devkit: bool = False) -> Path:
    image_folder, xml_folder = ("JPEGImages", "Annotations") if devkit else ("images", "annotations")
    lists = root / "ImageSets" / "Main" if devkit else root
    first_pixel = 1 if devkit else 0
    lists.mkdir(parents=True, exist_ok=True)
    (root / xml_folder).mkdir(parents=True)
    for split, boxes in splits.items():
        save_images(root / image_folder, list(boxes))
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in boxes))
        for stem, rows in boxes.items():
            objects = "".join(
                f"<object><name>{NAMES[c]}</name><difficult>{int(ignored)}</difficult><bndbox><xmin>{x1 + first_pixel}"
                f"</xmin><ymin>{y1 + first_pixel}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
                for c, x1, y1, x2, y2, ignored in rows
            )
            size = f"<size><width>{SIZE_WH[0]}</width><height>{SIZE_WH[1]}</height></size>"
            (root / xml_folder / f"{stem}.xml").write_text(f"<annotation>{size}\n{objects}</annotation>")
    return root


def write_devkit(root: Path, splits: dict[str, Boxes]) -> Path:
    return write_voc(root, splits, devkit=True)


def check_split(split: Split, expected: Boxes, *, with_ignored: bool) -> None:
    assert [sample.path.stem for sample in split.samples] == list(expected)
    assert split.skipped == ()
    for sample in split.samples:
        rows = [row for row in expected[sample.path.stem] if with_ignored or not row[5]]
        assert sample.size_wh == SIZE_WH
        assert sample.labels.boxes_xyxy.shape == (len(rows), 4)
        assert sample.labels.boxes_xyxy.dtype == np.float32
        assert sample.labels.classes.dtype == np.int64
        assert sample.labels.ignore.dtype == bool
        np.testing.assert_allclose(
            sample.labels.boxes_xyxy, np.array([row[1:5] for row in rows]).reshape(-1, 4), atol=1e-4
        )
        assert sample.labels.classes.tolist() == [row[0] for row in rows]
        assert sample.labels.ignore.tolist() == [row[5] for row in rows]


@pytest.mark.parametrize(
    ("write", "kind"),
    [(write_yolo, "yolo"), (write_coco, "coco"), (write_roboflow, "coco"), (write_voc, "voc"), (write_devkit, "voc")],
)
def test_read_dataset_every_format_gives_the_same_boxes(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path], kind: str
) -> None:
    source = write(tmp_path, {"train": TRAIN, "val": VAL, "test": VAL})
    data = read_dataset(source)
    assert (data.names, data.kind, data.source, data.held_out) == (tuple(NAMES), kind, source, False)
    with_ignored = kind != "yolo"
    check_split(data.train, TRAIN, with_ignored=with_ignored)
    check_split(data.val, VAL, with_ignored=with_ignored)
    assert data.test is not None
    check_split(data.test, VAL, with_ignored=with_ignored)


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_roboflow, write_voc, write_devkit])
def test_read_dataset_no_validation_holds_out_a_seeded_fifth(
    tmp_path: Path,
    write: Callable[[Path, dict[str, Boxes]], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    boxes: Boxes = {f"{i:02}": TRAIN["a"] if i < 20 else [] for i in range(30)}
    source = write(tmp_path, {"train": boxes})

    def stems(seed: int) -> list[str]:
        data = read_dataset(source, seed=seed)
        assert data.held_out and data.test is None
        train, val = ([sample.path.stem for sample in split.samples] for split in (data.train, data.val))
        assert sorted(train + val) == list(boxes)
        assert val == sorted(val)
        assert sum(int(stem) < 20 for stem in val) == 4  # of those with boxes
        assert sum(int(stem) >= 20 for stem in val) == 2  # of the background
        return val

    with caplog.at_level(logging.INFO):
        assert stems(0) == stems(0) != stems(1)
    assert len(caplog.records) == 3
    assert "6 of its 30 training images, drawn with seed 0, are held out" in caplog.messages[0]


def test_read_dataset_folder_with_one_yaml_is_read(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    assert read_dataset(str(tmp_path)).kind == "yolo"
    (tmp_path / "other.yml").write_text("train: x")
    with pytest.raises(DataError, match=r"2 YAML files \(data.yaml, other.yml\)"):
        read_dataset(tmp_path)


def test_read_yolo_lists_path_and_name_mapping_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo(tmp_path / "set", {"train": TRAIN, "val": VAL})
    (tmp_path / "set" / "train.txt").write_text("./images/train/a.png\n\nimages/train/c.png\n")
    content = {"path": "set", "train": ["train.txt"], "val": ["images/val"], "names": {1: "light", 0: "lorry"}, "nc": 2}
    for folder in (tmp_path, tmp_path / "elsewhere"):  # `path` beside the file, or in the current folder
        folder.mkdir(exist_ok=True)
        (folder / "x.yaml").write_text(yaml.safe_dump(content))
        monkeypatch.chdir(tmp_path)
        data = read_dataset(folder / "x.yaml")
        assert data.names == ("lorry", "light")
        assert [sample.path for sample in data.train.samples] == [
            tmp_path / f"set/images/train/{stem}.png" for stem in "ac"
        ]
        assert [len(sample.labels.classes) for sample in data.train.samples] == [2, 0]


def test_read_yolo_roboflow_parent_paths_are_followed(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": TRAIN, "val": VAL}, train="../images/train", val="../images/val")
    assert len(read_dataset(tmp_path).train.samples) == 3


def test_read_yolo_last_images_folder_of_the_path_becomes_labels(tmp_path: Path) -> None:
    check_split(read_dataset(write_yolo(tmp_path / "images", {"train": TRAIN, "val": VAL})).val, VAL, with_ignored=True)


def test_read_yolo_labels_beside_images_are_found(tmp_path: Path) -> None:
    save_images(tmp_path / "pictures", ["a", "b"])
    for stem in "ab":
        (tmp_path / "pictures" / f"{stem}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: pictures\nnames: [lorry]")
    data = read_dataset(tmp_path)
    assert data.train.samples[0].boxes_xyxy.tolist() == [[25, 20, 75, 60]]


def test_read_yolo_polygon_is_the_box_around_it(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "labels/train/c.txt").write_text("1 0.1 0.5 0.6 0.25 0.3 0.75")
    sample = read_dataset(source).train.samples[2]
    np.testing.assert_allclose(sample.labels.boxes_xyxy, [[10, 20, 60, 60]], atol=1e-4)
    assert sample.labels.classes.tolist() == [1]


def test_read_yolo_upright_frame_is_used_for_turned_photos(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(tmp_path / "images/train/a.png", exif=exif)
    sample = read_dataset(source).train.samples[0]
    assert sample.size_wh == (80, 100)
    np.testing.assert_allclose(sample.labels.boxes_xyxy[0], [8, 25, 40, 75], atol=1e-4)


def test_read_coco_category_without_boxes_keeps_its_place(tmp_path: Path) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    for split in ("train", "val"):
        content = json.loads((tmp_path / f"{split}.json").read_text())
        content["categories"].append({"id": 1, "name": "person", "supercategory": "person"})  # COCO's own
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    data = read_dataset(source)
    assert data.names == ("person", *NAMES)
    assert data.train.samples[0].classes.tolist() == [1, 2]


def test_read_voc_trainval_list_stands_in_for_train(tmp_path: Path) -> None:
    write_devkit(tmp_path, {"train": TRAIN, "val": VAL})
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("a\nb\nc\nd\n")
    (lists / "lorry_train.txt").write_text("a  1\nb -1\n")  # the devkit's lists of one class are not read
    (lists / "train.txt").unlink()
    data = read_dataset(tmp_path)
    assert data.held_out
    assert sorted(s.path.stem for split in (data.train, data.val) for s in split.samples) == ["a", "b", "c", "d"]


def test_read_voc_image_without_xml_is_background(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "annotations" / "b.xml").unlink()
    assert [len(sample.labels.classes) for sample in read_dataset(tmp_path).train.samples] == [2, 0, 0]


def test_read_dataset_given_names_replace_its_own(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    assert read_dataset(source, names=["truck", "signal"]).names == ("truck", "signal")
    for names, message in (
        (["truck"], r"must name the 2 classes of .* \(lorry, traffic light\). Received: 1 names."),
        (NAMES[::-1], "another order"),
        (["truck", " "], "a class name is empty"),
        (["truck", "truck"], "Repeated: truck"),
    ):
        with pytest.raises(DataError, match=message):
            read_dataset(source, names=names)


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
    assert data.train.skipped == (str(image),)
    assert caplog.messages[0].startswith(f"1 of 3 images of `train` are skipped: `{image}`")


def test_read_dataset_every_image_damaged_raises(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "images/val/d.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"the `val` split cannot be used: none of its 1 images can be read\. .*d\.png"):
        read_dataset(source)


def test_read_dataset_box_slightly_beyond_the_edge_is_clipped(tmp_path: Path) -> None:
    source = write_coco(tmp_path, {"train": {"a": [(0, -1.5, 0, 101.5, 82, False)]}, "val": VAL})
    assert read_dataset(source).train.samples[0].boxes_xyxy.tolist() == [[0, 0, 100, 80]]


def test_read_dataset_box_without_area_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes: Boxes = {"a": [(0, 10, 10, 10, 30, False), (1, 10, 10, 20, 20, False), (1, 100, 5, 101, 9, False)]}
    data = read_dataset(write_voc(tmp_path, {"train": boxes, "val": VAL}))
    assert data.train.samples[0].boxes_xyxy.tolist() == [[10, 10, 20, 20]]
    assert caplog.messages[0].startswith("2 boxes of `train` have no area and are left out, the first: `")
    assert "1 classes have no box in the training images: lorry" in caplog.messages


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_roboflow, write_voc, write_devkit])
@pytest.mark.parametrize("box", [(110, 10, 120, 20), (50, 10, 110, 20), (5, -30, 20, 20), (900, 900, 950, 950)])
def test_read_dataset_box_outside_its_image_raises(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path], box: tuple[float, float, float, float]
) -> None:
    source = write(tmp_path, {"train": {"a": [(0, 1, 1, 9, 9, False), (0, *box, False)]}, "val": VAL})
    with pytest.raises(DataError, match=r"is not inside its image of 100x80\. Correct or remove it") as caught:
        read_dataset(source)
    places = ("a.txt`, line 2", "annotation 101 (a.png)", "a.xml`, object 2")  # the file, and where in it
    assert any(place in str(caught.value) for place in places)


def test_read_dataset_declared_size_that_differs_raises(tmp_path: Path) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    Image.new("RGB", (200, 160)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.png` is 200x160 pixels \(upright\), but its label was made for 100x80"):
        read_dataset(source)


def test_read_dataset_no_boxes_raises(tmp_path: Path) -> None:
    empty: Boxes = {"a": [], "b": []}
    with pytest.raises(DataError, match="the 2 images of `train` have no box"):
        read_dataset(write_yolo(tmp_path / "yolo", {"train": empty, "val": VAL}))
    with pytest.raises(DataError, match="the 2 images of `val` have no box"):
        read_dataset(write_coco(tmp_path / "coco", {"train": TRAIN, "val": empty}))
    ignored: Boxes = {"a": [(0, 1, 1, 9, 9, True)]}
    with pytest.raises(DataError, match="the 1 images of `train` have no box"):
        read_dataset(write_voc(tmp_path / "voc", {"train": ignored, "val": VAL}))
    with pytest.raises(DataError, match="one image with boxes cannot be split"):
        read_dataset(write_yolo(tmp_path / "one", {"train": {"a": TRAIN["a"], "b": []}}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", r"line 2: a box is `class x y w h`, 5 numbers. Received: 4"),
        ("0 0.5 0.5 0.2 0.2 0.9", r"line 2: a box is .* Received: 6"),
        ("0 0.5 half 0.2 0.2", r"line 2: a box is .* Received: `0 0.5 half 0.2 0.2`"),
        ("0.5 0.5 0.5 0.2 0.2", r"line 2: a class id must be a whole number. Received: `0.5`"),
        ("nan 0.5 0.5 0.2 0.2", r"line 2: a class id must be a whole number"),
        ("2 0.5 0.5 0.2 0.2", r"line 2: class id 2 is outside the names \(0 to 1\)"),
        ("-1 0.5 0.5 0.2 0.2", r"line 2: class id -1 is outside the names"),
        ("0 0.5 nan 0.2 0.2", r"line 2: the box .* not finite"),
        ("0 0.5 0.5 inf 0.2", r"line 2: the box .* not finite"),
        ("0 0.5 0.5 -0.2 0.2", r"line 2: the box .* negative width or height"),
        ("0 50 40 20 20", r"line 2: the box .* is not inside its image"),
    ],
)
def test_read_yolo_bad_line_raises_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "labels/train/b.txt").write_text(f"1 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(DataError, match=r"b\.txt`, " + message) as caught:
        read_dataset(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": None}, "has no `train`"),
        ({"train": "nowhere"}, r"there is no `.*nowhere`. Correct the entry"),
        ({"train": 3}, "must be a folder, a text file, or a list of them"),
        ({"train": "data.yaml"}, "must be a folder of images or a .txt file"),
        ({"train": "labels"}, "holds no image"),
        ({"path": "nowhere"}, "neither beside this file nor in the current folder"),
        ({"path": 3}, "`path` must be the path of a folder"),
        ({"names": None}, "has no `names`"),
        ({"names": {0: "a", 2: "b"}}, "without a gap"),
        ({"names": ["a", False]}, "must be text. Received: False. Put it in quotes"),
        ({"names": ["a", "a"]}, "Repeated: a"),
        ({"names": ["a", ""]}, "a class name is empty"),
        ({"nc": 3}, "`nc` is 3, but `names` has 2"),
        ({"names": ["a"]}, r"class id 1 is outside the names \(0 to 0\)"),
        ({"kpt_shape": [17, 3]}, "its labels are poses"),
    ],
)
def test_read_yolo_bad_description_raises(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(write_yolo(tmp_path, {"train": TRAIN, "val": VAL}, **keys))


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


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", r"b\.xml` is not valid XML: .*line 1"),
        ("<a><object><bndbox/></object></a>", r"b\.xml`, object 1 has no name"),
        ("<a><object><name>x</name></object></a>", r"object 1: `<bndbox>` must have `<xmin>`, a number"),
        (
            "<a><object><name>x</name><bndbox><xmin>one</xmin></bndbox></object></a>",
            r"must have `<xmin>`, a number. Received: 'one'",
        ),
    ],
)
def test_read_voc_bad_xml_raises(tmp_path: Path, xml: str, message: str) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "annotations" / "b.xml").write_text(xml)
    with pytest.raises(DataError, match=message):
        read_dataset(source)


def test_read_dataset_no_data_set_there_raises(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "broken.yaml").write_text("train: [a\nb: c")
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "latin.yaml").write_bytes(b"train: \xe9t\xe9")
    (tmp_path / "empty").mkdir()
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "_annotations.coco.json").write_text(json.dumps(coco_content(VAL)))
    for name, message in (
        ("gone", "no such file or folder. Give an ultralytics YAML"),
        ("labels.json", "is no data set. Give an ultralytics YAML, a YAML that names COCO files"),
        ("empty", "is no data set that we know"),
        ("broken.yaml", r"broken\.yaml`, line 2: not valid YAML"),
        ("list.yaml", "must hold a mapping"),
        ("latin.yaml", "is not UTF-8 text"),
        ("", "has no training images"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_dataset(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("splits", [{"train": TRAIN, "val": VAL}, {"train": TRAIN}])
def test_read_split_is_that_of_the_whole_data_set(tmp_path: Path, splits: dict[str, Boxes], split: SplitName) -> None:
    source = write_yolo(tmp_path, splits)
    names, images = read_split(source, split, seed=3)
    whole = getattr(read_dataset(source, seed=3), split)
    assert names == tuple(NAMES)
    assert [sample.path for sample in images.samples] == [sample.path for sample in whole.samples]


def test_read_split_needs_no_other_split(tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "_annotations.coco.json").write_text(json.dumps(coco_content(VAL)))
    save_images(tmp_path / "valid", list(VAL))
    for source in (tmp_path, write_yolo(tmp_path / "yolo", {"val": VAL})):
        assert [sample.path.stem for sample in read_split(source, "val")[1].samples] == ["d"]
        with pytest.raises(DataError, match=r"has no `test` images\. It has: val\."):
            read_split(source, "test")
        with pytest.raises(DataError, match="has no training images"):
            read_dataset(source)


def test_read_split_without_a_box_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the 1 images of `test` have no box"):
        read_split(write_yolo(tmp_path, {"test": {"c": []}}), "test")


def test_read_dataset_validation_on_training_images_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_dataset(write_yolo(tmp_path, {"train": TRAIN}, val="images/train"))
    assert "3 validation images are training images too" in caplog.text


@pytest.mark.skipif(
    not RACCOON.is_dir(), reason=f"{RACCOON} is not there: the photos stand beside the clone, not in it"
)
def test_read_dataset_raccoon_photos_are_read_whole() -> None:
    data: DataSet = read_dataset(RACCOON)
    assert (data.names, data.kind, data.held_out, data.test) == (("raccoon",), "voc", False, None)
    assert (len(data.train.samples), len(data.val.samples)) == (160, 40)
    assert data.train.skipped == data.val.skipped == ()
    assert sum(len(sample.labels.classes) for split in (data.train, data.val) for sample in split.samples) == 217
    first = next(sample for sample in data.train.samples if sample.path.stem == "raccoon-1")
    assert (first.size_wh, first.boxes_xyxy.tolist()) == ((650, 417), [[81, 88, 522, 408]])
