"""`prompt-tune pretrain`: what it prints, and a place that it refuses. The training is tested in tests/tiny."""

from pathlib import Path

import pytest
from commands import run_command

from prompt_tune.tiny import pretrain, skill

DEFAULTS = pretrain.pretrain.__kwdefaults__ or {}


def test_pretrain_prints_its_measurement_and_resumes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skill, "N_SCENES", 16)
    monkeypatch.setattr(pretrain.pretrain, "__kwdefaults__", {**DEFAULTS, "tower_steps": 2, "detector_steps": 2})
    outcome = run_command(capfd, "pretrain", "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert "held_out_ap50" in outcome.out and (tmp_path / "out" / "skill.json").is_file()
    weights = (tmp_path / "out" / "detector.safetensors").read_bytes()
    again = run_command(capfd, "pretrain", "--out", tmp_path / "out")
    assert again.status == 0 and "Resuming after update 2." in again.err
    assert (tmp_path / "out" / "detector.safetensors").read_bytes() == weights


def test_pretrain_in_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    outcome = run_command(capfd, "pretrain", "--out", tmp_path / "file" / "out")
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert f"Error: The folder {tmp_path / 'file' / 'out'} cannot be made" in outcome.err
