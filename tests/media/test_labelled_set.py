"""Folders of images with labels: names, and what is refused. `test_labels.py` has more, for YOLO."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frames import CLASSES, clip_frames, files, found, image_frame

from prompt_tune.errors import DataError
from prompt_tune.media.labelled_set import LabelledSet


def test_images_are_copied_and_frames_become_jpegs(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"any bytes")
    labels = LabelledSet(tmp_path / "set", CLASSES, label=lambda image: image.with_suffix(".json"))
    first = labels.save_image(image_frame("cam1/a.png", source))
    assert first == tmp_path / "set/images/cam1_a.png" and first.read_bytes() == b"any bytes"
    assert labels.save_image(image_frame("cam1/a.jpg")).name == "cam1_a-2.jpg"  # cam1_a.json is taken
    assert labels.save_image(clip_frames(1)[0]).name == "clip_000000.jpg"
    assert files(tmp_path / "set") == ["images/cam1_a-2.jpg", "images/cam1_a.png", "images/clip_000000.jpg"]


def test_tidy_names_can_stand_in_any_text(tmp_path: Path) -> None:
    labels = LabelledSet(tmp_path / "set", CLASSES, tidy=True)
    assert labels.save_image(image_frame("a\x07\udcff\u202e b.png")).name == "a___ b.png"


def test_rows_are_those_of_the_classes_only(tmp_path: Path) -> None:
    frame = image_frame()
    labels = LabelledSet(tmp_path / "set", CLASSES[2:])
    assert labels.names == ["gizmo: [a]"]
    assert list(labels.rows(found(frame))) == [(1, 0, (8.5, 4.5, 24.5, 20.5))]
    assert list(labels.rows(replace(found(frame), hidden=np.array([False, True])))) == []
    assert LabelledSet(tmp_path / "other", (*CLASSES, ("other", "person"))).names == [
        "original:person",
        "truck",
        "gizmo: [a]",
        "other:person",
    ]


def test_a_folder_that_is_there_and_no_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is there already"):
        LabelledSet(tmp_path, CLASSES)
    with pytest.raises(DataError, match="all are hidden"):
        LabelledSet(tmp_path / "set", ())
