"""Boxes in the report of a fit: the facts by class, and pictures of the same detection before and after."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from vocabularies import learned

from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.runtime.detections import Detections
from prompt_tune.tuning.drawn_boxes import moved_boxes

SIDE = 64
BEFORE, AFTER = [20, 20, 40, 40], [16, 20, 40, 40]


def test_moved_class_has_pictures_and_others_have_words(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(tmp_path / "a.png")
    labels = Labels(np.array([AFTER], np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    sample = Sample(tmp_path / "a.png", labels, (SIDE, SIDE))
    facts = {"a": {"objects": 7, "iou_before": 0.8, "iou_after": 0.9}}
    vocabulary = learned("a", "b", box_offsets=[[-0.2, 0, 0, 0], [0, 0, 0, 0]], provenance={"boxes": facts})
    other = [[0, 0, 9, 9], BEFORE]  # a detection of the same score elsewhere
    before = Detections(np.array(other, np.float32), np.full(2, 0.5, np.float32), np.zeros(2, np.int64))
    after = Detections(np.array([AFTER], np.float32), np.full(1, 0.5, np.float32), np.zeros(1, np.int64))
    a, b = moved_boxes(vocabulary, [sample], [before], [after], SIDE)
    assert (a.name, a.objects, a.iou_before, a.iou_after, a.moved) == ("a", 7, 0.8, 0.9, True)
    assert a.text == "labels are 20 % wider on the left than the detector's boxes"
    assert [part.caption for part in a.pictures] == ["IoU with the label 0.83 before, 1.00 after"]
    assert (b.text, b.objects, b.moved, b.pictures) == ("boxes stay as the detector draws them", 0, False, ())
    assert moved_boxes(replace(vocabulary, provenance={}), [sample], [before], [after], SIDE) == ()
