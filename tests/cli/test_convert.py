"""`prompt-tune convert` from its arguments to its files."""

import json
from pathlib import Path

import extras
import pytest

# ruff: noqa: E402
extras.needs("pyarrow")

from commands import run_command
from labelling import SHOW, write_photos
from small_bundle import small_bundle

from prompt_tune.models.world import World
from prompt_tune.services.cluster import label


def test_rows_become_a_document_and_a_data_set(
    world: World, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    label(bundle, tmp_path / "photos", tmp_path / "rows", show=SHOW)
    out = tmp_path / "out"
    done = run_command(
        capfd, "convert", tmp_path / "rows", "--out", out, "--to", "coco", "--to", "yolo", "--show=gizmo"
    )
    assert done.status == 0, done.err
    document = json.loads((out / "detections.json").read_text("utf-8"))
    count = len(document["annotations"])
    assert done.out.splitlines()[-1] == f"{count} detections in 2 images, 1 skipped: {out}" and count > 0
    assert sorted(path.name for path in (out / "yolo" / "labels").iterdir()) == ["0000.txt", "0001.txt"]
    assert 'names:\n  0: "gizmo"\n' in (out / "yolo" / "data.yaml").read_text("utf-8")
    again = run_command(capfd, "convert", tmp_path / "rows", "--out", out, "--to", "yolo")
    assert again.status == 1 and "is there already" in again.err
    wrong = run_command(capfd, "convert", tmp_path / "photos", "--out", out, "--to", "coco")
    assert wrong.status == 1 and "has no label.json" in wrong.err
