"""The labels of a data set as classes of the vocabularies that are measured on it: found by name."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tune.datasets.reading import SplitName, read_split
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.errors import DataError
from prompt_tune.runtime.detections import ClassKey
from prompt_tune.vocabulary.vocabulary import Vocabulary

NAMED = 10  # class names in an error


@dataclass(frozen=True, eq=False)
class Labelling:
    """What can be measured: class i of everything is `keys[i]`, one that a vocabulary has and the split labels.

    samples: the images. rows: class of the data set -> its classes here, two where both vocabularies have the name.
    thresholds, nms_iou: (n_cls,) float32, and calibration: (n_cls, 2) float32, of the vocabularies. unknown: the data
    set's classes that no vocabulary has. unlabelled: those that have no label in this split.
    """

    split: SplitName
    samples: tuple[Sample, ...]
    keys: tuple[ClassKey, ...]
    rows: Mapping[int, Sequence[int]]
    thresholds: np.ndarray
    calibration: np.ndarray
    nms_iou: np.ndarray
    unknown: tuple[str, ...]
    unlabelled: tuple[str, ...]

    @classmethod
    def of(
        cls, data: str | Path, split: SplitName, names: Sequence[str] | None, vocabularies: Mapping[str, Vocabulary]
    ) -> "Labelling":
        """Read the labels of a data set and find their classes by name.

        Args:    data, split: as of `read_split`. names: for the data set's classes, in place of its own.
                 vocabularies: by label.
        Raises:  DataError: as of `read_split`; or the split has no label of a class that a vocabulary has.
        """
        names, images = read_split(data, split, seed=_seed(vocabularies), names=names)
        own = {name for vocabulary in vocabularies.values() for name in vocabulary.names}
        unknown = tuple(name for name in names if name not in own)
        if len(unknown) == len(names):
            raise DataError(_no_class(data, names, own))
        labelled = {names[k] for sample in images.samples for k in sample.labels.classes[~sample.labels.ignore]}
        keys, thresholds, calibration, nms_iou = [], [], [], []
        for label, vocabulary in vocabularies.items():
            numbers = zip(
                vocabulary.names,
                vocabulary.thresholds,
                vocabulary.calibration_rows,
                vocabulary.nms_iou_rows,
                strict=True,
            )
            for name, threshold, scale_shift, limit in numbers:
                if name in labelled:
                    keys.append((label, name))
                    thresholds.append(threshold)
                    calibration.append(scale_shift)
                    nms_iou.append(limit)
        if not keys:
            raise DataError(f"`{data}`: `{split}` has labels of {', '.join(labelled)} alone, which no vocabulary has.")
        rows = {k: [row for row, key in enumerate(keys) if key[1] == name] for k, name in enumerate(names)}
        return cls(
            split,
            images.samples,
            tuple(keys),
            rows,
            np.array(thresholds, np.float32),
            np.array(calibration, np.float32),
            np.array(nms_iou, np.float32),
            unknown,
            tuple(name for name in names if name in own and name not in labelled),
        )

    def labels(self, sample: Sample) -> Labels:
        """The labels of the classes that are measured, in original pixels."""
        pairs = [(box, row) for box, k in enumerate(sample.labels.classes) for row in self.rows[int(k)]]
        boxes, classes = np.array(pairs, np.int64).reshape(-1, 2).T  # (n,) each
        return Labels(sample.labels.boxes_xyxy[boxes], classes, sample.labels.ignore[boxes])

    def of_vocabulary(self, label: str) -> list[int]:
        """The classes that are measured of one vocabulary."""
        return [row for row, key in enumerate(self.keys) if key[0] == label]


def _seed(vocabularies: Mapping[str, Vocabulary]) -> int:
    """The seed of the fit, which chose the images that were held out; 0 where no vocabulary tells."""
    for vocabulary in vocabularies.values():
        settings = vocabulary.provenance.get("settings")
        if isinstance(settings, dict) and isinstance(settings.get("seed"), int):
            return int(settings["seed"])
    return 0


def _no_class(data: str | Path, names: Sequence[str], own: set[str]) -> str:
    """The error where no name fits, with those that nearly do."""
    near = sorted({close for name in names for close in difflib.get_close_matches(name, own, n=3)})
    hint = (
        f"Near: {', '.join(near[:NAMED])}" if near else f"The vocabularies have: {', '.join(sorted(own)[:NAMED])}, ..."
    )
    return (
        f"`{data}` names no class of the vocabularies: {', '.join(names[:NAMED])}. {hint}. Name the classes as the "
        "vocabularies do (--names)."
    )
