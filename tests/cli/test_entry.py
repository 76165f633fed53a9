"""The command line as a whole: help that imports nothing, errors in one line, and streams that are not UTF-8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from PIL import Image
from small_bundle import learned_for, photo, small_bundle

from prompt_tune.cli import COMMANDS
from prompt_tune.models.world import World
from prompt_tune.vocabulary.vocabulary import Vocabulary

TRUCK, CAR, EMOJI = "\u8ca8\u8eca", "\u0430\u0432\u0442\u043e", "\U0001f69a"  # Chinese, Cyrillic, and an emoji
LONG = "x" * 5000
STREAMS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0"},
}


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vocabulary files with such names, a photo, and a data set with one image of each class."""
    folder = tmp_path_factory.mktemp("streams")
    learned_for(bundle, TRUCK, CAR, EMOJI, thresholds=np.float32(0.01)).save(folder / "more.vocab.safetensors")
    learned_for(bundle, TRUCK, "car").save(folder / "other.vocab.safetensors")
    Vocabulary.load(bundle / "original.vocab.safetensors").save(folder / "original.vocab.safetensors")
    for place in ("set/images/val", "set/labels/val"):
        (folder / place).mkdir(parents=True)
    for number in range(3):
        Image.fromarray(photo(60, 90, seed=number)).save(folder / f"set/images/val/{number}.png")
        (folder / f"set/labels/val/{number}.txt").write_text(f"{number} 0.5 0.5 0.5 0.5\n")
    names = json.dumps([TRUCK, CAR, EMOJI])
    (folder / "set/data.yaml").write_text(f"train: images/val\nval: images/val\nnames: {names}\n", encoding="utf-8")
    return folder


def prompt_tune(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """`prompt-tune ARGUMENTS` in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    command = [sys.executable, "-m", "prompt_tune", *map(str, arguments)]
    return subprocess.run(command, env=kept | environment, capture_output=True, check=False)


def escaped(name: str, encoding: str) -> str:
    """The name as a stream of this encoding shows it."""
    return name.encode(encoding, "backslashreplace").decode(encoding)


CASES: list[tuple[list[str], int, str]] = [  # arguments, exit status, the name that is printed
    (["detect", "BUNDLE", "--learned", "more", "--source", "PHOTO", "--out", "OUT", "--show", "more:*"], 0, TRUCK),
    (["detect", "BUNDLE", "--source", "PHOTO", "--out", "OUT", "--show", EMOJI], 2, EMOJI),
    (["vocab", "show", "more"], 0, EMOJI),
    (["vocab", "diff", "more", "other"], 0, CAR),
    (["vocab", "diff", "more", "other", "--json"], 0, CAR),
    (["vocab", "merge", "more", "more", "--out", "OUT"], 1, TRUCK),
    (["vocab", "rename", "more", TRUCK, f"{TRUCK} 2", "--out", f"OUT/{CAR}.vocab.safetensors"], 0, CAR),
    (["vocab", "remove", "more", "car", "--out", "OUT"], 1, EMOJI),
    (["vocab", "convert", "more", f"OUT/{EMOJI}.npz"], 0, EMOJI),
    (["vocab", "build", "--model", "tiny", "--names", f"{TRUCK},{TRUCK}", "--out", "OUT"], 1, TRUCK),
    (["val", "VAL", "--data", "SET"], 0, TRUCK),
    (["val", "VAL", "--data", "SET", "--names", f"{TRUCK},{CAR},{EMOJI} 2"], 0, EMOJI),
    (["verify", f"nowhere/{TRUCK}", "--images", "PHOTO"], 1, TRUCK),
]


@pytest.mark.parametrize(
    ("stream", "arguments", "status", "name"),
    [
        (stream, *case)
        for case in CASES
        for stream in STREAMS
        if stream != "C" or " ".join(case[0]).isascii()  # there, Python reads other arguments as bytes
    ],
    ids=lambda value: (
        "-".join(value[:2]).encode("ascii", "replace").decode() if isinstance(value, list) else ascii(value)
    ),
)
def test_command_escapes_names_that_the_stream_cannot_show(
    stream: str, arguments: list[str], status: int, name: str, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    if "VAL" in arguments:
        (tmp_path / "bundle").mkdir()
        for part in ("detector.onnx", "original.vocab.safetensors"):
            (tmp_path / "bundle" / part).hardlink_to(bundle / part)
        (tmp_path / "bundle" / "learned.vocab.safetensors").hardlink_to(folder / "more.vocab.safetensors")
    places = {
        "BUNDLE": bundle,
        "VAL": tmp_path / "bundle",
        "PHOTO": folder / "set/images/val/0.png",
        "SET": folder / "set",
        "more": folder / "more.vocab.safetensors",
        "other": folder / "other.vocab.safetensors",
    }
    words = [places.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in arguments]
    done = prompt_tune(STREAMS[stream], *words)
    encoding = "cp1252" if stream == "cp1252" else "utf-8"  # click itself writes UTF-8 where Python says ASCII
    printed = (done.stdout + done.stderr).decode(encoding)
    assert (done.returncode, "Traceback" in printed) == (status, False), printed
    assert escaped(name, "ascii") in printed or (name in printed and encoding == "utf-8")


@pytest.mark.parametrize("stream", STREAMS)
def test_tables_on_such_a_stream_are_in_its_encoding(stream: str, folder: Path) -> None:
    done = prompt_tune(STREAMS[stream], "vocab", "show", folder / "more.vocab.safetensors")
    assert done.returncode == 0
    table = done.stdout.decode("ascii")
    assert escaped(TRUCK, "ascii") == "\\u8ca8\\u8eca"
    for name in (TRUCK, CAR, EMOJI):
        assert escaped(name, "ascii") in table


@pytest.mark.parametrize("stream", STREAMS)
def test_stream_of_json_is_ascii(stream: str, bundle: Path, folder: Path) -> None:
    more = folder / "more.vocab.safetensors"
    photos = folder / "set/images/val"
    done = prompt_tune(STREAMS[stream], "detect", bundle, "--learned", more, "--source", photos, "--stream")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
    found = {row["class"] for line in lines for row in line["detections"]}
    assert len(lines) == 3 and found & {TRUCK, CAR, EMOJI}


def test_utf_8_shows_names_as_they_are(folder: Path) -> None:
    done = prompt_tune({"PYTHONIOENCODING": "utf-8"}, "vocab", "show", folder / "more.vocab.safetensors")
    assert all(name in done.stdout.decode() for name in (TRUCK, CAR, EMOJI))


def test_help_names_every_command_and_imports_none() -> None:
    code = """
import sys
from prompt_tune.cli import main
sys.argv = ["prompt-tune", "--help"]
try:
    main()
finally:
    ours = sorted(name for name in sys.modules if name.startswith("prompt_tune"))
    heavy = {"numpy", "PIL", "rich", "onnxruntime", "torch"} & set(sys.modules)
    print(ours, heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line[:4].strip()]
    assert listed == list(COMMANDS)
    light = ("cli", "cli.entry", "cli.verbosity", "errors", "version", "wording")
    assert done.stderr.strip() == f"{['prompt_tune', *(f'prompt_tune.{name}' for name in light)]} set()"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_is_there(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, name, "--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("Usage: ")


def test_package_of_the_extra_that_is_missing_is_one_line() -> None:
    code = """
import sys
sys.modules["torch"] = None
from prompt_tune.cli import main
sys.argv = ["prompt-tune", "vocab", "build", "--model", "tiny", "--names", "a", "--out", "out"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: torch is not installed, and this needs it: pip install '.[fit]' (in a checkout)\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("val", LONG, "--data", "a.yaml"),
        ("verify", LONG, "--images", "a.png"),
        ("vocab", "info", LONG),
        ("report", LONG),
        ("export", LONG, "--out", "b"),
        ("detect", LONG, "a.png", "--out", "b"),
        ("mine", LONG, "--images", "a.png", "--out", "b"),
        ("fit", "--data", LONG, "--out", "b"),
    ],
)
def test_path_that_no_disk_takes_is_one_line(arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    done = run_command(capfd, *arguments)
    assert done.status in (1, 2) and "Traceback" not in done.err, done.err[-300:]
    assert done.err.strip().splitlines()[-1].startswith("Error: ")
