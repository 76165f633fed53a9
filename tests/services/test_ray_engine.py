"""The engine on a Ray cluster of two nodes, which these tests start."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import extras
import pytest

# ruff: noqa: E402
extras.needs("ray", "pyarrow")

from labelling import SHOW, files_of, write_photos
from stress.kill_label import kill_label, two_nodes

from prompt_tune.errors import PromptTuneError
from prompt_tune.runtime.slices import Slices
from prompt_tune.services.cluster import label


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the cluster: each of its nodes has one core."""
    with two_nodes() as address:
        yield address


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, two of them damaged."""
    folder = tmp_path_factory.mktemp("photos")
    for path in write_photos(folder, 17)[3::10]:
        path.write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def wanted(bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process writes."""
    out = tmp_path_factory.mktemp("local")
    label(bundle, photos, out, part=3, batch=2, show=SHOW, threads=1)
    return files_of(out)


def test_two_nodes_write_the_bytes_of_one_process(
    bundle: Path,
    photos: Path,
    wanted: dict[str, bytes],
    address: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import ray

    result = label(bundle, photos, tmp_path / "out", engine="ray", address=address, part=3, batch=2, show=SHOW)
    assert (result.images, result.failed, len(result.errors)) == (17, 2, 2)
    assert files_of(tmp_path / "out") == wanted and len(wanted) == 6
    assert not ray.is_initialized()
    next(iter((tmp_path / "out" / "rows").iterdir())).unlink()
    again = label(bundle, photos, tmp_path / "out", engine="ray", address=address, part=3, batch=2, show=SHOW)
    assert (again.images + again.before, files_of(tmp_path / "out")) == (17, wanted) and again.images <= 3
    nothing = label(bundle, photos, tmp_path / "out", engine="ray", address=address, part=3, batch=2, show=SHOW)
    assert (nothing.images, nothing.before) == (0, 17)
    assert "Deprecat" not in "".join(capfd.readouterr())


def test_killed_at_random_points_and_run_again_it_gives_the_rows_of_a_run_that_was_not(
    bundle: Path, address: str, tmp_path: Path
) -> None:
    result = kill_label(tmp_path, bundle, 2, random.Random(3), show=SHOW, address=address)
    assert result.faults == [] and result.outcomes["kills"] > 0, result


def test_error_of_a_worker_is_one_line(bundle: Path, photos: Path, address: str, tmp_path: Path) -> None:
    def replace(stage: str, done: int, total: int | None, note: str) -> None:
        for run in (tmp_path / "out").glob(".run-*"):
            run.rename(tmp_path / "away")

    with pytest.raises(PromptTuneError, match="Another run has begun in"):
        label(bundle, photos, tmp_path / "out", engine="ray", address=address, show=SHOW, progress=replace)


def test_no_cluster_is_one_line(bundle: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptTuneError, match=r"^No Ray cluster answers at `127\.0\.0\.1:1` .*ray start --head"):
        label(bundle, photos, tmp_path, engine="ray", address="127.0.0.1:1", show=SHOW)


def test_missing_ray_is_one_line(bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PromptTuneError, match=r"^Ray is not installed, .*pip install '.*\[ray\]'"):
        label(bundle, photos, tmp_path, engine="ray", show=SHOW)


def test_cluster_of_one_run_has_usage_statistics_switched_off_and_ends_with_it(
    bundle: Path, photos: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    """Every process that Ray starts has the switch, and the environment of this one is without it again."""
    code = """
import os, sys
from pathlib import Path
from prompt_tune import cluster
seen = {}
def look(stage, done, total, note):
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[place.name] = (place / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            pass
    for place in Path("/proc").glob("[0-9]*"):
        try:
            above = place.name
            while above in parents and parents[above] != str(os.getpid()):
                above = parents[above]
            if above in parents and (b"/ray/" in (line := (place / "cmdline").read_bytes()) or line[:5] == b"ray::"):
                names = (place / "environ").read_bytes().split(b"\\0")
                if any(name.startswith(b"PATH=") for name in names):  # a title may have been written over it
                    seen[place.name] = b"RAY_USAGE_STATS_ENABLED=0" in names
        except OSError:
            pass
options = dict(engine="ray", address="local", workers=1, part=3, batch=2, show=["gizmo", "forklift"])
cluster.label(*sys.argv[1:], **options, progress=look)
print(len(seen), all(seen.values()), "RAY_USAGE_STATS_ENABLED" not in os.environ)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code, bundle, photos, tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    count, off, same = done.stdout.split()[-3:]
    assert int(count) > 3 and (off, same) == ("True", "True"), done.stdout
    assert files_of(tmp_path / "out") == wanted


def test_images_in_slices_have_the_same_bytes_on_two_nodes(
    bundle: Path, photos: Path, address: str, tmp_path: Path
) -> None:
    for out, options in (("one", {"threads": 1}), ("two", {"engine": "ray", "address": address})):
        label(bundle, photos, tmp_path / out, part=9, batch=2, show=SHOW, slices=Slices(48), **options)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
