"""What a detector of the synthetic world can do, on scenes that its training never drew."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from prompt_tune.contract import METRIC_CONF as METRIC_CONF
from prompt_tune.datasets.samples import Labels
from prompt_tune.datasets.scenes import HELD_OUT, SHAPES, TRAINED, Scene, draw_scene, names_of, random_look
from prompt_tune.evaluation.metrics import Metrics, average_precision
from prompt_tune.models.suppression import find
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections

Item = TypeVar("Item")


TEST_STREAM = 1  # scenes are seeded [seed, stream, index]; the training's stream is 0
N_SCENES = 400
BATCH = 16


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items, `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def measure_skill(world: World, tower: TextTower, original: Sequence[str], *, seed: int = 0) -> dict[str, float]:
    """AP50 and AP on fresh scenes for three lists of names, each used as YOLO-World does: as guide and as classes.

    Args:    world, tower: the pair to measure. original: the original vocabulary. seed: of the scenes.
    Returns: `original_ap50` (on scenes of trained combinations), `shapes_ap50` (bare shapes, the same scenes),
             `held_out_ap50` (combinations that no training image or text had, on scenes that mix both kinds), the same
             with `_ap`, all in 0..1, and `guide_score_change`: the largest change of an original score when the bare
             shapes steer the neck in place of the original vocabulary.
    """
    usual = [test_scene(seed, i, TRAINED) for i in range(N_SCENES)]
    mixed = [test_scene(seed, N_SCENES + i, TRAINED + HELD_OUT * 3) for i in range(N_SCENES)]
    held_out = [f"{colour} {shape}" for colour, shape in HELD_OUT]
    skill: dict[str, float] = {}
    for key, scenes, names in (("original", usual, original), ("shapes", usual, SHAPES), ("held_out", mixed, held_out)):
        measured = measure(world, scenes, names, tower.embed(names))
        skill |= {f"{key}_ap50": measured.ap50, f"{key}_ap": measured.ap}
    skill["guide_score_change"] = _guide_score_change(world, usual[:BATCH], tower.embed(original), tower.embed(SHAPES))
    return skill


def test_scene(seed: int, index: int, combinations: tuple[tuple[str, str], ...]) -> Scene:
    """A scene that no training step draws."""
    rng = np.random.default_rng([seed, TEST_STREAM, index])
    return draw_scene([random_look(rng, combinations) for _ in range(rng.integers(3, 9))], rng)


@torch.no_grad()
def measure(world: World, scenes: Sequence[Scene], names: Sequence[str], embeddings: np.ndarray) -> Metrics:
    """Precision of a list of names on scenes; an object counts for every name of the list that describes it."""
    rows = torch.from_numpy(embeddings).to(world.device)
    weight, bias = world.fold(rows)
    founds: list[Detections] = []
    for part in batches(scenes, BATCH):
        images = torch.from_numpy(np.stack([s.image for s in part])).permute(0, 3, 1, 2).float() / 255
        head, boxes = world.features(images.to(world.device), rows)
        _, _, level = world.anchors(*images.shape[2:])
        scores = world.logits(head, level, weight, bias).sigmoid()
        founds += [find(b, s) for b, s in zip(boxes, scores, strict=True)]
    place = {name: i for i, name in enumerate(names)}
    labels = []
    for scene in scenes:
        pairs = [
            (box, place[name])
            for box, look in zip(scene.boxes_xyxy, scene.looks, strict=True)
            for name in names_of(look)
            if name in place
        ]
        boxes_xyxy = np.array([box for box, _ in pairs], np.float32).reshape(-1, 4)
        classes = np.array([label for _, label in pairs], np.int64)
        labels.append(Labels(boxes_xyxy, classes, np.zeros(len(pairs), bool)))
    return average_precision(labels, founds, len(names))


@torch.no_grad()
def _guide_score_change(world: World, scenes: Sequence[Scene], original: np.ndarray, other: np.ndarray) -> float:
    """Largest change of an original score under another guide."""
    images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).float() / 255
    _, _, level = world.anchors(*images.shape[2:])
    weight, bias = world.fold(torch.from_numpy(original))
    scores = []
    for guide in (original, other):
        head, _ = world.features(images, torch.from_numpy(guide))
        scores.append(world.logits(head, level, weight, bias).sigmoid())
    return float((scores[0] - scores[1]).abs().max())
