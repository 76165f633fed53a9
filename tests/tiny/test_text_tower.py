"""The text tower of `tiny`: the texts it is fitted to, and the targets of its names."""

import json
from pathlib import Path

import numpy as np

from prompt_tune.datasets.sample import CLASSES
from prompt_tune.datasets.scenes import COLOURS, HELD_OUT, PATTERNS, SHAPES, TRAINED
from prompt_tune.models.text_tower import TextTower
from prompt_tune.tiny.text_tower import (
    CONFIG,
    FILLER_WORDS,
    UNSEEN,
    filler_words,
    fit_tower,
    name_parts,
    target_directions,
)


def test_held_out_combinations_and_sample_names_never_occur() -> None:
    said = {name for name, _ in name_parts()} | set(filler_words(0))
    assert not said & set(CLASSES) and set(UNSEEN) == set(CLASSES)
    for colour, shape in HELD_OUT:
        assert not any(name.split()[0] == colour and name.split()[-1] == shape for name in said)
    assert len(HELD_OUT) == 16 and len(TRAINED) == 80 and not set(HELD_OUT) & set(TRAINED)


def test_filler_words_of_a_seed_are_the_same_and_no_part_of_a_name() -> None:
    words = filler_words(0)
    assert words == filler_words(0) != filler_words(1)
    assert len(set(words)) == FILLER_WORDS and not set(words) & {*SHAPES, *COLOURS, *PATTERNS}


def test_directions_of_parts_are_orthogonal_to_each_other_and_to_filler_words() -> None:
    words = ["house", "tree", "river"]
    directions = target_directions(0, words)
    parts = [*SHAPES, *COLOURS, *PATTERNS[1:]]
    assert list(directions) == parts + words
    rows = np.stack([directions[name] for name in parts])  # (n_parts, 512)
    others = np.stack([directions[word] for word in words])  # (3, 512)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(parts)), atol=1e-5)
    np.testing.assert_allclose(rows @ others.T, 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(others, axis=1), 1, atol=1e-5)


def test_fitted_tower_loads_in_its_format(tmp_path: Path) -> None:
    fit_tower(tmp_path / "tower", seed=0, steps=3)
    assert json.loads((tmp_path / "tower" / "open_clip_config.json").read_text())["model_cfg"] == CONFIG
    tower = TextTower.load(f"local-dir:{tmp_path / 'tower'}")
    np.testing.assert_allclose(np.linalg.norm(tower.embed(["red circle", "gizmo"]), axis=1), 1, atol=1e-5)


def test_shipped_tower_places_names_by_their_parts_and_does_not_know_the_sample_names() -> None:
    tower = TextTower.load("tiny")
    red_circle, red_star, blue_star = tower.embed(["red circle", "red star", "blue star"])
    assert red_circle @ red_star > 0.3 and red_star @ blue_star > 0.3 and abs(red_circle @ blue_star) < 0.2
    shapes, classes = tower.embed([*SHAPES]), tower.embed([*CLASSES])
    assert (shapes @ classes.T).max() < 0.6
