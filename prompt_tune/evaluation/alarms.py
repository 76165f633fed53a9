"""False alarms and collisions of learned classes: how many there are, and where those with the highest scores are."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tune.contract import SAME_BOX_IOU
from prompt_tune.evaluation.outcomes import Example
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, Detections
from prompt_tune.runtime.offsets import moved
from prompt_tune.vocabulary.vocabulary import Vocabulary

EXAMPLES_EACH = 6  # false alarms kept of a class; of a pair of classes that collide, one collision is kept
Pair = tuple[ClassKey, str]  # a learned class and the name of an original one
Ranked = list[tuple[float, Example]]  # by falling score


@dataclass(frozen=True, eq=False)
class AlarmExamples:
    """The false alarms and collisions with the highest scores.

    Attributes:
        alarms: Up to six for each learned class, by falling score.
        collisions: One for each learned class and original class that collide.
    """

    alarms: Mapping[ClassKey, tuple[Example, ...]]
    collisions: Mapping[Pair, Example]


class AlarmCounts:
    """Counts false alarms and collisions over images. Keeps the places and scores of a few, and no pixels.

    Attributes:
        alarms: False alarms of each learned class.
        collisions: Collisions of each learned class with each original class.
    """

    def __init__(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Start with nothing counted.

        Args:
            vocabularies: The learned vocabularies by label. Their thresholds appear in the notes of examples.
        """
        self._vocabularies = vocabularies
        self._best: dict[ClassKey, Ranked] = {}
        self._best_of_pair: dict[Pair, Ranked] = {}
        self.alarms: Counter[ClassKey] = Counter()
        self.collisions: Counter[Pair] = Counter()

    def add(self, path: Path, found: Detections) -> None:
        """Count the detections of one image.

        Args:
            path: The image.
            found: Its detections in original pixels, each above its threshold.
        """
        learned = np.array([label != ORIGINAL for label in found.vocabularies], dtype=bool)
        rows, columns = np.flatnonzero(learned), np.flatnonzero(~learned)
        for row in rows.tolist():
            key = found.vocabularies[row], found.class_names[row]
            offsets = self._vocabularies[key[0]].box_offsets_rows[[found.class_ids[row]]]  # (1, 4)
            theirs = moved(found.boxes_xyxy[columns], offsets)  # the same boxes, as this class draws them
            overlaps = box_iou(found.boxes_xyxy[[row]], theirs)[0]  # (original,)
            same_box: list[int] = columns[overlaps >= SAME_BOX_IOU].tolist()
            self.alarms[key] += 1
            best = max(same_box, key=lambda k: found.scores[k], default=None)
            self._keep(self._best.setdefault(key, []), EXAMPLES_EACH, path, found, row, best)
            for k in same_box:
                pair = key, found.class_names[k]
                self.collisions[pair] += 1
                self._keep(self._best_of_pair.setdefault(pair, []), 1, path, found, row, k)

    def examples(self) -> AlarmExamples:
        """The examples among the images counted so far."""
        return AlarmExamples(
            {key: tuple(example for _, example in ranked) for key, ranked in self._best.items()},
            {pair: ranked[0][1] for pair, ranked in self._best_of_pair.items()},
        )

    def _keep(self, ranked: Ranked, most: int, path: Path, found: Detections, row: int, original: int | None) -> None:
        """Add a learned detection, with the original one on its box, if its score is among the highest."""
        score = float(found.scores[row])
        if len(ranked) == most and score <= ranked[-1][0]:
            return
        threshold = self._vocabularies[found.vocabularies[row]].thresholds[found.class_ids[row]]
        note, reference = f"score {score:.3f}, threshold {threshold:.3f}", None
        if original is not None:
            note += f", on the box of {found.class_names[original]} ({found.scores[original]:.3f})"
            reference = tuple(found.boxes_xyxy[original].tolist())
        ranked.append((score, Example(path, reference, tuple(found.boxes_xyxy[row].tolist()), (), note)))
        ranked.sort(key=lambda entry: -entry[0])  # stable: in a tie the first stays first
        del ranked[most:]
