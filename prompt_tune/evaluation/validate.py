"""COCO metrics of learned and original classes on a data set: of a run through torch, or of a bundle as deployed.

Both measure everything with an uncalibrated score above 0.001, with boxes in original pixels. The cut is made before
calibration, so AP is the same with and without it. A bundle is measured without torch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prompt_tune.datasets.samples import Labels
from prompt_tune.errors import DataError, ModelError
from prompt_tune.evaluation.baselines import (
    IN_FIT,
    PLAIN,
    Baseline,
    before_and_after,
    name_embeddings,
    recorded_baselines,
)
from prompt_tune.evaluation.baselines import best as best_baseline
from prompt_tune.evaluation.confusion import Confusion, ConfusionCounts
from prompt_tune.evaluation.detectors import Detect, in_slices, onnx_detector, torch_detector
from prompt_tune.evaluation.ground_truth import GroundTruth
from prompt_tune.evaluation.matching import Matched, match_classes
from prompt_tune.evaluation.metrics import Metrics, coco_evaluation
from prompt_tune.evaluation.per_image import ImageResult, image_results
from prompt_tune.progress import Progress
from prompt_tune.run import RunFolder
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import read_picture
from prompt_tune.runtime.labels import LEARNED
from prompt_tune.runtime.slices import Slices
from prompt_tune.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from prompt_tune.datasets.reading import SplitName

Engine = Literal["torch", "onnx"]


@dataclass(frozen=True)
class ClassResult:
    """The numbers of one class.

    Attributes:
        vocabulary: The label of its vocabulary: "original", "learned", or that of a further one.
        name: Its name.
        objects: The number of its labels.
        metrics: COCO's numbers.
        threshold: The vocabulary's threshold of the class, in 0..1.
        precision: Precision of the detections above the threshold, at IoU 0.5; nan without detections.
        recall: Recall of the same detections.
    """

    vocabulary: str
    name: str
    objects: int
    metrics: Metrics
    threshold: float
    precision: float
    recall: float


@dataclass(frozen=True, eq=False)
class Validation:
    """The result of a validation.

    Attributes:
        engine: What computed the detections.
        split: The split of the data set.
        images: The number of images measured.
        skipped: One line for each image that cannot be read.
        learned: Means over the learned classes; None if the data set labels none of them.
        original: Means over the original classes; None likewise.
        together: Means over all classes.
        classes: The classes that have labels.
        curves: (len(classes), 101) precision at IoU 0.5 by recall.
        matched: The detections of each class.
        confusion: Which classes were taken for which.
        per_image: Hits, misses and false alarms of each image and vocabulary.
        unknown: Classes of the data set that no vocabulary has.
        unlabelled: Classes that a vocabulary has, but that have no label in this split.
        unlearned: What the names of the learned classes give on the same images without learning.
        in_fit: What `fit` recorded of the same, on its own validation images.
        note: Why `unlearned` is empty, in a sentence; empty if it is not, or if no learned class is measured.
        slices: How images were also looked at in slices; None if only as a whole.
    """

    engine: Engine
    split: "SplitName"
    images: int
    skipped: tuple[str, ...]
    learned: Metrics | None
    original: Metrics | None
    together: Metrics
    classes: tuple[ClassResult, ...]
    curves: np.ndarray
    matched: tuple[Matched, ...]
    confusion: Confusion
    per_image: tuple[ImageResult, ...]
    unknown: tuple[str, ...]
    unlabelled: tuple[str, ...]
    unlearned: tuple[Baseline, ...] = ()
    in_fit: tuple[Baseline, ...] = ()
    note: str = ""
    slices: Slices | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the curves and single images as plain JSON, with null for nan."""
        own = {name: getattr(self, name) for name in ("engine", "split", "images")}
        if self.slices:
            own |= {"slice": self.slices.size, "slice_overlap": self.slices.overlap}
        lists = {name: list(getattr(self, name)) for name in ("skipped", "unknown", "unlabelled")}
        means = {name: getattr(self, name) for name in ("learned", "original", "together")}
        means = {name: value and asdict(value) for name, value in means.items()}
        rows = [asdict(row) | row.metrics.__dict__ for row in self.classes]
        classes = [{name: value for name, value in row.items() if name != "metrics"} for row in rows]
        before = {
            "unlearned": [part.to_json() for part in self.unlearned],
            "unlearned_in_fit": [part.to_record() for part in self.in_fit],
            "note": self.note,
        }
        plain: dict[str, Any] = _without_nan(
            own | means | {"classes": classes, "confusion": self.confusion.to_json()} | lists | before
        )
        return plain


def validate_run(
    run: str | Path,
    data: str | Path,
    *,
    split: "SplitName" = "val",
    names: Sequence[str] | None = None,
    device: str = "cpu",
    slices: Slices | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Validation:
    """Measure a run through torch, on all anchors, with the suppression that the graph has.

    Args:
        run: A run folder of `fit`.
        data: A data set in any format that `fit` reads. Its classes are matched to the vocabularies by name.
        split: The split to measure on. The data set needs no other.
        names: Class names to use instead of the data set's own, in class-id order.
        device: A torch device.
        slices: How images are also looked at in slices, see `detect_sliced`. By default, only as a whole.
        strict: Whether anything of the data that is left out (unreadable images, bad label rows, ...) is an error.
        progress: Called after each image.

    Raises:
        DataError: The data set has no label of a class that the vocabularies have, or no image can be read.
        RunError: The run is incomplete.
        ModelError: The detector cannot be loaded, or is not the one that the run was made with.
        VocabularyError: A vocabulary cannot be loaded, or does not belong to the run.
        ProviderError: The device is not available.
    """
    from prompt_tune.models.embeddings import load_run
    from prompt_tune.models.world import torch_device

    device = torch_device(device)
    config, world, original, learned = load_run(Path(run), device)
    vocabularies = {ORIGINAL: original, LEARNED: learned}
    truth = GroundTruth.read(data, split, names, vocabularies, RunFolder(Path(run)).held_out(), strict=strict)
    names_alone, note = _names_alone(Path(run), learned, device) if truth.of_vocabulary(LEARNED) else ([], "")
    detect = torch_detector(world, config["image_size"], vocabularies, truth, [rows for _, rows in names_alone])
    result = _measure("torch", truth, detect, progress, [part for part, _ in names_alone], slices=slices, strict=strict)
    return replace(result, in_fit=recorded_baselines(learned.provenance), note=note)


def validate_bundle(
    bundle: str | Path,
    data: str | Path,
    *,
    learned: Sequence[str | Path] = (),
    split: "SplitName" = "val",
    names: Sequence[str] | None = None,
    device: str = "cpu",
    slices: Slices | None = None,
    strict: bool = False,
    progress: Progress | None = None,
    recorded: Collection[str] | None = None,
) -> Validation:
    """Measure a bundle through ONNX Runtime, as it is deployed: with `Detector.detect`.

    Args:
        bundle: A bundle folder of `export`.
        data: A data set in any format that `fit` reads. Its classes are matched to the vocabularies by name.
        learned: More vocabulary files for the same detector, labelled as by `Detector.load`.
        split: The split to measure on. The data set needs no other.
        names: Class names to use instead of the data set's own, in class-id order.
        device: See `open_session`.
        slices: How images are also looked at in slices, see `detect_sliced`. By default, only as a whole.
        strict: Whether anything of the data that is left out (unreadable images, bad label rows, ...) is an error.
        progress: Called after each image.
        recorded: What the run behind the bundle says of the images that it held out; see `hold_out`. None goes by the
            bundle: the present draw if its fit says that it held images out, and that of 0.1.0 otherwise.

    Raises:
        DataError: The data set has no label of a class that the vocabularies have, or no image can be read.
        GraphError: The bundle is incomplete or damaged.
        VocabularyError: A vocabulary cannot be loaded, or does not belong to the bundle.
        ProviderError: The device is not available.
    """
    detector = Detector(bundle, device=device, learned=learned)
    provenance = {} if detector.bundled is None else detector.vocabularies[detector.bundled].provenance
    if recorded is None and "held_out" not in provenance:
        recorded = ()
    truth = GroundTruth.read(data, split, names, detector.vocabularies, recorded, strict=strict)
    result = _measure("onnx", truth, onnx_detector(detector, truth), progress, slices=slices, strict=strict)
    in_fit = recorded_baselines(provenance)
    note = "" if result.learned is None else _note_of_bundle(in_fit, provenance)
    return replace(result, in_fit=in_fit, note=note)


def _note_of_bundle(in_fit: Sequence[Baseline], provenance: Mapping[str, Any]) -> str:
    """Why a bundle's plain names are not measured, and what `fit` recorded of them."""
    why = "A bundle has no text tower, so plain names are not measured here."
    learned = provenance.get("val_ap50")
    if not in_fit or not isinstance(learned, float):
        return f"{why} `val` of the run does."
    return f"{why} In the fit, AP50 on its validation images: {before_and_after(in_fit, learned)}."


def _names_alone(run: Path, learned: Vocabulary, device: str) -> tuple[list[tuple[Baseline, np.ndarray]], str]:
    """The plain names of the learned classes, and the template that `fit` chose, or else all templates.

    Returns:
        Baselines without figures, each with its (n_cls, n_prompts, 512) embeddings; and why there are none.
    """
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.vocabulary.names import read_templates

    config = RunFolder(run).read_config()
    try:
        tower = TextTower.load(str(config.get("text_tower", "")), device=device)
    except ModelError as error:
        return [], f"Plain names are not measured. {error}"
    if tower.digest != learned.text_tower:
        return [], f"Plain names are not measured: '{tower.spec}' is not the text tower that the run was made with."
    known = {names[0]: tuple(names) for names in config.get("classes", [])}
    texts = [known.get(name, (name,)) for name in learned.names]
    chosen = [(part.template, part.chosen.partition(" on ")[0]) for part in recorded_baselines(learned.provenance)]
    chosen = [(template, f"{how} {IN_FIT}" if how else "") for template, how in chosen]
    candidates = chosen or [(template, "") for template in (PLAIN, *read_templates())]
    unmeasured = Metrics(*[np.nan] * len(fields(Metrics)))
    found = []
    for template, how in candidates:
        rows = name_embeddings(tower, texts, template)
        if rows is not None:
            found.append((Baseline(template, how, unmeasured), rows))
    return found, ""


def _measure(
    engine: Engine,
    truth: GroundTruth,
    detect: Detect,
    progress: Progress | None,
    baselines: Sequence[Baseline] = (),
    *,
    slices: Slices | None,
    strict: bool,
) -> Validation:
    """Detect in all images, and evaluate."""
    detect = in_slices(detect, slices, truth) if slices else detect
    labels, founds, skipped, paths = [], [], [], []
    confusion = ConfusionCounts(truth.names, truth.keys + truth.others, len(truth.keys))
    for done, sample in enumerate(truth.samples, 1):
        try:
            image = read_picture(sample.path, whole=slices is not None)
        except DataError as error:
            if strict:
                raise
            skipped.append(str(error))
            continue
        labels.append(truth.labels(sample))
        found, *others = detect(image)
        above = found.select(found.scores > truth.thresholds[found.class_ids])
        confusion.add(sample.labels, labels[-1], truth.places(sample), above)
        founds.append([found.select(found.class_ids < len(truth.keys)), *others])
        paths.append(sample.path)
        if progress:
            progress("validate", done, len(truth.samples), "")
    if not founds:
        raise DataError(f"None of the {len(truth.samples)} images can be read. The first: {skipped[0]}")
    of_vocabularies, *of_baselines = zip(*founds, strict=True)  # each has the detections of all images
    evaluation = coco_evaluation(labels, of_vocabularies, len(truth.keys))
    matched = match_classes(labels, of_vocabularies, len(truth.keys))
    classes = []
    for row, part in enumerate(matched):
        threshold = float(truth.thresholds[row])
        metrics = evaluation.metrics([row])
        classes.append(ClassResult(*truth.keys[row], part.n_objects, metrics, threshold, *part.above(threshold)))
    original = truth.of_vocabulary(ORIGINAL)
    learned = [row for row in range(len(truth.keys)) if row not in original]
    return Validation(
        engine=engine,
        split=truth.split,
        images=len(founds),
        skipped=tuple(skipped),
        learned=evaluation.metrics(learned) if learned else None,
        original=evaluation.metrics(original) if original else None,
        together=evaluation.metrics(range(len(truth.keys))),
        classes=tuple(classes),
        curves=evaluation.curves,
        matched=tuple(matched),
        confusion=confusion.result(),
        per_image=tuple(image_results(paths, labels, of_vocabularies, truth.keys, truth.thresholds)),
        unknown=truth.unknown,
        unlabelled=truth.unlabelled,
        slices=slices,
        unlearned=_evaluated(baselines, truth, labels, of_baselines),
    )


def _evaluated(
    baselines: Sequence[Baseline], truth: GroundTruth, labels: Sequence[Labels], founds: Sequence[Sequence[Detections]]
) -> tuple[Baseline, ...]:
    """Baselines with their figures. Of templates that nobody has chosen yet, the best one on these images."""
    rows = {row: truth.keys[row][1] for row in truth.of_vocabulary(LEARNED)}
    measured = [
        Baseline.of(part.template, part.chosen, coco_evaluation(labels, found, len(truth.keys)), rows)
        for part, found in zip(baselines, founds, strict=True)
    ]
    untried = [part for part in measured if part.template != PLAIN and not part.chosen]
    kept = [part for part in measured if part not in untried]
    if chosen := best_baseline(untried):
        kept.append(replace(chosen, chosen=f"the best of {len(untried)} templates on these images"))
    return tuple(kept)


def _without_nan(value: Any) -> Any:
    """The same JSON with None for nan, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value
