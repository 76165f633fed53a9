"""Synthetic scenes: pure functions of their seed, with boxes that fit what is drawn."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from places import ROOT, TESTS

from prompt_tune.datasets.scenes import (
    COLOURS,
    HELD_OUT,
    HELD_OUT_COUNT,
    PATTERNS,
    PRETRAINING,
    SHAPES,
    TRAINED,
    Layer,
    Look,
    Scene,
    draw_scene,
    names_of,
    random_look,
)
from prompt_tune.vocabulary.names import read_classes

# no light, noise or clutter: what is drawn can be told from the backdrop by its colour
CLEAN = replace(
    PRETRAINING, light=(1.0, 1.0), cast=0.0, clutter=(0, 0), noise=(0.0, 0.0), blur_px=(0.0, 0.0), outline=0.0
)


def scene(seed: int, n_looks: int = 5) -> Scene:
    rng = np.random.default_rng(seed)
    return draw_scene([random_look(rng) for _ in range(n_looks)], rng)


def fingerprint(drawn: Scene) -> str:
    return hashlib.sha256(drawn.image.tobytes() + drawn.boxes_xyxy.tobytes()).hexdigest()


def test_scene_of_the_same_seed_is_the_same_in_another_process() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_scenes import fingerprint, scene\n"
        "print(fingerprint(scene(5)))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(TESTS), str(ROOT)]
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    assert printed == fingerprint(scene(5)) != fingerprint(scene(6))


def test_scene_has_boxes_and_looks_of_what_was_placed() -> None:
    for seed in range(10):
        drawn = scene(seed, n_looks=8)
        assert drawn.image.shape == (256, 256, 3) and drawn.image.dtype == np.uint8
        assert drawn.boxes_xyxy.shape == (len(drawn.looks), 4) and drawn.boxes_xyxy.dtype == np.float32
        assert 2 <= len(drawn.looks) <= 8
        sides = drawn.boxes_xyxy[:, 2:] - drawn.boxes_xyxy[:, :2]
        assert sides.min() > 5 and drawn.boxes_xyxy.min() >= 0 and drawn.boxes_xyxy.max() <= 256


def test_scene_without_looks_is_a_backdrop() -> None:
    drawn = draw_scene([], np.random.default_rng(0))
    assert drawn.boxes_xyxy.shape == (0, 4) and drawn.looks == [] and drawn.image.std() > 1


@pytest.mark.parametrize("shape", SHAPES)
def test_box_is_tight_around_the_drawn_shape(shape: str) -> None:
    for seed in range(3):
        drawn = draw_scene([Look.of("red", shape)], np.random.default_rng(seed), CLEAN)
        picture = drawn.image.astype(int)
        red = picture[..., 0] - picture[..., 1:].max(2)
        mask = red > 52  # backdrops are muted: 0.28 x 0.72 x 255 at most
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        np.testing.assert_allclose(
            drawn.boxes_xyxy[0], [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], atol=3
        )  # thin tips are soft


def test_box_of_a_composite_is_around_all_its_layers() -> None:
    small = Look((Layer("square", "red", scale=0.3),))
    composite = Look((*small.layers, Layer("circle", "blue", scale=0.3, offset_xy=(0.7, 0.0))))
    boxes = [draw_scene([look], np.random.default_rng(1), CLEAN).boxes_xyxy[0] for look in (small, composite)]
    longest = [float((box[2:] - box[:2]).max()) for box in boxes]
    assert longest[1] > 1.5 * longest[0]


@pytest.mark.parametrize("backdrop", ["clouds", "bench"])
def test_backdrop_is_muted(backdrop: str) -> None:
    drawn = draw_scene([], np.random.default_rng(2), replace(CLEAN, backdrop=backdrop))
    picture = drawn.image.astype(int)
    assert (picture.max(2) - picture.min(2)).max() < 80


def test_names_of_a_look_go_from_the_least_to_the_most_specific() -> None:
    assert names_of(Look.of("red", "circle")) == ["circle", "red circle"]
    assert names_of(Look.of("red", "circle", "striped")) == [
        "circle",
        "red circle",
        "striped circle",
        "red striped circle",
    ]


def test_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown shape 'blob'; the shapes are circle"):
        draw_scene([Look.of("red", "blob")], np.random.default_rng(0))


def test_held_out_combinations_are_spread_and_never_trained() -> None:
    assert len(set(HELD_OUT)) == HELD_OUT_COUNT == 16 and len(TRAINED) == 80
    assert not set(HELD_OUT) & set(TRAINED)
    for values, place in ((COLOURS, 0), (SHAPES, 1)):
        counts = [sum(pair[place] == value for pair in HELD_OUT) for value in values]
        assert max(counts) - min(counts) <= 1
    rng = np.random.default_rng(0)
    drawn = {(look.layers[0].colour, look.layers[0].shape) for look in (random_look(rng) for _ in range(3000))}
    assert drawn == set(TRAINED)
    assert {random_look(rng).layers[0].pattern for _ in range(100)} == set(PATTERNS)


def test_trained_combinations_are_the_names_of_tiny() -> None:
    assert [names for names, *_ in read_classes("tiny")] == [f"{colour} {shape}" for colour, shape in TRAINED]
