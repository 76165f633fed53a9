"""FiftyOne's own formats: splits from tags, the field that counts, and crowds."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_sets import TRAIN, save_images
from exports import fiftyone_detections

from prompt_tune.datasets.fiftyone import is_fiftyone, read_fiftyone
from prompt_tune.datasets.named import Found
from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.samples import Reason
from prompt_tune.errors import DataError


def field(*detections: Any) -> dict[str, Any]:
    return {"_cls": "Detections", "detections": list(detections)}


def detection(label: Any = "lorry", **more: Any) -> dict[str, Any]:
    return {"_cls": "Detection", "label": label, "bounding_box": [0.1, 0.2, 0.3, 0.4]} | more


def read(tmp_path: Path, *samples: Any) -> dict[str, Found]:
    save_images(tmp_path / "data", ["a", "b"])
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    assert is_fiftyone(tmp_path)
    return read_fiftyone(tmp_path)


def test_ground_truth_counts_and_tags_are_splits(tmp_path: Path) -> None:
    first = {"filepath": "data/a.png", "ground_truth": field(detection()), "predictions": field(detection("van"))}
    second = {"filepath": "/elsewhere/b.png", "ground_truth": None, "tags": ["night", "validation"]}
    found = read(tmp_path, first, second)
    assert {split: [image.path.stem for image in part.images] for split, part in found.items()} == {
        "train": ["a"],
        "val": ["b"],
    }
    (row,) = found["train"].images[0].rows
    assert (row.name, row.ignore) == ("lorry", False)
    assert row.box_xyxy == pytest.approx((0.1, 0.2, 0.4, 0.6))


@pytest.mark.parametrize(
    "more",
    [
        {"iscrowd": 1},
        {"IsGroupOf": True},
        {"difficult": "1"},
        {"attributes": {"iscrowd": {"_cls": "NumericAttribute", "value": 1.0}}},
    ],
)
def test_crowds_are_ignored(tmp_path: Path, more: dict[str, Any]) -> None:
    found = read(tmp_path, {"filepath": "data/a.png", "boxes": field(detection(**more), detection(iscrowd=0))})
    assert [row.ignore for row in found["train"].images[0].rows] == [True, False]


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    bad = field(detection(None), detection(bounding_box=[1, 2]), 3, detection())
    found = read(tmp_path, {"filepath": "data/a.png", "boxes": bad}, {"filepath": 4}, {"filepath": "gone.png"})["train"]
    assert [len(image.rows) for image in found.images] == [1]
    assert [entry.reason for entry in found.images[0].left_out] == [Reason.ROW] * 3
    assert "sample 1, detection 2: `bounding_box` must be" in found.images[0].left_out[1].what
    assert [entry.reason for entry in found.left_out] == [Reason.IMAGE] * 2


def test_several_fields_or_none_are_an_error(tmp_path: Path) -> None:
    sample = {"filepath": "data/a.png", "mine": field(detection()), "yours": field(detection())}
    with pytest.raises(DataError, match=r"has several fields of detections \(mine, yours\)"):
        read(tmp_path, sample)
    with pytest.raises(DataError, match="no sample has detections"):
        read(tmp_path, {"filepath": "data/a.png"})


def test_a_label_that_is_no_number_of_a_class_is_left_out(tmp_path: Path) -> None:
    fiftyone_detections(tmp_path, {"train": TRAIN})
    file = tmp_path / "train/labels.json"
    content = json.loads(file.read_text())
    content["labels"]["a"][0]["label"] = 2
    file.write_text(json.dumps(content))
    (left_out,) = read_dataset(tmp_path, keep_few=True).train.left_out
    assert left_out.reason is Reason.ROW and "'a', detection 1: a detection has a `label`. Received: 2" in left_out.what
