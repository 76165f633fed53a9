"""The runtime: a bundle's graph in ONNX Runtime, with any number of learned vocabularies beside the original one.

NumPy, ONNX Runtime and Pillow only: an inference box has no torch.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from prompt_tune.contract import NMS_IOU, Precision
from prompt_tune.errors import GraphError, PromptTuneError, VocabularyError
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, Detections, choose_classes, concatenate
from prompt_tune.runtime.images import Letterbox, letterbox, read_rgb
from prompt_tune.runtime.packing import Loaded, Packed, State, Wanted, from_rows
from prompt_tune.runtime.providers import Device
from prompt_tune.runtime.session import GraphSession
from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.format import GRAPH_FILE, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    pass

MAX_SCORES = 2**28  # float32 scores of the images in the network at once, 1 GiB; it takes some seven times that in all
LEARNED = "learned"  # label of a learned vocabulary that comes without a file name
VOCABULARY_SUFFIX = ".vocab.safetensors"
Image = np.ndarray | str | Path


class Detector:
    """Finds the original classes and any learned ones in images.

    The original detections do not depend on what else is loaded, bit for bit. Vocabularies can be loaded and unloaded
    between two images, also from other threads: a call of `detect` sees one state from beginning to end.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: Device = "cpu",
        learned: Sequence[str | Path | Vocabulary] = (),
        use_bundled: bool = True,
        image_size: int | None = None,
        threads: int = 0,
    ) -> None:
        """Load a bundle of `prompt-tune export`.

        Args:    bundle: the folder with detector.onnx, original.vocab.safetensors and learned.vocab.safetensors.
                 device: "cpu", "cuda", "tensorrt" (experimental), or "auto": CUDA where it works, else the CPU. What
                     was asked for and is not really there is an error; `Detector.device` tells what runs.
                 learned: more learned or plain vocabularies for the same detector, as files or objects.
                 use_bundled: load the bundle's own learned vocabulary too.
                 image_size: side in pixels of the square that images are letterboxed to, a multiple of 32; None takes
                     the bundle's.
                 threads: CPU threads of ONNX Runtime, and of reading and scaling a batch; 0 means all cores.
        Raises:  GraphError: a part of the bundle is missing, or the graph is damaged or not ours.
                 VocabularyError: a vocabulary is damaged, was made for another detector, guide or text tower, or its
                 label is taken. ProviderError: the device is not usable.
        """
        self.bundle = Path(bundle)
        for name in (GRAPH_FILE, ORIGINAL_FILE, LEARNED_FILE) if use_bundled else (GRAPH_FILE, ORIGINAL_FILE):
            if not (self.bundle / name).is_file():
                raise GraphError(
                    f"`{bundle}` is not a whole bundle: it has no {name}. Make one: prompt-tune export RUN --out BUNDLE"
                )
        self._session = GraphSession(self.bundle / GRAPH_FILE, device=device, threads=threads)
        metadata = self._session.metadata
        self.device: Device = self._session.device
        self.precision: Precision = metadata["precision"]
        self.digest: str = metadata["detector"]
        self.image_size = metadata["image_size"] if image_size is None else image_size
        stride = max(metadata["strides"])
        if self.image_size < stride or self.image_size % stride:
            raise PromptTuneError(f"`image_size` must be a multiple of {stride}. Received: {self.image_size}.")
        self._original = Vocabulary.load(self.bundle / ORIGINAL_FILE)
        if self._original.kind != "original":
            raise VocabularyError(
                f"`{self.bundle / ORIGINAL_FILE}` must be of kind `original`. Received: `{self._original.kind}`. "
                "Export the run again."
            )
        self._check_made_for_this(self._original, ORIGINAL_FILE)
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(threads or os.cpu_count(), thread_name_prefix="letterbox")
        self._nothing = self._loaded({})
        self._state = State({}, self._loaded({ORIGINAL: self._original}), self._nothing, {})
        for vocabulary in ([self.bundle / LEARNED_FILE] if use_bundled else []) + list(learned):
            self.load(vocabulary)

    @property
    def vocabularies(self) -> Mapping[str, Vocabulary]:
        """The loaded vocabularies by label: "original", then the learned ones in the order of loading."""
        return MappingProxyType({ORIGINAL: self._original, **self._state.learned})

    @property
    def classes(self) -> tuple[ClassKey, ...]:
        """(vocabulary label, class name) of every class, in the order of detections: guide mode `own` comes last."""
        return self._state.classes

    def load(self, vocabulary: str | Path | Vocabulary, name: str | None = None) -> str:
        """Add a learned or plain vocabulary, from the next call of `detect` on.

        Args:    vocabulary: a file or an object.
                 name: the label of its detections; None takes the file's name; objects get "learned", "learned-2", ...
        Returns: the label.
        Raises:  VocabularyError: see `Detector`.
        """
        place = "The vocabulary" if isinstance(vocabulary, Vocabulary) else f"`{vocabulary}`"
        if not isinstance(vocabulary, Vocabulary):
            name = name or Path(vocabulary).name.removesuffix(VOCABULARY_SUFFIX)
            vocabulary = Vocabulary.load(vocabulary)
        self._check_made_for_this(vocabulary, place)
        with self._lock:
            loaded = self._state.learned
            label = name or _free_label(loaded)
            if label == ORIGINAL or label in loaded:
                raise VocabularyError(
                    f"{place} cannot be loaded as `{label}`: another vocabulary has that label. Rename the file, give "
                    "another `name`, or leave the other one out."
                )
            self._state = self._state_of({**loaded, label: vocabulary})
        return label

    def unload(self, name: str) -> None:
        """Remove a learned vocabulary by its label, from the next call of `detect` on.

        Raises: VocabularyError: no learned vocabulary has that label.
        """
        with self._lock:
            loaded = self._state.learned
            if name not in loaded:
                raise VocabularyError(
                    f"No learned vocabulary `{name}` is loaded. Loaded: {', '.join(loaded) or 'none'}."
                )
            self._state = self._state_of({label: part for label, part in loaded.items() if label != name})

    def detect(
        self,
        images: Image | Sequence[Image],
        *,
        iou: float | None = None,
        original_conf: float | None = None,
        learned_conf: float | None = None,
        show: Sequence[str] | None = None,
        hide: Sequence[str] | None = None,
        batch: int = 1,
    ) -> list[Detections]:
        """Detections of one or several images.

        Args:    images: uint8 (h, w, 3) RGB arrays or paths, one or a list.
                 iou: in 0..1; a box that overlaps a better one of its class by more than this is dropped. None takes
                     0.7, and for a class with a tighter limit in its vocabulary that one too.
                 original_conf, learned_conf: score in 0..1 above which a detection counts, for all classes of the
                     original vocabulary and of all others; None takes each class's own threshold from its vocabulary.
                 show, hide: only these classes, and without those; as in `choose_classes`.
                 batch: images that go through the network at once; fewer where thousands of classes would make too
                     many scores for the memory of most machines.
        Returns: one `Detections` an image, boxes in original pixels, those of the original vocabulary first.
        Raises:  DataError: an image cannot be read. VocabularyError: a name to show or hide is unknown.
                 PromptTuneError: a number is out of range. GraphError: ONNX Runtime fails.
        """
        for what, value in (("iou", iou), ("original_conf", original_conf), ("learned_conf", learned_conf)):
            if value is not None and not 0 <= value <= 1:
                raise PromptTuneError(f"`{what}` must be from 0 to 1. Received: {value}.")
        if batch < 1:
            raise PromptTuneError(f"`batch` must be at least 1. Received: {batch}.")
        state = self._state
        chosen = choose_classes(state.classes, show=show, hide=hide)
        wanted = [Wanted.of(state.original, original_conf, iou, chosen)]
        own = (  # a pass each: only where it is wanted
            part for part in state.own.values() if not chosen.isdisjoint(part.packed.classes)
        )
        wanted += [Wanted.of(part, learned_conf, iou, chosen) for part in (state.together, *own)]
        images = [images] if isinstance(images, (np.ndarray, str, Path)) else images
        found = []
        at_once = max(1, min(batch, MAX_SCORES // self._n_scores(state)))
        for first in range(0, len(images), at_once):
            part = images[first : first + at_once]
            side_by_side = self._readers.map if len(part) > 1 else map  # Pillow works without Python's lock
            pixels = list(side_by_side(self._letterboxed, part))
            found += self._detect_batch(pixels, wanted, NMS_IOU if iou is None else iou)
        return found

    def raw(
        self, images: np.ndarray, *, iou: float = NMS_IOU, original_conf: float = 0.001, learned_conf: float = 0.001
    ) -> tuple[np.ndarray, np.ndarray]:
        """The graph's own outputs, for checks: nothing is filtered, calibrated or brought to original pixels.

        Args:    images: float32 (b, 3, h, w) RGB in 0..1, h and w multiples of 32.
                 iou, original_conf, learned_conf: in 0..1.
        Returns: original and learned detections, float32 (n, 7): image index, x1, y1, x2, y2 in pixels of the network's
                 input, score, class; learned classes count through the vocabularies of guide mode `original`.
        """
        state = self._state
        return self._session.run(
            self._session.upload(np.ascontiguousarray(images, np.float32)),
            state.original.embeddings,
            state.together.embeddings,
            iou=iou,
            original_conf=original_conf,
            learned_conf=learned_conf,
        )

    def _n_scores(self, state: "State") -> int:
        """Scores of one image in the largest pass: classes times anchors."""
        n_anchors = sum((self.image_size // stride) ** 2 for stride in self._session.metadata["strides"])
        parts = [len(part.packed.classes) for part in state.own.values()]
        return n_anchors * max(len(state.original.packed.classes) + len(state.together.packed.classes), *parts, 1)

    def _letterboxed(self, image: Image) -> tuple[np.ndarray, Letterbox]:
        """uint8 (h, w, 3) of the network's input, and where the image lies in it."""
        return letterbox(image if isinstance(image, np.ndarray) else read_rgb(image), self.image_size)

    def _detect_batch(
        self, pixels: list[tuple[np.ndarray, Letterbox]], wanted: list["Wanted"], iou: float
    ) -> list[Detections]:
        """Detections of letterboxed images: a pass for the original guide, one for each vocabulary that is its own."""
        images = np.stack([image for image, _ in pixels]).transpose(0, 3, 1, 2)  # (b, 3, h, w)
        images = np.ascontiguousarray(images, dtype=np.float32) / np.float32(255)
        uploaded = self._session.upload(images)  # once for all passes
        original, together, *own = wanted
        passes = [(original, together.loaded, together.conf), *((part, self._nothing, 1.0) for part in own)]
        tables: list[np.ndarray] = []
        for guide, learned, learned_conf in passes:
            rows, learned_rows = self._session.run(
                uploaded,
                guide.loaded.embeddings,
                learned.embeddings,
                iou=iou,
                original_conf=guide.conf,
                learned_conf=learned_conf,
            )
            tables += [rows, learned_rows] if guide is original else [rows]
        found = []
        for index, (_, placed) in enumerate(pixels):
            parts = [
                part.loaded.packed.detections(
                    from_rows(table[table[:, 0] == index]), placed, part.shown, part.limits, part.nms_iou
                )
                for part, table in zip(wanted, tables, strict=True)
            ]
            found.append(concatenate(parts, placed.size_wh))
        return found

    def _loaded(self, vocabularies: Mapping[str, Vocabulary]) -> "Loaded":
        """Packs vocabularies and brings their embeddings to where the graph computes."""
        packed = Packed.of(vocabularies)
        return Loaded(packed, self._session.upload(packed.embeddings))

    def _state_of(self, learned: dict[str, Vocabulary]) -> "State":
        """What follows the present state; packs and uploads only what is new in it."""
        before = self._state
        together = {label: part for label, part in learned.items() if part.guide_mode == "original"}
        own = {label: part for label, part in learned.items() if part.guide_mode == "own"}
        return State(
            learned,
            before.original,
            self._loaded(together) if together else self._nothing,
            {label: before.own.get(label) or self._loaded({label: part}) for label, part in own.items()},
        )

    def _check_made_for_this(self, vocabulary: Vocabulary, place: str) -> None:
        """Refuses a vocabulary that was made for another detector, text tower or guide."""
        guide = self._original.digest if vocabulary.kind == "learned" and vocabulary.guide_mode == "original" else None
        for what, was, here in (
            ("detector", vocabulary.detector or self.digest, self.digest),  # "" is for any
            ("text tower", vocabulary.text_tower, self._original.text_tower),
            ("guide", vocabulary.guide, guide or vocabulary.guide),
        ):
            if was != here:
                raise VocabularyError(
                    f"{place} was made for {what} {short(was)}, but `{self.bundle}` has {what} {short(here)}. Use a "
                    "vocabulary made with this bundle's detector and original vocabulary, or the bundle of its own run."
                )


def _free_label(taken: Mapping[str, Vocabulary]) -> str:
    """ "learned", "learned-2", ...: the first that is free."""
    number = 1
    while (label := LEARNED if number == 1 else f"{LEARNED}-{number}") in taken:
        number += 1
    return label
