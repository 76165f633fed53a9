"""The whole workflow on `tiny`, as `prompt-tune demo` runs it: what the README promises."""

import json
from pathlib import Path

import pytest
from commands import run_command
from PIL import Image


def test_demo_teaches_six_classes_and_changes_no_bit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run_command(capfd, "demo", "--out", tmp_path / "demo")
    assert outcome.status == 0, outcome.err
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert set(summary) == {
        "zero_shot_ap50",
        "learned_ap50",
        "original_ap50_before",
        "original_ap50_after",
        "original_bits_changed",
        "seconds",
    }
    assert summary["zero_shot_ap50"] <= 0.30 and summary["learned_ap50"] >= 0.85
    assert summary["original_ap50_before"] == summary["original_ap50_after"] >= 0.5
    assert summary["original_bits_changed"] == 0
    assert f"{summary['learned_ap50']:.3f}" in outcome.out
    assert min(Image.open(tmp_path / "demo" / "demo.png").size) > 400
