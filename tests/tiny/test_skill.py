"""The measurement of `tiny`, and what the model that ships reaches in it."""

import json

import numpy as np
import pytest
from places import WEIGHTS

from prompt_tune.datasets.scenes import HELD_OUT, SHAPES, TRAINED, draw_scene, random_look
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.tiny import skill

SEED = 0  # of the training and of its measurement


def test_test_scenes_are_not_training_scenes_and_show_the_given_combinations() -> None:
    scenes = [skill.test_scene(SEED, index, HELD_OUT) for index in range(5)]
    assert len({scene.image.tobytes() for scene in scenes}) == 5
    assert all((look.layers[0].colour, look.layers[0].shape) in HELD_OUT for scene in scenes for look in scene.looks)
    assert np.array_equal(skill.test_scene(SEED, 3, HELD_OUT).image, scenes[3].image)
    rng = np.random.default_rng([SEED, 0, 0])  # how `Scenes` draws its first scene
    drawn = draw_scene([random_look(rng) for _ in range(rng.integers(3, 9))], rng)
    assert not np.array_equal(skill.test_scene(SEED, 0, TRAINED).image, drawn.image)


def test_names_that_describe_no_object_have_no_precision_and_others_do() -> None:
    world, tower = World.load("tiny"), TextTower.load("tiny")
    scenes = [skill.test_scene(SEED, index, (("red", "star"),)) for index in range(skill.BATCH + 1)]  # two passes
    metrics = skill.measure(world, scenes, ["star", "red star"], tower.embed(["star", "red star"]))
    assert metrics.ap50 > 0.8
    assert np.isnan(skill.measure(world, scenes, ["circle"], tower.embed(["circle"])).ap50)


def test_shipped_model_reaches_what_its_measurement_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a quarter of the scenes that skill.json was measured on."""
    monkeypatch.setattr(skill, "N_SCENES", 100)
    world, tower = World.load("tiny"), TextTower.load("tiny")
    measured = skill.measure_skill(world, tower, [f"{c} {s}" for c, s in TRAINED])
    stored = json.loads((WEIGHTS / "skill.json").read_text())
    assert set(measured) == set(stored)
    for name in ("original", "shapes", "held_out"):
        assert measured[f"{name}_ap50"] == pytest.approx(stored[f"{name}_ap50"], abs=0.05)
    assert measured["guide_score_change"] > 0.01
    assert len(SHAPES) == 12
