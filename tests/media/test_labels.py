"""Labels: COCO JSON, YOLO data sets, CSV and lines of JSON, written frame by frame."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from frames import CLASSES, clip_frames, files, found, image_frame
from PIL import Image
from small_bundle import photo

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.errors import DataError
from prompt_tune.media.labels import Coco, Csv, JsonLines, Yolo
from prompt_tune.media.sources import Frame
from prompt_tune.runtime.detections import Detections


def test_coco_document_has_images_frames_and_their_detections(tmp_path: Path) -> None:
    skipped: dict[str, str] = {}
    with Coco(tmp_path, CLASSES, info={"iou": 0.7}, skipped=skipped) as sink:
        for frame in (image_frame("ä.png"), *clip_frames(2)):
            sink.write(frame, found(frame))
        skipped["broken.jpg"] = "why"
        assert files(tmp_path) == [name for name in files(tmp_path) if name.startswith(".detections")]
    document = json.loads((tmp_path / "detections.json").read_text(encoding="utf-8"))
    assert list(document) == ["info", "images", "categories", "annotations"]
    assert document["info"] == {"iou": 0.7, "skipped": ["broken.jpg"]}
    clip = {"video": "clip.mov", "width": 65, "height": 49}
    assert document["images"] == [
        {"id": 1, "file_name": "ä.png", "width": 60, "height": 40},
        {"id": 2, "file_name": "clip.mov/000000.jpg", "frame": 0, "seconds": 0.0, **clip},
        {"id": 3, "file_name": "clip.mov/000001.jpg", "frame": 1, "seconds": 0.1, **clip},
    ]
    rows = [(row["id"], row["image_id"], row["category_id"], row["vocabulary"]) for row in document["annotations"]]
    assert rows[:2] == [(1, 1, 1, "original"), (2, 1, 3, "learned")] and rows[5] == (6, 3, 3, "learned")
    assert document["annotations"][1]["bbox"] == [8.5, 4.5, 16, 16]
    assert files(tmp_path) == ["detections.json"]


def test_coco_document_without_any_detection_is_json(tmp_path: Path) -> None:
    with Coco(tmp_path, CLASSES) as sink:
        sink.write(image_frame(), found(image_frame(), rows=0))
    document = json.loads((tmp_path / "detections.json").read_text(encoding="utf-8"))
    assert (len(document["images"]), document["annotations"]) == (1, [])


def test_yolo_data_set_is_read_back_with_its_boxes(tmp_path: Path) -> None:
    sources = tmp_path / "in"
    sources.mkdir()
    for number in range(5):
        Image.fromarray(photo(40, 60, seed=number)).save(sources / f"{number}.png")
    frames = [image_frame(f"{number}.png", sources / f"{number}.png") for number in range(5)]
    with Yolo(tmp_path, CLASSES) as sink:
        for frame in (*frames, *clip_frames(2)):
            sink.write(frame, found(frame, rows=0 if frame.name == "4.png" else 2))
    data = read_dataset(tmp_path / "yolo" / "data.yaml")
    assert data.names == ("person", "truck", "gizmo: [a]") and data.held_out
    samples = {sample.path.name: sample for sample in (*data.train.samples, *data.val.samples)}
    assert sorted(samples) == ["0.png", "1.png", "2.png", "3.png", "4.png", "clip_000000.jpg", "clip_000001.jpg"]
    for name, sample in samples.items():
        assert sample.labels.classes.tolist() == ([] if name == "4.png" else [0, 2])
        if name != "4.png":
            np.testing.assert_allclose(
                sample.labels.boxes_xyxy, [[8.0, 4.0, 24.0, 20.0], [8.5, 4.5, 24.5, 20.5]], atol=1e-3
            )
    assert (tmp_path / "yolo/images/1.png").read_bytes() == (sources / "1.png").read_bytes()
    assert np.asarray(Image.open(tmp_path / "yolo/images/clip_000001.jpg")).shape == (49, 65, 3)


def test_yolo_names_of_two_vocabularies_and_labels_of_two_images_stay_apart(tmp_path: Path) -> None:
    twice = (("original", "person"), ("learned", "gizmo: [a]"), ("other", "person"))
    for name in ("images/a.png", "images/a.jpg", "upload"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo(40, 60)).save(tmp_path / name, format="PNG")
    with Yolo(tmp_path, twice) as sink:
        for name in ("images/a.png", "images/a.jpg", "upload"):
            frame = image_frame(name, tmp_path / name)
            sink.write(frame, found(frame, rows=1))
    assert [name for name in files(tmp_path / "yolo") if not name.endswith(".txt")] == [
        "data.yaml",
        "images/images_a-2.jpg",
        "images/images_a.png",
        "images/upload.png",
    ]
    data = read_dataset(tmp_path / "yolo" / "data.yaml")
    assert data.names == ("original:person", "gizmo: [a]", "other:person")
    assert all(sample.labels.classes.tolist() == [0] for sample in (*data.train.samples, *data.val.samples))


def test_yolo_box_without_an_area_is_left_out(tmp_path: Path) -> None:
    frame = image_frame("a.bin")
    flat = found(frame)
    flat.boxes_xyxy[0] = (60, 4, 60, 20)
    with Yolo(tmp_path, CLASSES) as sink:
        sink.write(frame, flat)
    assert (tmp_path / "yolo/labels/a.bin.txt").read_text() == "2 0.275000 0.312500 0.266667 0.400000\n"


def test_yolo_never_mixes_with_labels_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    with pytest.raises(DataError, match="is there already, and its labels would mix with the new ones"):
        Yolo(tmp_path, CLASSES)
    with pytest.raises(DataError, match=r"all are hidden\. Show one\."):
        Yolo(tmp_path / "new", ())


def test_csv_has_a_line_for_each_detection(tmp_path: Path) -> None:
    with Csv(tmp_path) as sink:
        for frame in (image_frame('a,"b".png'), *clip_frames(1)):
            sink.write(frame, found(frame))
    with open(tmp_path / "detections.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["file_name", "video", "frame", "seconds", "vocabulary", "class", "score", "x1", "y1", "x2", "y2"],
        ['a,"b".png', "", "", "", "original", "person", "0.5", "8.0", "4.0", "24.0", "20.0"],
        ['a,"b".png', "", "", "", "learned", "gizmo: [a]", "0.25", "8.5", "4.5", "24.5", "20.5"],
        ["clip.mov/000000.jpg", "clip.mov", "0", "0.0", "original", "person", "0.5", "8.0", "4.0", "24.0", "20.0"],
        ["clip.mov/000000.jpg", "clip.mov", "0", "0.0", "learned", "gizmo: [a]", "0.25", "8.5", "4.5", "24.5", "20.5"],
    ]


def test_csv_has_no_cell_that_a_spreadsheet_runs(tmp_path: Path) -> None:
    frame = image_frame("=cmd|'/c calc'!A1.png")
    hostile = Detections(
        np.array([[-1, 2, 3, 4]], np.float32),
        np.array([0.5], np.float32),
        np.zeros(1, np.int64),
        ("@SUM(A1)",),
        ("-label",),
        size_wh=(60, 40),
    )
    with Csv(tmp_path) as sink:
        sink.write(frame, hostile)
    with open(tmp_path / "detections.csv", encoding="utf-8", newline="") as file:
        (_, row) = csv.reader(file)
    assert row == [
        *("'=cmd|'/c calc'!A1.png", "", "", "", "'-label", "'@SUM(A1)"),
        *("0.5", "-1.0", "2.0", "3.0", "4.0"),  # numbers stay numbers
    ]


def test_lines_are_there_as_soon_as_a_frame_is_written() -> None:
    file = io.StringIO()
    with JsonLines(file) as sink:
        sink.write(image_frame(), found(image_frame(), rows=1))
        assert json.loads(file.getvalue()) == {
            "file_name": "a.png",
            "width": 60,
            "height": 40,
            "detections": [
                {"vocabulary": "original", "class": "person", "score": 0.5, "box_xyxy": [8.0, 4.0, 24.0, 20.0]}
            ],
        }
        frame = clip_frames(2)[1]
        sink.write(frame, found(frame, rows=0))
    last = json.loads(file.getvalue().splitlines()[-1])
    assert (last["video"], last["frame"], last["seconds"], last["detections"]) == ("clip.mov", 1, 0.1, [])
    assert not file.closed


def test_lines_are_ascii_and_read_back(tmp_path: Path) -> None:
    with open(tmp_path / "lines", "w", encoding="ascii") as file, JsonLines(file) as sink:
        sink.write(image_frame("\u8ca8\u8eca \U0001f69a.png"), found(image_frame()))
    (line,) = (tmp_path / "lines").read_text(encoding="ascii").splitlines()
    assert json.loads(line)["file_name"] == "\u8ca8\u8eca \U0001f69a.png"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_lines_onto_a_full_disk_are_an_error_of_one_line() -> None:
    def write() -> None:
        with open("/dev/full", "w", encoding="utf-8") as file:
            try:
                with JsonLines(file) as sink:
                    sink.write(image_frame(), found(image_frame()))
            finally:
                os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # what is buffered would fail again

    with pytest.raises(DataError, match=r"^Cannot write the lines of JSON: No space left on device\. Make room\.$"):
        write()


@pytest.mark.parametrize("names", [("A.png", "a.jpg"), ("a.png", "A.PNG")])
def test_yolo_labels_whose_names_differ_in_case_alone_stay_apart(names: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with Yolo(tmp_path, CLASSES) as sink:
        for rows, name in enumerate(names):
            path = tmp_path / "in" / name
            Image.fromarray(photo(40, 60)).save(path, format="PNG")
            frame = image_frame(name, path)
            sink.write(frame, found(frame, rows=rows))
        for frame in (*clip_frames(1, "C.mp4"), *clip_frames(1, "c.mp4")):
            sink.write(frame, found(frame))
    labels = files(tmp_path / "yolo" / "labels")
    assert len({name.casefold() for name in labels}) == len(labels) == 4
    assert labels[1:] == ["C_000000.txt", "a-2.txt", "c-2_000000.txt"] or labels[0] == "A-2.txt"
    data = read_dataset(tmp_path / "yolo")
    counts = [len(sample.labels.classes) for sample in (*data.train.samples, *data.val.samples)]
    assert sorted(counts) == [0, 1, 2, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are not text")
def test_name_that_is_not_text_is_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    frame = Frame(name, photo(40, 60))
    with Coco(tmp_path, CLASSES, skipped={name: "why"}) as coco, Csv(tmp_path) as table:
        for sink in (coco, table):
            sink.write(frame, found(frame))
    document = json.loads((tmp_path / "detections.json").read_text(encoding="utf-8"))
    assert (document["images"][0]["file_name"], document["info"]["skipped"]) == (name, [name])
    assert "\n\\udcff.png," in (tmp_path / "detections.csv").read_text(encoding="utf-8")


def test_yolo_of_a_video_and_a_picture_of_the_same_name_keep_both(tmp_path: Path) -> None:
    path = tmp_path / "clip_000000.jpg"
    Image.fromarray(photo(40, 60)).save(path)
    with Yolo(tmp_path, CLASSES) as sink:
        for frame in (*clip_frames(1), image_frame(path.name, path), *clip_frames(1, "b/clip.mov")):
            sink.write(frame, found(frame))
    assert files(tmp_path / "yolo/images") == ["b_clip_000000.jpg", "clip_000000-2.jpg", "clip_000000.jpg"]


def test_yolo_has_labels_of_its_classes_only(tmp_path: Path) -> None:
    frame = image_frame()
    with Yolo(tmp_path, CLASSES[2:]) as sink:
        sink.write(frame, found(frame))
    (line,) = (tmp_path / "yolo/labels/a.txt").read_text().splitlines()
    assert line.startswith("0 ") and read_dataset(tmp_path / "yolo", keep_few=True).names == ("gizmo: [a]",)


def test_yolo_of_a_video_is_read_by_ultralytics_and_supervision_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("ultralytics.data.utils", reason="ultralytics is not installed")
    dataset = pytest.importorskip("ultralytics.data.dataset", reason="ultralytics is not installed")
    with Yolo(tmp_path, CLASSES) as sink:
        for frame in clip_frames(3):
            sink.write(frame, found(frame, rows=frame.index or 0))
    monkeypatch.chdir(tmp_path)
    content = utils.check_det_dataset("yolo/data.yaml", autodownload=False)
    assert content["names"] == {0: "person", 1: "truck", 2: "gizmo: [a]"}
    labels = dataset.YOLODataset(content["val"], data=content, task="detect", augment=False).labels
    read = {Path(entry["im_file"]).name: entry["cls"].ravel().tolist() for entry in labels}
    assert read == {"clip_000000.jpg": [], "clip_000001.jpg": [0], "clip_000002.jpg": [0, 2]}

    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    roboflow = supervision.DetectionDataset.from_yolo("yolo/images", "yolo/labels", "yolo/data.yaml")
    assert roboflow.classes == ["person", "truck", "gizmo: [a]"]
    counts = {Path(path).name: len(annotations) for path, _, annotations in roboflow}
    assert counts == {"clip_000000.jpg": 0, "clip_000001.jpg": 1, "clip_000002.jpg": 2}


def test_names_of_a_data_set_are_cut_where_disks_take_no_longer_ones(tmp_path: Path) -> None:
    """All lie in one folder, so the names of the folders that they lay in are added."""
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    Image.fromarray(photo(40, 60)).save(deep / "a.png")
    names = [f"{deep.parent.name}/{deep.name}/{name}.png" for name in "ab"]
    with Yolo(tmp_path, CLASSES) as sink:
        for name in names:
            frame = image_frame(name, deep / "a.png")
            sink.write(frame, found(frame))
        for clip in ("v" * 251 + ".mp4", "\U0001f600" * 62 + ".mp4", "w" * 230 + "-1.mp4", "w" * 230 + "-2.mp4"):
            for number, frame in enumerate(clip_frames(2)):
                moved = Frame(clip, frame.image, number, 0.0)
                sink.write(moved, found(moved))
    images, labels = (
        sorted(path.stem for path in (tmp_path / "yolo" / part).iterdir()) for part in ("images", "labels")
    )
    assert images == labels and len(images) == len(names) + 8
    assert all(stem.isascii() or len(stem.encode()) <= 251 for stem in images)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_written_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.png")
    Image.fromarray(photo(40, 60)).save(tmp_path / name)
    frame = image_frame(name, tmp_path / name)
    with Coco(tmp_path, CLASSES) as coco, Csv(tmp_path) as table, Yolo(tmp_path, CLASSES) as labels:
        for sink in (coco, table, labels):
            sink.write(frame, found(frame))
    document = json.loads((tmp_path / "detections.json").read_text(encoding="utf-8"))
    assert document["images"][0]["file_name"] == name
    assert "a\\udcff.png" in (tmp_path / "detections.csv").read_text(encoding="utf-8")
    assert (tmp_path / "yolo" / "images" / name).read_bytes() == (tmp_path / name).read_bytes()
