"""An ultralytics checkpoint with original and learned classes set, for people who stay with ultralytics.

There all classes guide the neck together, so original boxes and scores change; `measure_shift` measures how much. And
ultralytics' `predict` gives each box one class only, so a learned class hides an original one: `measure_predict`.
"""

import copy
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_tune.contract import DEFAULT_THRESHOLD
from prompt_tune.errors import DataError, RunError
from prompt_tune.files import saving
from prompt_tune.models import ultralytics
from prompt_tune.models.embeddings import load_run
from prompt_tune.models.suppression import find
from prompt_tune.models.world import World, torch_device
from prompt_tune.runtime.boxes import box_iou, match
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.image_files import Places, as_places, find_images
from prompt_tune.runtime.images import Picture, letterbox, read_picture
from prompt_tune.vocabulary.foreign import single_prompts

SUFFIX = ".pt"
SAME_BOX_IOU = 0.5  # detections of one class with and without the joint guide are the same from this overlap on
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shift:
    """How learned classes in the same checkpoint change original detections with a score above 0.25.

    Attributes:
        images: The number of images that were read.
        skipped: One line for each image that cannot be read.
        before: The number of detections with the original classes alone.
        lost: Those of them that no detection of the same class overlaps with all classes.
        gained: Detections with all classes that no detection of the same class overlaps with the original ones alone.
        largest: The largest change of a score among the others, in 0..1; 0 if there are no others.
        mean: Their mean change.
        learned: The number of detections of learned classes; None if they are not looked for.
    """

    images: int
    skipped: tuple[str, ...]
    before: int
    lost: int
    gained: int
    largest: float
    mean: float
    learned: int | None = None


@dataclass(frozen=True)
class Baked:
    """The classes of the checkpoint that was written.

    Attributes:
        names: Class names, in class-id order: the original ones, the learned ones, and the texts of background rows.
        n_original: The number of original classes, without background rows.
        n_background: The number of background rows of the original vocabulary, which are the last classes there.
        shift: How original detections change by the joint guide alone, with the suppression that a bundle has; None if
            it was not measured.
        predicted: How they change in ultralytics' `predict` at its defaults; None likewise.
    """

    names: tuple[str, ...]
    n_original: int
    shift: Shift | None
    predicted: Shift | None
    n_background: int = 0


def bake(run: str | Path, out: str | Path, *, images: Places | None = None, device: str = "cpu") -> Baked:
    """Writes the detector of a run as an ultralytics checkpoint that has all classes set and needs no text tower.

    ultralytics has one threshold for all classes, no calibration, no box offsets, and one embedding per class. If a
    learned class has the name of an original one, " (learned)" is appended to its name. Background rows are classes
    there like any other: they come last, with the text that was encoded as their name, and a log line says how to hide
    them.

    Args:
        run: A run folder of `fit`.
        out: The `.pt` file to write.
        images: An image, a folder or a glob pattern, or several of them, on which to measure how original detections
            change; or None. What ultralytics' `predict` loses shows only on images with learned objects.
        device: A torch device for measuring; see `torch_device`.

    Raises:
        RunError: `out` is not a .pt file or cannot be written, or the run is incomplete.
        VocabularyError: A class has several prompts.
        ModelError: The run's detector cannot be used.
        DataError: No image can be read.
    """
    out = Path(out)
    if out.suffix.lower() != SUFFIX:
        raise RunError(f"An ultralytics checkpoint is a {SUFFIX} file. Received: {out.name}.")
    config, world, original, learned = load_run(Path(run), device=torch_device(device))
    hidden = original.is_background
    originals = single_prompts(original, out)
    rows = np.concatenate([originals[~hidden], single_prompts(learned, out), originals[hidden]])  # (n, 512)
    taken = set(original.class_names)
    names = original.class_names + tuple(f"{name} (learned)" if name in taken else name for name in learned.names)
    if original.background:
        logger.info(
            "ultralytics hides no class: background rows come last in %s. Predict with classes=range(%d).",
            out,
            len(names),
        )
    names += tuple(text for _, text in original.background)
    if learned.calibration is not None:
        logger.info("%s cannot hold the calibration: learned scores there are not calibrated.", out)
    if learned.nms_iou is not None:
        logger.info("%s cannot hold limits of overlap: predict with iou=%g.", out, learned.nms_iou.min())
    if learned.box_offsets is not None:
        logger.info("%s cannot hold box offsets: learned boxes there are the detector's, as with --boxes frozen.", out)
    if learned.guide_mode == "own":
        logger.info("The learned classes were trained as their own guide: in %s their scores change too.", out)
    n_original, n_background, image_size = len(original.class_names), int(hidden.sum()), config["image_size"]
    options: dict[str, Any] = {"image_size": image_size, "n_background": n_background}
    shift = predicted = None
    if images is not None:
        shift = measure_shift(world, torch.tensor(rows), n_original, images, **options)
        predicted = measure_predict(world, names, torch.tensor(rows), n_original, images, **options)
    save_checkpoint(world, names, torch.tensor(rows), out, image_size=image_size)
    return Baked(names, n_original, shift, predicted, n_background)


def save_checkpoint(world: World, names: tuple[str, ...], rows: Tensor, out: Path, *, image_size: int) -> None:
    """Writes a detector with the given classes as an ultralytics checkpoint. Equal arguments give equal bytes.

    Args:
        world: The detector.
        names: n class names.
        rows: (n, 512) float32, unit rows: both guide and classes.
        out: The file to write.
        image_size: The size in pixels that ultralytics uses by default.

    Raises:
        RunError: The file cannot be written.
    """
    model: Any = copy.deepcopy(world.model).cpu()
    model.txt_feats = rows[None].cpu().clone()  # (1, n, 512); not a buffer
    model.names = dict(enumerate(names))
    model.model[-1].nc = len(names)  # the head splits its output by this; its width comes from the YAML's `nc`
    model.clip_model = None
    model.pt_path = out.name
    checkpoint = {
        "epoch": -1,
        "model": model,
        "ema": None,
        "optimizer": None,
        "train_args": {"task": "detect", "imgsz": image_size},
        "version": ultralytics.quiet_import("ultralytics").__version__,
    }
    with saving(out, RunError) as path, path.open("wb") as file:  # given a path, torch would store its name in the file
        torch.save(checkpoint, file)


@torch.no_grad()
def measure_shift(
    world: World, rows: Tensor, n_original: int, images: Places, *, image_size: int, n_background: int = 0
) -> Shift:
    """Measures how original detections change when all classes guide the neck, as in ultralytics.

    Every box may have several classes here, as in a bundle, so this is the effect of the guide alone.

    Args:
        world: The detector.
        rows: (n, 512) float32, unit rows; the first `n_original` are the original classes, the last `n_background` the
            background rows that guide with them.
        n_original: The number of original classes.
        images: See `bake`.
        image_size: Side in pixels of the square to which images are letterboxed.
        n_background: The number of background rows, which are not counted.

    Raises:
        DataError: No image can be read.
    """
    rows = rows.to(world.device)
    weight, bias = world.fold(rows[:n_original])
    alone = torch.cat([rows[:n_original], rows[len(rows) - n_background :]])

    def both(image: Picture) -> tuple[Detections, Detections]:
        pixels = torch.tensor(letterbox(image, image_size)[0], device=world.device)  # (h, w, 3)
        network_input = pixels.permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)
        return (
            _detect(world, network_input, alone, weight, bias),
            _detect(world, network_input, rows, weight, bias),
        )

    return replace(_compare(images, both, n_original, n_original), learned=None)


def measure_predict(
    world: World,
    names: tuple[str, ...],
    rows: Tensor,
    n_original: int,
    images: Places,
    *,
    image_size: int,
    n_background: int = 0,
) -> Shift:
    """Measures how original detections change in ultralytics' own `predict` at its defaults.

    Two checkpoints are compared, one with the original classes and one with all. `predict` keeps only the best class of
    a box, so it loses original detections where a learned class scores higher.

    Args:
        world: The detector.
        names: n class names.
        rows: See `measure_shift`.
        n_original: The number of original classes.
        images: See `bake`.
        image_size: The size in pixels that the checkpoints ask for.
        n_background: See `measure_shift`.

    Raises:
        DataError: No image can be read.
    """
    with tempfile.TemporaryDirectory(prefix="prompt-tune-bake-") as folder:
        predictors = []
        n_classes = len(names) - n_background
        for name, count in (("original.pt", n_original), ("all.pt", n_classes)):
            chosen = [*range(count), *range(n_classes, len(names))]
            texts = tuple(names[row] for row in chosen)
            save_checkpoint(world, texts, rows[chosen], Path(folder) / name, image_size=image_size)
            predictors.append(ultralytics.Predictor(Path(folder) / name, device=str(world.device)))
        alone, together = predictors
        return _compare(images, lambda image: (alone(image.pixels), together(image.pixels)), n_original, n_classes)


def _compare(
    images: Places, both: Callable[[Picture], tuple[Detections, Detections]], n_original: int, n_classes: int
) -> Shift:
    """The difference between two ways of detecting, summed over images.

    Args:
        images: See `bake`.
        both: Gives the detections of an image, with the original classes and with all.
        n_original: The number of original classes, whose ids come first.
        n_classes: The number of all classes. Rows with higher ids are background rows, which are not counted.

    Raises:
        DataError: No image can be read.
    """
    counts, changes, skipped = np.zeros(4, np.int64), [np.zeros(0)], []  # before, lost, gained, learned
    paths = find_images(images)
    for path in paths:
        try:
            image = read_picture(path)
        except DataError as error:
            skipped.append(str(error))
            continue
        before, found = both(image)
        before, found = before.select(before.class_ids < n_original), found.select(found.class_ids < n_classes)
        after = found.select(found.class_ids < n_original)
        moved = _matched_changes(before, after)
        counts += (len(before), len(before) - len(moved), len(after) - len(moved), len(found) - len(after))
        changes.append(moved)
    if len(skipped) == len(paths):
        place = "`, `".join(map(str, as_places(images)))
        raise DataError(f"None of the {len(paths)} images of `{place}` can be read. The first: {skipped[0]}")
    change = np.concatenate(changes)
    before_count, lost, gained, learned = (int(count) for count in counts)
    return Shift(
        images=len(paths) - len(skipped),
        skipped=tuple(skipped),
        before=before_count,
        lost=lost,
        gained=gained,
        largest=float(change.max(initial=0)),
        mean=float(change.mean()) if len(change) else 0.0,
        learned=learned,
    )


def _detect(world: World, image: Tensor, guide: Tensor, weight: Tensor, bias: Tensor) -> Detections:
    """The detections of one image with a guide, in pixels of the network's input."""
    head, boxes_xyxy = world.features(image, guide)
    level = world.anchors(*image.shape[2:])[2]
    scores = world.logits(head, level, weight, bias).sigmoid()  # (1, A, n_original)
    return find(boxes_xyxy[0].cpu(), scores[0].cpu(), conf=DEFAULT_THRESHOLD)


def _matched_changes(before: Detections, after: Detections) -> np.ndarray:
    """How much the scores of detections in both sets differ, each matched once: (m,) float64."""
    same = before.class_ids[:, None] == after.class_ids  # (n, k)
    overlap = np.where(same, box_iou(before.boxes_xyxy, after.boxes_xyxy), -1.0)
    partner = match(overlap, before.scores, np.array([SAME_BOX_IOU]))[:, 0]  # (n,)
    both = partner >= 0
    return np.abs(after.scores[partner[both]].astype(np.float64) - before.scores[both])
