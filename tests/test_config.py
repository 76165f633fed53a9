"""The settings of a fit."""

import json
from dataclasses import fields
from typing import Any

import pytest

from prompt_tune.config import FitConfig, RegionBudget
from prompt_tune.errors import RunError


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1. Received: 0."),
        ({"context_length": 0}, "`context_length` must be at least 1"),
        ({"views": -1}, "`views`"),
        ({"batch": -1}, "`batch`"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0 and below 10. Received: 0.0."),
        ({"precision": 1.5}, "`precision`"),
        ({"precision": float("nan")}, "`precision`"),
        ({"learning_rate": float("nan")}, "`learning_rate`"),
        ({"token_position": "left"}, "`token_position` must be one of end, middle, front. Received: 'left'."),
        ({"guide": "joint"}, "`guide` must be one of original, own. Received: 'joint'."),
        ({"prompts_per_class": 0}, "`prompts_per_class` must be at least 1"),
        ({"prompts_per_class": 2, "class_specific": False}, "Leave --prompts-per-class or --shared-context out."),
        ({"teacher_weight": -0.1}, "`teacher_weight` must be at least 0. Received: -0.1."),
        ({"teacher_weight": float("nan")}, "`teacher_weight`"),
        ({"teacher_weight": float("inf")}, "`teacher_weight`"),
        ({"nms_iou": 0.75}, "`nms_iou` must be from 0 to 0.7, because the graph drops boxes that overlap by more."),
        ({"nms_iou": -0.5}, "`nms_iou`"),
        ({"nms_iou": float("nan")}, "`nms_iou`"),
        ({"image_size": 100}, "`image_size` must be a multiple of 32"),
        ({"region_budget": (0, 50, 64)}, "`region_budget` must be three counts, the first at least 1"),
        ({"region_budget": (600, -1, 64)}, "`region_budget`"),
        ({"region_budget": (600, 50)}, "`region_budget`"),
    ],
)
def test_setting_that_means_nothing_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RunError, match=reason):
        FitConfig(**settings)


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError):
        FitConfig(epoch=3)  # type: ignore[call-arg]


def test_settings_as_json_come_back_equal() -> None:
    config = FitConfig(epochs=7, initial_words="a photo", region_budget=(1, 2, 3))
    stored = json.loads(json.dumps(config.as_json()))
    assert FitConfig(**stored | {"region_budget": tuple(stored["region_budget"])}) == config


def test_settings_without_tiles_do_not_speak_of_them() -> None:
    assert {"tile", "tile_overlap"} & set(FitConfig(tile_overlap=0.5).as_json()) == set()
    assert FitConfig(tile=640).as_json().items() >= {"tile": 640, "tile_overlap": 0.2}.items()


def test_every_setting_has_its_help_and_the_budget_one_home() -> None:
    assert all(field.metadata["help"] for field in fields(FitConfig))
    assert RegionBudget(*FitConfig().region_budget) == RegionBudget()
