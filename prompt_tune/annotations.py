"""Detections of many images as annotated pictures and one COCO-style document."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prompt_tune import __version__
from prompt_tune.detections import ClassKey, Detections, coco_categories
from prompt_tune.draw import draw
from prompt_tune.errors import DataError
from prompt_tune.files import replacing
from prompt_tune.images import IMAGE_SUFFIXES, read_rgb
from prompt_tune.runtime import IOU, Detector

JSON_FILE = "detections.json"
JPEG_QUALITY = 92  # text and thin lines smear below 90

Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Annotated:
    """What `annotate` did.

    out: the folder with pictures and detections.json. images: pictures written. skipped: one line for each image that
    cannot be read. detections: how many of each (vocabulary label, class name); classes without any are left out.
    images_with: likewise, images that have that class.
    """

    out: Path
    images: int
    skipped: tuple[str, ...]
    detections: Mapping[ClassKey, int]
    images_with: Mapping[ClassKey, int]


def annotate(
    detector: Detector,
    paths: Sequence[Path],
    out: Path | str,
    *,
    iou: float = IOU,
    original_conf: float | None = None,
    learned_conf: float | None = None,
    show: Sequence[str] | None = None,
    hide: Sequence[str] | None = None,
    report: Report | None = None,
) -> Annotated:
    """Detects in images, one at a time, and writes an annotated picture of each and detections.json.

    The document has COCO's `images`, `categories` and `annotations`. A category and an annotation have `vocabulary`,
    the label of the vocabulary they are from: "original" or that of a learned one. An annotation has `score`; `bbox` is
    x, y, width, height in original pixels. `info` has the detector's digest, the vocabularies (kind, guide mode,
    digest, number of classes), the thresholds, and the names of skipped images.

    Args:    detector: with its vocabularies loaded.
             paths: of the images. A picture has the path of its image below the folder that all images have in common.
             out: folder to write to; files of the same names are replaced, each whole or not at all.
             iou, original_conf, learned_conf, show, hide: as in `Detector.detect`.
             report: called with (stage, done, total, note).
    Returns: what was found. An image that cannot be read is skipped, counted and named.
    Raises:  DataError: no image can be read, a picture would replace an image that is read, or `out` cannot be written.
    """
    out = Path(out)
    pictures = _pictures(paths, out)
    options = {"iou": iou, "original_conf": original_conf, "learned_conf": learned_conf}
    document = _Document(detector.classes)
    for done, (path, picture) in enumerate(pictures.items()):
        if report:
            report("detect", done, len(pictures), path.name)
        name = picture.relative_to(out).as_posix()
        try:
            image = read_rgb(path)
        except DataError as error:
            document.skipped[name] = str(error)
            continue
        (found,) = detector.detect(image, **options, show=show, hide=hide)  # type: ignore[arg-type]
        document.add(name, found)
        with _writing(picture) as temporary:
            draw(image, found).save(temporary, quality=JPEG_QUALITY)
    if report:
        report("detect", len(pictures), len(pictures), "")
    if not document.images:
        first = next(iter(document.skipped.values()), "no image was given.")
        raise DataError(f"None of {len(pictures)} images can be read: {first}")
    with _writing(out / JSON_FILE) as temporary:
        temporary.write_text(document.json(_info(detector) | options), encoding="utf-8")
    skipped = tuple(document.skipped.values())
    return Annotated(out, len(document.images), skipped, document.detections, document.images_with)


@dataclass
class _Document:
    """detections.json while it grows."""

    classes: tuple[ClassKey, ...]
    images: list[dict[str, object]] = field(default_factory=list)
    annotations: list[dict[str, object]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    detections: Counter[ClassKey] = field(default_factory=Counter)
    images_with: Counter[ClassKey] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.category_ids = {key: number for number, key in enumerate(self.classes, start=1)}

    def add(self, file_name: str, found: Detections) -> None:
        """One image with its detections."""
        image_id, (width, height) = len(self.images) + 1, found.size_wh
        self.images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        self.annotations += found.to_coco(image_id, self.category_ids, first_id=len(self.annotations) + 1)
        keys = list(zip(found.vocabularies, found.class_names, strict=True))
        self.detections.update(keys)
        self.images_with.update(set(keys))

    def json(self, info: Mapping[str, object]) -> str:
        """The text of the file."""
        content = {
            "info": {**info, "skipped": list(self.skipped)},
            "images": self.images,
            "categories": coco_categories(self.classes),
            "annotations": self.annotations,
        }
        return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _info(detector: Detector) -> dict[str, object]:
    """Where the detections come from."""
    vocabularies = {
        label: {"kind": part.kind, "guide_mode": part.guide_mode, "digest": part.digest, "classes": len(part.names)}
        for label, part in detector.vocabularies.items()
    }
    return {
        "description": f"Detections by prompt-tune {__version__}",
        "detector": detector.digest,
        "image_size": detector.image_size,
        "vocabularies": vocabularies,
    }


def _pictures(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the picture of each image goes.

    Raises: DataError: a picture would take the place of an image.
    """
    if not paths:
        return {}
    absolute = [Path(os.path.abspath(path)) for path in paths]  # links stay: a picture has the name the user sees
    root = os.path.commonpath([path.parent for path in absolute])
    pictures = {}
    for path, place in zip(paths, absolute, strict=True):
        picture = out / place.relative_to(root)
        if picture.suffix.lower() not in IMAGE_SUFFIXES:
            picture = picture.with_name(f"{picture.name}.png")
        pictures[path] = picture
    images = {path.resolve() for path in absolute}
    for picture in pictures.values():
        if picture.resolve() in images:
            raise DataError(f"The annotated picture `{picture}` would replace an image of yours. Choose another --out.")
    return pictures


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """`replacing`, with an error that says what to do.

    Raises: DataError: the place cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"Cannot write `{path}`: {reason}. Choose another --out or make room.") from error
