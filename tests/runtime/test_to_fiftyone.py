"""`Detections.to_fiftyone`, and what FiftyOne's own exporters write, read back. No database is started."""

# ruff: noqa: E402 - `needs` comes before the imports that it guards
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import NAMES, SIZE_WH, TRAIN, check_split, save_images
from extras import needs

needs("fiftyone")

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.errors import PromptTuneError
from prompt_tune.privacy import quiet_imports
from prompt_tune.runtime.detections import Detections

with quiet_imports():
    import fiftyone
    from fiftyone.utils import coco, cvat, voc, yolo
    from fiftyone.utils.data import exporters


def detections(stem: str = "a") -> Detections:
    """The boxes of an image of the small data set, as if they had been found."""
    rows = [row for row in TRAIN[stem] if not row[5]]
    return Detections(
        np.array([row[1:5] for row in rows], np.float32).reshape(-1, 4),
        np.array([0.5, 0.25][: len(rows)], np.float32),
        np.array([row[0] for row in rows], np.int64),
        tuple(NAMES[row[0]] for row in rows),
        ("original", "learned")[: len(rows)],
        SIZE_WH,
    )


def test_to_fiftyone() -> None:
    found = detections().to_fiftyone()
    assert isinstance(found, fiftyone.Detections)
    assert [(one.label, one.confidence, one.vocabulary) for one in found.detections] == [
        ("lorry", 0.5, "original"),
        ("traffic light", 0.25, "learned"),
    ]
    np.testing.assert_allclose(found.detections[0].bounding_box, [0.1, 0.25, 0.4, 0.5])
    sample = fiftyone.Sample(filepath="a.png", found=found)
    assert len(sample.found.detections) == 2
    hidden = replace(detections(), hidden=np.array([True, False])).to_fiftyone()
    assert [one.label for one in hidden.detections] == ["traffic light"]
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    with pytest.raises(PromptTuneError, match=r"these have no `size_wh`\. Set it\."):
        none.to_fiftyone()


def test_nothing_is_reported_and_no_database_runs() -> None:
    code = (
        "import numpy as np; from prompt_tune.runtime.detections import Detections; import os, sys\n"
        "Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), size_wh=(1, 1)).to_fiftyone()\n"
        "import fiftyone, fiftyone.core.odm.database as database\n"
        "assert fiftyone.config.do_not_track and database._db_service is None and database._client is None\n"
        "assert 'FIFTYONE_DO_NOT_TRACK' not in os.environ\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda out: coco.COCODetectionDatasetExporter(export_dir=out, classes=NAMES),
        lambda out: yolo.YOLOv5DatasetExporter(export_dir=out, split="train", classes=NAMES),
        lambda out: yolo.YOLOv4DatasetExporter(export_dir=out, classes=NAMES),
        lambda out: voc.VOCDetectionDatasetExporter(export_dir=out),
        lambda out: cvat.CVATImageDatasetExporter(export_dir=out),
        lambda out: exporters.FiftyOneImageDetectionDatasetExporter(export_dir=out, classes=NAMES),
    ],
    ids=["coco", "yolo5", "yolo4", "voc", "cvat", "own"],
)
def test_what_its_exporters_write_is_read(tmp_path: Path, make: Callable[[str], Any]) -> None:
    save_images(tmp_path / "photos", list(TRAIN))
    width, height = SIZE_WH
    with make(str(tmp_path / "export")) as exporter:
        for stem in TRAIN:
            found = detections(stem)
            label = found.to_fiftyone() if len(found) else fiftyone.Detections(detections=[])
            metadata = fiftyone.ImageMetadata(width=width, height=height, num_channels=3)
            exporter.export_sample(str(tmp_path / "photos" / f"{stem}.png"), label, metadata)
    moved = (tmp_path / "export").rename(tmp_path / "elsewhere")  # on another machine, its paths mean nothing
    data = read_dataset(moved, keep_few=True)
    assert data.names == tuple(NAMES)
    for sample in data.train.samples:  # VOC rounds to pixels
        sample.labels.boxes_xyxy[:] = sample.labels.boxes_xyxy.round(2)
    check_split(data.train, TRAIN, with_ignored=False)
