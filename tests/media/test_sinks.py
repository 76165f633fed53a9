"""Annotated pictures and videos, COCO JSON, YOLO labels, CSV and lines of JSON, written a frame at a time."""

import csv
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from clips import greys
from PIL import Image
from small_bundle import photo

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.errors import DataError
from prompt_tune.media.labels import Coco, Csv, JsonLines, Yolo
from prompt_tune.media.sinks import Pictures, Sink, Videos
from prompt_tune.media.sources import Frame
from prompt_tune.runtime.detections import ClassKey, Detections

CLASSES: tuple[ClassKey, ...] = (("original", "person"), ("original", "truck"), ("learned", "gizmo: [a]"))


def found(frame: Frame, *, rows: int = 2) -> Detections:
    """A person at 8, 4 to 24, 20 and a gizmo in the same place, half a pixel on."""
    height, width = frame.image.shape[:2]
    boxes = np.array([[8, 4, 24, 20], [8.5, 4.5, 24.5, 20.5]], np.float32)[:rows]
    return Detections(
        boxes,
        np.array([0.5, 0.25], np.float32)[:rows],
        np.array([0, 0])[:rows],
        ("person", "gizmo: [a]")[:rows],
        ("original", "learned")[:rows],
        (width, height),
    )


def image_frame(name: str = "a.png", path: Path | None = None) -> Frame:
    return Frame(name, photo(40, 60), path=path)


def clip_frames(count: int, name: str = "clip.mov") -> list[Frame]:
    return [Frame(name, image, number, number / 10) for number, image in enumerate(greys(count, height=49, width=65))]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


SINKS: list[Callable[[Path], Sink]] = [
    Videos,
    lambda out: Coco(out, CLASSES),
    lambda out: Yolo(out, CLASSES),
    Csv,
    Pictures,
]


@pytest.mark.parametrize("make", SINKS)
def test_sink_after_an_error_leaves_no_file_that_is_not_whole(make: Callable[[Path], Sink], tmp_path: Path) -> None:
    def interrupted() -> None:
        with make(tmp_path) as sink:
            for frame in clip_frames(3):
                sink.write(frame, found(frame))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    whole = [name for name in files(tmp_path) if name.startswith(("yolo/images/", "yolo/labels/"))]
    assert files(tmp_path) == whole


@pytest.mark.parametrize("make", SINKS[:4])
def test_sink_memory_does_not_grow_with_the_frames(make: Callable[[Path], Sink], tmp_path: Path) -> None:
    few = clip_frames(1)[0]
    with make(tmp_path) as sink:
        peaks = []
        tracemalloc.start()
        for number in range(300):
            frame = Frame(few.name, few.image, number, number / 10)
            sink.write(frame, found(frame))
            if number in (99, 299):
                peaks.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 10_000, "200 frames more, each of 9,555 bytes"


def test_pictures_have_the_images_name_and_leave_videos_alone(tmp_path: Path) -> None:
    with Pictures(tmp_path) as sink:
        for frame in (image_frame("deep/a.png"), image_frame("upload"), *clip_frames(1)):
            sink.write(frame, found(frame))
    assert files(tmp_path) == ["deep/a.png", "upload.png"]
    drawn = np.asarray(Image.open(tmp_path / "deep" / "a.png"))
    assert drawn.shape == (40, 60, 3) and (drawn != photo(40, 60)).any()


@pytest.mark.parametrize(("make", "name"), [(Pictures, "a.png"), (Videos, "clip.mp4")])
def test_drawing_never_replaces_a_file_of_the_source(
    make: Callable[[Path, list[Path]], Sink], name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"mine")
    frame = image_frame(name) if name == "a.png" else clip_frames(1, name)[0]
    error = pytest.raises(DataError, match=r"would replace an image of yours\. Choose another --out\.")
    with error, make(tmp_path, [tmp_path / name]) as sink:
        sink.write(frame, found(frame))
    assert (tmp_path / name).read_bytes() == b"mine"


def test_videos_have_the_frames_with_their_times_and_boxes(tmp_path: Path) -> None:
    frames = clip_frames(8)
    frames = [frame for frame in frames if frame.index != 3]  # one was missed
    with Videos(tmp_path) as sink:
        for frame in (*frames, *clip_frames(2, "next.mp4"), image_frame()):
            sink.write(frame, found(frame))
    assert files(tmp_path) == ["clip.mov.mp4", "next.mp4"]
    with av.open(str(tmp_path / "clip.mov.mp4")) as container:
        decoded = list(container.decode(video=0))
    np.testing.assert_allclose([frame.time for frame in decoded], [0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7], atol=1e-3)
    images = [frame.to_ndarray(format="rgb24") for frame in decoded]
    assert {image.shape for image in images} == {(48, 64, 3)}  # H.264 wants even sides
    for image, frame in zip(images, frames, strict=True):
        assert abs(int(image[40, 50].mean()) - int(frame.image[40, 50].mean())) < 6, "away from the boxes"
        assert image[4:21, 8:25].std() > 15, "where the boxes are"


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
    assert sorted(samples) == ["0.png", "000000.jpg", "000001.jpg", "1.png", "2.png", "3.png", "4.png"]
    for name, sample in samples.items():
        assert sample.labels.classes.tolist() == ([] if name == "4.png" else [0, 2])
        if name != "4.png":
            np.testing.assert_allclose(
                sample.labels.boxes_xyxy, [[8.0, 4.0, 24.0, 20.0], [8.5, 4.5, 24.5, 20.5]], atol=1e-3
            )
    assert (tmp_path / "yolo/images/1.png").read_bytes() == (sources / "1.png").read_bytes()
    assert np.asarray(Image.open(tmp_path / "yolo/images/clip.mov/000001.jpg")).shape == (49, 65, 3)


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
        "images/images/a-2.jpg",
        "images/images/a.png",
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


@pytest.mark.parametrize("make", SINKS)
def test_place_that_cannot_be_written_is_one_line(make: Callable[[Path], Sink], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    frame = image_frame() if make is Pictures else clip_frames(1)[0]
    error = pytest.raises(
        DataError, match=r"^Cannot write `[^\n]*`: Not a directory\. Choose another --out or make room"
    )
    with error, make(tmp_path / "file" / "out") as sink:
        sink.write(frame, found(frame))
