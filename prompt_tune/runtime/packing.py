"""Several vocabularies as one input of the graph, and the graph's rows as detections of their vocabularies."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prompt_tune.contract import EMBED_DIM, IDENTITY, UNLIMITED
from prompt_tune.runtime.boxes import distinct
from prompt_tune.runtime.detections import ClassKey, Detections
from prompt_tune.runtime.images import Letterbox
from prompt_tune.runtime.offsets import move
from prompt_tune.vocabulary.vocabulary import Vocabulary

# share by which the graph's threshold is lowered if a calibrated class sets it: the inverse of the sigmoid rounds
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Packed:
    """Vocabularies, one after the other. Row i of everything belongs to class i of the graph.

    Attributes:
        classes: (vocabulary label, class name) of each class.
        embeddings: (n_cls, n_prompts, 512) float32, the graph's input.
        class_ids: (n_cls,) int64, the row of each class in its own vocabulary.
        thresholds: (n_cls,) float32 in 0..1.
        calibration: (n_cls, 2) float32, scale and shift of the logit. None if no vocabulary has one.
        nms_iou: (n_cls,) float32 above 0 and at most 1, each class's own limit of overlap. 1 adds nothing to the
            graph's suppression.
        visible: (n_cls,) bool, False for background rows, which are never shown.
        box_offsets: (n_cls, 4) float32, see `offsets`. None if no vocabulary has any.
    """

    classes: tuple[ClassKey, ...]
    embeddings: np.ndarray
    class_ids: np.ndarray
    thresholds: np.ndarray
    calibration: np.ndarray | None
    nms_iou: np.ndarray
    visible: np.ndarray
    box_offsets: np.ndarray | None = None

    @classmethod
    def of(cls, vocabularies: Mapping[str, Vocabulary]) -> "Packed":
        """Pack vocabularies by label, in order, padded to the same n_prompts. There may be no vocabularies."""
        parts = list(vocabularies.values())
        n_prompts = max((part.n_prompts for part in parts), default=1)
        calibrated = any(part.calibration is not None for part in parts)
        moves = any(part.box_offsets is not None for part in parts)
        padded = [part.padded(n_prompts) for part in parts] or [np.zeros((0, n_prompts, EMBED_DIM), np.float32)]
        return cls(
            classes=tuple((label, name) for label, part in vocabularies.items() for name in part.names),
            # (n_cls, n_prompts, 512); a single vocabulary is not copied
            embeddings=padded[0] if len(padded) == 1 else np.concatenate(padded),
            class_ids=np.concatenate(
                [np.zeros(0, np.int64), *(np.arange(len(part.names)) for part in parts)]
            ),  # (n_cls,)
            thresholds=np.concatenate([np.zeros(0, np.float32), *(part.thresholds for part in parts)]),  # (n_cls,)
            calibration=np.concatenate([part.calibration_rows for part in parts]) if calibrated else None,  # (n_cls, 2)
            nms_iou=np.concatenate([np.zeros(0, np.float32), *(part.nms_iou_rows for part in parts)]),  # (n_cls,)
            visible=np.concatenate([np.zeros(0, bool), *(~part.is_background for part in parts)]),  # (n_cls,)
            box_offsets=np.concatenate([part.box_offsets_rows for part in parts]) if moves else None,  # (n_cls, 4)
        )

    def limits(self, conf: float | None) -> np.ndarray:
        """The thresholds, or `conf` for all classes if it is given: (n_cls,) float32."""
        return self.thresholds if conf is None else np.full(len(self.classes), conf, np.float32)

    def overlaps(self, iou: float | None) -> np.ndarray:
        """Each class's own limit of overlap, or no limits if `iou` is given to the graph: (n_cls,) float32."""
        return self.nms_iou if iou is None else np.full(len(self.classes), UNLIMITED, np.float32)

    def graph_conf(self, shown: np.ndarray, limits: np.ndarray) -> float:
        """The threshold for the graph: the lowest uncalibrated score that can matter.

        Args:
            shown: (n_cls,) bool, the classes that are wanted.
            limits: (n_cls,) float32, thresholds of the calibrated scores.

        Returns:
            In 0..1. If no class is shown, 1, which no score exceeds.
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
            found: With class ids of this packing, boxes in pixels of the network's input and uncalibrated scores.
            placed: How the image lies in that input.
            shown: (n_cls,) bool, the classes that are wanted. Background rows stay hidden.
            limits: (n_cls,) float32, thresholds of the calibrated scores.
            nms_iou: (n_cls,) float32, from `overlaps`.

        Returns:
            Detections in original pixels, with boxes moved as the labels of their class are drawn, calibrated, each
            above its class's threshold. Boxes that lie entirely in the grey border are left out.
        """
        found = move(found, self.box_offsets)
        index = found.class_ids
        scores = self._calibrated(found.scores, index)
        keep = np.flatnonzero((shown & self.visible)[index] & (scores > limits[index]))
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
        """The classes whose calibration changes a score: (n_cls,) bool. Others keep their scores bit for bit."""
        if self.calibration is None:
            return np.zeros(len(self.classes), dtype=bool)
        return _changes(self.calibration)

    def _calibrated(self, scores: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Scores of the classes `index` after calibration: (n,) float32."""
        if self.calibration is None:
            return scores
        return calibrated(scores, self.calibration[index])


def from_rows(rows: np.ndarray) -> Detections:
    """Detections of one image, from rows of the graph.

    Args:
        rows: (n, 7) float32: image index; x1, y1, x2, y2 in pixels of the network's input; score; class.
    """
    return Detections(rows[:, 1:5], rows[:, 5], rows[:, 6].astype(np.int64))


def calibrated(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Scores after calibration. Scale 1 and shift 0 keep a score bit for bit.

    Args:
        scores: (n,) float32 in 0..1.
        calibration: (n, 2) float32, scale and shift of the logit for each score.

    Returns:
        (n,) float32 in 0..1.
    """
    scale, shift = calibration.astype(np.float64).T  # (n,) each
    changed = sigmoid(scale * logit(scores) + shift).astype(np.float32)
    return np.where(_changes(calibration), changed, scores)


def uncalibrated(scores: np.ndarray, calibration: np.ndarray | None) -> np.ndarray:
    """The scores that become these by calibration: its inverse, up to rounding.

    Args:
        scores: (n,) float32 in 0..1.
        calibration: (n, 2) float32, scale (above 0) and shift of the logit for each score; None is no calibration.

    Returns:
        (n,) float32 in 0..1.
    """
    if calibration is None:
        return scores
    scale, shift = calibration.astype(np.float64).T  # (n,) each
    changed = sigmoid((logit(scores) - shift) / scale).astype(np.float32)
    return np.where(_changes(calibration), changed, scores)


def logit(scores: np.ndarray) -> np.ndarray:
    """The logits of scores in 0..1, as float64. They are minus and plus infinity at 0 and 1."""
    scores = scores.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.log(scores) - np.log1p(-scores)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The sigmoid of logits, as float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def _changes(calibration: np.ndarray) -> np.ndarray:
    """The rows of a calibration, (n, 2) float32, that change a score: (n,) bool."""
    return (calibration != np.array(IDENTITY, np.float32)).any(axis=1)
