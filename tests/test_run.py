"""The run folder: starting, resuming, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from prompt_tune.errors import RunError
from prompt_tune.run import RunFolder

CONFIG = {"model": "tiny", "digests": {"guide": "12"}, "settings": {"epochs": 3, "region_budget": [600, 50, 64]}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was started."""
    folder = RunFolder(tmp_path / "run")
    folder.open(CONFIG, resume=False)
    return folder


@pytest.mark.parametrize("resume", [False, True])
def test_open_new_folder_writes_the_configuration(tmp_path: Path, resume: bool) -> None:
    run = RunFolder(tmp_path / "a" / "run")
    run.open(CONFIG, resume=resume)
    assert json.loads(run.config.read_text()) == CONFIG


def test_open_folder_with_a_cache_or_what_a_killed_process_left_is_possible(tmp_path: Path) -> None:
    (tmp_path / "regions").mkdir()
    (tmp_path / ".config-ab12.json").touch()
    RunFolder(tmp_path).open(CONFIG, resume=False)


def test_open_run_again_needs_resume(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"holds a run already\. Continue it with --resume, or give another --out\."):
        run.open(CONFIG, resume=False)
    run.open(CONFIG, resume=True)


def test_open_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not empty, and it is not a run"):
        RunFolder(tmp_path).open(CONFIG, resume=True)
    with pytest.raises(RunError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").open(CONFIG, resume=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": {"epochs": 4, "region_budget": [600, 50, 64]}}, "with `epochs` 3. Received: 4"),
        ({"settings": {"epochs": 3, "region_budget": [1, 50, 64]}}, r"`region_budget` \[600, 50, 64\]"),
        ({"settings": {"region_budget": [600, 50, 64]}}, "`epochs` 3. Received: None"),
        ({"digests": {"guide": "13"}}, "`digests`"),
        ({"model": "other.pt"}, "`model` 'tiny'. Received: 'other.pt'"),
        ({"new": 1}, "`new` None. Received: 1"),
    ],
)
def test_resume_with_another_configuration_names_what_differs(
    run: RunFolder, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(RunError, match=reason):
        run.open({**CONFIG, **changes}, resume=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "5"])
def test_resume_with_a_damaged_configuration_is_refused(run: RunFolder, text: str) -> None:
    run.config.write_text(text)
    with pytest.raises(RunError, match="is damaged") as refusal:
        run.open(CONFIG, resume=True)
    assert len(str(refusal.value).splitlines()) == 1


def line(epoch: int, loss: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, "loss": loss, "ap": 0.1 * epoch, "ap50": 0.2 * epoch}


def test_metrics_of_an_epoch_done_again_are_replaced(run: RunFolder) -> None:
    assert run.read_metrics() == []
    for entry in (line(1), line(2), line(3), line(2, loss=0.5)):
        run.add_metrics(entry)
    assert run.read_metrics() == [line(1), line(2, loss=0.5)]
    assert len(run.metrics.read_text().splitlines()) == 2


def test_damaged_metrics_are_refused(run: RunFolder) -> None:
    run.metrics.write_text('{"epoch": 1')
    with pytest.raises(RunError, match=r"metrics.jsonl is damaged"):
        run.add_metrics(line(1))


def test_held_out_images_are_recorded_and_runs_from_before_resume(run: RunFolder, tmp_path: Path) -> None:
    assert run.held_out() == ()
    run.open(CONFIG | {"held_out": ["ab"]}, resume=True)  # this run has no record
    newer = RunFolder(tmp_path / "newer")
    newer.open(CONFIG | {"held_out": ["ab", "cd"]}, resume=False)
    assert newer.held_out() == ("ab", "cd")
    with pytest.raises(RunError, match="was started with `held_out`"):
        newer.open(CONFIG | {"held_out": ["ab"]}, resume=True)
    newer.config.write_text('{"held_out": 3}')
    with pytest.raises(RunError, match="`held_out` is not a list of digests"):
        newer.held_out()


def test_run_whose_inputs_moved_is_resumed_and_records_the_new_places(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    config = CONFIG | {"data": "/a/set.yaml", "replay": [["/a/more", 3.0]], "labels": "12", "sample_images": "34"}
    run.open(config, resume=False)
    moved = config | {"data": "/b/set.yaml", "replay": [["/b/more", 3.0]], "model": "/b/tiny"}
    run.open(moved, resume=True)
    assert json.loads(run.config.read_text()) == moved
    settings = {"epochs": 4, "region_budget": [600, 50, 64]}
    others: list[dict[str, Any]] = [{"labels": "13"}, {"sample_images": "35"}, {"settings": settings}]
    for other in others:
        with pytest.raises(RunError, match="was started with `data`"):
            run.open(config | other, resume=True)
        with pytest.raises(
            RunError, match=f"was started with `{'epochs' if 'settings' in other else next(iter(other))}`"
        ):
            run.open(moved | other, resume=True)
    assert json.loads(run.config.read_text()) == moved


def test_run_without_a_digest_of_its_images_is_resumed_at_its_place_only(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.open(CONFIG | {"data": "/a"}, resume=False)
    run.open(CONFIG | {"data": "/a", "sample_images": "34"}, resume=True)
    assert "sample_images" not in json.loads(run.config.read_text())
    with pytest.raises(RunError, match="was started with `data`"):
        run.open(CONFIG | {"data": "/b", "sample_images": "34"}, resume=True)
