"""The function for CVAT's auto-annotation: loaded as `cvat-cli` loads it, with the types of CVAT's SDK."""

# ruff: noqa: E402 - `needs` comes before the imports that it guards

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extras import needs
from PIL import Image
from places import ROOT

needs("cvat_sdk", "cvat_cli")

import cvat_sdk.auto_annotation as cvataa
from bundles import make_bundle
from cvat_cli._internal.common import FunctionLoader
from cvat_sdk import models

from prompt_tune import Detector
from prompt_tune.datasets.sample import custom_scene

FILE = ROOT / "export/annotation/cvat_function.py"


class Context(cvataa.DetectionFunctionContext):
    """What CVAT says of an image."""

    frame_name = "a.png"
    conv_mask_to_poly = False
    conf_threshold: float | None = None

    def __init__(self, conf_threshold: float | None = None) -> None:
        self.conf_threshold = conf_threshold


def load(**parameters: Any) -> Any:
    return FunctionLoader(None, FILE, parameters).load()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("cvat") / "bundle")


@pytest.mark.parametrize(("classes", "conf"), [("learned", None), ("all", None), ("all", 0.6)])
def test_rectangles_are_the_detections(bundle: Path, classes: str, conf: float | None) -> None:
    function = load(bundle=str(bundle), classes=classes)
    labels = {label.id: label.name for label in function.spec.labels}
    assert isinstance(function.spec, cvataa.DetectionFunctionSpec) and len(set(labels.values())) == len(labels)
    image = Image.fromarray(custom_scene(0, "test", 2).image)
    shapes = function.detect(Context(conf), image)
    (found,) = Detector(bundle).detect(image, conf=conf)
    wanted = [one for one in found if classes == "all" or one.vocabulary != "original"]
    assert len(wanted) > 0 and len(shapes) == len(wanted)
    for shape, one in zip(shapes, wanted, strict=True):
        assert isinstance(shape, models.LabeledShapeRequest) and shape.type.value == "rectangle" and shape.frame == 0
        np.testing.assert_allclose(shape.points, one.box_xyxy, rtol=1e-6)
        assert labels[shape.label_id].split(":")[-1] == one.class_name
        assert conf is None or one.score > conf


def test_other_classes_are_refused(bundle: Path) -> None:
    with pytest.raises(Exception, match=r"`classes` must be `learned` or `all`"):
        load(bundle=str(bundle), classes="some")
