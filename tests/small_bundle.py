"""A small bundle on the random detector, and vocabularies that fit it."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from vocabularies import TOWER, unit_rows

from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

IMAGE_SIZE = 96  # three strides: small enough for tests, large enough that boxes differ


@cache
def small_bundle(world: World, folder: Path) -> Path:
    """A bundle with 80 original classes and the learned `gizmo` and `forklift`, three prompts each."""
    from prompt_tune.deployment.graph import export_graph

    assert world.names is not None and world.class_embeddings is not None
    export_graph(world, folder / "detector.onnx", image_size=IMAGE_SIZE)
    embeddings = world.class_embeddings.numpy()[:, None]  # (80, 1, 512)
    original = Vocabulary(
        world.names,
        embeddings,
        thresholds=np.full(len(world.names), 0.3, np.float32),
        kind="original",
        detector=world.digest,
        text_tower=TOWER,
        guide=guide_digest(embeddings),
    )
    original.save(folder / "original.vocab.safetensors")
    learned_for(folder, "gizmo", "forklift", n_prompts=3).save(folder / "learned.vocab.safetensors")
    return folder


def learned_for(bundle: Path, *names: str, n_prompts: int = 1, seed: int = 7, **fields: Any) -> Vocabulary:
    """A learned vocabulary with random embeddings for the bundle's detector and guide."""
    original = Vocabulary.load(bundle / "original.vocab.safetensors")
    embeddings = unit_rows(len(names), n_prompts, seed=seed)
    defaults: dict[str, Any] = {
        "thresholds": np.float32(0.2),
        "kind": "learned",
        "detector": original.detector,
        "text_tower": original.text_tower,
        "guide": guide_digest(embeddings) if fields.get("guide_mode") == "own" else original.digest,
    }
    return Vocabulary(names, embeddings, **(defaults | fields))


def photo(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A uint8 (height, width, 3) image with coarse and fine structure."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 200, (height // 16 + 1, width // 16 + 1, 3)).repeat(16, 0).repeat(16, 1)
    return (coarse[:height, :width] + generator.integers(0, 56, (height, width, 3))).astype(np.uint8)


def content(found: Detections) -> tuple[object, ...]:
    """Everything in it, bit for bit."""
    arrays = (found.boxes_xyxy.tobytes(), found.scores.tobytes(), found.class_ids.tobytes())
    return (*arrays, found.class_names, found.vocabularies, found.size_wh)


def with_background(bundle: Path, folder: Path, row: int) -> Path:
    """A copy of a bundle in which a row of the original vocabulary is marked as background."""
    shutil.copytree(bundle, folder)
    original = Vocabulary.load(folder / "original.vocab.safetensors")
    replace(original, background=((original.names[row], " "),)).save(folder / "original.vocab.safetensors")
    return folder
