"""Bundles on `tiny`: with the true graph, or with one whose guide takes all classes, the bug that must be caught."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from places import WEIGHTS
from torch import Tensor
from vocabularies import unit_rows

from prompt_tune.contract import GRAPH_VERSION
from prompt_tune.deployment import graph
from prompt_tune.models.world import World
from prompt_tune.vocabulary.format import GRAPH_FILE, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary

SIZE = 256  # pixels of the sample set's images
TWIN = "twin of "  # begins the name of a learned class that copies an original one


class LeakyGraph(graph.DetectorGraph):
    """The same contract, but learned classes guide the neck too: one bug, in one line."""

    def raw(self, images: Tensor, original: Tensor, learned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        guide = torch.cat([original.flatten(0, 1), learned.flatten(0, 1)])  # (all rows, 512)
        head_maps, boxes_xyxy = self.world.feature_maps(images, guide)
        flat = [head_map.flatten(2) for head_map in head_maps]
        return boxes_xyxy, self._scores(flat, original), self._scores(flat, learned)


def make_bundle(folder: Path, *, leaky: bool = False) -> Path:
    """A bundle whose learned classes are a twin of each original one, and 40 random ones that are never detected."""
    folder.mkdir(parents=True)
    world = World.load("tiny")
    module = (LeakyGraph if leaky else graph.DetectorGraph)(world)
    graph._trace(module, folder / GRAPH_FILE, graph.OPSET)
    metadata = {
        "version": GRAPH_VERSION,
        "detector": world.digest,
        "embed_dim": world.embed_dim,
        "image_size": SIZE,
        "strides": list(world.strides),
    }
    graph._label(folder / GRAPH_FILE, metadata)
    original = original_vocabulary()
    original.save(folder / ORIGINAL_FILE)
    silent = np.repeat(unit_rows(40, 1), original.n_prompts, axis=1)  # (40, n_prompts, 512)
    learned_for_tiny(
        (*(TWIN + name for name in original.names), *(f"silent {i}" for i in range(40))),
        np.concatenate([original.embeddings, silent]),  # (120, n_prompts, 512)
        thresholds=np.concatenate([original.thresholds, np.ones(40)]),  # (120,)
    ).save(folder / LEARNED_FILE)
    return folder


def original_vocabulary() -> Vocabulary:
    """That of `tiny`."""
    return Vocabulary.load(WEIGHTS / ORIGINAL_FILE)


def learned_for_tiny(names: tuple[str, ...], embeddings: np.ndarray, **fields: Any) -> Vocabulary:
    """A learned vocabulary that goes with `tiny` and its original vocabulary."""
    original = original_vocabulary()
    origin: dict[str, Any] = {
        "kind": "learned",
        "detector": original.detector,
        "text_tower": original.text_tower,
        "guide": original.digest,
    }
    return Vocabulary(names, embeddings, **(origin | fields))
