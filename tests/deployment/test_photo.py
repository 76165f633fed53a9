"""The photo in a bundle: which one it is, and that it carries no more than its pixels."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prompt_tune.deployment.photo import LONGEST_SIDE, write_photo


def write_data(folder: Path, *, val: bool = True) -> Path:
    """Three images, of which the second has most boxes; it is large, lies on its side, and has EXIF."""
    split = "val" if val else "train"
    for name, boxes in (("a", 1), ("b", 3), ("c", 2)):
        exif = Image.Exif()
        if name == "b":
            exif[0x0112], exif[0x010E] = 6, "secret"  # orientation, description
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((900, 1600, 3), np.uint8)
        pixels[:, :800] = 255  # the top half, when it is upright
        Image.fromarray(pixels).save(folder / "images" / split / f"{name}.jpg", exif=exif)
        rows = "".join(f"0 0.5 0.5 0.{size}5 0.5\n" for size in range(1, boxes + 1))
        (folder / "labels" / split / f"{name}.txt").write_text(rows)
    if val:
        (folder / "images" / "train").mkdir()
        Image.new("RGB", (64, 64)).save(folder / "images" / "train" / "t.jpg")
        (folder / "labels" / "train").mkdir()
        (folder / "labels" / "train" / "t.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    lines = "train: images/train\n" + ("val: images/val\n" if val else "") + "names: [gizmo]\n"
    (folder / "data.yaml").write_text(lines)
    return folder / "data.yaml"


def write_config(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("val", [True, False])
def test_photo_is_the_image_with_most_objects_upright_small_and_without_exif(val: bool, tmp_path: Path) -> None:
    run = write_config(tmp_path / "run", data=str(write_data(tmp_path / "data", val=val)))
    assert write_photo(run, tmp_path / "sample.jpg", trained_on_all=not val)
    with Image.open(tmp_path / "sample.jpg") as image:
        assert image.format == "JPEG" and image.size == (720, LONGEST_SIDE)
        assert not image.getexif() and b"secret" not in (tmp_path / "sample.jpg").read_bytes()
        pixels = np.asarray(image)
    assert pixels[:600].min() > 200 and pixels[680:].max() < 50


def test_photo_of_data_that_is_gone_is_one_line_and_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = write_config(tmp_path / "gone", data=str(tmp_path / "nothing" / "data.yaml"))
    old = write_config(tmp_path / "old")
    with caplog.at_level(logging.INFO):
        assert not write_photo(gone, tmp_path / "sample.jpg") and not write_photo(old, tmp_path / "sample.jpg")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and all(line.startswith("No photo for the page's Sample button: ") for line in lines)
    assert "data.yaml" in lines[0] and not (tmp_path / "sample.jpg").exists()
