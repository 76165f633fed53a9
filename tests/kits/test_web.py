"""The page of the deployment kit in headless Chromium, on loopback: it finds what the runtime in Python finds.

Skipped, with the reason, where node, npm, Chromium or npm's registry are not there.
"""

import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import learned_for_tiny, make_bundle, original_vocabulary
from PIL import Image
from places import ROOT, SHARED
from small_bundle import with_background
from vocabularies import unit_rows

from prompt_tune.datasets.sample import custom_scene
from prompt_tune.media.draw import _side_by_side_lines
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import letterbox
from prompt_tune.vocabulary.vocabulary import guide_digest

KIT = ROOT / "export" / "web"
DRIVER = Path(__file__).with_name("web_driver.mjs")
PHOTOS = SHARED / "data" / "raccoon" / "images"
PLAYWRIGHT = "playwright-core@1.65.1"
PIXELS, SCORE = 1.0, 0.01  # what may differ
LOW = 0.02  # a threshold at which `tiny`, which knows no photos, finds something in them too
SOFTWARE_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@dataclass(frozen=True)
class Tools:
    """Where the programs are, and the kit's folder with onnxruntime-web in it."""

    node: str
    chromium: str
    playwright: Path
    kit: Path


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


@pytest.fixture(scope="module")
def tools(node: str, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """The page as a user sets it up: `npm ci` in its folder."""
    npm = shutil.which("npm")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if npm is None or chromium is None:
        pytest.skip(f"{'npm' if npm is None else 'Chromium'} is not installed")
    folder = tmp_path_factory.mktemp("web")
    kit, driver = folder / "kit", folder / "driver"
    shutil.copytree(KIT, kit, ignore=shutil.ignore_patterns("node_modules", "onnxruntime"))
    driver.mkdir()
    quiet = ("--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1", "--fetch-timeout=60000")
    for place, command in ((kit, ("ci",)), (driver, ("install", "--no-save", PLAYWRIGHT))):
        done = subprocess.run([npm, *command, *quiet], cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch packages: {done.stderr.strip().splitlines()[:1]}")
    assert not (kit / "node_modules").exists()  # only the four files that the page loads stay
    assert sum(path.stat().st_size for path in kit.rglob("*")) < 45e6
    return Tools(node, chromium, driver / "node_modules" / "playwright-core", kit)


@pytest.fixture(scope="module")
def bundle(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on `tiny` with the page in it; its learned classes are twins of the original ones."""
    folder = make_bundle(tmp_path_factory.mktemp("web") / "bundle")
    shutil.copytree(tools.kit, folder / "web")
    Image.fromarray(custom_scene(0, "test", 2).image).save(folder / "web" / "sample.jpg")
    return folder


@pytest.fixture(scope="module")
def site(bundle: Path) -> Iterator[str]:
    with serve(bundle) as address:
        yield address


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide picture that has to shrink."""
    path = tmp_path_factory.mktemp("web") / "scene.png"
    pair = np.concatenate([custom_scene(0, "test", index).image for index in (0, 1)], axis=1)  # (256, 512, 3)
    Image.fromarray(pair).resize((717, 359)).save(path)
    return path


@pytest.fixture(scope="module")
def photo() -> Path:
    """A photo of a raccoon."""
    if PHOTOS.is_dir():
        return min(PHOTOS.glob("*.jpg"))
    pytest.skip("shared/data/raccoon is not here")


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server on loopback for the files of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def use(tools: Tools, site: str, *steps: list[Any], flags: tuple[str, ...] = ()) -> list[Any]:
    """What the steps gave; the page raised no error and asked no other host for anything."""
    command = [tools.node, str(DRIVER), str(tools.playwright), tools.chromium, f"http://{site}/web/", json.dumps(flags)]
    done = subprocess.run(command, input=json.dumps(steps), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert [error for error in seen["errors"] if "404" not in error] == []
    assert seen["hosts"] == [site]
    results: list[Any] = seen["results"]
    return results


def thresholds(conf: float) -> list[list[Any]]:
    return [["set", f"#{which}-conf", str(conf)] for which in ("original", "learned")]


def assert_same(saved: str, wanted: Detections, conf: float | None = None) -> None:
    """The page's JSON has the runtime's detections; one may miss in either where its score is at the threshold."""
    (answer,) = json.loads(saved)
    assert (answer["width"], answer["height"]) == wanted.size_wh
    left = list(range(len(wanted)))
    for one in answer["detections"]:
        for row in left:
            if (
                (one["vocabulary"], one["class"]) == (wanted.vocabularies[row], wanted.class_names[row])
                and one["class_id"] == wanted.class_ids[row]
                and abs(one["score"] - wanted.scores[row]) <= SCORE
                and np.abs(np.array(one["box_xyxy"]) - wanted.boxes_xyxy[row]).max() <= PIXELS
            ):
                left.remove(row)
                break
        else:
            assert conf is not None and one["score"] <= conf + SCORE, one
    assert all(conf is not None and wanted.scores[row] <= conf + SCORE for row in left)


@pytest.mark.parametrize(
    ("width", "height", "side"),
    [(256, 256, 256), (511, 129, 256), (77, 301, 96), (3, 2, 64), (1000, 35, 64), (1, 7, 32)],
)
def test_letterbox_of_the_page_is_that_of_python(width: int, height: int, side: int, node: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    (tmp_path / "image").write_bytes(image.tobytes())
    script = f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        import {{ letterbox }} from {json.dumps((KIT / "letterbox.js").as_uri())};
        const {{ input, placed }} = letterbox(readFileSync("image"), {width}, {height}, {side});
        writeFileSync("input", Buffer.from(input.buffer));
        console.log(JSON.stringify(placed));
    """
    command = [node, "--input-type=module", "--eval", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels, placed = letterbox(image[:, :, :3], side)
    wanted = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)  # (3, side, side)
    got = np.fromfile(tmp_path / "input", np.float32).reshape(3, side, side)
    steps = np.abs(got - wanted) * 255
    assert steps.max() < (0.01 if width >= height else 1.01)  # of tall images Pillow may scale the height first
    answer = json.loads(done.stdout)
    assert (answer["scale"], answer["left"], answer["top"]) == (placed.scale, *placed.pad_xy)


def test_page_finds_what_python_finds_in_a_scene(tools: Tools, site: str, bundle: Path, scene: Path) -> None:
    about, _, own, listed, status, *_, low = use(
        tools,
        site,
        ["text", "#bundle"],
        ["files", "#photo", str(scene)],
        ["download", "#save-json"],
        ["text", "#list"],
        ["text", "#status"],
        *thresholds(LOW),
        ["download", "#save-json"],
    )
    assert about.startswith("256 px, WASM")
    assert " ms (scaling " in status
    detector = Detector(bundle)
    (wanted,) = detector.detect([scene])
    assert {"original", "learned"} == set(wanted.vocabularies)
    assert_same(own, wanted)
    assert all(name in listed for name in wanted.class_names)
    (more,) = detector.detect([scene], original_conf=LOW, learned_conf=LOW)
    assert len(more) > len(wanted)
    assert_same(low, more, LOW)


def test_page_finds_what_python_finds_in_a_photo(tools: Tools, site: str, bundle: Path, photo: Path) -> None:
    *_, saved = use(tools, site, ["files", "#photo", str(photo)], *thresholds(LOW), ["download", "#save-json"])
    (wanted,) = Detector(bundle).detect([photo], original_conf=LOW, learned_conf=LOW)
    assert len(wanted) > 0
    assert_same(saved, wanted, LOW)


def test_vocabularies_are_added_switched_off_removed_and_refused(
    tools: Tools, site: str, bundle: Path, scene: Path, tmp_path: Path
) -> None:
    original = original_vocabulary()
    names = tuple(f"also {name}" for name in original.names)
    calibration = np.tile(np.array([0.7, 0.3], np.float32), (len(names), 1))  # (80, 2)
    backwards = original.embeddings[::-1].copy()  # (80, n_prompts, 512)
    files = {
        "calibrated": learned_for_tiny(
            names,
            original.embeddings,
            calibration=calibration,
            nms_iou=np.full(len(names), 0.1, np.float32),
            box_offsets=np.tile(np.array([-0.1, 0.07, 0.31, 0], np.float32), (len(names), 1)),
        ),
        "own": learned_for_tiny(names[::-1], backwards, guide_mode="own", guide=guide_digest(backwards)),
        "foreign": learned_for_tiny(("a",), unit_rows(1, 1), detector="e" * 64),
    }
    for label, vocabulary in files.items():
        vocabulary.save(tmp_path / f"{label}.vocab.safetensors")
    added = [tmp_path / f"{label}.vocab.safetensors" for label in ("calibrated", "own")]
    steps = [
        ["files", "#photo", str(scene)],
        ["files", "#vocabulary", *map(str, added)],
        ["download", "#save-json"],
        ["text", "#status"],
        ["files", "#vocabulary", str(tmp_path / "foreign.vocab.safetensors")],
        ["text", "#message"],
        ["click", ".entry:nth-child(1) .chip button"],  # original, off
        ["click", ".entry:nth-child(2) .remove"],  # learned
        ["download", "#save-json"],
        ["text", "#chips"],
    ]
    _, _, everything, status, _, message, _, _, rest, chips = use(tools, site, *steps)
    (wanted,) = Detector(bundle, learned=added).detect([scene])
    assert set(wanted.vocabularies) == {"original", "learned", "calibrated", "own"}
    assert_same(everything, wanted)
    assert "in 2 passes" in status
    assert message.startswith("“foreign” was made for detector eeeeeeeeeeee, but this bundle has ")
    assert_same(rest, wanted.select(np.isin(wanted.vocabularies, ["calibrated", "own"])))
    assert "learned" not in chips and "80 classes, own pass" in chips


def test_bundle_can_be_chosen_as_files_or_as_a_folder(tools: Tools, bundle: Path, scene: Path, tmp_path: Path) -> None:
    shutil.copytree(tools.kit, tmp_path / "site" / "web")  # a page with no bundle beside it
    parts = [bundle / name for name in ("detector.onnx", "original.vocab.safetensors", "learned.vocab.safetensors")]
    folder = tmp_path / "chosen"
    folder.mkdir()
    for part in parts:
        shutil.copy2(part, folder)
    steps: list[list[Any]] = [
        ["text", "#bundle"],
        ["files", "#vocabulary", str(parts[2])],
        ["text", "#message"],
        ["files", "#files", str(parts[0])],
        ["text", "#message"],
        ["files", "#files", *map(str, parts)],
        ["files", "#photo", str(scene)],
        ["download", "#save-json"],
        ["files", "#folder", str(folder)],
        ["download", "#save-json"],
    ]
    with serve(tmp_path / "site") as address:
        about, _, early, _, partial, _, _, as_files, _, as_folder = use(tools, address, *steps)
    assert about.startswith("Choose a bundle")
    assert early.startswith("Load a bundle first")
    assert partial.startswith("A bundle needs original.vocab.safetensors beside detector.onnx")
    (wanted,) = Detector(bundle).detect([scene])
    for saved in (as_files, as_folder):
        assert_same(saved, wanted)


def test_sample_is_shown_on_a_phones_width_after_a_device_that_is_not_there(
    tools: Tools, site: str, bundle: Path
) -> None:
    _, message, *_, saved, (needed, there) = use(
        tools,
        site,
        ["select", "#device", "webgpu"],
        ["text", "#message"],
        ["select", "#device", "wasm"],
        ["resize", 390, 844],
        ["click", "#sample"],
        ["download", "#save-json"],
        ["width"],
    )
    assert message == "WebGPU cannot be used here: This browser offers no GPU. Choose WASM."
    assert_same(saved, Detector(bundle).detect([bundle / "web" / "sample.jpg"])[0])
    assert needed == there == 390


def test_several_photos_are_turned_and_class_names_listed(
    tools: Tools, site: str, bundle: Path, scene: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(custom_scene(0, "test", 3).image).save(other)
    _, first, _, where, second, _, again, names, folded = use(
        tools,
        site,
        ["files", "#photo", str(scene), str(other)],
        ["download", "#save-json"],
        ["click", "#next"],
        ["text", "#page"],
        ["download", "#save-json"],
        ["click", "#next"],
        ["text", "#page"],
        ["text", ".entry:nth-child(1) .names"],
        ["text", ".entry:nth-child(2) .names"],
    )
    detector = Detector(bundle)
    assert_same(first, detector.detect([scene])[0])
    assert_same(second, detector.detect([other])[0])
    assert (where, again) == ("2 of 2", "1 of 2")
    assert names == "Class names" + ", ".join(original_vocabulary().names)
    assert folded.startswith("Class names")


def test_page_without_a_sample_hides_the_button(tools: Tools, tmp_path: Path) -> None:
    shutil.copytree(tools.kit, tmp_path / "web")
    with serve(tmp_path) as address:
        (shown,) = use(tools, address, ["shown", "#sample"])
    assert shown is False


def test_picture_beyond_what_a_browser_shows_and_pictures_that_are_none_are_one_line(
    tools: Tools, site: str, scene: Path, tmp_path: Path
) -> None:
    Image.new("1", (66_000, 40)).save(tmp_path / "wide.png")  # a canvas has up to 65,535 columns in Chromium
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    steps = [
        ["files", "#photo", str(scene)],
        ["files", "#photo", str(tmp_path / "wide.png")],
        ["text", "#message"],
        ["files", "#photo", str(tmp_path / "a.png")],
        ["text", "#message"],
    ]
    _, _, wide, _, script = use(tools, site, *steps)
    assert wide == "wide.png has 66000 x 40 pixels, more than this browser can show."
    assert script == "a.png cannot be read as an image."


def test_equal_boxes_are_drawn_apart_as_the_package_does(node: str) -> None:
    generator = np.random.default_rng(0)
    boxes = generator.integers(0, 4, (40, 2)).repeat(2, axis=0) * 3
    boxes = np.concatenate([boxes, boxes + generator.integers(10, 90, (80, 1))], axis=1)  # (80, 4)
    boxes = np.concatenate([boxes, boxes[:30], boxes[:30]])
    script = f"""
        import {{ apart }} from {json.dumps((KIT / "draw.js").as_uri())};
        console.log(JSON.stringify(apart({json.dumps(boxes.tolist())}, 4)));
    """
    done = subprocess.run([node, "--input-type=module", "--eval", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = _side_by_side_lines(boxes.astype(np.float32), 4)
    assert (wanted != boxes).any()
    np.testing.assert_array_equal(np.array(json.loads(done.stdout)), wanted)


def test_camera_runs_until_it_is_stopped(tools: Tools, site: str) -> None:
    _, _, status, _, saved = use(
        tools,
        site,
        ["click", "#camera"],
        ["wait", "#status", " ms "],
        ["text", "#status"],
        ["click", "#camera"],
        ["download", "#save-json"],
        flags=CAMERA,
    )
    assert "scaling" in status
    (answer,) = json.loads(saved)
    assert answer["image"] == "camera" and answer["width"] > 100


def test_webgpu_finds_what_python_finds_and_another_device_can_be_chosen(
    tools: Tools, site: str, bundle: Path, scene: Path
) -> None:
    on_gpu, _, saved, _, on_cpu, again = use(
        tools,
        site,
        ["text", "#bundle"],
        ["files", "#photo", str(scene)],
        ["download", "#save-json"],
        ["select", "#device", "wasm"],
        ["text", "#bundle"],
        ["download", "#save-json"],
        flags=SOFTWARE_GPU,
    )
    (wanted,) = Detector(bundle).detect([scene])
    assert on_cpu == "256 px, WASM"
    assert_same(again, wanted)
    if on_gpu != "256 px, WebGPU":
        pytest.skip(f"this Chromium computes no WebGPU in software: {on_gpu}")
    assert_same(saved, wanted)


def test_background_row_stays_hidden_on_the_page_too(tools: Tools, bundle: Path, scene: Path, tmp_path: Path) -> None:
    (found,) = Detector(bundle).detect([scene], conf=LOW)
    row = int(np.bincount(found.of("original").class_ids).argmax())
    marked = with_background(bundle, tmp_path / "marked", row)
    shutil.rmtree(marked / "web", ignore_errors=True)
    shutil.copytree(tools.kit, marked / "web")
    with serve(marked) as address:
        *_, saved, chips = use(
            tools,
            address,
            ["files", "#photo", str(scene)],
            *thresholds(LOW),
            ["download", "#save-json"],
            ["text", ".entry:nth-child(1)"],
        )
    (wanted,) = Detector(marked).detect([scene], original_conf=LOW, learned_conf=LOW)
    assert 0 < len(wanted) < len(found)
    assert_same(saved, wanted, LOW)
    name = original_vocabulary().names[row]
    assert "79 classes" in chips and f", {name}," not in chips


def test_hidden_boxes_are_not_listed_and_stay_in_the_json(tools: Tools, site: str, bundle: Path, scene: Path) -> None:
    _, before, _, after, saved, _, surer = use(
        tools,
        site,
        ["files", "#photo", str(scene)],
        ["text", "#total"],
        ["select", "#overlap", "learned"],
        ["text", "#total"],
        ["download", "#save-json"],
        ["select", "#overlap", "score"],
        ["download", "#save-json"],
    )
    for how, text in (("learned", saved), ("score", surer)):
        (wanted,) = Detector(bundle).detect([scene], overlap=how)  # type: ignore[arg-type]
        assert wanted.hidden is not None and 0 < wanted.hidden.sum() < len(wanted)
        assert_same(text, wanted)
        hidden = [one for one in json.loads(text)[0]["detections"] if one["hidden"]]
        assert len(hidden) == wanted.hidden.sum()
        assert {one["vocabulary"] for one in hidden} == {"original"}
        count = int(wanted.hidden.sum())
    assert before == f"· {len(wanted)}" and after == f"· {len(wanted) - count}, {count} hidden"
