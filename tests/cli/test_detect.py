"""`prompt-tune detect` from its arguments to its files."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import as_jpeg, greys, served, write_clip
from commands import run_command
from PIL import Image
from small_bundle import learned_for, photo, small_bundle

from prompt_tune.cli.detect import command
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.media.sources import open_source
from prompt_tune.models.world import World
from prompt_tune.runtime import detector as runtime
from prompt_tune.runtime.slices import Slices, detect_sliced
from prompt_tune.wording import counted

Capture = pytest.CaptureFixture[str]
FEW = ("--threads", "1", "--show", "forklift")  # a random detector finds thousands of objects, which take long to draw


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two images, the second sideways by its EXIF orientation, and a text file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(photo(60, 90)).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(64, 96, seed=1)).save(folder / "b.jpg", exif=exif)
    (folder / "notes.txt").write_text("not an image")
    return folder


def document(out: Path) -> Any:
    return json.loads((out / "detections.json").read_text(encoding="utf-8"))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_folder_gives_pictures_and_a_coco_document(bundle: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "deep" / "out"
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", out, "--threads", 1)
    assert done.status == 0, done.err
    assert names(out) == ["a.png", "b.jpg", "detections.json"]
    assert (Image.open(out / "a.png").size, Image.open(out / "b.jpg").size) == ((90, 60), (64, 96))
    assert (np.asarray(Image.open(out / "a.png")) != photo(60, 90)).any()

    found = document(out)
    assert list(found) == ["info", "images", "categories", "annotations"]
    assert found["images"] == [
        {"id": 1, "file_name": "a.png", "width": 90, "height": 60},
        {"id": 2, "file_name": "b.jpg", "width": 64, "height": 96},
    ]
    categories = {category["id"]: category for category in found["categories"]}
    assert len(categories) == 82
    assert categories[82] == {"id": 82, "name": "forklift", "supercategory": "learned", "vocabulary": "learned"}
    detector = runtime.Detector(bundle, threads=1)
    expected = detector.detect([photos / "a.png", photos / "b.jpg"])
    assert [entry["id"] for entry in found["annotations"]] == list(range(1, len(expected[0]) + len(expected[1]) + 1))
    rows = iter(found["annotations"])
    for image_id, detections in enumerate(expected, start=1):
        for box, score, name, label in zip(
            detections.boxes_xyxy, detections.scores, detections.class_names, detections.vocabularies, strict=True
        ):
            row = next(rows)
            assert (row["image_id"], row["vocabulary"]) == (image_id, label)
            category = categories[row["category_id"]]
            assert (category["name"], category["vocabulary"]) == (name, label)
            np.testing.assert_allclose(row["bbox"], [*box[:2], *(box[2:] - box[:2])], atol=1e-3)
            assert row["score"] == pytest.approx(score, abs=1e-6)
    last = done.out.splitlines()[-1]
    assert last == f"{len(found['annotations'])} detections in 2 images: {out}"
    assert done.out.splitlines()[0].split() == ["vocabulary", "class", "detections", "images"]
    n_forklifts = sum(row["category_id"] == 82 for row in found["annotations"])
    assert any(line.split() == ["learned", "forklift", str(n_forklifts), "2"] for line in done.out.splitlines())


def test_document_is_read_by_a_coco_evaluator(bundle: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    coco = pytest.importorskip("faster_coco_eval").COCO
    run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", "--threads", 1)
    found = document(tmp_path / "out")
    dataset = coco(found)
    results = dataset.loadRes(found["annotations"])
    assert len(results.getAnnIds()) == len(dataset.getAnnIds()) == len(found["annotations"])


def test_same_command_twice_writes_the_same_bytes(bundle: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    for _ in range(2):
        run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", "--threads", 1)
        content = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
        (tmp_path / "out" / "a.png").write_bytes(b"old")
    run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", "--threads", 1)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")} == content


def test_learned_files_bundled_show_hide_and_conf(bundle: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    extra = tmp_path / "trucks.vocab.safetensors"
    learned_for(bundle, "lorry [red]", "forklift").save(extra)
    out = tmp_path / "out"
    base = ["detect", bundle, "--source", photos / "a.png", "--out", out, "--threads", 1, "--learned", extra]

    def labels(*options: object) -> set[tuple[object, object]]:
        done = run_command(capfd, *base, *options)
        assert done.status == 0, done.err
        found = document(out)
        names = {category["id"]: category["name"] for category in found["categories"]}
        return {(row["vocabulary"], names[row["category_id"]]) for row in found["annotations"]}

    assert {label for label, _ in labels("--conf", 0.2)} == {"original", "learned", "trucks"}
    assert {label for label, _ in labels("--no-bundled", "--conf", 0.2)} == {"original", "trucks"}
    assert labels("--show", "forklift", "--show", "trucks:*", "--conf", 0.2) == {
        ("learned", "forklift"),
        ("trucks", "forklift"),
        ("trucks", "lorry [red]"),
    }
    assert labels("--hide", "original:*", "--hide", "trucks:*", "--hide", "gizmo") == {("learned", "forklift")}
    assert {label for label, _ in labels("--conf", 0.2, "--original-conf", 1)} == {"learned", "trucks"}
    assert {label for label, _ in labels("--conf", 1, "--original-conf", 0.3)} == {"original"}
    assert {label for label, _ in labels("--conf", 0.2, "--learned-conf", 1)} == {"original"}
    assert labels("--conf", 1) == set()
    info = document(out)["info"]
    assert (info["original_conf"], info["learned_conf"], info["iou"]) == (1, 1, None)


def test_damaged_image_among_others_is_skipped_counted_and_named(
    bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    whole = (photos / "b.jpg").read_bytes()
    (photos / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", "--threads", 1)
    assert done.status == 0
    assert names(tmp_path / "out") == ["a.png", "b.jpg", "detections.json"]
    assert f"Skipped: `{photos / 'broken.jpg'}` cannot be read as an image" in done.err
    assert "in 2 images, 1 skipped" in done.out
    assert document(tmp_path / "out")["info"]["skipped"] == ["broken.jpg"]


def test_images_that_are_all_damaged_are_an_error_and_nothing_is_written(
    bundle: Path, tmp_path: Path, capfd: Capture
) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    done = run_command(capfd, "detect", bundle, "--source", tmp_path, "--out", tmp_path / "out", "--threads", 1)
    assert done.status == 1
    assert f"Error: None of 2 images can be read: `{tmp_path / 'a.jpg'}` cannot be read as an image" in done.err
    assert not (tmp_path / "out").exists()


def test_glob_keeps_the_folders_below_the_common_one(bundle: Path, tmp_path: Path, capfd: Capture) -> None:
    for folder in ("one", "two"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.fromarray(photo(40, 40)).save(tmp_path / "in" / folder / "same.png")
    pattern = tmp_path / "in" / "**" / "*.png"
    done = run_command(capfd, "detect", bundle, "--source", pattern, "--out", tmp_path / "out", "--threads", 1)
    assert done.status == 0
    assert names(tmp_path / "out") == ["detections.json", "one/same.png", "two/same.png"]
    assert [image["file_name"] for image in document(tmp_path / "out")["images"]] == ["one/same.png", "two/same.png"]


def test_picture_never_takes_the_place_of_an_image(bundle: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, tmp_path / "link"):
        done = run_command(capfd, "detect", bundle, "--source", photos, "--out", out, "--threads", 1)
        assert done.status == 1
        assert "would replace an image of yours. Choose another --out." in done.err
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before


def test_image_without_a_known_suffix_gets_a_png(bundle: Path, tmp_path: Path, capfd: Capture) -> None:
    Image.fromarray(photo(40, 40)).save(tmp_path / "upload", format="PNG")
    done = run_command(
        capfd, "detect", bundle, "--source", tmp_path / "upload", "--out", tmp_path / "out", "--threads", 1
    )
    assert done.status == 0, done.err
    assert names(tmp_path / "out") == ["detections.json", "upload.png"]


@pytest.mark.parametrize(
    ("save", "place"),
    [
        ([], "detections.json"),
        (["pictures"], "a.png"),
        (["coco"], "detections.json"),
        (["yolo"], "yolo/images/a.png"),
        (["csv"], "detections.csv"),
        (["pictures", "yolo"], "a.png"),
    ],
)
def test_out_that_cannot_be_written_is_one_line(
    save: list[str], place: str, bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    options = [word for name in save for word in ("--save", name)]
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", out, "--threads", 1, *options)
    assert (done.status, "Traceback" in done.err) == (1, False)
    assert done.err.splitlines()[-1].startswith(f"Error: Cannot write {out / place}: Not a directory.")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_stream_onto_a_full_disk_is_one_line(bundle: Path, photos: Path) -> None:
    options = ["--source", str(photos), "--stream", "--threads", "1"]
    command = [sys.executable, "-m", "prompt_tune", "detect", str(bundle), *options]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "Error: Cannot write the lines of JSON: No space left on device. Make room." in done.stderr


@pytest.mark.parametrize("option", ["--show", "--hide"])
def test_unknown_class_is_a_usage_error_that_lists_near_names(
    option: str, bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", option, "gizmos")
    assert done.status == 2
    assert "Error: No loaded class is named 'gizmos'. Near: gizmo." in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--conf", "1.5"], 2, "1.5 is not in the range 0<=x<=1"),
        (["--device", "gpu"], 2, "Received: 'gpu'."),
        (["--device", "cuda:99"], 1, "`device='cuda:99'`"),
        (["--image-size", "100"], 1, "`image_size` must be a multiple of 32. Received: 100."),
        (["--learned", "nowhere.vocab.safetensors"], 1, "nowhere.vocab.safetensors"),
        (["--source", "nowhere"], 1, "`nowhere`: no such file or folder"),
    ],
)
def test_bad_arguments_have_their_exit_status(
    arguments: list[str], status: int, text: str, bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", *arguments)
    assert (done.status, text in done.err) == (status, True), done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["0", "cuda:1"])
def test_gpu_that_the_environment_hides_is_one_line(
    device: str, bundle: Path, photos: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", "--device", device)
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert f"Error: `device='{device}'`: the environment variable CUDA_VISIBLE_DEVICES is ''" in done.err


def test_vocabulary_of_another_detector_is_refused(bundle: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    other = tmp_path / "other.vocab.safetensors"
    learned_for(bundle, "lorry", detector="a" * 64).save(other)
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", "--learned", other)
    assert done.status == 1
    assert f"Error: `{other}` was made for detector aaaaaaaaaaaa, but" in done.err


def test_defaults_of_the_command_are_the_librarys() -> None:
    defaults = {option.name: option.default for option in command.params}
    assert (defaults["device"], defaults["threads"]) == ("cpu", 0)


def test_video_gives_an_annotated_video_and_a_document_with_its_frames(
    bundle: Path, tmp_path: Path, capfd: Capture
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [photo(60, 90, seed=seed) for seed in range(6)])
    out = tmp_path / "out"
    done = run_command(capfd, "detect", bundle, "--source", clip, "--out", out, *FEW, "--every", 2)
    assert done.status == 0, done.err
    assert names(out) == ["clip.mp4", "detections.json"]
    found = document(out)
    assert [(image["frame"], image["seconds"]) for image in found["images"]] == [(0, 0.0), (2, 0.08), (4, 0.16)]
    assert done.out.splitlines()[-1] == f"{len(found['annotations'])} detections in 3 frames: {out}"
    (copy,) = {frame.image.shape for frame in open_source(out / "clip.mp4").frames()}
    assert (copy, open_source(out / "clip.mp4").total) == ((60, 90, 3), 3)


def test_saved_yolo_labels_are_a_data_set_of_the_classes_shown(
    bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    write_clip(photos / "clip.mp4", [photo(60, 90, seed=seed) for seed in range(3)])
    out = tmp_path / "out"
    choice = ["--save", "yolo", "--save", "csv", "--show", "forklift", "--show", "gizmo", "--conf", 0.2]
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", out, "--threads", 1, *choice)
    assert done.status == 0, done.err
    data = read_dataset(out / "yolo")
    assert data.names == ("gizmo", "forklift")
    samples = [*data.train.samples, *data.val.samples]
    assert len(samples) == 5
    labels = [path.read_text().splitlines() for path in (out / "yolo" / "labels").rglob("*.txt")]
    assert len((out / "detections.csv").read_text().splitlines()) - 1 == sum(map(len, labels))
    assert sum(len(set(lines)) for lines in labels) == sum(len(sample.labels) for sample in samples)  # equal boxes once
    assert f"{sum(map(len, labels))} detections in 2 images and 3 frames" in done.out
    again = run_command(capfd, "detect", bundle, "--source", photos, "--out", out, "--threads", 1, *choice)
    assert (again.status, "would mix with the new ones" in again.err) == (1, True)


def test_saved_yolo_labels_are_those_of_learned_classes_unless_show_names_others(
    bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    def names(out: Path, *options: str) -> tuple[str, ...]:
        more = ["--save", "yolo", "--save", "coco", "--conf", 0.2, "--threads", 1, *options]
        assert run_command(capfd, "detect", bundle, "--source", photos, "--out", out, *more).status == 0
        return read_dataset(out / "yolo").names

    detector = runtime.Detector(bundle, threads=1)
    originals, learned = (
        [name for label, name in detector.classes if (label == "original") == is_original]
        for is_original in (True, False)
    )
    assert names(tmp_path / "a") == tuple(learned)
    document = json.loads((tmp_path / "a/detections.json").read_text())
    assert len(document["categories"]) == len(originals) + len(learned)
    assert len(names(tmp_path / "b", "--show", "original:*")) == len(originals)
    assert len(names(tmp_path / "c", "--show", "original:*", "--show", "learned:*")) == len(detector.classes)


def test_stream_writes_a_line_of_json_an_image_and_needs_no_folder(bundle: Path, photos: Path, capfd: Capture) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    done = run_command(capfd, "detect", bundle, "--source", photos, "--stream", "--threads", 1)
    assert done.status == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["file_name"], line["width"], line["height"]) for line in lines] == [
        ("a.png", 90, 60),
        ("b.jpg", 64, 96),
    ]
    (expected,) = runtime.Detector(bundle, threads=1).detect(photos / "a.png")
    assert [row["class"] for row in lines[0]["detections"]] == list(expected.class_names)
    assert [row["vocabulary"] for row in lines[0]["detections"]] == list(expected.vocabularies)
    boxes = [row["box_xyxy"] for row in lines[0]["detections"]]
    np.testing.assert_allclose(boxes, expected.boxes_xyxy, atol=1e-3)
    assert "Skipped: " in done.err and "in 2 images, 1 skipped" in done.err


@pytest.mark.parametrize("options", [[], ["--stream", "--save", "csv"]])
def test_out_is_missing_where_something_is_to_be_saved(
    options: list[str], bundle: Path, photos: Path, capfd: Capture
) -> None:
    done = run_command(capfd, "detect", bundle, "--source", photos, *options)
    assert (done.status, "Missing option '--out'" in done.err) == (2, True)


def test_stream_that_breaks_off_leaves_whole_files_and_status_1(bundle: Path, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out"
    with served(tmp_path, [as_jpeg(image) for image in greys(3)], breaks=True) as address:
        done = run_command(capfd, "detect", bundle, "--source", f"{address}/live", "--out", out, *FEW, "--timeout", 1)
    assert done.status == 1
    assert names(out) == ["detections.json", "stream.mp4"]
    n_frames = len(document(out)["images"])
    assert n_frames == open_source(out / "stream.mp4").total
    missed = f", {counted(3 - n_frames, 'frame')} missed" if n_frames < 3 else ""
    assert f"detections in {n_frames} frame{'s' * (n_frames != 1)}{missed}: {out}" in done.out
    assert done.err.splitlines()[-1].startswith("Error: `http://127.0.0.1:")
    assert "/live` broke off after 3 frames: nothing came for 1 seconds." in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("live", [True, False])
def test_ctrl_c_finishes_what_is_written(live: bool, number: signal.Signals, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip = write_clip(tmp_path / "clip.mp4", greys(25) * 40)
    with served(tmp_path, [as_jpeg(image) for image in greys(3)], breaks=True) as address:
        source = f"{address}/live" if live else str(clip)
        command = ["detect", str(bundle), "--source", source, "--out", str(out), "--stream", "--timeout", "2"]
        save = ("--save", "coco", "--save", "csv", "--save", "pictures")
        process = subprocess.Popen(
            [sys.executable, "-m", "prompt_tune", *command, *save, *FEW],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == (0 if live else 130), errors
    lines = [first, *map(json.loads, rest.splitlines())]
    assert len(lines) < 1000 and "Traceback" not in errors
    assert [image["file_name"] for image in document(out)["images"]] == [line["file_name"] for line in lines]
    video = "stream.mp4" if live else "clip.mp4"
    assert names(out) == sorted(["detections.csv", "detections.json", video])
    assert open_source(out / video).total == len(lines)


def test_reader_that_leaves_ends_the_stream_in_silence(bundle: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", greys(25) * 40)
    command = f"{sys.executable} -m prompt_tune detect {bundle} --source {clip} --stream {' '.join(FEW)}"
    line = f"set -o pipefail; {command} | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frame"] == 0
    assert "Broken" not in done.stderr and "Traceback" not in done.stderr


def test_several_sources_are_all_taken_and_each_image_once(
    bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "more").mkdir()
    Image.fromarray(photo(60, 90, seed=2)).save(tmp_path / "more" / "c.png")
    every = ["more/c.png", "photos/a.png", "photos/b.jpg"]
    a, b, more = photos / "a.png", photos / "b.jpg", tmp_path / "more"
    several: tuple[list[object], ...] = (
        ["--source", more, "--source", photos],
        [more, a, b],
        ["--source", more, a, b, a, photos],  # as a shell expands --source photos/*
    )
    for number, arguments in enumerate(several):
        out = tmp_path / f"out-{number}"
        done = run_command(capfd, "detect", bundle, *arguments, "--out", out, *FEW, "--save", "coco")
        assert done.status == 0, done.err
        assert [image["file_name"] for image in document(out)["images"]] == every


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 2, "Missing option '--source'"),
        (
            ["--source", "rtsp://nowhere/1", "a.png"],
            1,
            "must be the only source. Received: `rtsp://nowhere/1` and 1 more",
        ),
        (["a.png", "0"], 1, "must be the only source. Received: `0` and 1 more"),
        (["a.png", "nowhere.png"], 1, "`nowhere.png`: no such file or folder"),
        (["a.png", "--conf", "0.2", "--conf", "0.3"], 2, "Option '--conf' can be given only once"),
    ],
)
def test_sources_that_do_not_go_together_are_refused(
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    reason: str,
) -> None:
    monkeypatch.chdir(photos)
    done = run_command(capfd, "detect", bundle, *arguments, "--out", tmp_path / "out", *FEW)
    assert done.status == status and reason in done.err
    assert not (tmp_path / "out").exists()


def test_folder_is_read_with_its_subfolders_which_the_output_keeps(
    bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    for name in ("one/a.png", "two/a.png", "__MACOSX/a.png", "two/.x/a.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(32, 48)).save(photos / name)
    (photos / "two" / "loop").symlink_to(photos)
    (photos / "one" / "c.HEIC").touch()
    out = photos / "results"
    for _ in range(2):  # the second time, the results of the first are no source
        done = run_command(capfd, "detect", bundle, "--source", photos, "--out", out, *FEW)
        assert done.status == 0, done.err
        assert names(out) == ["a.png", "b.jpg", "detections.json", "one/a.png", "two/a.png"]
        assert [entry["file_name"] for entry in document(out)["images"]] == ["a.png", "b.jpg", "one/a.png", "two/a.png"]
        assert "1 picture is not looked at: 1 HEIC" in done.err and "c.HEIC`" in done.err
    done = run_command(capfd, "detect", bundle, "--source", photos, "--no-recursive", "--out", tmp_path / "flat", *FEW)
    assert done.status == 0, done.err
    assert names(tmp_path / "flat") == ["a.png", "b.jpg", "detections.json"]


def test_names_of_every_kind_end_nothing(bundle: Path, tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(photo(32, 48)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    kinds = [b"bad\xff.png", b"back\\slash.png", b"x" * 251 + b".png", b"y" * 250 + b".jfif", b"new\nline.png"]
    for name in kinds:
        (folder / os.fsdecode(name)).write_bytes(content)
    (folder / os.fsdecode(b"broken\xfe.jpg")).touch()
    (folder / os.fsdecode(b"photo\xfe.heic")).touch()
    (folder / os.fsdecode(b"link\xfe.jpg")).symlink_to("nowhere")
    saved = [part for name in ("pictures", "coco", "yolo", "csv") for part in ("--save", name)]
    done = run_command(capfd, "detect", bundle, "--source", folder, "--out", tmp_path / "out", *saved, *FEW)
    assert done.status == 0, done.err
    assert f"in {len(kinds)} images, 1 skipped" in done.out.replace("\n", " ")
    assert len(document(tmp_path / "out")["images"]) == len(kinds)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(kinds)
    for word in ("broken", "photo", "link"):
        assert word in done.err
    done = run_command(capfd, "detect", bundle, "--source", "q" * 5000, "--stream", *FEW)
    assert done.status == 1 and "no such file or folder" in done.err


def test_overlap_marks_hidden_rows_and_keeps_them_in_json(
    bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    original = runtime.Detector(bundle, use_bundled=False).vocabularies["original"]
    twins = replace(
        learned_for(bundle, *original.names), embeddings=original.embeddings, thresholds=original.thresholds
    )
    twins.save(tmp_path / "twins.vocab.safetensors")
    options: list[object] = [
        "--no-bundled",
        "--learned",
        tmp_path / "twins.vocab.safetensors",
        "--conf",
        0.5,
        "--threads",
        1,
    ]
    save = [part for what in ("coco", "csv", "yolo") for part in ("--save", what)]
    (plain, hidden) = (tmp_path / "plain", tmp_path / "hidden")
    before = run_command(capfd, "detect", bundle, photos, "--out", plain, *options, *save, "--show", "thing 1")
    done = run_command(
        capfd, "detect", bundle, photos, "--out", hidden, *options, *save, "--show", "thing 1", "--overlap", "learned"
    )
    assert (before.status, done.status) == (0, 0), done.err
    one, other = (document(out)["annotations"] for out in (plain, hidden))
    assert all("hidden" not in row for row in one) and "overlap" not in document(plain)["info"]
    assert document(hidden)["info"]["overlap"] == "learned"
    assert [{**row, "hidden": row["vocabulary"] == "original"} for row in one] == other and len(one) > 0
    shown = sum(not row["hidden"] for row in other)
    assert f"{counted(shown, 'detection')} ({shown} more hidden) in 2 images" in done.out
    lines = (hidden / "detections.csv").read_text().splitlines()
    assert lines[0].endswith(",y2,hidden") and {line[-2:] for line in lines[1:]} == {",0", ",1"}
    labels = "".join(path.read_text() for path in (hidden / "yolo" / "labels").iterdir())
    assert len(labels.splitlines()) == shown
    done = run_command(capfd, "detect", bundle, photos, "--stream", *options, "--show", "thing 1", "--overlap", "score")
    rows = [row for line in done.out.splitlines() for row in json.loads(line)["detections"]]
    assert {row["hidden"] for row in rows if row["vocabulary"] == "original"} == {True}
    assert {row["hidden"] for row in rows if row["vocabulary"] == "twins"} == {False}


def test_slices_add_small_objects_and_are_named_in_the_document(
    bundle: Path, photos: Path, tmp_path: Path, capfd: Capture
) -> None:
    Image.fromarray(photo(150, 200)).save(photos / "c.png")
    options = [photos, "--show", "thing 1", "--conf", 0.4, "--threads", 1, "--save", "coco", "--out"]
    plain, cut = tmp_path / "plain", tmp_path / "cut"
    assert run_command(capfd, "detect", bundle, *options, plain).status == 0
    done = run_command(capfd, "detect", bundle, *options, cut, "--slice", 96, "--slice-overlap", 0.3, "--batch", 2)
    assert done.status == 0, done.err
    assert (document(cut)["info"]["slice"], document(cut)["info"]["slice_overlap"]) == (96, 0.3)
    assert "slice" not in document(plain)["info"]
    detector = runtime.Detector(bundle, threads=1)
    expected = detect_sliced(
        detector, photos / "c.png", Slices(96, 0.3), show=["thing 1"], conf=0.4, batch=2
    ).boxes_xyxy
    boxes = [row["bbox"][:2] for row in document(cut)["annotations"] if row["image_id"] == 3]
    assert np.abs(np.array(boxes) - expected[:, :2]).max() < 0.001
    assert len(boxes) > sum(row["image_id"] == 3 for row in document(plain)["annotations"])
    refused = run_command(capfd, "detect", bundle, *options, plain, "--slice-overlap", 0.3)
    assert refused.status == 2 and "--slice-overlap says how far slices overlap" in refused.err


def test_tracking_without_its_package_is_one_line(
    bundle: Path, photos: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    done = run_command(capfd, "detect", bundle, photos, "--out", tmp_path / "out", "--track", *FEW)
    assert done.status == 1 and not (tmp_path / "out").exists()
    cure = "pip install '.[track]' (in a checkout)"
    assert done.err.splitlines()[-1].endswith(f"trackers is not installed, and tracking needs it: {cure}")
