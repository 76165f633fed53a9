"""Batches of one size over any number of images: the way that `detect` and `label` both go."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import ImageInput, Letterboxed

What = TypeVar("What")


def detect_in_batches(
    detector: Detector, images: Iterable[tuple[What, ImageInput | Letterboxed]], *, batch: int, **options: Any
) -> Iterator[tuple[What, Detections]]:
    """Detections of images in their order, `batch` of them at once, see `Detector.detect`.

    Args:
        detector: With its vocabularies loaded.
        images: Pairs of anything and an image that can be read. They are taken when they are needed, so memory holds
            one batch.
        batch: Number of images that go through the network at once, at least 1.
        options: Further options of `Detector.detect`.

    Yields:
        What came with an image, and the image's detections.
    """
    taken = iter(images)
    while part := list(islice(taken, batch)):
        found = detector.detect([image for _, image in part], batch=batch, **options)
        yield from zip((what for what, _ in part), found, strict=True)
