"""Which classes are taken for which: detections above their thresholds, counted by the object that they lie on.

Unlike the usual matrix, an object may be found by several classes: a learned and an original class each keep their box.
So a cell counts detections, and objects that were missed are counted beside them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.evaluation.matching import HIT_IOU, judge
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, Detections


@dataclass(frozen=True)
class Row:
    """The objects of one class of the data set.

    Attributes:
        name: The class.
        objects: The number of its labels.
        missed: How many of them no class of this name found; None if no vocabulary has the name.
    """

    name: str
    objects: int
    missed: int | None


@dataclass(frozen=True)
class Column:
    """The detections of one class above its threshold.

    Attributes:
        vocabulary: The label of its vocabulary.
        name: Its name.
        second_boxes: Detections on an object of the class that another detection of the class has found.
        on_nothing: Detections that lie on no label. None if the data set does not label the class: then nobody knows
            whether they are right.
    """

    vocabulary: str
    name: str
    second_boxes: int
    on_nothing: int | None


@dataclass(frozen=True, eq=False)
class Confusion:
    """Detections by the object that they lie on, at IoU 0.5.

    A detection that found an object of its own class by the rule of `judge` counts there. Any other one counts on the
    label that it overlaps most.

    Attributes:
        rows: The r classes that the data set labels: those that a vocabulary has come first, learned ones before
            original ones.
        columns: The c classes that were measured, and all others with a detection on an object, those with the most
            first. Learned vocabularies come before the original one.
        counts: (r, c) int64.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    counts: np.ndarray

    def is_own(self) -> np.ndarray:
        """(r, c) bool: where row and column have the same name."""
        names = np.array([row.name for row in self.rows], object)[:, None]
        own: np.ndarray = names == np.array([column.name for column in self.columns], object)[None]
        return own

    def worst(self) -> list[tuple[Row, Column, int]]:
        """The pairs of different classes with a detection, and how many there are, most first."""
        wrong = np.where(self.is_own(), 0, self.counts)
        pairs = np.argwhere(wrong)
        order = np.argsort(-wrong[tuple(pairs.T)], kind="stable")
        return [(self.rows[r], self.columns[c], int(wrong[r, c])) for r, c in pairs[order]]

    def to_json(self) -> dict[str, Any]:
        """Rows, columns, and every cell that is not 0."""
        cells = [
            {
                "label": self.rows[r].name,
                "vocabulary": self.columns[c].vocabulary,
                "class": self.columns[c].name,
                "detections": int(self.counts[r, c]),
            }
            for r, c in np.argwhere(self.counts)
        ]
        return {
            "labels": [asdict(row) for row in self.rows],
            "classes": [asdict(column) for column in self.columns],
            "cells": cells,
        }


class ConfusionCounts:
    """Counts the detections of one image after the other."""

    def __init__(self, names: Sequence[str], keys: Sequence[ClassKey], n_measured: int) -> None:
        """Start with nothing counted.

        Args:
            names: The classes of the data set, by class number.
            keys: The n_cls classes of the vocabularies: first those that are measured.
            n_measured: How many of `keys` are measured.
        """
        self._names, self._keys, self._n_measured = names, keys, n_measured
        self._class_of = {name: k for k, name in enumerate(names)}
        shape = len(names), len(keys)
        self._counts = np.zeros(shape, np.int64)
        self._objects, self._missed = np.zeros((2, len(names)), np.int64)
        self._second, self._nothing = np.zeros((2, len(keys)), np.int64)

    def add(self, objects: Labels, labels: Labels, places: np.ndarray, found: Detections) -> None:
        """Count one image.

        Args:
            objects: All its m labels, with the class numbers of the data set.
            labels: The same as classes of `keys`, see `GroundTruth.labels`.
            places: The label in `objects` that each of `labels` is.
            found: Its detections above their thresholds, as classes of `keys`, in the same frame.
        """
        verdicts = judge(labels, found)
        real = np.flatnonzero(~objects.ignore)
        overlaps = box_iou(found.boxes_xyxy, objects.boxes_xyxy[real])  # (n, real)
        for row in np.flatnonzero(verdicts.counts).tolist():
            column = int(found.class_ids[row])
            own = self._class_of.get(self._keys[column][1], -1)
            if verdicts.label[row] >= 0:
                self._counts[own, column] += 1
            elif overlaps[row].max(initial=0.0) < HIT_IOU:
                self._nothing[column] += 1
            elif (on := int(objects.classes[real[overlaps[row].argmax()]])) == own:
                self._second[column] += 1
            else:
                self._counts[on, column] += 1
        missed = ~objects.ignore
        np.add.at(self._objects, objects.classes[missed], 1)
        missed[places[verdicts.label[verdicts.label >= 0]]] = False
        np.add.at(self._missed, objects.classes[missed], 1)

    def result(self) -> Confusion:
        """The matrix of the images counted so far."""
        columns = [k for k in range(len(self._keys)) if k < self._n_measured or self._counts[:, k].any()]
        order = [*dict.fromkeys(label for label, _ in self._keys if label != ORIGINAL), ORIGINAL]
        found = np.where(np.arange(len(self._keys)) < self._n_measured, 0, self._counts.sum(0))
        columns.sort(key=lambda k: (order.index(self._keys[k][0]), k >= self._n_measured, -found[k]))
        own = {name: at for at, name in reversed(list(enumerate(self._keys[k][1] for k in columns)))}
        known = {self._keys[k][1] for k in range(len(self._keys))}
        rows = [k for k in range(len(self._names)) if self._objects[k]]
        rows.sort(key=lambda k: own.get(self._names[k], len(columns)))
        return Confusion(
            tuple(
                Row(name, int(self._objects[k]), int(self._missed[k]) if name in known else None)
                for k, name in ((k, self._names[k]) for k in rows)
            ),
            tuple(
                Column(*self._keys[k], int(self._second[k]), int(self._nothing[k]) if k < self._n_measured else None)
                for k in columns
            ),
            self._counts[np.ix_(rows, columns)],
        )
