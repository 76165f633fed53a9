"""Data sets in FiftyOne's own formats: `samples.json` or `labels.json` beside the folder `data`.

`samples.json` is a FiftyOneDataset: each sample has tags, which may name its split, and fields, of which `ground_truth`
counts, or the only field of detections. `labels.json` is a FiftyOneImageDetectionDataset: class names and boxes by the
stem of the image. Boxes are left, top, width and height as fractions. Detections with `iscrowd`, `IsGroupOf` or
`difficult` are neither positives nor negatives. A sample without detections is background.
"""

from pathlib import Path
from typing import Any

from prompt_tune.datasets.named import Album, Found, NamedImage, NamedRow
from prompt_tune.datasets.places import beginning, read_json
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.datasets.shapes import Box, is_number
from prompt_tune.datasets.splits import split_of
from prompt_tune.errors import DataError
from prompt_tune.wording import brief, shown

SAMPLES, LABELS = "samples.json", "labels.json"
_FIELD = "ground_truth"
_IGNORED = ("iscrowd", "IsGroupOf", "difficult")
_CURE = "Export it again."
_HEAVY = ("mask", "embedding", "embeddings", "logits")


def is_fiftyone(folder: Path) -> bool:
    """Whether a folder has one of the two files."""
    if (folder / SAMPLES).is_file():
        return '"samples"' in beginning(folder / SAMPLES)
    head = beginning(folder / LABELS)  # COCO's file has the same name
    return '"classes"' in head and '"labels"' in head and '"categories"' not in head


def read_fiftyone(folder: Path) -> dict[str, Found]:
    """Reads one of the two files, by split. Samples and boxes that break a rule are left out.

    Raises:
        DataError: The file is not one of FiftyOne's, or several fields could be meant.
    """
    if (folder / SAMPLES).is_file():
        return _read_samples(folder, folder / SAMPLES)
    return {"train": _read_labels(folder, folder / LABELS)}


def _read_samples(folder: Path, file: Path) -> dict[str, Found]:
    content = read_json(file, _light, _CURE)
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise DataError(f"`{file}` must have a list `samples` of objects. {_CURE}")
    field = _field(samples, file)
    splits = [_split(sample) for sample in samples]
    used = sorted({split or "train" for split in splits}) or ["train"]
    albums = {split: Album(folder) for split in used}
    for position, (sample, split) in enumerate(zip(samples, splits, strict=True), start=1):
        album = albums[split or "train"]
        where = f"`{file}`, sample {position}"
        name = sample.get("filepath")
        if not isinstance(name, str):
            what = f"{where}: a sample has a `filepath`. Received: {shown(name)}."
            album.left_out.append(LeftOut(Reason.IMAGE, what))
            continue
        image = album.image(where, name, normalised=True)
        if image is not None:
            _add_all(image, where, sample.get(field))
    return {split: album.found() for split, album in albums.items()}


def _light(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _HEAVY}


def _field(samples: list[dict[str, Any]], file: Path) -> str:
    """The field whose detections are the labels."""
    fields = {
        key: None
        for sample in samples
        for key, value in sample.items()
        if isinstance(value, dict) and value.get("_cls") == "Detections"
    }
    if _FIELD in fields or len(fields) == 1:
        return _FIELD if _FIELD in fields else next(iter(fields))
    if not fields:
        raise DataError(f"`{file}`: no sample has detections. Export a field of detections with it.")
    named = ", ".join(brief(key) for key in fields)
    raise DataError(f"`{file}` has several fields of detections ({named}). Export one of them, or call it `{_FIELD}`.")


def _split(sample: dict[str, Any]) -> str | None:
    tags = sample.get("tags")
    found = [split_of(tag) for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return next(filter(None, found), None)


def _read_labels(folder: Path, file: Path) -> Found:
    content = read_json(file, _light, _CURE)
    labels = content.get("labels") if isinstance(content, dict) else None
    names = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not (
        names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))
    ):
        raise DataError(f"`{file}` must have `classes`, a list of names, and `labels`, an object. {_CURE}")
    album = Album(folder)
    for name, detections in labels.items():
        where = f"`{file}`, {shown(name)}"
        image = album.image(where, name, normalised=True)
        if image is not None:
            _add_all(image, where, {"detections": detections}, names)
    return album.found(tuple(names or ()))


def _add_all(image: NamedImage, where: str, value: Any, names: list[str] | None = None) -> None:
    """Adds the detections of a field; a field without any makes its image background."""
    detections = value.get("detections") if isinstance(value, dict) else None
    for number, entry in enumerate(detections if isinstance(detections, list) else (), start=1):
        place = f"{where}, detection {number}"
        try:
            if not isinstance(entry, dict):
                raise DataError(f"a detection must be an object. Received: {shown(entry)}.")
            image.rows.append(NamedRow(place, _name(entry.get("label"), names), _box(entry), _is_ignored(entry)))
        except DataError as error:
            image.left_out.append(LeftOut(Reason.ROW, f"{place}: {error}"))


def _name(label: Any, names: list[str] | None) -> str:
    """The class of a detection: a name, or its number in the list of classes."""
    if names is not None and type(label) is int and 0 <= label < len(names):
        return names[label]
    if not isinstance(label, str) or not label.strip():
        raise DataError(f"a detection has a `label`. Received: {shown(label)}.")
    return label.strip()


def _box(entry: dict[str, Any]) -> Box:
    box = entry.get("bounding_box")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise DataError(f"`bounding_box` must be [left, top, width, height]. Received: {shown(box)}.")
    x, y, w, h = map(float, box)
    return x, y, x + w, y + h


def _is_ignored(entry: dict[str, Any]) -> bool:
    """Whether a detection says, itself or in its attributes, that it is a crowd, a group or difficult."""
    attributes = entry.get("attributes")
    held = attributes if isinstance(attributes, dict) else {}
    for key in _IGNORED:
        value = entry.get(key, held.get(key))
        value = value.get("value") if isinstance(value, dict) else value
        if value not in (None, False, 0, "0", "", "False", "false"):
            return True
    return False
