"""Photos cut into the windows that `detect --slice` looks at, so that learning sees what detection will see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prompt_tune.datasets.held_out import has_box
from prompt_tune.datasets.reading import DataSet
from prompt_tune.datasets.replay import Replayed
from prompt_tune.datasets.samples import Labels, Sample, Split
from prompt_tune.errors import RunError
from prompt_tune.runtime.slices import Slices, Window

LEAST_VISIBLE = 0.4  # share of a box's area that must lie in a slice; otherwise the box is ignored there
EMPTY = 1.0  # slices without an object that are trained on, for each slice with one


@dataclass(frozen=True)
class Tiling:
    """How the photos of a fit were cut.

    Attributes:
        slices: Size and overlap.
        n_slices: The number of slices that are trained or measured on, without replayed photos.
        n_photos: The number of photos that they come from, those that fit into a slice included.
        n_left_out: The number of slices without an object that are not trained on.
    """

    slices: Slices
    n_slices: int
    n_photos: int
    n_left_out: int

    def __str__(self) -> str:
        """In words: "tile 640, overlap 0.2: 1,312 slices of 164 photos"."""
        text = f"tile {self.slices.size}, overlap {self.slices.overlap:g}: {self.n_slices:,} slices of "
        text += f"{self.n_photos:,} photos"
        return text + (f"; {self.n_left_out:,} without an object left out of the training" if self.n_left_out else "")

    @classmethod
    def of(cls, record: Mapping[str, float]) -> "Tiling":
        """What `to_record` has written."""
        counts = (int(record[name]) for name in ("slices", "photos", "left_out"))
        return cls(Slices(int(record["tile"]), record["overlap"]), *counts)

    def to_record(self) -> dict[str, float]:
        """The same for a vocabulary's provenance."""
        counts = {"slices": self.n_slices, "photos": self.n_photos, "left_out": self.n_left_out}
        return {"tile": self.slices.size, "overlap": self.slices.overlap, **counts}


def tile(dataset: DataSet, replayed: Replayed, slices: Slices, seed: int) -> tuple[DataSet, Replayed, Tiling]:
    """Cut all photos of a fit into windows: the whole photo first, then its slices.

    What is measured on has all windows. Of what is trained on, slices without an object are drawn: `EMPTY` for each
    slice with one, and one for each replayed photo. If a data set has few photos, which are trained and measured on,
    all are kept.

    Args:
        dataset: The photos.
        replayed: Photos without the new objects.
        slices: How to cut them.
        seed: Draws the slices that are kept.

    Raises:
        RunError: No photo is larger than a slice.
    """
    train, val = _cut(dataset.train, slices), _cut(dataset.val, slices)
    n_all, n_photos = (
        sum(len(split.samples) for split in splits) for splits in ((train, val), (dataset.train, dataset.val))
    )
    if n_all == n_photos:
        raise RunError(
            f"No photo is larger than `tile` {slices.size}, so none would be cut. Leave --tile out, or give "
            "fewer pixels."
        )
    if not dataset.few:
        shown = sum(sample.part > 0 and has_box(sample) for sample in train.samples)
        train = _with_empty(train, round(EMPTY * shown), seed)
    n_kept = len(train.samples) + len(val.samples)
    more = Replayed(
        _with_empty(_cut(replayed.train, slices), len(replayed.train.samples), seed), _cut(replayed.held_out, slices)
    )
    tiling = Tiling(slices, n_kept - n_photos, n_photos, n_all - n_kept)
    return replace(dataset, train=train, val=val), more, tiling


def cut(sample: Sample, slices: Slices) -> list[Sample]:
    """The windows of a photo, or the photo itself if it fits into a slice.

    Boxes are clipped to their window. Of a box of which less than `LEAST_VISIBLE` is in a window, that part is ignored.

    Args:
        sample: A whole photo.
        slices: How to cut it.
    """
    windows = slices.windows(sample.size_wh)
    return [sample] if len(windows) == 1 else [_part(sample, part, window) for part, window in enumerate(windows)]


def _part(sample: Sample, part: int, window: Window) -> Sample:
    """What a window shows of a photo."""
    left, top, right, bottom = window
    size_wh = (right - left, bottom - top)
    boxes = sample.labels.boxes_xyxy
    clipped = (boxes - np.array((left, top) * 2, np.float32)).clip(0, np.array(size_wh * 2, np.float32))  # (n, 4)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)  # (n,), share of the area
    there = (sides > 0).all(1)
    labels = Labels(
        clipped[there], sample.labels.classes[there], (sample.labels.ignore | (visible < LEAST_VISIBLE))[there]
    )
    return Sample(sample.path, labels, size_wh, window, part)


def _cut(split: Split, slices: Slices) -> Split:
    """All photos of a split, window by window."""
    return replace(split, samples=tuple(part for sample in split.samples for part in cut(sample, slices)))


def _with_empty(split: Split, most: int, seed: int) -> Split:
    """A split with at most so many slices that show no object; whole photos stay."""
    samples: Sequence[Sample] = split.samples
    empty = [i for i, sample in enumerate(samples) if sample.part > 0 and not has_box(sample)]
    drawn = np.random.default_rng([seed, 31]).permutation(len(empty))[most:]
    dropped = {empty[i] for i in drawn.tolist()}
    return replace(split, samples=tuple(sample for i, sample in enumerate(samples) if i not in dropped))
