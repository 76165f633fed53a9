"""What changed between two vocabularies, a class at a time: for reviewing a vocabulary in a merge request."""

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
    """A class whose embeddings changed; cosine in -1..1: of the prompt that is farthest from any on the other side."""

    name: str
    cosine: float


@dataclass(frozen=True)
class Change:
    """The plain JSON value of a class or field of that name; None where there is none."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class VocabularyDiff:
    """From one vocabulary to another.

    identical: the files have the same bytes. added, removed: class names. moved, rethresholded, recalibrated (scale and
    shift of the logit), resuppressed (limit of overlap): classes that both have. reordered: those stand in another
    order, which changes class ids. metadata: what is so of the whole file, digests in full, and `provenance.KEY.KEY`.
    """

    identical: bool
    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[Moved, ...]
    rethresholded: tuple[Change, ...]
    recalibrated: tuple[Change, ...]
    resuppressed: tuple[Change, ...]
    reordered: bool
    metadata: tuple[Change, ...]

    @property
    def is_empty(self) -> bool:
        """Nothing to list; prompts may still stand in another order, or be repeated more often."""
        changed = (self.moved, self.rethresholded, self.recalibrated, self.resuppressed, self.metadata)
        return not any((self.added, self.removed, *changed)) and not self.reordered

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


def diff(before: Vocabulary, after: Vocabulary) -> VocabularyDiff:
    """What changed from `before` to `after`, classes matched by name.

    A class's prompts are compared as a set, for its score is their maximum: order and repetition do not count.
    """
    old, new = ({name: _Class.of(part, i) for i, name in enumerate(part.names)} for part in (before, after))
    common = [name for name in old if name in new]
    pairs = {name: (old[name], new[name]) for name in common}
    fields = {name: (getattr(before, name), getattr(after, name)) for name in FIELDS}
    one_side, other_side = (_flat("provenance", part.provenance) for part in (before, after))
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
        reordered=common != [name for name in new if name in old],
        metadata=_changes(fields),
    )


@dataclass(frozen=True, eq=False)
class _Class:
    """prompts: (n, 512) float32, sorted, none twice. calibration: scale and shift of the logit, or None. nms_iou: the
    limit of overlap, or None."""

    prompts: FloatArray
    threshold: float
    calibration: list[float] | None
    nms_iou: float | None

    @classmethod
    def of(cls, vocabulary: Vocabulary, row: int) -> "_Class":
        """A row of a vocabulary."""
        calibration = None
        if vocabulary.calibration is not None:
            calibration = [_number(value) for value in vocabulary.calibration[row]]
        nms_iou = None if vocabulary.nms_iou is None else _number(vocabulary.nms_iou[row])
        threshold = _number(vocabulary.thresholds[row])
        return cls(np.unique(vocabulary.embeddings[row], axis=0), threshold, calibration, nms_iou)


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """The leaves of nested JSON objects, under their keys with dots between."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: leaf for name, part in value.items() for key, leaf in _flat(f"{prefix}.{name}", part).items()}


def _changes(values: Mapping[str, tuple[Any, Any]]) -> tuple[Change, ...]:
    """Those that differ."""
    return tuple(Change(name, before, after) for name, (before, after) in values.items() if before != after)


def _cosine(first: FloatArray, second: FloatArray) -> float:
    """Cosine of each prompt, (n, 512) and (m, 512), to the nearest on the other side; the smallest of them."""
    one, other = (rows.astype(np.float64) for rows in (first, second))
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    cosines = one @ other.T  # (n, m)
    return float(np.clip(min(cosines.max(axis=0).min(), cosines.max(axis=1).min()), -1, 1))


def _number(value: np.float32) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(value))
