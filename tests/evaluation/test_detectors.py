"""What `val` detects with: slices find small objects, and what is above a threshold is what `detect` shows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundles import SIZE, make_bundle
from PIL import Image
from scenes import scenes

from prompt_tune.evaluation.detectors import in_slices, onnx_detector
from prompt_tune.evaluation.ground_truth import GroundTruth
from prompt_tune.evaluation.validate import validate_bundle
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import Picture
from prompt_tune.runtime.slices import Slices, detect_sliced

SLICES = Slices(SIZE, 0.3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("detectors") / "bundle")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one large picture, whose objects are labelled with original classes."""
    folder = tmp_path_factory.mktemp("large")
    picture, boxes, names = scenes()
    Image.fromarray(picture).save(folder / "large.png")
    known = sorted(set(names))
    height, width = picture.shape[:2]
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = np.concatenate([centres, sizes], axis=1) / [width, height, width, height]
    lines = [f"{known.index(name)} {' '.join(map(str, row))}\n" for name, row in zip(names, rows, strict=True)]
    (folder / "large.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(yaml.safe_dump({"test": ".", "names": known}))
    return folder / "data.yaml"


def above(found: Detections, names: list[str], thresholds: np.ndarray) -> list[tuple[str, bytes, bytes]]:
    """Name, score and box of each detection above its threshold, bit for bit, in an order of their own."""
    kept = found.scores > thresholds
    rows = zip(names, found.scores, found.boxes_xyxy, kept, strict=True)
    return sorted((name, score.tobytes(), box.tobytes()) for name, score, box, keeps in rows if keeps)


def test_sliced_detections_above_thresholds_are_those_of_detect(bundle: Path, data: Path) -> None:
    detector = Detector(bundle, threads=1)
    truth = GroundTruth.read(data, "test", None, detector.vocabularies)
    picture, _, _ = scenes()
    image, small = Picture.of(picture), Picture.of(picture[: SIZE // 2, : SIZE // 2])  # `small` is one window
    (found,) = in_slices(onnx_detector(detector, truth), SLICES, truth)(image)
    keys = [(truth.keys + truth.others)[number] for number in found.class_ids]
    measured = above(found, [":".join(key) for key in keys], truth.thresholds[found.class_ids])
    shown = detect_sliced(detector, picture, SLICES)
    names = [":".join(key) for key in zip(shown.vocabularies, shown.class_names, strict=True)]
    assert measured == above(shown, names, np.zeros(len(shown))) and len(measured) > 60
    assert len(found) > len(measured)
    whole = onnx_detector(detector, truth)(small)
    assert np.array_equal(in_slices(onnx_detector(detector, truth), SLICES, truth)(small)[0].scores, whole[0].scores)


def test_tighter_limits_of_classes_hold_between_slices_too(bundle: Path, data: Path) -> None:
    detector, counts = Detector(bundle, threads=1), []
    picture, _, _ = scenes()
    twins = detector.vocabularies["learned"]
    for limit in (0.5, 0.05):
        limits = np.full(len(twins.names), limit, np.float32)
        detector.load(replace(twins, nms_iou=limits), "learned", replace=True)
        truth = GroundTruth.read(data, "test", None, detector.vocabularies)
        (found,) = in_slices(onnx_detector(detector, truth), SLICES, truth)(Picture.of(picture))
        keys = [(truth.keys + truth.others)[number] for number in found.class_ids]
        shown = detect_sliced(detector, picture, SLICES)
        names = [":".join(key) for key in zip(shown.vocabularies, shown.class_names, strict=True)]
        measured = above(found, [":".join(key) for key in keys], truth.thresholds[found.class_ids])
        assert measured == above(shown, names, np.zeros(len(shown)))
        counts.append(len(measured))
    assert counts[1] < counts[0]


def test_val_measures_what_slices_find(bundle: Path, data: Path) -> None:
    whole = validate_bundle(bundle, data, split="test")
    sliced = validate_bundle(bundle, data, split="test", slices=SLICES)
    assert whole.original is not None and sliced.original is not None
    print(f"AP50 {whole.original.ap50:.3f} without slices, {sliced.original.ap50:.3f} with them")
    assert whole.original.ap50 < 0.4 and sliced.original.ap50 > 0.8
    assert (whole.slices, sliced.slices) == (None, SLICES)
    assert "slice" not in whole.to_json()
    assert {key: value for key, value in sliced.to_json().items() if "slice" in key} == {
        "slice": SIZE,
        "slice_overlap": 0.3,
    }
