"""Frames with detections, for tests of sinks."""

from pathlib import Path

import numpy as np
from clips import greys
from small_bundle import photo

from prompt_tune.media.sources import Frame
from prompt_tune.runtime.detections import ClassKey, Detections

CLASSES: tuple[ClassKey, ...] = (("original", "person"), ("original", "truck"), ("learned", "gizmo: [a]"))


def found(frame: Frame, *, rows: int = 2) -> Detections:
    """A person at 8, 4 to 24, 20, and a gizmo half a pixel further right and down."""
    height, width = frame.image.shape[:2]
    boxes = np.array([[8, 4, 24, 20], [8.5, 4.5, 24.5, 20.5]], np.float32)[:rows]
    return Detections(
        boxes,
        np.array([0.5, 0.25], np.float32)[:rows],
        np.array([0, 0])[:rows],
        ("person", "gizmo: [a]")[:rows],
        ("original", "learned")[:rows],
        (width, height),
    )


def image_frame(name: str = "a.png", path: Path | None = None) -> Frame:
    """An image of 60 x 40 pixels."""
    return Frame(name, photo(40, 60), path=path)


def clip_frames(count: int, name: str = "clip.mov") -> list[Frame]:
    """The first frames of a video of 65 x 49 pixels, a tenth of a second apart."""
    return [Frame(name, image, number, number / 10) for number, image in enumerate(greys(count, height=49, width=65))]


def files(folder: Path) -> list[str]:
    """The files in a folder and its subfolders, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
