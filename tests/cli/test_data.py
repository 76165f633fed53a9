"""`prompt-tune data check`: what it prints and writes, without a model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from commands import run_command
from data_sets import TRAIN
from exports import labelme
from PIL import Image

from prompt_tune.cli.data import FORMATS
from prompt_tune.datasets.sample import write_sample
from prompt_tune.datasets.samples import Kind


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample") / "set", n_images=12)[0]


def test_tables_and_sheet_of_the_sample_set(custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, "data", "check", custom, "--out", tmp_path / "sheet.png", "--imgsz", 256)
    assert done.status == 0, done.err
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines() if "│" in line]
    table = {row[0]: row[1:] for row in cells}
    labels = list((custom.parent / "labels/train").glob("*.txt"))
    boxes = sum(len(path.read_text().splitlines()) for path in labels)
    assert table["train"] == ["12", "0", str(boxes), "0", "0"] and table["val"][0] == "12"
    assert table["gizmo"][0] == str(
        sum(path.read_text().count("\n1 ") + path.read_text().startswith("1 ") for path in labels)
    )
    assert "custom.yaml: ultralytics, 6 classes" in done.out and "Image sizes: 256 x 256 (smallest)" in done.out
    assert "No training image is background" in done.out
    assert f"Contact sheet of 10 training images: {tmp_path / 'sheet.png'}" in done.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2000 and sheet.height > 600


def test_every_format_has_a_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert FORMATS.keys() == set(get_args(Kind))
    done = run_command(capfd, "data", "check", labelme(tmp_path / "set", {"train": TRAIN}))
    assert done.status == 0, done.err
    assert "set: labelme, 2 classes" in done.out


def test_json_has_everything_and_nothing_else_is_on_standard_output(
    custom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(capfd, "data", "check", custom, "--json", "--out", tmp_path / "sheet.jpg")
    found = json.loads(done.out)
    assert found["splits"]["train"]["images"] == 12 and len(found["classes"]) == 6 and found["source"] == str(custom)
    assert Image.open(tmp_path / "sheet.jpg").format == "JPEG"


def test_what_looks_wrong_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for place in ("images", "labels"):
        (tmp_path / place).mkdir()
    for number in range(6):
        picture = np.random.default_rng(number % 5).integers(0, 255, (60, 80, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"images/{number}.png")
        (tmp_path / f"labels/{number}.txt").write_text("0 0.5 0.5 1 1\n0 0.3 0.3 0.02 0.02\n0 0.3 0.3 0 0\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [box]\n")
    done = run_command(capfd, "data", "check", tmp_path / "data.yaml")
    assert done.status == 0, done.err
    assert "Left out: 6 things: box without an area: " in done.out and "; and 3 more (--json lists all)" in done.out
    assert "Copies: 1 picture: 0.png = 5.png" in done.out
    assert "Look at 6 boxes that cover their whole images: box in 0.png, 100% of it; " in done.out
    assert "train (cross-validated)" in done.out and "Nothing looks wrong." not in done.out


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["nowhere"], 1, "no such file or folder"),
        (["SET", "--out", "sheet.gif"], 2, "--out must be a .png or .jpg file"),
        (["SET", "--out", "SET/sheet.png"], 1, "sheet.png"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], status: int, complaint: str, custom: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(capfd, "data", "check", *(word.replace("SET", str(custom)) for word in arguments))
    assert done.status == status and complaint in done.err and "Traceback" not in done.err
    assert [line for line in done.err.splitlines() if line.startswith("Error: ")] == [done.err.splitlines()[-1]]


def test_nothing_heavy_is_imported(custom: Path, tmp_path: Path) -> None:
    code = """
import sys
from prompt_tune.cli import main
try:
    main()
finally:
    print(sorted({"torch", "torchvision", "ultralytics", "open_clip", "onnxruntime"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, "data", "check", str(custom), "--out", str(tmp_path / "sheet.png"), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr
