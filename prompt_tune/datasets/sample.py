"""The sample set: a custom job on the synthetic scenes of `tiny`, with six classes whose names are new to its tower."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from prompt_tune.datasets.scenes import PRETRAINING, TRAINED, Layer, Look, Scene, draw_scene, random_look
from prompt_tune.errors import DataError
from prompt_tune.files import replacing
from prompt_tune.progress import Progress, silent
from prompt_tune.runtime.images import save_image

# Composites of shapes, and combinations of colour and shape that were held out from the pretraining of `tiny`.
CLASSES = {
    "forklift": Look(
        (
            Layer("square", "yellow", scale=0.95, offset_xy=(0.0, -0.15)),
            Layer("circle", "black", scale=0.32, offset_xy=(-0.5, 0.6)),
            Layer("circle", "black", scale=0.32, offset_xy=(0.5, 0.6)),
        )
    ),
    "gizmo": Look.of("green", "star", "striped"),
    "sprocket": Look((Layer("ring", "white"), Layer("circle", "red", scale=0.48))),
    "widget": Look.of("purple", "cross", "dotted"),
    "flange": Look((Layer("square", "blue"), Layer("diamond", "orange", scale=0.8))),
    "doodad": Look.of("green", "diamond", "checked"),
}
BENCH = replace(PRETRAINING, backdrop="bench", outline=1.0, light=(0.6, 1.1), noise=(3.0, 10.0), object_px=(32.0, 96.0))
SPLITS = ("train", "val", "test")
STREAMS = {"train": 10, "val": 11, "test": 12, "original": 13}  # random streams; pretraining has 0, its test 1
OF_CLASS, DISTRACTORS = (1, 3), (2, 5)  # objects per image: of the six classes, and of the original vocabulary
JPEG_QUALITY = 93


def write_sample(out: Path, *, n_images: int = 100, seed: int = 0, progress: Progress = silent) -> tuple[Path, Path]:
    """Writes the sample set as two ultralytics data sets.

    Args:
        out: A new or empty folder.
        n_images: The number of images in each split of the custom job, and of original scenes; at least 1.
        seed: The seed of everything that is drawn.
        progress: Called after each image.

    Returns:
        The descriptions of the two data sets: `out`/custom/custom.yaml, with six classes and the splits train, val and
        test, and `out`/original/original.yaml, scenes of the original vocabulary without the six, with the split val.

    Raises:
        DataError: The folder is not empty, or cannot be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out} is not an empty folder; the sample set needs one of its own. Give another --out.")
        return _write(out, n_images, seed, progress)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}. Give another --out.") from error


def custom_scene(seed: int, split: str, index: int) -> Scene:
    """Draws a picture of the custom job: objects of the six classes among others of the original vocabulary."""
    rng = np.random.default_rng([seed, STREAMS[split], index])
    looks = list(CLASSES.values())
    chosen = [looks[rng.integers(len(looks))] for _ in range(rng.integers(OF_CLASS[0], OF_CLASS[1] + 1))]
    others = [random_look(rng) for _ in range(rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1))]
    both = [*chosen, *others]
    return draw_scene([both[i] for i in rng.permutation(len(both))], rng, BENCH)


def original_scene(seed: int, index: int) -> Scene:
    """Draws a picture of the original vocabulary as in pretraining, without any of the six classes."""
    rng = np.random.default_rng([seed, STREAMS["original"], index])
    return draw_scene([random_look(rng) for _ in range(rng.integers(3, 9))], rng)


def write_image(folder: Path, split: str, index: int, scene: Scene, classes: Sequence[int | None]) -> None:
    """Writes one image and its label file in ultralytics' layout.

    Args:
        folder: The data set's folder.
        split: The split.
        index: The number of the image in its split, from 0.
        scene: The image and its objects.
        classes: The class index of each object; None for an object that gets no label.
    """
    with replacing(folder / "images" / split / f"{index:04d}.jpg") as path:
        save_image(path, Image.fromarray(scene.image), quality=JPEG_QUALITY)
    with replacing(folder / "labels" / split / f"{index:04d}.txt") as path:
        path.write_text("".join(_label_lines(scene, classes)))


def write_description(path: Path, names: Sequence[str], splits: Sequence[str]) -> Path:
    """Writes the YAML of a data set and returns its path.

    Args:
        path: The YAML to write.
        names: Class names, in class-id order.
        splits: The splits. ultralytics wants `train`; if it is missing, the images of `val` stand in.
    """
    places = {split: f"images/{split}" for split in splits}
    if "train" not in places:
        places["train"] = places["val"]
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump({**places, "names": dict(enumerate(names))}, sort_keys=False))
    return path


def _write(out: Path, n_images: int, seed: int, progress: Progress) -> tuple[Path, Path]:
    total, done = n_images * (len(SPLITS) + 1), 0
    for split in SPLITS:
        for index in range(n_images):
            scene = custom_scene(seed, split, index)
            write_image(out / "custom", split, index, scene, [_class_of(look) for look in scene.looks])
            progress("sample set", done := done + 1, total, "")
    for index in range(n_images):
        scene = original_scene(seed, index)
        write_image(out / "original", "val", index, scene, [_original_class(look) for look in scene.looks])
        progress("sample set", done := done + 1, total, "")
    original = [f"{colour} {shape}" for colour, shape in TRAINED]
    return (
        write_description(out / "custom" / "custom.yaml", list(CLASSES), SPLITS),
        write_description(out / "original" / "original.yaml", original, ("val",)),
    )


def _class_of(look: Look) -> int | None:
    """Index into `CLASSES`, or None for a distractor."""
    return next((i for i, own in enumerate(CLASSES.values()) if own is look), None)


def _original_class(look: Look) -> int:
    """Index into the original vocabulary of `tiny`."""
    return TRAINED.index((look.layers[0].colour, look.layers[0].shape))


def _label_lines(scene: Scene, classes: Sequence[int | None]) -> Iterator[str]:
    """Lines `class x y width height`, as fractions of the image's sides."""
    size = scene.image.shape[0]
    for box, label in zip(scene.boxes_xyxy / size, classes, strict=True):
        if label is not None:
            x, y, width, height = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
            yield f"{label} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n"
