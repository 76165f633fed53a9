"""`prompt_tune.cluster.label` from its sources to its rows."""

import json
import subprocess
import sys
from pathlib import Path

import extras
import pytest

# ruff: noqa: E402
extras.needs("pyarrow")

from labelling import SHOW, expected, files_of, rows_of, write_photos
from small_bundle import learned_for

import prompt_tune
from prompt_tune import cluster
from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.runtime.slices import Slices
from prompt_tune.services.results import Results


def test_rows_have_the_bits_of_detect_and_a_rerun_does_nothing(bundle: Path, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 7)
    told: list[tuple[str, int, int | None]] = []
    first = prompt_tune.cluster.label(
        bundle,
        tmp_path / "photos",
        tmp_path / "out",
        part=3,
        batch=4,
        show=SHOW,
        progress=lambda stage, done, total, note: told.append((stage, done, total)),
    )
    assert rows_of(tmp_path / "out") == expected(bundle, paths, batch=4)
    assert (first.images, first.before, first.failed, first.errors) == (7, 0, 0, ())
    assert first.detections == sum(len(row.found) for row in Results(tmp_path / "out").rows()) > 0
    assert told == [("label", 0, 7), ("label", 3, 7), ("label", 6, 7), ("label", 7, 7)]
    before = files_of(tmp_path / "out")
    again = cluster.label(bundle, tmp_path / "photos", tmp_path / "out", part=3, batch=4, show=SHOW)
    assert (again.images, again.before, again.detections) == (0, 7, 0) and files_of(tmp_path / "out") == before


def test_missing_part_is_made_again_with_its_name_and_bytes(bundle: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 7)
    options = {"part": 2, "batch": 4, "show": SHOW}
    cluster.label(bundle, tmp_path / "photos", tmp_path / "out", **options)  # type: ignore[arg-type]
    before = files_of(tmp_path / "out")
    for part in Results(tmp_path / "out").parts()[1::2]:
        part.unlink()
    again = cluster.label(bundle, tmp_path / "photos", tmp_path / "out", **options)  # type: ignore[arg-type]
    assert (again.images, again.before) == (3, 4) and files_of(tmp_path / "out") == before and len(before) == 4


def test_new_images_get_rows_and_no_old_one_a_second(bundle: Path, tmp_path: Path) -> None:
    """New images stand before and between the old ones; sources overlap; another part size."""
    write_photos(tmp_path / "photos", 3, first=4)
    cluster.label(bundle, tmp_path / "photos", tmp_path / "out", part=2, batch=2, show=SHOW)
    write_photos(tmp_path / "photos", 4)
    (tmp_path / "photos" / "0005b.png").write_bytes((tmp_path / "photos" / "0005.png").read_bytes())
    sources: list[str | Path] = [tmp_path / "photos" / "0006.png", tmp_path / "photos", f"{tmp_path}/photos/*.png"]
    again = cluster.label(bundle, sources, tmp_path / "out", part=3, batch=2, show=SHOW)
    assert (again.images, again.before) == (5, 3)
    paths = sorted((tmp_path / "photos").iterdir())
    assert rows_of(tmp_path / "out") == expected(bundle, paths, batch=2) and len(paths) == 8


def test_damaged_images_are_told_and_counted(bundle: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    for number in range(30):
        (tmp_path / "photos" / f"broken {number:02}.png").write_bytes(b"no image")
    result = cluster.label(bundle, tmp_path / "photos", tmp_path / "out", part=4, show=SHOW)
    assert (result.images, result.failed, len(result.errors)) == (31, 30, 20)
    assert "broken 00.png` cannot be read as an image" in result.errors[0]
    assert sum(len(row) == 1 for row in rows_of(tmp_path / "out").values()) == 30


def test_other_vocabularies_do_not_mix_with_the_rows_that_are_there(bundle: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    cluster.label(bundle, tmp_path / "photos", tmp_path / "out", show=SHOW)
    learned_for(bundle, "crane").save(tmp_path / "crane.vocab.safetensors")
    more = [f"cranes={tmp_path / 'crane.vocab.safetensors'}"]
    with pytest.raises(DataError, match="has rows that were made with `vocabularies`"):
        cluster.label(bundle, tmp_path / "photos", tmp_path / "out", learned=more, show=SHOW)
    with pytest.raises(DataError, match=r"has rows that were made with `batch` 8\. Received: 2"):
        cluster.label(bundle, tmp_path / "photos", tmp_path / "out", batch=2, show=SHOW)
    cluster.label(bundle, tmp_path / "photos", tmp_path / "more", learned=more, show=["cranes:*"], workers=2)
    assert {label for row in Results(tmp_path / "more").rows() for label in row.found.vocabularies} == {"cranes"}


def test_rows_with_and_without_slices_do_not_mix(bundle: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    for out, slices, other, text in (
        ("sliced", Slices(48), None, r"`slice` 48\. Received: None"),
        ("sliced", Slices(48), Slices(64), r"`slice` 48\. Received: 64"),
        ("sliced", Slices(48), Slices(48, 0.5), r"`slice_overlap` 0\.2\. Received: 0\.5"),
        ("whole", None, Slices(48), r"`slice` None\. Received: 48"),
    ):
        cluster.label(bundle, tmp_path / "photos", tmp_path / out, show=SHOW, slices=slices)
        with pytest.raises(DataError, match=f"has rows that were made with {text}"):
            cluster.label(bundle, tmp_path / "photos", tmp_path / out, show=SHOW, slices=other)
    # results from before there were slices go on
    settings = tmp_path / "whole" / "label.json"
    old = json.loads(settings.read_text())
    assert (old.pop("slice"), old.pop("slice_overlap")) == (None, None) and "slice" not in old["info"]
    settings.write_text(json.dumps(old))
    assert cluster.label(bundle, tmp_path / "photos", tmp_path / "whole", show=SHOW).before == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": 0}, "`batch` must be at least 1. Received: 0."),
        ({"batch": 1025}, "`batch` must be from 1 to 1024. Received: 1025."),
        ({"part": 0}, "`part` must be at least 1. Received: 0."),
        ({"workers": 0}, "`workers` must be at least 1. Received: 0."),
        ({"engine": "spark"}, "`engine` must be `local` or `ray`. Received: 'spark'."),
        ({"show": ["forklft"]}, "No loaded class is named 'forklft'. Near: forklift"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    bundle: Path, tmp_path: Path, options: dict[str, object], text: str
) -> None:
    with pytest.raises(PromptTuneError, match=text):
        cluster.label(bundle, tmp_path, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_images(bundle: Path, tmp_path: Path) -> None:
    """Ten times as many images, one worker: pixels and rows of one part are in memory, and nothing else."""
    for count in (30, 300):
        (tmp_path / str(count)).mkdir()
        paths = write_photos(tmp_path / "photos", 30)
        for number in range(count):
            (tmp_path / str(count) / f"{number:04}.png").symlink_to(paths[number % 30])
    code = """
import resource, sys
from prompt_tune import cluster
cluster.label(*sys.argv[1:], part=10, batch=2, show=["forklift"], threads=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for count in (30, 300):
        command = [sys.executable, "-c", code, bundle, tmp_path / str(count), tmp_path / f"out {count}"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)  # MiB
    assert peaks[1] < peaks[0] + 16, peaks
