"""`prompt-tune vocab` as on an inference box, without the packages of `fit`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from places import ROOT
from vocabularies import DETECTOR, golden, learned, unit_rows

from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

# the command line as on an inference box: what `fit` needs cannot be imported
LIGHT = """if True:
    import sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {"torch", "torchvision", "ultralytics", "open_clip", "onnx", "cv2"}:
                raise ImportError(f"{name} is blocked")

    sys.meta_path.insert(0, Blocked())
    from prompt_tune.cli import main

    main()
"""


def prompt_tune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`prompt-tune ARGUMENTS` in a process of its own, without the packages of `fit`."""
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two vocabulary files: lorry and Käfer; car."""
    one, two = tmp_path / "one.vocab.safetensors", tmp_path / "two.vocab.safetensors"
    golden().save(one)
    learned("car", n_prompts=3, thresholds=0.125, calibration=[[2, 0.5]], provenance={"seed": 7}).save(two)
    return one, two


def test_vocab_show_prints_classes_and_origin(files: tuple[Path, Path]) -> None:
    done = prompt_tune("vocab", "show", files[0])
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert rows == [["0", "lorry", "2", "0.25"], ["1", "Käfer", "1", "0.5"]]  # Käfer's second prompt repeats its first
    words = done.stdout.split()
    for word in ("learned", "original", golden().digest[:12], DETECTOR[:12], "7" * 12, "9" * 12):
        assert word in words
    assert DETECTOR not in done.stdout
    done = prompt_tune("vocab", "show", files[0], "--all")
    assert done.stdout.splitlines()[-2:] == ["provenance.metrics.ap50  0.875", "provenance.seed  0"]


def test_provenance_is_shown_and_compared_only_when_asked_for(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert "seed" not in prompt_tune("vocab", "show", files[1]).stdout
    assert prompt_tune("vocab", "show", files[1], "--all").stdout.splitlines()[-1] == "provenance.seed  7"
    other = tmp_path / "other.vocab.safetensors"
    learned("car", n_prompts=3, thresholds=0.125, calibration=[[2, 0.5]], provenance={"seed": 8}).save(other)
    done = prompt_tune("vocab", "diff", files[1], other)
    assert done.stdout == "No class differs.\n1 change of the provenance not shown: --all lists all.\n"
    done = prompt_tune("vocab", "diff", files[1], other, "--all")
    assert "provenance.seed" in done.stdout and "not shown" not in done.stdout


def test_tables_break_between_words_at_the_width_of_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, path, other = "a very long name of an electric pallet truck", tmp_path / "a", tmp_path / "b"
    seconds = {"expected": {name: {"precision": 0.5}}, "an_outstandingly_long_key": 2}
    learned(name, calibration=[[1.2345, -0.6789]], nms_iou=[0.5], provenance=seconds).save(path)
    learned("other", "conveyor", calibration=[[2, 0.5]] * 2, provenance={"seed": 1}).save(other)
    words = {*name.split(), "other", "conveyor", "threshold", "1.23,", "-0.679", DETECTOR[:12]}
    calls: list[list[str | Path]] = [
        ["show", path],
        ["show", path, "--all"],
        ["diff", path, other],
        ["diff", path, other, "--all"],
    ]
    for arguments in calls:
        for columns in (80, 60, 20):
            monkeypatch.setenv("COLUMNS", str(columns))
            stdout = prompt_tune("vocab", *arguments).stdout
            seen = set(stdout.replace("│", " ").replace("┃", " ").split())
            wanted = words if arguments[0] == "show" else words - {"threshold", "1.23,", "-0.679", DETECTOR[:12]}
            assert wanted - {"other", "conveyor"} <= seen, (arguments, columns)
            if columns >= 60:
                assert max(map(len, stdout.splitlines())) <= columns, (arguments, columns)
    monkeypatch.delenv("COLUMNS")
    assert name in prompt_tune("vocab", "show", path).stdout, "a pipe has any width"
    assert name in prompt_tune("vocab", "diff", path, other).stdout


def test_vocab_show_of_calibrated_file_prints_scale_and_shift(files: tuple[Path, Path]) -> None:
    done = prompt_tune("vocab", "show", files[1])
    assert done.returncode == 0
    assert "scale, shift" in done.stdout and "2, 0.5" in done.stdout and "0.125" in done.stdout


def test_vocab_show_prints_names_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.vocab.safetensors"
    learned("[red]car[/red]", ":smile:").save(path)
    stdout = prompt_tune("vocab", "show", path).stdout
    assert "[red]car[/red]" in stdout and ":smile:" in stdout


def test_vocab_merge_writes_all_classes(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "both.vocab.safetensors"
    done = prompt_tune("vocab", "merge", *files, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Wrote {out}: 3 classes, kind learned.\n"
    merged = Vocabulary.load(out)
    assert merged.names == ("lorry", "Käfer", "car")
    assert np.array_equal(merged.embeddings[2:], Vocabulary.load(files[1]).embeddings)


def test_vocab_rename_changes_pairs_in_place(files: tuple[Path, Path]) -> None:
    done = prompt_tune("vocab", "rename", files[0], "lorry", "Käfer", "Käfer", "beetle car", "--out", files[0])
    assert (done.returncode, done.stdout) == (0, f"Wrote {files[0]}: 2 classes, kind learned.\n")
    renamed = Vocabulary.load(files[0])
    assert renamed.names == ("Käfer", "beetle car")
    assert renamed.digest == golden().digest


def test_vocab_remove_leaves_the_other_classes(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "less.vocab.safetensors"
    done = prompt_tune("vocab", "remove", files[0], "lorry", "--out", out)
    assert (done.returncode, done.stdout) == (0, f"Wrote {out}: 1 class, kind learned.\n")
    assert Vocabulary.load(out).to_bytes() == golden().remove(["lorry"]).to_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["show", "nowhere"], 1, "Error: nowhere: there is no such file. Check the path.\n"),
        (["show", "ONE", "TWO"], 2, "Got unexpected extra argument"),
        (["show"], 2, "Missing argument 'FILE'."),
        (["merge", "--out", "OUT"], 2, "Missing argument 'FILES...'."),
        (["merge", "ONE"], 2, "Missing option '--out'."),
        (
            ["merge", "ONE", "ONE", "--out", "OUT"],
            1,
            "Error: Class names must be unique; classes 0 and 2 are both 'lorry'.",
        ),
        (["rename", "ONE", "lorry", "--out", "OUT"], 2, "Names must be pairs, OLD NEW. Received: 1."),
        (
            ["rename", "ONE", "lorry", "a", "lorry", "b", "--out", "OUT"],
            2,
            "Each OLD name can be given only once.",
        ),
        (
            ["rename", "ONE", "lory", "a", "--out", "OUT"],
            1,
            "Error: No class 'lory' in this vocabulary. It has: 'lorry', 'Kä",
        ),
        (["remove", "ONE", "lorry", "Käfer", "--out", "OUT"], 1, "Error: A vocabulary must have at least one class."),
        (["remove", "ONE", "lory", "--out", "OUT"], 1, "Error: No class 'lory' in this vocabulary."),
        (
            ["build", "--model", "m.pt", "--names", "a,a", "--out", "OUT"],
            1,
            "Error: Class names must be unique; classes 0 and 1 are both 'a'.",
        ),
        (
            ["build", "--model", "m.pt", "--names", "nowhere.txt", "--out", "OUT"],
            1,
            "Error: Cannot read the class list nowhere",
        ),
        (["build", "--model", "m.pt", "--out", "OUT"], 2, "Missing option '--names' / '--classes'."),
        (
            ["build", "--model", "m.pt", "--names", "a", "--kind", "original", "--original", "coco", "--out", "OUT"],
            2,
            "--kind original takes neither --prompts nor --original: it is a guide itself.",
        ),
        (
            ["build", "--model", "m.pt", "--names", "a", "--kind", "learned", "--out", "OUT"],
            2,
            "'learned' is not one of",
        ),
    ],
)
def test_vocab_with_bad_arguments_says_why_and_writes_nothing(
    files: tuple[Path, Path], tmp_path: Path, arguments: list[str], status: int, reason: str
) -> None:
    places = {"ONE": str(files[0]), "TWO": str(files[1]), "OUT": str(tmp_path / "out.vocab.safetensors")}
    done = prompt_tune("vocab", *(places.get(argument, argument) for argument in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert reason in done.stderr
    assert status == 2 or len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert Vocabulary.load(files[0]).to_bytes() == golden().to_bytes()


@pytest.mark.parametrize(
    "command",
    [
        ["merge", "ONE", "TWO", "--out", "NOWHERE.vocab.safetensors"],
        ["rename", "ONE", "lorry", "truck", "--out", "NOWHERE.vocab.safetensors"],
        ["remove", "ONE", "lorry", "--out", "NOWHERE.vocab.safetensors"],
        ["convert", "TWO", "NOWHERE.npz"],
        ["convert", "TWO", "NOWHERE.npy"],
    ],
    ids=lambda command: command[0] + command[2][-4:],
)
def test_vocab_onto_a_place_that_cannot_be_written_is_one_line(
    command: list[str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    learned("car").save(files[1])  # one prompt: the other formats have no more
    places = {"ONE": str(files[0]), "TWO": str(files[1])}
    nowhere = str(files[0] / "out")  # below a file
    done = prompt_tune("vocab", *(places.get(word, word.replace("NOWHERE", nowhere)) for word in command))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert done.stderr.startswith("Error: Cannot write ")
    assert "Choose another place or make room." in done.stderr
    assert sorted(tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("name", ["build", "show", "merge", "rename", "remove", "diff", "convert"])
def test_vocab_help_of_each_command_is_there_without_torch(name: str) -> None:
    done = prompt_tune("vocab", name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"vocab {name}" in done.stdout


def test_vocab_show_names_background_rows_apart(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.vocab.safetensors", unit_rows(2, 1)
    learned("car", "void", kind="original", guide=guide_digest(rows), background=(("void", " "),)).save(path)
    lines = [line.split() for line in prompt_tune("vocab", "show", path).stdout.splitlines()]
    assert lines[:2] == [["classes", "1"], ["background", "void", "(text", '"', '")']]
    rows = json.loads(prompt_tune("vocab", "show", path, "--json").stdout)["classes"]
    assert [(row["name"], row.get("background")) for row in rows] == [("car", None), ("void", " ")]


def test_build_adds_background_rows_to_a_guide_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build: list[str | Path] = ["vocab", "build", "--model", "tiny", "--names", "red circle, blue ring"]
    out = tmp_path / "a.vocab.safetensors"
    done = run_command(capfd, *build, "--kind", "original", "--background", " ", "--out", out)
    assert (done.status, done.out) == (0, f"Wrote {out}: 2 classes, kind original.\n")
    assert Vocabulary.load(out).background == (("<background>", " "),)
    done = run_command(capfd, *build, "--background", " ", "--out", tmp_path / "b.vocab.safetensors")
    assert done.status == 2 and "--background needs --kind original" in done.err
