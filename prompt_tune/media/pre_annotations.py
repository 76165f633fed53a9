"""Sinks that write labels to correct in an annotation tool: Label Studio, CVAT and labelme."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from prompt_tune.errors import DataError
from prompt_tune.files import saving, told
from prompt_tune.media.labelled_set import LabelledSet
from prompt_tune.media.sinks import OTHER_OUT
from prompt_tune.media.sources import Frame
from prompt_tune.runtime.detections import PIXEL_DECIMALS, SCORE_DECIMALS, ClassKey, Detections

LABEL_STUDIO, CVAT, LABELME = "label-studio", "cvat", "labelme"  # folders, and the values of --save
_LOCAL_FILES = "/data/local-files/?d="  # how Label Studio serves files of its own machine
_LABELME_VERSION = "5.0.0"  # of the file format, which has not changed since


def label_studio_prediction(
    found: Detections, names: Mapping[ClassKey, str], version: str, from_name: str, to_name: str
) -> dict[str, Any]:
    """The prediction of Label Studio for the detections of one image. Boxes are percent of the image.

    Args:
        found: The detections.
        names: The label of each (vocabulary label, class name) that has one.
        version: Its `model_version`.
        from_name: The name of the tag `<RectangleLabels>` of the labelling interface.
        to_name: The name of its tag `<Image>`.
    """
    width, height = found.size_wh
    regions: list[dict[str, Any]] = []
    for number, one in enumerate(found, start=1):
        name = names.get((one.vocabulary, one.class_name))
        if name is None or one.hidden:
            continue
        left, top, right, bottom = one.box_xyxy
        shares = (left / width, top / height, (right - left) / width, (bottom - top) / height)
        value = {key: 100 * share for key, share in zip(("x", "y", "width", "height"), shares, strict=True)}
        regions.append(
            {
                "id": f"box{number}",
                "type": "rectanglelabels",
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**value, "rotation": 0, "rectanglelabels": [name]},
                "score": round(one.score, SCORE_DECIMALS),
            }
        )
    scores = [region["score"] for region in regions]
    mean = round(sum(scores) / len(scores), SCORE_DECIMALS) if scores else 0.0
    return {"model_version": version, "score": mean, "result": regions}


class _OneFile(LabelledSet):
    """A folder of images with one file for all labels, written frame by frame. It gets its name at the end."""

    _file_name = ""

    def __enter__(self) -> Self:
        place = self.root / self._file_name
        temporary = self._files.enter_context(saving(place, DataError, cure=OTHER_OUT))
        self._place_of_file = place
        with told(place, DataError, cure=OTHER_OUT):
            self._file = self._files.enter_context(open(temporary, "w", encoding="utf-8"))
        self._count = 0
        self._put(self._beginning())
        return self

    def _put(self, text: str) -> None:
        with told(self._place_of_file, DataError, cure=OTHER_OUT):
            self._file.write(text)

    def _beginning(self) -> str:
        raise NotImplementedError


class LabelStudio(_OneFile):
    """The folder `label-studio`: images, tasks.json with predictions, and config.xml, a labelling interface.

    Boxes are percent of the image. The score of a prediction is the mean of those of its boxes, by which tasks can be
    sorted. Images are addressed as local files below the folder of `--out`.
    """

    _file_name = "tasks.json"

    def __init__(self, out: Path, classes: Sequence[ClassKey], *, version: str) -> None:
        """Prepare the folder.

        Args:
            out: Folder that gets the folder `label-studio`.
            classes: See `LabelledSet`.
            version: The `model_version` of the predictions.
        """
        super().__init__(out / LABEL_STUDIO, classes, tidy=True)
        self._version = version

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink.write`."""
        image = self.save_image(frame)
        prediction = label_studio_prediction(found, self.labelled, self._version, "label", "image")
        address = _LOCAL_FILES + quote(f"{self.root.name}/{image.relative_to(self.root).as_posix()}")
        task = {"data": {"image": address}, "predictions": [prediction]}
        self._put((",\n" if self._count else "") + json.dumps(task, ensure_ascii=False))
        self._count += 1

    def _beginning(self) -> str:
        return "[\n"

    def _finish(self) -> None:
        self._put("\n]\n")
        self._file.close()
        labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in self.names)
        self.save_text(
            self.root / "config.xml",
            '<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n'
            f"{labels}  </RectangleLabels>\n</View>\n",
        )


class Cvat(_OneFile):
    """The folder `cvat`: images, annotations.xml ("CVAT for images 1.1") and labels.json, the labels of a task.

    The format has no scores.
    """

    _file_name = "annotations.xml"

    def __init__(self, out: Path, classes: Sequence[ClassKey]) -> None:
        """Prepare the folder.

        Args:
            out: Folder that gets the folder `cvat`.
            classes: See `LabelledSet`.
        """
        super().__init__(out / CVAT, classes, tidy=True)

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink.write`."""
        image = self.save_image(frame)
        width, height = found.size_wh
        shapes = []
        for _, number, box in self.rows(found):
            corners = zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
            edges = " ".join(f'{key}="{value:.{PIXEL_DECIMALS}f}"' for key, value in corners)
            label = quoteattr(self.names[number])
            shapes.append(f'    <box label={label} source="auto" occluded="0" {edges} z_order="0"></box>\n')
        name = quoteattr(image.name)
        head = f'  <image id="{self._count}" name={name} width="{width}" height="{height}">\n'
        self._put(f"{head}{''.join(shapes)}  </image>\n")
        self._count += 1

    def _beginning(self) -> str:
        return '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'

    def _finish(self) -> None:
        self._put("</annotations>\n")
        self._file.close()
        labels = [{"name": name, "type": "rectangle", "attributes": []} for name in self.names]
        self.save_text(self.root / "labels.json", json.dumps(labels, ensure_ascii=False, indent=2) + "\n")


class Labelme(LabelledSet):
    """The folder `labelme`: images with a JSON file beside each, which has the score as the shape's description."""

    def __init__(self, out: Path, classes: Sequence[ClassKey]) -> None:
        """Prepare the folder.

        Args:
            out: Folder that gets the folder `labelme`.
            classes: See `LabelledSet`.
        """
        super().__init__(out / LABELME, classes, images=".", label=lambda image: image.with_suffix(".json"), tidy=True)

    def write(self, frame: Frame, found: Detections) -> None:
        """See `Sink.write`."""
        image = self.save_image(frame)
        width, height = found.size_wh
        shapes: list[dict[str, Any]] = [
            {
                "label": self.names[number],
                "points": [[round(value, PIXEL_DECIMALS) for value in corner] for corner in (box[:2], box[2:])],
                "group_id": None,
                "description": f"score {found.scores[row]:.3f}",
                "shape_type": "rectangle",
                "flags": {},
                "mask": None,
            }
            for row, number, box in self.rows(found)
        ]
        content: dict[str, Any] = {
            "version": _LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": image.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        self.save_text(image.with_suffix(".json"), json.dumps(content, ensure_ascii=False, indent=2) + "\n")
