"""Parts that tests share.

`checkpoint`: path of a small random YOLO-World v2 (yolov8n-worldv2) as ultralytics saves it, with 80 names, unit text
features, and batch-norm statistics under which scores and boxes vary and the guide matters.
`world`: that checkpoint loaded, for tests that leave it as it is.
`text_tower`: folder of a small random text tower in open_clip's format.
`make_checkpoint(path, scale="n", seed=0, version="v2")`: writes another one and returns its path; version "" is v1.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from towers import make_tower

if TYPE_CHECKING:
    from prompt_tune.models.world import World

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """Writes a random YOLO-World checkpoint and returns its path."""
    return _make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random yolov8n-worldv2 in ultralytics' format."""
    return _make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random-n-worldv2.pt")


@pytest.fixture(scope="session")
def world(checkpoint: Path) -> "World":
    """The random checkpoint, loaded on the CPU."""
    from prompt_tune.models.world import World

    return World.load(checkpoint)


@pytest.fixture(scope="session")
def text_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random text tower in open_clip's format."""
    folder = tmp_path_factory.mktemp("towers") / "tower"
    make_tower(folder, seed=7)
    return folder


def _make_checkpoint(path: Path, *, scale: str = "n", seed: int = 0, version: str = "v2") -> Path:
    import torch
    from torch import nn

    from prompt_tune.models import ultralytics

    tasks = ultralytics.quiet_import("ultralytics.nn.tasks")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = tasks.WorldModel(f"yolov8{scale}-world{version}.yaml", ch=3, nc=80, verbose=False)
        text = torch.nn.functional.normalize(torch.randn(80, 512), dim=1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # plain average of what the next lines show it
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(0, 0.2)
            elif type(module).__name__ == "MaxSigmoidAttnBlock":
                module.gl.weight.mul_(10)  # else unit embeddings would hardly steer it
        head = model.model[-1]
        for branch in head.cv2:
            branch[-1].bias.copy_(-0.4 * torch.arange(16.0).repeat(4))  # boxes of a few cells
        for contrast in head.cv4:
            contrast.bias.fill_(-4.0)
            contrast.logit_scale.fill_(0.7 if version else 3.0)  # v1 compares unit vectors
        model.train()
        for _ in range(3):
            smooth = nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=(128, 128), mode="bilinear")
            model(torch.cat((smooth, torch.rand(2, 3, 128, 128))), txt_feats=text.expand(4, -1, -1))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.03
        model.names = {i: f"thing {i}" for i in range(80)}
        model.txt_feats = text[None]
        head.nc = 80
    torch.save({"epoch": -1, "model": model.eval().half(), "ema": None, "train_args": {}, "version": "8"}, path)
    return path
