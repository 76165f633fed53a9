"""`fit --log wandb` offline, read back from the file that `wandb sync` would send."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import extras
import pytest
from tracked import LINES, fit_logged, stopped_and_continued

from prompt_tune.run import RunFolder

extras.needs("wandb")

BLOCK, HEADER = 32768, 7  # bytes; the file is a log of LevelDB after seven bytes that name it


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block is too small for a header
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # all of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def history(files: list[Path]) -> list[dict[str, Any]]:
    """What was logged, step by step."""
    found = []
    for file in files:
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                found.append({key: json.loads(value) for key, value in items.items()})
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was logged. Nothing was sent, and nothing written outside its folder."""
    run, outcome = fit_logged(tmp_path_factory.mktemp("wandb"), "wandb")
    assert outcome.status == 0, outcome.out
    assert (outcome.left, outcome.sockets) == ([], [])
    assert f"Logged: wandb sync '{run}/wandb/offline-run-" in outcome.out
    return run


def test_numbers_pictures_and_the_vocabulary_are_in_the_file(run: Path) -> None:
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    found = list(records(file))
    kinds = [record.WhichOneof("record_type") for record in found]
    assert "artifact" in kinds and "files" in kinds
    (artifact,) = (record.artifact for record in found if record.WhichOneof("record_type") == "artifact")
    names = {entry.path for entry in artifact.manifest.contents}
    assert artifact.type == "vocabulary" and names == {"config.json", "learned.vocab.safetensors", "report.html"}
    (kept,) = (entry for entry in artifact.manifest.contents if entry.path == "learned.vocab.safetensors")
    assert Path(kept.local_path).read_bytes() == (run / "learned.vocab.safetensors").read_bytes()
    steps = history([file])
    lines = RunFolder(run).read_metrics()
    measured = [(step["_step"], step["train/loss"], step["val/ap"]) for step in steps if "train/loss" in step]
    assert measured == [(line["epoch"], line["loss"], line["ap"]) for line in lines]
    assert any(key.startswith("curves") for step in steps for key in step)
    assert list(run.glob("wandb/offline-run-*/files/media/images/photo01_*.jpg"))


def test_nothing_is_told_of_the_machine(run: Path) -> None:
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    kinds = {record.WhichOneof("record_type") for record in records(file)}
    assert not kinds & {"stats", "environment"}
    found = [record.run for record in records(file) if record.WhichOneof("record_type") == "run"]
    assert [(part.project, part.display_name, part.host) for part in found] == [("prompt-tune", "my run", "")]
    assert not list(run.glob("wandb/**/requirements.txt")) and not list(run.glob("wandb/**/wandb-metadata.json"))


def test_run_that_is_continued_keeps_its_name(tmp_path: Path) -> None:
    stopped_and_continued(tmp_path / "run", "wandb")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # `wandb sync` puts both into one run
    steps = [(step["_step"], step["train/loss"]) for step in history(files) if "train/loss" in step]
    assert steps == [(line["epoch"], line["loss"]) for line in LINES]
