"""The engine of one machine: workers that die, and a process that is killed with them."""

import os
import random
import signal
from pathlib import Path

import extras
import pytest

# ruff: noqa: E402
extras.needs("pyarrow")

from labelling import SHOW, files_of, rows_of, write_photos
from stress.kill_label import kill_label

from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.services import local
from prompt_tune.services.cluster import label


def test_one_worker_and_two_write_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 11)
    for workers in (1, 2):
        result = label(
            bundle, tmp_path / "photos", tmp_path / str(workers), workers=workers, part=3, batch=2, show=SHOW, threads=1
        )
        assert (result.images, result.failed) == (11, 0)
    one = files_of(tmp_path / "1")
    assert len(one) == 4 and files_of(tmp_path / "2") == one
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == ["label.json", "rows"]


def test_worker_that_dies_is_replaced_and_nothing_is_lost(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_photos(tmp_path / "photos", 8)
    give, killed = local._give, list[int | None]()

    def give_and_kill(process: local._Process, part: object, busy: object) -> None:
        give(process, part, busy)  # type: ignore[arg-type]
        if len(killed) < 2:
            killed.append(process._process.pid)
            os.kill(process._process.pid or 0, signal.SIGKILL)

    monkeypatch.setattr(local, "_give", give_and_kill)
    result = label(bundle, tmp_path / "photos", tmp_path / "out", workers=2, part=2, show=SHOW)
    assert len(killed) == 2 and result.images == 8
    assert list(rows_of(tmp_path / "out")) == [str(path) for path in paths]


def test_part_that_kills_every_worker_ends_the_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", 4)
    give = local._give

    def give_and_kill(process: local._Process, part: object, busy: object) -> None:
        os.kill(process._process.pid or 0, signal.SIGKILL)
        give(process, part, busy)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "_give", give_and_kill)
    with pytest.raises(
        PromptTuneError, match=r"^3 workers died while they labelled the 2 images from `.*000[02]\.png` on"
    ):
        label(bundle, tmp_path / "photos", tmp_path / "out", workers=2, part=2, show=SHOW)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["label.json", "rows"]


def test_error_of_a_worker_is_the_error_of_the_run(bundle: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)

    def replace(stage: str, done: int, total: int | None, note: str) -> None:
        for run in (tmp_path / "out").glob(".run-*"):
            run.rename(tmp_path / "away")

    with pytest.raises(DataError, match="Another run has begun"):
        label(bundle, tmp_path / "photos", tmp_path / "out", workers=2, part=2, show=SHOW, progress=replace)


def test_killed_at_random_points_and_run_again_it_gives_the_bytes_of_a_run_that_was_not(
    bundle: Path, tmp_path: Path
) -> None:
    result = kill_label(tmp_path, bundle, 3, random.Random(5), show=SHOW)
    assert result.faults == [] and result.outcomes["kills"] > 0, result
