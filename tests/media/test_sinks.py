"""Sinks in general, annotated pictures and annotated videos."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from frames import CLASSES, clip_frames, files, found, image_frame
from PIL import Image
from small_bundle import photo

from prompt_tune.errors import DataError
from prompt_tune.media.labels import Coco, Csv, Yolo
from prompt_tune.media.sinks import Pictures, Places, Sink, Videos
from prompt_tune.media.sources import Frame

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


@pytest.mark.parametrize("make", SINKS)
def test_place_that_cannot_be_written_is_one_line(make: Callable[[Path], Sink], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    frame = image_frame() if make is Pictures else clip_frames(1)[0]
    error = pytest.raises(DataError, match=r"^Cannot write [^\n]*: Not a directory\. Choose another --out or make room")
    with error, make(tmp_path / "file" / "out") as sink:
        sink.write(frame, found(frame))


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


def test_places_that_differ_in_case_or_unicode_form_alone_stay_apart() -> None:
    places = Places()
    names = ["A.png", "a.PNG", "a-2.png", "a.jpg", "K\u00e4fer.png", "Ka\u0308fer.png", "b/a.png"]
    taken = [places.take(Path(name)).as_posix() for name in names]
    assert taken == [*names[:1], "a-2.PNG", "a-2-2.png", "a.jpg", names[4], "Ka\u0308fer-2.png", "b/a.png"]


def test_pictures_and_videos_whose_names_differ_in_case_alone_stay_apart(tmp_path: Path) -> None:
    with Pictures(tmp_path) as pictures, Videos(tmp_path) as videos:
        for frame in (image_frame("A.png"), image_frame("a.png"), *clip_frames(2, "C.mp4"), *clip_frames(2, "c.mp4")):
            for sink in (pictures, videos):
                sink.write(frame, found(frame))
    assert files(tmp_path) == ["A.png", "C.mp4", "a-2.png", "c-2.mp4"]


def test_names_as_long_as_a_disk_takes_are_cut_and_stay_apart(tmp_path: Path) -> None:
    long = "x" * 250
    with Pictures(tmp_path) as sink:
        for name in (f"{long}.jfif", f"{long}.avif", "sub/" + "ä" * 125 + ".mpo"):
            sink.write(image_frame(name), found(image_frame(name)))
    written = files(tmp_path)
    assert [len(path.rpartition("/")[2].encode()) for path in written] == [255, 255, 255]
    assert len({Path(path).stem[:-2] for path in written}) >= 2 and all(path.endswith(".png") for path in written)


@pytest.mark.parametrize("suffix", [".jfif", ".avif", ".gif", ".mpo", ".heic"])
def test_drawing_of_a_format_that_not_every_program_reads_is_a_png(tmp_path: Path, suffix: str) -> None:
    with Pictures(tmp_path) as sink, Yolo(tmp_path, CLASSES) as labels:
        sink.write(image_frame(f"a{suffix}"), found(image_frame()))
        labels.write(image_frame(f"a{suffix}"), found(image_frame()))
    assert files(tmp_path) == [
        f"a{suffix}.png",
        "yolo/data.yaml",
        f"yolo/images/a{suffix}.png",
        f"yolo/labels/a{suffix}.txt",
    ]


def test_picture_that_its_format_cannot_hold_is_named_and_the_next_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A PNG under the name of a WebP, wider than a WebP can be."""
    wide = Frame("a.webp", np.zeros((1, 17_000, 3), np.uint8))
    with Pictures(tmp_path) as sink:
        for frame in (wide, image_frame("b.png")):
            sink.write(frame, found(frame, rows=0))
    assert files(tmp_path) == ["b.png"]
    (line,) = caplog.messages
    assert line.startswith(f"`{tmp_path / 'a.webp'}` is not written: 17000 x 1 pixels cannot be written as .webp: ")
    assert "\n" not in line


def test_long_names_are_cut_to_what_disks_take(tmp_path: Path) -> None:
    names = ["x" * 255, "y" * 251 + ".png", "\U0001f600" * 63 + ".gif"]
    with Pictures(tmp_path) as sink:
        for name in names:
            frame = image_frame(name)
            sink.write(frame, found(frame))
    written = files(tmp_path)
    assert len(written) == 3 and all(len(name.encode()) <= 255 and name.endswith(".png") for name in written)
