"""Boxes as the labels of each class are drawn: the offsets of the training images, applied to what was found."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prompt_tune.config import Boxes
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.evaluation.box_offsets import BoxOffsets, fit_box_offsets
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.offsets import move
from prompt_tune.tuning.tasks import Task, cut_at

LOOKED_AT = 100  # training images of each class from which offsets come: with more, they hardly change


@dataclass(frozen=True, eq=False)
class Drawn:
    """Detections before and after their boxes were moved, both cut at the edges of the photo.

    Attributes:
        before: The detections of each image, with the detector's own boxes.
        found: The same with boxes as labels are drawn.
        offsets: How they were moved; None if boxes are frozen.
    """

    before: list[Detections]
    found: list[Detections]
    offsets: BoxOffsets | None


def draw_as_labelled(
    task: Task,
    embeddings: np.ndarray,
    labels: Sequence[Labels],
    found: Sequence[Detections],
    boxes: Boxes,
    *,
    train: Sequence[Sample],
    cross_validated: bool,
) -> Drawn:
    """Fit the offsets of each class on training images, and move the boxes of what was found in images of `val`.

    Args:
        task: The images.
        embeddings: (n_cls, n_prompts, 512) float32.
        labels: Of the images of `task.val`, replayed ones included.
        found: The detections in them, with whole boxes.
        boxes: The setting.
        train: The labelled images of `task.train`.
        cross_validated: The labelled images of `val` are those of `train`, and `found` comes from prompts that were not
            trained on them. They serve for the offsets too, and each is moved by the offsets of the others.
    """
    frames = [task.val.frame_xyxy(i) for i in range(len(found))]
    before = [cut_at(*pair) for pair in zip(found, frames, strict=True)]
    if boxes == "frozen":
        return Drawn(before, before, None)
    n_cls, n_labelled = len(embeddings), len(found) - task.val.n_replay
    if cross_validated:
        offsets = fit_box_offsets(labels[:n_labelled], found[:n_labelled], frames[:n_labelled], n_cls)
        of_image = [*offsets.elsewhere, *[offsets.values] * task.val.n_replay]
    else:
        images = _looked_at(train)
        theirs = task.detect(embeddings, images=images, trained=True, whole=True)
        offsets = fit_box_offsets(*theirs, [task.train.frame_xyxy(i) for i in images], n_cls)
        of_image = [offsets.values] * len(found)
    moved = [cut_at(move(part, how), frame) for part, how, frame in zip(found, of_image, frames, strict=True)]
    return Drawn(before, moved, offsets)


def _looked_at(train: Sequence[Sample]) -> list[int]:
    """The images, or so many of them that each class is shown in `LOOKED_AT`."""
    seen: Counter[int] = Counter()
    chosen = []
    for i in np.random.default_rng(0).permutation(len(train)).tolist():
        shown = np.unique(train[i].labels.classes[~train[i].labels.ignore]).tolist()
        if any(seen[k] < LOOKED_AT for k in shown):
            seen.update(shown)
            chosen.append(i)
    return sorted(chosen)
