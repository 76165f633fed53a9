"""What the report of a fit shows: how the kept prompts do on the cached validation images, and what they changed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_tune.contract import METRIC_CONF
from prompt_tune.datasets.samples import Sample
from prompt_tune.evaluation.baselines import Baseline
from prompt_tune.evaluation.matching import HIT_IOU
from prompt_tune.evaluation.metrics import coco_evaluation
from prompt_tune.evaluation.outcomes import Example, Judged, outcomes
from prompt_tune.models.context import PromptContext
from prompt_tune.models.interpretation import movements, nearest_tokens
from prompt_tune.models.suppression import find
from prompt_tune.models.world import World, region_logits
from prompt_tune.report.figures import svg_precision_recall
from prompt_tune.report.page import ClassSection, Confusion, FitReport, versions, write_fit_page
from prompt_tune.report.pictures import Picture, labelled_picture, pictures
from prompt_tune.run import RunFolder
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.images import Letterbox
from prompt_tune.runtime.packing import Packed
from prompt_tune.tuning.drawn_boxes import frame_of, moved_boxes
from prompt_tune.tuning.regions import RegionCache
from prompt_tune.tuning.tiles import Tiling
from prompt_tune.vocabulary.vocabulary import Vocabulary
from prompt_tune.wording import counted

PICTURES_EACH = 6  # pictures of each kind (hits, misses, false alarms) for a class
TRAINING_PICTURES = 10  # about 0.2 MB
PICTURED_CLASSES = 24  # classes with pictures: about 3 MB
FIGURES = {  # pictures of a run folder, with what they show in words and their caption
    "curves.png": (
        "Training loss, and AP and AP50 on the validation images, by epoch.",
        "Training loss and validation AP by epoch, with suppression at IoU 0.7.",
    ),
    "reliability.png": (
        "Share of correct detections by score, and the number of detections.",
        "Reliability: how often a detection with a given score is correct.",
    ),
}


@dataclass(frozen=True, eq=False)
class _Seen:
    """The judged validation images, and confusions with original classes.

    Attributes:
        images: One for each image of the cache, in its order.
        confused: The number of labelled objects by (learned class, original class detected on the object).
    """

    images: list[Judged]
    confused: Counter[tuple[int, str]]


def write_fit_report(
    run: RunFolder,
    world: World,
    context: PromptContext,
    val: RegionCache,
    samples: Sequence[Sample],
    founds: Sequence[Detections],
    *,
    before: Sequence[Detections] | None = None,
    train: Sequence[Sample] = (),
    unlearned: Sequence[Baseline] = (),
    verdict: str = "",
) -> None:
    """Write `report.html` into a run folder whose other files are already there.

    Args:
        run: The run folder.
        world: The frozen detector.
        context: The kept context vectors.
        val: The validation images, with all anchors, under the original guide.
        samples: The images that `val` was made from, those that it had to skip included.
        founds: The detections of the kept prompts, with moved boxes: in the images of `val`, in its frame; or in the
            photos that these are windows of, in original pixels.
        before: The same with the detector's own boxes; None if boxes were not moved.
        train: The training images, some of which are shown with their boxes.
        unlearned: What the names give without learning.
        verdict: What to say of a fit that came to nothing; empty if it did not.

    Raises:
        RunError: The report cannot be written.
    """
    config = run.read_config()
    learned, original = Vocabulary.load(run.learned), Vocabulary.load(run.original)
    facts = _facts(config, learned)
    if len(learned.names) > len(context.classes):  # the others were carried over from an earlier run, not trained
        learned = learned.select([names[0] for names in context.classes])
    cached = [samples[i] for i in val.kept]
    frame = config["image_size"] if val.photos is None else None
    photos = [cached[i] for i in val.wholes]
    boxes = moved_boxes(learned, photos, founds if before is None else before, founds, frame)
    learned = replace(learned, box_offsets=None)  # `founds` have moved boxes already
    seen = _judge_images(world, learned, original, val, cached, founds, config["image_size"])
    evaluation = coco_evaluation(  # in original pixels, like the detections of the runtime
        [image.labels for image in seen.images], [image.found for image in seen.images], len(learned.names)
    )
    measured, per_class_ap50 = evaluation.metrics(range(len(learned.names))), evaluation.curves.mean(1)
    results = outcomes(seen.images, learned.names, learned.thresholds, n_best=PICTURES_EACH)
    sections = [
        ClassSection(name, prompts, float(ap50), float(threshold), result, svg_precision_recall(result))
        for name, prompts, ap50, threshold, result in zip(
            learned.names, context.classes, per_class_ap50, learned.thresholds, results, strict=True
        )
    ]
    pictured = sorted(range(len(sections)), key=lambda k: np.nan_to_num(sections[k].ap50, nan=2.0))[:PICTURED_CLASSES]
    sections, unread = _with_pictures(sections, set(pictured))
    plain = context.tower.embed_classes(context.texts)
    write_fit_page(
        run.report,
        FitReport(
            title=run.folder.absolute().name,
            ap=measured.ap,
            ap50=measured.ap50,
            lowest_score=METRIC_CONF,
            epoch=learned.provenance["epoch"],
            epochs=config["settings"]["epochs"],
            train_images=learned.provenance["train_images"],
            val_images=len(seen.images),
            folds=learned.provenance.get("cross_validated", 0),
            original_classes=len(original.class_names),
            classes=tuple(sections),
            pictured=len(pictured),
            unread=unread,
            unlearned=tuple(unlearned),
            verdict=verdict,
            training=_training_pictures(train, learned.names),
            figures=tuple(
                Picture.of_png(run.folder / name, *text)
                for name, text in FIGURES.items()
                if (run.folder / name).is_file()
            ),
            confusions=_confusions(seen, learned, sections),
            boxes=boxes,
            movements=movements(
                learned.names,
                learned.embeddings,
                plain,
                original.class_names,
                original.embeddings[~original.is_background],
            ),
            tokens=nearest_tokens(context),
            facts=facts,
        ),
    )


def _training_pictures(samples: Sequence[Sample], names: Sequence[str]) -> tuple[Picture, ...]:
    """Training images with their boxes, at equal distances in the data set; those that cannot be read are left out."""
    shown = [sample for sample in samples if len(sample.labels)]
    step = max(1, len(shown) // TRAINING_PICTURES)
    drawn = (labelled_picture(sample, names) for sample in shown[::step][:TRAINING_PICTURES])
    return tuple(picture for picture in drawn if picture is not None)


@torch.no_grad()
def _judge_images(
    world: World,
    learned: Vocabulary,
    original: Vocabulary,
    val: RegionCache,
    samples: Sequence[Sample],
    founds: Sequence[Detections],
    image_size: int,
) -> _Seen:
    """Judge the learned detections, and find the original classes that are detected on the same objects."""
    seen = _Seen([], Counter())
    level = world.anchors(image_size, image_size)[2]
    ours, others = Packed.of({"learned": learned}), Packed.of({ORIGINAL: original})
    rows = torch.tensor(original.embeddings).to(world.device)
    for photo, found in enumerate(founds):
        images = val.images_of([photo])
        sample = samples[images[0]]
        placed = frame_of(sample, image_size if val.photos is None else None)
        labels = sample.labels
        seen.images.append(Judged.of(sample.path, labels, _detections(ours, found, placed, ours.limits(0.0))))
        on_object: set[tuple[int, str]] = set()  # rows of `labels`, and original classes that are detected there
        for i in images:
            regions = val.load(i)
            near = _near_objects(regions.boxes_xyxy, regions.labels.boxes_xyxy)
            logits = region_logits(world, regions.head[near].to(world.device), level[near.to(level.device)], rows)
            on_objects = find(regions.boxes_xyxy[near].to(world.device), logits.sigmoid())
            original_found = _detections(others, on_objects, frame_of(samples[i], image_size), others.limits(None))
            left, top = (samples[i].window or (0, 0))[:2]
            boxes_xyxy = original_found.boxes_xyxy + np.array((left, top) * 2, np.float32)
            overlaps = box_iou(boxes_xyxy, labels.boxes_xyxy) >= HIT_IOU  # (n, m)
            on_object.update((int(k), original_found.class_names[row]) for row, k in np.argwhere(overlaps))
        seen.confused.update((int(labels.classes[k]), name) for k, name in on_object if not labels.ignore[k])
    return seen


def _near_objects(boxes: Tensor, label_boxes: np.ndarray) -> Tensor:
    """(n,) int64, the anchors whose boxes overlap an object.

    Original classes are scored on these only, for there may be thousands of classes.
    """
    iou = box_iou(boxes.numpy(), label_boxes)  # (A, m)
    return torch.from_numpy(np.flatnonzero(iou.max(axis=1, initial=0) >= HIT_IOU))


def _detections(packed: Packed, found: Detections, placed: Letterbox, limits: np.ndarray) -> Detections:
    """Detections as the runtime gives them: calibrated, suppressed, in original pixels, above the limits (n_cls,)."""
    return packed.detections(found, placed, np.ones(len(packed.classes), bool), limits, packed.overlaps(None))


def _with_pictures(sections: Sequence[ClassSection], pictured: set[int]) -> tuple[list[ClassSection], tuple[str, ...]]:
    """Add pictures to the sections, and name the images that could not be read again. Each image is read once."""
    wanted = []
    for k in sorted(pictured):
        result, name = sections[k].outcome, sections[k].name
        kinds = {"hit": result.best_hits, "miss": result.best_misses, "false alarm": result.best_false_alarms}
        wanted += [(example, name, kind) for kind, examples in kinds.items() for example in examples]
    drawn, unread = pictures(wanted)

    def of(examples: Sequence[Example]) -> tuple[Picture, ...]:
        return tuple(drawn[example] for example in examples if example in drawn)

    return [
        replace(
            section,
            hits=of(section.outcome.best_hits),
            misses=of(section.outcome.best_misses),
            false_alarms=of(section.outcome.best_false_alarms),
        )
        for section in sections
    ], unread


def _confusions(seen: _Seen, learned: Vocabulary, sections: Sequence[ClassSection]) -> tuple[Confusion, ...]:
    """The confusions, most frequent first; ties in the order of the learned classes."""
    pairs = sorted(seen.confused.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Confusion(learned.names[k], name, count, sections[k].outcome.objects) for (k, name), count in pairs)


def _facts(config: dict[str, Any], learned: Vocabulary) -> dict[str, dict[str, str]]:
    """Settings, inputs, digests and versions, as text."""
    made_from = {"model": config["model"], "data": config["data"], "text tower": config["text_tower"]}
    if "tiled" in learned.provenance:
        made_from["cut"] = str(Tiling.of(learned.provenance["tiled"]))
    if config["replay"]:
        made_from["replay"] = counted(learned.provenance["replay_images"], "image")
    if "carried" in learned.provenance:
        made_from["carried over, not trained in this run"] = ", ".join(learned.provenance["carried"]["names"])
    settings = {name.replace("_", " "): _written(value) for name, value in config["settings"].items()}
    if not config["settings"]["nms_iou"]:
        settings["nms iou"] = f"{learned.provenance['nms_iou']:g}, chosen on the validation images"
    digests = {name.replace("_", " "): digest for name, digest in config["digests"].items()}
    return {
        "Settings": settings,
        "Inputs": {name: str(value) for name, value in made_from.items()},
        "Digests (SHA-256)": digests | {"learned vocabulary": learned.digest},
        "Versions": versions("torch", "ultralytics", "open_clip_torch", "numpy", "pillow"),
    }


def _written(value: object) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value) if value != "" else "(none)"
