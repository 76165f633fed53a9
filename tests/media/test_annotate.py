"""Detections of a whole source: what is counted, what is written, and when it ends."""

import gc
import json
import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import greys, write_clip
from frames import files
from PIL import Image
from small_bundle import learned_for, photo, small_bundle

from prompt_tune.errors import DataError
from prompt_tune.media.annotate import Output, annotate, model_version
from prompt_tune.media.draw import draw
from prompt_tune.media.fonts import Fonts
from prompt_tune.media.sources import Frame, open_source
from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.version import __version__


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")


@pytest.fixture(scope="module")
def detector(bundle: Path) -> Detector:
    return Detector(bundle, threads=1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images and a file that is not one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        Image.fromarray(photo(60, 90, seed=number)).save(folder / name)
    (folder / "c.png").write_bytes(b"no picture")
    return folder


def test_annotate_counts_what_the_detector_finds(detector: Detector, photos: Path, tmp_path: Path) -> None:
    result = annotate(detector, open_source(photos), out=tmp_path / "out", save=["csv"])
    expected = detector.detect([photos / "a.png", photos / "b.png"])
    assert (result.images, result.frames, result.missed, result.broken, result.stopped) == (2, 0, 0, None, False)
    assert len(result.skipped) == 1 and "c.png` cannot be read as an image" in result.skipped[0]
    assert sum(result.detections.values()) == sum(map(len, expected))
    key = ("learned", "forklift")
    assert result.detections[key] == sum(found.class_names.count("forklift") for found in expected)
    assert result.images_with[key] == sum("forklift" in found.class_names for found in expected)
    assert files(tmp_path / "out") == ["detections.csv"]


def test_annotate_very_large_jpeg_keeps_the_frame_of_its_boxes(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_tune.runtime.opening.WHOLE_MEGAPIXELS", 1)
    path, out = tmp_path / "a.jpe", tmp_path / "out"
    Image.fromarray(photo(60, 90)).resize((1500, 1000)).save(path, "JPEG")
    (expected,) = detector.detect(path)
    drawn: list[tuple[int, ...]] = []

    def noted(image: np.ndarray, found: Detections) -> Image.Image:
        drawn.append((*image.shape, *found.size_wh))
        return draw(image, found)

    monkeypatch.setattr("prompt_tune.media.sinks.draw", noted)
    annotate(detector, open_source(path), out=out, save=["coco", "pictures", "labelme"])
    document = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    assert (document["images"][0]["width"], document["images"][0]["height"]) == expected.size_wh == (1500, 1000)
    boxes = np.array([one["bbox"] for one in document["annotations"]])
    wanted = np.hstack([expected.boxes_xyxy[:, :2], expected.boxes_xyxy[:, 2:] - expected.boxes_xyxy[:, :2]])
    np.testing.assert_allclose(boxes, wanted, atol=0.01)
    assert len(boxes) and boxes[:, 2].max() > 200, "boxes in pixels of the reduced image would be half as wide"
    assert drawn == [(500, 750, 3, 750, 500)]
    assert Image.open(out / "a.jpe.png").size == (750, 500)
    (copied,) = (path for path in (out / "labelme").rglob("*") if path.suffix in (".jpg", ".jpe", ".png"))
    assert Image.open(copied).size == (1500, 1000), "an image that has to be converted is written whole"


def test_annotate_stops_when_it_is_asked_and_finishes_its_files(detector: Detector, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", greys(12))
    asked = iter((False, False, True))
    result = annotate(
        detector, open_source(clip), out=tmp_path / "out", save=["coco"], show=["forklift"], stop=lambda: next(asked)
    )
    assert (result.frames, result.stopped) == (3, True)
    document = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert [image["frame"] for image in document["images"]] == [0, 1, 2]


def test_annotate_writes_for_annotation_tools(detector: Detector, photos: Path, tmp_path: Path) -> None:
    """Classes are those of the learned vocabulary, unless `show` names others."""
    annotate(detector, open_source(photos), out=tmp_path / "out", save=["label-studio", "cvat", "labelme"])
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["cvat", "label-studio", "labelme"]
    (tasks,) = (tmp_path / "out").rglob("tasks.json")
    version = json.loads(tasks.read_text(encoding="utf-8"))[0]["predictions"][0]["model_version"]
    assert version == f"prompt-tune {__version__}, learned {detector.vocabularies['learned'].digest[:12]}"
    labels = json.loads((tmp_path / "out/cvat/labels.json").read_text(encoding="utf-8"))
    assert [label["name"] for label in labels] == ["gizmo", "forklift"]
    expected = [found.of("learned").class_names for found in detector.detect([photos / "a.png", photos / "b.png"])]
    written = [json.loads((tmp_path / f"out/labelme/{stem}.json").read_text())["shapes"] for stem in "ab"]
    assert [tuple(shape["label"] for shape in shapes) for shapes in written] == expected
    assert model_version(Detector(detector.bundle, use_bundled=False)).startswith(
        f"prompt-tune {__version__}, original "
    )


@pytest.mark.parametrize("save", ["pictures", "coco", "yolo", "csv", "label-studio", "cvat", "labelme"])
def test_annotate_without_a_folder_is_refused(save: Output, detector: Detector, photos: Path) -> None:
    with pytest.raises(DataError, match=r"^`out` must be a folder, because `save` names something to write"):
        annotate(detector, open_source(photos), save=(save,))


def test_annotate_of_nothing_readable_writes_nothing(detector: Detector, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^None of 2 images can be read: `[^\n]*a.jpg` cannot be read as an image"):
        annotate(detector, open_source(tmp_path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_annotate_names_characters_without_a_font_in_one_line(
    bundle: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("prompt_tune"), "propagate", True)
    fresh = Fonts()
    for module in ("annotate", "draw"):
        monkeypatch.setattr(f"prompt_tune.media.{module}.FONTS", fresh)
    names = ("\U00050000", "\U00050001", "\U00050002")  # no font has them
    more = tmp_path / "more.vocab.safetensors"
    learned_for(bundle, *names, thresholds=np.float32(0.01)).save(more)
    result = annotate(
        Detector(bundle, learned=[more], threads=1), open_source(photos), out=tmp_path / "out", show=["more:*"]
    )
    assert len(result.detections) > 0
    (record,) = {id(record): record for record in caplog.records}.values()  # some versions of pytest hand it on twice
    assert record.getMessage().startswith(f"No installed font can draw {' '.join(names)}: pictures show their codes")


def test_annotate_a_long_video_runs_in_constant_memory(detector: Detector, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", greys(25, height=120, width=160) * 8)
    source, calls = open_source(clip), 0
    assert source.total == 200
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()

    def count(stage: str, done: int, total: int | None, note: str) -> None:
        nonlocal calls
        calls += 1
        if done % 50 == 25:
            alive.update(item for item in gc.get_objects() if type(item) is Frame)
        assert len(alive) <= 3, "frames are let go"

    save: tuple[Output, ...] = ("coco", "csv", "yolo")
    result = annotate(detector, source, out=tmp_path, save=save, show=["forklift"], progress=count)
    assert (result.frames, calls) == (200, 201)


def watched(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A list that gets the number of images and `batch` of every call of `detect`."""
    calls: list[tuple[int, int]] = []
    detect = detector.detect

    def detect_and_note(images: list[np.ndarray], *, batch: int, **options: Any) -> list[Detections]:
        calls.append((len(images), batch))
        return detect(images, batch=batch, **options)

    monkeypatch.setattr(detector, "detect", detect_and_note)
    return calls


def test_batches_change_no_file_but_pad_to_their_size(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images and a damaged one, three at once: what `Detector.detect` gives at that batch."""
    calls = watched(detector, monkeypatch)
    result = annotate(detector, open_source(photos), out=tmp_path / "out", save=["coco"], batch=3)
    assert (calls, result.images, len(result.skipped)) == ([(2, 3)], 2, 1)
    document = json.loads((tmp_path / "out" / "detections.json").read_text("utf-8"))
    expected = detector.detect([photos / "a.png", photos / "b.png"], batch=3)
    scores = [round(float(score), 6) for found in expected for score in found.scores]
    assert len(scores) > 10 and [entry["score"] for entry in document["annotations"]] == scores
    assert document["info"]["skipped"] == ["c.png"]


def test_frames_of_a_live_source_never_wait_for_a_batch(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(photos)
    monkeypatch.setattr(source, "live", True)
    calls = watched(detector, monkeypatch)
    annotate(detector, source, out=tmp_path / "out", save=["coco"], batch=8)
    assert calls == [(1, 1), (1, 1)]


def test_stop_within_a_batch_finishes_the_files_with_the_frames_so_far(
    detector: Detector, photos: Path, tmp_path: Path
) -> None:
    result = annotate(detector, open_source(photos), out=tmp_path / "out", save=["coco"], batch=2, stop=lambda: True)
    assert (result.images, result.stopped) == (1, True)
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text("utf-8"))["images"]) == 1
