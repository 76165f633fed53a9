"""The labels of a data set, with its classes matched by name to those of the vocabularies under test."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prompt_tune.contract import IDENTITY, METRIC_CONF
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.errors import DataError
from prompt_tune.runtime.detections import ClassKey
from prompt_tune.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from prompt_tune.datasets.reading import SplitName

NAMED = 10  # class names listed in an error


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The classes that can be measured, and their labels.

    A class can be measured if a vocabulary has it and the split has a label of it. Class i of everything here is
    that of `keys` followed by `others`.

    Attributes:
        split: The split of the data set.
        samples: Its images.
        names: The classes of the data set, by class number.
        keys: Vocabulary label and name of each class that can be measured.
        others: The same of the classes that a vocabulary has, but that have no label here.
        rows: For each class of the data set, its classes here: two if both vocabularies have the name.
        thresholds: (n_cls,) float32, from the vocabularies.
        calibration: (n_cls, 2) float32, scale and shift of the logit.
        nms_iou: (n_cls,) float32, each class's own limit of overlap.
        box_offsets: (n_cls, 4) float32, how each class's boxes are moved.
        unknown: Classes of the data set that no vocabulary has.
        unlabelled: Classes that a vocabulary has, but that have no label in this split.
    """

    split: "SplitName"
    samples: tuple[Sample, ...]
    names: tuple[str, ...]
    keys: tuple[ClassKey, ...]
    others: tuple[ClassKey, ...]
    rows: Mapping[int, Sequence[int]]
    thresholds: np.ndarray
    calibration: np.ndarray
    nms_iou: np.ndarray
    box_offsets: np.ndarray
    unknown: tuple[str, ...]
    unlabelled: tuple[str, ...]

    @property
    def least_scores(self) -> np.ndarray:
        """(n_cls,) float32: no uncalibrated score below matters.

        For metrics it is COCO's cut. For a class without labels it is the threshold, unless the class is calibrated.
        """
        plain = (self.calibration == IDENTITY).all(axis=1)
        plain[: len(self.keys)] = False
        least: np.ndarray = np.where(plain, self.thresholds, np.float32(METRIC_CONF))
        return least

    @classmethod
    def read(
        cls,
        data: str | Path,
        split: "SplitName",
        names: Sequence[str] | None,
        vocabularies: Mapping[str, Vocabulary],
        recorded: Collection[str] | None = None,
        *,
        strict: bool = False,
    ) -> "GroundTruth":
        """Read the labels of a data set and match its classes by name.

        Args:
            data: A data set in any format that `read_split` reads.
            split: The split to read.
            names: Class names to use instead of the data set's own, in class-id order.
            vocabularies: The vocabularies by label.
            recorded: What a run says of the images that it held out; see `hold_out`.
            strict: Whether anything of the data that is left out is an error.

        Raises:
            DataError: The data set cannot be read, or has no label of a class that a vocabulary has.
        """
        from prompt_tune.datasets.reading import read_split  # needs PyYAML

        seed = _seed(vocabularies)
        few = any("cross_validated" in vocabulary.provenance for vocabulary in vocabularies.values())
        names, images = read_split(
            data, split, seed=seed, names=names, recorded=recorded, strict=strict, trained_on_all=few
        )
        own = {name for vocabulary in vocabularies.values() for name in vocabulary.class_names}
        unknown = tuple(name for name in names if name not in own)
        if len(unknown) == len(names):
            raise DataError(_no_class(data, names, own))
        labelled = {names[k] for sample in images.samples for k in sample.labels.classes[~sample.labels.ignore]}
        classes = [
            ((label, name), threshold, scale_shift, limit, offsets)
            for label, vocabulary in vocabularies.items()
            for name, threshold, scale_shift, limit, offsets, hidden in zip(
                vocabulary.names,
                vocabulary.thresholds,
                vocabulary.calibration_rows,
                vocabulary.nms_iou_rows,
                vocabulary.box_offsets_rows,
                vocabulary.is_background,
                strict=True,
            )
            if not hidden
        ]
        classes.sort(key=lambda part: part[0][1] not in labelled)  # stable: those that can be measured first
        n_cls = sum(key[1] in labelled for key, *_ in classes)
        all_keys, thresholds, calibration, nms_iou, box_offsets = zip(*classes, strict=True)
        keys = all_keys[:n_cls]
        if not keys:
            shown = ", ".join(sorted(labelled)[:NAMED])
            raise DataError(
                f"`{data}`: no vocabulary has the classes that are labelled in `{split}`: {shown}. "
                "Choose another split, or name the classes as the vocabularies do (--names)."
            )
        rows = {k: [row for row, key in enumerate(keys) if key[1] == name] for k, name in enumerate(names)}
        return cls(
            split,
            images.samples,
            tuple(names),
            keys,
            all_keys[n_cls:],
            rows,
            np.array(thresholds, np.float32),
            np.array(calibration, np.float32),
            np.array(nms_iou, np.float32),
            np.array(box_offsets, np.float32),
            unknown,
            tuple(name for name in names if name in own and name not in labelled),
        )

    def labels(self, sample: Sample) -> Labels:
        """The labels of one image, in original pixels, with class ids as in `keys`."""
        boxes, classes = self._pairs(sample).T  # (n,) each
        return Labels(sample.labels.boxes_xyxy[boxes], classes, sample.labels.ignore[boxes])

    def places(self, sample: Sample) -> np.ndarray:
        """(n,) int64: where each of `labels` stands in the labels of the image."""
        places: np.ndarray = self._pairs(sample)[:, 0]
        return places

    def of_vocabulary(self, label: str) -> list[int]:
        """The classes of one vocabulary, by its label."""
        return [row for row, key in enumerate(self.keys) if key[0] == label]

    def others_of(self, label: str) -> list[int]:
        """The classes without labels of one vocabulary, by its label."""
        return [row for row, key in enumerate(self.others, len(self.keys)) if key[0] == label]

    def _pairs(self, sample: Sample) -> np.ndarray:
        """(n, 2) int64: a label of the image and a class of `keys`. A label with two classes stands twice."""
        pairs = [(box, row) for box, k in enumerate(sample.labels.classes) for row in self.rows[int(k)]]
        return np.array(pairs, np.int64).reshape(-1, 2)


def _seed(vocabularies: Mapping[str, Vocabulary]) -> int:
    """The seed of the fit, which chose the images that were held out; 0 if no vocabulary has it."""
    for vocabulary in vocabularies.values():
        settings = vocabulary.provenance.get("settings")
        if isinstance(settings, dict) and isinstance(settings.get("seed"), int):
            return int(settings["seed"])
    return 0


def _no_class(data: str | Path, names: Sequence[str], own: set[str]) -> str:
    """The error text if no name matches, with near matches."""
    near = sorted({close for name in names for close in difflib.get_close_matches(name, own, n=3)})
    hint = (
        f"Near: {', '.join(near[:NAMED])}" if near else f"The vocabularies have: {', '.join(sorted(own)[:NAMED])}, ..."
    )
    return (
        f"No class of `{data}` is in the vocabularies: {', '.join(names[:NAMED])}. {hint}. Name the classes as the "
        "vocabularies do (--names)."
    )
