"""The region cache: head features and boxes of images, computed once, because neither depends on the prompts.

There is one file for each image and view. Its name is a digest of everything that it depends on, so runs can share a
cache, a stopped run continues, and nothing stale is ever read. Images are loaded one by one: memory does not grow with
their number.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prompt_tune.datasets.samples import Labels
from prompt_tune.errors import RunError
from prompt_tune.runtime.detections import Detections
from prompt_tune.tuning.photos import Photos

FORMAT_VERSION = 3  # of the files, and of views and preprocessing: another number makes every old file a miss
# tensors of a file: labels, and either regions or the inputs of the neck, one for each layer
LABEL_PARTS = {"label_boxes", "label_classes", "label_ignore", "frame_xyxy"}
CHECKSUM = "checksum"  # (1,) int64, CRC-32 of the other tensors
REGION_PARTS = {"head", "boxes_xyxy", "anchor"}
BACKBONE = "backbone."


@dataclass(frozen=True, eq=False)
class Regions:
    """Cached anchors of one image and view, in pixels of the network's input.

    Attributes:
        head: (r, c3) float32, head features.
        boxes_xyxy: (r, 4) float32.
        anchor: (r,) int64, rising, the place of each in `World.anchors`.
        labels: The labels of the view.
        frame_xyxy: (4,) float32, where the photo lies in the input; around it is grey.
    """

    head: Tensor
    boxes_xyxy: Tensor
    anchor: Tensor
    labels: Labels
    frame_xyxy: np.ndarray


@dataclass(frozen=True, eq=False)
class RegionCache:
    """The cached images of a split.

    Attributes:
        files: The files of each image, one per view.
        kept: The place of each image, without the replayed ones, in the samples that `cache_regions` was given.
        skipped: A line for each damaged image, which has no files.
        n_replay: The number of replayed images; they come last.
        photos: What the images are windows of; None if they are whole photos.
    """

    files: list[list[Path]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    n_replay: int = 0
    photos: Photos | None = None

    def with_replay(self, replayed: "RegionCache") -> "RegionCache":
        """These images, and replayed ones behind them."""
        photos = self.photos
        if photos is not None and replayed.photos is not None:
            photos = replace(photos, windows=photos.windows + replayed.photos.windows)
        return RegionCache(
            self.files + replayed.files, self.kept, self.skipped + replayed.skipped, len(replayed.files), photos
        )

    @property
    def wholes(self) -> list[int]:
        """The images that are whole photos, without the replayed ones."""
        n_labelled = len(self.files) - self.n_replay
        return list(range(n_labelled)) if self.photos is None else [i for i in self.photos.wholes if i < n_labelled]

    def images_of(self, photos: Sequence[int]) -> list[int]:
        """The images of some photos, by their number in `wholes`."""
        return list(photos) if self.photos is None else self.photos.images_of(photos)

    def labels_seen(self, labels: Sequence[Labels], images: Sequence[int] | None = None) -> list[Labels]:
        """The labels of photos. Those of images that are windows become those of their photo, in original pixels.

        Args:
            labels: Those of the images.
            images: All images of some photos; None is the first ones.
        """
        if self.photos is None:
            return list(labels)
        return self.photos.labels(labels, range(len(labels)) if images is None else images)

    def seen(
        self,
        found: Sequence[Detections],
        nms_iou: np.ndarray | None = None,
        thresholds: np.ndarray | None = None,
        images: Sequence[int] | None = None,
    ) -> list[Detections]:
        """The detections in photos as the user sees them. Those in windows are merged, in original pixels.

        Args:
            found: Those in the images, in pixels of the network's input.
            nms_iou: (n_cls,) an overlap above which a further suppression drops a box; None is none.
            thresholds: (n_cls,) scores above which no box gives way to one below, where windows are merged.
            images: All images of some photos; None is the first ones.
        """
        found = list(found) if nms_iou is None else [part.distinct(nms_iou) for part in found]
        if self.photos is None:
            return found
        return self.photos.merged(found, range(len(found)) if images is None else images, nms_iou, thresholds)

    def load(self, image: int, view: int = 0) -> Regions:
        """The regions of an image in a view.

        Raises:
            RunError: The file is gone or damaged.
        """
        parts = self._read(image, view)
        return _regions(parts, parts["head"].float(), parts["boxes_xyxy"], parts["anchor"].long())

    def load_backbone(self, image: int, view: int = 0) -> tuple[dict[int, Tensor], Regions]:
        """The inputs of `World.neck` for an image in a view, from a cache that was made without a guide.

        Returns:
            (1, channels, h, w) float32 for each layer, and the labels of the image, in regions without anchors.

        Raises:
            RunError: The file is gone or damaged.
        """
        parts = self._read(image, view)
        layers = {int(name[len(BACKBONE) :]): part.float()[None] for name, part in parts.items() if BACKBONE in name}
        return layers, _regions(parts, torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))

    def has_object(self, image: int) -> bool:
        """Whether an image has a box that is not ignored.

        Raises:
            RunError: The file is gone or damaged.
        """
        return bool((self._read(image, 0)["label_ignore"] == 0).any())

    def frame_xyxy(self, image: int) -> np.ndarray:
        """Where the photo of an image lies in the network's input, in its first view: (4,) float32.

        Raises:
            RunError: The file is gone or damaged.
        """
        frame: np.ndarray = self._read(image, 0)["frame_xyxy"].numpy()
        return frame

    def _read(self, image: int, view: int) -> dict[str, Tensor]:
        """The tensors of a file."""
        file = self.files[image][view]
        try:
            return read_parts(file)
        except (ValueError, OSError) as error:
            raise RunError(
                f"The cached regions {file} are damaged or gone ({error}). Run again to compute them again."
            ) from error


def _regions(parts: dict[str, Tensor], head: Tensor, boxes_xyxy: Tensor, anchor: Tensor) -> Regions:
    """Regions with the labels of a file."""
    return Regions(
        head=head,
        boxes_xyxy=boxes_xyxy,
        anchor=anchor,
        labels=Labels(
            parts["label_boxes"].numpy(), parts["label_classes"].numpy(), parts["label_ignore"].bool().numpy()
        ),
        frame_xyxy=parts["frame_xyxy"].numpy(),
    )


def read_parts(file: Path) -> dict[str, Tensor]:
    """The tensors of a cached file, with the bits that were written.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        parts = load_file(file)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    written = parts.pop(CHECKSUM, None)
    if written is None or written.tolist() != [checksum(parts)]:
        raise ValueError("its content is not what was written")
    return parts


def checksum(parts: dict[str, Tensor]) -> int:
    """CRC-32 of names, shapes, types and contents."""
    value = 0
    for name in sorted(parts):
        part = parts[name]
        value = zlib.crc32(f"{name} {tuple(part.shape)} {part.dtype}\n".encode(), value)
        value = zlib.crc32(part.contiguous().numpy().tobytes(), value)
    return value
