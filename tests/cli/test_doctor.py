"""`prompt-tune doctor`: what it prints, and the whole chain on `tiny`."""

import getpass
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_command

from prompt_tune.services.environment import look_around


def test_environment_alone_needs_no_model(capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, "doctor")
    assert done.status == (3 if look_around().broken else 0)
    assert done.out.startswith("# prompt-tune doctor\n") and "| numpy | " in done.out and "## The chain" not in done.out
    found = json.loads(run_command(capfd, "doctor", "--json").out)
    assert found["chain"] is None and "CPUExecutionProvider" in found["environment"]["providers"]


def test_whole_chain_holds_on_tiny(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.md"
    done = run_command(capfd, "doctor", "--model", "tiny", "--out", out, "--json", "--quiet")
    steps = json.loads(done.out)["chain"]["steps"]
    assert [step["result"] for step in steps] == ["ok"] * 7, steps
    by_name = {step["name"]: step["found"] for step in steps}
    assert "0 bits with 1 learned row, 0 bits with 100 learned rows" in by_name["original detections keep every bit"]
    assert float(by_name["a fit on 10 pictures"].split()[1]) > 0.8
    page = out.read_text("utf-8")
    assert "## The chain on tiny" in page and page.endswith("No step failed.\n")
    for private in (str(tmp_path), str(Path.home()), "/tmp/", sys.prefix):
        assert private not in page
    assert f" {getpass.getuser()} " not in page
    assert done.status == (3 if look_around().broken else 0)


def test_failed_step_gives_status_3(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, "doctor", "--model", tmp_path / "geheim.pt")
    assert done.status == 3 and "| the checkpoint loads | failed | There is no detector" in done.out
    assert "geheim" not in done.out and "1 of 7 steps failed." in done.out


@pytest.mark.parametrize("option", [("--text-tower", "tiny"), ("--imgsz", "64")])
def test_option_of_the_chain_needs_a_model(option: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, "doctor", *option)
    assert done.status == 2 and "need --model" in done.err


def test_inference_box_without_torch_is_told_what_to_install() -> None:
    code = """
import sys
for name in ("torch", "ultralytics", "open_clip"):
    sys.modules[name] = None
from prompt_tune.cli import main
sys.argv = ["prompt-tune", "doctor", *sys.argv[1:]]
main()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("# prompt-tune doctor\n") and "CUDA in torch" not in done.stdout, done.stderr
    chain = subprocess.run([*command, "--model", "tiny"], capture_output=True, text=True, check=False)
    assert chain.returncode == 1 and chain.stderr.startswith("Error: torch is not installed")
