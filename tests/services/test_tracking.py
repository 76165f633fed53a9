"""Run tracking: trackers that fail, that are new to a run, or whose package is missing."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from places import TESTS
from tracked import LINES

from prompt_tune.errors import PromptTuneError
from prompt_tune.run import RunFolder
from prompt_tune.services.trackers import MADE
from prompt_tune.services.tracking import PACKAGES, Tracking, tracking
from prompt_tune.tuning.fit import FitResult
from prompt_tune.version import install


class Diary:
    """A tracker that writes down what it is told."""

    place = "look into the diary"

    def __init__(self, run: Path, config: Mapping[str, Any], known: str | None, epoch: int) -> None:
        self.id = known or "new"
        self.entries: list[Any] = []
        self.entries.append(("open", known, config["settings"]["epochs"], epoch, os.environ["WANDB_ERROR_REPORTING"]))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self.entries.append((epoch, dict(values)))

    def finish(
        self, epoch: int, values: Mapping[str, float], pictures: Mapping[str, Path], files: Sequence[Path]
    ) -> None:
        self.entries.append((epoch, dict(values), sorted(pictures), [path.name for path in files]))

    def close(self, *, whole: bool) -> None:
        self.entries.append(("close", whole))


class Broken(Diary):
    """A tracker that is gone after the first epoch."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("nobody answers")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    shutil.copytree(TESTS / "data" / "run", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.metrics.unlink()
    folder.curves.write_bytes(b"")
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Diary]:
    """The trackers `diary` and `broken` can be asked for; those that were opened, by name."""
    opened: dict[str, Diary] = {}
    for name, kind in (("diary", Diary), ("broken", Broken)):

        def make(*arguments: Any, name: str = name, kind: type[Diary] = kind) -> Diary:
            opened[name] = kind(*arguments)
            return opened[name]

        monkeypatch.setitem(PACKAGES, name, ())
        monkeypatch.setitem(MADE, name, make)
    return opened


def learn(tracked: Tracking, run: RunFolder, lines: Sequence[Mapping[str, Any]]) -> None:
    for line in lines:
        run.add_metrics(dict(line))
        tracked.epoch(line)


def numbers(line: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    return line["epoch"], {
        "train/loss": line["loss"],
        "train/learning_rate": line["learning_rate"],
        "val/ap": line["ap"],
    }


RESULT = FitResult(Path("run"), 2, 0.25, 0.5, (), finished=True, folds=0, seconds={})


def test_tracker_is_told_of_every_epoch_and_of_the_end(run: RunFolder, made: dict[str, Diary]) -> None:
    with tracking(["diary", "diary"], run.folder) as tracked:
        assert not made and tracked.places() == []
        learn(tracked, run, LINES)
        tracked.finish(RESULT)
        assert tracked.places() == ["look into the diary"]
    epochs = json.loads(run.config.read_text())["settings"]["epochs"]
    assert made["diary"].entries == [
        ("open", None, epochs, 1, "false"),
        *(numbers(line) for line in LINES),
        (
            2,
            {"kept/epoch": 2.0, "kept/ap": 0.25, "kept/ap50": 0.5},
            ["curves"],
            ["learned.vocab.safetensors", "config.json"],
        ),
        ("close", True),
    ]
    assert "WANDB_ERROR_REPORTING" not in os.environ


def test_tracker_that_fails_is_dropped_and_the_others_go_on(
    run: RunFolder, made: dict[str, Diary], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), tracking(["broken", "diary"], run.folder) as tracked:
        learn(tracked, run, LINES)
    assert [record.message for record in caplog.records] == [
        "broken failed, so nothing more is logged to it: nobody answers"
    ]
    assert made["diary"].entries[1:] == [*(numbers(line) for line in LINES), ("close", True)]
    assert len(made["broken"].entries) == 1


def test_run_that_is_continued_keeps_its_names_and_tells_new_trackers_of_what_was(
    run: RunFolder, made: dict[str, Diary], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), tracking(["diary"], run.folder) as tracked:
        learn(tracked, run, LINES[:2])
        raise KeyboardInterrupt
    assert made["diary"].entries[-1] == ("close", False)
    assert json.loads((run.folder / "tracking.json").read_text()) == {"diary": "new"}
    monkeypatch.setitem(PACKAGES, "second", ())
    monkeypatch.setitem(MADE, "second", lambda *arguments: made.setdefault("second", Diary(*arguments)))
    with tracking(["diary", "second"], run.folder) as tracked:
        learn(tracked, run, LINES[2:])
    assert made["diary"].entries[0][:2] == ("open", "new") and made["diary"].entries[1] == numbers(LINES[2])
    assert made["second"].entries[1:4] == [numbers(line) for line in LINES]


def test_run_with_nothing_left_to_learn_is_logged_as_a_whole(run: RunFolder, made: dict[str, Diary]) -> None:
    for line in LINES:
        run.add_metrics(line)
    (run.folder / "tracking.json").write_text("damaged")
    with tracking(["diary"], run.folder) as tracked:
        tracked.finish(RESULT)
    assert made["diary"].entries[0][3] == 4
    assert made["diary"].entries[1:4] == [numbers(line) for line in LINES]


def test_without_trackers_nothing_is_written(run: RunFolder) -> None:
    before = sorted(run.folder.iterdir())
    with tracking([], run.folder) as tracked:
        tracked.epoch(LINES[0])
        tracked.finish(RESULT)
    assert sorted(run.folder.iterdir()) == before


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_missing_package_is_named_before_anything_is_done(
    name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in PACKAGES[name]:
        monkeypatch.setitem(sys.modules, each, None)
    with pytest.raises(PromptTuneError, match=f"is not installed, and --log {name} needs it: "):
        Tracking([name], tmp_path)
    options = ("--model", "tiny", "--data", "nowhere.yaml", "--out", tmp_path / "run", "--log", name)
    done = run_command(capfd, "fit", *options)
    assert done.status == 1 and not (tmp_path / "run").exists()
    (line,) = done.err.splitlines()
    first = PACKAGES[name][0]
    assert line == f"Error: {first} is not installed, and --log {name} needs it: {install(name)}"
