"""How well `tiny` detects, on scenes that its training never drew."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prompt_tune.datasets.samples import Labels
from prompt_tune.datasets.scenes import HELD_OUT, SHAPES, TRAINED, Scene, draw_scene, names_of, random_look
from prompt_tune.evaluation.metrics import Metrics, average_precision
from prompt_tune.models.suppression import find
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections

TEST_STREAM = 1  # scenes are seeded [seed, stream, index]; the stream of the training is 0
N_SCENES = 400  # scenes of trained combinations, and as many of mixed ones
BATCH = 16  # scenes in one pass of the detector


def measure_skill(world: World, tower: TextTower, original: Sequence[str], *, seed: int = 0) -> dict[str, float]:
    """Measure AP50 and AP on new scenes for three lists of names, each both guide and classes, as in YOLO-World.

    Args:
        world: The detector.
        tower: Its text tower.
        original: The names of its original vocabulary.
        seed: The seed of the scenes.

    Returns:
        `original_ap50`, on scenes of trained combinations; `shapes_ap50`, for bare shapes on the same scenes;
        `held_out_ap50`, for combinations that occur in no training image or text, on scenes that mix both kinds; the
        same with `_ap`; all in 0..1. And `guide_score_change`, the largest change of an original score when the bare
        shapes guide the neck in place of the original vocabulary.
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
    """Draw a scene that no training step draws.

    Args:
        seed: The seed of all test scenes.
        index: The number of the scene.
        combinations: (colour, shape) pairs to choose from; a repeated pair is chosen more often.
    """
    rng = np.random.default_rng([seed, TEST_STREAM, index])
    return draw_scene([random_look(rng, combinations) for _ in range(rng.integers(3, 9))], rng)


@torch.no_grad()
def measure(world: World, scenes: Sequence[Scene], names: Sequence[str], embeddings: np.ndarray) -> Metrics:
    """COCO's numbers for a list of names; an object counts for every name of the list that describes it.

    Args:
        world: The detector.
        scenes: The scenes.
        names: The n_cls names.
        embeddings: (n_cls, 512) float32, unit rows, of the names; guide and classes in one.
    """
    rows = torch.from_numpy(embeddings).to(world.device)
    weight, bias = world.fold(rows)
    founds: list[Detections] = []
    for first in range(0, len(scenes), BATCH):
        images = _pixels(scenes[first : first + BATCH])
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


def _pixels(scenes: Sequence[Scene]) -> Tensor:
    """(b, 3, 256, 256) float32 in 0..1."""
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def _guide_score_change(world: World, scenes: Sequence[Scene], original: np.ndarray, other: np.ndarray) -> float:
    """The largest change of an original score when `other` guides the neck; both are (n, 512) embeddings."""
    images = _pixels(scenes)
    _, _, level = world.anchors(*images.shape[2:])
    weight, bias = world.fold(torch.from_numpy(original))
    scores = []
    for guide in (original, other):
        head, _ = world.features(images, torch.from_numpy(guide))
        scores.append(world.logits(head, level, weight, bias).sigmoid())
    return float((scores[0] - scores[1]).abs().max())
