"""False alarms and collisions of learned classes, image by image: how many, and where the surest are. Light."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tune.evaluation.outcomes import Example
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, Detections
from prompt_tune.vocabulary.vocabulary import Vocabulary

SAME_BOX_IOU = 0.7  # boxes this near are of one object: from here on, suppression drops the weaker of two of a class
EXAMPLES_EACH = 6  # of a class's false alarms; of a collision's pair of classes there is one
Pair = tuple[ClassKey, str]  # a learned class and the name of an original one
Ranked = list[tuple[float, Example]]  # by falling score


@dataclass(frozen=True, eq=False)
class AlarmExamples:
    """Where the surest are: up to 6 false alarms of each learned class, one collision of each pair of classes."""

    alarms: Mapping[ClassKey, tuple[Example, ...]]
    collisions: Mapping[Pair, Example]


class AlarmCounts:
    """Counts over images. It keeps places and scores of a few detections, and no pixels."""

    def __init__(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Args: vocabularies: the learned ones by label; their thresholds stand in the examples' notes."""
        self._vocabularies = vocabularies
        self._surest: dict[ClassKey, Ranked] = {}
        self._surest_of_pair: dict[Pair, Ranked] = {}
        self.alarms: Counter[ClassKey] = Counter()
        self.collisions: Counter[Pair] = Counter()

    def add(self, path: Path, found: Detections) -> None:
        """Counts the detections of one image, all of them above their thresholds."""
        learned = np.array([label != ORIGINAL for label in found.vocabularies], dtype=bool)
        rows, columns = np.flatnonzero(learned), np.flatnonzero(~learned)
        iou = box_iou(found.boxes_xyxy[rows], found.boxes_xyxy[columns])  # (learned, original)
        for row, overlaps in zip(rows.tolist(), iou, strict=True):
            key = found.vocabularies[row], found.class_names[row]
            same_box: list[int] = columns[overlaps >= SAME_BOX_IOU].tolist()
            self.alarms[key] += 1
            surest = max(same_box, key=lambda k: found.scores[k], default=None)
            self._keep(self._surest.setdefault(key, []), EXAMPLES_EACH, path, found, row, surest)
            for k in same_box:
                pair = key, found.class_names[k]
                self.collisions[pair] += 1
                self._keep(self._surest_of_pair.setdefault(pair, []), 1, path, found, row, k)

    def examples(self) -> AlarmExamples:
        """Of what was counted so far."""
        return AlarmExamples(
            {key: tuple(example for _, example in ranked) for key, ranked in self._surest.items()},
            {pair: ranked[0][1] for pair, ranked in self._surest_of_pair.items()},
        )

    def _keep(self, ranked: Ranked, most: int, path: Path, found: Detections, row: int, original: int | None) -> None:
        """Adds a learned detection, and an original one on its box, where it is among the surest."""
        score = float(found.scores[row])
        if len(ranked) == most and score <= ranked[-1][0]:
            return
        threshold = self._vocabularies[found.vocabularies[row]].thresholds[found.class_ids[row]]
        note, reference = f"score {score:.3f}, threshold {threshold:.3f}", None
        if original is not None:
            note += f", on the box of {found.class_names[original]} ({found.scores[original]:.3f})"
            reference = tuple(found.boxes_xyxy[original].tolist())
        ranked.append((score, Example(path, reference, tuple(found.boxes_xyxy[row].tolist()), (), note)))
        ranked.sort(key=lambda entry: -entry[0])  # stable: of equal scores the first
        del ranked[most:]
