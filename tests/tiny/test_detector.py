"""The detector of `tiny`: what its training scenes show and say, its learning rate, and that its training resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prompt_tune.datasets.scenes import HELD_OUT, SHAPES
from prompt_tune.tiny import detector
from prompt_tune.tiny.detector import N_NAMES, Scenes, collate, learning_rate, train_detector
from prompt_tune.tiny.text_tower import name_parts

NAMES = [name for name, _ in name_parts()]


def test_every_object_of_a_training_scene_has_a_name_in_its_list() -> None:
    for index in range(60):
        image, listed, boxes, positive = Scenes(NAMES, seed=0, count=60)[index]
        assert image.shape == (3, 256, 256) and image.dtype == torch.uint8
        assert len(set(listed.tolist())) == N_NAMES and positive.shape == (len(boxes), N_NAMES)
        assert bool((positive.sum(1) >= 1).all()), "an object without a name in its list would be trained as background"


def test_positive_names_of_a_training_scene_are_no_held_out_combination() -> None:
    shown = set()
    for index in range(60):
        _, listed, _, positive = Scenes(NAMES, seed=0, count=60)[index]
        shown |= {NAMES[listed[k]] for k in np.flatnonzero(positive.sum(0).numpy())}
    assert {name for name in shown if name in SHAPES} == set(SHAPES)
    assert not shown & {f"{colour} {shape}" for colour, shape in HELD_OUT}


def test_scene_of_the_same_seed_and_index_is_the_same() -> None:
    first, again, other = (Scenes(NAMES, seed=seed, count=9)[4] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_collate_pads_objects_and_masks_the_padding() -> None:
    items = [Scenes(NAMES, seed=0, count=9)[index] for index in range(4)]
    counts = [len(item[2]) for item in items]
    assert len(set(counts)) > 1
    images, listed, boxes, positive, mask = collate(items)
    assert images.shape == (4, 3, 256, 256) and listed.shape == (4, N_NAMES)
    assert boxes.shape == (4, max(counts), 4) and positive.shape == (4, max(counts), N_NAMES)
    assert mask.sum((1, 2)).tolist() == counts
    assert not boxes[mask[..., 0] == 0].any() and not positive[mask[..., 0] == 0].any()
    assert torch.equal(boxes[1, : counts[1]], items[1][2])


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates.index(max(rates)) in (149, 150) and rates[0] < 0.02 * max(rates) and rates[-1] < 0.02 * max(rates)


def test_interrupted_training_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(len(NAMES), 512)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    monkeypatch.setattr(detector, "SAVE_EVERY", 2)
    whole = train_detector(tmp_path / "whole", NAMES, rows, seed=0, steps=4)

    def stop_at_four(step: int, steps: int) -> float:
        if step == 3:
            raise InterruptedError
        return learning_rate(step, steps)

    (tmp_path / "cut").mkdir()
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(detector, "learning_rate", stop_at_four)
        train_detector(tmp_path / "cut", NAMES, rows, seed=0, steps=4)
    resumed = train_detector(tmp_path / "cut", NAMES, rows, seed=0, steps=4)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
