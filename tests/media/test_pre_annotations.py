"""What Label Studio, CVAT and labelme get: the files as these tools write them, read back by our own readers."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from frames import CLASSES, clip_frames, files, found, image_frame

from prompt_tune.datasets.reading import find_labels, read_dataset
from prompt_tune.datasets.samples import Reason
from prompt_tune.errors import DataError
from prompt_tune.media.labelled_set import LabelledSet
from prompt_tune.media.pre_annotations import Cvat, Labelme, LabelStudio, label_studio_prediction
from prompt_tune.media.sinks import Sink

BOXES = [[8.0, 4.0, 24.0, 20.0], [8.5, 4.5, 24.5, 20.5]]


def write(sink: Sink) -> None:
    """An image with two detections, one without, and a frame of a video."""
    with sink:
        for frame, rows in ((image_frame("ä <&>.png"), 2), (image_frame("b.png"), 0), (clip_frames(1)[0], 2)):
            sink.write(frame, found(frame, rows=rows))


def test_label_studio_tasks(tmp_path: Path) -> None:
    write(LabelStudio(tmp_path, CLASSES, version="prompt-tune 1"))
    assert files(tmp_path / "label-studio") == [
        "config.xml",
        "images/b.png",
        "images/clip_000000.jpg",
        "images/ä <&>.png",
        "tasks.json",
    ]
    tasks = json.loads((tmp_path / "label-studio/tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=label-studio/images/%C3%A4%20%3C%26%3E.png",
        "/data/local-files/?d=label-studio/images/b.png",
        "/data/local-files/?d=label-studio/images/clip_000000.jpg",
    ]
    (prediction,) = tasks[0]["predictions"]
    assert prediction["model_version"] == "prompt-tune 1" and prediction["score"] == 0.375
    assert prediction["result"][0] == {
        "id": "box1",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 60,
        "original_height": 40,
        "image_rotation": 0,
        "value": {
            "x": pytest.approx(100 * 8 / 60),
            "y": 10,
            "width": pytest.approx(100 * 16 / 60),
            "height": 40,
            "rotation": 0,
            "rectanglelabels": ["person"],
        },
        "score": 0.5,
    }
    assert tasks[1]["predictions"] == [{"model_version": "prompt-tune 1", "score": 0.0, "result": []}]
    config = ElementTree.parse(tmp_path / "label-studio/config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == ["person", "truck", "gizmo: [a]"]
    assert {tag.get("name") for tag in config} == {"image", "label"}


def test_a_hidden_detection_is_no_region() -> None:
    marked = replace(found(image_frame()), hidden=np.array([True, False]))
    names = {key: key[1] for key in CLASSES}
    prediction = label_studio_prediction(marked, names, "1", "label", "image")
    assert [region["id"] for region in prediction["result"]] == ["box2"] and prediction["score"] == 0.25


def test_label_studio_tasks_come_back_once_they_are_annotated(tmp_path: Path) -> None:
    write(LabelStudio(tmp_path, CLASSES, version="1"))
    file = tmp_path / "label-studio/tasks.json"
    tasks = json.loads(file.read_text(encoding="utf-8"))
    for task in tasks:
        task |= {"annotations": [], "id": 1}
    file.write_text(json.dumps(tasks))
    labels = find_labels(tmp_path / "label-studio")
    assert labels is not None and [entry.reason for entry in labels.left_out["train"]] == [Reason.UNLABELLED] * 3
    for task in tasks:
        task["annotations"] = [{"result": task["predictions"][0]["result"]}]
    file.write_text(json.dumps(tasks))
    check(tmp_path / "label-studio")


def test_cvat_and_labelme_come_back(tmp_path: Path) -> None:
    write(Cvat(tmp_path, CLASSES))
    assert files(tmp_path / "cvat") == [
        "annotations.xml",
        "images/b.png",
        "images/clip_000000.jpg",
        "images/ä <&>.png",
        "labels.json",
    ]
    labels = json.loads((tmp_path / "cvat/labels.json").read_text(encoding="utf-8"))
    assert labels[2] == {"name": "gizmo: [a]", "type": "rectangle", "attributes": []}
    check(tmp_path / "cvat")
    write(Labelme(tmp_path, CLASSES))
    assert files(tmp_path / "labelme") == [
        "b.json",
        "b.png",
        "clip_000000.jpg",
        "clip_000000.json",
        "ä <&>.json",
        "ä <&>.png",
    ]
    content = json.loads((tmp_path / "labelme/clip_000000.json").read_text(encoding="utf-8"))
    assert (content["imagePath"], content["imageWidth"], content["imageHeight"]) == ("clip_000000.jpg", 65, 49)
    assert content["shapes"][1] == {
        "label": "gizmo: [a]",
        "points": [[8.5, 4.5], [24.5, 20.5]],
        "group_id": None,
        "description": "score 0.250",
        "shape_type": "rectangle",
        "flags": {},
        "mask": None,
    }
    check(tmp_path / "labelme")


def check(folder: Path) -> None:
    """What comes back from a folder: every image, every box, and the classes that have boxes."""
    data = read_dataset(folder, keep_few=True)
    assert data.names == ("gizmo: [a]", "person") and data.train.left_out == ()
    samples = {sample.path.name: sample for sample in data.train.samples}
    assert sorted(samples) == ["b.png", "clip_000000.jpg", "ä <&>.png"]
    for name, sample in samples.items():
        assert sample.labels.classes.tolist() == ([] if name == "b.png" else [1, 0])
        np.testing.assert_allclose(
            sample.labels.boxes_xyxy, np.array([] if name == "b.png" else BOXES).reshape(-1, 4), atol=1e-3
        )


@pytest.mark.parametrize(
    ("sink", "file"),
    [
        (lambda out: LabelStudio(out, CLASSES, version="1"), "label-studio/tasks.json"),
        (lambda out: Cvat(out, CLASSES), "cvat/annotations.xml"),
    ],
)
def test_no_half_file_after_an_error(tmp_path: Path, sink: object, file: str) -> None:
    def fail() -> None:
        made = sink(tmp_path)  # type: ignore[operator]
        assert isinstance(made, LabelledSet)
        with made:
            made.write(image_frame(), found(image_frame()))
            raise DataError("the source has gone")

    with pytest.raises(DataError, match="the source has gone"):
        fail()
    assert not (tmp_path / file).exists()
