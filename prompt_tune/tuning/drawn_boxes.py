"""What the report of a fit shows of boxes: how those of each class are moved, in words and pictures."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.evaluation.box_offsets import in_words
from prompt_tune.evaluation.matching import judge
from prompt_tune.evaluation.outcomes import Example
from prompt_tune.report.page import MovedBoxes
from prompt_tune.report.pictures import pictures
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.images import Letterbox
from prompt_tune.vocabulary.vocabulary import Vocabulary

EACH = 4  # pictures of a class
PICTURED = 12  # classes with pictures: those whose boxes move most


def moved_boxes(
    learned: Vocabulary,
    samples: Sequence[Sample],
    before: Sequence[Detections],
    found: Sequence[Detections],
    image_size: int | None,
) -> tuple[MovedBoxes, ...]:
    """How boxes are moved, by class; nothing if the vocabulary says nothing of it.

    Args:
        learned: With box offsets and, in its provenance, where they come from.
        samples: The validation images.
        before: The detections in each, with the detector's own boxes, in pixels of the network's input.
        found: The same with moved boxes, after suppression.
        image_size: Side of the network's input in pixels; None if detections are in original pixels.
    """
    known = learned.provenance.get("boxes")
    if known is None:
        return ()
    offsets = learned.box_offsets_rows
    strongest = np.argsort(-np.abs(offsets).sum(1), kind="stable")[:PICTURED].tolist()
    shown = {k: _examples(k, samples, before, found, image_size) for k in strongest if offsets[k].any()}
    drawn, _ = pictures([(part, learned.names[k], "box") for k, parts in shown.items() for part in parts])
    nothing = {"objects": 0, "iou_before": np.nan, "iou_after": np.nan}
    rows = []
    for k, name in enumerate(learned.names):
        facts = known.get(name, nothing)
        text = in_words(offsets[k]) if offsets[k].any() else "boxes stay as the detector draws them"
        rows.append(
            MovedBoxes(
                name,
                text,
                int(facts["objects"]),
                float(facts["iou_before"]),
                float(facts["iou_after"]),
                bool(offsets[k].any()),
                tuple(drawn[part] for part in shown.get(k, ()) if part in drawn),
            )
        )
    return tuple(rows)


def frame_of(sample: Sample, image_size: int | None) -> Letterbox:
    """Where an image lies in the frame of its detections: the network's input, or without a size its own pixels."""
    width, height = sample.size_wh
    return Letterbox.of((width, height), (height, width) if image_size is None else (image_size, image_size))


def _examples(
    k: int, samples: Sequence[Sample], before: Sequence[Detections], found: Sequence[Detections], image_size: int | None
) -> list[Example]:
    """The detections of a class with the highest scores that found an object, with their boxes before and after."""
    ranked: list[tuple[float, Example]] = []
    for sample, was, now in zip(samples, before, found, strict=True):
        placed = frame_of(sample, image_size)
        was, now = (_of_class(part, k, placed) for part in (was, now))
        own = sample.labels.classes == k
        labels = Labels(sample.labels.boxes_xyxy[own], sample.labels.classes[own], sample.labels.ignore[own])
        for row, label in enumerate(judge(labels, now).label):
            same = np.flatnonzero(was.scores == now.scores[row])
            if label < 0 or not len(same):
                continue
            one, theirs = now.boxes_xyxy[[row]], was.boxes_xyxy[same]
            first = theirs[[box_iou(one, theirs)[0].argmax()]]  # (1, 4)
            ious = [float(box_iou(box, labels.boxes_xyxy[[label]])[0, 0]) for box in (first, one)]
            note = "IoU with the label {:.2f} before, {:.2f} after".format(*ious)
            boxes = [tuple(box.tolist()) for box in (labels.boxes_xyxy[label], one[0], first[0])]
            ranked.append((float(now.scores[row]), Example(sample.path, boxes[0], boxes[1], (), note, boxes[2])))
    ranked.sort(key=lambda entry: -entry[0])
    return [example for _, example in ranked[:EACH]]


def _of_class(found: Detections, k: int, placed: Letterbox) -> Detections:
    """The detections of one class, in original pixels."""
    own = found.select(found.class_ids == k)
    return replace(own, boxes_xyxy=placed.to_original(own.boxes_xyxy))
