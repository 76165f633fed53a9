"""`prompt-tune val`: tables, JSON, curves, and bad input as one line."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import run_command
from PIL import Image

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import write_sample
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set, a run and its bundle."""
    folder = tmp_path_factory.mktemp("val")
    custom, _ = write_sample(folder / "set", n_images=6)
    fit(FitInputs("tiny", custom), folder / "run", config=FitConfig(epochs=2))
    export_bundle(folder / "run", folder / "bundle")
    return folder


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text."""
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in text.splitlines()
        if line[0] in "│┃"
    ]


@pytest.mark.parametrize(
    ("place", "options", "engine"),
    [("run", [], "torch"), ("bundle", [], "ONNX Runtime"), ("run", ["--engine", "onnx"], "ONNX Runtime")],
)
def test_val_prints_metrics_and_classes(
    place: str, options: list[str], engine: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = folder / "set" / "custom"
    done = run_command(capfd, "val", folder / place, "--data", data, "--split", "test", *options)
    assert done.status == 0, done.err
    assert done.out.splitlines()[0] == f"6 images of `test`, measured through {engine}."
    rows = cells(done.out)
    assert [row[0] for row in rows[:10]] == [
        *("classes", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR 1", "AR 10", "AR 100")
    ]
    assert rows[10] == ["class", "labels", "AP", "AP50", "AP75", "threshold", "precision", "recall"]
    assert all(len(row) == 8 and int(row[1]) > 0 for row in rows[11:])
    assert rows[0][1] == f"learned ({len(rows) - 11})"
    if engine == "torch":
        assert rows[0][2:] == ["plain name", "best template"]
        assert "the best of 7 templates on the validation images of its fit." in done.out
    else:
        assert len(rows[0]) == 2 and "A bundle has no text tower" in " ".join(done.out.split())


def test_val_in_slices_says_so_and_agrees_in_both_engines(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = ("--data", folder / "set" / "custom", "--split", "test")
    done = run_command(capfd, "val", folder / "bundle", *data, "--slice", 160)
    assert done.out.splitlines()[0] == "6 images of `test`, measured through ONNX Runtime, in slices of 160 px too."
    numbers = []
    for place in ("run", "bundle"):
        done = run_command(capfd, "val", folder / place, *data, "--slice", 160, "--slice-overlap", 0.4, "--json")
        assert done.status == 0, done.err
        result = json.loads(done.out)
        assert (result["slice"], result["slice_overlap"]) == (160, 0.4)
        numbers.append(result["learned"])
    assert numbers[0] == pytest.approx(numbers[1], abs=0.001)
    plain = json.loads(run_command(capfd, "val", folder / "bundle", *data, "--json").out)
    assert plain["learned"] != numbers[1] and "slice" not in plain
    refused = run_command(capfd, "val", folder / "bundle", *data, "--slice-overlap", 0.4)
    assert refused.status == 2 and "needs --slice, their size." in refused.err


def test_val_json_is_the_same_in_both_engines(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, found = folder / "set" / "original", {}
    for place in ("run", "bundle"):
        done = run_command(capfd, "val", folder / place, "--data", data, "--json")
        assert done.status == 0, done.err
        found[place] = json.loads(done.out)
    assert found["run"]["learned"] is None and found["run"]["original"]["ap50"] > 0.3
    assert found["run"]["original"]["ap"] == pytest.approx(found["bundle"]["original"]["ap"], abs=0.001)
    assert [found[place]["engine"] for place in found] == ["torch", "onnx"]


@pytest.mark.parametrize(("place", "options"), [("bundle", []), ("run", ["--engine", "onnx"])])
def test_val_measures_further_vocabularies(
    place: str,
    options: list[str],
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy of the learned vocabulary under another label has the same numbers; each option counts."""
    monkeypatch.setenv("COLUMNS", "200")  # no name is broken
    files = [tmp_path / f"{label}.vocab.safetensors" for label in ("one", "two")]
    for file in files:
        shutil.copy(folder / "run" / "learned.vocab.safetensors", file)
    more = [part for file in files for part in ("--learned", file)]
    data = folder / "set" / "custom"
    done = run_command(capfd, "val", folder / place, "--data", data, *more, *options, "--json")
    assert done.status == 0, done.err
    rows: dict[str, dict[str, float]] = {}
    for row in json.loads(done.out)["classes"]:
        rows.setdefault(row["vocabulary"], {})[row["name"]] = row["ap"]
    assert rows.keys() == {"learned", "one", "two"}
    assert rows["one"] == rows["two"] == pytest.approx(rows["learned"])
    done = run_command(capfd, "val", folder / place, "--data", data, *more, *options)
    table = cells(done.out)
    n_classes = 3 * len(rows["learned"])
    assert table[0][1] == f"learned ({n_classes})" and len(table) == 11 + n_classes
    assert {row[0].split(": ")[0] for row in table[11:]} == {"learned", "one", "two"}


def test_val_names_what_it_leaves_out(folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    images = folder / "set" / "custom" / "images" / "test"
    names = ["forklift", "gizmo", "sprocket", "widget", "flange", "thing"]
    (tmp_path / "data.yaml").write_text(f"test: {images}\nnames: {[*names, 'red triangle']}\n")
    done = run_command(capfd, "val", folder / "run", "--data", tmp_path / "data.yaml", "--split", "test")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert "Left out, because no vocabulary has them: thing." in lines
    unlabelled = [line for line in lines if line.startswith("Left out, because `test` has no label of them: ")]
    assert len(unlabelled) == 1 and "red triangle" in unlabelled[0]


def test_val_curves_writes_a_picture(folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, picture = folder / "set" / "custom", tmp_path / "curves.png"
    done = run_command(capfd, "val", folder / "run", "--data", data, "--curves", picture)
    assert done.status == 0, done.err
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_val_out_writes_pictures_images_and_numbers(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, out = folder / "set" / "custom", tmp_path / "new" / "out"
    done = run_command(capfd, "val", folder / "bundle", "--data", data, "--split", "test", "--json", "--out", out)
    assert done.status == 0, done.err
    numbers = json.loads(done.out)
    assert json.loads((out / "val.json").read_text()) == numbers and numbers["confusion"]["labels"]
    names = ["confusion.png", "f1.png", "images.csv", "precision_recall.png", "val.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    with (out / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["vocabulary"] for row in rows} == {"learned"}
    assert sum(int(row["objects"]) for row in rows) == sum(row["objects"] for row in numbers["classes"])
    assert all(int(row["hits"]) + int(row["misses"]) == int(row["objects"]) for row in rows)
    done = run_command(capfd, "val", folder / "bundle", "--data", data, "--split", "test", "--out", out)
    assert done.out.splitlines()[-1].endswith(": confusion.png, precision_recall.png, f1.png, images.csv, val.json.")


def test_val_says_which_classes_lie_on_objects_of_others(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The labels of one original class are given to a learned one, so the original one lies on what it is not."""
    data = folder / "set" / "original" / "original.yaml"
    done = run_command(capfd, "val", folder / "bundle", "--data", data, "--json")
    best = max(json.loads(done.out)["classes"], key=lambda row: row["recall"] * row["objects"])
    names = [name for name in yaml.safe_load(data.read_text())["names"].values()]
    given = ",".join("widget" if name == best["name"] else name for name in names)
    done = run_command(capfd, "val", folder / "bundle", "--data", data, "--names", given)
    assert done.status == 0, done.err
    count = round(best["recall"] * best["objects"])
    objects = "1 object" if best["objects"] == 1 else f"{best['objects']} objects"
    wanted = f" {best['name']} (original) on widget ({objects})"
    assert wanted in " ".join(done.out.split())
    lying = int(" ".join(done.out.split()).split(wanted)[0].split()[-1])
    assert lying >= count > 0


def test_val_curves_that_cannot_be_written_are_one_line_after_the_numbers(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = folder / "set" / "custom"
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "curves.png", tmp_path):
        done = run_command(capfd, "val", folder / "bundle", "--data", data, "--json", "--curves", place)
        assert done.status == 1 and json.loads(done.out)["images"] == 6
        assert done.err.splitlines()[-1].startswith(f"Error: Cannot write {place}: ")
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 2, "Missing argument 'RUN|BUNDLE'."),
        (["run"], 2, "Missing option '--data'."),
        (["run", "--data", "set/custom", "--split", "all"], 2, "'all' is not one of"),
        (["run", "--data", "set/custom", "--engine", "magic"], 2, "'magic' is not one of"),
        (
            ["nowhere", "--data", "set/custom"],
            1,
            "is neither a run of `fit` (no config.json) nor a bundle (no detector",
        ),
        (["bundle", "--data", "set/custom", "--engine", "torch"], 1, "is a bundle, which only ONNX Runtime can run"),
        (
            ["run", "--data", "set/custom", "--learned", "run/learned.vocab.safetensors"],
            1,
            "Add --engine onnx, or give its bundle",
        ),
        (["bundle", "--data", "set/custom", "--learned", "nowhere.vocab.safetensors"], 1, "nowhere.vocab.safetensors"),
        (["run", "--data", "nowhere"], 1, "no such file or folder"),
        (
            ["run", "--data", "set/custom", "--names", "a, b, c, d, e, f"],
            1,
            "No class of `set/custom` is in the vocabularies",
        ),
        (["run", "--data", "set/custom", "--names", "a, b"], 1, "must name the 6 classes"),
        (["run", "--data", "set/custom", "--device", "abacus"], 1, "abacus"),
        (["bundle", "--data", "set/custom", "--device", "abacus"], 1, "abacus"),
    ],
)
def test_val_of_bad_input_is_one_line(
    arguments: list[str],
    status: int,
    reason: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    done = run_command(capfd, "val", *arguments)
    assert (done.status, done.out) == (status, "")
    errors = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and reason in errors[0]


def test_val_of_bundle_needs_no_torch_but_says_what_it_needs(folder: Path) -> None:
    """As on an inference box: packages that are not there are None in `sys.modules`."""

    def run(*missing: str) -> subprocess.CompletedProcess[str]:
        code = f"import sys\nsys.modules.update(dict.fromkeys({missing}))\nfrom prompt_tune.cli import main\nmain()"
        arguments = ["val", str(folder / "bundle"), "--data", str(folder / "set" / "custom"), "--json"]
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)

    done = run("torch", "torchvision", "ultralytics", "open_clip", "onnx")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 6
    done = run("torch", "yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.strip() == "Error: yaml is not installed, and this needs it: pip install '.[fit]' (in a checkout)"
    )
