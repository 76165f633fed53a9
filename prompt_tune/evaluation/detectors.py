"""What `val` detects with: torch or ONNX Runtime, in whole images or in slices too."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_tune.contract import METRIC_CONF
from prompt_tune.evaluation.ground_truth import GroundTruth
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import Picture, letterbox, to_rgb
from prompt_tune.runtime.labels import LEARNED
from prompt_tune.runtime.offsets import move
from prompt_tune.runtime.packing import calibrated
from prompt_tune.runtime.slices import Slices, merge_limits, merged_classes
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

if TYPE_CHECKING:
    from prompt_tune.models.world import World

# Image -> detections in its pixels, with classes of `GroundTruth`: of the vocabularies (those of
# classes without labels only above their thresholds), then of each baseline
Detect = Callable[[Picture], list[Detections]]


def torch_detector(
    world: "World",
    image_size: int,
    vocabularies: Mapping[str, Vocabulary],
    truth: GroundTruth,
    baselines: Sequence[np.ndarray],
) -> Detect:
    """A function that detects with torch. Each vocabulary and each baseline is measured under its own guide.

    A baseline is given as the embeddings (n_cls, n_prompts, 512) of the learned classes.
    """
    import torch

    from prompt_tune.models.suppression import find
    from prompt_tune.models.world import region_logits

    level = world.anchors(image_size, image_size)[2]
    parts = []  # place in what `detect` returns, rows of `truth`, their embeddings and limits, digest and rows of guide
    learned = vocabularies[LEARNED]
    alternatives = [(place, learned, rows) for place, rows in enumerate(baselines, 1)]
    for place, vocabulary, all_rows in [(0, part, part.embeddings) for part in vocabularies.values()] + alternatives:
        label = LEARNED if vocabulary is learned else ORIGINAL
        rows = truth.of_vocabulary(label)
        if place == 0:
            rows += truth.others_of(label)
        if rows:
            keys = truth.keys + truth.others
            chosen = all_rows[[vocabulary.names.index(keys[row][1]) for row in rows]]
            guide = all_rows if vocabulary.guide_mode == "own" else vocabularies[ORIGINAL].embeddings
            flat = torch.tensor(guide, device=world.device).flatten(0, 1)  # (n_cls * n_prompts, 512)
            least = torch.tensor(truth.least_scores[rows], device=world.device)
            chosen = torch.tensor(chosen, device=world.device)
            parts.append((place, np.array(rows), chosen, least, guide_digest(guide), flat))

    @torch.no_grad()
    def detect(image: Picture) -> list[Detections]:
        pixels, placed = letterbox(image, image_size)
        network_input = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).to(world.device)  # (1, 3, size, size)
        passes: dict[str, tuple[Any, Any]] = {}  # by digest of the guide: head features and boxes
        founds: list[list[Detections]] = [[] for _ in range(1 + len(baselines))]
        for place, rows, embeddings, least, digest, guide in parts:
            if digest not in passes:
                passes[digest] = world.features(network_input.float() / 255, guide)
            head, boxes = passes[digest]
            region_scores = region_logits(world, head[0], level, embeddings).sigmoid()  # (A, n_cls)
            found = find(boxes[0], region_scores.where(region_scores > least, 0))
            if place == 0:  # names without learning have no offsets and NMS IoU of their own, and no calibration
                found = move(found, truth.box_offsets[rows]).distinct(truth.nms_iou[rows])
            boxes_xyxy, classes = placed.to_original(found.boxes_xyxy), rows[found.class_ids]
            scores = found.scores if place else calibrated(found.scores, truth.calibration[classes])
            kept = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1)  # not entirely in the grey border
            kept &= (classes < len(truth.keys)) | (scores > truth.thresholds[classes])
            founds[place].append(Detections(boxes_xyxy[kept], scores[kept], classes[kept]))
        return [
            Detections(
                boxes_xyxy=np.concatenate([found.boxes_xyxy for found in part]),
                scores=np.concatenate([found.scores for found in part]),
                class_ids=np.concatenate([found.class_ids for found in part]),
            )
            for part in founds
        ]

    return detect


def onnx_detector(detector: Detector, truth: GroundTruth) -> Detect:
    """A function that detects with ONNX Runtime and keeps uncalibrated scores above the cut."""
    keys = truth.keys + truth.others
    row_of = {key: row for row, key in enumerate(keys)}
    lowest = np.full(len(keys), METRIC_CONF, np.float32)
    cut = calibrated(lowest, truth.calibration)  # (n_cls,): the cut on the calibrated scale
    cut[len(truth.keys) :] = truth.thresholds[len(truth.keys) :]  # of these, no metric is measured
    original = np.array([label == ORIGINAL for label, _ in keys])
    confs = [float(cut[of].min(initial=1.0)) for of in (original, ~original)]

    def detect(image: Picture) -> list[Detections]:
        found = detector.detect([image], original_conf=confs[0], learned_conf=confs[1])[0]
        found_keys = zip(found.vocabularies, found.class_names, strict=True)
        classes = np.array([row_of[key] for key in found_keys], np.int64)  # (n,)
        kept = found.scores > cut[classes]
        return [Detections(found.boxes_xyxy[kept], found.scores[kept], classes[kept])]

    return detect


def in_slices(detect: Detect, slices: Slices, truth: GroundTruth) -> Detect:
    """A function that detects in an image and in its slices, and merges what is found, as `detect_sliced` does."""
    limits, thresholds = merge_limits(truth.nms_iou), truth.thresholds
    limits_alone, thresholds_alone = merge_limits(np.ones_like(limits)), np.zeros_like(thresholds)  # of baselines

    def detect_windows(image: Picture) -> list[Detections]:
        pixels, windows = to_rgb(image), slices.windows(image.size_wh)
        parts = [detect(Picture.of(pixels[top:bottom, left:right])) for left, top, right, bottom in windows]
        if len(parts) == 1:
            return parts[0]
        of_vocabularies, *of_baselines = zip(*parts, strict=True)  # each has the detections of all windows
        found = [merged_classes(of_vocabularies, windows, limits, thresholds)]
        return found + [merged_classes(part, windows, limits_alone, thresholds_alone) for part in of_baselines]

    return detect_windows
