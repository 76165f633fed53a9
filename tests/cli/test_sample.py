"""`prompt-tune sample`: what it prints, and places that it refuses, in one line."""

from pathlib import Path

import pytest
from commands import run_command
from disks import full_disk

from prompt_tune.datasets.reading import read_dataset


def test_sample_prints_the_paths_of_two_data_sets_that_can_be_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run_command(capfd, "sample", "--out", tmp_path / "set", "--images", 2)
    assert outcome.status == 0, outcome.err
    custom, original = outcome.out.split()
    assert len(read_dataset(custom).train.samples) == 2
    assert len(read_dataset(original).names) == 80


def test_sample_refuses_a_folder_with_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    outcome = run_command(capfd, "sample", "--out", tmp_path)
    assert outcome.status == 1 and "not an empty folder" in outcome.err and not outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_sample_in_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    outcome = run_command(capfd, "sample", "--out", tmp_path / "file" / "set", "--images", 1)
    assert outcome.status == 1 and "Traceback" not in outcome.err and not outcome.out
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and str(tmp_path / "file" / "set") in errors[0] and "Give another --out." in errors[0]


def test_sample_on_a_full_disk_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with full_disk(room=3000):  # bytes: less than an image of the sample set has
        outcome = run_command(capfd, "sample", "--out", tmp_path / "set", "--images", 1)
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert "cannot be written: File too large. Give another --out." in outcome.err
