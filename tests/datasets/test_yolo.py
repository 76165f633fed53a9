"""Data sets in ultralytics' format: paths, label lines, and one line that cures each mistake."""

import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml
from data_sets import TRAIN, VAL, check_split, save_images, write_yolo
from PIL import Image

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.errors import DataError

Form = Literal["NFC", "NFD"]


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
    assert data.train.samples[0].labels.boxes_xyxy.tolist() == [[25, 20, 75, 60]]


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


@pytest.mark.parametrize("twice", [False, True])
def test_read_yolo_line_that_stands_twice_counts_once(
    tmp_path: Path, twice: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    label = tmp_path / "labels/train/a.txt"
    first, *rest = label.read_text().splitlines()
    label.write_text("\n".join([first, *rest, *([first] * twice)]) + "\n")
    assert read_dataset(source).train.samples[0].labels.classes.tolist() == [0, 1]
    told = f"Left out: `{label}`, line 3: the box stands twice."
    assert (told in caplog.text) == twice


@pytest.mark.parametrize(("image", "label"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")])
def test_read_yolo_label_is_found_however_its_name_is_written(tmp_path: Path, image: Form, label: Form) -> None:
    """macOS decomposes accents; some tools write suffixes in capitals."""
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    name = "kühler"
    (tmp_path / "images/train/a.png").rename(tmp_path / "images/train" / (unicodedata.normalize(image, name) + ".png"))
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train" / (unicodedata.normalize(label, name) + ".TXT"))
    found = [s for s in read_dataset(source).train.samples if s.path.name.startswith("k")]
    assert [sample.labels.classes.tolist() for sample in found] == [[0, 1]]
