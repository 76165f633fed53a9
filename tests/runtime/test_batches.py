"""Batches over any number of images: order, sizes, and what is in memory."""

from collections.abc import Iterator

import numpy as np
import pytest
from small_bundle import content, photo

from prompt_tune.errors import DataError
from prompt_tune.runtime.batches import detect_in_batches
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.slices import Slices, detect_sliced


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_every_image_gets_what_detect_gives_at_the_same_batch(detector: Detector, batch: int) -> None:
    images = [photo(60, 90 + seed, seed=seed) for seed in range(5)]
    taken: list[int] = []

    def frames() -> Iterator[tuple[str, np.ndarray]]:
        for number, image in enumerate(images):
            taken.append(number)
            yield f"image {number}", image

    found = []
    for number, pair in enumerate(detect_in_batches(detector, frames(), batch=batch, conf=0.3)):
        assert len(taken) == min(5, (number // batch + 1) * batch)  # one batch in memory, and no more
        found.append(pair)
    assert [what for what, _ in found] == [f"image {number}" for number in range(5)]
    for image, (_, one) in zip(images, found, strict=True):
        assert len(one) and content(one) == content(detector.detect(image, batch=batch, conf=0.3)[0])


def test_no_images_give_nothing(detector: Detector) -> None:
    assert list(detect_in_batches(detector, iter(()), batch=4)) == []


def test_slices_are_those_of_each_image(detector: Detector) -> None:
    images = [photo(120, 90 + 60 * seed, seed=seed) for seed in range(3)]
    slices = Slices(96)
    rows = list(detect_in_batches(detector, enumerate(images), batch=4, slices=slices, conf=0.4))
    assert [number for number, _ in rows] == [0, 1, 2]
    for image, (_, one) in zip(images, rows, strict=True):
        assert content(one) == content(detect_sliced(detector, image, slices, batch=4, conf=0.4))
        assert len(one) > len(detector.detect(image, batch=4, conf=0.4)[0])
    ready = detector.letterboxed(images[0])
    with pytest.raises(DataError, match="A letterboxed image cannot be cut into slices"):
        list(detect_in_batches(detector, [(0, ready)], batch=1, slices=slices))
