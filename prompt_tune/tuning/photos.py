"""Photos and their windows in the region cache: what was found in windows becomes what `detect --slice` gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from prompt_tune.contract import UNLIMITED
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.images import Letterbox
from prompt_tune.runtime.slices import Window, merge_limits, merged_classes


@dataclass(frozen=True, eq=False)
class Photos:
    """The windows that are cached, photo after photo, each whole photo before its slices.

    Attributes:
        windows: One for each image of the cache.
        image_size: Side of the square network input in pixels.
    """

    windows: tuple[Sample, ...]
    image_size: int

    @cached_property
    def wholes(self) -> list[int]:
        """The images that are whole photos."""
        return [i for i, window in enumerate(self.windows) if window.part == 0]

    @cached_property
    def _ranges(self) -> list[range]:
        """The images of each photo."""
        return [range(*ends) for ends in zip(self.wholes, [*self.wholes[1:], len(self.windows)], strict=True)]

    def images_of(self, photos: Sequence[int]) -> list[int]:
        """The images of some photos."""
        return [i for photo in photos for i in self._ranges[photo]]

    def labels(self, labels: Sequence[Labels], images: Sequence[int]) -> list[Labels]:
        """The labels of whole photos, in original pixels.

        Args:
            labels: Those of the images, in pixels of the network's input. A class without any of them in the whole
                photo is left out.
            images: All images of some photos.
        """
        return [
            _of_classes(self.windows[i].labels, own.classes)
            for i, own in zip(images, labels, strict=True)
            if self.windows[i].part == 0
        ]

    def merged(
        self,
        found: Sequence[Detections],
        images: Sequence[int],
        nms_iou: np.ndarray | None = None,
        thresholds: np.ndarray | None = None,
    ) -> list[Detections]:
        """The detections in photos, in original pixels, each object once.

        Args:
            found: Those in the images, in pixels of the network's input.
            images: All images of some photos.
            nms_iou: (n_cls,) the limit of each class within a window, which `found` have been suppressed by. None is 1.
            thresholds: (n_cls,) see `merged_classes`. None is 0.
        """
        photos: list[list[tuple[Window, Detections]]] = []
        for i, part in zip(images, found, strict=True):
            window = self.windows[i]
            placed = Letterbox.of(window.size_wh, (self.image_size, self.image_size))
            boxes_xyxy = placed.to_original(part.boxes_xyxy)
            inside = np.flatnonzero((boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1))  # not in the grey border
            moved = replace(part, boxes_xyxy=boxes_xyxy, size_wh=window.size_wh).select(inside)
            if window.part == 0:
                photos.append([])
            photos[-1].append((window.window or (0, 0, *window.size_wh), moved))
        n_cls = 1 + max((int(part.class_ids.max(initial=0)) for part in found), default=0)
        limits = merge_limits(np.full(n_cls, UNLIMITED) if nms_iou is None else nms_iou)
        least = np.zeros(n_cls, np.float32) if thresholds is None else thresholds
        return [
            windows[0][1]
            if len(windows) == 1
            else merged_classes([part for _, part in windows], [at for at, _ in windows], limits, least)
            for windows in photos
        ]


def _of_classes(labels: Labels, classes: np.ndarray) -> Labels:
    """The labels of some classes."""
    kept = np.isin(labels.classes, classes)
    return Labels(labels.boxes_xyxy[kept], labels.classes[kept], labels.ignore[kept])
