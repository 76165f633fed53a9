"""YOLO-World and its text tower at full size with random weights, to measure speed and memory and to compare bits.

`python tests/full_size.py FOLDER` writes FOLDER/yolov8s-worldv2.pt and FOLDER/tower. Use them with
`prompt-tune fit --model FOLDER/yolov8s-worldv2.pt --text-tower local-dir:FOLDER/tower`.
"""

import json
from pathlib import Path
from typing import Any

import click

from prompt_tune.files import replacing

SCALE = "s"
TOWER_CONFIG: dict[str, Any] = {  # open_clip's ViT-B-32-quickgelu, text side
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},  # a dummy: loading is strict
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
TOKEN_STD = 0.2  # ten times open_clip's initial value; with less, random blocks make all names look alike


def write_tower(folder: Path, *, seed: int = 0) -> str:
    """Write a random ViT-B/32 text tower in open_clip's format, float16. A complete one is kept.

    Args:
        folder: For open_clip_model.safetensors (127 MB) and open_clip_config.json.
        seed: Of the weights.

    Returns:
        What `TextTower.load` and `--text-tower` take.
    """
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    config = folder / "open_clip_config.json"  # is written last
    if not config.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = CLIP(**TOWER_CONFIG)
            torch.nn.init.normal_(model.token_embedding.weight, std=TOKEN_STD)
        with replacing(folder / "open_clip_model.safetensors") as path:
            save_file({name: t.detach().half().contiguous() for name, t in model.state_dict().items()}, path)
        with replacing(config) as path:
            path.write_text(json.dumps({"model_cfg": TOWER_CONFIG, "preprocess_cfg": {}}) + "\n")
    return f"local-dir:{folder}"


def write_checkpoint(path: Path, tower: str, *, scale: str = SCALE, seed: int = 0) -> Path:
    """Write a random YOLO-World v2 as ultralytics saves it, with COCO's names and embeddings. An existing file is kept.

    Batch norms hold the statistics of random pictures, and boxes are a few cells wide. So scores and boxes vary within
    a picture and the guide matters, as in a trained detector.

    Args:
        path: The .pt to write.
        tower: The text tower that belongs to it, as `TextTower.load` takes it.
        scale: Of ultralytics' yolov8-worldv2.yaml.
        seed: Of the weights.

    Returns:
        The path.
    """
    import torch
    from torch import nn

    from prompt_tune.models import ultralytics
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.vocabulary.names import read_classes

    if path.is_file():
        return path
    names = [prompts[0] for prompts in read_classes("coco")]
    text = torch.from_numpy(TextTower.load(tower).embed(names))  # (80, 512)
    tasks = ultralytics.quiet_import("ultralytics.nn.tasks")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = tasks.WorldModel(f"yolov8{scale}-worldv2.yaml", ch=3, nc=len(names), verbose=False)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # a plain average over the pictures below
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.normal_(0, 0.2)
        for module in model.modules():
            if type(module).__name__ == "MaxSigmoidAttnBlock":
                module.gl.weight.mul_(10)  # otherwise unit embeddings would hardly steer it
        head = model.model[-1]
        for branch in head.cv2:
            branch[-1].bias.copy_(-0.4 * torch.arange(16.0).repeat(4))  # (4 * reg_max,): short distances are likely
        for contrast in head.cv4:
            contrast.bias.fill_(-4.0)
            contrast.logit_scale.fill_(0.7)
        model.train()
        for _ in range(3):
            smooth = nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=(256, 256), mode="bilinear")
            model(torch.cat((smooth, torch.rand(2, 3, 256, 256))), txt_feats=text.expand(4, -1, -1))  # (4, 3, 256, 256)
        for norm in norms:
            norm.momentum = 0.03  # ultralytics' value
        model.names, model.txt_feats = dict(enumerate(names)), text[None]  # (1, 80, 512)
    with replacing(path) as temporary:
        torch.save({"epoch": -1, "model": model.eval().half(), "ema": None, "train_args": {}}, temporary)
    return path


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write a random yolov8s-worldv2.pt and its text tower to FOLDER."""
    tower = write_tower(folder / "tower")
    model = write_checkpoint(folder / f"yolov8{SCALE}-worldv2.pt", tower)
    click.echo(f"--model {model} --text-tower {tower}")


if __name__ == "__main__":
    main()
