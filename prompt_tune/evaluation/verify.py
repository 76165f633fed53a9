"""The check before a bundle is deployed: learned vocabularies change no bit of the original detections.

It also counts false alarms and collisions. It runs on the inference box: it needs NumPy, ONNX Runtime and Pillow only,
and PyYAML for labelled data.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from prompt_tune.contract import METRIC_CONF, NMS_IOU
from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.evaluation.alarms import AlarmCounts, AlarmExamples, Pair
from prompt_tune.evaluation.metrics import Metrics, average_precision
from prompt_tune.progress import Progress
from prompt_tune.runtime.detections import ORIGINAL, ClassKey, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.image_files import Places, as_places, find_images
from prompt_tune.runtime.images import Letterbox, letterbox, read_picture
from prompt_tune.runtime.packing import Packed, from_rows
from prompt_tune.version import install
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.datasets.samples import Sample

COMPARED_CONF = METRIC_CONF  # original detections above this score are compared and measured
NAMED = 5  # unknown classes listed in an error
Key = TypeVar("Key", ClassKey, Pair)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """One way of loading learned vocabularies, and what it did to the original detections.

    Attributes:
        loaded: The labels of the vocabularies, in the order of loading.
        bits_changed: How many bits of the original detections differ from those of the original vocabulary alone, over
            all images.
    """

    loaded: tuple[str, ...]
    bits_changed: int


@dataclass(frozen=True)
class FalseAlarms:
    """How often a learned class was detected in images that do not show it.

    Attributes:
        vocabulary: The label of its vocabulary.
        learned: The class.
        count: The number of detections above the threshold.
    """

    vocabulary: str
    learned: str
    count: int


@dataclass(frozen=True)
class Collision:
    """How often a learned class was detected on the same box as an original class.

    Attributes:
        vocabulary: The label of the learned class's vocabulary.
        learned: The learned class.
        original: The original class.
        count: The number of pairs of detections, both above their thresholds.
    """

    vocabulary: str
    learned: str
    original: str
    count: int


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        images: The number of images checked for false alarms and collisions.
        skipped: One line for each image that cannot be read.
        original_detections: The number of original detections compared, over all images.
        settings: Each way of loading that was compared.
        false_alarms: By falling count.
        collisions: By falling count.
        labelled_images: The number of images that average precision was measured on.
        original_ap_before: Average precision of the original vocabulary alone, in 0..1; None without labels.
        original_ap_after: The same with all vocabularies loaded.
        original_ap50_before: Average precision at IoU 0.5 of the original vocabulary alone; None without labels.
        original_ap50_after: The same with all vocabularies loaded.
        max_false_alarms: How many false alarms per thousand images are allowed; None sets no limit.
        examples: The false alarms and collisions with the highest scores, for pictures.
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
    max_false_alarms: float | None = None
    examples: AlarmExamples | None = field(default=None, compare=False, repr=False)

    @property
    def original_bits_changed(self) -> int:
        """Over all settings. Anything but 0 is a regression."""
        return sum(setting.bits_changed for setting in self.settings)

    @property
    def false_alarms_per_1000(self) -> float:
        """False alarms of all learned classes per thousand images."""
        return 1000 * sum(alarms.count for alarms in self.false_alarms) / self.images

    @property
    def too_many_false_alarms(self) -> bool:
        """Whether there are more false alarms than allowed."""
        return self.max_false_alarms is not None and self.false_alarms_per_1000 > self.max_false_alarms

    @property
    def failed(self) -> bool:
        """Whether original detections changed, or there are too many false alarms."""
        return self.original_bits_changed > 0 or self.too_many_false_alarms

    @property
    def verdict(self) -> str:
        """The result in one line: what became of the original detections, and how many false alarms there are."""
        bits = self.original_bits_changed
        if bits:
            changed = f"{bits} bit{'s' * (bits != 1)} of {self.original_detections} original detections changed."
        elif self.original_detections:
            changed = f"not one bit of {self.original_detections} original detections changed."
        else:
            changed = "Nothing was compared: no image has an original detection. Use images that show original classes."
        word = "Failed: " if self.failed else "Passed: " if self.original_detections else ""
        return f"{word}{changed} {self._alarms_in_words()}"

    def _alarms_in_words(self) -> str:
        """The number of false alarms and, if there is one, their limit."""
        alarms = f"{self.false_alarms_per_1000:.1f} false alarms per 1,000 images"
        if self.max_false_alarms is None:
            return f"{alarms}{'; no limit is set (--max-false-alarms).' if self.false_alarms else '.'}"
        limit = f"--max-false-alarms {self.max_false_alarms:g}"
        if not self.too_many_false_alarms:
            return f"{alarms}, within {limit}."
        count = sum(alarms.count for alarms in self.false_alarms)
        return f"{alarms} ({count} in {self.images}) exceed {limit}. Fit with --replay on images like these."

    def to_json(self) -> dict[str, object]:
        """Everything but the examples as plain JSON. Precision and a limit are left out if none is given."""
        totals: dict[str, object] = {
            "original_bits_changed": self.original_bits_changed,
            "false_alarms_per_1000": self.false_alarms_per_1000,
        }
        if self.max_false_alarms is not None:
            totals["too_many_false_alarms"] = self.too_many_false_alarms
        counts = asdict(replace(self, examples=None))
        return totals | {name: value for name, value in counts.items() if value is not None}


def verify(
    bundle: str | Path,
    images: Places,
    *,
    learned: Sequence[str | Path] = (),
    data: str | Path | None = None,
    max_false_alarms: float | None = None,
    device: str = "cpu",
    recursive: bool = True,
    strict: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Run a bundle with the original vocabulary alone, with each learned one, and with all of them in two orders.

    Args:
        bundle: A bundle folder of `prompt-tune export`. Its own learned vocabulary is always included.
        images: An image, a folder or a glob pattern, or several of them. The images must show no object of a learned
            class: every learned detection in them counts as a false alarm.
        learned: More vocabulary files for the same detector.
        data: A data set with labels of original classes, named as in the original vocabulary. Average precision is
            measured on its validation images, and original detections are compared on them too.
        max_false_alarms: How many false alarms per thousand images are allowed. With more, the result has `failed`.
        device: Where ONNX Runtime computes.
        recursive: Whether folders of `images` are read with their subfolders.
        strict: Whether an image or anything of the data set that is left out is an error.
        progress: Called after each image.

    Returns:
        The result. False alarms and collisions are counted above the vocabularies' own thresholds.

    Raises:
        DataError: No image can be read, the data set is damaged, or it has a class that the original vocabulary lacks.
        PromptTuneError: `data` is given, and a package that it needs is missing; or `max_false_alarms` is no limit.
        GraphError: The bundle is incomplete or damaged.
        VocabularyError: A vocabulary cannot be loaded, or does not belong to the bundle.
        ProviderError: The device is not available.
    """
    if max_false_alarms is not None and not 0 <= max_false_alarms < float("inf"):
        raise PromptTuneError(
            f"max_false_alarms is {max_false_alarms}, but must be a number of at least 0: how many false alarms per "
            "1,000 images are allowed. Leave it out for no limit."
        )
    detector = Detector(bundle, device=device, learned=learned)
    vocabularies = {label: part for label, part in detector.vocabularies.items() if label != ORIGINAL}
    labels = None if data is None else _Labels.read(data, detector.vocabularies[ORIGINAL], strict=strict)
    unlabelled = {path.resolve(): path for path in find_images(images, recursive=recursive, strict=strict)}
    logger.info("False alarms are counted in %s, which need no labels.", counted(len(unlabelled), "image"))
    places = unlabelled | ({} if labels is None else {path: sample.path for path, sample in labels.samples.items()})
    tally = _Tally(detector, vocabularies, strict=strict)
    for done, (key, path) in enumerate(places.items(), 1):
        tally.add(path, count=key in unlabelled, measure=None if labels is None else labels.samples.get(key))
        if progress:
            progress("verify", done, len(places), "")
    if not tally.images:
        place = "`, `".join(map(str, as_places(images)))
        raise DataError(f"`{place}`: none of its {len(unlabelled)} images can be read. The first: {tally.skipped[0]}")
    if not tally.compared:
        logger.warning(
            "Nothing was compared, because no image has an original detection. Give images that show original classes."
        )
    result = replace(tally.result(), max_false_alarms=max_false_alarms)
    return result if labels is None else _with_precision(result, labels, tally)


def changed_bits(before: np.ndarray, after: np.ndarray) -> int:
    """Count the bits that differ between two tables of original detections, order included.

    Args:
        before: (n, 7) float32, rows of the graph's `original_detections`.
        after: (m, 7) float32 likewise.

    Returns:
        0 only if the tables are equal byte for byte. A row that one table lacks counts with all its bits.
    """
    common = min(len(before), len(after))
    first, second = (np.ascontiguousarray(table[:common]).view(np.uint8) for table in (before, after))
    differing = int(np.unpackbits(first ^ second).sum())
    surplus = (before[common:], after[common:])
    return differing + sum(8 * table.nbytes for table in surplus)


class _Tally:
    """Counts over images, for one detector whose learned vocabularies are loaded and unloaded."""

    def __init__(self, detector: Detector, vocabularies: Mapping[str, Vocabulary], *, strict: bool) -> None:
        """Plan the settings: each vocabulary alone; if there are several, also all of them, as given and in reverse."""
        self._detector = detector
        self._strict = strict
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
        """Compare one image; with `count`, count false alarms and collisions; with labels, keep it for precision."""
        try:
            image = read_picture(path)
        except DataError as error:
            if self._strict:
                raise
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
        if count:  # the last of the orders has loaded every vocabulary
            self.images += 1
            self._counts.add(path, self._detector.detect([image])[0])

    def result(self) -> Verification:
        """Everything but precision."""
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
        """(n, 7) float32: the graph's original detections with only these vocabularies loaded."""
        for label in [label for label in self._detector.vocabularies if label != ORIGINAL]:
            self._detector.unload(label)
        for label in order:
            self._detector.load(self._vocabularies[label], label)
        return self._detector.raw(network_input, original_conf=COMPARED_CONF, learned_conf=COMPARED_CONF)[0]

    def _original(self, rows: np.ndarray, placed: Letterbox) -> Detections:
        """The graph's original rows as detections in original pixels."""
        every = np.ones(len(self._packed.classes), dtype=bool)
        packed = self._packed
        return packed.detections(from_rows(rows), placed, every, packed.limits(0), packed.overlaps(NMS_IOU))


@dataclass(frozen=True, eq=False)
class _Labels:
    """The labelled images.

    Attributes:
        samples: By resolved path.
        rows: (n,) int64, the data set's classes as rows of the original vocabulary.
        n_cls: The number of original classes.
    """

    samples: "Mapping[Path, Sample]"
    rows: np.ndarray
    n_cls: int

    @classmethod
    def read(cls, data: str | Path, original: Vocabulary, *, strict: bool) -> "_Labels":
        """Read the validation images of a data set that names its classes as the original vocabulary does."""
        try:
            import faster_coco_eval  # noqa: F401  # found missing now, not after all images
            import yaml  # noqa: F401

            from prompt_tune.datasets.reading import read_split
        except ImportError as error:
            raise PromptTuneError(
                f"`data` needs packages that come with `fit`, and `{error.name}` is missing. Install them "
                f"({install('fit')}), or verify without --data."
            ) from error
        names, split = read_split(data, "val", strict=strict)
        unknown = [name for name in names if name not in original.class_names]
        if unknown:
            shown = ", ".join(map(repr, unknown[:NAMED])) + (", ..." if len(unknown) > NAMED else "")
            raise DataError(
                f"`{data}` has classes that the original vocabulary lacks ({len(unknown)}): {shown}. Name the classes "
                "as the bundle's original vocabulary does."
            )
        rows = np.array([original.names.index(name) for name in names], np.int64)
        return cls({sample.path.resolve(): sample for sample in split.samples}, rows, len(original.names))

    def precision(self, found: Iterable[tuple["Sample", Detections]]) -> Metrics:
        """Average precision, means over the original classes that have an object."""
        labels, founds = [], []
        for sample, detections in found:
            labels.append(replace(sample.labels, classes=self.rows[sample.labels.classes]))
            founds.append(detections)
        return average_precision(labels, founds, self.n_cls)


def _with_precision(result: Verification, labels: _Labels, tally: _Tally) -> Verification:
    """The result with the precision of the original classes before and after."""
    if not tally.measured:
        raise DataError(f"None of the {len(labels.samples)} labelled images can be read. The first: {tally.skipped[0]}")
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
