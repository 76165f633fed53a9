"""The region cache: head features and boxes of images, computed once, since neither depends on the prompts.

One file an image and view, keyed by everything it depends on, so a cache may be shared between runs, continues where it
was stopped, and never gives a stale answer. Read an image at a time: memory does not grow with the number of images.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prompt_tune.datasets import Sample
from prompt_tune.errors import DataError
from prompt_tune.files import replacing
from prompt_tune.images import letterbox, read_rgb
from prompt_tune.views import View, make_view
from prompt_tune.world import World

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of the files and of the preprocessing; another number makes every old file a miss
SMALLEST_BOX = 16.0  # px: the assigner widens smaller boxes to this, so anchors in the widened box are kept as well
FORWARD_BATCH = 8  # images in one pass of the detector


@dataclass(frozen=True)
class RegionBudget:
    """Anchors kept of a training image. Together they give the AP of all anchors; without the last two kinds, false
    alarms double."""

    in_box: int = 600  # in an object's box, the best by overlap where an object fills the picture
    top: int = 50  # with the highest original scores: what looks like an object and is none of ours
    random: int = 64  # plain background


@dataclass(frozen=True, eq=False)
class Regions:
    """Cached anchors of one image and view, in pixels of the network's input.

    head: (r, c3) float32. boxes_xyxy: (r, 4) float32. anchor: (r,) int64, place in `World.anchors`. labels: the image's
    own boxes_xyxy (n, 4) float32, classes (n,) int64 and ignore (n,) bool.
    """

    head: Tensor
    boxes_xyxy: Tensor
    anchor: Tensor
    label_boxes: Tensor
    label_classes: Tensor
    label_ignore: Tensor


@dataclass(frozen=True, eq=False)
class RegionCache:
    """Cached images of a split. `files[i]` lists the files of image i, one a view; `skipped` names damaged images."""

    files: list[list[Path]]
    skipped: list[str] = field(default_factory=list)

    def load(self, image: int, view: int = 0) -> Regions:
        """The regions of an image in a view."""
        from safetensors.torch import load_file

        parts = load_file(self.files[image][view])
        return Regions(
            head=parts["head"].float(),
            boxes_xyxy=parts["boxes_xyxy"],
            anchor=parts["anchor"].long(),
            label_boxes=parts["label_boxes"],
            label_classes=parts["label_classes"],
            label_ignore=parts["label_ignore"].bool(),
        )


@torch.no_grad()
def cache_regions(
    world: World,
    guide: Tensor,
    samples: Sequence[Sample],
    folder: Path,
    *,
    image_size: int,
    views: int = 1,
    budget: RegionBudget | None = None,
    seed: int = 0,
) -> Iterator[RegionCache]:
    """Run the detector once over images and keep what the training needs of each.

    A generator, so that the caller shows progress and may stop: it yields the growing cache after every batch of images,
    the last time complete.

    Args:    world: the frozen detector. guide: (n_guide, 512) float32, what steers the neck. samples: the images.
             folder: of the files; those that are there and valid are not computed again. image_size: side of the square
             network input in pixels. views: 1 is the image as it is; each further one is an augmented copy. budget: None
             keeps all anchors. seed: of views and random anchors.
    Returns: (yields) files by image; damaged images are left out and named.
    Raises:  DataError: no image could be read.
    """
    base = hashlib.sha256(
        json.dumps(
            {
                "version": FORMAT_VERSION,
                "detector": world.digest,
                "guide": hashlib.sha256(guide.cpu().numpy().tobytes()).hexdigest(),
                "image_size": image_size,
                "budget": asdict(budget) if budget else None,
                "seed": seed,
            },
            sort_keys=True,
        ).encode()
    )
    folder.mkdir(parents=True, exist_ok=True)
    cache = RegionCache(files=[])
    weight, bias = world.fold(guide)
    jobs = [samples[i : i + FORWARD_BATCH] for i in range(0, len(samples), FORWARD_BATCH)]
    with ThreadPoolExecutor(1) as reader:  # decodes the next images while the detector works on these
        reads = [reader.submit(_read_batch, job, base, folder, image_size, views, seed) for job in jobs[:2]]
        for k in range(len(jobs)):
            if k + 2 < len(jobs):
                reads.append(reader.submit(_read_batch, jobs[k + 2], base, folder, image_size, views, seed))
            loaded, skipped = reads[k].result()
            reads[k] = reads[k - 1] if k else reads[k]  # drop the pixels
            cache.skipped.extend(skipped)
            cache.files.extend([item.file for item in items] for items in loaded)
            missing = [item for items in loaded for item in items if item.view is not None]
            for first in range(0, len(missing), FORWARD_BATCH):
                _compute(world, guide, weight, bias, missing[first : first + FORWARD_BATCH], budget)
            yield cache
    if not cache.files:
        raise DataError(
            f"None of the {len(samples)} images can be read; the first is {samples[0].path}. Check the files."
        )


@dataclass(eq=False)
class _Item:
    """An image and view on its way into the cache; `view` is None when the file is there already."""

    file: Path
    view: View | None
    seed: int


def _read_batch(
    job: Sequence[Sample], base: "hashlib._Hash", folder: Path, image_size: int, views: int, seed: int
) -> tuple[list[list[_Item]], list[str]]:
    """Decode the images of a batch that are not cached yet."""
    loaded, skipped = [], []
    for sample in job:
        try:
            content = sample.path.read_bytes()
            items, picture = [], None
            for k in range(views):
                key = base.copy()
                key.update(hashlib.sha256(content).digest() + k.to_bytes(4, "little"))
                for labels in (sample.boxes_xyxy, sample.classes, sample.ignore):
                    key.update(np.ascontiguousarray(labels).tobytes())
                file = folder / f"{key.hexdigest()[:40]}.safetensors"
                item = _Item(file, None, int.from_bytes(key.digest()[:6], "little"))
                if not file.is_file():
                    if picture is None:
                        picture = letterbox(read_rgb(sample.path), image_size)
                    item.view = make_view(picture, sample, k, np.random.default_rng([seed, item.seed]))
                items.append(item)
            loaded.append(items)
        except (DataError, OSError) as error:
            skipped.append(f"{sample.path}: {error}")
    return loaded, skipped


def _compute(
    world: World, guide: Tensor, weight: Tensor, bias: Tensor, items: list[_Item], budget: RegionBudget | None
) -> None:
    """One pass of the detector over a few views, and their files."""
    from safetensors.torch import save_file

    views = [item.view for item in items if item.view is not None]
    images = torch.from_numpy(np.stack([view.image for view in views])).to(world.device)
    images = images.permute(0, 3, 1, 2).float() / 255  # (b, 3, size, size)
    head, boxes = world.features(images, guide)
    points, _, level = world.anchors(*images.shape[2:])
    scores = world.logits(head, level, weight, bias).amax(2) if budget else None  # (b, A)
    for i, (item, view) in enumerate(zip(items, views, strict=True)):
        label_boxes = torch.from_numpy(view.boxes_xyxy)
        keep = torch.arange(head.shape[1])
        if budget is not None and scores is not None:
            generator = torch.Generator().manual_seed(item.seed)
            keep = _choose(points.cpu(), boxes[i].cpu(), scores[i].cpu(), label_boxes, budget, generator)
        parts = {
            "head": head[i].cpu()[keep].half(),
            "boxes_xyxy": boxes[i].cpu()[keep].contiguous(),
            "anchor": keep.int(),
            "label_boxes": label_boxes,
            "label_classes": torch.from_numpy(view.classes),
            "label_ignore": torch.from_numpy(view.ignore).to(torch.uint8),
        }
        with replacing(item.file) as path:
            save_file(parts, path)
        item.view = None


def _choose(
    points: Tensor, boxes: Tensor, scores: Tensor, label_boxes: Tensor, budget: RegionBudget, generator: torch.Generator
) -> Tensor:
    """(r,) int64, rising: the anchors of a training image that are kept.

    Args: points (A, 2), boxes (A, 4), scores (A,) the highest original logit of each, label_boxes (n, 4); all in pixels of
          the network's input.
    """
    from torchvision.ops import box_iou

    kept = torch.zeros(len(points), dtype=torch.bool)
    if len(label_boxes):
        centre, half = (label_boxes[:, :2] + label_boxes[:, 2:]) / 2, (label_boxes[:, 2:] - label_boxes[:, :2]) / 2
        half = half.clamp(min=SMALLEST_BOX / 2)
        inside = ((points[:, None] - centre).abs() < half).all(2)  # (A, n)
        overlap = box_iou(boxes, label_boxes).masked_fill(~inside, -1).amax(1)  # (A,)
        candidates = inside.any(1).nonzero().flatten()
        if len(candidates) > budget.in_box:
            candidates = candidates[overlap[candidates].topk(budget.in_box).indices]
        kept[candidates] = True
    kept[scores.topk(min(budget.top, len(scores))).indices] = True
    others = (~kept).nonzero().flatten()
    kept[others[torch.randperm(len(others), generator=generator)[: budget.random]]] = True
    return kept.nonzero().flatten()
