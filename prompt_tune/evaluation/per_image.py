"""Hits, misses and false alarms of each image: where to look first."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.matching import judge
from prompt_tune.runtime.detections import ClassKey, Detections


@dataclass(frozen=True)
class ImageResult:
    """What one vocabulary did in one image, at IoU 0.5 and the thresholds of its classes.

    Attributes:
        path: The image.
        vocabulary: The label of the vocabulary.
        objects: The number of labels of its classes.
        hits: The number of objects that were found.
        false_alarms: The number of detections that found no object.
        missed: How many objects of each class were missed, for the classes that have any.
        wrong: How many false alarms each class has, for the classes that have any.
    """

    path: Path
    vocabulary: str
    objects: int
    hits: int
    false_alarms: int
    missed: tuple[tuple[str, int], ...]
    wrong: tuple[tuple[str, int], ...]

    @property
    def misses(self) -> int:
        """The number of objects that were not found."""
        return self.objects - self.hits


def image_results(
    paths: Sequence[Path],
    labels: Sequence[Labels],
    found: Sequence[Detections],
    keys: Sequence[ClassKey],
    thresholds: np.ndarray,
) -> Iterator[ImageResult]:
    """Count the hits, misses and false alarms of each image, for each vocabulary that has a class in `keys`.

    Args:
        paths: The images.
        labels: The labels of each image, as classes of `keys`.
        found: The detections of each image, in the same frame, including those below their thresholds.
        keys: Vocabulary label and name of each class.
        thresholds: (n_cls,) float32 in 0..1, the score above which a detection of each class counts.
    """
    vocabularies = list(dict.fromkeys(label for label, _ in keys))
    for path, truth, detections in zip(paths, labels, found, strict=True):
        above = detections.select(detections.scores > thresholds[detections.class_ids])
        verdicts = judge(truth, above)
        hit = np.zeros(len(truth), bool)
        hit[verdicts.label[verdicts.label >= 0]] = True
        alarms = above.class_ids[(verdicts.label < 0) & verdicts.counts]
        for vocabulary in vocabularies:
            objects, missed, wrong = (
                Counter(keys[k][1] for k in classes.tolist() if keys[k][0] == vocabulary)
                for classes in (truth.classes[~truth.ignore], truth.classes[~truth.ignore & ~hit], alarms)
            )
            yield ImageResult(
                path,
                vocabulary,
                objects.total(),
                objects.total() - missed.total(),
                wrong.total(),
                tuple(missed.items()),
                tuple(wrong.items()),
            )
