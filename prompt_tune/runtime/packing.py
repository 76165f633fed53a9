"""Several vocabularies as one input of the graph, and its rows as detections that say which one they are from."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from prompt_tune.contract import EMBED_DIM, IDENTITY, UNLIMITED
from prompt_tune.runtime.boxes import distinct
from prompt_tune.runtime.detections import ClassKey, Detections
from prompt_tune.runtime.images import Letterbox
from prompt_tune.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from onnxruntime import OrtValue

# share by which the graph's threshold is lowered where a calibrated class sets it: the inverse of a sigmoid rounds
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Packed:
    """Vocabularies, one after the other. Row i of everything belongs to the graph's class i.

    classes: (vocabulary label, class name) each. embeddings: (n_cls, n_prompts, 512) float32, as the graph takes them.
    class_ids: (n_cls,) int64, the class's row in its own vocabulary. thresholds: (n_cls,) float32 in 0..1.
    calibration: (n_cls, 2) float32, scale and shift of the logit, or None where no vocabulary has one.
    nms_iou: (n_cls,) float32 above 0, up to 1, a class's own limit of overlap; 1 asks no more than the graph does.
    """

    classes: tuple[ClassKey, ...]
    embeddings: np.ndarray
    class_ids: np.ndarray
    thresholds: np.ndarray
    calibration: np.ndarray | None
    nms_iou: np.ndarray

    @classmethod
    def of(cls, vocabularies: Mapping[str, Vocabulary]) -> "Packed":
        """Packs vocabularies by label, in order, padded to the same n_prompts; none at all gives no classes."""
        parts = list(vocabularies.values())
        n_prompts = max((part.n_prompts for part in parts), default=1)
        calibrated = any(part.calibration is not None for part in parts)
        padded = [part.padded(n_prompts) for part in parts] or [np.zeros((0, n_prompts, EMBED_DIM), np.float32)]
        return cls(
            classes=tuple((label, name) for label, part in vocabularies.items() for name in part.names),
            # (n_cls, n_prompts, 512); a vocabulary alone is not copied
            embeddings=padded[0] if len(padded) == 1 else np.concatenate(padded),
            class_ids=np.concatenate(
                [np.zeros(0, np.int64), *(np.arange(len(part.names)) for part in parts)]
            ),  # (n_cls,)
            thresholds=np.concatenate([np.zeros(0, np.float32), *(part.thresholds for part in parts)]),  # (n_cls,)
            calibration=np.concatenate([part.calibration_rows for part in parts]) if calibrated else None,  # (n_cls, 2)
            nms_iou=np.concatenate([np.zeros(0, np.float32), *(part.nms_iou_rows for part in parts)]),  # (n_cls,)
        )

    def limits(self, conf: float | None) -> np.ndarray:
        """(n_cls,) float32: the score above which a class counts; `conf`, where given, takes the place of all."""
        return self.thresholds if conf is None else np.full(len(self.classes), conf, np.float32)

    def overlaps(self, iou: float | None) -> np.ndarray:
        """(n_cls,) float32: the own limit of overlap of each class; none where `iou`, the graph's, is given for all."""
        return self.nms_iou if iou is None else np.full(len(self.classes), UNLIMITED, np.float32)

    def graph_conf(self, shown: np.ndarray, limits: np.ndarray) -> float:
        """The lowest score of the graph that can matter: what the graph takes as its threshold.

        Args:    shown: (n_cls,) bool, the classes that are wanted.
                 limits: (n_cls,) float32, thresholds of the calibrated scores.
        Returns: in 0..1; 1, which no score exceeds, where no class is shown.
        """
        needed = limits
        if self.calibration is not None:
            scale, shift = self.calibration.astype(np.float64).T  # (n_cls,) each
            uncalibrated = sigmoid((logit(limits) - shift) / scale) * (1 - ROUNDING)
            needed = np.where(self._changed(), uncalibrated, limits)
        return float(needed[shown].min()) if shown.any() else 1.0

    def detections(
        self, found: Detections, placed: Letterbox, shown: np.ndarray, limits: np.ndarray, nms_iou: np.ndarray
    ) -> Detections:
        """The detections of one image as users get them, in the order given.

        Args:
            found: Class ids are rows of this packing, boxes in pixels of the network's input, scores uncalibrated.
            placed: How the image lies in that input.
            shown: (n_cls,) bool, the classes that are wanted.
            limits: (n_cls,) float32, thresholds of the calibrated scores.
            nms_iou: (n_cls,) float32, from `overlaps`.

        Returns:
            Detections in original pixels, calibrated, each above its class's threshold. A box that lies entirely in the
            grey border is left out.
        """
        index = found.class_ids
        scores = self._calibrated(found.scores, index)
        keep = np.flatnonzero(shown[index] & (scores > limits[index]))
        keep = keep[distinct(found.boxes_xyxy[keep], found.scores[keep], index[keep], nms_iou)]
        boxes_xyxy = placed.to_original(found.boxes_xyxy)
        keep = keep[(boxes_xyxy[keep, 2:] > boxes_xyxy[keep, :2]).all(axis=1)]
        classes = [self.classes[number] for number in index[keep]]
        return Detections(
            boxes_xyxy=boxes_xyxy[keep],
            scores=scores[keep],
            class_ids=self.class_ids[index[keep]],
            class_names=tuple(name for _, name in classes),
            vocabularies=tuple(label for label, _ in classes),
            size_wh=placed.size_wh,
        )

    def _changed(self) -> np.ndarray:
        """(n_cls,) bool: the classes whose calibration changes a score; the others keep theirs bit for bit."""
        if self.calibration is None:
            return np.zeros(len(self.classes), dtype=bool)
        return _changes(self.calibration)

    def _calibrated(self, scores: np.ndarray, index: np.ndarray) -> np.ndarray:
        """(n,) float32 scores of classes `index` after calibration."""
        if self.calibration is None:
            return scores
        return calibrated(scores, self.calibration[index])


def from_rows(rows: np.ndarray) -> Detections:
    """Detections of one image from rows of the graph.

    Args:
        rows: (n, 7) float32: image index, x1, y1, x2, y2 in pixels of the network's input, score, class.
    """
    return Detections(rows[:, 1:5], rows[:, 5], rows[:, 6].astype(np.int64))


def calibrated(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Scores after calibration: (n,) float32 in 0..1; with scale 1 and shift 0 a score stays what it is, bit for bit.

    Args: scores: (n,) float32 in 0..1. calibration: (n, 2) float32, scale and shift of the logit for each.
    """
    scale, shift = calibration.astype(np.float64).T  # (n,) each
    changed = sigmoid(scale * logit(scores) + shift).astype(np.float32)
    return np.where(_changes(calibration), changed, scores)


def logit(scores: np.ndarray) -> np.ndarray:
    """Of scores in 0..1; float64, minus and plus infinity at 0 and 1."""
    scores = scores.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.log(scores) - np.log1p(-scores)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Of logits; float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def _changes(calibration: np.ndarray) -> np.ndarray:
    """(n,) bool: the rows of (n, 2) float32 that change a score."""
    return (calibration != np.array(IDENTITY, np.float32)).any(axis=1)


@dataclass(frozen=True, eq=False)
class Loaded:
    """Vocabularies that go into the graph as one, and their embeddings on its device: uploaded once, not an image."""

    packed: Packed
    embeddings: "OrtValue"


@dataclass(frozen=True, eq=False)
class State:
    """What is loaded, as one immutable value: threads swap it whole."""

    learned: Mapping[str, Vocabulary]
    original: Loaded
    together: Loaded  # all of guide mode `original`: they go in as one
    own: Mapping[str, Loaded]  # by label; each needs a pass of its own

    @cached_property
    def classes(self) -> tuple[ClassKey, ...]:
        """Of all, in the order of detections."""
        return tuple(key for part in (self.original, self.together, *self.own.values()) for key in part.packed.classes)


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a call of `detect` wants of some vocabularies; see `Packed`."""

    loaded: Loaded
    shown: np.ndarray
    limits: np.ndarray
    nms_iou: np.ndarray
    conf: float

    @classmethod
    def of(cls, loaded: Loaded, conf: float | None, iou: float | None, chosen: frozenset[ClassKey]) -> "Wanted":
        """From the caller's threshold and limit of overlap, and the classes that are shown."""
        packed = loaded.packed
        shown = np.array([key in chosen for key in packed.classes], dtype=bool)
        limits = packed.limits(conf)
        return cls(loaded, shown, limits, packed.overlaps(iou), packed.graph_conf(shown, limits))
