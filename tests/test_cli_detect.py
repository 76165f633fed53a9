"""`prompt-tune detect` from its arguments to its files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_command
from PIL import Image
from small_bundle import learned_for, photo, small_bundle

from prompt_tune import runtime
from prompt_tune.cli.detect import command
from prompt_tune.world import World

Capture = pytest.CaptureFixture[str]


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
    assert (info["original_conf"], info["learned_conf"], info["iou"]) == (1, 1, 0.7)


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


def test_out_that_cannot_be_written_is_one_line(bundle: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "file" / "out", "--threads", 1)
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith(f"Error: Cannot write `{tmp_path / 'file' / 'out' / 'detections.json'}`")
    assert (tmp_path / "file").read_text() == "mine"


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
        (["--device", "gpu"], 2, "'gpu' is not one of 'cpu', 'cuda'"),
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


def test_vocabulary_of_another_detector_is_refused(bundle: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    other = tmp_path / "other.vocab.safetensors"
    learned_for(bundle, "lorry", detector="a" * 64).save(other)
    done = run_command(capfd, "detect", bundle, "--source", photos, "--out", tmp_path / "out", "--learned", other)
    assert done.status == 1
    assert f"Error: `{other}` was made for detector aaaaaaaaaaaa, but" in done.err


def test_defaults_of_the_command_are_the_librarys() -> None:
    defaults = {option.name: option.default for option in command.params}
    assert (defaults["iou"], defaults["device"], defaults["threads"]) == (runtime.IOU, "cpu", 0)
