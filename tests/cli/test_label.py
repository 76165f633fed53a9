"""`prompt-tune label` from its arguments to its rows."""

from pathlib import Path

import extras
import pytest

# ruff: noqa: E402
extras.needs("pyarrow")

from commands import run_command
from labelling import SHOW, expected, rows_of, write_photos
from small_bundle import content, small_bundle

from prompt_tune.models.world import World
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.slices import Slices, detect_sliced
from prompt_tune.services.results import Results

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")


def test_label_writes_rows_names_errors_and_goes_on(bundle: Path, tmp_path: Path, capfd: Capture) -> None:
    paths = write_photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    shown = [f"--show={name}" for name in SHOW]
    command = ("label", bundle, tmp_path / "photos", "--out", tmp_path / "out", "--part", 2, "--batch", 4, *shown)
    done = run_command(capfd, *command)
    assert done.status == 0, done.err
    rows = rows_of(tmp_path / "out")
    wanted = expected(bundle, paths, batch=4)
    assert {path: rows[path] for path in wanted} == wanted and len(rows) == 6
    count = sum(len(row.found) for row in Results(tmp_path / "out").rows())
    assert done.out.splitlines()[-1] == f"{count} detections in 6 images, 1 that cannot be read: {tmp_path / 'out'}"
    assert "Not read: " in done.err and "broken.png` cannot be read as an image" in done.err
    again = run_command(capfd, *command)
    assert again.out.splitlines()[-1] == f"0 detections in 0 images, 6 labelled before: {tmp_path / 'out'}"


def test_label_in_slices_goes_on_with_the_same_slices_only(bundle: Path, tmp_path: Path, capfd: Capture) -> None:
    (path,) = write_photos(tmp_path / "photos", 1)
    shown = [f"--show={name}" for name in SHOW]
    command = ("label", bundle, path, "--out", tmp_path / "out", "--slice", 48, "--slice-overlap", 0.3, *shown)
    done = run_command(capfd, *command)
    assert done.status == 0, done.err
    detector = Detector(bundle, threads=1)
    wanted = detect_sliced(detector, path, Slices(48, 0.3), batch=8, show=SHOW)
    assert rows_of(tmp_path / "out") == {str(path): content(wanted)} and len(wanted)
    assert run_command(capfd, *command).out.splitlines()[-1].startswith("0 detections in 0 images, 1 labelled before")
    other = run_command(capfd, "label", bundle, path, "--out", tmp_path / "out", *shown)
    assert other.status == 1 and "has rows that were made with `slice` 48. Received: None." in other.err


def test_only_the_first_errors_are_told(bundle: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(12):
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"no image")
    done = run_command(capfd, "label", bundle, "--source", tmp_path / "photos", "--out", tmp_path / "out")
    assert done.status == 0 and done.err.count("Not read: ") == 5
    assert "... and 7 more. The rows have all errors." in done.err


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("--out", "OUT"), 2, "Missing option '--source': what to label."),
        (("PHOTOS",), 2, "Missing option '--out'."),
        (("nothing.png", "--out", "OUT"), 1, "nothing.png"),
        (("PHOTOS", "--out", "OUT", "--show", "forklft"), 1, "No loaded class is named 'forklft'."),
        (("PHOTOS", "--out", "OUT", "--engine", "spark"), 2, "'spark' is not one of"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    bundle: Path, tmp_path: Path, capfd: Capture, arguments: tuple[str, ...], status: int, text: str
) -> None:
    write_photos(tmp_path / "PHOTOS", 1)
    words = [tmp_path / word if word.isupper() else word for word in arguments]
    done = run_command(capfd, "label", bundle, *words)
    assert done.status == status and text in done.err
