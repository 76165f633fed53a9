"""Random text towers in open_clip's format, and context that looks learned."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_tune.models.context import PromptContext
    from prompt_tune.models.text_tower import TextTower

CLASSES = [("lorry", "truck"), ("traffic light",)]


def learned_context(
    tower: "TextTower", classes: Sequence[tuple[str, ...]] = CLASSES, **settings: Any
) -> "PromptContext":
    """A context whose vectors all differ, as after training."""
    import torch

    from prompt_tune.models.context import PromptContext

    context = PromptContext(tower, classes, **settings)
    with torch.no_grad():
        context.ctx.add_(0.1 * torch.randn(context.ctx.shape, generator=torch.Generator().manual_seed(9)))
    return context


def make_tower(folder: Path, seed: int) -> str:
    """Writes a random one-layer text tower in open_clip's format; returns its spec."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}
    config = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
