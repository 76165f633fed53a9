"""What is loaded from ultralytics, what is refused, and that its import leaves no trace."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity import random_images, unit_rows
from places import ROOT, WEIGHTS
from safetensors.torch import save_file

from prompt_tune.errors import ModelError
from prompt_tune.models import ultralytics
from prompt_tune.models.world import World


def test_folder_in_the_layout_of_tiny_loads_as_the_same_detector(world: World, tmp_path: Path) -> None:
    import yaml

    structure = {key: world.yaml[key] for key in ("nc", "scales", "scale", "backbone", "head")}
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(structure))
    save_file({name: t.contiguous() for name, t in world.model.state_dict().items()}, tmp_path / "detector.safetensors")
    before = torch.random.get_rng_state()
    again = World.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.digest == world.digest
    images, guide = random_images(1, 3, 64, 64), unit_rows(3, seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(again.features(images, guide), world.features(images, guide), strict=True)
    )

    description = (tmp_path / "detector.yaml").read_text()
    for hostile in ("a: &a [*a]", "[" * 10_000, "nc: 0b_", "nc: 2020-13-45"):
        (tmp_path / "detector.yaml").write_text(hostile)
        with pytest.raises(ModelError, match="is damaged"):
            World.load(tmp_path)
    (tmp_path / "detector.yaml").write_text(description)

    content = (tmp_path / "detector.safetensors").read_bytes()
    (tmp_path / "detector.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="is damaged"):
        World.load(tmp_path)
    (tmp_path / "detector.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it has no detector\.safetensors"):
        World.load(tmp_path)


def write_plain_yolo(path: Path) -> None:
    model = ultralytics.quiet_import("ultralytics.nn.tasks").DetectionModel("yolov8n.yaml", verbose=False)
    torch.save({"model": model, "ema": None}, path)


def write_yoloe(path: Path) -> None:
    model = ultralytics.quiet_import("ultralytics.nn.tasks").YOLOEModel("yoloe-v8s.yaml", nc=80, verbose=False)
    torch.save({"model": model.half(), "ema": None}, path)


def write_fused(path: Path) -> None:
    model = ultralytics.quiet_import("ultralytics.nn.tasks").WorldModel("yolov8n-worldv2.yaml", nc=80, verbose=False)
    for contrast in model.model[-1].cv4:
        contrast.fuse()
    torch.save({"model": model, "ema": None}, path)


def write_state_dict(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def write_noise(path: Path) -> None:
    path.write_bytes(b"this is no checkpoint")


def write_nothing(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (write_nothing, "is not a checkpoint that ultralytics can load"),
        (write_noise, "is not a checkpoint that ultralytics can load"),
        (write_state_dict, "is not a checkpoint that ultralytics can load"),
        (write_plain_yolo, "is not a YOLO-World but a DetectionModel; give a YOLO-World, such as yolov8s-worldv2.pt"),
        (write_yoloe, "is not a YOLO-World but a YOLOEModel; give a YOLO-World, such as yolov8s-worldv2.pt"),
        (write_fused, "has a fused contrastive head"),
    ],
)
def test_load_of_what_is_no_yolo_world_is_refused_in_one_line(
    write: Callable[[Path], None], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(ModelError) as error:
        World.load(path)
    assert str(error.value).startswith(f"'{path}' ")
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["yolov8m-worldv2.pt", "yolov8m-world.pt"])
def test_load_of_official_name_without_network_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ModelError) as error:
        World.load(name)
    assert f"'{name}' is not in this folder and cannot be downloaded (no connection" in str(error.value)
    assert f"https://github.com/ultralytics/assets/releases/download/v8.4.0/{name}" in str(error.value)
    assert not list(tmp_path.iterdir())


TRACES = """
import logging, os, sys, warnings
import cv2, numpy, torch
from PIL import Image
from torch._tensor_str import get_printoptions
torch.set_printoptions(precision=2, linewidth=50, sci_mode=True)
numpy.set_printoptions(precision=3, linewidth=60)
cv2.setNumThreads(3)
warnings.filterwarnings("error", message="mine")
logging.getLogger("sentry_sdk").setLevel(logging.INFO)
def traces():
    return {
        "environment": dict(os.environ),
        "functions": (torch.save, Image.open, cv2.imread, cv2.imwrite, cv2.imshow),
        "torch": get_printoptions(),
        "numpy": numpy.get_printoptions(),
        "OpenCV's threads": cv2.getNumThreads(),
        "warnings": list(warnings.filters),
        "loggers": [logging.getLogger(name).level for name in ("sentry_sdk", "coremltools")],
    }
from prompt_tune.models.world import World
assert "ultralytics" not in sys.modules
before = traces()
World.load(sys.argv[1])
assert "ultralytics" in sys.modules
after = traces()
print(*(name for name in before if after[name] != before[name]), sep=", ", end="")
"""


def test_import_of_ultralytics_leaves_no_trace(checkpoint: Path, tmp_path: Path) -> None:
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("YOLO_", "XDG_", "OMP_"))}
    folder = tmp_path / "tmp"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", TRACES, str(checkpoint)],
        env=keep | {"HOME": str(tmp_path), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"activation": "open('ran', 'w')"}, "has `activation`, which would run as code"),
        ({"backbone": [[-1, 1, "torch_safe_load", ["x.pt"]]]}, "has `torch_safe_load`, which is not a layer"),
        ({"head": [[-1, 1, "nn.functional", []]]}, "has `nn.functional`, which is not a layer"),
        ({"head": [[-1, 1, "torchvision.ops.nms", []]]}, r"has `torchvision\.ops\.nms`, which is not a layer"),
        ({"head": [[-1, 1, "nn.Upsample.__init__", []]]}, r"has `nn\.Upsample\.__init__`, which is not a layer"),
        ({"backbone": 7}, "is damaged"),
        ({"head": [[-1, 1]]}, "is damaged"),
        ({"head": [[-1, 1, 5, []]]}, "has `5`, which is not a layer"),
    ],
)
def test_folder_with_a_description_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], text: str
) -> None:
    import yaml

    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((WEIGHTS / "detector.yaml").read_text()) | change
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "detector.safetensors").write_bytes((WEIGHTS / "detector.safetensors").read_bytes())
    with pytest.raises(ModelError, match=text):
        World.load(tmp_path)
    assert not (tmp_path / "ran").exists()
