"""Grounding sets in MDETR's JSON (arXiv 2104.12763), such as GQA and Flickr30k: captions whose phrases have boxes.

The file has COCO's `images` and `annotations`. An image also has a `caption`, and an annotation has `tokens_positive`:
the spans `[start, end)` of the caption, in characters, that its box shows. An image with several captions is listed
several times. A YAML names the folder of the images; paths start from the YAML's own folder, or from `path`:

    images: gqa/images
    grounding: final_mixed_train_no_coco.json
"""

import logging
import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from prompt_tune.datasets.finding import Finder, may_exist
from prompt_tune.datasets.gate import Gate
from prompt_tune.datasets.places import gate_of, is_hidden, read_json, resolve, root_of
from prompt_tune.datasets.samples import LabelledImage, LeftOut, Reason, Row
from prompt_tune.datasets.shapes import is_number
from prompt_tune.errors import DataError
from prompt_tune.wording import brief, counted, shown

GROUNDING_KEY = "grounding"  # a YAML with this key describes a grounding set
_YAML_KEYS = {"path", "images", GROUNDING_KEY}
_IMAGE_FOLDER = "images"  # beside a JSON file that is given without a YAML
# Keys that survive parsing. The rest, such as polygons, takes most of the memory of a parsed file.
_KEPT = {"images", "annotations", "id", "file_name", "width", "height", "caption"}
_KEPT_OF_BOX = {"id", "image_id", "bbox", "tokens_positive"}
_MAX = 2**31  # pixels of a side; no picture has as many
_Box = tuple[float, float, float, float]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caption:
    """One entry of `images`.

    Attributes:
        where: File and image id, for error texts.
        text: The caption.
        size_wh: Width and height in pixels of the image that its boxes were made for.
        annotations: Its entries of `annotations`, not checked yet.
    """

    where: str
    text: str
    size_wh: tuple[int, int]
    annotations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image file and all its captions."""

    path: Path
    captions: list[Caption] = field(default_factory=list)


def read_grounding_yaml(description: Path, content: dict[str, Any]) -> list[CaptionedImage]:
    """Reads the grounding set that a YAML with `images` and `grounding` describes.

    Args:
        description: The YAML file, for paths and error texts.
        content: The mapping in that file.

    Returns:
        The images, see `read_grounding`.

    Raises:
        DataError: A key, a path or an entry breaks a rule.
    """
    unknown = sorted({key if isinstance(key, str) else shown(key) for key in content} - _YAML_KEYS)
    if unknown:
        raise DataError(
            f"`{description}`: the description of a grounding set has {', '.join(sorted(_YAML_KEYS))}. "
            f"Received: {', '.join(unknown)}."
        )
    root = root_of(description, content)
    places = {}
    for key in ("images", GROUNDING_KEY):
        if not isinstance(content.get(key), str):
            raise DataError(
                f"`{description}` must have `images: FOLDER` and `{GROUNDING_KEY}: FILE.json`. "
                f"Received for `{key}`: {shown(content.get(key))}."
            )
        places[key] = resolve(root, content[key], description)
    file, images = places[GROUNDING_KEY], places["images"]
    return read_grounding(file, images, gate_of(description, root).with_folders([file.parent], [images]))


def read_grounding(file: Path, folder: Path | None = None, gate: Gate | None = None) -> list[CaptionedImage]:
    """Reads the captions and boxes of a grounding set; no image is opened.

    Args:
        file: The JSON file.
        folder: The folder of the images. None looks in `images` beside the file, then in the file's own folder.
        gate: The folders that images may lie in. None opens the file's own folder and the one above it.

    Returns:
        The images, sorted by path.

    Raises:
        DataError: The file is not a grounding set, none of its images is in one of those folders, or an image lies
            outside the gate.
    """
    content = _read_json(file)
    captions: dict[int | str, Caption] = {}
    by_name: dict[str, list[Caption]] = {}
    for position, entry in enumerate(content["images"]):
        key, name, text = entry.get("id"), entry.get("file_name"), entry.get("caption")
        width, height = entry.get("width"), entry.get("height")
        where = f"`{file}`, image {shown(key) if _is_id(key) else f'number {position + 1}'}"
        if not _is_id(key) or key in captions or not isinstance(name, str) or not isinstance(text, str):
            raise DataError(
                f"{where}: an image of a grounding set has an `id` of its own, a `file_name` and a `caption`. (COCO "
                "detection files have no captions: name them in a YAML, `train: {images: FOLDER, annotations: FILE}`.)"
            )
        if not may_exist(name):
            raise DataError(f"{where}: the `file_name` {shown(name)} cannot be a path. Correct it.")
        if type(width) is not int or type(height) is not int or not 0 < min(width, height) <= max(width, height) < _MAX:
            received = f"{shown(width)}, {shown(height)}"
            raise DataError(f"{where}: `width` and `height` must be pixels above 0. Received: {received}.")
        captions[key] = Caption(where, text, (width, height))
        by_name.setdefault(name, []).append(captions[key])
    strays = []
    for position, entry in enumerate(content["annotations"]):
        key = entry.get("image_id")
        caption = captions.get(key) if _is_id(key) else None
        if caption is None:
            number = shown(entry["id"]) if "id" in entry else f"number {position + 1}"
            strays.append(f"annotation {number}, image {shown(key)}")
        else:
            caption.annotations.append(entry)
    if strays:
        what = counted(len(strays), "annotation")
        log.warning("`%s`: there is no image for %s, left out. The first: %s", file, what, strays[0])
    folder = _find_folder(file, by_name) if folder is None else folder
    gate = gate or Gate.of([file.absolute().parent])
    finder = Finder()
    found: dict[Path, list[Caption]] = {}
    for name in sorted(by_name):
        path = finder.find(folder / name) or folder / name
        gate.check(path, f"{by_name[name][0].where}, `file_name`", name)
        if not is_hidden(path, folder):
            found.setdefault(path, []).extend(by_name[name])
    return [CaptionedImage(path, found[path]) for path in sorted(found)]


def ignored_regions(image: CaptionedImage, patterns: Sequence[re.Pattern[str]]) -> LabelledImage:
    """Marks the regions that may show a class as ignored boxes; all other regions are negatives of the class.

    A box is kept for a class if its phrase (the spans, joined by spaces) names the class, or if one of its spans
    overlaps a place where the caption names the class. If a caption names a class at a place that has no box, the whole
    image becomes one ignored box of the class, because the object may be anywhere. As in MDETR, boxes are clipped to
    the image. Boxes without an area are dropped. An annotation that breaks a rule is left out.

    Args:
        image: The image and its captions.
        patterns: A pattern for each class, in class-id order. A text in which it is found names the class.

    Returns:
        The image with ignored boxes in pixels.
    """
    left_out: list[LeftOut] = []
    kept: dict[tuple[int, _Box], str] = {}  # captions of one image share boxes; each is kept once
    for caption in image.captions:
        width, height = caption.size_wh
        boxes = []
        for entry in caption.annotations:
            try:
                boxes.append(_read_box(entry, caption))
            except DataError as error:
                left_out.append(LeftOut(Reason.ROW, str(error)))
        boxes = [box for box in boxes if box.has_area]
        for class_id, pattern in enumerate(patterns):
            places = [match.span() for match in pattern.finditer(caption.text)]
            for box in boxes:
                if pattern.search(box.phrase) or any(box.covers(place) for place in places):
                    kept.setdefault((class_id, box.xyxy), box.where)
            if not all(any(box.covers(place) for box in boxes) for place in places):
                kept.setdefault((class_id, (0.0, 0.0, float(width), float(height))), caption.where)
    rows = [
        Row(f"{where} ({image.path.name})", class_id, xyxy, ignore=True) for (class_id, xyxy), where in kept.items()
    ]
    declared_wh = image.captions[0].size_wh if rows else None
    return LabelledImage(image.path, rows, declared_wh=declared_wh, left_out=left_out)


@dataclass(frozen=True, slots=True)
class _PhraseBox:
    where: str
    xyxy: _Box  # pixels of the image, clipped to it
    spans: list[list[int]]
    phrase: str

    @property
    def has_area(self) -> bool:
        return self.xyxy[2] > self.xyxy[0] and self.xyxy[3] > self.xyxy[1]

    def covers(self, place: tuple[int, int]) -> bool:
        """Whether one of its spans overlaps a place in the caption."""
        return any(start < place[1] and place[0] < end for start, end in self.spans)


def _read_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The `images` and `annotations` of the file, reduced to the keys that are read."""
    content = read_json(file, _reduce, "Download it again.")
    for key in ("images", "annotations"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise DataError(f"`{file}` is not a grounding set in MDETR's JSON: it must have a list `{key}` of objects.")
    if not content["images"]:
        raise DataError(f"`{file}` has no images: its list `images` is empty. Download it again.")
    return dict(content)


def _reduce(entry: dict[str, Any]) -> dict[str, Any]:
    kept = _KEPT_OF_BOX if "image_id" in entry else _KEPT
    return {key: value for key, value in entry.items() if key in kept}


def _find_folder(file: Path, names: Collection[str]) -> Path:
    """The folder that has at least one of the images, since people often download only a part of such a set."""
    finder = Finder()
    for folder in (file.parent / _IMAGE_FOLDER, file.parent):
        if any((path := finder.find(folder / name)) and os.path.isfile(path) for name in names):
            return folder
    raise DataError(
        f"`{file}`: none of its {len(names)} images is in `{file.parent / _IMAGE_FOLDER}` or in `{file.parent}` (the "
        f"first: `{brief(next(iter(names)))}`). Give a YAML file of two lines instead: `images: FOLDER` and "
        f"`{GROUNDING_KEY}: {file.name}`."
    )


def _read_box(entry: dict[str, Any], caption: Caption) -> _PhraseBox:
    """An annotation, checked against its caption."""
    where = f"{caption.where}, annotation {shown(entry['id']) if 'id' in entry else 'without id'}"
    box, spans = entry.get("bbox"), entry.get("tokens_positive")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise DataError(f"{where}: `bbox` must be [x, y, width, height]. Received: {shown(box)}.")
    if not isinstance(spans, list) or not all(
        isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span) for span in spans
    ):
        raise DataError(f"{where}: `tokens_positive` must be [[start, end], ...]. Received: {shown(spans)}.")
    for start, end in spans:
        if not 0 <= start <= end <= len(caption.text):
            raise DataError(
                f"{where}: the span [{shown(start)}, {shown(end)}] is not in its caption of {len(caption.text)} "
                "characters. Correct or remove it, or check that captions and annotations come from the same file."
            )
    (width, height), (x, y, w, h) = caption.size_wh, map(float, box)
    x1, x2 = (min(max(value, 0.0), float(width)) for value in (x, x + w))
    y1, y2 = (min(max(value, 0.0), float(height)) for value in (y, y + h))
    phrase = " ".join(caption.text[start:end] for start, end in spans)
    return _PhraseBox(where, (x1, y1, x2, y2), spans, phrase)


def _is_number(value: object) -> bool:
    return is_number(value) and math.isfinite(value)  # type: ignore[arg-type]


def _is_id(value: object) -> TypeGuard[int | str]:
    return isinstance(value, int | str) and not isinstance(value, bool)
