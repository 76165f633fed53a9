"""What the tests of labelling share: images of all kinds, and rows as they can be compared."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from small_bundle import content, photo

from prompt_tune.runtime.detector import Detector
from prompt_tune.services.results import Results

SHOW = ["gizmo", "forklift"]  # a random detector finds thousands of objects


def write_photos(folder: Path, count: int, *, first: int = 0) -> list[Path]:
    """Small images, each of a size of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        Image.fromarray(photo(60 + number % 7, 90 - number % 5, seed=number)).save(path)
    return paths


def encoded(number: int, kind: str = "PNG") -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    Image.fromarray(photo(60, 90, seed=number)).save(file, kind)
    return file.getvalue()


def rows_of(out: Path) -> dict[str, tuple[object, ...]]:
    """Everything in the rows, bit for bit, by path; an error in the place of the detections."""
    rows = list(Results(out).rows())
    assert len({row.path for row in rows}) == len(rows), "a row twice"
    return {row.path: (row.error,) if row.error else content(row.found) for row in rows}


def expected(bundle: Path, paths: list[Path], *, batch: int) -> dict[str, tuple[object, ...]]:
    """What `Detector.detect` gives, one call for each image."""
    detector = Detector(bundle, threads=1)
    return {str(path): content(detector.detect(path, batch=batch, show=SHOW)[0]) for path in paths}


def files_of(out: Path) -> dict[str, bytes]:
    """Content of the Parquet files by name."""
    return {path.name: path.read_bytes() for path in Results(out).parts()}


def same_pixels(one: object, other: np.ndarray) -> bool:
    """Whether something is an image with these pixels."""
    return isinstance(one, np.ndarray) and np.array_equal(one, other)
