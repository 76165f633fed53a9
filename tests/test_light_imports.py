"""Law 4: the inference box is light. What runs there works where nothing of the training side is installed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from house import GROUND, LIGHT, read_package
from PIL import Image
from places import ROOT, TESTS
from small_bundle import photo, small_bundle

from prompt_tune.models.world import World

HEAVY = (
    "torch",
    "torchvision",
    "ultralytics",
    "open_clip",
    "onnx",
    "matplotlib",
    "cv2",
    "yaml",
    "av",
    "faster_coco_eval",
)
LIGHT_MODULES = sorted(
    module.removesuffix(".__init__")
    for module in read_package(ROOT)
    if module.split(".")[1] in (*LIGHT, *GROUND, "__init__", "cli")
)
BLOCKED = f"""
import importlib.abc
import sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_without_heavy_modules(code: str, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own where none of `HEAVY` can be imported."""
    command = [sys.executable, "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", HEAVY)
def test_heavy_modules_are_really_blocked(module: str) -> None:
    done = run_without_heavy_modules(f"import {module}")
    assert done.returncode == 1 and f"No module named '{module}'" in done.stderr


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_module_of_the_inference_box_imports_alone(module: str) -> None:
    done = run_without_heavy_modules(f"import {module}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_detection_really_runs_without_the_training_side(
    world: World, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = small_bundle(world, tmp_path_factory.getbasetemp() / "small-bundle")
    Image.fromarray(photo(60, 90)).save(tmp_path / "photo.png")
    code = """
from prompt_tune import Detector, Vocabulary
detector = Detector(sys.argv[1], threads=1)
(found,) = detector.detect(sys.argv[2])
print(len(found), sorted(set(found.vocabularies)))
sys.argv = ["prompt-tune", "detect", sys.argv[1], "--source", sys.argv[2], "--out", sys.argv[3], "--threads", "1"]
from prompt_tune.cli import main
main()
"""
    done = run_without_heavy_modules(code, bundle, tmp_path / "photo.png", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    count, _, labels = done.stdout.splitlines()[0].partition(" ")
    assert int(count) > 10 and labels == "['learned', 'original']"
    assert f"{count} detections in 1 image: {tmp_path / 'out'}" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "photo.png"]
    assert np.asarray(Image.open(tmp_path / "out" / "photo.png")).shape == (60, 90, 3)


def test_help_is_instant_because_it_imports_nothing() -> None:
    code = """
from prompt_tune.cli import command
for arguments in (["--help"], ["detect", "--help"]):
    try:
        command.main(arguments)
    except SystemExit as stop:
        assert not stop.code
print(sorted({"numpy", "onnxruntime", "PIL", "rich"} & set(sys.modules)))
"""
    done = run_without_heavy_modules(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["fit", "export", "bake", "demo", "pretrain", "sample", "vocab build"])
def test_command_of_the_training_side_says_what_to_install(command: str, tmp_path: Path) -> None:
    options: dict[str, list[str | Path]] = {
        "fit": ["--model", "tiny", "--data", tmp_path, "--out", tmp_path / "run"],
        "export": [tmp_path, "--out", tmp_path / "bundle"],
        "bake": [tmp_path, "--out", tmp_path / "custom.pt"],
        "demo": ["--out", tmp_path / "demo"],
        "pretrain": ["--out", tmp_path / "tiny"],
        "sample": ["--out", tmp_path / "set"],
        "vocab build": ["--model", "tiny", "--names", "box", "--out", tmp_path / "box.vocab.safetensors"],
    }
    (tmp_path / "config.json").write_text("{}")
    done = run_without_heavy_modules("from prompt_tune.cli import main; main()", *command.split(), *options[command])
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "command", ["demo", "fit", "export", "bake", "detect", "serve", "val", "verify", "vocab", "sample", "pretrain"]
)
def test_help_needs_nothing_of_the_training_side(command: str) -> None:
    done = run_without_heavy_modules("from prompt_tune.cli import main; main()", command, "--help")
    assert (done.returncode, done.stderr) == (0, "") and "Usage" in done.stdout


def test_benchmarks_need_no_pytest() -> None:
    names = sorted(path.stem for path in TESTS.glob("bench_*.py"))
    code = f"import importlib, sys; sys.modules['pytest'] = None; [importlib.import_module(one) for one in {names}]"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert len(names) > 3 and done.returncode == 0, done.stderr
