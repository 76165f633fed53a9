"""COCO metrics of learned and original classes on a data set: of a run through torch, or of a bundle as it is deployed.

Both measure all that the runtime would find above a score of 0.001, boxes in pixels of the original images. Calibration
does not decide what is found: the cut is made on uncalibrated scores, so that AP is the same with it and without. A
bundle is measured without torch.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prompt_tune.contract import METRIC_CONF
from prompt_tune.datasets.reading import SplitName
from prompt_tune.deployment.bundle import export_bundle
from prompt_tune.errors import DataError, RunError
from prompt_tune.evaluation.ground_truth import Labelling
from prompt_tune.evaluation.matching import match_classes
from prompt_tune.evaluation.metrics import Metrics, coco_evaluation
from prompt_tune.models.embeddings import load_run
from prompt_tune.progress import Progress
from prompt_tune.run import CONFIG_FILE
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import LEARNED, Detector
from prompt_tune.runtime.images import letterbox, read_rgb
from prompt_tune.runtime.packing import calibrated
from prompt_tune.vocabulary.format import GRAPH_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from prompt_tune.models.world import World

Engine = Literal["torch", "onnx"]
Detect = Callable[[np.ndarray], Detections]  # image uint8 (h, w, 3) -> detections in its pixels, by `Labelling`


@dataclass(frozen=True)
class ClassResult:
    """One class. vocabulary: its label, "original" or "learned". objects: its labels.

    threshold: the vocabulary's own. precision, recall: of the detections above it, at IoU 0.5; nan of none.
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
    """What `validate` found.

    images: how many were measured. skipped: a line for each that cannot be read. learned, original: means over the
    classes of a vocabulary, None where the data set labels none of them; together: over all. classes: those that have
    labels. curves: (len(classes), 101), precision at IoU 0.5 by recall. unknown: the data set's classes that no
    vocabulary has. unlabelled: those that have no label in this split.
    """

    engine: Engine
    split: SplitName
    images: int
    skipped: tuple[str, ...]
    learned: Metrics | None
    original: Metrics | None
    together: Metrics
    classes: tuple[ClassResult, ...]
    curves: np.ndarray
    unknown: tuple[str, ...]
    unlabelled: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of all but the curves; null where there is no number."""
        fields = {name: getattr(self, name) for name in ("engine", "split", "images")}
        lists = {name: list(getattr(self, name)) for name in ("skipped", "unknown", "unlabelled")}
        means = {name: getattr(self, name) for name in ("learned", "original", "together")}
        means = {name: value and asdict(value) for name, value in means.items()}
        rows = [asdict(row) | row.metrics.__dict__ for row in self.classes]
        classes = [{name: value for name, value in row.items() if name != "metrics"} for row in rows]
        plain: dict[str, Any] = _without_nan(fields | means | {"classes": classes} | lists)
        return plain


def validate(
    place: str | Path,
    data: str | Path,
    *,
    split: SplitName = "val",
    engine: Engine | None = None,
    names: Sequence[str] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Validation:
    """Measure a run folder of `fit` or a bundle of `export`.

    Args:    place: the folder. engine: None takes torch for a run and ONNX Runtime for a bundle; "onnx" exports a run
             for the occasion. The rest is as of `validate_run` and `validate_bundle`.
    Raises:  RunError: neither a run nor a bundle, or torch on a bundle; else as of those two.
    """
    place = Path(place)
    options: dict[str, Any] = {"split": split, "names": names, "device": device, "progress": progress}
    if (place / GRAPH_FILE).is_file():
        if engine == "torch":
            raise RunError(f"`{place}` is a bundle, and has a graph for ONNX Runtime alone. Give its run for torch.")
        return validate_bundle(place, data, **options)
    if not (place / CONFIG_FILE).is_file():
        raise RunError(f"`{place}` is no run of `fit` ({CONFIG_FILE}) and no bundle ({GRAPH_FILE}). Give one of them.")
    if engine != "onnx":
        return validate_run(place, data, **options)
    with tempfile.TemporaryDirectory() as folder:
        export_bundle(place, Path(folder) / "bundle")
        return validate_bundle(Path(folder) / "bundle", data, **options)


def validate_run(
    run: str | Path,
    data: str | Path,
    *,
    split: SplitName = "val",
    names: Sequence[str] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Validation:
    """Measure a run through torch: all anchors, and suppression by the graph's rule.

    Args:    run: a folder of `fit`.
             data: a data set in any format that `fit` reads. Its classes are found in the vocabularies by name.
             split: of the data set; it needs no other.
             names: names for the data set's classes, in its order, in place of its own.
             device: a torch device.
             progress: called with (stage, done, total, note).
    Raises:  DataError: no label of a class that the vocabularies have, or no image can be read.
             RunError, ModelError, VocabularyError: the run is incomplete or does not belong together.
             ProviderError: the device is not there.
    """
    from prompt_tune.models.world import check_device

    check_device(device)
    config, world, original, learned = load_run(Path(run), device)
    vocabularies = {ORIGINAL: original, LEARNED: learned}
    labels = Labelling.of(data, split, names, vocabularies)
    detect = _torch_detector(world, config["image_size"], vocabularies, labels)
    return _measure("torch", labels, detect, progress)


def validate_bundle(
    bundle: str | Path,
    data: str | Path,
    *,
    split: SplitName = "val",
    names: Sequence[str] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Validation:
    """Measure a bundle through ONNX Runtime, as it is deployed: `Detector.detect`.

    Args:    bundle: a folder of `export`. device: "cpu" or "cuda". The rest is as of `validate_run`.
    Raises:  DataError: as of `validate_run`. GraphError, VocabularyError, ProviderError: as of `Detector`.
    """
    detector = Detector(bundle, device=device)  # type: ignore[arg-type]  # it checks the name
    labels = Labelling.of(data, split, names, detector.vocabularies)
    return _measure("onnx", labels, _onnx_detector(detector, labels), progress)


def _torch_detector(
    world: "World", image_size: int, vocabularies: Mapping[str, Vocabulary], labels: Labelling
) -> Detect:
    """Detections by torch. The original vocabulary guides the neck, or a vocabulary that guides itself."""
    import torch

    from prompt_tune.models.suppression import find
    from prompt_tune.models.world import region_logits

    level = world.anchors(image_size, image_size)[2]
    parts = []
    for label, vocabulary in vocabularies.items():
        rows = labels.of_vocabulary(label)
        if rows:
            chosen = vocabulary.embeddings[[vocabulary.names.index(labels.keys[row][1]) for row in rows]]
            guide = vocabulary if vocabulary.guide_mode == "own" else vocabularies[ORIGINAL]
            flat = torch.tensor(guide.embeddings, device=world.device).flatten(0, 1)  # (n_cls * n_prompts, 512)
            parts.append((np.array(rows), torch.tensor(chosen, device=world.device), guide.digest, flat))

    @torch.no_grad()
    def detect(image: np.ndarray) -> Detections:
        pixels, placed = letterbox(image, image_size)
        network_input = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).to(world.device)  # (1, 3, size, size)
        passes: dict[str, tuple[Any, Any]] = {}  # one for each guide
        founds = []
        for rows, embeddings, digest, guide in parts:
            if digest not in passes:
                passes[digest] = world.features(network_input.float() / 255, guide)
            head, boxes = passes[digest]
            found = find(boxes[0], region_logits(world, head[0], level, embeddings).sigmoid())
            found = found.distinct(labels.nms_iou[rows])
            boxes_xyxy, classes = placed.to_original(found.boxes_xyxy), rows[found.class_ids]
            scores = calibrated(found.scores, labels.calibration[classes])
            inside = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1)  # what lies in the grey border is none
            founds.append(Detections(boxes_xyxy[inside], scores[inside], classes[inside]))
        return Detections(
            boxes_xyxy=np.concatenate([found.boxes_xyxy for found in founds]),
            scores=np.concatenate([found.scores for found in founds]),
            class_ids=np.concatenate([found.class_ids for found in founds]),
        )

    return detect


def _onnx_detector(detector: Detector, labels: Labelling) -> Detect:
    """Detections by ONNX Runtime: those whose uncalibrated score is above the cut."""
    row_of = {key: row for row, key in enumerate(labels.keys)}
    lowest = np.full(len(labels.keys), METRIC_CONF, np.float32)
    cut = calibrated(lowest, labels.calibration)  # (n_cls,): where the cut lies after calibration
    show = [":".join(key) for key in labels.keys]
    original = np.array([label == ORIGINAL for label, _ in labels.keys])
    confs = [float(cut[of].min(initial=1.0)) for of in (original, ~original)]

    def detect(image: np.ndarray) -> Detections:
        found = detector.detect([image], show=show, original_conf=confs[0], learned_conf=confs[1])[0]
        keys = zip(found.vocabularies, found.class_names, strict=True)
        classes = np.array([row_of.get(key, -1) for key in keys], np.int64)  # (n,)
        kept = (classes >= 0) & (found.scores > cut[classes])
        return Detections(found.boxes_xyxy[kept], found.scores[kept], classes[kept])

    return detect


def _measure(engine: Engine, labelling: Labelling, detect: Detect, progress: Progress | None) -> Validation:
    """Run over the images and sum up."""
    labels, founds, skipped = [], [], []
    for done, sample in enumerate(labelling.samples, 1):
        try:
            image = read_rgb(sample.path)
        except DataError as error:
            skipped.append(str(error))
            continue
        labels.append(labelling.labels(sample))
        founds.append(detect(image))
        if progress:
            progress("validate", done, len(labelling.samples), "")
    if not founds:
        raise DataError(f"None of the {len(labelling.samples)} images can be read. The first: {skipped[0]}")
    evaluation = coco_evaluation(labels, founds, len(labelling.keys))
    classes = []
    for row, matched in enumerate(match_classes(labels, founds, len(labelling.keys))):
        threshold = float(labelling.thresholds[row])
        metrics = evaluation.metrics([row])
        classes.append(
            ClassResult(*labelling.keys[row], matched.n_objects, metrics, threshold, *matched.above(threshold))
        )
    original = labelling.of_vocabulary(ORIGINAL)
    learned = [row for row in range(len(labelling.keys)) if row not in original]
    return Validation(
        engine=engine,
        split=labelling.split,
        images=len(founds),
        skipped=tuple(skipped),
        learned=evaluation.metrics(learned) if learned else None,
        original=evaluation.metrics(original) if original else None,
        together=evaluation.metrics(range(len(labelling.keys))),
        classes=tuple(classes),
        curves=evaluation.curves,
        unknown=labelling.unknown,
        unlabelled=labelling.unlabelled,
    )


def _without_nan(value: Any) -> Any:
    """The same JSON with None for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value
