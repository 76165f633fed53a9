"""Fills the region cache: the detector runs once over every image and view, and what training needs of each is kept."""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prompt_tune.config import RegionBudget
from prompt_tune.datasets.samples import Sample
from prompt_tune.errors import DataError, ModelError, RunError
from prompt_tune.files import replacing
from prompt_tune.models.world import World, level_logits
from prompt_tune.runtime.images import Picture, letterbox, read_picture, read_rgb
from prompt_tune.tuning.regions import (
    BACKBONE,
    CHECKSUM,
    FORMAT_VERSION,
    LABEL_PARTS,
    REGION_PARTS,
    RegionCache,
    checksum,
    read_parts,
)
from prompt_tune.tuning.transfers import Uploads, beside, mark
from prompt_tune.tuning.views import View, choose_anchors, make_view
from prompt_tune.wording import counted

FORWARD_BATCH = 4  # images in every pass of the detector: the last bits of a result may depend on the batch size
READ_AHEAD = 2  # batches that are decoded while the detector runs, and one more for each worker beyond the first
MOST_WORKERS = 16  # threads that decode, and as many that choose anchors and write, if the detector is on a GPU
NAMED = 3  # damaged files that a line names
logger = logging.getLogger(__name__)


@torch.no_grad()
def cache_regions(
    world: World,
    guide: Tensor | None,
    samples: Sequence[Sample],
    folder: Path,
    *,
    image_size: int,
    views: int = 1,
    budget: RegionBudget | None = None,
    seed: int = 0,
) -> Generator[RegionCache, None, None]:
    """Run the detector once over images, and keep what training needs of each.

    This is a generator, so that the caller can show progress and stop.

    Args:
        world: The frozen detector.
        guide: (n_guide, 512) float32, what steers the neck. None keeps the outputs of the backbone, for a guide that is
            still being learned.
        samples: The images.
        folder: Where the files go. Files that are there and whole are not computed again.
        image_size: Side of the square network input in pixels.
        views: 1 is the image itself; each further view is an augmented copy.
        budget: How many anchors are kept; None keeps all.
        seed: Seed of views and random anchors.

    Yields:
        The growing cache after every batch of images; the last one is complete. Damaged images are left out and named.

    Raises:
        DataError: No image could be read.
        RunError: The folder cannot be written.
        ModelError: The detector gives numbers that are not finite.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The cache folder {folder} cannot be made: {error.strerror}. Give another --cache.") from error
    key = _run_key(world, guide, image_size, budget, seed)
    cache, weights = RegionCache(), None if guide is None else world.fold(guide)
    damaged: list[Path] = []
    uploads = Uploads(world.device)
    workers = n_workers(world)
    jobs = deque(range(len(samples))[i : i + FORWARD_BATCH] for i in range(0, len(samples), FORWARD_BATCH))
    ahead: deque[Future[tuple[list[list[_Item]], list[int], list[str]]]] = deque()
    writing: deque[Future[None]] = deque()
    # some threads decode the next images while the detector works on these, and others finish the last ones
    with ThreadPoolExecutor(workers, "decode") as readers, ThreadPoolExecutor(workers, "write") as writers:
        while jobs or ahead:
            while jobs and len(ahead) < READ_AHEAD + workers - 1:
                ahead.append(readers.submit(_read_batch, samples, jobs.popleft(), key, folder, image_size, views, seed))
            loaded, kept, skipped = ahead.popleft().result()
            cache.kept.extend(kept)
            cache.skipped.extend(skipped)
            cache.files.extend([item.file for item in items] for items in loaded)
            missing = [item for items in loaded for item in items if item.view is not None]
            damaged.extend(item.file for item in missing if item.was_damaged)
            for first in range(0, len(missing), FORWARD_BATCH):
                finishing = _compute(world, guide, weights, missing[first : first + FORWARD_BATCH], budget, uploads)
                writing.extend(writers.submit(finish) for finish in finishing)
                while len(writing) > FORWARD_BATCH * workers:  # their features wait in memory
                    writing.popleft().result()
            if not jobs and not ahead:
                while writing:
                    writing.popleft().result()
            yield cache
    if damaged:
        logger.warning(
            "%s of the region cache %s damaged, and computed again: %s",
            counted(len(damaged), "file"),
            "was" if len(damaged) == 1 else "were",
            ", ".join(map(str, damaged[:NAMED])) + (", ..." if len(damaged) > NAMED else ""),
        )
    if not cache.files:
        reason = cache.skipped[0] if cache.skipped else "There is none."
        raise DataError(f"None of the {len(samples)} images can be used. The first: {reason}")


@dataclass(eq=False)
class _Item:
    """An image and view on its way into the cache; `view` is None if the file exists already."""

    file: Path
    view: View | None
    seed: int
    was_damaged: bool = False


def _run_key(world: World, guide: Tensor | None, image_size: int, budget: RegionBudget | None, seed: int) -> bytes:
    """Everything that all files of a run depend on, as bytes."""
    fields = {
        "version": FORMAT_VERSION,
        "detector": world.digest,
        "guide": None if guide is None else hashlib.sha256(guide.cpu().contiguous().numpy().tobytes()).hexdigest(),
        "image_size": image_size,
        "budget": asdict(budget) if budget else None,
        "seed": seed,
        "computed_by": f"torch {torch.__version__} on {world.device.type}",  # others may differ in the last bits
    }
    return json.dumps(fields, sort_keys=True).encode()


def _read_batch(
    samples: Sequence[Sample], job: Sequence[int], run_key: bytes, folder: Path, image_size: int, views: int, seed: int
) -> tuple[list[list[_Item]], list[int], list[str]]:
    """Decode the images of a batch that are not cached yet.

    Returns:
        The items of each image that can be read, its place in `samples`, and a line for each image that was skipped.
    """
    loaded, kept, skipped = [], [], []
    photo = _Photo(Path(), b"")
    for place in job:
        sample = samples[place]
        try:
            if sample.window is None or sample.path != photo.path:
                photo = _Photo(sample.path, hashlib.sha256(sample.path.read_bytes()).digest())
            items, picture = [], None
            for k in range(views):
                of_view = photo.content + k.to_bytes(4, "little") + _window_key(sample)
                labels = (sample.labels.boxes_xyxy, sample.labels.classes, sample.labels.ignore)
                key = hashlib.sha256(run_key + of_view + b"".join(part.tobytes() for part in labels)).hexdigest()
                chance = hashlib.sha256(of_view + str(seed).encode()).digest()[:6]
                item = _Item(folder / f"{key[:40]}.safetensors", None, int.from_bytes(chance, "little"))
                item.was_damaged = item.file.exists() and not _is_whole(item.file)
                if item.was_damaged or not item.file.exists():
                    picture = picture or letterbox(photo.pixels(sample), image_size)
                    item.view = make_view(picture, sample, k, np.random.default_rng(item.seed))
                items.append(item)
            loaded.append(items)
            kept.append(place)
        except DataError as error:
            skipped.append(str(error))
        except OSError as error:
            skipped.append(f"`{sample.path}` cannot be read: {error.strerror}.")
    return loaded, kept, skipped


@dataclass(eq=False)
class _Photo:
    """A file of which several windows may be wanted in a row: it is decoded once for them."""

    path: Path
    content: bytes
    rgb: np.ndarray | None = None

    def pixels(self, sample: Sample) -> Picture | np.ndarray:
        """The pixels of a sample of this file; those of a window are read as `detect_sliced` reads them."""
        if sample.window is None:
            return read_picture(self.path)
        if self.rgb is None:
            self.rgb = read_rgb(self.path)
        left, top, right, bottom = sample.window
        return self.rgb[top:bottom, left:right]


def _window_key(sample: Sample) -> bytes:
    """What tells the windows of a photo from each other, and from the photo of a fit without windows, as bytes."""
    return b"" if sample.window is None else f"window {sample.window}".encode()


def _is_whole(file: Path) -> bool:
    """Whether a cached file has the bits that were written, and all of its parts."""
    try:
        found = set(read_parts(file))
    except (ValueError, OSError):
        return False
    rest = found - LABEL_PARTS
    return found >= LABEL_PARTS and (
        rest == REGION_PARTS or (bool(rest) and all(name.startswith(BACKBONE) for name in rest))
    )


def n_workers(world: World) -> int:
    """Threads that decode for a detector, and that write what it gives: one on the CPU, which it keeps busy itself."""
    return 1 if world.device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)


def _compute(
    world: World,
    guide: Tensor | None,
    weights: tuple[Tensor, Tensor] | None,
    items: list[_Item],
    budget: RegionBudget | None,
    uploads: Uploads,
) -> list[Callable[[], None]]:
    """Run the detector once over a few views.

    Returns:
        For each view a function that chooses its anchors and writes its file; any thread may call it.
    """
    views = [item.view for item in items if item.view is not None]
    batch = np.zeros((FORWARD_BATCH, *views[0].image.shape), np.uint8)  # always full, also if fewer images are missing
    for place, view, item in zip(batch, views, items, strict=False):
        place[:] = view.image
        item.view = replace(view, image=view.image[:0])  # only its labels are still needed
    images = uploads.copy(torch.from_numpy(batch)).permute(0, 3, 1, 2).float() / 255  # (b, 3, size, size)
    if guide is None or weights is None:
        outputs = {f"{BACKBONE}{i}": output for i, output in world.backbone(images).items()}
        rows = [{name: output[i] for name, output in outputs.items()} for i in range(len(items))]
        done = mark(world.device)
        return [partial(_write, world, item, row, done) for item, row in zip(items, rows, strict=True)]
    head, boxes = world.features(images, guide)
    points, _, level = world.anchors(*images.shape[2:])
    done = mark(world.device)
    ends, points = level.bincount().cumsum(0).tolist(), points.cpu()
    return [
        partial(_choose_and_write, world, item, head[i], boxes[i], points, ends, weights, budget, done)
        for i, item in enumerate(items)
    ]


@torch.no_grad()
def _choose_and_write(
    world: World,
    item: _Item,
    head: Tensor,
    boxes: Tensor,
    points: Tensor,
    ends: list[int],
    weights: tuple[Tensor, Tensor],
    budget: RegionBudget | None,
    done: "torch.cuda.Event | None",
) -> None:
    """Write head features (A, c3) and boxes (A, 4) of the anchors of a view that are kept."""
    with beside(done, head, boxes, *weights):
        keep = torch.arange(len(points))
        if budget is not None and item.view is not None:
            scores = level_logits(head, ends, *weights).amax(1).cpu()  # (A,)
            labels = item.view.labels
            objects = torch.from_numpy(labels.boxes_xyxy[~labels.ignore])  # (n, 4)
            generator = torch.Generator().manual_seed(item.seed)
            keep = choose_anchors(points, boxes.cpu(), scores, objects, budget, generator)
        at = keep.to(head.device)
        row = {"head": head[at], "boxes_xyxy": boxes[at]}
        parts = _of_host(row)
    _save(world, item, parts | {"anchor": keep.int()})


def _write(world: World, item: _Item, row: dict[str, Tensor], done: "torch.cuda.Event | None") -> None:
    """Write what the backbone gives for a view."""
    with beside(done, *row.values()):
        parts = _of_host(row)
    _save(world, item, parts)


def _of_host(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the types of the file, on the CPU: the boxes are float32, the rest float16."""
    return {name: (part if name == "boxes_xyxy" else part.half()).cpu().contiguous() for name, part in row.items()}


def _save(world: World, item: _Item, parts: dict[str, Tensor]) -> None:
    """Write the file of a view: what the detector gives, and the labels."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    view = item.view
    if view is None:
        return
    if not all(bool(part.isfinite().all()) for part in parts.values()):
        raise ModelError(
            f"The detector '{world.source_name}' gives numbers that are not finite, or too large for float16. "
            "Its weights are damaged: give another file."
        )
    parts = parts | {
        "label_boxes": torch.from_numpy(view.labels.boxes_xyxy),
        "label_classes": torch.from_numpy(view.labels.classes),
        "label_ignore": torch.from_numpy(view.labels.ignore).to(torch.uint8),
        "frame_xyxy": torch.from_numpy(view.frame_xyxy),
    }
    try:
        with replacing(item.file) as path:
            save_file(parts | {CHECKSUM: torch.tensor([checksum(parts)])}, path)
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"The region cache {item.file.parent} cannot be written: {error}. Make room, or give another --cache."
        ) from error
    item.view = None
