"""Batches of one size over any number of images: the way that `detect` and `label` both go."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from prompt_tune.errors import DataError
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import ImageInput, Letterboxed
from prompt_tune.runtime.slices import Slices, detect_sliced

What = TypeVar("What")


def detect_in_batches(
    detector: Detector,
    images: Iterable[tuple[What, ImageInput | Letterboxed]],
    *,
    batch: int,
    slices: Slices | None = None,
    **options: Any,
) -> Iterator[tuple[What, Detections]]:
    """Detections of images in their order, `batch` of them at once, see `Detector.detect`.

    Args:
        detector: With its vocabularies loaded.
        images: Pairs of anything and an image that can be read. They are taken when they are needed, so memory holds
            one batch.
        batch: Number of images that go through the network at once, at least 1; with `slices`, of an image's windows.
        slices: Whether images are also looked at in slices, see `detect_sliced`. No image may be letterboxed then.
        options: Further options of `Detector.detect`.

    Yields:
        What came with an image, and the image's detections.
    """
    if slices:
        for what, image in images:
            if isinstance(image, Letterboxed):
                raise DataError("A letterboxed image cannot be cut into slices. Give the image itself.")
            yield what, detect_sliced(detector, image, slices, batch=batch, **options)
        return
    taken = iter(images)
    while part := list(islice(taken, batch)):
        found = detector.detect([image for _, image in part], batch=batch, **options)
        yield from zip((what for what, _ in part), found, strict=True)
