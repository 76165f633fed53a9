"""Views of an image: its pixels and its boxes must move together."""

from pathlib import Path

import numpy as np
import pytest

from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.runtime.images import letterbox
from prompt_tune.tuning.views import MIN_VISIBLE, View, automatic_views, make_view

RED, BLUE = (230, 30, 20), (20, 40, 230)
SIZE = 256


def drawn(
    *boxes: tuple[tuple[int, int, int, int], tuple[int, int, int]], ignore: bool = False
) -> tuple[np.ndarray, Sample]:
    """Filled rectangles on grey, 300 x 200, and their sample."""
    image = np.full((200, 300, 3), 150, np.uint8)
    for (x1, y1, x2, y2), colour in boxes:
        image[y1:y2, x1:x2] = colour
    sample = Sample(
        Path("drawn.png"),
        Labels(
            np.array([box for box, _ in boxes], np.float32).reshape(-1, 4),
            np.arange(len(boxes)),
            np.full(len(boxes), ignore),
        ),
        (300, 200),
    )
    return image, sample


def view_of(image: np.ndarray, sample: Sample, index: int, seed: int) -> View:
    return make_view(letterbox(image, SIZE), sample, index, np.random.default_rng(seed))


def where(view: View, colour: tuple[int, int, int]) -> np.ndarray:
    """(size, size) bool: the pixels of a colour, in any light."""
    channel = int(np.argmax(colour))
    picture = view.image.astype(int)
    above = picture[..., channel] - np.delete(picture, channel, axis=2).max(2)
    return above > max(40, above.max() / 2)  # half way along a soft edge


def box_of(mask: np.ndarray) -> np.ndarray:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])


def test_view_zero_is_the_letterboxed_image() -> None:
    image, sample = drawn(((40, 50, 140, 110), RED))
    view = view_of(image, sample, 0, seed=0)
    pixels, frame = letterbox(image, SIZE)
    np.testing.assert_array_equal(view.image, pixels)
    np.testing.assert_array_equal(view.labels.boxes_xyxy, frame.to_input(sample.labels.boxes_xyxy))
    np.testing.assert_allclose(view.labels.boxes_xyxy[0], box_of(where(view, RED)), atol=1)


def test_augmented_views_move_boxes_with_their_pixels() -> None:
    image, sample = drawn(((100, 70, 180, 100), RED), ((190, 110, 215, 150), BLUE))
    flipped, zooms = set(), []
    for seed in range(40):
        view = view_of(image, sample, 1, seed)
        assert view.labels.boxes_xyxy.dtype == np.float32 and view.image.dtype == np.uint8
        for box, label in zip(view.labels.boxes_xyxy, view.labels.classes, strict=True):
            np.testing.assert_allclose(box, box_of(where(view, (RED, BLUE)[label])), atol=1.2)
        red, blue = view.labels.boxes_xyxy
        flipped.add(bool(blue[0] < red[0]))
        zooms.append((red[2] - red[0]) / (80 * SIZE / 300))
    assert flipped == {False, True}
    assert min(zooms) < 0.75 and max(zooms) > 1.25


def test_augmented_views_ignore_what_mostly_leaves_and_forget_what_leaves() -> None:
    image, sample = drawn(((130, 80, 170, 120), RED), ((0, 80, 40, 120), BLUE))  # the blue one at the edge leaves
    seen = set()
    for seed in range(120):
        view = view_of(image, sample, 1, seed)
        share = where(view, BLUE).sum() / where(view, RED).sum()
        labels = dict(zip(view.labels.classes.tolist(), view.labels.ignore.tolist(), strict=True))
        assert labels[0] is False
        if share > MIN_VISIBLE + 0.05:
            assert labels[1] is False
            seen.add("there")
        elif 0.05 < share < MIN_VISIBLE - 0.05:
            assert labels[1] is True
            seen.add("ignored")
        elif share == 0:
            assert 1 not in labels or labels[1]
            seen.add("gone" if 1 not in labels else "sliver")
        assert (view.labels.boxes_xyxy >= 0).all() and (view.labels.boxes_xyxy <= SIZE).all()
    assert {"there", "ignored", "gone"} <= seen


@pytest.mark.parametrize("index", [0, 1])
def test_view_keeps_ignored_boxes_ignored(index: int) -> None:
    image, sample = drawn(((130, 80, 170, 120), RED), ignore=True)
    assert view_of(image, sample, index, seed=3).labels.ignore.tolist() == [True]


def test_view_of_an_image_without_boxes_has_none() -> None:
    image, sample = drawn()
    for index in (0, 1):
        view = view_of(image, sample, index, seed=0)
        assert view.labels.boxes_xyxy.shape == (0, 4) and view.labels.classes.shape == view.labels.ignore.shape == (0,)


def test_view_of_the_same_seed_is_the_same() -> None:
    image, sample = drawn(((40, 50, 140, 110), RED))
    one, same, other = (view_of(image, sample, 2, seed) for seed in (5, 5, 6))
    assert (
        one.image.tobytes() == same.image.tobytes()
        and one.labels.boxes_xyxy.tobytes() == same.labels.boxes_xyxy.tobytes()
    )
    assert one.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize(
    ("n_images", "n_cls", "views"),
    [(1, 1, 16), (10, 1, 16), (20, 1, 8), (30, 1, 5), (99, 1, 2), (100, 1, 1), (5000, 80, 1), (40, 4, 12), (99, 33, 5)],
)
def test_automatic_views_fall_from_sixteen_to_one(n_images: int, n_cls: int, views: int) -> None:
    classes = [Labels(np.zeros((1, 4), np.float32), np.array([i % n_cls]), np.zeros(1, bool)) for i in range(n_images)]
    assert automatic_views([Sample(Path("a.jpg"), labels, (8, 8)) for labels in classes]) == views
