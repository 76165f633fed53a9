"""Labels the images of a CVAT task with a bundle of prompt-tune: a function for CVAT's auto-annotation.

    pip install prompt-tune cvat-cli
    cvat-cli --server-host https://app.cvat.ai task auto-annotate 42 --function-file annotation/cvat_function.py \
        --allow-unmatched-labels

The task needs labels with the names of the classes. `-p bundle=str:FOLDER` names another bundle than the one that holds
this file, `-p classes=str:all` labels original classes too, `-p device=str:cuda` runs on a GPU, and `--conf-threshold`
replaces the thresholds of the classes.
"""

from collections import Counter
from pathlib import Path

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk import models
from PIL import Image

from prompt_tune import Detector


class Function:
    """What CVAT calls: `spec` once, and `detect` for each image."""

    def __init__(self, bundle: str = "", classes: str = "learned", device: str = "cpu") -> None:
        """Load a bundle.

        Args:
            bundle: A folder of `prompt-tune export`; by default, the one that holds the folder of this file.
            classes: "learned", or "all" for the original classes too.
            device: See `Detector`.
        """
        if classes not in ("learned", "all"):
            raise ValueError(f"`classes` must be `learned` or `all`. Received: {classes!r}.")
        self._detector = Detector(bundle or Path(__file__).resolve().parents[1], device=device)
        keys = [key for key in self._detector.classes if classes == "all" or key[0] != "original"]
        counts = Counter(name for _, name in keys)
        self._ids = {key: number for number, key in enumerate(keys)}
        names = {key: key[1] if counts[key[1]] == 1 else ":".join(key) for key in keys}
        labels = [cvataa.label_spec(names[key], number, type="rectangle") for key, number in self._ids.items()]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[models.LabeledShapeRequest]:
        """The rectangles of one image, in its pixels."""
        (found,) = self._detector.detect(image, conf=context.conf_threshold)
        keys = [(one.vocabulary, one.class_name) for one in found]
        return [
            cvataa.rectangle(self._ids[key], list(one.box_xyxy))
            for one, key in zip(found, keys, strict=True)
            if key in self._ids
        ]


create = Function
