"""`prompt-tune mine`."""

from pathlib import Path

import pytest
from commands import run_command

from prompt_tune.datasets.sample import write_sample

BUNDLE = Path(__file__).parents[1] / "data" / "bundle"


def test_command_prints_the_ranking_and_what_comes_next(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = write_sample(tmp_path / "set", n_images=12)[0].parent / "images/test"
    out = tmp_path / "out"
    done = run_command(capfd, "mine", BUNDLE, images, "--out", out, "--top", 3)
    assert done.status == 0, done.err
    assert f"3 images of 12 to label: {out}" in done.out and "fit --from RUN --data" in done.out
    assert run_command(capfd, "mine", BUNDLE, "--out", tmp_path / "no").status == 2
