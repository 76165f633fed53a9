"""The text tower of `tiny`: fitted by regression to structured targets, then frozen.

Each shape, colour and pattern has its own direction, and the target of a name is the sum of its parts. (Trained
together with the detector, a tower this small learns colours and nothing else.) A few hundred ordinary words get random
directions, so that the outputs span more than the two dozen directions of the scenes, like those of a real tower.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn

from prompt_tune.contract import EMBED_DIM
from prompt_tune.datasets.scenes import COLOURS, PATTERNS, SHAPES, TRAINED
from prompt_tune.files import replacing
from prompt_tune.privacy import quiet_imports

logger = logging.getLogger(__name__)
CONFIG: dict[str, Any] = {
    "embed_dim": EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},  # a dummy: loading is strict
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
PREFIXES = ("", "", "", "a ", "the ", "a photo of a ", "a picture of a ", "one small ", "a large ")
BATCH = 192  # texts per update
FILLER_WORDS = 300  # ordinary words with random directions
# The names of the sample set: they must be new to the tower, so no text of the pretraining contains them.
UNSEEN = ("forklift", "gizmo", "sprocket", "widget", "flange", "doodad")


def name_parts() -> list[tuple[str, tuple[str, ...]]]:
    """Every name that the pretraining uses, with its parts. Held-out combinations do not occur."""
    said: list[tuple[str, tuple[str, ...]]] = [(shape, (shape,)) for shape in SHAPES]
    said += [(f"{c} {s}", (c, s)) for c, s in TRAINED]
    for pattern in PATTERNS[1:]:
        said += [(f"{pattern} {s}", (pattern, s)) for s in SHAPES]
        said += [(f"{c} {pattern} {s}", (c, pattern, s)) for c, s in TRAINED]
    return said


def target_directions(seed: int, words: list[str]) -> dict[str, np.ndarray]:
    """The target direction of each part of a name and of each filler word: (512,) float32, unit norm.

    The directions of parts are orthogonal to each other and to those of all filler words. Together they span as many
    dimensions as the tower is wide; its projection reaches no more.

    Args:
        seed: The seed of the directions.
        words: The filler words.
    """
    rng = np.random.default_rng([seed, 11])
    parts = [*SHAPES, *COLOURS, *PATTERNS[1:]]
    basis = np.linalg.qr(rng.normal(size=(EMBED_DIM, CONFIG["text_cfg"]["width"])))[0].T  # (width, 512)
    random = rng.normal(size=(len(words), len(basis) - len(parts))) @ basis[len(parts) :]  # (n_words, 512)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    rows = [*basis[: len(parts)], *random]
    return {name: row.astype(np.float32) for name, row in zip(parts + words, rows, strict=True)}


def filler_words(seed: int) -> list[str]:
    """Random ordinary words from CLIP's vocabulary, one token each, that do not occur in names of the scenes."""
    from open_clip.tokenizer import SimpleTokenizer

    known = {*SHAPES, *COLOURS, *PATTERNS, *UNSEEN, *" ".join(PREFIXES).split()}
    words = [w.removesuffix("</w>") for w in SimpleTokenizer().encoder if w.endswith("</w>")]
    words = sorted(w for w in words if w.isascii() and w.isalpha() and 4 <= len(w) <= 9 and w not in known)
    return [str(w) for w in np.random.default_rng([seed, 12]).choice(words, FILLER_WORDS, replace=False)]


def fit_tower(folder: Path, *, seed: int, steps: int) -> None:
    """Fit the tower, and write it in open_clip's format in float16.

    Args:
        folder: The folder for open_clip_config.json and open_clip_model.safetensors.
        seed: The seed of targets, initial weights and order.
        steps: The number of updates, of `BATCH` texts each.
    """
    with quiet_imports():
        import open_clip
        from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = CLIP(**CONFIG)
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONFIG["text_cfg"]["context_length"])
    words = filler_words(seed)
    directions = target_directions(seed, words)
    texts = name_parts() + [(w, (w,)) for w in words]
    rng = np.random.default_rng([seed, 13])
    targets = np.stack([sum(directions[p] for p in parts) for _, parts in texts])
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    chance = np.array([2.0 if set(parts) & set(SHAPES) else 1.0 for _, parts in texts])  # names before filler words

    nn.init.normal_(model.token_embedding.weight, std=0.1)
    model.token_embedding.sparse = True
    dense = [p for n, p in model.named_parameters() if not n.startswith(("visual", "token_embedding", "logit"))]
    optimizers = [
        torch.optim.AdamW(dense, lr=3e-3, weight_decay=0.0, betas=(0.9, 0.98)),
        torch.optim.SparseAdam([model.token_embedding.weight], lr=2e-2),
    ]
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(o, o.param_groups[0]["lr"], total_steps=steps, pct_start=0.1)
        for o in optimizers
    ]
    for _ in track(range(steps), description="Text tower"):
        pick = rng.choice(len(texts), BATCH, p=chance / chance.sum())
        said = [PREFIXES[rng.integers(len(PREFIXES))] + texts[i][0] for i in pick]
        tokens = tokenizer(said)
        tokens = tokens[:, : int((tokens.argmax(1) + 1).max())]  # (BATCH, longest)
        x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
        x = model.transformer(x, attn_mask=model.attn_mask[: tokens.shape[1], : tokens.shape[1]])
        x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection  # (BATCH, 512)
        goal = torch.from_numpy(targets[pick])
        loss = (1 - nn.functional.cosine_similarity(x, goal)).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
    logger.info("Text tower: loss %.4f after %d updates.", loss.item(), steps)
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    with replacing(folder / "open_clip_model.safetensors") as path:
        save_file(state, path)
    with replacing(folder / "open_clip_config.json") as path:
        path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}, indent=1) + "\n")
