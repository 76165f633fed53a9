"""`--quiet` and `--verbose` of every command."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import pytest
from commands import run_command
from places import ROOT

from prompt_tune.cli import COMMANDS
from prompt_tune.cli import command as prompt_tune

BUNDLE, PHOTO = ROOT / "tests" / "data" / "bundle", ROOT / "tests" / "data" / "photo.png"
LEARNED = BUNDLE / "learned.vocab.safetensors"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_takes_both_options(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, *([name] if name else []), "--help")
    assert "-q, --quiet" in done.out and "-v, --verbose" in done.out


def test_subcommands_of_a_group_take_both_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(prompt_tune, click.Group)
    group = prompt_tune.get_command(click.Context(prompt_tune), "vocab")
    assert isinstance(group, click.Group) and len(group.commands) > 6
    for name in group.commands:
        assert "-q, --quiet" in run_command(capfd, "vocab", name, "--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("detect", BUNDLE, PHOTO, "--out", "OUT", "--quiet"),
        ("--quiet", "detect", BUNDLE, PHOTO, "--out", "OUT"),
        ("-q", "detect", BUNDLE, PHOTO, "--out", "OUT"),
        ("vocab", "merge", LEARNED, "--out", "OUT/m.vocab.safetensors", "-q"),
        ("vocab", "-q", "merge", LEARNED, "--out", "OUT/m.vocab.safetensors"),
    ],
    ids=lambda arguments: " ".join(word for word in map(str, arguments) if not word.startswith("/")),
)
def test_quiet_command_says_nothing_where_all_is_well(
    arguments: tuple[object, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [str(word).replace("OUT", str(tmp_path / "out")) for word in arguments]
    done = run_command(capfd, *words)
    assert (done.status, done.out, done.err) == (0, "", "") and any((tmp_path / "out").iterdir())
    loud = run_command(capfd, *(word for word in words if word not in ("-q", "--quiet")))
    assert loud.status == 0 and str(tmp_path / "out") in loud.out


def test_quiet_command_prints_what_it_is_asked_for_and_what_is_wrong(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(PHOTO.read_bytes())
    (tmp_path / "b.png").write_bytes(b"nothing")
    done = run_command(capfd, "detect", BUNDLE, tmp_path, "--stream", "--quiet")
    assert json.loads(done.out.splitlines()[0])["file_name"].endswith("a.png")
    (line,) = done.err.splitlines()
    assert line.startswith("Skipped: ") and "b.png" in line
    assert "forklift" in run_command(capfd, "vocab", "show", LEARNED, "--quiet").out
    missing = run_command(capfd, "vocab", "show", tmp_path / "none", "--quiet")
    assert missing.status == 1 and missing.err.startswith("Error: ")


def test_verbose_command_tells_versions_times_and_where_an_error_comes_from(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(capfd, "detect", BUNDLE, PHOTO, "--out", tmp_path / "out", "--verbose")
    assert done.status == 0 and f"Python {sys.version.split()[0]}" in done.err and "onnxruntime" in done.err
    assert "prompt_tune.cli.progress: detect: " in done.err
    failed = run_command(capfd, "--verbose", "vocab", "show", tmp_path / "none")
    assert failed.status == 1 and "Traceback (most recent call last):" in failed.err
    assert failed.err.splitlines()[-1].startswith("Error: ")
    plain = run_command(capfd, "vocab", "show", tmp_path / "none")  # the state of one command does not reach the next
    assert plain.err.count("\n") == 1 and plain.err.startswith("Error: ")


@pytest.mark.parametrize("arguments", [("-q", "vocab", "show", LEARNED, "-v"), ("vocab", "show", LEARNED, "-q", "-v")])
def test_quiet_and_verbose_together_are_refused(
    arguments: tuple[object, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(capfd, *arguments)
    assert done.status == 2 and "Give either --quiet or --verbose." in done.err


def colours(environment: dict[str, str], tmp_path: Path) -> bool:
    """Whether `detect` writes colours to a terminal."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "prompt_tune", "detect", str(BUNDLE), str(PHOTO), "--out", str(tmp_path / "out")]
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    wanted = kept | {"TERM": "xterm-256color", "COLUMNS": "100", "PYTHONPATH": str(ROOT)} | environment
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=wanted) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 65536):
                shown += part
        except OSError:  # Linux says so when the other end is closed
            pass
        finally:
            os.close(leader)
    assert process.returncode == 0 and b"detections" in shown
    codes = [part.split(b"m")[0] for part in shown.split(b"\x1b[")[1:]]
    return any(
        number in (b"38", b"48", *(b"%d" % n for n in range(30, 38))) for code in codes for number in code.split(b";")
    )


def test_no_color_is_obeyed(tmp_path: Path) -> None:
    assert colours({}, tmp_path)
    assert not colours({"NO_COLOR": "1"}, tmp_path)
