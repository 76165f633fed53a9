"""COCO JSON and YOLO from rows: the files that `detect` writes."""

import json
from pathlib import Path

import extras
import pytest

# ruff: noqa: E402
extras.needs("pyarrow")

import pyarrow as pa
from labelling import SHOW, encoded, write_photos
from PIL import Image
from pyarrow import parquet
from small_bundle import photo

from prompt_tune.errors import DataError
from prompt_tune.media.annotate import annotate
from prompt_tune.media.sources import open_source
from prompt_tune.runtime.detector import Detector
from prompt_tune.services.cluster import label
from prompt_tune.services.conversion import convert


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_conversion_gives_the_files_of_detect_byte_for_byte(bundle: Path, tmp_path: Path) -> None:
    """Folders, a damaged image, a format that trainers do not read, and class names that are in two vocabularies."""
    photos = tmp_path / "photos"
    write_photos(photos / "a", 3)
    write_photos(photos / "b", 2)
    (photos / "b" / "broken.png").write_bytes(b"no image")
    Image.fromarray(photo(60, 90, seed=9)).save(photos / "old.gif")
    Image.fromarray(photo(60, 90, seed=8)).save(photos / "upper.PNG")
    label(bundle, photos, tmp_path / "rows", part=2, batch=4, show=SHOW, learned_conf=0.3)
    told: list[int] = []
    result = convert(
        tmp_path / "rows",
        tmp_path / "converted",
        to=["coco", "yolo"],
        progress=lambda stage, done, total, note: told.append(done),
    )
    detector = Detector(bundle, threads=1)
    annotate(
        detector,
        open_source(photos),
        out=tmp_path / "detected",
        save=["coco", "yolo"],
        show=SHOW,
        learned_conf=0.3,
        batch=4,
    )
    detected = tree(tmp_path / "detected")
    assert tree(tmp_path / "converted") == detected and len(detected) == 1 + 2 * 7 + 1
    assert json.loads(detected["detections.json"])["info"]["skipped"] == ["b/broken.png"]
    assert (result.images, result.skipped) == (7, 1) and told == list(range(9))
    assert result.detections == len(json.loads(detected["detections.json"])["annotations"]) > 0


def test_images_in_parquet_become_files_as_they_are(bundle: Path, tmp_path: Path) -> None:
    contents = [encoded(0), encoded(1, "JPEG"), encoded(2, "GIF")]
    parquet.write_table(pa.table({"bytes": contents}), tmp_path / "images.parquet")
    label(bundle, tmp_path / "images.parquet", tmp_path / "rows", show=SHOW)
    convert(tmp_path / "rows", tmp_path / "out", to=["yolo"], show=["forklift"])
    written = tree(tmp_path / "out" / "yolo")
    assert sorted(name for name in written if name.startswith("images/")) == [
        "images/0.png",
        "images/1.jpg",
        "images/2.png",
    ]
    assert (written["images/0.png"], written["images/1.jpg"]) == (contents[0], contents[1])
    assert '0: "forklift"' in written["data.yaml"].decode()


def test_wrong_folders_are_one_line(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no label\.json: it is not from `prompt-tune label`"):
        convert(tmp_path, tmp_path / "out", to=["coco"])
    (path,) = write_photos(tmp_path / "photos", 1)
    label(bundle, tmp_path / "photos", tmp_path / "rows", show=SHOW)
    path.unlink()
    convert(tmp_path / "rows", tmp_path / "out", to=["coco"])  # needs no images
    with pytest.raises(DataError, match=r"0000\.png` cannot be read: No such file or directory"):
        convert(tmp_path / "rows", tmp_path / "out", to=["yolo"])
    for part in (tmp_path / "rows" / "rows").iterdir():
        part.unlink()
    with pytest.raises(DataError, match=r"has no rows\. Run prompt-tune label first\."):
        convert(tmp_path / "rows", tmp_path / "out", to=["coco"])
