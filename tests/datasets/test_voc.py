"""Data sets in Pascal VOC's format: lists, missing files, and mistakes in the XML."""

import os
import re
import shutil
from pathlib import Path

import pytest
from data_sets import TRAIN, VAL, check_split, save_images, write_devkit, write_voc
from exports import roboflow_voc
from PIL import Image

from prompt_tune.datasets.reading import find_labels, read_dataset
from prompt_tune.datasets.samples import Reason
from prompt_tune.datasets.voc import read_voc

EDGES = ("xmin", "ymin", "xmax", "ymax")


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


def objects(*inner: str, head: str = "") -> str:
    return f"<annotation>{head}{''.join(f'<object><name>x</name>{xml}</object>' for xml in inner)}</annotation>"


def bndbox(*edges: object) -> str:
    return "<bndbox>{}</bndbox>".format("".join(f"<{k}>{v}</{k}>" for k, v in zip(EDGES, edges, strict=False)))


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (f"<a><object>{bndbox(1, 2, 3, 4)}</object></a>", r"b\.xml`, object 1: it has no name"),
        (objects(""), r"object 1: it must have `<bndbox>`\. Received: no box"),
        (objects("<bndbox/>"), "object 1: `<bndbox>` must have `<xmin>`, a number"),
        (objects(bndbox("one")), r"must have `<xmin>`, a number. Received: 'one'"),
        (objects(bndbox(1, 2, 3)), r"must have `<ymax>`, a number"),
        (objects(bndbox(30, 20, 10, 40)), "negative width or height"),
        (objects("<keypoints><x1>1</x1></keypoints>"), "must have `<bndbox>`. Received: `<keypoints>`"),
        (objects("<polygon><x1>1</x1><y1>1</y1></polygon>"), "at least three points"),
        (objects("<polygon><x1>1</x1><x2>1</x2></polygon>"), "`<polygon>` must have `<y1>`"),
        (objects("<robndbox><cx>20</cx></robndbox>"), "`<robndbox>` must have `<cy>`"),
    ],
)
def test_read_voc_bad_object_is_left_out_and_named(tmp_path: Path, xml: str, message: str) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "annotations" / "b.xml").write_text(xml)
    train = read_dataset(source).train
    assert [len(sample.labels) for sample in train.samples] == [2, 0, 0]
    (entry,) = train.left_out
    assert entry.reason == Reason.ROW and re.search(message, entry.what) and "\n" not in entry.what


@pytest.mark.parametrize("xml", [b"<annotation>", b"", b'<?xml version="1.0" encoding="no-such"?><a/>', b"\xff"])
def test_read_voc_broken_xml_leaves_its_image_out(tmp_path: Path, xml: bytes) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "annotations" / "b.xml").write_bytes(xml)
    train = read_dataset(source).train
    assert [sample.path.stem for sample in train.samples] == ["a", "c"]
    (entry,) = train.left_out
    assert entry.reason == Reason.IMAGE and re.search(r"b\.xml` is not valid XML: .*", entry.what)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_read_voc_xml_in_another_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    head = '<?xml version="1.0" encoding="ISO-8859-1"?>' if encoding == "latin-1" else ""
    text = head + objects(bndbox(1, 2, 30, 40)).replace("<name>x", "<name>K\u00fchler")
    (tmp_path / "annotations" / "b.xml").write_text(text, encoding)
    assert "K\u00fchler" in read_dataset(source).names


@pytest.mark.parametrize(
    ("xml", "box"),
    [
        (
            "<robndbox><cx>30</cx><cy>30</cy><w>40</w><h>20</h><angle>1.5707963</angle></robndbox>",
            [20, 10, 40, 50],
        ),
        (
            bndbox(10, 20, 50, 40) + "<attributes><attribute><name>rotation</name><value>90.0</value></attribute>"
            "</attributes>",
            [20, 10, 40, 50],
        ),
        ("<polygon><x1>10</x1><y1>20</y1><x2>50</x2><y2>20</y2><x3>30</x3><y3>40</y3></polygon>", [10, 20, 50, 40]),
        (
            "<polygon><pt><x>10</x><y>20</y></pt><pt><x>50</x><y>20</y></pt><pt><x>30</x><y>40</y></pt></polygon>",
            [10, 20, 50, 40],
        ),
        ("<polygon><x1>1</x1></polygon>" + bndbox(10, 20, 50, 40), [10, 20, 50, 40]),
    ],
)
def test_read_voc_shape_is_read_as_the_box_around_it(tmp_path: Path, xml: str, box: list[float]) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "annotations" / "b.xml").write_text(objects(xml))
    train = read_dataset(source).train
    assert train.samples[1].labels.boxes_xyxy[0].tolist() == pytest.approx(box, abs=1e-4) and train.left_out == ()


@pytest.mark.parametrize(
    "lines",
    [
        None,
        "cam1/a\ncam2/a\nb\n",
        "cam1/a.png\ncam2/a.png\nb.png\n",
        "cam1\\a\nCam2\\a.PNG\nb\n",
        "JPEGImages/cam1/a.png\nJPEGImages/cam2/a.png\n/home/x/JPEGImages/b.png\n",
        "cam1/a\ncam2/a\nelsewhere/b.png\n",
    ],
)
def test_read_voc_subfolders_belong_to_the_data_set(tmp_path: Path, lines: str | None) -> None:
    """As CVAT exports the folders of a task: equal stems in two folders have an XML file each."""
    for folder in ("cam1", "cam2", "."):
        save_images(tmp_path / "JPEGImages" / folder, ["b" if folder == "." else "a"])
        (tmp_path / "Annotations" / folder).mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(("cam1/a", "cam2/a", "b")):
        (tmp_path / f"Annotations/{name}.xml").write_text(objects(bndbox(1, 1, 10 + index, 30)))
    if lines is not None:
        (tmp_path / "ImageSets/Main").mkdir(parents=True)
        (tmp_path / "ImageSets/Main/train.txt").write_text(lines)
        (tmp_path / "ImageSets/Main/val.txt").write_text("b\n")
    labels = find_labels(tmp_path)
    assert labels is not None
    found = {image.path.relative_to(tmp_path / "JPEGImages").as_posix(): image for image in labels.images("train")}
    widths = {name: [row.box_xyxy[2] for row in image.rows] for name, image in found.items()}
    assert widths == {"cam1/a.png": [10], "cam2/a.png": [11], "b.png": [12]}
    assert not any(labels.left_out.values())


def test_read_voc_list_of_another_folder_takes_no_other_image(tmp_path: Path) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    save_images(tmp_path / "images/cam1", ["x"])
    (tmp_path / "train.txt").write_text("a\nb\ncam1/c\n")  # there is c.png, but no cam1/c.png
    train = read_dataset(source).train
    assert [sample.path.stem for sample in train.samples] == ["a", "b"]
    assert [entry.reason for entry in train.left_out] == [Reason.IMAGE] and "cam1/c.jpg" in train.left_out[0].what


def test_read_voc_images_of_one_name_that_share_an_xml(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    Image.open(tmp_path / "images/a.png").save(tmp_path / "images/a.jpg")
    assert [len(sample.labels) for sample in read_dataset(tmp_path).train.samples] == [2, 2, 2, 0]
    assert any("2 images share 1 label file" in text and "a.jpg" in text for text in caplog.messages)
    xml = tmp_path / "annotations/a.xml"
    xml.write_text(xml.read_text().replace("<annotation>", "<annotation><filename>A.png</filename>"))
    train = read_dataset(tmp_path).train
    assert [sample.path.name for sample in train.samples] == ["a.png", "b.png", "c.png"]
    assert [entry.reason for entry in train.left_out] == [Reason.IMAGE]
    assert "a.jpg` has no XML file of its own" in train.left_out[0].what


@pytest.mark.parametrize("with_lists", [True, False])
def test_read_voc_xml_of_another_name_is_matched_by_its_filename(tmp_path: Path, with_lists: bool) -> None:
    write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    xml = tmp_path / "annotations/a.xml"
    head = "<annotation><filename>big%20fork\u0308.png</filename>"
    (tmp_path / "annotations/0001.xml").write_text(xml.read_text().replace("<annotation>", head), "utf-8")
    xml.unlink()
    (tmp_path / "images/a.png").rename(tmp_path / "images/big fork\u0308.png")
    (tmp_path / "annotations/stray.xml").write_text(objects(bndbox(1, 2, 3, 4)))
    (tmp_path / "train.txt").write_text("0001\nb\nc\n")
    if not with_lists:
        (tmp_path / "train.txt").unlink()
        (tmp_path / "val.txt").unlink()
    labels = find_labels(tmp_path)
    assert labels is not None
    assert {image.path.name: len(image.rows) for image in labels.images("train")}["big fork\u0308.png"] == 2
    assert ["stray.xml" in entry.what for entry in labels.left_out["train"]] == [True] * (not with_lists)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("ku\u0308hler.png", "k\u00fchler.xml"),
        ("a.PNG", "a.XML"),
        ("A.png", "a.xml"),
        ("a b.png", "a%20b.xml"),
        ("\udcff.png", "\udcff.xml"),
    ],
)
def test_read_voc_xml_is_found_in_another_spelling(tmp_path: Path, image: str, label: str) -> None:
    source = write_devkit(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "JPEGImages/a.png").rename(tmp_path / "JPEGImages" / image)
    (tmp_path / "Annotations/a.xml").rename(tmp_path / "Annotations" / label)
    listed = tmp_path / "ImageSets/Main/train.txt"
    listed.write_bytes(b"\xef\xbb\xbf" + os.fsencode(Path(label).stem) + b"\r\nb\r\nc\r\n")
    found = [sample for sample in read_dataset(source).train.samples if sample.path.name == image]
    assert [sample.labels.classes.tolist() for sample in found] == [[0, 1]]


@pytest.mark.parametrize("with_lists", [True, False])
def test_read_voc_metadata_is_no_data_and_broken_links_are_named(tmp_path: Path, with_lists: bool) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "images/x.png").symlink_to(tmp_path / "gone")
    for name in ("images/._a.png", "annotations/._a.xml", "images/.ipynb_checkpoints/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "train.txt").write_text("a\n._a\n.ipynb_checkpoints/a\nb\nc\nx\n")
    if not with_lists:
        (tmp_path / "train.txt").unlink()
        (tmp_path / "val.txt").unlink()
    labels = find_labels(source)
    assert labels is not None
    assert [image.path.stem for image in labels.images("train")] == ["a", "b", "c"] + ["d"] * (not with_lists)
    (entry,) = labels.left_out["train"]
    assert entry.reason == Reason.LINK and "x.png" in entry.what


def test_read_voc_size_of_zero_is_not_checked(tmp_path: Path) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    size = "<size><width>0</width><height>0</height></size>"
    for name in ("a", "b"):
        (tmp_path / f"annotations/{name}.xml").write_text(objects(bndbox(1, 2, 30, 40), head=size * (name == "a")))
    assert [len(sample.labels) for sample in read_dataset(source).train.samples] == [1, 1, 0]


def test_cvat_writes_edges_into_the_folders_of_the_devkit(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": TRAIN}, devkit=True)
    assert read_voc(tmp_path).images("train")[0].rows[0].box_xyxy == (10, 20, 50, 60)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n")
    assert read_voc(tmp_path).images("train")[0].rows[0].box_xyxy == (11, 21, 50, 60)


def test_xml_files_beside_images_in_any_folder(tmp_path: Path) -> None:
    write_voc(tmp_path / "set", {"train": TRAIN})
    for path in [*(tmp_path / "set/images").iterdir(), *(tmp_path / "set/annotations").iterdir()]:
        path.rename(tmp_path / path.name)
    shutil.rmtree(tmp_path / "set")
    check_split(read_dataset(tmp_path, keep_few=True).train, TRAIN, with_ignored=True)


def test_images_outside_the_folders_of_splits_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    roboflow_voc(tmp_path, {"train": TRAIN, "val": VAL})
    save_images(tmp_path, ["stray"])
    assert len(read_dataset(tmp_path).train.samples) == 3
    assert "1 image outside the folders of the splits, not read" in caplog.text
