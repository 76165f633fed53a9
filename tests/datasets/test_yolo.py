"""Data sets in ultralytics' format: paths, label lines, and one line that cures each mistake."""

import re
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml
from data_sets import TRAIN, VAL, check_split, save_images, write_yolo
from PIL import Image

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.samples import Reason
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
        ("lorry 0.5 0.5 0.2 0.2", r"line 2: a box is .* Received: `lorry 0.5"),
        ("0 0.5 0.5 0.2 0.2 0.9", r".* Received: 6\. A confidence, an angle, a track or keypoints .* are not read"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.9", r"line 2: a box is .* Received: 8"),
        ("0 0.1 0.1 nan 0.1 0.2 0.2", r"line 2: the polygon has numbers that are not finite"),
        ("0 0.5 0.5 0.2 0.4 0.45 0.6 2 0.5 0.5 1", r"line 2: .* the keypoints of a pose"),
        ("0 0.5 nan 0.2 0.2", r"line 2: the box .* not finite"),
        ("0 0.5 0.5 inf 0.2", r"line 2: the box .* not finite"),
        ("0 0.5 0.5 -0.2 0.2", r"line 2: the box .* negative width or height"),
        ("0 50 40 20 20", r"line 2: the box .* is not inside its image"),
    ],
)
def test_read_yolo_bad_line_is_left_out_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "labels/train/b.txt").write_text(f"1 0.5 0.5 0.2 0.2\n{line}\n1 0.3 0.3 0.2 0.2")
    train = read_dataset(source).train
    assert train.samples[1].labels.classes.tolist() == [1, 1]
    (entry,) = train.left_out
    assert entry.reason == Reason.ROW and re.search(r"b\.txt`, " + message, entry.what) and "\n" not in entry.what
    with pytest.raises(DataError, match=r"1 bad label row\), which --strict forbids"):
        read_dataset(source, strict=True)


@pytest.mark.parametrize("class_id", [2, -1])
def test_read_yolo_class_id_outside_the_names_raises(tmp_path: Path, class_id: int) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "labels/train/b.txt").write_text(f"1 0.5 0.5 0.2 0.2\n{class_id} 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=rf"line 2: class id {class_id} is outside the names \(0 to 1\)"):
        read_dataset(source)


def test_read_yolo_label_files_that_cannot_be_read_leave_their_images_out(tmp_path: Path) -> None:
    """Their boxes are unknown, so that the images are no background."""
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "labels/train/b.txt").write_bytes(b"1 0.5 0.5 0.2 0.2 \xe9\n")
    (tmp_path / "labels/train/c.txt").symlink_to(tmp_path / "gone")
    train = read_dataset(source).train
    assert [sample.path.stem for sample in train.samples] == ["a"]
    assert [entry.reason for entry in train.left_out] == [Reason.IMAGE, Reason.LINK]
    assert (
        "b.txt` is not UTF-8 text (byte 18)" in train.left_out[0].what
        and "b.png` is left out" in train.left_out[0].what
    )
    assert "c.txt` is a link that leads nowhere" in train.left_out[1].what


def test_read_yolo_rotated_box_of_four_corners_is_the_box_around_it(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    for path in (tmp_path / "labels/train").iterdir():
        path.write_text("1 0.4 0.5 0.5 0.4 0.6 0.5 0.5 0.6\n")
    train = read_dataset(source).train
    np.testing.assert_allclose(train.samples[0].labels.boxes_xyxy, [[40, 32, 60, 48]], atol=1e-4)
    assert train.left_out == ()


def test_read_yolo_set_of_poses_is_refused_by_name(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.4 0.45 0.6 0.5 0.5\n1 0.3 0.5 0.2 0.2 0.3 0.5 0 0\n")
    (tmp_path / "labels/train/b.txt").write_text("0 0.5 0.5 0.2 0.4 0.55 0.6 0.5 0.4\n")
    with pytest.raises(DataError, match=r"have no box\..*a\.txt`, line 1: this looks like a box and the keypoints"):
        read_dataset(source)
    (tmp_path / "labels/train/b.txt").write_text("0 0.1 0.5 0.6 0.25 0.3 0.75\n")  # polygons, of several lengths
    assert [len(sample.labels) for sample in read_dataset(source).train.samples] == [2, 1, 0]


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


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("big fork.png", "big%20fork.txt"),
        ("big%20fork.png", "big fork.txt"),
        ("FORK.PNG", "fork.txt"),
        ("fork.png", "FORK.TXT"),
        ("a\\b.png", "a\\b.txt"),
        ("\udcff.png", "\udcff.txt"),
    ],
)
def test_read_yolo_label_is_found_in_another_spelling(tmp_path: Path, image: str, label: str) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "images/train/a.png").rename(tmp_path / "images/train" / image)
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train" / label)
    found = [s for s in read_dataset(source).train.samples if s.path.name == image]
    assert [sample.labels.classes.tolist() for sample in found] == [[0, 1]]


def test_read_yolo_label_of_another_image_is_not_taken(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "images/train/c.png").rename(tmp_path / "images/train/A.png")  # background
    assert {s.path.stem: len(s.labels) for s in read_dataset(source).train.samples} == {"A": 0, "a": 2, "b": 1}


def test_read_yolo_images_that_share_a_label_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    Image.open(tmp_path / "images/train/a.png").save(tmp_path / "images/train/a.jpg")
    assert [len(sample.labels) for sample in read_dataset(source).train.samples] == [2, 2, 1, 0]
    (told,) = [text for text in caplog.messages if "share" in text]
    assert told.startswith("2 images share 1 label file") and "a.jpg" in told and "a.png" in told


@pytest.mark.parametrize(
    "lines",
    [
        "images\\train\\a.png\n.\\images\\train\\b.png\n",
        "images/train/A.PNG\nIMAGES/Train/b.png\n",
        "images%2Ftrain%2Fa.png\nimages/train/%62.png\n",
        "images/train/a.png\nimages/train/._a.png\nimages/.ipynb_checkpoints/a.png\nimages/train/b.png\n",
    ],
)
def test_read_yolo_list_is_read_as_systems_write_it(tmp_path: Path, lines: str) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL}, train="train.txt", val="images\\val")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "train.txt").write_text(lines, encoding)
        data = read_dataset(source)
        assert [sample.path for sample in data.train.samples] == [
            tmp_path / f"images/train/{stem}.png" for stem in "ab"
        ]
        assert data.train.left_out == () and len(data.val.samples) == 1


def test_read_yolo_list_with_a_name_that_is_not_utf8_ends_nothing(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL}, train="train.txt")
    (tmp_path / "images/train/a.png").rename(tmp_path / "images/train/\udcff.png")
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train/\udcff.txt")
    (tmp_path / "train.txt").write_bytes(b"images/train/\xff.png\nimages/train/\xfe.png\nimages/train/b.png\n")
    train = read_dataset(source).train
    assert [len(sample.labels) for sample in train.samples] == [1, 2] and len(train.left_out) == 1


def test_read_yolo_broken_links_are_named(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL}, val="val.txt")
    for link in ("images/train/x.png", "images/val/y.png"):
        (tmp_path / link).symlink_to(tmp_path / "gone")
    (tmp_path / "val.txt").write_text("images/val/d.png\nimages/val/y.png\n")
    data = read_dataset(source)
    for split, name in ((data.train, "x.png"), (data.val, "y.png")):
        (entry,) = split.left_out
        assert entry.reason == Reason.LINK and name in entry.what


def test_read_yolo_marked_files_are_read(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    for file in (source, tmp_path / "labels/train/a.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    train = read_dataset(source).train
    assert train.samples[0].labels.classes.tolist() == [0, 1] and train.left_out == ()


@pytest.mark.parametrize(("image", "label"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")])
def test_read_yolo_label_is_found_however_its_name_is_written(tmp_path: Path, image: Form, label: Form) -> None:
    """macOS decomposes accents; some tools write suffixes in capitals."""
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    name = "kühler"
    (tmp_path / "images/train/a.png").rename(tmp_path / "images/train" / (unicodedata.normalize(image, name) + ".png"))
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train" / (unicodedata.normalize(label, name) + ".TXT"))
    found = [s for s in read_dataset(source).train.samples if s.path.name.startswith("k")]
    assert [sample.labels.classes.tolist() for sample in found] == [[0, 1]]


def test_read_yolo_picture_in_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL}, val="val.txt")
    for name in ("train/x.psd", "val/y.psd", "train/notes.txt"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "val.txt").write_text("images/val/d.png\nimages/val/y.psd\n")
    data = read_dataset(source)
    for split, name in ((data.train, "x.psd"), (data.val, "y.psd")):
        (entry,) = split.left_out
        assert entry.reason == Reason.FORMAT and f"{name}`: files of image editors: export them as PNG." in entry.what


def test_read_yolo_labels_without_an_image_are_named(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    folder = tmp_path / "labels/train"
    assert not read_dataset(source).train.left_out
    (tmp_path / "images/train/a.png").unlink()
    (folder / "classes.txt").write_text("lorry\ntraffic light\n")
    (folder / "empty.txt").write_text("")
    (entry,) = read_dataset(source).train.left_out
    assert entry.reason == Reason.ALONE and entry.what.startswith(f"`{folder / 'a.txt'}` has boxes, but `")
    (tmp_path / "images/train/a.heic").write_bytes(b"")  # its image is there, in a format that is not read
    assert [entry.reason for entry in read_dataset(source).train.left_out] == [Reason.FORMAT]
