"""`prompt-tune demo`: places that it refuses, in one line. What it does elsewhere is in tests/tiny/test_demo.py."""

from pathlib import Path

import pytest
from commands import run_command
from disks import full_disk


def test_demo_refuses_a_folder_with_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    outcome = run_command(capfd, "demo", "--out", tmp_path)
    assert outcome.status == 1 and "not an empty folder" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_demo_in_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    outcome = run_command(capfd, "demo", "--out", tmp_path / "file" / "demo", "--images", 4)
    assert outcome.status == 1 and "Traceback" not in outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and str(tmp_path / "file" / "demo") in errors[0] and "Give another --out." in errors[0]


def test_demo_on_a_full_disk_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with full_disk(room=3000):  # bytes: less than an image of the sample set has
        outcome = run_command(capfd, "demo", "--out", tmp_path / "demo", "--images", 4)
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert "cannot be written: File too large. Give another --out." in outcome.err
