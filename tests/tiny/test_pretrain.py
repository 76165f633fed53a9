"""The pretraining of `tiny`: what it may say and draw, that it resumes, and what the model that ships can do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from places import WEIGHTS

from prompt_tune.datasets.sample import CLASSES
from prompt_tune.datasets.scenes import HELD_OUT, TRAINED
from prompt_tune.models.text_tower import TextTower
from prompt_tune.models.world import World
from prompt_tune.tiny import skill
from prompt_tune.tiny.detector import N_NAMES, Scenes, learning_rate, train_detector
from prompt_tune.tiny.pretrain import pretrain
from prompt_tune.tiny.text_tower import UNSEEN, filler_words, name_parts
from prompt_tune.vocabulary.names import read_classes
from prompt_tune.vocabulary.vocabulary import Vocabulary

SHIPPED = WEIGHTS


def test_held_out_combinations_and_sample_names_are_never_said() -> None:
    said = {name for name, _ in name_parts()} | set(filler_words(0))
    assert not said & set(CLASSES) and set(UNSEEN) == set(CLASSES)
    for colour, shape in HELD_OUT:
        assert not any(name.split()[0] == colour and name.split()[-1] == shape for name in said)
    assert len(HELD_OUT) == 16 and len(TRAINED) == 80 and not set(HELD_OUT) & set(TRAINED)


def test_training_scenes_never_show_a_held_out_combination() -> None:
    names = [name for name, _ in name_parts()]
    for index in range(60):
        image, listed, boxes, positive = Scenes(names, seed=0, count=60)[index]
        assert image.shape == (3, 256, 256) and image.dtype == torch.uint8
        assert len(set(listed.tolist())) == N_NAMES and positive.shape == (len(boxes), N_NAMES)
        assert bool((positive.sum(1) >= 1).all()), "an object without a name in its list would be trained as background"


def test_original_names_are_those_of_the_list_that_ships() -> None:
    assert [names for names in read_classes("tiny")] == [(f"{c} {s}",) for c, s in TRAINED]
    assert Vocabulary.load(SHIPPED / "original.vocab.safetensors").names == tuple(f"{c} {s}" for c, s in TRAINED)


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates.index(max(rates)) in (149, 150) and rates[0] < 0.02 * max(rates) and rates[-1] < 0.02 * max(rates)


def test_interrupted_training_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_tune.tiny import detector

    names = [name for name, _ in name_parts()]
    rows = np.random.default_rng(0).normal(size=(len(names), 512)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    monkeypatch.setattr(detector, "SAVE_EVERY", 2)
    whole = train_detector(tmp_path / "whole", names, rows, seed=0, steps=4)

    def stop_at_four(step: int, steps: int) -> float:
        if step == 3:
            raise InterruptedError
        return learning_rate(step, steps)

    (tmp_path / "cut").mkdir()
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(detector, "learning_rate", stop_at_four)
        train_detector(tmp_path / "cut", names, rows, seed=0, steps=4)
    resumed = train_detector(tmp_path / "cut", names, rows, seed=0, steps=4)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_pretrain_writes_a_detector_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skill, "N_SCENES", 16)
    measured = pretrain(tmp_path / "out", tower_steps=5, detector_steps=2)
    world = World.load(tmp_path / "out")
    vocabulary = Vocabulary.load(tmp_path / "out" / "original.vocab.safetensors")
    assert vocabulary.detector == world.digest and len(vocabulary.names) == 80
    assert {"original_ap50", "shapes_ap50", "held_out_ap50", "guide_score_change"} <= set(measured)


def test_shipped_model_reaches_what_the_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a quarter of the scenes that skill.json was measured on."""
    monkeypatch.setattr(skill, "N_SCENES", 100)
    world, tower = World.load("tiny"), TextTower.load("tiny")
    measured = skill.measure_skill(world, tower, [f"{c} {s}" for c, s in TRAINED])
    assert measured["original_ap50"] > 0.60
    assert measured["shapes_ap50"] > 0.90
    assert measured["held_out_ap50"] > 0.60
    assert measured["guide_score_change"] > 0.01


def test_shipped_files_are_small_and_no_pickle() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".yaml", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= 30e6
