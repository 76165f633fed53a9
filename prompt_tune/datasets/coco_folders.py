"""Folders with COCO's JSON as tools export them: CVAT, Label Studio, FiftyOne, and COCO and LVIS themselves.

- CVAT, COCO: `annotations/instances_SPLIT.json`; LVIS: `lvis_v1_SPLIT.json`, in the folder itself or in `annotations`.
  The images lie in `images/SPLIT`, in `SPLIT`, in `images`, or in the folder itself.
- Label Studio: `result.json` with `images`.
- FiftyOne: `labels.json` with `data`, in the folder itself or in one folder per split.
"""

import re
from pathlib import Path

from prompt_tune.datasets.places import beginning
from prompt_tune.datasets.splits import by_split, split_folders
from prompt_tune.errors import DataError

_NAME = re.compile(r"(?:instances_|lvis_v[\d.]+_)(?P<split>.+)\.json")
_WHOLE = (("result.json", "images", "."), ("labels.json", "data", "data"))  # annotations, what must be there, images
_KEYS = ('"categories"', '"images"', '"annotations"')  # of COCO; labels.json of FiftyOne's own format has none of them


def coco_places(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The image folder and the annotation file of each split; empty for folders in other formats.

    Raises:
        DataError: Annotation files are there, but their names do not say which split they are.
    """
    for place in (folder / "annotations", folder):
        if found := _named(place):
            return {split: (_images(folder, raw), file) for split, (raw, file) in _by_split(found).items()}
    if whole := _whole(folder):
        return {"train": whole}
    parts = {split: _whole(part) for split, part in split_folders(folder).items()}
    return {split: whole for split, whole in parts.items() if whole}


def _named(place: Path) -> dict[Path, str]:
    """The annotation files of a folder, each with what its name says of the split."""
    if not place.is_dir():
        return {}
    files = {file: _NAME.fullmatch(file.name) for file in sorted(place.glob("*.json"))}
    return {file: match["split"] for file, match in files.items() if match}


def _by_split(found: dict[Path, str]) -> dict[str, tuple[str, Path]]:
    splits: dict[str, tuple[str, Path]] = {}
    files = {Path(raw): file for file, raw in found.items()}
    if len(files) == len(found):
        splits = {split: (raw.name, files[raw]) for split, raw in by_split(files).items()}
    if len(found) == 1 and not splits:
        file, raw = next(iter(found.items()))
        return {"train": (raw, file)}
    if "train" not in splits:
        names = ", ".join(file.name for file in found)
        raise DataError(
            f"`{next(iter(found)).parent}`: the names of {names} do not say which file is for training. Write a YAML "
            "that names them (`train: {images: FOLDER, annotations: FILE}`)."
        )
    return splits


def _images(folder: Path, raw: str) -> Path:
    """The folder of the images of a split, whose annotation file calls it `raw`."""
    tried = [folder / "images" / raw, folder / raw]
    tried += [path for path in (folder / f"{raw}2017", folder / "images" / f"{raw}2017", folder / "images")]
    return next((place for place in tried if place.is_dir()), folder)


def _whole(folder: Path) -> tuple[Path, Path] | None:
    """The images and the one annotation file of a folder without splits."""
    for name, needed, images in _WHOLE:
        head = beginning(folder / name)
        if (folder / needed).is_dir() and head.lstrip().startswith("{") and any(key in head for key in _KEYS):
            return folder / images, folder / name
    return None
