"""`prompt-tune bake`: what it says of the checkpoint, and of the detections that its joint guide changes."""

from pathlib import Path

import numpy as np
import pytest
from bundles import learned_for_tiny, original_vocabulary
from commands import run_command
from PIL import Image
from runs import write_run
from vocabularies import unit_rows

from prompt_tune.cli.bake import _print_predicted
from prompt_tune.datasets.sample import original_scene
from prompt_tune.deployment.bake import Shift


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `tiny` with a twin of its first class, which has that class's name, and a random class."""
    original = original_vocabulary()
    rows = np.concatenate([original.embeddings[:1], unit_rows(1, 1, seed=3)])  # (2, 1, 512)
    learned = learned_for_tiny((original.names[0], "gizmo"), rows)
    return write_run(tmp_path_factory.mktemp("run"), "tiny", original, learned, image_size=256)


def test_bake_says_how_original_detections_change(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        Image.fromarray(original_scene(0, index).image).save(images / f"{index}.png")
    (images / "broken.png").write_bytes(b"no image")
    done = run_command(
        capfd, "bake", tiny_run, "--out", tmp_path / "custom.pt", "--images", images, *sorted(images.iterdir())
    )
    assert done.status == 0, done.err
    first, second, third, fourth = done.out.splitlines()
    assert first == f"Wrote {tmp_path / 'custom.pt'}: 80 original and 2 learned classes."
    assert "original boxes and scores change" in second
    assert third.startswith("3 images, ") and "by the joint guide" in third and "on average" in third
    assert fourth.startswith("In ultralytics' predict") and "no learned class is found in them" in fourth
    assert "Skipped: " in done.err and "broken.png" in done.err


def test_bake_says_what_predict_hides(capsys: pytest.CaptureFixture[str]) -> None:
    _print_predicted(Shift(1, (), before=72, lost=29, gained=0, largest=0.1, mean=0.0, learned=30))
    assert capsys.readouterr().out.startswith(
        "In ultralytics' predict at its defaults, 72 original detections: 29 (40.3%) lost, 0 (0.0%) gained, beside 30 "
        "learned detections: it keeps one class per box."
    )


def test_bake_without_images_says_how_to_measure(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(capfd, "bake", tiny_run, "--out", tmp_path / "custom.pt")
    assert done.status == 0 and done.out.splitlines()[-1] == "To measure how much, give --images FOLDER."


def test_bake_onto_another_kind_of_file_is_one_line(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(capfd, "bake", tiny_run, "--out", tmp_path / "custom.onnx")
    assert done.status == 1 and len(done.err.splitlines()) == 1
    assert done.err == "Error: An ultralytics checkpoint is a .pt file. Received: custom.onnx.\n"
