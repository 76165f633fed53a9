"""Batches over any number of images: order, sizes, and what is in memory."""

from collections.abc import Iterator

import numpy as np
import pytest
from small_bundle import content, photo

from prompt_tune.runtime.batches import detect_in_batches
from prompt_tune.runtime.detector import Detector


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
