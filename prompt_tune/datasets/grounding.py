"""Grounding sets in MDETR's JSON (arXiv 2104.12763), such as GQA and Flickr30k: captions whose phrases have boxes.

The file has COCO's `images` and `annotations`. An image also has a `caption`, and an annotation has `tokens_positive`:
the spans `[start, end)` of the caption, in characters, that its box shows. An image with several captions is listed
several times. A YAML names the folder of the images; paths start from the YAML's own folder, or from `path`:

    images: gqa/images
    grounding: final_mixed_train_no_coco.json
"""

import json
import logging
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompt_tune.datasets.finding import Finder
from prompt_tune.datasets.places import is_hidden, read_text, resolve, root_of
from prompt_tune.datasets.samples import LabelledImage, LeftOut, Reason, Row
from prompt_tune.errors import DataError
from prompt_tune.wording import counted

GROUNDING_KEY = "grounding"  # a YAML with this key describes a grounding set
_YAML_KEYS = {"path", "images", GROUNDING_KEY}
_IMAGE_FOLDER = "images"  # beside a JSON file that is given without a YAML
# Keys that survive parsing. The rest, such as polygons, takes most of the memory of a parsed file.
_KEPT = {"images", "annotations", "id", "file_name", "width", "height", "caption"}
_KEPT_OF_BOX = {"id", "image_id", "bbox", "tokens_positive"}
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
    unknown = sorted(set(map(str, content)) - _YAML_KEYS)
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
                f"Received for `{key}`: {content.get(key)!r}."
            )
        places[key] = resolve(root, content[key], description)
    return read_grounding(places[GROUNDING_KEY], places["images"])


def read_grounding(file: Path, folder: Path | None = None) -> list[CaptionedImage]:
    """Reads the captions and boxes of a grounding set; no image is opened.

    Args:
        file: The JSON file.
        folder: The folder of the images. None looks in `images` beside the file, then in the file's own folder.

    Returns:
        The images, sorted by path.

    Raises:
        DataError: The file is not a grounding set, or none of its images is in one of those folders.
    """
    content = _read_json(file)
    captions: dict[int | str, Caption] = {}
    by_name: dict[str, list[Caption]] = {}
    for position, entry in enumerate(content["images"]):
        key, name, text = entry.get("id"), entry.get("file_name"), entry.get("caption")
        width, height = entry.get("width"), entry.get("height")
        where = f"`{file}`, image {key if isinstance(key, int | str) else f'number {position + 1}'}"
        if not isinstance(key, int | str) or key in captions or not isinstance(name, str) or not isinstance(text, str):
            raise DataError(
                f"{where}: an image of a grounding set has an `id` of its own, a `file_name` and a `caption`. (COCO "
                "detection files have no captions: name them in a YAML, `train: {images: FOLDER, annotations: FILE}`.)"
            )
        if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
            raise DataError(f"{where}: `width` and `height` must be pixels above 0. Received: {width!r}, {height!r}.")
        captions[key] = Caption(where, text, (width, height))
        by_name.setdefault(name, []).append(captions[key])
    strays = []
    for position, entry in enumerate(content["annotations"]):
        key = entry.get("image_id")
        caption = captions.get(key) if isinstance(key, int | str) else None
        if caption is None:
            strays.append(f"annotation {entry.get('id', f'number {position + 1}')}, image {key!r}")
        else:
            caption.annotations.append(entry)
    if strays:
        what = counted(len(strays), "annotation")
        log.warning("`%s`: there is no image for %s, left out. The first: %s", file, what, strays[0])
    folder = _find_folder(file, by_name) if folder is None else folder
    finder = Finder()
    found: dict[Path, list[Caption]] = {}
    for name in sorted(by_name):
        path = finder.find(folder / name) or folder / name
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
    try:
        content = json.loads(read_text(file), object_hook=_reduce)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"`{file}` is not valid JSON: {error}. Download it again.") from error
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
        if any((path := finder.find(folder / name)) and path.is_file() for name in names):
            return folder
    raise DataError(
        f"`{file}`: none of its {len(names)} images is in `{file.parent / _IMAGE_FOLDER}` or in `{file.parent}` (the "
        f"first: `{next(iter(names))}`). Give a YAML file of two lines instead: `images: FOLDER` and "
        f"`{GROUNDING_KEY}: {file.name}`."
    )


def _read_box(entry: dict[str, Any], caption: Caption) -> _PhraseBox:
    """An annotation, checked against its caption."""
    where = f"{caption.where}, annotation {entry.get('id', 'without id')}"
    box, spans = entry.get("bbox"), entry.get("tokens_positive")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise DataError(f"{where}: `bbox` must be [x, y, width, height]. Received: {box!r}.")
    if not isinstance(spans, list) or not all(
        isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span) for span in spans
    ):
        raise DataError(f"{where}: `tokens_positive` must be [[start, end], ...]. Received: {spans!r}.")
    for start, end in spans:
        if not 0 <= start <= end <= len(caption.text):
            raise DataError(
                f"{where}: the span [{start}, {end}] is not in its caption of {len(caption.text)} characters. Correct "
                "or remove it, or check that captions and annotations come from the same file."
            )
    (width, height), (x, y, w, h) = caption.size_wh, map(float, box)
    x1, x2 = (min(max(value, 0.0), float(width)) for value in (x, x + w))
    y1, y2 = (min(max(value, 0.0), float(height)) for value in (y, y + h))
    phrase = " ".join(caption.text[start:end] for start, end in spans)
    return _PhraseBox(where, (x1, y1, x2, y2), spans, phrase)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
