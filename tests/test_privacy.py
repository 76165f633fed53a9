"""Nothing is sent, and nothing is written but what was asked for: the real commands, in an empty home."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from sandbox import Outcome, has_strace, run_alone

from prompt_tune import privacy
from prompt_tune.datasets.sample import write_sample

SMALL = ("--epochs", "1", "--updates", "3", "--context-length", "2", "--views", "1")
DETECT = """
import sys, time
{before}
from prompt_tune import Detector
detector = Detector(sys.argv[1], threads=1)
print(len(detector.detect(sys.argv[2], conf=0.001)[0]))
time.sleep({seconds})
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set, and in `out` what the commands make of it, one after another."""
    folder = tmp_path_factory.mktemp("privacy")
    write_sample(folder / "set", n_images=4)
    (folder / "out").mkdir()
    return folder


@pytest.fixture(scope="module")
def fitted(job: Path) -> Outcome:
    """`fit` in the sandbox; its run is `out/run`."""
    data = job / "set" / "custom" / "custom.yaml"
    command = ("fit", "--model", "tiny", "--data", data, "--out", job / "out" / "run", *SMALL)
    return run_alone(job / "fit", "-m", "prompt_tune", *command)


@pytest.fixture(scope="module")
def exported(job: Path, fitted: Outcome) -> Outcome:
    """`export` in the sandbox; its bundle is `out/bundle`."""
    assert fitted.status == 0, fitted.out
    return run_alone(job / "export", "-m", "prompt_tune", "export", job / "out" / "run", "--out", job / "out/bundle")


def check(outcome: Outcome, folder: Path, allowed: Path) -> None:
    """It worked, wanted no network, left nothing, and made nothing outside `allowed` and the temporary folder."""
    assert outcome.status == 0, outcome.out
    assert outcome.sockets == []
    assert outcome.left == []
    places = (allowed, folder / "tmp", Path("/dev"), Path("/proc"))
    assert [path for path in outcome.created if not any(path.is_relative_to(place) for place in places)] == []


def test_fit_writes_its_run_and_nothing_else(job: Path, fitted: Outcome) -> None:
    check(fitted, job / "fit", job / "out" / "run")
    assert (job / "out" / "run" / "curves.png").is_file()  # so matplotlib was at work


def test_export_writes_its_bundle_and_nothing_else(job: Path, exported: Outcome) -> None:
    check(exported, job / "export", job / "out")
    assert sorted(path.name for path in (job / "out").iterdir()) == ["bundle", "run"]


BUNDLE_COMMANDS = {
    "detect": "detect out/bundle set/custom/images/test --out out/{name}",
    "val": "val out/bundle --data set/custom/custom.yaml --curves out/{name}/curves.png --out out/{name}/val",
    "val of a run": "val out/run --data set/custom/custom.yaml",
    "verify": "verify out/bundle --images set/original/images --data set/original/original.yaml --report out/{name}/v",
    "mine": "mine out/bundle set/custom/images/test --out out/{name}",
    "bake": "bake out/run --out out/{name}/baked.pt --images set/custom/images/test",
    "vocab build": "vocab build --model tiny --names lorry,crane --out out/{name}/new.vocab.safetensors",
    "vocab show": "vocab show out/bundle/learned.vocab.safetensors",
    "sample": "sample --out out/{name}",
}


@pytest.mark.parametrize("name", BUNDLE_COMMANDS)
def test_command_writes_what_it_was_asked_for_and_nothing_else(job: Path, exported: Outcome, name: str) -> None:
    assert exported.status == 0, exported.out
    place = name.replace(" ", "-")
    words = BUNDLE_COMMANDS[name].format(name=place).split()
    words = [str(job / word) if word.startswith(("out/", "set/")) else word for word in words]
    outcome = run_alone(job / place, "-m", "prompt_tune", *words)
    check(outcome, job / place, job / "out" / place)


def test_detector_leaves_an_empty_home_and_stays_silent(job: Path, exported: Outcome, tmp_path: Path) -> None:
    """ONNX Runtime would look up its host after about 8 seconds."""
    assert exported.status == 0, exported.out
    image = job / "set/custom/images/test/0000.jpg"
    code = DETECT.format(before="", seconds=10 if has_strace() else 0)
    check(run_alone(tmp_path, "-c", code, job / "out/bundle", image), tmp_path, tmp_path / "none")


def test_python_kit_leaves_an_empty_home(job: Path, exported: Outcome, tmp_path: Path) -> None:
    assert exported.status == 0, exported.out
    program, image = job / "out/bundle/python/detect.py", job / "set/custom/images/test/0000.jpg"
    outcome = run_alone(tmp_path, program, image, "--draw", job / "out" / "kit")
    check(outcome, tmp_path, job / "out" / "kit")


def test_detector_after_the_users_own_import_says_what_that_import_did(
    job: Path, exported: Outcome, tmp_path: Path
) -> None:
    """It cannot be undone, so it is said; with the variable set, there is nothing to say, and nothing is written."""
    assert exported.status == 0, exported.out
    arguments = ("-c", DETECT.format(before="import onnxruntime", seconds=0), job / "out/bundle")
    image = job / "set/custom/images/test/0000.jpg"
    told = run_alone(tmp_path / "told", *arguments, image)
    assert told.status == 0 and told.out.count("Set ORT_DISABLE_TELEMETRY=1 before the import") == 1
    assert told.sockets == []
    quiet = run_alone(tmp_path / "quiet", *arguments, image, ORT_DISABLE_TELEMETRY="1")
    check(quiet, tmp_path / "quiet", tmp_path / "none")
    assert "telemetry" not in quiet.out


def test_checkpoint_that_needs_a_missing_package_installs_nothing(tmp_path: Path) -> None:
    """ultralytics would run `pip install` with the name that the file gives."""
    write = """
import sys, types, torch
module = types.ModuleType("nowhere_to_be_found")
module.Thing = type("Thing", (), {"__module__": "nowhere_to_be_found"})
sys.modules["nowhere_to_be_found"] = module
torch.save({"model": module.Thing()}, sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", write, tmp_path / "needs.pt"], check=True)
    build = (
        "vocab",
        "build",
        "--model",
        tmp_path / "needs.pt",
        "--names",
        "a",
        "--out",
        tmp_path / "v.vocab.safetensors",
    )
    outcome = run_alone(tmp_path / "sandbox", "-m", "prompt_tune", *build)
    assert (outcome.status, len(outcome.out.splitlines())) == (1, 1)
    assert "is not a checkpoint that ultralytics can load" in outcome.out
    assert (outcome.sockets, outcome.left) == ([], [])


def test_import_of_the_package_changes_nothing(tmp_path: Path) -> None:
    code = """
import os, sys
before = dict(os.environ), sys.path[:], sys.getrecursionlimit()
import prompt_tune
from prompt_tune import Detector, FitConfig, FitInputs, Vocabulary, fit
assert (dict(os.environ), sys.path, sys.getrecursionlimit()) == before
"""
    check(run_alone(tmp_path, "-c", code), tmp_path, tmp_path / "none")


def test_environment_is_lent_and_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("YOLO_CONFIG_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    before = dict(os.environ)
    with pytest.raises(KeyError), privacy.quiet_imports():
        folder = Path(os.environ["MPLCONFIGDIR"])
        assert folder.is_dir() and os.environ["YOLO_CONFIG_DIR"] == str(folder)
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"  # the user's word
        os.environ["LEFT_BY_A_LIBRARY"] = "1"
        del os.environ["HOME"]
        raise KeyError
    assert dict(os.environ) == before


def test_variables_of_a_block_give_way_to_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIRS", "kept")
    monkeypatch.delenv("OURS", raising=False)
    with privacy.environment({"THEIRS": "new", "OURS": "set"}):
        assert (os.environ["THEIRS"], os.environ["OURS"]) == ("kept", "set")
    assert os.environ["THEIRS"] == "kept" and "OURS" not in os.environ


@pytest.mark.parametrize("used", [".cache/matplotlib", ".config/matplotlib", ".matplotlib"])
def test_folders_of_a_user_of_matplotlib_stay_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, used: str
) -> None:
    (tmp_path / used).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    with privacy.quiet_imports():
        assert "MPLCONFIGDIR" not in os.environ


def test_temporary_folder_goes_with_the_process(tmp_path: Path) -> None:
    code = """
import os
from prompt_tune.privacy import quiet_imports
with quiet_imports():
    print(os.environ["YOLO_CONFIG_DIR"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "YOLO_CONFIG_DIR"}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == tmp_path and not list(tmp_path.iterdir())
