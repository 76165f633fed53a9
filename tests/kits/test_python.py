"""The program that a bundle carries: the detections of `prompt_tune.runtime.Detector`, without prompt_tune."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import kit
import numpy as np
import pytest
from bundles import learned_for_tiny, make_bundle
from damage import cases
from kit import PROGRAM
from PIL import Image
from small_bundle import learned_for, photo, small_bundle, with_background
from vocabularies import unit_rows

from prompt_tune.datasets.sample import custom_scene
from prompt_tune.media.draw import _side_by_side_lines
from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import read_rgb
from prompt_tune.runtime.slices import Slices, detect_sliced
from prompt_tune.vocabulary.vocabulary import Vocabulary

MOST_LINES_OF_READER = 40


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program as a module."""
    return kit.module("detect")


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle of the random detector."""
    return small_bundle(world, tmp_path_factory.mktemp("kit") / "bundle")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on `tiny`, whose learned classes are twins of the original ones."""
    return make_bundle(tmp_path_factory.mktemp("kit") / "tiny")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The program as a process that cannot import prompt_tune, safetensors or torch."""
    blocked = "import sys; sys.modules |= dict.fromkeys(('prompt_tune', 'safetensors', 'torch', 'ultralytics'));"
    start = "sys.path[0] = sys.argv[0].rpartition('/')[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"{blocked} import runpy; sys.argv = sys.argv[1:]; {start}"
    command = [sys.executable, "-c", code, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows_of(detector: Detector, image: Path, conf: float | None) -> list[dict[str, Any]]:
    """What the runtime finds, as the program writes it."""
    (found,) = detector.detect([image], original_conf=conf, learned_conf=conf)
    return as_rows(found)


def as_rows(found: Detections) -> list[dict[str, Any]]:
    """Detections as the program writes them."""
    return [
        {
            "vocabulary": found.vocabularies[i],
            "class": found.class_names[i],
            "class_id": int(found.class_ids[i]),
            "score": float(found.scores[i]),
            "box_xyxy": [float(value) for value in found.boxes_xyxy[i]],
        }
        | ({} if found.hidden is None else {"hidden": bool(found.hidden[i])})
        for i in range(len(found))
    ]


def save(vocabulary: Vocabulary, path: Path) -> Path:
    vocabulary.save(path)
    return path


BOX_OFFSETS = np.array([[0, 0, 0, 0], [-0.1, 0.07, 0.31, 0], [0.4, 0.4, -0.4, -0.4]], np.float32)


def calibration(n_cls: int) -> np.ndarray:
    """(n_cls, 2): the first class keeps its scores, the others do not."""
    rows = np.tile(np.array([0.6, 0.4], np.float32), (n_cls, 1))  # (n_cls, 2)
    rows[0] = (1, 0)
    return rows


@pytest.mark.parametrize("conf", [None, 0.05])
def test_program_on_random_detector_finds_what_the_runtime_finds(
    conf: float | None, bundle: Path, tmp_path: Path
) -> None:
    more = [
        save(learned_for(bundle, "a", "b", n_prompts=2, seed=1), tmp_path / "more.vocab.safetensors"),
        save(
            learned_for(
                bundle,
                "a",
                "c",
                "d",
                seed=2,
                calibration=calibration(3),
                nms_iou=np.array([0.3, 1, 0.5], np.float32),
                box_offsets=BOX_OFFSETS,
            ),
            tmp_path / "calibrated.vocab.safetensors",
        ),
        save(
            learned_for(bundle, "e", "f", seed=3, guide_mode="own", box_offsets=BOX_OFFSETS[1:]),
            tmp_path / "own.vocab.safetensors",
        ),
    ]
    images = [tmp_path / name for name in ("wide.png", "tall.jpg", "small.png")]
    for number, (path, size) in enumerate(zip(images, ((90, 161), (301, 77), (11, 13)), strict=True)):
        Image.fromarray(photo(*size, seed=number)).save(path)
    arguments: list[str | Path] = [*images, "--bundle", bundle]
    for path in more:
        arguments += ["--learned", path]
    done = run(*arguments, *([] if conf is None else ["--conf", str(conf)]))
    assert (done.returncode, done.stderr) == (0, "")
    detector = Detector(bundle, learned=more)
    answers = json.loads(done.stdout)
    for path, answer in zip(images, answers, strict=True):
        assert answer["detections"] == rows_of(detector, path, conf)
    found = {one["vocabulary"] for answer in answers for one in answer["detections"]}
    assert found >= {"original", "learned"}
    assert conf is None or found == {"original", "learned", "more", "calibrated", "own"}


def test_program_on_tiny_finds_what_the_runtime_finds_and_draws_it(tiny: Path, tmp_path: Path) -> None:
    images = [tmp_path / f"scene-{index}.png" for index in range(3)]
    for index, path in enumerate(images):
        Image.fromarray(custom_scene(0, "test", index).image).save(path)
    done = run(*images, "--bundle", tiny, "--draw", tmp_path / "drawn")
    assert (done.returncode, done.stderr) == (0, "")
    detector = Detector(tiny)
    for path, answer in zip(images, json.loads(done.stdout), strict=True):
        assert answer["detections"] == rows_of(detector, path, None)
        assert {one["vocabulary"] for one in answer["detections"]} == {"original", "learned"}
        with Image.open(path) as plain, Image.open(tmp_path / "drawn" / path.name) as drawn:
            assert drawn.size == plain.size == (answer["width"], answer["height"])
            assert np.any(np.asarray(drawn) != np.asarray(plain))


def test_photo_of_200_megapixels_is_read_reduced_as_the_runtime_does(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    scene = Image.fromarray(custom_scene(0, "test", 0).image)
    scene.resize((14_000, 14_000), Image.Resampling.NEAREST).save(path, quality=95)
    done = run(path, "--bundle", tiny, "--draw", tmp_path / "drawn")
    assert (done.returncode, done.stderr) == (0, "")
    (answer,) = json.loads(done.stdout)
    assert answer["detections"] == rows_of(Detector(tiny), path, None)
    assert (answer["width"], answer["height"]) == (14_000, 14_000)
    assert any(one["vocabulary"] == "learned" and max(one["box_xyxy"]) > 7_000 for one in answer["detections"])
    assert Image.open(tmp_path / "drawn" / "phone.jpg").size == (7_000, 7_000)


def test_photo_that_lies_on_its_side_is_turned_as_the_runtime_does(tiny: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right by 90 degrees
    Image.fromarray(custom_scene(0, "test", 0).image[:200]).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    answer = json.loads(run(tmp_path / "turned.jpg", "--bundle", tiny, "--conf", "0.1").stdout)[0]
    assert answer["height"] > answer["width"]
    assert answer["detections"] == rows_of(Detector(tiny), tmp_path / "turned.jpg", 0.1) != []


def test_reader_gives_what_vocabulary_load_gives_in_few_lines(program: ModuleType, tmp_path: Path) -> None:
    numbers = {"thresholds": np.array([0.1, 0.9], np.float32), "nms_iou": np.array([0.5, 1], np.float32)}
    numbers["box_offsets"] = BOX_OFFSETS[:2]
    for fields in ({}, {"calibration": calibration(2)} | numbers):
        wanted = learned_for_tiny(("Käfer", "b"), unit_rows(2, 3), **fields)
        got = program.read_vocabulary(save(wanted, tmp_path / "some.vocab.safetensors"))
        assert (got.label, got.about["names"]) == ("some", list(wanted.names))
        assert (got.about["detector"], got.about["guide"]) == (wanted.detector, wanted.guide)
        np.testing.assert_array_equal(got.embeddings, wanted.embeddings)
        np.testing.assert_array_equal(got.thresholds, wanted.thresholds)
        identity = np.tile(np.array([1, 0], np.float32), (2, 1))
        np.testing.assert_array_equal(got.calibration, wanted.calibration if fields else identity)
        np.testing.assert_array_equal(got.box_offsets, BOX_OFFSETS[:2] if fields else np.zeros((2, 4)))
        np.testing.assert_array_equal(got.nms_iou, wanted.nms_iou if fields else [1, 1])
    assert len(inspect.getsource(program.read_vocabulary).splitlines()) <= MOST_LINES_OF_READER


def test_thresholds_of_a_file_have_the_runtimes_floor(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(64, 96)).save(tmp_path / "photo.png")
    for fields in ({"thresholds": np.float32(0)}, {"calibration": np.tile([[1e-6, 20]], (2, 1))}):
        more = save(learned_for(bundle, "a", "b", nms_iou=[0.5, 1], **fields), tmp_path / "more.vocab.safetensors")
        done = run(tmp_path / "photo.png", "--bundle", bundle, "--learned", more)
        (answer,) = json.loads(done.stdout)
        wanted = Detector(bundle, learned=[more])
        assert answer["detections"] == rows_of(wanted, tmp_path / "photo.png", None)
        (without,) = wanted.detect(tmp_path / "photo.png", learned_conf=0.0)
        assert sum(one["vocabulary"] == "more" for one in answer["detections"]) < len(without.of("more"))


def test_original_vocabulary_as_a_learned_one_is_refused_in_one_line(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(32, 32)).save(tmp_path / "photo.png")
    shutil.copy(bundle / "original.vocab.safetensors", tmp_path / "more.vocab.safetensors")
    done = run(tmp_path / "photo.png", "--bundle", bundle, "--learned", tmp_path / "more.vocab.safetensors")
    assert (done.returncode, done.stderr) == (1, "more: of kind original; it must be learned or plain.\n")


@pytest.mark.parametrize("what", ["detector", "text_tower", "guide"])
def test_vocabulary_made_for_another_is_refused_in_one_line(what: str, bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(32, 32)).save(tmp_path / "photo.png")
    fields: dict[str, Any] = {what: "e" * 64}
    other = save(learned_for(bundle, "a", **fields), tmp_path / "other.vocab.safetensors")
    done = run(tmp_path / "photo.png", "--bundle", bundle, "--learned", other)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"other: made for another {what} (eeeeeeeeeeee).\n"


def test_file_that_is_not_an_image_and_label_that_is_taken_are_refused_in_one_line(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_text("no image")
    done = run(tmp_path / "photo.png", "--bundle", bundle)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'photo.png'} cannot be read as an image: not an image of a known format\n"
    again = f"learned={bundle / 'learned.vocab.safetensors'}"
    done = run(tmp_path / "photo.png", "--bundle", bundle, "--learned", again)
    assert (
        done.returncode == 1
        and done.stderr == "learned: two vocabularies have this name; give one another: NAME=FILE.\n"
    )


def test_pictures_that_cannot_be_read_are_skipped_counted_and_named(bundle: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(photo(64, 96)).save(whole)
    cut, deep, gone = tmp_path / "cut.jpg", tmp_path / "deep.tif", tmp_path / "gone.jpg"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    Image.fromarray(np.zeros((9, 9), np.float32)).save(deep)
    done = run(cut, whole, deep, gone, "--bundle", bundle, "--draw", tmp_path / "drawn")
    assert done.returncode == 0
    assert [answer["image"] for answer in json.loads(done.stdout)] == [str(whole)]
    *reasons, count = done.stderr.splitlines()
    assert [reason.split()[:2] for reason in reasons] == [["Skipped:", str(path)] for path in (cut, deep, gone)]
    assert all(" cannot be read as an image: " in reason for reason in reasons)
    assert count == "1 image, 3 skipped"
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["whole.jpg"]
    done = run(cut, deep, "--bundle", bundle)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"None of 2 images can be read: {cut} cannot be read as an image: ")


def test_names_of_files_are_printed_without_control_sequences(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[2J\u202eb"
    folder.mkdir()
    (folder / "\u06af\u200c\u0645\n.png").write_bytes(b"nothing")
    Image.fromarray(photo(64, 96)).save(folder / "whole.png")
    for source, status in ((folder, 0), (folder / "gone.png", 1)):
        done = run(source, "--bundle", bundle)
        assert done.returncode == status and not {"\x1b", "\u202e"} & set(done.stderr + done.stdout)
        assert "a\\x1b[2J\\u202eb" in done.stderr
    assert "\u06af\u200c\u0645\\n.png" in run(folder, "--bundle", bundle).stderr


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "L", "LA", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 2, 5, 6, 8])
def test_image_is_read_as_the_runtime_reads_it(
    mode: str, orientation: int, program: ModuleType, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), np.uint16)
    if mode.startswith("I;16"):
        image = Image.fromarray(values.astype(">u2" if mode == "I;16B" else "<u2"))
    else:
        image = Image.fromarray(photo(20, 30)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("image.tif" if mode in ("I;16B", "CMYK") else "image.png")
    image.save(path, exif=exif)
    wanted = read_rgb(path)
    assert wanted.shape == ((30, 20, 3) if orientation in (5, 6, 8) else (20, 30, 3)) and np.ptp(wanted) > 100
    np.testing.assert_array_equal(np.asarray(program.read_image(path)), wanted)


def test_drawings_have_the_images_names_and_stay_apart(bundle: Path, tmp_path: Path) -> None:
    names = ["one/a.png", "one/a.jpg", "two/a.png", "two/A.png", "upload"]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(32 + number, 32)).save(tmp_path / "in" / name, "PNG")
    done = run(*(tmp_path / "in" / name for name in names), "--bundle", bundle, "--draw", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert drawn == ["one/a.jpg", "one/a.png", "two/A-2.png", "two/a.png", "upload.png"]
    heights = {name: Image.open(tmp_path / "out" / name).height for name in drawn}
    assert heights == {"one/a.png": 32, "one/a.jpg": 33, "two/a.png": 34, "two/A-2.png": 35, "upload.png": 36}


def test_drawing_never_replaces_an_image(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(32, 32)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    done = run(tmp_path / "a.png", "--bundle", bundle, "--draw", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'a.png'}: the drawing would replace an image of yours; choose another --draw.\n"
    assert (tmp_path / "a.png").read_bytes() == before


def test_places_that_cannot_be_read_or_written_are_one_line(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(32, 32)).save(tmp_path / "a.png")
    for option, place in (("--draw", tmp_path / "a.png" / "out"), ("--learned", tmp_path / "gone")):
        done = run(tmp_path / "a.png", "--bundle", bundle, option, place)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith(f"{place}: N")  # No such file, Not a directory


def test_characters_that_the_font_lacks_are_named_and_another_font_draws_them(bundle: Path, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    Image.fromarray(photo(32, 32)).save(tmp_path / "a.png")
    more = save(learned_for(bundle, "\u0436\u0443\u043a a"), tmp_path / "more.vocab.safetensors")
    command: list[str | Path] = [tmp_path / "a.png", "--bundle", bundle, "--learned", more, "--draw", tmp_path / "out"]
    done = run(*command)
    assert done.returncode == 0
    assert ascii(done.stderr) == ascii("The font cannot draw \u0436 \u043a \u0443: give one that can as --font FILE.\n")
    done = run(*command, "--font", font)
    assert (done.returncode, done.stderr) == (0, "")


def test_folders_are_read_with_their_subfolders_and_names_of_every_kind(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    kinds = [b"a.png", b"bad\xff.png", b"one/a.png", b"two/" + b"y" * 250 + b".jfif", b"two/x\\y.png"]
    for name in (*kinds, b"__MACOSX/a.png", b".x/a.png", b"notes.txt", b"c.heic", b"two/d.NEF"):
        place = folder / os.fsdecode(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(32, 48)).save(place, "PNG")
    (folder / "two" / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to("nowhere")
    for _ in range(2):  # the drawings of the first time are no source of the second
        done = run(folder, "--bundle", bundle, "--conf", "0.9", "--draw", folder / "out")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == len(kinds)
        assert len(list((folder / "out").rglob("*.png"))) == len(kinds)
        cure = "save as PNG or JPEG; pip install pillow-heif reads HEIC"
        assert done.stderr == (
            f"3 not looked at, not readable ({cure}): {folder}/c.heic, {folder}/gone.png, {folder}/two/d.NEF\n"
        )
    done = run(folder, "--no-recursive", "--bundle", bundle, "--conf", "0.9")
    assert [Path(entry["image"]).name for entry in json.loads(done.stdout)] == ["a.png", os.fsdecode(b"bad\xff.png")]
    done = run(folder / "one" / "..", folder / "__MACOSX" / "none", "q" * 3000, "--bundle", bundle, "--conf", "0.9")
    assert done.returncode == 0 and done.stderr.count("Skipped: ") == 2, done.stderr
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "empty", "--bundle", bundle)
    assert (done.returncode, done.stderr) == (1, f"{tmp_path / 'empty'}: no image is there.\n")


def test_equal_boxes_are_drawn_apart_as_the_package_does(program: ModuleType) -> None:
    boxes = [[0, 0, 50, 50], [0, 0, 50, 50], [1, 1, 50, 49], [0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 50, 50], [60, 0, 99, 9]]
    wanted = _side_by_side_lines(np.array(boxes, np.float32), 4)
    assert program.apart([], 4) == []
    drawn = np.array(program.apart(boxes, 4))
    np.testing.assert_array_equal(drawn, wanted)
    np.testing.assert_array_equal(drawn[:3], [[0, 0, 50, 50], [4, 4, 46, 46], [9, 9, 42, 41]])


def test_drawing_shows_both_of_two_equal_boxes(program: ModuleType) -> None:
    found = [
        {"class": name, "vocabulary": name, "score": 0.5, "box_xyxy": [20, 40, 180, 180]}
        for name in ("original", "mine")
    ]
    picture = np.asarray(program.draw(Image.new("RGB", (200, 200)), found, None)).reshape(-1, 3)
    for colour in ((0x9F, 0xB3, 0xC8), (0xFF, 0x7A, 0x1A)):
        assert (picture == colour).all(axis=1).sum() > 400


@pytest.mark.timeout(180)
def test_damaged_pictures_pipes_and_loops_are_one_line_each(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in cases(200, 150):
        (folder / name).write_bytes(content)
    Image.fromarray(photo(20, 30)).save(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop").symlink_to(folder)
    long = tmp_path / ("x" * 251 + ".png")
    Image.fromarray(photo(20, 30)).save(long)
    sources = (folder, long, tmp_path / "a\nb.png", folder / "pipe.png", Path("/dev/zero"), tmp_path / ("y" * 4000))
    done = run(*sources, "--bundle", bundle, "--draw", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-500:]
    results = [Path(result["image"]).name for result in json.loads(done.stdout)]
    assert {"good.png", long.name} <= set(results)
    skipped = 151 + 1 + 4 - len(results)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("1 not looked at") and "pipe.png" in lines[0]
    assert sum(line.startswith("Skipped: ") for line in lines) == skipped > 75
    assert lines[-1] == f"{len(results)} images, {skipped} skipped"
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*") if path.name == long.name) == [long.name]


def test_font_that_is_no_file_is_one_line(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(20, 30)).save(tmp_path / "a.png")
    done = run(tmp_path / "a.png", "--bundle", bundle, "--draw", tmp_path / "out", "--font", "/dev/zero")
    assert (done.returncode, done.stderr) == (1, "/dev/zero: there is no such file.\n")


def test_drawings_that_their_format_cannot_hold_are_named_and_a_fax_is_drawn_in_colour(
    bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (17_000, 2)).save(folder / "a.webp", "PNG")
    Image.new("1", (40, 30)).save(folder / "fax.tif", compression="group4")
    done = run(folder, "--bundle", bundle, "--draw", tmp_path / "out", "--conf", "0")
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{tmp_path / 'out' / 'a.webp'} cannot hold 17000 x 2: ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fax.tif"]
    assert Image.open(tmp_path / "out" / "fax.tif").mode == "RGB"


def test_background_row_stays_hidden_in_the_program_too(bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(photo(90, 161)).save(image)
    shown = Detector(bundle).detect([image], conf=0.05)[0].of("original")
    row = int(np.bincount(shown.class_ids).argmax())
    marked = with_background(bundle, tmp_path / "marked", row)
    for conf in (0.05, None):
        done = run(image, "--bundle", marked, *([] if conf is None else ["--conf", str(conf)]))
        assert (done.returncode, done.stderr) == (0, "")
        (answer,) = json.loads(done.stdout)
        assert answer["detections"] == rows_of(Detector(marked), image, conf)
        assert row not in {one["class_id"] for one in answer["detections"] if one["vocabulary"] == "original"}


def test_labels_of_the_program_are_those_of_the_runtime(bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(photo(90, 161)).save(image)
    named = tmp_path / "named"
    shutil.copytree(bundle, named)
    own = Vocabulary.load(named / "learned.vocab.safetensors")
    save(replace(own, provenance={"label": "mine"}), named / "learned.vocab.safetensors")
    places: list[str | Path] = []
    for run_folder in ("night", "day"):
        (tmp_path / run_folder).mkdir()
        vocabulary = learned_for(bundle, run_folder, provenance={"label": "mine"} if run_folder == "day" else {})
        places.append(save(vocabulary, tmp_path / run_folder / "learned.vocab.safetensors"))
    places.append(f"third={places[0]}")
    arguments = [part for place in places for part in ("--learned", place)]
    done = run(image, "--bundle", named, "--conf", "0.05", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    detector = Detector(named, learned=places)
    assert list(detector.vocabularies) == ["original", "mine", "learned", "day", "third"]
    assert json.loads(done.stdout)[0]["detections"] == rows_of(detector, image, 0.05)
    done = run(image, "--bundle", named, "--learned", f"original={places[0]}")
    assert done.returncode == 1 and "this cannot be a label" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("overlap", ["learned", "score"])
def test_program_hides_what_the_runtime_hides(overlap: Any, bundle: Path, tmp_path: Path) -> None:
    original = Detector(bundle, use_bundled=False).vocabularies["original"]
    twins = replace(
        learned_for(bundle, *original.names, box_offsets=np.tile(np.array([0, 0.1, 0, -0.1], np.float32), (80, 1))),
        embeddings=original.embeddings,
        thresholds=original.thresholds + np.linspace(-0.1, 0.1, 80, dtype=np.float32),
    )
    more = save(twins, tmp_path / "twins.vocab.safetensors")
    images = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, image in enumerate(images):
        Image.fromarray(photo(90, 161, seed=seed)).save(image)
    done = run(*images, "--bundle", bundle, "--learned", more, "--overlap", overlap, "--draw", tmp_path / "drawn")
    assert (done.returncode, done.stderr) == (0, "")
    for image, answer in zip(images, json.loads(done.stdout), strict=True):
        (found,) = Detector(bundle, learned=[more]).detect(image, overlap=overlap)
        assert [one["score"] for one in answer["detections"]] == found.scores.tolist()
        assert found.hidden is not None and [one["hidden"] for one in answer["detections"]] == found.hidden.tolist()
        assert 0 < found.hidden.sum() < len(found)
        labels = {label for label, hidden in zip(found.vocabularies, found.hidden, strict=True) if hidden}
        assert labels == ({"original"} if overlap == "learned" else labels)


@pytest.mark.parametrize(("conf", "overlap"), [(None, "keep"), (0.3, "score")])
def test_slices_give_what_the_package_finds(conf: float | None, overlap: Any, bundle: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"box_offsets": BOX_OFFSETS, "nms_iou": np.array([0.3, 1, 0.6], np.float32)}
    fields["thresholds"] = np.full(3, 0.7, np.float32)  # some of what --conf lets through is below
    more = [
        save(learned_for(bundle, "e", "f", seed=3, guide_mode="own"), tmp_path / "own.vocab.safetensors"),
        save(learned_for(bundle, "a", "b", "c", seed=2, **fields), tmp_path / "more.vocab.safetensors"),
    ]
    images = [tmp_path / "large.png", tmp_path / "small.png"]
    for path, size in zip(images, ((210, 330), (60, 90)), strict=True):
        Image.fromarray(photo(*size)).save(path)
    given: list[str | Path] = ["--slice", "96", "--slice-overlap", "0.3", "--overlap", overlap, "--bundle", bundle]
    given += [word for path in more for word in ("--learned", path)]
    done = run(*images, *given, *([] if conf is None else ["--conf", str(conf)]))
    assert (done.returncode, done.stderr) == (0, "")
    detector = Detector(bundle, learned=more)
    for path, answer in zip(images, json.loads(done.stdout), strict=True):
        found = detect_sliced(detector, path, Slices(96, 0.3), conf=conf, overlap=overlap)
        assert answer["detections"] == as_rows(found)
    assert {one["vocabulary"] for one in json.loads(done.stdout)[0]["detections"]} >= {"original", "own", "more"}


def test_slices_out_of_range_are_refused_in_one_line(bundle: Path, tmp_path: Path) -> None:
    for given, line in (
        (["--slice", "31"], "--slice must be at least 32"),
        (["--slice", "64", "--slice-overlap", "0.95"], "--slice-overlap must be from 0 to 0.9, and needs --slice"),
        (["--slice-overlap", "0.5"], "--slice-overlap must be from 0 to 0.9, and needs --slice"),
    ):
        done = run(tmp_path, "--bundle", bundle, *given)
        assert done.returncode == 2 and done.stderr.splitlines()[-1] == f"detect.py: error: {line}"


def test_a_program_imports_the_detector_from_the_folder(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(64, 96)).save(tmp_path / "photo.png")
    code = (
        "import sys; from pathlib import Path; sys.path.append(sys.argv[1]); from detect import Detector, read_image;"
        "print(Detector(Path(sys.argv[2]), []).detect(read_image(Path(sys.argv[3]))))"
    )
    arguments = [sys.executable, "-c", code, *map(str, (kit.FOLDER, bundle, tmp_path / "photo.png"))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=tmp_path)
    detector = Detector(bundle, use_bundled=False)
    assert done.stdout == f"{rows_of(detector, tmp_path / 'photo.png', None)}\n"
