"""`prompt-tune verify` as a user runs it: exit status, tables, JSON, with and without the packages of `fit`."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import TWIN, make_bundle, original_vocabulary
from places import ROOT

from prompt_tune.cli.verify import UNLABELLED
from prompt_tune.datasets.sample import write_sample

HEAVY = ("torch", "torchvision", "ultralytics", "open_clip", "onnx", "cv2")
# the command line as on an inference box: these packages are not installed
LIGHT = """if True:
    import sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in BLOCKED:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocked())
    from prompt_tune.cli import main

    main()
"""


def prompt_tune(*arguments: str | Path, blocked: tuple[str, ...] = HEAVY) -> subprocess.CompletedProcess[str]:
    """`prompt-tune verify ARGUMENTS` in a process of its own, without some packages."""
    return subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{LIGHT}", "verify", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set: its folder."""
    folder = tmp_path_factory.mktemp("sample") / "set"
    write_sample(folder, n_images=4)
    return folder


@pytest.fixture(scope="module")
def scenes(sample: Path) -> Path:
    """Images of original classes."""
    return sample / "original" / "images" / "val"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("true") / "bundle")


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("leaky") / "bundle", leaky=True)


def test_verify_of_true_bundle_exits_0_without_torch(bundle: Path, scenes: Path) -> None:
    done = prompt_tune(bundle, "--images", scenes)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("Passed: not one bit of ")
    assert UNLABELLED in lines
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
    assert rows[0] == ["learned", "0"]


def test_verify_of_graph_that_leaks_exits_3(leaky: Path, scenes: Path) -> None:
    """The bug that the product exists to prevent."""
    done = prompt_tune(leaky, "--images", scenes)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1].startswith("FAILED: ")
    done = prompt_tune(leaky, "--images", scenes, *sorted(scenes.glob("*.jpg")), "--json")  # each image once
    assert done.returncode == 3
    assert json.loads(done.stdout)["original_bits_changed"] > 0


def test_verify_with_more_false_alarms_than_allowed_exits_3(bundle: Path, scenes: Path, tmp_path: Path) -> None:
    """No bit changed, but the learned classes fire on photos that do not show them."""
    done = prompt_tune(bundle, "--images", scenes, "--json", "--max-false-alarms", "0")
    found = json.loads(done.stdout)
    rate = found["false_alarms_per_1000"]
    assert (done.returncode, found["too_many_false_alarms"], found["original_bits_changed"]) == (
        3,
        True,
        0,
    ) and rate > 0
    assert found["max_false_alarms"] == 0
    page = tmp_path / "page.html"
    done = prompt_tune(bundle, "--images", scenes, "--max-false-alarms", f"{rate - 1}", "--report", page)
    assert done.returncode == 3, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("FAILED: not one bit of ") and f" {rate:.1f} false alarms per 1,000 images (" in last
    assert 'class="verdict bad">Failed: not one bit' in page.read_text(encoding="utf-8")
    done = prompt_tune(bundle, "--images", scenes, "--max-false-alarms", f"{rate}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Passed: not one bit of ")
    (tmp_path / "file").touch()  # a page that cannot be written does not hide the verdict
    done = prompt_tune(bundle, "--images", scenes, "--max-false-alarms", "0", "--report", tmp_path / "file" / "page")
    assert done.returncode == 3 and done.stderr.splitlines()[-1].startswith("Error: Cannot write ")


def test_verify_writes_its_page(bundle: Path, scenes: Path, tmp_path: Path) -> None:
    done = prompt_tune(bundle, "--images", scenes, "--report", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_verify_prints_its_verdict_before_a_page_that_cannot_be_written(
    bundle: Path, leaky: Path, scenes: Path, tmp_path: Path
) -> None:
    """A regression decides the exit status; without one, the page that is missing does."""
    (tmp_path / "file").touch()
    page = tmp_path / "file" / "page.html"
    for place, status, verdict in ((bundle, 1, "Passed: "), (leaky, 3, "FAILED: ")):
        done = prompt_tune(place, "--images", scenes, "--report", page)
        assert done.returncode == status, done.stderr
        assert done.stdout.splitlines()[-1].startswith(verdict)
        assert done.stderr.splitlines()[-1].startswith(f"Error: Cannot write {page}: ")
        assert "Traceback" not in done.stderr


def test_verify_json_has_the_promised_keys(bundle: Path, sample: Path) -> None:
    done = prompt_tune(bundle, "--images", sample / "*" / "images" / "*" / "*.jpg", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["original_bits_changed"], found["images"], found["skipped"]) == (0, 16, [])
    assert found["settings"] == [{"loaded": ["learned"], "bits_changed": 0}]
    twins = [pair for pair in found["collisions"] if pair["learned"] == TWIN + pair["original"]]
    assert len(twins) > 0 and {pair["vocabulary"] for pair in twins} == {"learned"}
    assert found["false_alarms_per_1000"] == 1000 * sum(pair["count"] for pair in twins) / 16
    assert not any(key.startswith("original_ap") for key in found)


def test_verify_with_labels_has_precision_before_and_after(bundle: Path, sample: Path, scenes: Path) -> None:
    arguments: list[str | Path] = [bundle, "--images", scenes, "--data", sample / "original" / "original.yaml"]
    done = prompt_tune(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in ("ap", "ap50"):
        assert 0 < found[f"original_{name}_before"] == found[f"original_{name}_after"] <= 1
    assert found["labelled_images"] == 4
    table = prompt_tune(*arguments)
    assert f"│ AP50             │ {found['original_ap50_before']:.4f}" in table.stdout


def test_verify_with_labels_but_without_yaml_says_what_to_install(bundle: Path, sample: Path, scenes: Path) -> None:
    data = sample / "original" / "original.yaml"
    done = prompt_tune(bundle, "--images", scenes, "--data", data, blocked=(*HEAVY, "yaml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().splitlines()[-1] == (
        "Error: `data` needs packages that come with `fit`, and `yaml` is missing. Install them "
        "(pip install '.[fit]' (in a checkout)), or verify without --data."
    )


def test_verify_names_skipped_images(bundle: Path, scenes: Path, tmp_path: Path) -> None:
    content = sorted(scenes.iterdir())[0].read_bytes()
    (tmp_path / "a.jpg").write_bytes(content)
    (tmp_path / "b.jpg").write_bytes(content[:500])
    done = prompt_tune(bundle, "--images", tmp_path)
    assert done.returncode == 0
    assert "b.jpg" in done.stderr and "Skipped: " in done.stderr
    assert "1 image (1 more skipped): " in done.stdout
    assert done.stderr.startswith("False alarms are counted in 2 images, which need no labels.")
    strict = prompt_tune(bundle, "--images", tmp_path, "--strict")
    assert (strict.returncode, strict.stdout) == (1, "") and "b.jpg" in strict.stderr
    (tmp_path / "b.jpg").rename(tmp_path / "b.nef")
    strict = prompt_tune(bundle, "--images", tmp_path, "--strict")
    assert (strict.returncode, strict.stdout) == (1, "")
    assert "Something is left out, which --strict forbids: " in strict.stderr and "b.nef" in strict.stderr


def test_verify_of_vocabulary_for_another_guide_is_refused(bundle: Path, scenes: Path, tmp_path: Path) -> None:
    foreign = replace(original_vocabulary(), kind="learned", guide="e" * 64)
    foreign.save(tmp_path / "foreign.vocab.safetensors")
    done = prompt_tune(bundle, "--images", scenes, "--learned", tmp_path / "foreign.vocab.safetensors")
    assert (done.returncode, done.stdout) == (1, "")
    assert "was made for guide eeeeeeeeeeee" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 2, "Missing argument 'BUNDLE'."),
        (["nowhere"], 2, "Missing option '--images': the images to check."),
        (["nowhere", "--images", "."], 1, "`nowhere` is not a complete bundle"),
        (["BUNDLE", "--images", "nowhere"], 1, "`nowhere`: no such file or folder."),
        (["BUNDLE", "--images", ".", "--max-false-alarms", "-1"], 2, "-1.0 is not in the range x>=0"),
        (["BUNDLE", "--images", ".", "--max-false-alarms", "nan"], 2, "nan is not a finite number."),
        (["BUNDLE", "--images", ".", "--device", "tpu"], 2, "Received: 'tpu'."),
    ],
)
def test_verify_with_bad_arguments_says_why(bundle: Path, arguments: list[str], status: int, reason: str) -> None:
    done = prompt_tune(*(str(bundle) if argument == "BUNDLE" else argument for argument in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert reason in done.stderr
