"""What changed between two vocabularies, class by class, for the review of a merge request."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prompt_tune.vocabulary.checks import FloatArray
from prompt_tune.vocabulary.vocabulary import Vocabulary

DECIMALS = 6  # of a float32 in 0..1
FIELDS = ("kind", "guide_mode", "n_prompts", "detector", "text_tower", "guide")


@dataclass(frozen=True)
class Moved:
    """A class whose embeddings changed.

    Attributes:
        name: Of the class.
        cosine: In -1..1. Each prompt is compared with the nearest prompt of the other vocabulary; this is the lowest
            of those cosines.
    """

    name: str
    cosine: float


@dataclass(frozen=True)
class Change:
    """A value that changed.

    Attributes:
        name: Of the class or field that has it.
        before: Plain JSON; None if the value is absent.
        after: The same, in the other vocabulary.
    """

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class VocabularyDiff:
    """The changes from one vocabulary to another.

    Attributes:
        identical: The files have the same bytes.
        added: Names of classes that only the second vocabulary has.
        removed: Names of classes that only the first vocabulary has.
        moved: Common classes with other embeddings.
        rethresholded: Common classes with another threshold.
        recalibrated: Common classes with another scale or shift of the logit.
        resuppressed: Common classes with another NMS IoU.
        reboxed: Common classes with other box offsets.
        reordered: The common classes are in another order, which changes class ids.
        metadata: Fields of the whole file: full digests, and provenance as `provenance.KEY.KEY`.
    """

    identical: bool
    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[Moved, ...]
    rethresholded: tuple[Change, ...]
    recalibrated: tuple[Change, ...]
    resuppressed: tuple[Change, ...]
    reboxed: tuple[Change, ...]
    reordered: bool
    metadata: tuple[Change, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to list. The order and repetition of prompts may still differ."""
        changed = (self.moved, self.rethresholded, self.recalibrated, self.resuppressed, self.reboxed, self.metadata)
        return not any((self.added, self.removed, *changed)) and not self.reordered

    def to_json(self) -> dict[str, Any]:
        """The changes as plain JSON."""
        return asdict(self)


def diff(before: Vocabulary, after: Vocabulary) -> VocabularyDiff:
    """What changed from `before` to `after`. Classes are matched by name.

    The prompts of a class are compared as a set: its score is their maximum, so order and repetition do not matter.
    """
    old, new = ({name: _Class.of(part, i) for i, name in enumerate(part.names)} for part in (before, after))
    common = [name for name in old if name in new]
    pairs = {name: (old[name], new[name]) for name in common}
    fields = {name: (getattr(before, name), getattr(after, name)) for name in FIELDS}
    fields["background"] = (dict(before.background) or None, dict(after.background) or None)
    one_side, other_side = (flat("provenance", part.provenance) for part in (before, after))
    fields |= {key: (one_side.get(key), other_side.get(key)) for key in sorted({*one_side, *other_side})}
    return VocabularyDiff(
        identical=before.to_bytes() == after.to_bytes(),
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        moved=tuple(
            Moved(name, round(_cosine(one.prompts, other.prompts), DECIMALS))
            for name, (one, other) in pairs.items()
            if not np.array_equal(one.prompts, other.prompts)
        ),
        rethresholded=_changes({name: (one.threshold, other.threshold) for name, (one, other) in pairs.items()}),
        recalibrated=_changes({name: (one.calibration, other.calibration) for name, (one, other) in pairs.items()}),
        resuppressed=_changes({name: (one.nms_iou, other.nms_iou) for name, (one, other) in pairs.items()}),
        reboxed=_changes({name: (one.box_offsets, other.box_offsets) for name, (one, other) in pairs.items()}),
        reordered=common != [name for name in new if name in old],
        metadata=_changes(fields),
    )


@dataclass(frozen=True, eq=False)
class _Class:
    """A class of one vocabulary. `prompts` is (n, 512) float32, sorted and unique; absent parts are None."""

    prompts: FloatArray
    threshold: float
    calibration: list[float] | None
    nms_iou: float | None
    box_offsets: list[float] | None

    @classmethod
    def of(cls, vocabulary: Vocabulary, row: int) -> "_Class":
        """The class in a row of a vocabulary."""
        calibration, box_offsets = (
            None if rows is None else [_number(value) for value in rows[row]]
            for rows in (vocabulary.calibration, vocabulary.box_offsets)
        )
        nms_iou = None if vocabulary.nms_iou is None else _number(vocabulary.nms_iou[row])
        threshold = _number(vocabulary.thresholds[row])
        prompts = np.unique(vocabulary.embeddings[row], axis=0)
        return cls(prompts, threshold, calibration, nms_iou, box_offsets)


def flat(prefix: str, value: Any) -> dict[str, Any]:
    """The leaves of nested JSON objects, under their keys joined by dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: leaf for name, part in value.items() for key, leaf in flat(f"{prefix}.{name}", part).items()}


def _changes(values: Mapping[str, tuple[Any, Any]]) -> tuple[Change, ...]:
    """The pairs that differ."""
    return tuple(Change(name, before, after) for name, (before, after) in values.items() if before != after)


def _cosine(first: FloatArray, second: FloatArray) -> float:
    """The lowest cosine of any prompt, of (n, 512) and (m, 512), to its nearest on the other side."""
    one, other = (rows.astype(np.float64) for rows in (first, second))
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    cosines = one @ other.T  # (n, m)
    return float(np.clip(min(cosines.max(axis=0).min(), cosines.max(axis=1).min()), -1, 1))


def _number(value: np.float32) -> float:
    """The float with the shortest decimal text that rounds to this float32."""
    return float(str(value))
