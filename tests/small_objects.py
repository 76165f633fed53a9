"""Large pictures with small objects, as data sets: scenes of the sample set, or photos, beside and below each other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from places import SHARED

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.sample import CLASSES, custom_scene, write_description
from prompt_tune.datasets.samples import Sample

RACCOON = SHARED / "data" / "raccoon"
SPLITS = ("train", "val", "test")
CELL_WH = (200, 150)  # pixels of each picture that is pasted into a photo
PASTED = 4  # pictures with a raccoon in a photo
JPEG_QUALITY = 92


def save(folder: Path, split: str, index: int, pixels: np.ndarray, rows: Sequence[tuple[int, np.ndarray]]) -> None:
    """Write a picture, and its objects (class, box in pixels) in ultralytics' layout."""
    height, width = pixels.shape[:2]
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / "images" / split / f"{index:04}.jpg", quality=JPEG_QUALITY)
    lines = []
    for label, (x1, y1, x2, y2) in rows:
        centre = f"{(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f}"
        lines.append(f"{label} {centre} {(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n")
    (folder / "labels" / split / f"{index:04}.txt").write_text("".join(lines))


def write_mosaics(folder: Path, n_images: Sequence[int], side: int = 3, *, seed: int = 0) -> Path:
    """A data set of pictures of `side` x `side` scenes of 256 pixels each.

    Args:
        folder: A new folder.
        n_images: The number of pictures of each split.
        side: Scenes beside each other, and below each other.
        seed: Of the scenes.
    """
    looks = list(CLASSES.values())
    for split, count in zip(SPLITS, n_images, strict=True):
        for index in range(count):
            pixels, rows = np.zeros((side * 256, side * 256, 3), np.uint8), []
            for place in range(side * side):
                scene = custom_scene(seed, split, index * side * side + place)
                y, x = (256 * at for at in divmod(place, side))
                pixels[y : y + 256, x : x + 256] = scene.image
                boxes = scene.boxes_xyxy + np.array([x, y, x, y])
                rows += [
                    (number, box)
                    for box, look in zip(boxes, scene.looks, strict=True)
                    for number, own in enumerate(looks)
                    if own is look
                ]
            save(folder, split, index, pixels, rows)
    used = [split for split, count in zip(SPLITS, n_images, strict=True) if count]
    return write_description(folder / "data.yaml", list(CLASSES), used)


def write_pasted(folder: Path, n_images: Sequence[int], side: int = 8, *, seed: int = 0) -> Path:
    """A data set of photos with a few small raccoons among pieces of background.

    Raccoons of training photos are in training photos only, and the rest is divided between the other splits.

    Args:
        folder: A new folder.
        n_images: The number of pictures of each split.
        side: Pictures of 200 x 150 pixels that are pasted beside each other, and below each other.
        seed: Of what lies where.
    """
    data = read_dataset(RACCOON)
    others = data.val.samples
    sources = {"train": data.train.samples, "val": others[::2], "test": others[1::2]}
    rng = np.random.default_rng(seed)
    n_cells = side * side
    for split, count in zip(SPLITS, n_images, strict=True):
        samples = [sample for sample in sources[split] if sample.size_wh[0] >= sample.size_wh[1]]
        strips = [strip for sample in samples if (strip := _background(sample)) is not None]
        for index in range(count):
            pixels, rows = np.zeros((side * CELL_WH[1], side * CELL_WH[0], 3), np.uint8), []
            shown = dict(zip(rng.permutation(n_cells)[:PASTED].tolist(), rng.permutation(len(samples)), strict=False))
            for cell in range(n_cells):
                y, x = (at * step for at, step in zip(divmod(cell, side), CELL_WH[::-1], strict=True))
                if cell in shown:
                    sample = samples[shown[cell]]
                    picture = Image.open(sample.path).convert("RGB")
                    scale = np.array(CELL_WH * 2) / np.array(sample.size_wh * 2)
                    rows += [(0, box * scale + np.array([x, y, x, y])) for box in sample.labels.boxes_xyxy]
                else:
                    picture = strips[rng.integers(len(strips))]
                    if rng.random() < 0.5:
                        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                pixels[y : y + CELL_WH[1], x : x + CELL_WH[0]] = np.asarray(picture.resize(CELL_WH))
            save(folder, split, index, pixels, rows)
    return write_description(folder / "data.yaml", ["raccoon"], SPLITS)


def _background(sample: Sample) -> Image.Image | None:
    """The part of a photo beside its objects that is free of them; None if it is narrow."""
    boxes, (width, height) = sample.labels.boxes_xyxy, sample.size_wh
    left, right = float(boxes[:, 0].min()), float(boxes[:, 2].max())
    start, end = (0.0, left) if left > width - right else (right, float(width))
    if end - start < 0.2 * width:
        return None
    return Image.open(sample.path).convert("RGB").crop((round(start), 0, round(end), height))
