"""The runtime: a bundle's graph in ONNX Runtime, with any number of learned vocabularies beside the original one.

It needs NumPy, ONNX Runtime and Pillow, but no torch.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from prompt_tune.contract import LEAST_SCORE, METRIC_CONF, MOST_BATCH, NMS_IOU, Precision
from prompt_tune.errors import DataError, GraphError, PromptTuneError, VocabularyError
from prompt_tune.files import backup_of
from prompt_tune.hub import local_folder
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, Detections, choose_classes, concatenate
from prompt_tune.runtime.images import PAD_GREY, ImageInput, Letterbox, Letterboxed, letterbox, to_picture
from prompt_tune.runtime.labels import free_label, label_of, named_file
from prompt_tune.runtime.overlap import Overlap, check_overlap, hide_boxes
from prompt_tune.runtime.packing import from_rows
from prompt_tune.runtime.processes import PerProcess
from prompt_tune.runtime.room import MAX_SCORES, check_memory, check_slots
from prompt_tune.runtime.session import GraphSession
from prompt_tune.runtime.state import State, Wanted
from prompt_tune.vocabulary.checks import check_made_for
from prompt_tune.vocabulary.format import BUNDLE_PARTS, GRAPH_FILE, LEARNED_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted


class Detector:
    """Finds the original classes and any learned ones in images.

    The original detections do not depend on what else is loaded, bit for bit. Vocabularies can be loaded and unloaded
    between two images, also from other threads: a call of `detect` sees one state from beginning to end.

    A detector can be pickled: it is loaded again from its bundle, with the same options and vocabularies. It can be
    used in a forked child, which opens the graph again at its first call. On a GPU, that is a `ProviderError`.

    What a vocabulary can cost is limited: the graph gives at most 300 boxes per class and image
    (`contract.MAX_PER_CLASS`), and by the threshold of a learned or plain vocabulary nothing counts whose score is not
    above 0.001 (`contract.LEAST_SCORE`), whatever the file says. Both hold for each class for itself. Vocabularies with
    more prompts than fit into memory (63,900 at 640 px) are refused.

    Attributes:
        bundle: The bundle's folder. That of a bundle on the Hub is in huggingface_hub's cache.
        device: Where the graph runs: "cpu", "cuda" for the first GPU, "cuda:1" for the second, and so on, or
            "openvino".
        precision: Of the graph: "float32" or "float16".
        digest: SHA-256 (hex) of the detector.
        image_size: Side in pixels of the square that images are letterboxed to.
        bundled: The label of the bundle's own learned vocabulary: "learned", or what `export --name` gave. None if it
            was not loaded.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: str | int = "cpu",
        learned: Sequence[str | Path | Vocabulary] = (),
        use_bundled: bool = True,
        image_size: int | None = None,
        threads: int = 0,
    ) -> None:
        """Load a bundle of `prompt-tune export`.

        Args:
            bundle: The folder with detector.onnx, original.vocab.safetensors and learned.vocab.safetensors, or one
                on the Hugging Face Hub: "hf://user/name", see `hub`.
            device: "cpu", "cuda" (the first GPU), "cuda:1" or 1 (the second), or "auto", which is CUDA if it works and
                else the CPU; or "openvino", Intel's runtime on the CPU, for a bundle of `export --slots`. A device that
                is not available is an error.
            learned: Further learned or plain vocabularies for the same detector, as files, texts "NAME=FILE" that give
                a label, or objects. See `load`.
            use_bundled: Whether to load the bundle's own learned vocabulary.
            image_size: Side in pixels of the square that images are letterboxed to, a multiple of 32. By default, the
                bundle's.
            threads: CPU threads for ONNX Runtime, and for reading and scaling the images of a batch. 0 means all cores.

        Raises:
            GraphError: A part of the bundle is missing, or the graph is damaged or not from prompt-tune.
            VocabularyError: A vocabulary is damaged, was made for another detector, guide or text tower, or its label
                is taken.
            ProviderError: The device is not available.
            PromptTuneError: `image_size` or `threads` is out of range, or the Hub does not give the bundle.
        """
        parts = BUNDLE_PARTS if use_bundled else (GRAPH_FILE, ORIGINAL_FILE)
        self.bundle = local_folder(bundle, parts)
        self._check_parts(parts)
        self._options: dict[str, Any] = {"device": device, "image_size": image_size, "threads": threads}
        self._session = GraphSession(self.bundle / GRAPH_FILE, device=device, threads=threads)
        metadata = self._session.metadata
        self.device = self._session.device
        self.precision: Precision = metadata["precision"]
        self.digest: str = metadata["detector"]
        self.image_size = metadata["image_size"] if image_size is None else image_size
        stride = max(metadata["strides"])
        if self.image_size < stride or self.image_size % stride:
            raise PromptTuneError(f"`image_size` must be a multiple of {stride}. Received: {self.image_size}.")
        if self._session.slots and self.image_size != metadata["image_size"]:
            raise PromptTuneError(
                f"`image_size` must be {metadata['image_size']}: `{self.bundle / GRAPH_FILE}` was exported with "
                f"--slots, and has fixed shapes. Received: {self.image_size}."
            )
        self._original = Vocabulary.load(self.bundle / ORIGINAL_FILE)
        if self._original.kind != "original":
            raise VocabularyError(
                f"`{self.bundle / ORIGINAL_FILE}` must be of kind `original`. Received: `{self._original.kind}`. "
                "Export the run again."
            )
        self._check_made_for_this(self._original, ORIGINAL_FILE)
        check_slots(f"`{self.bundle / ORIGINAL_FILE}`", self._original, (), self._session.slots)
        self._lock = PerProcess(threading.Lock)
        self._readers = PerProcess(lambda: ThreadPoolExecutor(threads or os.cpu_count(), "letterbox"))
        self._state = State.of(ORIGINAL, self._original, self._session.upload_rows)
        own = self.bundle / LEARNED_FILE
        self.bundled = self._load_file(own, own, None) if use_bundled else None
        for vocabulary in learned:
            self.load(vocabulary)

    def __repr__(self) -> str:
        """One line: where it is from, where it runs, and what it detects."""
        parts = [f"{label} ({counted(len(part.class_names), 'class')})" for label, part in self.vocabularies.items()]
        runs = f"{self.device}, {self.precision}, {self.image_size} px"
        return f"<Detector {str(self.bundle)!r}, {runs}: {', '.join(parts)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        origin = (self.digest, self._original.digest)
        return _restored, (self.bundle.absolute(), self._options, origin, dict(self._state.learned))

    @property
    def vocabularies(self) -> Mapping[str, Vocabulary]:
        """The loaded vocabularies by label: "original", then the learned ones in the order of loading."""
        return MappingProxyType({ORIGINAL: self._original, **self._state.learned})

    @property
    def classes(self) -> tuple[ClassKey, ...]:
        """(vocabulary label, class name) of every class, in the order of detections: guide mode `own` comes last.

        Background rows of the original vocabulary are no classes: they guide and score, and are never shown.
        """
        return self._state.classes

    def load(self, vocabulary: str | Path | Vocabulary, name: str | None = None, *, replace: bool = False) -> str:
        """Add a learned or plain vocabulary, from the next call of `detect` on.

        Args:
            vocabulary: A file, a text "NAME=FILE" that gives a label, or an object.
            name: The label of its detections. By default, the name of the file. A file called
                learned.vocab.safetensors, as all runs have one, takes the label that `export --name` gave, or else
                "learned", or else, if that is taken, the name of its folder. Objects are labelled "learned",
                "learned-2", and so on.
            replace: Whether it may take the place of the learned vocabulary with that label. No call of `detect` sees
                both of them, or neither.

        Returns:
            The label.

        Raises:
            VocabularyError: See `Detector`.
        """
        if isinstance(vocabulary, Vocabulary):
            return self._add(vocabulary, "The vocabulary", name, None, replace=replace)
        given, file = named_file(vocabulary)
        return self._load_file(vocabulary, file, name or given, replace=replace)

    def _load_file(self, place: str | Path, file: Path, name: str | None, *, replace: bool = False) -> str:
        """Add the vocabulary of a file, which errors call `place`."""
        return self._add(Vocabulary.load(file), f"`{place}`", name, file, replace=replace)

    def _add(self, vocabulary: Vocabulary, place: str, name: str | None, file: Path | None, *, replace: bool) -> str:
        """Add a vocabulary, with a label of its own if `name` is None."""
        if vocabulary.kind == "original":
            raise VocabularyError(
                f"{place} is of kind `original`: it guides a detector, and a bundle has its own. Load a vocabulary of "
                "kind `learned` or `plain`."
            )
        self._check_made_for_this(vocabulary, place)
        with self._lock.get():
            loaded = self._state.learned
            label = name or (free_label(loaded) if file is None else label_of(file, vocabulary, loaded))
            if label == ORIGINAL or (label in loaded and not replace):
                raise VocabularyError(
                    f"{place} cannot be loaded as `{label}`: another vocabulary has that label. Give it another one "
                    "(NAME=FILE), or leave the other vocabulary out."
                )
            whole = {**loaded, label: vocabulary}
            check_slots(place, self._original, whole.values(), self._session.slots)
            size = {"n_anchors": self._n_anchors(), "image_size": self.image_size}
            check_memory(place, self._original, whole.values(), **size)
            self._state = self._state.with_learned(whole, self._session.upload_rows)
        return label

    def unload(self, name: str) -> None:
        """Remove a learned vocabulary by its label, from the next call of `detect` on.

        Raises:
            VocabularyError: No learned vocabulary has that label.
        """
        with self._lock.get():
            loaded = self._state.learned
            if name not in loaded:
                raise VocabularyError(
                    f"No learned vocabulary `{name}` is loaded. Loaded: {', '.join(loaded) or 'none'}."
                )
            kept = {label: part for label, part in loaded.items() if label != name}
            self._state = self._state.with_learned(kept, self._session.upload_rows)

    def detect(
        self,
        images: ImageInput | Letterboxed | Sequence[ImageInput | Letterboxed],
        *,
        iou: float | None = None,
        conf: float | None = None,
        original_conf: float | None = None,
        learned_conf: float | None = None,
        show: Sequence[str] | None = None,
        hide: Sequence[str] | None = None,
        overlap: Overlap = "keep",
        batch: int = 1,
        bgr: bool = False,
    ) -> list[Detections]:
        """Detections of one or several images.

        Args:
            images: One image or a list of images: paths, PIL images, uint8 (h, w, 3) RGB arrays, or what
                `letterboxed` gives. Files and PIL images are turned upright as their EXIF orientation says.
            iou: In 0..1. A box is dropped if it overlaps a better one of its class by more than this. By default 0.7,
                and for a class whose vocabulary has a tighter limit, that limit.
            conf: In 0..1, the score above which a detection counts. By default, each class's own threshold; a class
                that is not original also needs a score, before calibration, above `contract.LEAST_SCORE`, 0.001.
            original_conf: The same for all classes of the original vocabulary; overrides `conf`.
            learned_conf: The same for all other vocabularies; overrides `conf`.
            show: Only these classes, see `choose_classes`.
            hide: Not these classes.
            overlap: What becomes of an original and a learned box on the same object. "keep": both stay. "learned": the
                original one is hidden. "score": the one that is less far above its class's threshold is hidden. Hidden
                rows stay in the result: `Detections.hidden` marks them, and `Detections.shown` leaves them out. See
                `overlap.hidden_rows`.
            batch: Number of images that go through the network at once. With thousands of classes it may be fewer, to
                fit into memory, and a graph with slots takes them one by one. A call with fewer images is filled up
                with grey ones, at the cost of whole images: on the same device, with the same options and
                vocabularies, what is found in an image depends on `batch` alone, and not on which images are beside
                it, how many, or in which order. Another `batch` may change the last bits.
            bgr: Whether arrays are BGR, as `cv2.imread` and `cv2.VideoCapture` give them. Files and PIL images are
                not affected.

        Returns:
            One `Detections` per image, boxes in original pixels, those of the original vocabulary first.

        Raises:
            DataError: An image cannot be read, or is none of the above.
            VocabularyError: A name to show or hide is unknown.
            PromptTuneError: A number is out of range.
            GraphError: ONNX Runtime fails.
        """
        for what, value in (
            *(("iou", iou), ("conf", conf)),
            *(("original_conf", original_conf), ("learned_conf", learned_conf)),
        ):
            if value is not None and not 0 <= value <= 1:
                raise PromptTuneError(f"`{what}` must be from 0 to 1. Received: {value}.")
        check_overlap(overlap)
        if not 1 <= batch <= MOST_BATCH:
            raise PromptTuneError(f"`batch` must be from 1 to {MOST_BATCH}. Received: {batch}.")
        state = self._state
        chosen = choose_classes(state.classes, show=show, hide=hide)
        original_conf = conf if original_conf is None else original_conf
        learned_conf = conf if learned_conf is None else learned_conf
        wanted = [Wanted.of(state.original, original_conf, iou, chosen)]
        own = (  # a pass each, so only if it is wanted
            part for part in state.own.values() if not chosen.isdisjoint(part.packed.classes)
        )
        wanted += [Wanted.of(part, learned_conf, iou, chosen, least=LEAST_SCORE) for part in (state.together, *own)]
        images = _as_list(images)
        found = []
        at_once = max(1, min(batch, MAX_SCORES // (self._n_anchors() * state.n_rows)))
        if self._session.slots:
            at_once = 1
        for first in range(0, len(images), at_once):
            part = images[first : first + at_once]
            side_by_side = self._readers.get().map if len(part) > 1 else map  # Pillow works without Python's lock
            pixels = list(side_by_side(partial(self._letterboxed, bgr=bgr), part))
            found += self._detect_batch(pixels, at_once, wanted, NMS_IOU if iou is None else iou)
        return hide_boxes(found, {ORIGINAL: self._original, **state.learned}, overlap)

    def letterboxed(self, image: ImageInput, *, bgr: bool = False) -> Letterboxed:
        """An image made ready for the network, which `detect` takes in its place.

        So a thread can read and scale images while another one detects.

        Args:
            image: See `detect`.
            bgr: See `detect`.

        Raises:
            DataError: The image cannot be read, or is none of the above.
        """
        return Letterboxed(*letterbox(to_picture(image, bgr=bgr), self.image_size))

    def raw(
        self,
        images: np.ndarray,
        *,
        iou: float = NMS_IOU,
        original_conf: float = METRIC_CONF,
        learned_conf: float = METRIC_CONF,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The graph's own outputs, for checks: not filtered, not calibrated, not converted to original pixels.

        Args:
            images: (b, 3, h, w) float32 RGB in 0..1, h and w multiples of 32.
            iou: In 0..1.
            original_conf: In 0..1.
            learned_conf: In 0..1.

        Returns:
            Original and learned detections, float32 (n, 7): image index; x1, y1, x2, y2 in pixels of the network's
            input; score; class. Learned classes are numbered through the vocabularies of guide mode `original`.
        """
        state = self._state
        return self._session.run(
            self._session.upload(np.ascontiguousarray(images, np.float32)),
            state.original.embeddings,
            state.together.embeddings,
            iou=iou,
            original_conf=original_conf,
            learned_conf=learned_conf,
            n_original=len(state.original.packed.classes),
        )

    def _n_anchors(self) -> int:
        """Anchor points of one image."""
        return sum((self.image_size // stride) ** 2 for stride in self._session.metadata["strides"])

    def _letterboxed(self, image: ImageInput | Letterboxed, *, bgr: bool) -> tuple[np.ndarray, Letterbox]:
        """The network's input, uint8 (h, w, 3), and where the image lies in it."""
        ready = image if isinstance(image, Letterboxed) else self.letterboxed(image, bgr=bgr)
        if ready.placed.input_hw != (self.image_size, self.image_size):
            raise DataError(
                f"A letterboxed image must fit the detector's input of {self.image_size} px. Received: "
                f"{ready.placed.input_hw}. Make it with this detector."
            )
        return ready.pixels, ready.placed

    def _detect_batch(
        self, pixels: list[tuple[np.ndarray, Letterbox]], at_once: int, wanted: list[Wanted], iou: float
    ) -> list[Detections]:
        """Detections of letterboxed images, filled up to `at_once`: a pass for the original guide and each `own`."""
        padding = [np.full_like(pixels[0][0], PAD_GREY)] * (at_once - len(pixels))  # last bits depend on the shape
        images = np.stack([*(image for image, _ in pixels), *padding]).transpose(0, 3, 1, 2)  # (b, 3, h, w)
        images = np.ascontiguousarray(images, dtype=np.float32) / np.float32(255)
        uploaded = self._session.upload(images)  # once for all passes
        original, together, *own = wanted
        nothing = self._state.nothing
        passes = [(original, together.loaded, together.conf), *((part, nothing, 1.0) for part in own)]
        tables: list[np.ndarray] = []
        for guide, learned, learned_conf in passes:
            rows, learned_rows = self._session.run(
                uploaded,
                guide.loaded.embeddings,
                learned.embeddings,
                iou=iou,
                original_conf=guide.conf,
                learned_conf=learned_conf,
                n_original=len(guide.loaded.packed.classes),
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

    def _check_parts(self, names: Sequence[str]) -> None:
        """Refuse a bundle without one of these files."""
        for name in names:
            if not (self.bundle / name).is_file():
                backup = backup_of(self.bundle.absolute())
                cure = "Make one: prompt-tune export RUN --out BUNDLE"
                if backup.is_dir():
                    cure = f"An export was stopped while it replaced the bundle: rename {backup} to get the old one."
                raise GraphError(f"`{self.bundle}` is not a complete bundle: it has no {name}. {cure}")

    def _check_made_for_this(self, vocabulary: Vocabulary, place: str) -> None:
        """Refuse a vocabulary that was made for another detector, text tower or guide."""
        made_for = {"detector": vocabulary.detector, "text tower": vocabulary.text_tower}
        if vocabulary.kind == "learned" and vocabulary.guide_mode == "original":
            made_for["guide"] = vocabulary.guide
        check_made_for(
            place,
            made_for,
            {"detector": self.digest, "text tower": self._original.text_tower, "guide": self._original.digest},
            holder=f"`{self.bundle}`",
            cure="Use a vocabulary made with this bundle's detector and original vocabulary, or its own run's bundle.",
        )


def _restored(
    bundle: Path, options: dict[str, Any], origin: tuple[str, str], learned: Mapping[str, Vocabulary]
) -> Detector:
    """A detector that was pickled, loaded again from its bundle."""
    detector = Detector(bundle, use_bundled=False, **options)
    if origin != (detector.digest, detector.vocabularies[ORIGINAL].digest):
        raise GraphError(f"`{bundle}` was replaced by another bundle after the detector was pickled. Pickle a new one.")
    for label, vocabulary in learned.items():
        detector.load(vocabulary, label)
    return detector


def _as_list(
    images: ImageInput | Letterboxed | Sequence[ImageInput | Letterboxed],
) -> Sequence[ImageInput | Letterboxed]:
    """Several images as they are, anything else as a list with one image."""
    single = isinstance(images, (str, bytes, bytearray, memoryview)) or not isinstance(images, Sequence)
    return [images] if single else images  # type: ignore[list-item, return-value]
