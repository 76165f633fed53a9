"""Before a bundle is deployed: that learned vocabularies change no bit of the original detections, and what they add.

NumPy, ONNX Runtime and Pillow only, so that it runs where the bundle will; average precision needs faster-coco-eval.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from prompt_tune.contract import NMS_IOU
from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.evaluation.alarms import AlarmCounts, AlarmExamples, Pair
from prompt_tune.evaluation.metrics import Metrics, average_precision
from prompt_tune.progress import Progress
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import Letterbox, find_images, letterbox, read_rgb
from prompt_tune.runtime.packing import Packed, from_rows
from prompt_tune.runtime.providers import Device
from prompt_tune.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from prompt_tune.datasets.samples import Sample

COMPARED_CONF = 0.001  # original detections above it are compared, and measured: ultralytics' validator's
NAMED = 5  # unknown classes in an error
Key = TypeVar("Key", ClassKey, Pair)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """Learned vocabularies by label, in the order of loading, and what they did to the original detections.

    bits_changed: against the original vocabulary alone, over all images.
    """

    loaded: tuple[str, ...]
    bits_changed: int


@dataclass(frozen=True)
class FalseAlarms:
    """How often a learned class of a vocabulary (its label) was detected in images that do not show it."""

    vocabulary: str
    learned: str
    count: int


@dataclass(frozen=True)
class Collision:
    """How many detections of a learned class lie on the same box as one of an original class."""

    vocabulary: str
    learned: str
    original: str
    count: int


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    images: those that were checked for false alarms and collisions. skipped: one line for each image that cannot be
    read. original_detections: how many were compared, all images together. settings: each way of loading that was
    compared. false_alarms, collisions: by falling count. labelled_images: those that precision was measured on.
    original_ap_before, ..._after, original_ap50_before, ..._after: in 0..1, of the original vocabulary alone and with
    all others loaded; None without labels. examples: where the surest false alarms and collisions are, for pictures.
    """

    images: int
    skipped: tuple[str, ...]
    original_detections: int
    settings: tuple[Setting, ...]
    false_alarms: tuple[FalseAlarms, ...]
    collisions: tuple[Collision, ...]
    labelled_images: int = 0
    original_ap_before: float | None = None
    original_ap_after: float | None = None
    original_ap50_before: float | None = None
    original_ap50_after: float | None = None
    examples: AlarmExamples | None = field(default=None, compare=False, repr=False)

    @property
    def original_bits_changed(self) -> int:
        """All settings together: not 0 is a regression."""
        return sum(setting.bits_changed for setting in self.settings)

    @property
    def false_alarms_per_1000(self) -> float:
        """False alarms of all learned classes in a thousand images."""
        return 1000 * sum(alarms.count for alarms in self.false_alarms) / self.images

    def to_json(self) -> dict[str, object]:
        """Plain JSON: all of the above but the examples; precision is left out where there are no labels."""
        totals = {
            "original_bits_changed": self.original_bits_changed,
            "false_alarms_per_1000": self.false_alarms_per_1000,
        }
        counts = asdict(replace(self, examples=None))
        return totals | {name: value for name, value in counts.items() if value is not None}


def verify(
    bundle: str | Path,
    images: str | Path,
    *,
    learned: Sequence[str | Path] = (),
    data: str | Path | None = None,
    device: Device = "cpu",
    progress: Progress | None = None,
) -> Verification:
    """Runs a bundle with the original vocabulary alone, with each learned one, and with all of them in two orders.

    Args:    bundle: a folder of `prompt-tune export`; its own learned vocabulary is always among those that are loaded.
             images: an image, a folder or a glob pattern. Every learned detection in them counts as a false alarm, so
                 they must show no object of a learned class.
             learned: more vocabulary files for the same detector.
             data: a data set with labels of original classes (names as in the original vocabulary), for average
                 precision on its validation images; original detections are compared on these too.
             device: where ONNX Runtime computes.
             progress: called with (stage, done, total, note).
    Returns: the counts. Thresholds for false alarms and collisions are those of the vocabularies.
    Raises:  DataError: there is no image that can be read, or the data set is damaged or names a class that is not in
             the original vocabulary. PromptTuneError: `data` without the packages that it needs.
             GraphError, VocabularyError, ProviderError: as `Detector`.
    """
    detector = Detector(bundle, device=device, learned=learned)
    vocabularies = {label: part for label, part in detector.vocabularies.items() if label != ORIGINAL}
    labels = None if data is None else _Labels.read(data, detector.vocabularies[ORIGINAL])
    unlabelled = {path.resolve(): path for path in find_images(images)}
    places = unlabelled | ({} if labels is None else {path: sample.path for path, sample in labels.samples.items()})
    tally = _Tally(detector, vocabularies)
    for done, (key, path) in enumerate(places.items(), 1):
        tally.add(path, count=key in unlabelled, measure=None if labels is None else labels.samples.get(key))
        if progress:
            progress("verify", done, len(places), "")
    if not tally.images:
        raise DataError(f"`{images}`: none of its {len(unlabelled)} images can be read. The first: {tally.skipped[0]}")
    if not tally.compared:
        log.warning("No image has an original detection: nothing was compared. Give images that show original classes.")
    result = tally.result()
    return result if labels is None else _with_precision(result, labels, tally)


class _Tally:
    """Counts over images, of one detector whose learned vocabularies are loaded and unloaded."""

    def __init__(self, detector: Detector, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Plans the settings: each vocabulary on its own; where there are several, all as given and in reverse."""
        self._detector = detector
        self._vocabularies = vocabularies
        self._packed = Packed.of({ORIGINAL: detector.vocabularies[ORIGINAL]})
        labels = tuple(vocabularies)
        self._orders = [(label,) for label in labels] + ([labels, labels[::-1]] if len(labels) > 1 else [])
        self._bits = [0] * len(self._orders)
        self._counts = AlarmCounts(vocabularies)
        self.images = 0
        self.compared = 0
        self.skipped: list[str] = []
        self.measured: list[tuple[Sample, Detections, Detections]] = []  # before and after

    def add(self, path: Path, *, count: bool, measure: "Sample | None") -> None:
        """Compares one image; `count`: false alarms and collisions too; `measure`: its labels, for precision."""
        try:
            image = read_rgb(path)
        except DataError as error:
            self.skipped.append(str(error))
            return
        pixels, placed = letterbox(image, self._detector.image_size)
        network_input = pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)  # (1, 3, size, size)
        before = self._original_rows((), network_input)
        self.compared += len(before)
        after = before
        for k, order in enumerate(self._orders):
            after = self._original_rows(order, network_input)
            self._bits[k] += changed_bits(before, after)
        if measure is not None:
            self.measured.append((measure, self._original(before, placed), self._original(after, placed)))
        if count:  # every vocabulary is loaded now: the last of the orders has them all
            self.images += 1
            self._counts.add(path, self._detector.detect([image])[0])

    def result(self) -> Verification:
        """All but precision."""
        return Verification(
            images=self.images,
            skipped=tuple(self.skipped),
            original_detections=self.compared,
            settings=tuple(Setting(order, bits) for order, bits in zip(self._orders, self._bits, strict=True)),
            false_alarms=tuple(FalseAlarms(*key, count) for key, count in _ranked(self._counts.alarms)),
            collisions=tuple(Collision(*key, name, count) for (key, name), count in _ranked(self._counts.collisions)),
            examples=self._counts.examples(),
        )

    def _original_rows(self, order: Sequence[str], network_input: np.ndarray) -> np.ndarray:
        """(n, 7) float32: the graph's original detections with these vocabularies loaded and no others."""
        for label in [label for label in self._detector.vocabularies if label != ORIGINAL]:
            self._detector.unload(label)
        for label in order:
            self._detector.load(self._vocabularies[label], label)
        return self._detector.raw(network_input, original_conf=COMPARED_CONF, learned_conf=COMPARED_CONF)[0]

    def _original(self, rows: np.ndarray, placed: Letterbox) -> Detections:
        """The graph's original rows in original pixels."""
        every = np.ones(len(self._packed.classes), dtype=bool)
        packed = self._packed
        return packed.detections(from_rows(rows), placed, every, packed.limits(0), packed.overlaps(NMS_IOU))


@dataclass(frozen=True, eq=False)
class _Labels:
    """Labelled images by resolved path; rows (n,) int64: those of the data set's classes in the original vocabulary."""

    samples: "Mapping[Path, Sample]"
    rows: np.ndarray
    n_cls: int

    @classmethod
    def read(cls, data: str | Path, original: Vocabulary) -> "_Labels":
        """Validation images of a data set whose class names are those of the original vocabulary."""
        try:
            import faster_coco_eval  # noqa: F401  # found missing now, not after all images

            from prompt_tune.datasets.reading import read_split
        except ImportError as error:
            raise PromptTuneError(
                f"`data` needs packages that come with `fit`, and `{error.name}` is missing. Install them "
                "(pip install 'prompt-tune[fit]'), or verify without --data."
            ) from error
        names, split = read_split(data, "val")
        unknown = [name for name in names if name not in original.names]
        if unknown:
            shown = ", ".join(map(repr, unknown[:NAMED])) + (", ..." if len(unknown) > NAMED else "")
            raise DataError(
                f"`{data}` has classes that the original vocabulary lacks ({len(unknown)}): {shown}. Name the classes "
                "as the bundle's original vocabulary does."
            )
        rows = np.array([original.names.index(name) for name in names], np.int64)
        return cls({sample.path.resolve(): sample for sample in split.samples}, rows, len(original.names))

    def precision(self, found: "Iterable[tuple[Sample, Detections]]") -> Metrics:
        """COCO's numbers, means over the original classes that have an object."""
        labels, founds = [], []
        for sample, detections in found:
            labels.append(replace(sample.labels, classes=self.rows[sample.labels.classes]))
            founds.append(detections)
        return average_precision(labels, founds, self.n_cls)


def _with_precision(result: Verification, labels: _Labels, tally: _Tally) -> Verification:
    """The result with the original classes' precision before and after."""
    if not tally.measured:
        raise DataError(f"none of the {len(labels.samples)} labelled images can be read. The first: {tally.skipped[0]}")
    before = labels.precision((sample, detections) for sample, detections, _ in tally.measured)
    after = labels.precision((sample, detections) for sample, _, detections in tally.measured)
    return replace(
        result,
        labelled_images=len(tally.measured),
        original_ap_before=before.ap,
        original_ap_after=after.ap,
        original_ap50_before=before.ap50,
        original_ap50_after=after.ap50,
    )


def _ranked(counts: Counter[Key]) -> list[tuple[Key, int]]:
    """By falling count, then by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def changed_bits(before: np.ndarray, after: np.ndarray) -> int:
    """Bits that differ between two tables of original detections, order included.

    Args:    before, after: (n, 7) and (m, 7) float32, rows of the graph's `original_detections`.
    Returns: 0 only when they are the same byte for byte. A row that one table lacks counts with all its bits.
    """
    common = min(len(before), len(after))
    first, second = (np.ascontiguousarray(table[:common]).view(np.uint8) for table in (before, after))
    differing = int(np.unpackbits(first ^ second).sum())
    surplus = (before[common:], after[common:])
    return differing + sum(8 * table.nbytes for table in surplus)
