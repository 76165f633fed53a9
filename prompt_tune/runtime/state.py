"""What a detector has loaded, as immutable values: a call of `detect` sees one of them from beginning to end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from prompt_tune.runtime.detections import ClassKey
from prompt_tune.runtime.packing import Packed
from prompt_tune.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from onnxruntime import OrtValue

    Upload = Callable[..., OrtValue]  # `GraphSession.upload_rows`


@dataclass(frozen=True, eq=False)
class Loaded:
    """Vocabularies that go into the graph as one, and their embeddings on its device, uploaded once."""

    packed: Packed
    embeddings: "OrtValue"

    @classmethod
    def of(cls, vocabularies: Mapping[str, Vocabulary], upload: "Upload", *, guides: bool) -> "Loaded":
        """Pack vocabularies by label, and upload them as what guides or as what lies beside."""
        packed = Packed.of(vocabularies)
        return cls(packed, upload(packed.embeddings, guides=guides))

    @property
    def n_rows(self) -> int:
        """Rows of embeddings: each makes a score per anchor, before the maximum over a class's prompts."""
        return self.packed.embeddings.shape[0] * self.packed.embeddings.shape[1]


@dataclass(frozen=True, eq=False)
class State:
    """The loaded vocabularies. Threads replace the whole state.

    Attributes:
        learned: Vocabularies by label, in the order of loading.
        original: The original vocabulary.
        together: All of guide mode `original`, which go into the graph as one.
        own: Those of guide mode `own`, by label. Each needs a pass of its own.
        nothing: No vocabularies.
    """

    learned: Mapping[str, Vocabulary]
    original: Loaded
    together: Loaded
    own: Mapping[str, Loaded]
    nothing: Loaded

    @classmethod
    def of(cls, label: str, original: Vocabulary, upload: "Upload") -> "State":
        """The state with nothing but the original vocabulary."""
        nothing = Loaded.of({}, upload, guides=False)
        return cls({}, Loaded.of({label: original}, upload, guides=True), nothing, {}, nothing)

    def with_learned(self, learned: Mapping[str, Vocabulary], upload: "Upload") -> "State":
        """The state with other learned vocabularies. Only what is new is packed and uploaded."""
        together = {label: part for label, part in learned.items() if part.guide_mode == "original"}
        own = {label: part for label, part in learned.items() if part.guide_mode == "own"}
        return State(
            learned,
            self.original,
            Loaded.of(together, upload, guides=False) if together else self.nothing,
            {
                label: self.own.get(label) or Loaded.of({label: part}, upload, guides=True)
                for label, part in own.items()
            },
            self.nothing,
        )

    @cached_property
    def classes(self) -> tuple[ClassKey, ...]:
        """All classes, in the order of detections. Background rows are none."""
        parts = [part.packed for part in (self.original, self.together, *self.own.values())]
        return tuple(key for part in parts for key, seen in zip(part.classes, part.visible, strict=True) if seen)

    @property
    def n_rows(self) -> int:
        """Rows of embeddings in the largest pass."""
        return max(self.original.n_rows + self.together.n_rows, *(part.n_rows for part in self.own.values()), 1)


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a call of `detect` wants of some vocabularies.

    Attributes:
        loaded: The vocabularies.
        shown: (n_cls,) bool, the classes that are wanted.
        limits: (n_cls,) float32, the score above which each class counts.
        nms_iou: (n_cls,) float32, each class's own limit of overlap.
        conf: The threshold for the graph.
    """

    loaded: Loaded
    shown: np.ndarray
    limits: np.ndarray
    nms_iou: np.ndarray
    conf: float

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        conf: float | None,
        iou: float | None,
        chosen: frozenset[ClassKey],
        *,
        least: float = 0.0,
    ) -> "Wanted":
        """From the caller's threshold and limit of overlap, and the classes that are shown.

        Without a threshold of the caller, only uncalibrated scores above `least` count.
        """
        packed = loaded.packed
        shown = np.array([key in chosen for key in packed.classes], dtype=bool)
        limits = packed.limits(conf)
        graph_conf = packed.graph_conf(shown, limits)
        if conf is None:
            graph_conf = max(graph_conf, least)
        return cls(loaded, shown, limits, packed.overlaps(iou), graph_conf)
