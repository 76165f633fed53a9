"""The folder of results: whole files, one run at a time, one set of settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import extras
import pytest

# ruff: noqa: E402
extras.needs("pyarrow")

from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.services.results import Results, begin_part, digest, end, part_name, write_part
from prompt_tune.services.rows import Row, write_rows

SETTINGS: dict[str, Any] = {
    "batch": 8,
    "classes": [["original", "car"], ["learned", "gizmo"]],
    "info": {"description": "by 1", "detector": "abc", "iou": None},
}


def damaged(*paths: str) -> list[Row]:
    return [Row.damaged(path, "damaged") for path in paths]


def test_parts_appear_whole_and_in_order(tmp_path: Path) -> None:
    results = Results(tmp_path / "deep" / "out")
    run = results.begin(SETTINGS)
    assert results.settings() == SETTINGS and results.parts() == []
    write_part(run, part_name(500, ["c"]), damaged("c"))
    write_part(run, part_name(0, ["a", "b"]), damaged("a", "b"))
    assert list(results.paths()) == ["a", "b", "c"]
    assert [row.error for row in results.rows()] == ["damaged"] * 3
    assert results.done() == {digest("a"), digest("b"), digest("c")}
    write_part(run, part_name(0, ["a", "b"]), damaged("a", "b"))  # a worker does it again
    assert list(results.paths()) == ["a", "b", "c"] and list(run.iterdir()) == []
    end(run)
    assert sorted(path.name for path in results.folder.iterdir()) == ["label.json", "rows"]


def test_what_outlives_its_run_writes_nothing(tmp_path: Path) -> None:
    """A process of a killed run finishes after the next run has looked at what is there."""
    results = Results(tmp_path)
    old, new = results.begin(SETTINGS), results.begin(SETTINGS)
    with pytest.raises(DataError, match="Another run has begun"):
        write_part(old, part_name(0, ["a"]), damaged("a"))
    with pytest.raises(DataError, match="Another run has begun"):
        begin_part(old, "x.parquet", "it")
    assert results.parts() == []
    write_part(new, part_name(0, ["a"]), damaged("a"))
    assert list(results.paths()) == ["a"]


def test_run_that_is_replaced_while_a_file_is_written_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path)
    run = results.begin(SETTINGS)

    def write_late(path: Path, rows: list[Row]) -> None:
        write_rows(path, rows)
        shutil.rmtree(run)

    monkeypatch.setattr("prompt_tune.services.results.write_rows", write_late)
    with pytest.raises(DataError, match="Another run has begun"):
        write_part(run, part_name(0, ["a"]), damaged("a"))
    assert results.parts() == []


def test_other_settings_are_refused_and_end_no_run(tmp_path: Path) -> None:
    results = Results(tmp_path)
    run = results.begin(SETTINGS)
    for other, text in (
        ({**SETTINGS, "batch": 4}, r"made with `batch` 8\. Received: 4\. Give the same, or choose another --out\."),
        ({**SETTINGS, "info": {**SETTINGS["info"], "iou": 0.5}}, r"made with `iou` None\. Received: 0\.5"),
    ):
        with pytest.raises(DataError, match=text):
            results.begin(other)
    write_part(run, part_name(0, ["a"]), damaged("a"))
    results.begin({**SETTINGS, "info": {**SETTINGS["info"], "description": "by 2"}})  # another version


def test_part_that_ends_its_workers_ends_the_run(tmp_path: Path) -> None:
    run = Results(tmp_path).begin(SETTINGS)
    for _ in range(3):
        begin_part(run, "x.parquet", "the 2 images from `a` on")
    begin_part(run, "y.parquet", "others")
    with pytest.raises(PromptTuneError, match=r"^3 workers died while they labelled the 2 images from `a` on: out of"):
        begin_part(run, "x.parquet", "the 2 images from `a` on")


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no label\.json: it is not from `prompt-tune label`"):
        Results(tmp_path).settings()
    for text in ("{", json.dumps({"batch": 1}), "[]"):
        (tmp_path / "label.json").write_text(text)
        with pytest.raises(DataError, match=r"label\.json"):
            Results(tmp_path).settings()
